"""One entry of a list, as a job file of its own.

::

    {"list": {"file": "night.json", "entry": 3, "line": 12, "column": 5},
     "defaults": {"steps": 20},
     "job": {"prompt": "a red circle"}}

``job`` is what stands in the list, character by character, so that a fault in it is told by its place there. What is
no JSON stands in ``text`` instead; of a ``*.txt`` no column is known, and its number is its line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from darkroom import strict_json
from darkroom.errors import FieldError, InvalidRequest
from darkroom.strict_json import Document, Path, position

BY_LINES = (".jsonl", ".txt")
"""How names of lists end that have an entry a line. Nothing tells their end: they grow until they do not."""

_BEGINNING = b'{"list": '


@dataclass(frozen=True)
class Entry:
    """``number`` counts the entries of a JSON list and the lines of other files, from 1."""

    number: int
    line: int
    column: int | None
    written: str
    """As it stands in the list: JSON, or for ``*.txt`` a prompt."""
    is_json: bool = True

    def as_file(self, of: str, defaults: str | None) -> bytes:
        """A job file, of the list named ``of``, whose ``defaults`` are JSON."""
        place: dict[str, Any] = {"file": of, "entry": self.number, "line": self.line}
        if self.column is None:
            job = f'"job": {json.dumps({"prompt": self.written}, ensure_ascii=False)}'
        else:
            place["column"] = self.column
            key = "job" if self.is_json else "text"
            job = f'"{key}": {self.written if self.is_json else json.dumps(self.written, ensure_ascii=False)}'
        given = "" if defaults is None else f' "defaults": {defaults},\n'
        text = f"{_BEGINNING.decode()}{json.dumps(place, ensure_ascii=False)},\n{given} {job}}}\n"
        return text.encode("utf-8", "backslashreplace")


@dataclass
class _InList(Document):
    """A document that tells the places which its values have in the list."""

    begin: tuple[int, int] = (1, 1)
    """Where the job begins here."""
    origin: tuple[int, int | None] = (1, None)
    """Where it begins in the list."""

    def place(self, path: Path) -> tuple[int, int] | tuple[None, None]:
        """As it is in the list; none for what does not stand in the entry, such as a default."""
        first_line, first_column = self.origin
        if first_column is None:
            return first_line, 1
        at = self.places.get(path)
        if at is None:
            return None, None
        line, column = position(self.text, at)
        return (
            first_line + line - self.begin[0],
            first_column + column - self.begin[1] if line == self.begin[0] else column,
        )


@dataclass(frozen=True)
class Unwrapped:
    """What an entry's file holds. ``value`` is the job as it was written, which ``document`` has under ``prefix``."""

    value: Any
    document: Document
    prefix: Path
    source: dict[str, Any]
    defaults: dict[str, Any]


def is_entry(value: Any) -> bool:
    """Whether a file's value is an entry of a list, made by darkroom."""
    return isinstance(value, dict) and isinstance(value.get("list"), dict) and ("job" in value or "text" in value)


def is_entry_file(data: bytes) -> bool:
    """The same, by the first bytes of a file that nobody changed since."""
    return data.startswith(_BEGINNING)


def unwrap(document: Document) -> Unwrapped:
    """The job of an entry. Raises InvalidRequest for one that is no JSON."""
    wrapper = document.value
    source, defaults = wrapper["list"], wrapper.get("defaults")
    line, column = source.get("line"), source.get("column")
    origin = (line if isinstance(line, int) else 1, column if isinstance(column, int) else None)
    defaults = defaults if isinstance(defaults, dict) else {}
    if "job" in wrapper:
        begin = document.place(("job",))
        assert begin[0] is not None
        moved = _InList(wrapper["job"], document.text, document.places, document.ends, begin=begin, origin=origin)
        return Unwrapped(wrapper["job"], moved, ("job",), source, defaults)
    text = wrapper["text"] if isinstance(wrapper["text"], str) else ""
    try:
        inner = strict_json.parse(text)
    except strict_json.JSONFault as fault:
        column = fault.column + (origin[1] or 1) - 1 if fault.line == 1 else fault.column
        error = FieldError(fault.message, line=origin[0] + fault.line - 1, column=column, hint=fault.hint)
        raise InvalidRequest(f"This is not valid JSON: {error}.", errors=(error,)) from None
    return Unwrapped(inner.value, inner, (), source, defaults)


def named(source: dict[str, Any] | None) -> str:
    """How messages begin that are about an entry: ``night.json, entry 3: ``; nothing for other jobs."""
    listed = (source or {}).get("list")
    if not isinstance(listed, dict):
        return ""
    file = str(listed.get("file"))
    kind = "line" if file.lower().endswith(BY_LINES) else "entry"
    return f"{strict_json.shown(file)}, {kind} {listed.get('entry')}: "
