"""Figures as people write and read them: sizes, durations, moments."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from darkroom.errors import UsageError

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def size(amount: float) -> str:
    """Bytes: ``1.4 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds, in the one unit that says enough: ``4.2 s``, ``3 min``, ``5 h``, ``12 days``."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def clock(seconds: float) -> str:
    """Seconds as a clock shows them: ``1:05``, ``2:00:09``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def age(moment: str) -> float:
    """How many seconds ago a timestamp was; 0 where it is none."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def ago(moment: str) -> str:
    """The same for people: ``3 min ago``."""
    seconds = age(moment)
    return "now" if seconds < 2 else f"{duration(seconds)} ago"


def read_size(text: str) -> int:
    """``20G``, ``500M``, ``1000``: bytes. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is no size; write it as 500M, 20G or 1T")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def read_duration(text: str) -> float:
    """``30d``, ``12h``, ``2w``: seconds. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhdw])", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no length of time; write it as 30d, 12h or 2w")
    return float(match[1]) * _TIMES[match[2]]
