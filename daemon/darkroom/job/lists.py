"""A file of many jobs: a JSON list, ``{"defaults": …, "jobs": […]}``, JSON Lines, or a prompt a line.

Each entry becomes a job by itself: what is wrong with one is told when its own turn comes, that it is no JSON too, as
long as it can be told where it ends. Only what spoils the whole file is found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from darkroom import strict_json
from darkroom.errors import FieldError, InvalidRequest
from darkroom.job.entry import BY_LINES, Entry
from darkroom.job.parse import check_fields, is_whole, read_json
from darkroom.strict_json import Document

_MOST_GROWTH = 64
"""Defaults are written into each entry: all of them together may be so many times as large as a job file."""


_LISTS: frozenset[strict_json.Path] = frozenset({(), ("jobs",)})
"""Where entries stand in a file."""

_BEFORE = b"\xef\xbb\xbf \t\r\n"


@dataclass(frozen=True)
class JobList:
    """The entries of a file, in order. ``defaults`` are JSON, for each of them."""

    entries: tuple[Entry, ...]
    defaults: str | None = None
    is_whole: bool = True
    """Whether it is all there; otherwise time tells: an entry that is no JSON may still be being written."""


def goes_by_lines(name: str) -> bool:
    """Whether a file of that name has a job on each line, and nothing that marks its end."""
    return name.lower().endswith(BY_LINES)


def read_list(name: str, data: bytes, *, most: int, most_bytes: int) -> JobList | None:
    """The list in a file of that name; None where it holds a single job.

    Raises InvalidRequest where it has no entries, or more than ``most``, or is broken as a whole; Unfinished, a kind
    of it, where it may not be whole yet.
    """
    if goes_by_lines(name):
        found = JobList(tuple(_lines(name, data)))
    elif not data.lstrip(_BEFORE).startswith(b"[") and b'"jobs"' not in data:
        return None  # by far the most; ``parse`` reads them
    else:
        document = read_json(data, _LISTS)
        value = document.value
        if isinstance(value, list):
            found = JobList(tuple(_items(document, ())))
        elif isinstance(value, dict) and "jobs" in value:
            found = _with_defaults(document)
        else:
            return None
        if document.broken:
            found = replace(found, is_whole=is_whole(data))
    count = len(found.entries)
    if not count:
        raise _refusal("there is no job in this list", hint="a list holds at least one")
    if count > most:
        raise _refusal(f"{count:,} jobs are too many for one list", hint=f"[limits] max_jobs_per_file is {most:,}")
    if len(found.defaults or "") * count > _MOST_GROWTH * most_bytes:
        raise _refusal(
            f"the defaults are too long to be written into each of {count:,} jobs",
            hint="make them a preset: [presets.NAME] in config.toml",
        )
    return found


def _refusal(
    message: str, field: str | None = None, place: tuple[Any, Any] = (None, None), *, hint: str
) -> InvalidRequest:
    fault = FieldError(message, field, *place, hint=hint)
    return InvalidRequest(f"This is not a list of jobs: {fault}.", errors=(fault,))


def _lines(name: str, data: bytes) -> Iterator[Entry]:
    """Blank lines are passed over; in ``*.txt`` those that begin with ``#`` too."""
    try:
        text = strict_json.decode(data)
    except strict_json.JSONFault as fault:
        error = FieldError(fault.message, line=fault.line, column=fault.column, hint=fault.hint)
        raise InvalidRequest(f"This is not a list of jobs: {error}.", errors=(error,)) from None
    prompts = name.lower().endswith(".txt")
    for number, line in enumerate(text.split("\n"), 1):
        written = line.strip()
        if not written or (prompts and written.startswith("#")):
            continue
        if prompts:
            yield Entry(number, number, None, written)
        else:
            column = line.index(written) + 1
            yield Entry(number, number, column, written, is_json=_is_json(written))


def _is_json(text: str) -> bool:
    try:
        strict_json.parse(text)
    except strict_json.JSONFault:
        return False
    return True


def _items(document: Document, path: strict_json.Path) -> Iterator[Entry]:
    value = document.value
    for key in path:
        value = value[key]
    line, line_start, begin = 1, 0, 0
    for index in range(len(value)):
        at = document.places[(*path, index)]
        line += document.text.count("\n", begin, at)
        line_start = max(line_start, document.text.rfind("\n", begin, at) + 1)
        begin = at
        here = (*path, index)
        yield Entry(index + 1, line, at - line_start + 1, document.item(here), is_json=here not in document.broken)


def _with_defaults(document: Document) -> JobList:
    """``{"defaults": …, "jobs": […]}``, and nothing else in it."""
    fields = document.value
    if not isinstance(fields["jobs"], list):
        raise _refusal("must be a list", "jobs", document.place(("jobs",)), hint='[{"prompt": "a red circle"}, …]')
    for field in fields:
        if field not in ("jobs", "defaults"):
            hint = "a list has defaults and jobs; what is for all jobs stands in defaults"
            raise _refusal("unknown field", strict_json.shown(field), document.place((field,)), hint=hint)
    if "defaults" not in fields:
        return JobList(tuple(_items(document, ("jobs",))))
    defaults = fields["defaults"]
    if not isinstance(defaults, dict):
        raise _refusal("must be an object", "defaults", document.place(("defaults",)), hint='{"steps": 20}')
    check_fields(defaults, document, ("defaults",))
    return JobList(tuple(_items(document, ("jobs",))), strict_json.line(defaults).decode())
