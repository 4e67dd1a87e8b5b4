"""Entries of a JSON list that are no JSON: each fails alone, by its place in the list, and the others are made."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Darkroom
from darkroom import strict_json
from darkroom.errors import InvalidRequest, Unfinished
from darkroom.job import Request, read_list
from darkroom.job.parse import parse

GOOD = '{"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 1}'

BROKEN = [
    ('{"prompt": "x", "seed": 1, "seed": 2}', '"seed" stands here twice', (2, 29)),
    ('{"prompt": "x", "steps": NaN}', "NaN is not a JSON value", (2, 27)),
    ('{"prompt": "x" "steps": 20}', "a comma or } is missing", (2, 17)),
    ("{'prompt': 'x, or y'}", "a field's name should stand here", (2, 3)),
    ('{"prompt": "a \\q [ b", "steps": 2}', "invalid \\escape", (2, 16)),
    ('{"prompt": "x",\n  "steps": +2}', "+2 is not a number in JSON", (3, 12)),
    ("undefined", "undefined is not a JSON value", (2, 2)),
    ('{"loras": ' + "[" * 70 + "]" * 70 + "}", "nested more than 64 deep", (2, 76)),
]


def listed(text: str) -> Any:
    return read_list("night.json", text.encode(), most=100, most_bytes=1 << 20)


@pytest.mark.parametrize(("broken", "why", "place"), BROKEN, ids=[broken[:24] for broken, _, _ in BROKEN])
def test_an_entry_that_is_no_json_is_one_by_itself(broken: str, why: str, place: tuple[int, int]) -> None:
    found = listed(f"[{GOOD},\n {broken}\n ,{GOOD}]")
    kinds = [entry.is_json for entry in found.entries]
    assert kinds[0] is True
    assert kinds[1] is False
    assert kinds[-1] is True
    assert isinstance(parse(found.entries[-1].as_file("night.json", None)), Request)
    with pytest.raises(InvalidRequest) as caught:
        parse(found.entries[1].as_file("night.json", None))
    (fault,) = caught.value.errors
    assert fault.message.startswith(why)
    assert (fault.line, fault.column) == place
    assert caught.value.message.startswith("night.json, entry 2: ")


@pytest.mark.parametrize(
    "text",
    [
        f'[{GOOD}, {{"prompt": "b]',
        f'[{GOOD}, {{"prompt": "b"]',
        f'[{GOOD}, {{"prompt": "b\n"}}]',
        f"[{GOOD} {GOOD}]",
        f"[{GOOD},]",
        f'[{GOOD}, {{"prompt": "x"], "steps": 2}}]',
        f"[,{GOOD}]",
        f'[{GOOD}, {{"prompt": NaN}}',
        f'{{"defaults": {{"steps": NaN}}, "jobs": [{GOOD}]}}',
    ],
)
def test_what_is_wrong_between_entries_or_has_no_end_spoils_the_file(text: str) -> None:
    with pytest.raises(InvalidRequest):
        listed(text)


def test_without_being_asked_nothing_broken_is_taken() -> None:
    with pytest.raises(strict_json.JSONFault):
        strict_json.parse('[{"a": NaN}]')
    assert strict_json.parse('[[{"a": NaN}], 2]', {()}).value == [None, 2]


def test_a_list_that_may_still_be_being_written_waits_and_one_that_is_all_there_does_not(darkroom: Darkroom) -> None:
    reader = darkroom.loop().work.reader
    with pytest.raises(Unfinished):
        reader.judge("night.json", f'[{GOOD}, {{"prompt": "x" "steps": 2}}]'.encode())
    assert reader.judge("night.json", f'[{GOOD}, {{"prompt": "x", "prompt": "y"}}]'.encode()).is_list


@pytest.mark.parametrize("broken", ['{"prompt": "x", "prompt": "y"}', '{"prompt": "x" "steps": 2}'])
def test_the_others_of_a_dropped_list_are_made(darkroom: Darkroom, broken: str) -> None:
    darkroom.configure(intake={"settle_s": 0.1})
    darkroom.drop("night.json", f'{{"defaults": {{"seed": 5}}, "jobs": [{GOOD},\n{broken},\n{GOOD}]}}')
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (2, 1)
    assert darkroom.result("night/0001")["status"] == darkroom.result("night/0003")["status"] == "done"
    error = darkroom.error("night/0002")
    assert error["reason"] == "invalid-request"
    assert error["errors"][0]["line"] == 2
    assert darkroom.result("night/list")["entries"] == 3
