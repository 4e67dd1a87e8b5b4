"""``darkroom submit``: job files made or copied into the inbox, each appearing whole; ``--wait`` for their verdicts."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom import strict_json
from darkroom.catalog import Catalog
from darkroom.config import Config, load
from darkroom.errors import InvalidRequest, JobError, StorageTrouble, UsageError
from darkroom.health import read as read_health
from darkroom.job import parse, resolve
from darkroom.spool import Disk, Spool, is_held, is_plain, new_id, slug

POLL_S = 0.1


@dataclass
class _Dropped:
    """A job that was put into the inbox. Its inode follows it through all folders."""

    name: str
    path: Path
    inode: int
    verdict: Path | None = None


def submit_jobs(
    jobs: list[str], config_file: Path | None, root: Path | None, *, settings: list[str], name: str | None, wait: bool
) -> int:
    """Returns the exit code. Raises UsageError before anything is dropped, if one of the jobs is not valid."""
    config = load(config_file, root=root)
    spool = Spool(config.folders, config.limits)
    if not spool.inbox.is_dir():
        raise UsageError(
            f"there is no inbox at {spool.inbox}: start `darkroom run` first, or name the spool with --root"
        )
    if name is not None and (len(jobs) != 1 or not is_plain(name)):
        raise UsageError("--name is for one job, and must be a plain file name without slashes")
    fields = dict(_setting(text) for text in settings)
    prepared = [_prepare(job, fields, name) for job in jobs]
    for label, data in prepared:
        _validate(label, data, config)
    dropped = [_drop(spool, label, data) for label, data in prepared]
    if not wait:
        for job in dropped:
            print(job.path)
        _say_if_nobody_works(spool)
        return 0
    return _wait_for(dropped, spool)


def _setting(text: str) -> tuple[str, Any]:
    """``steps=30`` → ("steps", 30); what is not JSON is a text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: write it as KEY=VALUE, for example --set steps=30")
    try:
        return key, strict_json.parse(value).value
    except strict_json.JSONFault:
        return key, value


def _prepare(job: str, fields: dict[str, Any], name: str | None) -> tuple[str, bytes]:
    """A job's name and content, from a file or from a prompt."""
    path = Path(job)
    if job.lower().endswith(".json"):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{job}: {error.strerror}; a prompt does not end in .json, so this was taken for a file"
            ) from None
        if fields:
            try:
                value = strict_json.parse(strict_json.decode(data)).value
            except strict_json.JSONFault as fault:
                raise UsageError(f"{job}: line {fault.line}, column {fault.column}: {fault.message}") from None
            if not isinstance(value, dict):
                raise UsageError(f"{job}: a job is a JSON object")
            data = json.dumps({**value, **fields}, ensure_ascii=False, indent=2).encode() + b"\n"
        return name or path.stem, data
    data = json.dumps({"prompt": job, **fields}, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass") + b"\n"
    return name or slug(job)[:40].strip("-._") or "job", data


def _validate(label: str, data: bytes, config: Config) -> None:
    try:
        resolve(parse(data), config, Catalog(config.models), "checked")
    except InvalidRequest as error:
        lines = [f"{label}: {fault}" for fault in error.errors] or [f"{label}: {error.message}"]
        raise UsageError("\n".join(lines)) from None
    except JobError as error:
        raise UsageError(f"{label}: {error.message}") from None


def _drop(spool: Spool, name: str, data: bytes) -> _Dropped:
    """Hidden, fsynced, then linked to its name, which never replaces another's file."""
    disk = Disk()
    hidden = spool.inbox / f".{new_id(name)}.tmp"
    try:
        disk.write(hidden, data)
        number = 1
        while True:
            path = spool.inbox / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
            try:
                disk.link(hidden, path)
                break
            except FileExistsError:
                number += 1
        inode = path.stat().st_ino if path.exists() else hidden.stat().st_ino
        disk.unlink(hidden)
        disk.sync_folder(spool.inbox)
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot write into {spool.inbox}: {error}") from None
    return _Dropped(path.stem, path, inode)


def _say_if_nobody_works(spool: Spool) -> None:
    health = read_health(spool.root)
    if not is_held(spool.working) and (health is None or health.state == "stopped"):
        print("No daemon is running on this spool; `darkroom run` starts one.", file=sys.stderr)


def _wait_for(dropped: list[_Dropped], spool: Spool) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    _say_if_nobody_works(spool)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    failed = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {job.name: bars.add_task(f"{job.name}: waiting", total=None) for job in dropped}
        waiting = list(dropped)
        while waiting:
            for job in list(waiting):
                progress = _progress_of(job, spool)
                if progress is not None:
                    total = progress["pictures"] * progress["steps"]
                    done = progress["finished"] * progress["steps"] + progress["step"] * progress["batch"]
                    bars.update(tasks[job.name], description=job.name, total=total, completed=min(done, total))
                verdict = _verdict_of(job, spool)
                if verdict is None:
                    continue
                waiting.remove(job)
                bars.remove_task(tasks[job.name])
                failed += not _report(job, verdict)
            if waiting:
                time.sleep(POLL_S)
    return 1 if failed else 0


def _progress_of(job: _Dropped, spool: Spool) -> dict[str, Any] | None:
    for folder in _folders(spool.working):
        if _inode(folder / "request.json") == job.inode:
            try:
                progress: dict[str, Any] = json.loads((folder / "progress.json").read_bytes())
            except (OSError, ValueError):
                return None
            return progress
    return None


def _verdict_of(job: _Dropped, spool: Spool) -> Path | None:
    """Where the job was published; a job that nobody can find any more was taken out of the inbox by somebody."""
    if _inode(job.path) == job.inode:
        return None
    for base in (spool.done, spool.failed):
        for folder in _folders(base):
            if (folder.name == job.name or folder.name.startswith(f"{job.name}~")) and (
                _inode(folder / "request.json") == job.inode
            ):
                return folder
    return None


def _report(job: _Dropped, folder: Path) -> bool:
    error_file = folder / "error.json"
    if not error_file.exists():
        print(folder)
        return True
    try:
        message = json.loads(error_file.read_bytes())["message"]
    except (OSError, ValueError, KeyError):
        message = "failed"
    print(f"{folder}: {message}", file=sys.stderr)
    return False


def _folders(base: Path) -> list[Path]:
    try:
        with os.scandir(base) as entries:
            return [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
