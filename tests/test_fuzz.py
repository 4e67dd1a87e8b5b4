"""Whatever is dropped in gets a verdict that a person understands, and the daemon lives (faults 19–33).

``DARKROOM_TEST_FUZZ=100000`` sets how many files are mutated; a few thousand by default.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Darkroom
from darkroom.config import Config
from darkroom.dropped import read
from darkroom.errors import InvalidRequest
from darkroom.job import JobList, Request, resolve
from darkroom.models.catalog import Catalog

MANY = int(os.environ.get("DARKROOM_TEST_FUZZ", "4000"))

# fmt: off
SEEDS: list[dict[str, Any]] = [
    {"prompt": "a red circle"},
    {
        "prompt": "日本語 🐈",
        "negative_prompt": "",
        "steps": 20,
        "cfg_scale": 7,
        "seed": -1,
        "width": 512,
        "height": 768,
    },
    {"prompt": "x", "sampler_name": "DPM++ 2M Karras", "batch_size": 2, "n_iter": 3, "enable_hr": False, "styles": []},
    {
        "prompt": "x",
        "model": "seedling",
        "long_prompt": "truncate",
        "on_oom": "fail",
        "output_format": "jpeg",
        "quality": 9,
    },
    {"darkroom": "0.1.0", "pictures": [], "job": {"prompt": "x", "seed": 18446744073709551615}},
    {"prompt": "x", "matrix": {"seed": [1, 2], "cfg_scale": [4, 7], "sampler": ["Euler", "ddim"]}, "count": 2},
    {"prompt": "x", "cells": [{"seed": 1}, {"steps": 3, "prompt": "y"}], "template": "{x|y}"},
    {"prompt": "a {b|c} {2$$d|e}", "dynamic": True, "count": 3},
    {"list": {"file": "x.json", "entry": 1, "line": 1, "column": 2}, "defaults": {"steps": 3}, "job": {"prompt": "x"}},
    {"list": {"file": "x.jsonl", "entry": 1, "line": 1, "column": 2}, "text": "{\"prompt\": }"},
    {"defaults": {"steps": 3}, "jobs": [{"prompt": "x"}, {"prompt": "y", "seed": 3}]},
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 2**64, 10**39, 1.5, -0.0, 1e308, "", "20", "a" * 11_000, "\0", "\ud800", [],
    [1], {},
    {"prompt": "x"}, [[[[]]]], "../../etc/passwd", "<lora:x:1>", "{a|b}", "\u202e", "🐈" * 100,
]
FRAGMENTS = [
    b"NaN", b"Infinity", b"1e999", b"-", b"+1", b"0x10", b"'", b'"', b"\\", b"\\ud800", b"\\u00", b"{", b"}", b"[",
    b"]", b",", b":", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\r\n", b"//", b"/**/",
    b"[" * 3000, b'{"a":' * 3000, b"9" * 5000,
    b'"prompt": "x", ', b"True", b"None", b"nul",
]
# fmt: on


def mutants(number: int, chance: random.Random) -> Iterator[bytes]:
    for _ in range(number):
        job = dict(chance.choice(SEEDS))
        for _ in range(chance.randrange(3)):
            key = chance.choice([*job, *Request.model_fields, "steps", "mask", "promt", "", "hr_scale", "\ud800"])
            job[key] = chance.choice(VALUES)
        data = bytearray(json.dumps(job).encode())
        for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(5):
                case 0:
                    data[at:at] = chance.choice(FRAGMENTS)
                case 1:
                    del data[at : at + chance.randrange(1, 8)]
                case 2:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 3:
                    del data[at:]
                case 4:
                    data[at:at] = data[: chance.randrange(len(data) + 1)]
        yield bytes(data)


def judged(data: bytes, config: Config, catalog: Catalog) -> str | None:
    """None for a job; else what the person is told, which must be a sentence and fit into error.json."""
    try:
        found = read("fuzz.json", data, config.limits)
        if isinstance(found, JobList):
            for entry in found.entries:
                judged(entry.as_file("fuzz.json", found.defaults), config, catalog)
            return None
        resolve(found, config, catalog, "fuzz")
    except InvalidRequest as error:
        assert error.errors
        for fault in error.errors:
            report = json.dumps([fault.message, fault.field, fault.got, fault.hint], ensure_ascii=False)
            assert len(report) < 1200
            report.encode("utf-8")
            assert fault.message
            assert "\n" not in fault.message
        assert len(error.message) < 1000
        error.message.encode("utf-8")
        return error.message
    return None


def test_every_mutant_of_a_job_is_a_job_or_told_why_not() -> None:
    config = Config()
    catalog = Catalog(config.models)
    chance = random.Random(20261124)
    jobs = sum(judged(data, config, catalog) is None for data in mutants(MANY, chance))
    print(f"{MANY} mutants, {jobs} of them jobs")
    assert 0.05 * MANY < jobs < 0.9 * MANY


def test_memory_does_not_grow_with_the_mutants() -> None:
    config = Config()
    catalog = Catalog(config.models)
    chance = random.Random(1)
    for data in mutants(500, chance):
        judged(data, config, catalog)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in mutants(MANY, chance):
        judged(data, config, catalog)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 << 10  # KiB


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_job_or_told_why_not(data: bytes) -> None:
    config = Config()
    judged(data, config, Catalog(config.models))


@pytest.fixture
def house() -> Iterator[Darkroom]:
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield Darkroom(base / "spool")
    shutil.rmtree(base)


def test_every_mutant_dropped_in_gets_its_verdict_and_the_daemon_lives(house: Darkroom) -> None:
    house.configure(
        intake={"settle_s": 0.2}, limits={"max_width": 64, "max_height": 64, "max_steps": 20, "max_count": 2}
    )
    chance = random.Random(2)
    number = max(MANY // 16, 100)
    for index, data in enumerate(mutants(number, chance)):
        small = data.replace(b"512", b"64").replace(b"768", b"64")
        house.drop(f"{chance.choice(['cat', '-x', 'con', 'a' * 100, 'é', chr(0xDC80)])}{index}.json", small)
    loop = house.run_once()
    lists = list(house.done.rglob("list/result.json"))
    entries = sum(json.loads(path.read_bytes())["entries"] for path in lists)
    assert loop.work.done + loop.work.failed + len(lists) - entries == number
    assert house.names("inbox") == house.names("working") == []
    for path in house.failed.rglob("error.json"):
        error = json.loads(path.read_bytes())
        assert error["reason"] == "invalid-request"
        assert error["errors"]
        assert error["message"]
