"""Names: which files of the inbox are jobs, what their results are called, their ids, and how moments are written."""

from __future__ import annotations

import re
import secrets
import time
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

MAX_NAME_BYTES = 80

LISTS = (".jsonl", ".txt")
"""Files of many jobs, one a line."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""A picture that carries its recipe is a job too."""

KINDS = (".json", *LISTS, *PICTURES)
"""How names of jobs end."""

JOBS_OF_FOLDERS = ("job.json", "result.json")
"""A folder that holds one of these is one job, with its pictures."""

PUBLISHED = frozenset({"request.json", "result.json", "retry.json", "error.json", "log.jsonl"})
"""What lies beside a ``result.json`` in a folder that we published, and is not a job of its own there."""

_TEMPORARY_SUFFIXES = ("~", ".tmp", ".part", ".partial", ".crdownload", ".swp", ".filepart")
_TEMPORARY = re.compile(
    r"""
    ^(?: [.~]                       # hidden; rsync's .name.XXXXXX; NFS's .nfs…; AppleDouble's ._name; Office's ~$name
       | \#.*\#$                    # Emacs
       | .*\.(?:tmp|TMP)\.[^.]*$    # name.tmp.1234
       | syncthing~                 # Syncthing on Windows
    )""",
    re.VERBOSE,
)
_CONFLICT = re.compile(
    r"\.sync-conflict-\d{8}-\d{6}|\(.*conflicted copy.*\)|\(.*[Cc]onflict.*\d{4}-\d\d-\d\d.*\)|_conf\(\d+\)",
    re.IGNORECASE,
)
_RESERVED = re.compile(r"^(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\.|$)", re.IGNORECASE)
_SLUG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,58}[A-Za-z0-9])?", re.ASCII)
"""What ``slug`` leaves as it is."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]')


def is_temporary(name: str) -> bool:
    """Whether a file of that name is some program's temporary, to be left alone in silence."""
    return name.endswith(_TEMPORARY_SUFFIXES) or _TEMPORARY.match(name) is not None


def is_conflict_copy(name: str) -> bool:
    """Whether a synchroniser made this copy because two versions met: left alone and reported, never run."""
    return "conf" in name.lower() and _CONFLICT.search(name) is not None


def is_job(name: str) -> bool:
    """Whether a file of that name may hold a job."""
    return name.lower().endswith(KINDS)


def is_picture(name: str) -> bool:
    """Whether a file of that name is a picture, which may hold a job."""
    return name.lower().endswith(PICTURES)


def request_name(dropped: str) -> str:
    """What a dropped file is called in its job's folder: ``request`` and its kind."""
    return "request" + next((kind for kind in KINDS if dropped.lower().endswith(kind)), ".json")


def is_urgent(name: str) -> bool:
    """Whether the job asks to go first: its name begins with ``!``, or that of a folder that it is in."""
    return name.startswith("!") or "/!" in name


def is_plain(name: str) -> bool:
    """Whether the name is safe as a folder's on every system, as it stands."""
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return (
        0 < len(raw) <= MAX_NAME_BYTES
        and name[0] not in "-."
        and name[-1] not in " ."
        and not _FORBIDDEN.search(name)
        and not _RESERVED.match(name)
        and name.isprintable()
    )


def slug(name: str) -> str:
    """The name in plain ASCII: letters, digits, dot, dash, underscore; never empty, at most 60 characters."""
    if _SLUG.fullmatch(name) and not _RESERVED.match(name):
        return name
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", ascii_only).strip("-._")[:60].strip("-._")
    return f"{plain}-job" if _RESERVED.match(plain) else plain or "job"


def published_name(dropped: str) -> str:
    """What the results of a dropped file are called: ``team/cat.json`` → ``team/cat``; odd parts become slugs.

    A folder that is a job is told by the slash at its end: ``team/cat/`` → ``team/cat``.
    """
    *groups, leaf = dropped.removesuffix("/").split("/")
    stem = leaf[: leaf.rindex(".")] if is_job(leaf) and not dropped.endswith("/") else leaf
    return "/".join(part if is_plain(part) else slug(part) for part in (*groups, stem))


def free_number(taken: Callable[[int], bool], low: int = 1) -> int:
    """A number from ``low`` on that is not taken, the one below it being taken or ``low`` itself.

    Twice as far each time, then halving: of ten thousand results of one name some thirty are looked at.
    """
    if not taken(low):
        return low
    high = low + 1
    while taken(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return high


def new_id(name: str) -> str:
    """A job's id: UTC time, slug, eight hexadecimal digits. Sorts by time."""
    second = timestamp()[:19].replace("-", "").replace(":", "")
    return f"{second}Z-{slug(name.rpartition('/')[2])[:40]}-{secrets.token_hex(4)}"


def timestamp(ns: int | None = None) -> str:
    """UTC, ISO 8601 with milliseconds and Z; now unless a time in nanoseconds since 1970 is given."""
    seconds, rest = divmod(time.time_ns() if ns is None else ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
