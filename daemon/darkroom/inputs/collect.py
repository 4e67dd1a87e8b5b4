"""The pictures that a claimed job begins with, into its folder: after a crash again, and to the same end.

What lies in a dropped folder, or beside the job and is named by no other, moves there; the rest is copied.
"""

from __future__ import annotations

import errno

from darkroom.inputs.sources import Base, Found, base_of, find, has_pictures, look_again
from darkroom.job import IMAGE_FIELDS, Images, Job, Request
from darkroom.spool import DROPPED, Spool, Ticket, read
from darkroom.spool.disk import storage_errors


def collect(ticket: Ticket, request: Request, spool: Spool) -> Found:
    """All that are to be had. What is here already stays. Raises OSError, StorageTrouble."""
    if not has_pictures(request) and not ticket.origin.dropped.endswith("/"):
        return Found()
    here = {name: file for name, file in ticket.given().items() if getattr(request, name) is not None}
    base = _base(ticket, request, spool)
    found = find(request.model_copy(update=dict.fromkeys(here)), base, spool.limits)
    for name, file in found.files.items():
        path = _moves(ticket, base.folder, found.beside.get(name), spool)
        if path is not None:
            try:
                ticket.take_given(file, path)
            except FileNotFoundError:  # the other field took it, or somebody did; it was read before
                path = None
            else:
                here[name] = file
        if path is None:
            ticket.keep_given(file, found.data[name])
    for name, file in here.items():
        _forget(found, name)
        look_again(found, name, file, _copy(ticket, file, spool), spool.limits)
    ticket.clear_dropped()
    return found


def images_of(ticket: Ticket, job: Job, spool: Spool) -> Images:
    """The bytes of the pictures that the job begins with. Raises OSError."""
    files = {name: getattr(job, name) for name in IMAGE_FIELDS if getattr(job, name) is not None}
    return {name: _copy(ticket, file, spool) or b"" for name, file in files.items()}


def _copy(ticket: Ticket, file: str, spool: Spool) -> bytes | None:
    """What a picture in the job's folder holds; None where it is too large, nothing where it is no file any more.

    Raises OSError, StorageTrouble where the disk is at fault.
    """
    path = ticket.at(file)
    try:
        with storage_errors(path, "read"):
            return read(path, spool.limits.max_picture_bytes)
    except OSError as error:
        if error.errno in (None, errno.ELOOP, errno.ENOENT, errno.ENXIO):
            return b""
        raise


def _base(ticket: Ticket, request: Request, spool: Spool) -> Base:
    """Where the job's paths begin."""
    if ticket.dropped_folder is not None:
        return Base(ticket.folder, DROPPED)
    return base_of(ticket.origin.dropped, request, spool.inbox)


def _moves(ticket: Ticket, folder: str, beside: str | None, spool: Spool) -> str | None:
    """The path of a picture that is not to stay where it is."""
    if beside is None:
        return None
    if (left := ticket.dropped_folder) is not None:
        return f"{left}/{beside}"
    name = f"{folder}/{beside}" if folder else beside
    return f"{spool.inbox}/{name}" if name in ticket.origin.takes else None


def _forget(found: Found, name: str) -> None:
    """What was seen of a picture before it came here."""
    found.given.pop(name, None)
    found.missing = [fault for fault in found.missing if fault.field != name]
    found.faults = [fault for fault in found.faults if fault.field != name]
