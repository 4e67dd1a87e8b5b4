"""Hashes of model files: computed beside the work, remembered, and waited for no longer than somebody wants."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from darkroom.engine.hashes import FILE, Hashes


def nothing() -> None:
    """Whoever waits has nothing else to do."""


def of(hashes: Hashes, file: Path) -> str | None:
    return hashes.begin(file).wait(nothing)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 100_000)
    return path


def remembered(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text())
    return found


def test_it_is_the_sha256_of_the_file_and_remembered(file: Path, tmp_path: Path) -> None:
    digits = hashlib.sha256(file.read_bytes()).hexdigest()
    assert of(Hashes(tmp_path), file) == digits
    (entry,) = remembered(tmp_path).values()
    assert entry["sha256"] == digits


def test_what_is_remembered_is_not_computed_again(file: Path, tmp_path: Path) -> None:
    of(Hashes(tmp_path), file)
    entries = {path: {**entry, "sha256": "as it was"} for path, entry in remembered(tmp_path).items()}
    (tmp_path / FILE).write_text(json.dumps(entries))
    assert of(Hashes(tmp_path), file) == "as it was"


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_file_that_was_replaced_is_read_again(file: Path, tmp_path: Path, change: str) -> None:
    hashes = Hashes(tmp_path)
    before = of(hashes, file)
    content = b"other" if change == "size" else b"WEIGHTS" * 100_000
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    after = of(hashes, file)
    assert after == hashlib.sha256(content).hexdigest() != before
    assert len(remembered(tmp_path)) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 5}'])
def test_a_damaged_memory_is_no_memory(file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content.replace("x", str(file)))
    assert of(Hashes(tmp_path), file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_without_a_place_to_remember_it_is_computed_each_time(file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert of(Hashes(blocked), file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_that_is_not_there_or_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert of(Hashes(tmp_path), tmp_path / "nowhere") is None
    assert of(Hashes(tmp_path), tmp_path) is None


def test_one_that_takes_long_is_waited_for_only_as_long_as_somebody_wants_and_read_once(tmp_path: Path) -> None:
    class Enough(Exception):
        """Says the one who waits."""

    def enough() -> None:
        raise Enough

    file = tmp_path / "large.safetensors"
    with file.open("wb") as stream:
        stream.truncate(512 << 20)
    hashes = Hashes(tmp_path)
    coming = hashes.begin(file)
    assert hashes.begin(file) is coming
    with pytest.raises(Enough):
        coming.wait(enough)
    digits = coming.wait(nothing)
    assert digits is not None
    assert digits == of(hashes, file) == of(Hashes(tmp_path), file)
