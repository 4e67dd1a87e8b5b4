"""One result as it stands on the page: texts, and where it leads. Read from the result's own files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from darkroom.spool import read

MOST_BYTES = 8 << 20
"""So much of a result.json is read."""

MOST_WORDS = 1000
"""So many characters of a prompt, or of a message, are on the page; the rest is in the result."""

MOST_PICTURES = 12
"""So many pictures of a result have a link of their own; the others are found on its contact sheet."""

_LONGEST_S = 1e9


@dataclass(frozen=True)
class Entry:
    """Links are relative to the page's folder, and safe in a URL as they are."""

    n: int
    """Counts the results as they came, from 1."""
    failed: bool
    name: str
    link: str
    """The result's folder, with a slash at the end."""
    time: str
    prompt: str
    facts: tuple[str, ...]
    """Seed, size, model and such, each with a word to it."""
    why: str
    """Of a failure."""
    pictures: tuple[str, ...]
    """Links of the first of them, relative to ``link``."""
    more: int
    """How many pictures there are besides those."""
    sheet: str
    """The file that shows all of them; empty where there is none."""
    thumb: bool

    def line(self) -> str:
        """As JSON that may stand in a script: in ASCII, and without ``<``."""
        return json.dumps(vars(self)).replace("<", r"\u003c")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Entry:
        """From what ``line`` made. Raises TypeError where it is of another version."""
        return cls(**{**fields, "facts": tuple(fields["facts"]), "pictures": tuple(fields["pictures"])})


def read_entry(n: int, folder: Path, base: Path, prefix: str, *, failed: bool) -> Entry | None:
    """The entry of the result in ``folder``, somewhere in ``base``, to which ``prefix`` leads; None where it is none.

    Anybody may have written there, so nothing is taken to be what it should.
    """
    result = _object(folder / "result.json")
    if result is None:
        return None
    job = result.get("job")
    if not isinstance(job, dict):
        job = {"prompt": (_object(folder / "request.json") or {}).get("prompt")}  # it was refused as it stood
    pictures = [
        picture
        for picture in _list(result.get("pictures"))
        if isinstance(picture, dict) and _is_leaf(picture.get("file"))
    ]
    error = (_object(folder / "error.json") or {}) if failed else {}
    name = os.fsencode(folder.relative_to(base))
    return Entry(
        n=n,
        failed=failed,
        name=_text(name.decode("utf-8", "replace")),
        link=f"{prefix}{quote(name)}/",
        time=_text(result.get("finished_at")),
        prompt=_text(job.get("prompt")),
        facts=tuple(_facts(job, pictures, result)),
        why=": ".join(filter(None, (_text(error.get("reason")), _text(error.get("message"))))),
        pictures=tuple(quote(str(picture["file"])) for picture in pictures[:MOST_PICTURES]),
        more=max(0, len(pictures) - MOST_PICTURES),
        sheet=_sheet(folder, result),
        thumb=False,
    )


def _sheet(folder: Path, result: Mapping[str, Any]) -> str:
    grid = result.get("grid")
    if _is_leaf(grid):
        return quote(str(grid))
    return "contact-sheet.jpg" if (folder / "contact-sheet.jpg").exists() else ""


def first_picture(entry: Entry, folder: Path, most_bytes: int) -> bytes | None:
    """What the result's first picture holds."""
    from urllib.parse import unquote

    if not entry.pictures:
        return None
    with contextlib.suppress(OSError):
        return read(str(folder / unquote(entry.pictures[0])), most_bytes)
    return None


def _facts(job: dict[str, Any], pictures: list[dict[str, Any]], result: dict[str, Any]) -> list[str]:
    seeds = [picture["seed"] for picture in pictures if isinstance(picture.get("seed"), int)]
    seed = seeds[0] if seeds else job.get("seed")
    shown = pictures[0] if pictures else job
    width, height = shown.get("width"), shown.get("height")
    steps = job.get("num_inference_steps")
    seconds = result.get("seconds")
    total = seconds.get("total") if isinstance(seconds, dict) else None
    facts = [
        f"seed {seed}" if isinstance(seed, int) else "",
        f"{width} × {height}" if isinstance(width, int) and isinstance(height, int) else "",
        _text(job.get("model")),
        ("1 step" if steps == 1 else f"{steps} steps") if isinstance(steps, int) else "",
        f"{total:.1f} s" if isinstance(total, int | float) and 0 <= total < _LONGEST_S and pictures else "",
    ]
    return [fact for fact in facts if fact]


def _object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read(str(path), MOST_BYTES) or b"")
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_leaf(name: Any) -> bool:
    return isinstance(name, str) and "/" not in name and "\0" not in name and not name.startswith(".") and _sound(name)


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str:
    """A text that can be written, not too long; nothing for anything else."""
    if not isinstance(value, str):
        return ""
    text = value.encode("utf-8", "replace").decode()
    return text if len(text) <= MOST_WORDS else text[:MOST_WORDS] + "…"
