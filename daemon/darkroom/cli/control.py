"""``darkroom pause``, ``resume``, ``cancel``, ``retry``: what a person wants of the queue, said through files alone.

So they work while a daemon runs and while none does, and from any machine that has the share.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from darkroom import strict_json
from darkroom.cli.drop import drop, reveal
from darkroom.cli.status import existing_spool
from darkroom.errors import StorageTrouble, UsageError, plainly
from darkroom.spool import (
    DROPPED,
    PAUSE,
    Arrival,
    Spool,
    Ticket,
    published_name,
    request_in,
    results,
)
from darkroom.spool.ticket import CANCEL, ERROR, RESULT, RETRY
from darkroom.visible import visible


def pause(config_file: Path | None, root: Path | None, why: str) -> None:
    """Stop new claims. Raises UsageError."""
    spool = existing_spool(config_file, root)
    _write(spool, spool.root / PAUSE, f"{why}\n" if why else "")
    print("paused: the job that runs is finished, no other is begun; `darkroom resume` goes on")


def resume(config_file: Path | None, root: Path | None) -> None:
    """Let claims go on. Raises UsageError."""
    spool = existing_spool(config_file, root)
    if not (spool.root / PAUSE).exists():
        print("not paused")
        return
    try:
        spool.disk.unlink(spool.root / PAUSE)
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot remove {spool.root / PAUSE}: {plainly(error)}") from None
    print("resumed")


def cancel(names: list[str], config_file: Path | None, root: Path | None, *, as_json: bool) -> int:
    """Take jobs out of the inbox, stop those that run. Returns 1 where one of them was not found."""
    spool = existing_spool(config_file, root)
    outcomes = {name: _cancel(spool, name) for name in names}
    return _tell(
        outcomes,
        as_json,
        known=lambda: [*(name for name, _ in waiting(spool)), *(ticket.name for ticket in running(spool))],
        why=lambda name: _verdict(spool, name),
    )


def _verdict(spool: Spool, name: str) -> str | None:
    """That the job has ended, if it has."""
    found = (base / name for base in (spool.done, spool.failed) if (base / name / RESULT).is_file())
    return next((f"{name} has its verdict already: {folder}" for folder in found), None)


def _cancel(spool: Spool, name: str) -> list[str]:
    """What was done. Looked for twice, since a job may pass from the inbox to ``working/`` meanwhile."""
    for _ in range(2):
        done = []
        for known, path in waiting(spool):
            if name in (known, Path(path).name, os.path.relpath(path, spool.inbox)) or known.startswith(f"{name}/"):
                if Path(path).is_dir():
                    spool.disk.remove_tree(path)
                else:
                    spool.disk.unlink(path)
                done.append(f"taken out of the inbox: {path}")
        for ticket in running(spool):
            if name in (ticket.name, ticket.id):
                what = "stops at its next step" if ticket.is_begun else "will not be begun"
                _write(spool, ticket.folder / CANCEL, "")
                done.append(f"{what}: {ticket.id}")
        if done:
            return done
    return []


def retry(names: list[str], config_file: Path | None, root: Path | None, *, every: bool, as_json: bool) -> int:
    """Put failed jobs into the inbox again; without any, list them. Returns 1 where one of them was not found."""
    spool = existing_spool(config_file, root)
    failed = failed_jobs(spool)
    if every and names:
        raise UsageError("name the failed jobs to retry, or say --all")
    if not names and not (every and failed):
        return _list(failed, as_json)
    wanted = list(failed) if every else names
    outcomes = {name: [_retry(spool, name, failed[name])] if name in failed else [] for name in wanted}
    return _tell(outcomes, as_json, lambda: list(failed))


def _list(failed: dict[str, Path], as_json: bool) -> int:
    """What failed, and why."""
    why = {name: _why(folder) for name, folder in failed.items()}
    if as_json:
        print(json.dumps(why, ensure_ascii=False))
    elif not why:
        print("nothing has failed")
    else:
        for name, message in why.items():
            print(visible(f"✗ {name}: {message}"))
        print("`darkroom retry NAME` puts one into the inbox again, `darkroom retry --all` all of them")
    return 0


def _why(folder: Path) -> str:
    try:
        return str(json.loads((folder / ERROR).read_bytes())["message"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {ERROR} cannot be read: {plainly(error)}"


def _retry(spool: Spool, name: str, folder: Path) -> str:
    """What is left of the job goes back to the inbox; its folder goes, unless it holds pictures."""
    request = request_in(folder)
    rest = folder / RETRY
    pictures = json.loads((folder / "result.json").read_bytes())["pictures"]
    if not rest.exists() and (request is None or pictures):
        return f"{name}: nothing is left to retry"
    source = str(rest) if rest.exists() else request
    assert source is not None
    group, _, leaf = name.rpartition("/")
    place = spool.inbox / group
    stem = place / re.sub(r"~\d+$", "", leaf)
    try:
        spool.disk.make_folders(place)
        whole = _with_its_pictures(Path(source), folder)
        if whole is None:
            path = reveal(spool.disk, Path(source), stem, Path(source).suffix)
            spool.disk.sync_folder(place)  # kept: the inbox has the job surely before failed/ lets go of it
        else:
            path = drop(spool, stem.relative_to(spool.inbox).as_posix(), whole).path
        if pictures or (folder / DROPPED).exists():
            spool.disk.unlink(source)
        else:
            spool.disk.remove_tree(folder)
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot put {name} back into {spool.inbox}: {plainly(error)}") from None
    return f"waits again: {path}"


def _with_its_pictures(source: Path, folder: Path) -> bytes | None:
    """A job file with the pictures inside that the job in ``folder`` began with; None where it is whole as it is."""
    from darkroom.cli.embed import in_job_folder, with_pictures  # brings the types of jobs

    try:
        value = strict_json.parse(strict_json.decode(source.read_bytes())).value
    except strict_json.JSONFault:
        return None
    whole = with_pictures(value, in_job_folder(folder))
    return None if whole == value else json.dumps(whole, ensure_ascii=False, indent=2).encode() + b"\n"


# What there is


def waiting(spool: Spool) -> Iterator[tuple[str, str]]:
    """Names and paths of the jobs in the inbox."""
    for found in spool.pending():
        if isinstance(found, Arrival):
            yield published_name(found.dropped), found.place


def running(spool: Spool) -> Iterator[Ticket]:
    """The jobs in ``working/``."""
    for folder in sorted(spool.working.iterdir()) if spool.working.is_dir() else ():
        ticket = None if folder.name.startswith(".") or not folder.is_dir() else Ticket.load(folder, spool.disk)
        if ticket is not None:
            yield ticket


def failed_jobs(spool: Spool) -> dict[str, Path]:
    """Names and folders of what failed, in the order of their names."""
    return {name: Path(path) for name, path in sorted(results(spool.failed))} if spool.failed.is_dir() else {}


def _write(spool: Spool, path: Path, text: str) -> None:
    try:
        spool.disk.write(path, text.encode("utf-8", "backslashreplace"), sync=False)
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot write {path}: {plainly(error)}") from None


def _tell(
    outcomes: dict[str, list[str]],
    as_json: bool,
    known: Callable[[], list[str]],
    why: Callable[[str], str | None] = lambda name: None,
) -> int:
    """Say what was done, and of the others ``why`` not, or which names are near."""
    missing = [name for name, done in outcomes.items() if not done]
    if as_json:
        print(json.dumps(outcomes, ensure_ascii=False))
        return 1 if missing else 0
    for done in outcomes.values():
        for line in done:
            print(visible(line))
    names = known() if missing else []
    for name in missing:
        if (said := why(name)) is not None:
            print(visible(f"darkroom: {said}"), file=sys.stderr)
            continue
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        print(visible(f"darkroom: there is no such job: {name}{hint}"), file=sys.stderr)
    return 1 if missing else 0
