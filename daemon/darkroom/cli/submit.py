"""``darkroom submit``: job files made or copied into the inbox, each appearing whole; ``--wait`` for their verdicts."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom import strict_json
from darkroom.check import faults_in
from darkroom.cli.drop import Dropped, drop
from darkroom.cli.embed import beside, read_picture, with_pictures
from darkroom.config import Config, Limits, load
from darkroom.errors import InvalidRequest, UsageError
from darkroom.health import has_ended
from darkroom.job import goes_by_lines, read_list, spellings
from darkroom.models.catalog import Catalog
from darkroom.spool import (
    JOBS_OF_FOLDERS,
    KINDS,
    OF_LIST,
    Spool,
    Ticket,
    is_held,
    is_job,
    is_picture,
    is_plain,
    request_in,
    slug,
)
from darkroom.spool.ticket import RESULT
from darkroom.visible import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_S = 0.1
LOST_S = 3.0


def submit_jobs(
    jobs: list[str],
    config_file: Path | None,
    root: Path | None,
    *,
    settings: list[str],
    pictures: dict[str, Path],
    name: str | None,
    wait: bool,
) -> int:
    """``pictures`` are those to begin with, by their field. Returns the exit code.

    Raises UsageError before anything is dropped, if one of the jobs is not valid.
    """
    config = load(config_file, root=root)
    spool = Spool(config.folders, config.limits)
    if not spool.inbox.is_dir():
        raise UsageError(
            f"there is no inbox at {spool.inbox}: start `darkroom run` first, or name the spool with --root"
        )
    if name is not None and (len(jobs) != 1 or not is_plain(name)):
        raise UsageError("--name is for one job, and must be a plain file name without slashes")
    fields = with_pictures(dict(_setting(text) for text in settings), beside(Path()))
    fields |= {field: read_picture(path) for field, path in pictures.items()}
    prepared = [_prepare(job, fields, name, named_after_prompt=config.log.prompts) for job in jobs]
    for given, (label, kind, data) in zip(jobs, prepared, strict=True):
        typed = not is_job(given) and not os.path.isdir(given)  # noqa: PTH112  # as in _prepare
        _validate(label, kind, data, config, typed=typed)
    dropped = [drop(spool, label, data, kind) for label, kind, data in prepared]
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


def _prepare(job: str, fields: dict[str, Any], name: str | None, *, named_after_prompt: bool) -> tuple[str, str, bytes]:
    """A job's name, kind and content, from a file, a folder, a picture's recipe, or a prompt; its pictures inside.

    Names stand in the logs: where prompts may not, a job is not named after its own.
    """
    path = Path(job)
    if job and os.path.isdir(job):  # noqa: PTH112  # a prompt too long for a path raises there
        file = next((path / leaf for leaf in JOBS_OF_FOLDERS if (path / leaf).is_file()), None)
        if file is None:
            raise UsageError(f"{job}: this folder holds no {' and no '.join(JOBS_OF_FOLDERS)}")
        name = name or path.resolve().name
        return _prepare(str(file), fields, name, named_after_prompt=named_after_prompt)
    if is_job(job):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{job}: {error.strerror}; a prompt does not end in {path.suffix}, so this was taken for a file"
            ) from None
        if is_picture(job):
            from darkroom.cli.recipe import recipe_of  # brings Pillow

            data = _json(recipe_of(job, data))
        if goes_by_lines(job) and not fields:
            return name or path.stem, path.suffix.lower(), data
        return name or path.stem, ".json", _with_fields(job, data, fields)
    if job and os.path.exists(job):  # noqa: PTH110  # the same
        raise UsageError(f"{job}: this is a file, and files of jobs end in {', '.join(KINDS)}; for a prompt, alter it")
    data = _json({"prompt": job, **fields})
    return name or (slug(job)[:40].strip("-._") if named_after_prompt else "") or "job", ".json", data


def _with_fields(job: str, data: bytes, fields: dict[str, Any]) -> bytes:
    """A job file, or a list, with its pictures inside and these fields set, whatever else it says."""
    base = beside(Path(job).parent)
    try:
        if goes_by_lines(job):
            limits = Limits(max_jobs_per_file=1_000_000)
            entries = read_list(job, data, most=limits.max_jobs_per_file, most_bytes=limits.max_job_bytes)
            assert entries is not None
            whole: Any = [
                {"prompt": entry.written} if entry.column is None else strict_json.parse(entry.written).value
                for entry in entries.entries
            ]
            value = None
        else:
            whole = value = strict_json.parse(strict_json.decode(data)).value
    except strict_json.JSONFault as fault:
        raise UsageError(f"{job}: line {fault.line}, column {fault.column}: {fault.message}") from None
    except InvalidRequest as error:
        raise UsageError(f"{job}: {error.message}") from None
    if isinstance(whole, dict) and isinstance(whole.get("jobs"), list):
        whole = {**whole, "jobs": [with_pictures(entry, base) for entry in whole["jobs"]]}
    elif isinstance(whole, list):
        whole = [with_pictures(entry, base) for entry in whole]
    else:
        whole = with_pictures(whole, base)
    if fields:
        whole = _set(job, whole, fields)
    return data if whole == value else _json(whole)


def _set(job: str, whole: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields in a job, or that of a result, whatever they are called there; in a list in its defaults alone."""
    names = {name for field in fields for name in spellings(field)}

    def others(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in entry.items() if key not in names}

    if isinstance(whole, dict) and "darkroom" in whole and isinstance(whole.get("job"), dict):
        return {**whole, "job": {**others(whole["job"]), **fields}}
    if isinstance(whole, dict) and not isinstance(whole.get("jobs"), list):
        return {**others(whole), **fields}
    entries, defaults = (whole, {}) if isinstance(whole, list) else (whole["jobs"], whole.get("defaults", {}))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in (defaults, *entries)):
        raise UsageError(f"{job}: a job is a JSON object")
    return {"defaults": {**others(defaults), **fields}, "jobs": [others(entry) for entry in entries]}


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass") + b"\n"


def _validate(label: str, kind: str, data: bytes, config: Config, *, typed: bool) -> None:
    """Of what was typed no line is told: there is no file that has it."""
    faults = faults_in(f"{label}{kind}", data, config, Catalog(config.models), None)
    if typed:
        faults = [re.sub(r"^line \d+, column \d+: ", "", fault) for fault in faults]
    if faults:
        raise UsageError("\n".join(f"{label}: {fault}" for fault in faults))


def _say_if_nobody_works(spool: Spool) -> None:
    if not is_held(spool.working) and has_ended(spool.root):
        print("No daemon is running on this spool; `darkroom run` starts one.", file=sys.stderr)


def _wait_for(dropped: list[Dropped], spool: Spool) -> int:
    """Until each has its verdict; 1 if one of them is not done."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    _say_if_nobody_works(spool)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    failed, console = 0, Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {job.name: bars.add_task(f"{escape(job.name)}: waiting", total=None) for job in dropped}
        waiting = list(dropped)
        while waiting:
            for job in list(waiting):
                match _find(job, spool):
                    case "inbox":
                        continue
                    case "working", folder:
                        _show_progress(bars, tasks[job.name], job, folder)
                        continue
                    case "verdict", folder if _is_under_way(spool, folder):
                        continue
                    case "verdict", folder:
                        failed += not _report(folder, spool)
                    case _ if time.monotonic() < job.lost_at:
                        continue  # between two folders
                    case _:
                        failed += 1
                        print(f"{job.path} is gone: somebody took it out of the inbox", file=sys.stderr)
                waiting.remove(job)
                bars.remove_task(tasks[job.name])
            if waiting:
                time.sleep(POLL_S)
    return 1 if failed else 0


def _find(job: Dropped, spool: Spool) -> Any:
    """Where the job is now: ``"inbox"``, ("working", its folder), ("verdict", its folder) or None."""
    if _inode(job.path) == job.inode:
        job.lost_at = time.monotonic() + LOST_S
        return "inbox"
    for folder in _folders(spool.working):
        if _is_of(job, folder):
            job.lost_at = time.monotonic() + LOST_S
            return "working", folder
    for base in (spool.done, spool.failed):
        for folder in _folders(base):
            if folder.name == job.name or folder.name.startswith(f"{job.name}~"):
                for verdict in (folder, folder / OF_LIST):
                    if _is_of(job, verdict):
                        return "verdict", verdict
    return None


def _is_of(job: Dropped, folder: Path) -> bool:
    request = request_in(folder)
    return request is not None and _inode(Path(request)) == job.inode


def _is_under_way(spool: Spool, folder: Path) -> bool:
    """Whether it is the verdict of a list of which some jobs wait or run: looked at in the order in which they move."""
    if folder.name != OF_LIST:
        return False
    group = folder.parent.name
    if any(not entry.name.startswith(".") for entry in _folders(spool.inbox / group)):
        return True
    for path in _folders(spool.working):
        ticket = Ticket.load(path, spool.disk)
        if ticket is None:  # about to be published: its origin is removed before; or it is by now
            if (path / RESULT).exists() or not path.exists():
                return True
        elif ticket.name.startswith(f"{group}/"):
            return True
    return False


def _show_progress(bars: Progress, task: TaskID, job: Dropped, folder: Path) -> None:
    """Move a bar as far as progress.json says."""
    try:
        progress = json.loads((folder / "progress.json").read_bytes())
    except (OSError, ValueError):
        return
    steps = progress["steps"]
    completed = progress["finished"] * steps + progress["step"] * progress["batch"]
    total = progress["pictures"] * steps
    bars.update(task, description=job.name.replace("[", r"\["), total=total, completed=min(completed, total))


def _report(folder: Path, spool: Spool) -> bool:
    """Print the verdict, of a list those of all its jobs; whether all is done."""
    if folder.name == OF_LIST:
        group = folder.parent.name
        verdicts = [path for base in (spool.done, spool.failed) for path in _folders(base / group)]
        told = [_tell(verdict) for verdict in sorted(verdicts) if verdict.name != OF_LIST]
        return all(told)
    return _tell(folder)


def _tell(folder: Path) -> bool:
    try:
        message = json.loads((folder / "error.json").read_bytes())["message"]
    except FileNotFoundError:
        print(folder)
        return True
    except (OSError, ValueError, KeyError) as error:
        message = f"failed, and its error.json cannot be read: {error}"
    print(f"{folder}: {visible(str(message))}", file=sys.stderr)
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
