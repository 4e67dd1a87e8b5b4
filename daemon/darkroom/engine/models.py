"""Names to pipelines, kept in memory as far as there is room, the least recently used let go first."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import torch

from darkroom.config import Config
from darkroom.engine.device import free_memory, memory_bytes
from darkroom.engine.imports import import_libraries
from darkroom.engine.loading import open_model
from darkroom.engine.pipeline import Pipeline
from darkroom.errors import ModelUnavailable
from darkroom.models.catalog import Catalog, Model


class Models:
    """The catalog's models. How many of them stay in memory is a matter of their bytes."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._catalog = Catalog(config.models)
        self._settings = config.engine
        self._safety = config.models.safety
        self._device = device
        configured = config.models.keep_bytes
        self._keep = (memory_bytes(device) or 0) // 2 if configured is None else configured
        self._open: OrderedDict[tuple[str, str], Pipeline] = OrderedDict()
        import_libraries()  # seconds before the first job rather than in it

    def find(self, name: str) -> Model:
        """Raises ModelUnavailable where there is none of that name, or it is no whole model."""
        model = self._catalog.get(name)
        if model is None:
            raise ModelUnavailable(f'There is no model "{name}"; there are: {", ".join(self._catalog.names())}')
        return model

    def get(self, name: str) -> Pipeline:
        """The model's pipeline; its parts are in memory if they were and nothing changed on the disk.

        Others are let go until what it takes to load it fits into ``keep_bytes`` beside them. Raises ModelUnavailable.
        """
        model = self.find(name)
        key = (name, _fingerprint(model))
        if key not in self._open:
            for other in [other for other in self._open if other[0] == name]:
                self._drop(other)  # it was replaced on the disk
            self._open[key] = opened = open_model(model, self._settings, self._device, self._safety)
            opened.on_disk = model.size()
        self._open.move_to_end(key)
        pipeline = self._open[key]
        coming = 0 if pipeline.loaded else pipeline.on_disk
        while len(self._open) > 1 and coming + sum(other.size for other in self._open.values()) > self._keep:
            self._drop(next(iter(self._open)))
        return pipeline

    def keep_only(self, pipeline: Pipeline) -> None:
        """Let go of all others, without handing the memory back yet."""
        for key in [key for key, other in self._open.items() if other is not pipeline]:
            del self._open[key]

    def forget_texts(self) -> None:
        """Of all of them: the next job's are read anew."""
        for pipeline in self._open.values():
            pipeline.readings.clear()

    def clear(self) -> None:
        """Let go of all of them."""
        self._open.clear()
        free_memory(self._device)

    def _drop(self, key: tuple[str, str]) -> None:
        self._open.pop(key)
        free_memory(self._device)


def _fingerprint(model: Model) -> str:
    """Changes when a file of the model does, so that a model replaced on the disk is loaded anew.

    Asked before every job, so it makes do with few calls.
    """
    files = _in_folder(model.folder)
    if model.checkpoint is not None:
        files.append(_known_by(model.checkpoint))
    for vae in (model.configured.vae, model.configured.tiny_vae):
        if vae is not None:
            files += [_known_by(vae)] if vae.is_file() else _in_folder(vae)
    return repr(files)


def _in_folder(folder: Path) -> list[tuple[str, int, int]]:
    """Of the files in it that may be a model's, and of all in the folders in it."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                with os.scandir(entry.path) as parts:
                    found += [_known_by(part) for part in parts]
            elif entry.name.endswith((".json", ".safetensors")):
                found.append(_known_by(entry))
    return sorted(found)


def _known_by(file: Path | os.DirEntry[str]) -> tuple[str, int, int]:
    stat = file.stat()
    return os.fspath(file), stat.st_mtime_ns, stat.st_size
