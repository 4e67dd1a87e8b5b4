"""Texts of others, as a terminal may be given them: what would move its cursor or name its window is spelled out."""

from __future__ import annotations

_HIDDEN = (*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Control characters but tab and line feed, and those that turn the direction of writing."""

_SHOWN = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _HIDDEN}


def visible(text: str) -> str:
    """The same, with ``\\x1b`` for an escape character, and ``\\udcff`` for a byte of a name that is not UTF-8."""
    return text.translate(_SHOWN).encode("utf-8", "backslashreplace").decode("utf-8")
