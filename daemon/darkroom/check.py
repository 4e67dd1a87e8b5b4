"""Preflight: is everything there that a night's work needs? Each finding says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from darkroom import dropped
from darkroom.config import Config
from darkroom.errors import (
    ConfigError,
    DarkroomError,
    FieldError,
    InvalidRequest,
    ModelUnavailable,
    SpoolInUse,
    plainly,
)
from darkroom.inputs.sources import Base, find
from darkroom.job import Request, goes_by_lines, lone_faults, parse, placed, read_presets, resolve
from darkroom.models.catalog import BASE_ALONE, Catalog
from darkroom.spool import Spool, holder

DEVICE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``ok`` or not, and what was seen."""

    what: str
    ok: bool
    message: str


def check_job(path: Path, config: Config, catalog: Catalog) -> list[str]:
    """What is wrong with a job file or a list, a line each; empty if it can be run here. Raises ConfigError."""
    spool = Spool(config.folders, config.limits)
    try:
        data = spool.read(str(path))
    except OSError as error:
        return [plainly(error)]
    return faults_in(path.name, data, config, catalog, Base(path.parent, job=path.name))


def faults_in(name: str, data: bytes | None, config: Config, catalog: Catalog, base: Base | None) -> list[str]:
    """The same for the content of a file of that name, whose pictures lie below ``base``. Of a list, for each entry."""
    presets = read_presets(config)

    def others(request: Request) -> list[FieldError]:
        return lone_faults(request, config, catalog)

    def check(request: Request, written: bytes) -> None:
        pictures = find(request, base, config.limits)
        try:
            pictures.refuse(others=lambda: others(request))
            resolve(request, config, catalog, "checked", pictures.given)
        except InvalidRequest as error:
            raise placed(error, written, presets, request.preset) from None

    try:
        found = dropped.read(name, data, config.limits, presets, others)
        if isinstance(found, Request):
            check(found, data or b"")
            return []
    except DarkroomError as error:
        return _told(error)
    faults = []
    for entry in found.entries:
        try:
            written = entry.as_file(name, found.defaults)
            check(parse(written, presets, others=others), written)
        except DarkroomError as error:
            which = "line" if goes_by_lines(name) else "entry"
            faults += [
                fault if fault.startswith("line ") else f"{which} {entry.number}: {fault}" for fault in _told(error)
            ]
    return faults


def _told(error: DarkroomError) -> list[str]:
    return [str(fault) for fault in error.errors] or [error.message]


def preflight(config: Config) -> Iterator[Finding]:
    """Folders, space, models, device, one after the other; each yielded as it is known."""
    yield from _folders(config)
    yield from _models(config)
    yield from _presets(config)
    yield from _loras(config)
    if config.notify.command is not None:
        yield _command(config.notify.command[0])
    if config.engine.backend == "openvino":
        yield _openvino(config)
    if config.executor.kind == "local":
        yield _device(config)


def _folders(config: Config) -> Iterator[Finding]:
    spool = Spool(config.folders, config.limits)
    try:
        spool.open()
    except SpoolInUse:
        owner = holder(spool.working) or "a daemon"
        yield Finding("folders", True, f"{spool.root} is in use by {owner}")
    except ConfigError as error:
        yield Finding("folders", False, error.message)
        return
    else:
        spool.close()
        yield Finding("folders", True, f"{spool.root} can be written, all four folders on one file system")
    free, floor = spool.free_bytes(), config.limits.min_free_bytes
    enough = free >= floor
    advice = "" if enough else f"; make room, or lower [limits] min_free_bytes ({floor >> 20} MiB)"
    yield Finding("free space", enough, f"{free / 2**30:.1f} GiB{advice}")


def _models(config: Config) -> Iterator[Finding]:
    catalog = Catalog(config.models)
    if catalog.default not in catalog.names():
        message = (
            f'[models] default is "{catalog.default}", which is not there; there are: {", ".join(catalog.names())}'
        )
        yield Finding("model", False, message)
    for name in catalog.names():
        try:
            model = catalog.get(name)
            if model is None:
                continue
            size = model.defaults.width
            family = model.family if model.fetched else "to be fetched from the hub"
            if model.is_base_alone:
                if name == catalog.default:
                    raise ModelUnavailable(f'[models] default is "{name}": {BASE_ALONE}')
                family += f", {BASE_ALONE}"
        except ModelUnavailable as error:
            yield Finding("model", False, error.message)
            continue
        default = ", the default" if name == catalog.default else ""
        yield Finding("model", True, f"{name}{default}: {model.place}, {family}, native size {size}")


def _command(program: str) -> Finding:
    place = shutil.which(program)
    message = f"{program} is told of verdicts" if place else f"there is no program {program}; see [notify] command"
    return Finding("notify", place is not None, message)


def _openvino(config: Config) -> Finding:
    in_int8 = config.engine.openvino_precision == "int8"
    try:
        message = f"{version('openvino')} runs the UNets and decodes"
        return Finding("OpenVINO", True, f"{message}, in 8 bits by nncf {version('nncf')}" if in_int8 else message)
    except PackageNotFoundError as error:
        if error.name == "nncf":
            message = (
                '[engine] openvino_precision is "int8", for which nncf is not installed, so that UNets are not run in '
                "8 bits: pip install 'darkroom-daemon[openvino-int8]'"
            )
            return Finding("OpenVINO", False, message)
        message = (
            '[engine] backend is "openvino", which is not installed, so that torch runs the models: '
            "pip install 'darkroom-daemon[openvino]'"
        )
        return Finding("OpenVINO", False, message)


def _loras(config: Config) -> Iterator[Finding]:
    folder = config.models.loras_dir
    if folder is not None and not folder.is_dir():
        yield Finding("LoRAs", False, f"[models] loras_dir is {folder}, which is no folder; make it or mend the key")
    loras = Catalog(config.models).loras
    usable = []
    for name in loras.names():
        try:
            if (lora := loras.get(name)) is not None and lora.about:
                usable.append(name)
        except ModelUnavailable as error:
            yield Finding("LoRAs", False, error.message)
    more = ", …" if len(usable) > 20 else ""
    yield Finding("LoRAs", True, f"{len(usable)} can be used: {', '.join(usable[:20])}{more}")


def _presets(config: Config) -> Iterator[Finding]:
    try:
        presets = read_presets(config)
    except ConfigError as error:
        yield Finding("presets", False, error.message)
        return
    for name, fields in presets.items():
        what = f"preset {name}"
        try:
            resolve(Request.model_validate({"prompt": "a", **fields}), config, Catalog(config.models), "checked")
        except DarkroomError as error:
            yield Finding(what, False, "; ".join(_told(error)))
            continue
        said = ", ".join(f"{field} {json.dumps(value, ensure_ascii=False)}" for field, value in fields.items())
        yield Finding(what, True, f"inbox/{name}/: {said or 'changes nothing'}")


def _device(config: Config) -> Finding:
    """Asked in a process of its own, so that this one never imports torch."""
    settings = {f"DARKROOM_ENGINE__{key.upper()}": str(value) for key, value in config.engine if value is not None}
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "darkroom.engine.device"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=DEVICE_TIMEOUT_S,
            check=True,
        )
        seen = json.loads(answer.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Finding("device", False, last)
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return Finding("device", False, f"the engine cannot start: {error}")
    memory = f", {seen['memory_bytes'] / 2**30:.1f} GiB" if seen.get("memory_bytes") else ""
    return Finding("device", True, f"{seen['name']}{memory}, {seen['dtype']}, torch {seen['versions']['torch']}")
