r"""What a prompt's brackets mean: weights, ``BREAK``, LoRA tags. Text in, text out: no tokens, no numbers of a model.

The syntax is A1111's, as its wiki describes it
(https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis):

    (x)          1.1 times the attention            (x:1.2)      1.2 times
    [x]          1.1 times less                     ((x))        1.21 times: nested weights multiply
    \( \) \[ \]  a bracket that is meant; \\ is a backslash, and any other backslash is dropped
    BREAK        in capitals, a word by itself: a new chunk of 75 tokens begins
    <lora:name:0.8>   a LoRA and its weight, taken out of the text by ``take_loras``

Nothing of it can be wrong: a bracket that is never closed reaches to the end, one that was never opened is itself, and
so is what looks like a number but is none. In one thing this is not A1111: a ``BREAK`` in brackets breaks here too,
where A1111 would multiply its mark and then read it as a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND = 1.1
"""What a pair of round brackets multiplies by."""

SQUARE = 1 / 1.1
"""What a pair of square brackets multiplies by."""

_PIECES = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]?)                                  # a backslash, with what it protects
    | : \s* (?P<weight> [+-]? (?: [0-9]+ (?: \.[0-9]*)? | \.[0-9]+)) \s* \)   # the end of (x:1.2)
    | (?P<bracket> [()\[\]])
    | \b (?P<break> BREAK) \b \s*
    """,
    re.VERBOSE,
)
_EDIT = re.compile(r"(?<!\\)\[[^\[\]]*(?::\s*[0-9.]+\s*|\|[^\[\]]*)\]")
_SPECIAL = re.compile(r"[()\[\]\\]")

_LORA = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_HYPERNETWORK = re.compile(r"<hypernet:[^<>]*>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


@dataclass(frozen=True)
class Fragment:
    """A piece of a prompt with one weight. Brackets and escapes are gone from ``text``."""

    text: str
    weight: float
    places: tuple[int, ...]
    """For each character of ``text``, its index in the prompt as it was written."""


@dataclass
class _Piece:
    """Text between two brackets, while the weights around it are not all known."""

    text: str
    start: int
    weight: float = 1.0
    breaks: bool = False


def parse(prompt: str) -> list[list[Fragment]]:
    """The prompt in sections, which ``BREAK`` parts, each in fragments of one weight.

    There is at least one section; sections may be empty, fragments are not. Neighbours in a section differ in weight.
    Takes any text and raises nothing; a weight may be anything that digits can write, 0, negative and infinite ones
    included.
    """
    sections: list[list[Fragment]] = [[]]
    for piece in _weigh(prompt):
        if piece.breaks:
            sections.append([])
            continue
        section = sections[-1]
        places = tuple(range(piece.start, piece.start + len(piece.text)))
        if section and section[-1].weight == piece.weight:
            before = section.pop()
            section.append(Fragment(before.text + piece.text, piece.weight, before.places + places))
        else:
            section.append(Fragment(piece.text, piece.weight, places))
    return sections


def escape(text: str) -> str:
    """``text`` as it must be written in a prompt to be read as it stands (but for ``BREAK``)."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def edits(prompt: str) -> list[str]:
    """What A1111 would take for prompt editing, ``[from:to:when]`` or ``[one|other]``, and ``parse`` for brackets."""
    return _EDIT.findall(prompt)


def _weigh(prompt: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    """For each bracket that is open, the piece after it."""

    def close(bracket: str, weight: float) -> None:
        for piece in pieces[opened[bracket].pop() :]:
            piece.weight *= weight

    def add(start: int, end: int) -> None:
        if start < end:
            pieces.append(_Piece(prompt[start:end], start))

    read = 0
    for match in _PIECES.finditer(prompt):
        before = prompt[read : match.start()]
        if match["break"] is not None:
            before = before.rstrip()
        add(read, read + len(before))
        read = match.end()
        if match["escaped"] is not None:
            add(match.start("escaped"), match.end("escaped"))
        elif match["break"] is not None:
            pieces.append(_Piece("", match.start(), breaks=True))
        elif match["weight"] is not None and opened["("]:
            close("(", float(match["weight"]))
        elif match["bracket"] in opened:
            opened[match["bracket"]].append(len(pieces))
        elif match["bracket"] == ")" and opened["("]:
            close("(", ROUND)
        elif match["bracket"] == "]" and opened["["]:
            close("[", SQUARE)
        else:
            add(match.start(), match.end())
    add(read, len(prompt))
    for bracket, weight in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, weight)
    return pieces


class BadTag(ValueError):
    """A tag in angle brackets that is none. ``hint`` says how one is written."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def take_loras(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its ``<lora:name:weight>`` tags, and their names and weights in the order of the text.

    The weight is 1 where the tag has none. ``lyco`` is A1111's other word for ``lora``. Raises BadTag where a tag is
    incomplete or asks for what there is not, such as two weights or a hypernetwork.
    """
    hypernetwork = _HYPERNETWORK.search(prompt)
    if hypernetwork is not None:
        raise BadTag(f'"{hypernetwork[0]}" asks for a hypernetwork, which darkroom has not', "take it out")
    loras = [_lora(match) for match in _LORA.finditer(prompt)]
    return _LORA.sub("", prompt), loras


def _lora(tag: re.Match[str]) -> tuple[str, float]:
    name, *weights = (part.strip() for part in tag[1].split(":"))
    if not name:
        raise BadTag(f'"{tag[0]}" names no LoRA', "a tag is written <lora:name:0.8>")
    if not weights:
        return name, 1.0
    if len(weights) > 1 or not _NUMBER.fullmatch(weights[0]):
        raise BadTag(f'"{tag[0]}" has no single number for a weight', "a tag is written <lora:name:0.8>")
    return name, float(weights[0])
