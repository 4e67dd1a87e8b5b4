"""Pictures that a job is given to begin with: what it names them by, where they may lie, and their bytes.

A picture stands in the job itself, as base64 or a data URI; or beside the job file, in its folder or below; or below
one of ``[limits] image_roots``. No other file is ever opened: no path leads upward, through a link or to what is no
regular file, and nothing is fetched.
"""

from __future__ import annotations

import binascii
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.config import Limits
from darkroom.errors import FieldError, InvalidRequest
from darkroom.inputs import images
from darkroom.job import IMAGE_FIELDS, Given, Request
from darkroom.strict_json import shown

_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*?;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_LONGEST_PATH = 4096
_SHORTEST_BASE64 = 60
"""No picture is shorter; a path without a dot in it might be."""

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp"}

_OF_THE_NAME = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.EISDIR})
"""What the system answers to a name that is a link after all, too long, or none."""


class _Refused(Exception):
    """What is wrong with a picture's name, or with what lies there; time does not mend it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _NotHere(_Refused):
    """It is not here, or not whole: it may be on its way."""


@dataclass(frozen=True)
class Base:
    """Where the paths in a job begin: below ``top``, which is ours, in ``folder`` (names with slashes, or empty)."""

    top: Path
    folder: str = ""
    job: str = ""
    """The name of the job file itself in that folder."""


def base_of(dropped: str, request: Request, inbox: Path) -> Base:
    """Where the paths in a dropped job begin: beside it, or beside the list that it was an entry of."""
    folder, _, leaf = dropped.rpartition("/")
    if "list" in (request.source or {}):
        folder = folder.rpartition("/")[0]
    return Base(inbox, folder, leaf)


@dataclass
class Found:
    """The pictures of a job, as far as they are here, by field."""

    data: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """What each is to be called in the job's folder: by its field."""
    given: dict[str, Given] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    """Those named by a path that begins beside the job: the path. Also of those that are not here."""
    faults: list[FieldError] = field(default_factory=list)
    missing: list[FieldError] = field(default_factory=list)
    """What is said of those that are not here, or not whole."""

    def refuse(self, *, missing: bool = True, others: Callable[[], list[FieldError]] = list) -> None:
        """Raises InvalidRequest where something is wrong, or missing; what else is wrong with the job is said too."""
        faults = self.faults + (self.missing if missing else [])
        if faults:
            raise InvalidRequest.of("The job's picture cannot be taken", faults + others())


def has_pictures(request: Request) -> bool:
    """Whether the job begins with a picture."""
    return request.init_image is not None or request.mask_image is not None


def find(request: Request, base: Base | None, limits: Limits) -> Found:
    """The pictures that a job names. ``base`` is None for a job that lies nowhere. Raises OSError."""
    found = Found()
    for name in IMAGE_FIELDS:
        text = getattr(request, name)
        if text is not None:
            with _told(found, name, text):
                found.data[name] = _bytes(name, text, base, limits, found)
                _measure(name, found, limits)
    return found


def look_again(found: Found, name: str, file: str, data: bytes | None, limits: Limits) -> None:
    """Put into ``found`` what is in the job's folder already as ``file``, or was brought there."""
    found.data[name] = data or b""
    with _told(found, name, name):
        if data is None:
            raise _too_large(limits.max_picture_bytes + 1, limits)
        _measure(name, found, limits)
        found.given[name] = found.given[name]._replace(file=file)  # its suffix may tell of what it was before


@contextmanager
def _told(found: Found, name: str, text: str) -> Iterator[None]:
    """What is wrong with a picture comes into ``found``."""
    try:
        yield
    except _NotHere as error:
        found.missing.append(FieldError(str(error), name, got=shown(text), hint=error.hint))
    except _Refused as error:
        found.faults.append(FieldError(str(error), name, got=shown(text), hint=error.hint))


def _bytes(name: str, text: str, base: Base | None, limits: Limits, found: Found) -> bytes:
    if is_embedded(text):
        return _decoded(text, limits)
    parts = _parts(text)
    if base is not None and not text.startswith("/"):
        if parts == [base.job]:
            raise _Refused("is the job file itself", "name the picture that it was made from")
        found.beside[name] = "/".join(parts)
    data, is_beside = _read(text, parts, base, limits)
    if not is_beside:
        found.beside.pop(name, None)
    return data


def _measure(name: str, found: Found, limits: Limits) -> None:
    data = found.data[name]
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".png")
    found.files[name] = name + suffix
    try:
        width, height = images.check(data, max_bytes=limits.max_picture_bytes, max_pixels=limits.max_picture_pixels)
    except images.Truncated as error:
        raise _NotHere(str(error), error.hint) from None
    except images.BadPicture as error:
        raise _Refused(str(error), error.hint) from None
    found.given[name] = Given(found.files[name], width, height)


def _too_large(size: int, limits: Limits) -> _Refused:
    message = f"is a picture of {size:,} bytes; at most {limits.max_picture_bytes:,} are allowed"
    return _Refused(message, "see [limits] max_picture_bytes")


def is_embedded(text: str) -> bool:
    """Whether this is a picture itself, and not a path to one: base64 has no dot in it, a file's name has."""
    if text[:5].lower() == "data:":
        return True
    start = text[:_LONGEST_PATH]
    return len(text) >= _SHORTEST_BASE64 and _BASE64.fullmatch(start) is not None


def _decoded(text: str, limits: Limits) -> bytes:
    begin = 0
    if text[:5].lower() == "data:":
        head = _DATA_URI.match(text[:200])
        if head is None:
            raise _Refused("is a data URI, and not one of base64", 'write "data:image/png;base64,…"')
        begin = head.end()
    plain = text[begin:]
    if any(character in plain for character in " \n\r\t"):
        plain = "".join(plain.split())
    if len(plain) // 4 * 3 > limits.max_picture_bytes + 2:
        raise _too_large(len(plain) // 4 * 3, limits)
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as error:
        raise _Refused(f"is not base64: {str(error)[:80].lower()}", "it was cut short or changed on its way") from None


def _parts(text: str) -> list[str]:
    """The names in a path. Raises _Refused for one that is not to be followed anywhere."""
    if _ADDRESS.match(text):
        raise _Refused("is an address, and darkroom fetches nothing", "put the picture beside the job file")
    if "\0" in text or len(os.fsencode(text)) > _LONGEST_PATH:
        raise _Refused("is neither a path nor base64", "put the picture beside the job file and write its name")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _Refused('leads upward ("..")', "put the picture beside the job file, or in a folder below it")
    if not parts or text.endswith("/"):
        raise _Refused("is a folder, not a picture", "write the picture's name")
    return parts


def _read(text: str, parts: list[str], base: Base | None, limits: Limits) -> tuple[bytes, bool]:
    """The picture's bytes, and whether it lies beside the job. Raises _Refused, _NotHere, OSError."""
    for top, below in _places(text, parts, base, limits):
        descriptor = _open_below(top, below)
        if descriptor is None:
            continue
        try:
            size = os.fstat(descriptor).st_size
            if size > limits.max_picture_bytes:
                raise _too_large(size, limits)
            return _whole(descriptor, limits.max_picture_bytes + 1), base is not None and top == base.top
        finally:
            os.close(descriptor)
    where = "beside the job" if base is not None else "here"
    roots = ", ".join(map(str, limits.image_roots))
    if text.startswith("/"):
        where = "there"
    elif roots:
        where += f", nor below {roots}"
    raise _NotHere(f'the picture "{shown(text)}" is not {where}', "drop it with the job, best both in one folder")


def _places(text: str, parts: list[str], base: Base | None, limits: Limits) -> Iterator[tuple[Path, list[str]]]:
    """Where it may lie: a folder that may be read, and the names below it."""
    if not text.startswith("/"):
        if base is not None:
            yield base.top, [*filter(None, base.folder.split("/")), *parts]
        yield from ((root, parts) for root in limits.image_roots)
        return
    allowed = False
    for root in limits.image_roots:
        names = [part for part in str(root).split("/") if part]
        if parts[: len(names)] == names and len(parts) > len(names):
            allowed = True
            yield root, parts[len(names) :]
    if not allowed:
        hint = "put the picture beside the job file, or ask for its folder in [limits] image_roots of config.toml"
        raise _Refused("is outside the folders from which pictures may be taken", hint)


def _open_below(top: Path, parts: list[str]) -> int | None:
    """A descriptor of the regular file; None where it is not there. Each name is looked up in the folder before it,
    and none of them may be a link, so nobody can exchange one for another on the way."""
    try:
        folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        _refuse_what_is_no_file(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False))
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise _Refused("leads through something that is no folder, or a symbolic link", _COPY) from None
    except PermissionError as error:
        raise _NotHere(f"cannot be read: {error.strerror}", "let darkroom's user read it") from None
    except OSError as error:
        if error.errno in _OF_THE_NAME:
            raise _Refused(f"cannot be opened: {error.strerror}", _COPY) from None
        raise
    finally:
        os.close(folder)
    try:
        _refuse_what_is_no_file(os.fstat(descriptor))
    except _Refused:
        os.close(descriptor)
        raise
    return descriptor


_COPY = "copy the picture itself there"


def _refuse_what_is_no_file(status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _Refused("is a symbolic link, and links are never followed", _COPY)
    if stat.S_ISDIR(status.st_mode):
        raise _Refused("is a folder, not a picture", "write the picture's name")
    if not stat.S_ISREG(status.st_mode):
        raise _Refused("is not a regular file", _COPY)


def _whole(descriptor: int, most: int) -> bytes:
    pieces, size = [], 0
    while size < most and (piece := os.read(descriptor, min(most - size, 1 << 24))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
