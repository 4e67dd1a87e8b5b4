"""JSON, strictly: no duplicate keys, no NaN, bounded depth, and the place of every value.

The standard library's parser takes the last of two equal keys, accepts NaN and Infinity, recurses without bound
and forgets where each value stood; a person who mistyped a job wants to be told the line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container
from dataclasses import dataclass, field
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

MAX_DEPTH = 64
MAX_DIGITS = 40
SHOWN = 80

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None}
_WORD = re.compile(r"[-+]?[A-Za-z_][A-Za-z_0-9]*")
_LIKE_A_NUMBER = re.compile(r"[-+]?\.?[0-9][-+.0-9eE_]*")
_PIECE = re.compile(r'"(?:[^"\\\n]|\\.)*"|["{}\[\],]')
"""What brackets and commas are found by: texts are passed over as wholes."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTES = "'‘’“”„«»`"

Path = tuple[str | int, ...]


class JSONFault(ValueError):
    """The text is not JSON. ``line`` and ``column`` count from 1."""

    def __init__(self, message: str, text: str, at: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line, self.column = position(text, at)
        self.hint = hint


def position(text: str, at: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at index ``at``."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


@dataclass
class Document:
    """A parsed text: its value, and where each value in it begins."""

    value: Any
    text: str
    places: dict[Path, int] = field(default_factory=dict)
    ends: dict[Path, int] = field(default_factory=dict)
    """Where each item of a list ends."""
    broken: set[Path] = field(default_factory=set)
    """Items of a list that are no JSON, where only they are to suffer for it; their value is None."""

    def place(self, path: Path) -> tuple[int, int] | tuple[None, None]:
        """Line and column of the value at ``path``; (None, None) if there is none."""
        at = self.places.get(path)
        return (None, None) if at is None else position(self.text, at)

    def item(self, path: Path) -> str:
        """An item of a list as it is written."""
        return self.text[self.places[path] : self.ends[path]]


def decode(data: bytes) -> str:
    """UTF-8 to text; a byte order mark is dropped. Raises JSONFault, naming UTF-16 and UTF-32 where it sees them."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(data) >= 4 and (not data[0] or not data[1])):
        raise JSONFault("the file is UTF-16 or UTF-32 text, or binary", "", 0, "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        raise JSONFault(
            f"the file is not UTF-8 text: byte 0x{data[error.start]:02x}", before + "?", len(before), "save it as UTF-8"
        ) from None


def line(value: Any) -> bytes:
    """What we write ourselves: any value as one line of JSON, without its end. Half a surrogate pair becomes text."""
    try:
        return to_json(value, fallback=str)
    except PydanticSerializationError:
        text = json.dumps(value, ensure_ascii=False, default=str)
        return _SURROGATE.sub(lambda half: rf"\\u{ord(half[0]):04x}", text).encode()


def shown(text: str) -> str:
    """A piece of somebody's file as it may stand in a message: short, and free of what is no character."""
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return clean if len(clean) <= SHOWN else clean[:SHOWN] + "…"


def parse(text: str, lists: Container[Path] = ()) -> Document:
    """Parse one JSON value that fills the whole text. Raises JSONFault.

    In ``lists`` are paths of lists whose items may be ``broken``, as long as brackets and quotes say where each ends.
    """
    document = Document(None, text)
    parser = _Parser(document, lists)
    document.value, end = parser.value(_skip(text, 0), ())
    end = _skip(text, end)
    if end != len(text):
        raise parser.fault("there is more text after the end of the JSON value", end, "one file holds one job")
    return document


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class _Parser:
    def __init__(self, document: Document, lists: Container[Path] = ()) -> None:
        self.lists = lists
        self.broken = document.broken
        self.text = document.text
        self.places = document.places
        self.ends = document.ends

    def fault(self, message: str, at: int, hint: str | None = None) -> JSONFault:
        if self.text.startswith(("//", "/*", "#"), at):
            message, hint = "JSON has no comments", "remove it"
        return JSONFault(message, self.text, at, hint)

    def value(self, at: int, path: Path) -> tuple[Any, int]:
        if at >= len(self.text):
            raise self.fault("the file ends where a value should stand", at)
        if len(path) > MAX_DEPTH:
            raise self.fault(f"nested more than {MAX_DEPTH} deep", at, "a job is one flat object")
        self.places[path] = at
        match self.text[at]:
            case "{":
                return self.object(at, path)
            case "[":
                return self.array(at, path)
            case '"':
                return self.string(at)
            case _:
                return self.scalar(at)

    def string(self, at: int) -> tuple[str, int]:
        try:
            value, end = scanstring(self.text, at + 1, True)
        except JSONDecodeError as error:
            if error.msg.startswith("Invalid control character"):
                raise self.fault(
                    "a line break or control character stands inside a text", error.pos, r"write \n for a line break"
                ) from None
            if error.msg.startswith("Unterminated"):
                raise self.fault("a text is not closed with a quote", len(self.text)) from None
            raise self.fault(
                f"{error.msg[0].lower()}{error.msg[1:]}", error.pos, r"a backslash itself is written \\"
            ) from None
        return str(value), end

    def scalar(self, at: int) -> tuple[Any, int]:
        match = _NUMBER.match(self.text, at)
        like = _LIKE_A_NUMBER.match(self.text, at)
        if match and like and match.end() == like.end():
            return self.number(match, at), match.end()
        if like:
            raise self.fault(f"{like.group()[:MAX_DIGITS]} is not a number in JSON", at, _proper(like.group()))
        if word := _WORD.match(self.text, at):
            name = word.group()
            if name in _WORDS:
                return _WORDS[name], word.end()
            hint = "texts stand in double quotes"
            if name.lower() in _WORDS:
                hint = f"write {name.lower()}"
            elif name.lstrip("-+").lower() in ("nan", "infinity", "inf", "none", "undefined"):
                hint = "leave the field out instead"
            raise self.fault(f"{name[:MAX_DIGITS]} is not a JSON value", at, hint)
        character = self.text[at]
        if character in _QUOTES:
            raise self.fault("texts stand in double quotes in JSON", at, 'straight ones: "')
        if character in ",]}":
            raise self.fault(
                f"a value is missing before {character}", at, "remove the comma before it, if there is one"
            )
        raise self.fault(f"unexpected {character!r}", at)

    def number(self, match: re.Match[str], at: int) -> int | float:
        whole, fraction, exponent = match.groups()
        if len(match.group()) > MAX_DIGITS:
            raise self.fault(f"a number of {len(match.group()):,} characters; at most {MAX_DIGITS} are allowed", at)
        if fraction is None and exponent is None:
            return int(whole)
        number = float(match.group())
        if math.isinf(number):
            raise self.fault(f"{match.group()} is too large a number", at)
        return number

    def array(self, at: int, path: Path) -> tuple[list[Any], int]:
        values: list[Any] = []
        at = _skip(self.text, at + 1)
        if self.text.startswith("]", at):
            return values, at + 1
        while True:
            here = (*path, len(values))
            try:
                value, at = self.value(at, here)
            except JSONFault:
                end = self.end_of_item(at) if path in self.lists else None
                if end is None:
                    raise
                self.broken.add(here)
                value, at = None, end
            self.ends[here] = at
            values.append(value)
            at = _skip(self.text, at)
            if self.text.startswith("]", at):
                return values, at + 1
            at = self.comma(at, "]")

    def end_of_item(self, at: int) -> int | None:
        """Where an item that is no JSON ends, by its brackets and quotes; None where they do not tell."""
        begin, depth = at, 0
        for piece in _PIECE.finditer(self.text, at):
            character = piece.group()
            if character in ("{", "["):
                depth += 1
            elif character in ("}", "]") and depth:
                depth -= 1
            elif character == '"':
                return None  # opened, and not closed on its line
            elif not depth and character in (",", "]"):
                return begin + len(self.text[begin : piece.start()].rstrip()) if piece.start() > begin else None
        return None

    def object(self, at: int, path: Path) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        at = _skip(self.text, at + 1)
        if self.text.startswith("}", at):
            return values, at + 1
        while True:
            if at >= len(self.text):
                raise self.fault("the file ends before the closing }", at)
            if not self.text.startswith('"', at):
                hint = "remove the comma before it" if self.text.startswith("}", at) else "names stand in double quotes"
                raise self.fault("a field's name should stand here", at, hint)
            start = at
            key, at = self.string(at)
            if key in values:
                raise self.fault(f'"{shown(key)}" stands here twice', start, "keep one of them")
            at = _skip(self.text, at)
            if not self.text.startswith(":", at):
                raise self.fault(f'a colon is missing after "{shown(key)}"', at)
            values[key], at = self.value(_skip(self.text, at + 1), (*path, key))
            at = _skip(self.text, at)
            if self.text.startswith("}", at):
                return values, at + 1
            at = self.comma(at, "}")

    def comma(self, at: int, close: str) -> int:
        if at >= len(self.text):
            raise self.fault(f"the file ends before the closing {close}", at)
        if self.text[at] != ",":
            raise self.fault(f"a comma or {close} is missing", at)
        return _skip(self.text, at + 1)


def _proper(number: str) -> str | None:
    """How JSON writes a number such as ``.5``, ``+1``, ``01`` and ``1.``, as a hint."""
    for kind in (int, float):
        try:
            return f"write {kind(number)!r}"
        except ValueError:
            continue
    return None
