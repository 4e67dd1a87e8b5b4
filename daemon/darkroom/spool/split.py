"""A list becomes its entries: written in its job's folder, then shown in the inbox by one rename, all or none.

::

    working/<id>/request.txt    the list
    working/<id>/entries/       0001.json … while they are written
    working/<id>/list.json      where they are to appear (``Plan``): from now on ``entries/`` is whole
    inbox/<folder>/             what ``entries/`` becomes

After a crash: without ``list.json`` they are written anew; with it, they are in the inbox if ``entries/`` is gone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from darkroom.spool.disk import Disk
from darkroom.spool.names import free_number, is_conflict_copy, is_plain, is_temporary, slug
from darkroom.spool.ticket import PLAN, Ticket

ENTRIES = "entries"

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True)
class Plan:
    """list.json: ``folder`` is relative to the inbox, its odd bytes as the system gives them."""

    folder: str
    entries: int


def split(
    ticket: Ticket, files: Iterable[tuple[str, bytes]], inbox: Path, taken: Iterable[Path], disk: Disk
) -> Generator[None, None, Plan]:
    """Yields after each entry, and returns where they are, durably. ``taken`` has folders of which no name is used.

    Raises StorageTrouble. Begun again it goes on where it was.
    """
    made = ticket.at(ENTRIES)
    plan = _planned(ticket.place)
    if plan is None:
        count = 0
        if os.path.isdir(made):
            disk.remove_tree(made)
        disk.mkdir(made)
        for name, data in files:
            disk.write(f"{made}/{name}", data, sync=False)
            count += 1
            yield
        disk.sync_all(made)
        plan = Plan(folder=_free_folder(ticket, inbox, taken), entries=count)
        _write(plan, ticket, disk)
    while os.path.isdir(made):
        try:
            disk.rename(made, f"{inbox}/{plan.folder}")
        except OSError as error:
            gone = error.errno == errno.ENOENT and "/" in plan.folder
            if error.errno not in _TAKEN and not gone:
                raise
            plan = Plan(folder=_free_folder(ticket, inbox, taken), entries=plan.entries)  # by somebody quicker
            _write(plan, ticket, disk)
    disk.sync_folder(f"{inbox}/{plan.folder}".rpartition("/")[0])
    return plan


def settle(folder: str, inbox: Path, disk: Disk) -> None:
    """Where the entries of the list in ``folder`` appeared, they are there to stay, before any of them is taken.

    An earlier daemon may not have lived to see to that. Raises StorageTrouble.
    """
    plan = _planned(folder)
    if plan is not None and not os.path.isdir(f"{folder}/{ENTRIES}"):
        with contextlib.suppress(FileNotFoundError):  # somebody took the folder away
            # kept: for a daemon that was killed before its own
            disk.sync_folder(f"{inbox}/{plan.folder}".rpartition("/")[0])


def _planned(folder: str) -> Plan | None:
    try:
        return Plan(**json.loads(Path(f"{folder}/{PLAN}").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(plan: Plan, ticket: Ticket, disk: Disk) -> None:
    disk.replace(ticket.at(PLAN), json.dumps(asdict(plan)).encode())
    disk.sync_folder(ticket.place)  # kept: without a journal a folder's names may be written in any order


def _free_folder(ticket: Ticket, inbox: Path, taken: Iterable[Path]) -> str:
    """The list's name without its kind, where the list lay, or in the inbox itself where that folder is gone.

    Numbered where the name is taken, by results too.
    """
    group, slash, leaf = ticket.origin.dropped.rpartition("/")
    if not os.path.isdir(inbox / group):
        group = slash = ""
    stem = leaf.rpartition(".")[0]
    stem = stem if is_plain(stem) else slug(stem)
    if is_temporary(stem) or is_conflict_copy(stem):
        stem = f"{slug(stem)}-list"  # as it is, the folder would be left alone
    bases = (inbox, *taken)

    def is_taken(number: int) -> bool:
        name = stem if number == 1 else f"{stem}~{number}"
        return any(os.path.lexists(f"{base}/{group}{slash}{name}") for base in bases)

    number = free_number(is_taken)
    return f"{group}{slash}{stem}" + (f"~{number}" if number > 1 else "")
