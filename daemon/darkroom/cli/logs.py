"""``darkroom logs``: what happened to a job, wherever it is: its log.jsonl, now or as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from darkroom.cli.control import running, waiting
from darkroom.cli.status import existing_spool
from darkroom.errors import UsageError
from darkroom.health import read as read_health
from darkroom.spool import Spool, results, slug
from darkroom.spool.ticket import LOG, RESULT
from darkroom.visible import visible

POLL_S = 0.2

_COLOURS = {
    "job.done": "green",
    "job.failed": "red",
    "engine.died": "red",
    "job.warning": "yellow",
    "oom.step_down": "yellow",
    "log.full": "yellow",
}


def show_logs(name: str | None, config_file: Path | None, root: Path | None, *, follow: bool, as_json: bool) -> None:
    """Print it, to a terminal for people. Raises UsageError where there is no such job."""
    from rich.console import Console

    spool = existing_spool(config_file, root)
    console = Console(highlight=False, soft_wrap=True)
    pretty = console.is_terminal and not as_json
    try:
        for line in _lines(spool, name, follow):
            if pretty:
                _show(console, line)
            else:
                print(line, flush=True)
    except KeyboardInterrupt:
        return


def _find(spool: Spool, name: str | None, follow: bool) -> Path:
    """The job's folder. With ``follow`` a job that waits is waited for."""
    if name is None:
        return _latest(spool, follow)
    while True:
        folder = _known(spool, name)
        if folder is not None:
            return folder
        if not any(name in (known, Path(path).name) for known, path in waiting(spool)):
            break
        if not follow:
            raise UsageError(f"{name} waits in the inbox, and nothing has happened to it yet; -f waits for its turn")
        time.sleep(POLL_S)
    raise UsageError(f"there is no such job: {name}; `darkroom status` shows the last ones")


def _latest(spool: Spool, follow: bool) -> Path:
    """The one that runs, else the last that ended. With ``follow`` also one of which nothing is told yet."""
    claimed = list(running(spool))
    at_work = [ticket for ticket in claimed if ticket.is_begun] or (claimed if follow else [])
    if at_work:
        return at_work[-1].folder
    health = read_health(spool.root)
    for recent in health.recent if health is not None else ():
        folder = (spool.done if recent.status == "done" else spool.failed) / recent.name
        if folder.is_dir():
            return folder
    raise UsageError("no job has run here of late; name one, as it is called in done/ or failed/")


def _known(spool: Spool, name: str) -> Path | None:
    """By its name or its id: one that runs, else the later of those that ended."""
    for ticket in running(spool):
        if name in (ticket.name, ticket.id):
            return ticket.folder
    bases = (spool.done, spool.failed)
    ended = [base / name for base in bases if (base / name / RESULT).is_file()]
    return max(ended, key=lambda folder: (folder / RESULT).stat().st_mtime, default=None) or next(
        (folder for base in bases for folder in _with_id(base, name)), None
    )


def _with_id(base: Path, id: str) -> Iterator[Path]:
    """An id has the job's name in it, so few results are read to find it."""
    for name, path in results(base) if base.is_dir() else ():
        if slug(name.rpartition("/")[2].partition("~")[0])[:40] in id and _id(path) == id:
            yield Path(path)


def _id(folder: str) -> Any:
    try:
        return json.loads(Path(folder, RESULT).read_bytes())["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lines(spool: Spool, name: str | None, follow: bool) -> Iterator[str]:
    """Those there are, and with ``follow`` those to come until the job has its verdict.

    Publishing moves the file and does not change it: once open it is read to its end.
    """
    folder, log = _open(spool, name, follow)
    with log:
        rest = b""
        while True:
            # Looked at before the file is read for the last time, so that nothing is missed.
            over = not follow or not folder.exists() or (folder / RESULT).exists()
            *lines, rest = (rest + log.read()).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
            if over:
                return
            time.sleep(POLL_S)


def _open(spool: Spool, name: str | None, follow: bool) -> tuple[Path, BinaryIO]:
    """The job's folder and its log. One that has none yet is waited for, as one that is being published is."""
    while True:
        folder = _find(spool, name, follow)
        with suppress(FileNotFoundError):
            return folder, (folder / LOG).open("rb")
        if folder.exists() and not follow:
            raise UsageError(f"{folder} has no log yet")
        time.sleep(POLL_S)


def _show(console: Any, line: str) -> None:
    from rich.text import Text

    try:
        said = json.loads(line)
        moment, event = said.pop("time"), said.pop("event")
    except (ValueError, KeyError, AttributeError):
        console.print(Text(visible(line)))
        return
    said.pop("id", None)
    when = visible(f"{moment[:10]} {moment[11:19]}  ")
    text = Text.assemble((when, "dim"), (visible(f"{event:14}"), _COLOURS.get(event, "bold")))
    for key, value in said.items():
        text.append(f" {key}=", "dim").append(visible(value) if isinstance(value, str) else json.dumps(value))
    console.print(text)
