"""The fault catalogue: what a folder daemon meets. Each of the 64 faults is met by a test that cites its number."""

from __future__ import annotations

import re
from pathlib import Path

FAULTS = 64


def cited() -> dict[int, set[str]]:
    """Number of a fault → the files of tests that cite it."""
    found: dict[int, set[str]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for said in re.findall(r"[Ff]aults?\s+(\d[\d,\s–and]*)", path.read_text(encoding="utf-8")):
            for first, last in re.findall(r"(\d+)(?:–(\d+))?", said):
                for number in range(int(first), int(last or first) + 1):
                    found.setdefault(number, set()).add(path.name)
    return found


def test_every_fault_of_the_catalogue_is_cited_by_a_test() -> None:
    assert set(range(1, FAULTS + 1)) - set(cited()) == set()
