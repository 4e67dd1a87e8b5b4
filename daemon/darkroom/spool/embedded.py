"""How large a job file may be: pictures that stand in it as base64 do not count, but for their own limit."""

from __future__ import annotations

import re

from darkroom.config import Limits

_MOST_PICTURES = 2
_EMBEDDED = re.compile(rb'"(?:data:[^",]{0,200}+,)?(?:[A-Za-z0-9+/]|\\/){64}(?:[A-Za-z0-9+/=]++|\\[/nrt])++"')
"""A text of base64, as JSON has it: some programs escape its slashes, some break its lines."""
_SHORTEST = 1024
"""What is shorter counts as text."""


def most_with_pictures(limits: Limits) -> int:
    """How many bytes a job file may have, with as large pictures in it as may be."""
    return limits.max_job_bytes + _MOST_PICTURES * (limits.max_picture_bytes * 4 // 3 + 4)


def is_too_large(data: bytes, limits: Limits) -> bool:
    """Whether a job file is over its limit, its pictures not counted."""
    over = len(data) - limits.max_job_bytes
    if over > 0 and data.count(b'"') <= limits.max_job_bytes:  # with more there is too much text in any case
        lengths = (found.end() - found.start() for found in _EMBEDDED.finditer(data))
        over -= sum(length for length in lengths if length >= _SHORTEST)
    return over > 0
