"""The note that an engine leaves of what it is at, and what its successor makes of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from darkroom.engine.memory.plan import MemoryPlan
from darkroom.engine.memory.underway import Death, UnderWay

PLAN = MemoryPlan(2, 512, 512, 20, vae="sliced")


class Kernel:
    """Counts whom it killed."""

    def __init__(self, kills: int | None = 3) -> None:
        self.kills = kills

    def __call__(self) -> int | None:
        return self.kills


def died(folder: Path, kernel: Kernel, job: str = "cat") -> Death | None:
    """An engine begins a job and is gone. Returns what it found."""
    under_way = UnderWay(folder, kernel)
    death = under_way.begin(job)
    under_way.at(PLAN, "denoise")
    return death


def notes(folder: Path) -> list[Path]:
    return list((folder / "under-way").iterdir())


def test_a_job_that_ended_leaves_nothing(tmp_path: Path) -> None:
    under_way = UnderWay(tmp_path)
    assert under_way.begin("cat") is None
    under_way.at(PLAN, "denoise")
    assert len(notes(tmp_path)) == 1
    under_way.end()
    assert notes(tmp_path) == []
    assert under_way.begin("cat") is None


def test_the_successor_is_told_by_which_plan_and_where_it_died_and_by_whom(tmp_path: Path) -> None:
    kernel = Kernel()
    assert died(tmp_path, kernel) is None
    kernel.kills = 4
    assert died(tmp_path, kernel) == Death(1, PLAN, "denoise", by_kernel=True)
    assert died(tmp_path, kernel) == Death(2, PLAN, "denoise", by_kernel=False)


def test_where_the_kernel_does_not_say_it_is_not_known(tmp_path: Path) -> None:
    died(tmp_path, Kernel(None))
    assert died(tmp_path, Kernel(None)) == Death(1, PLAN, "denoise", by_kernel=None)


def test_a_death_before_the_first_plan_has_none(tmp_path: Path) -> None:
    UnderWay(tmp_path, Kernel(1)).begin("cat")
    assert UnderWay(tmp_path, Kernel(2)).begin("cat") == Death(1, None, None, by_kernel=True)


def test_another_job_is_not_held_responsible(tmp_path: Path) -> None:
    died(tmp_path, Kernel(1))
    assert died(tmp_path, Kernel(2), "dog") is None


def test_an_engine_that_ended_with_its_daemon_was_not_killed_for_the_job(tmp_path: Path) -> None:
    died(tmp_path, Kernel())
    (note,) = notes(tmp_path)
    note.write_text(json.dumps(json.loads(note.read_text()) | {"daemon": os.getppid() + 1}))
    assert died(tmp_path, Kernel()) is None
    assert died(tmp_path, Kernel()) == Death(1, PLAN, "denoise", by_kernel=False)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"job": "cat"}', '{"job": "cat", "plan": 5, "deaths": 1}'])
def test_a_damaged_note_is_none(tmp_path: Path, damage: str) -> None:
    died(tmp_path, Kernel())
    (note,) = notes(tmp_path)
    note.write_text(damage)
    assert died(tmp_path, Kernel()) is None


def test_notes_of_long_ago_are_removed(tmp_path: Path) -> None:
    died(tmp_path, Kernel())
    (note,) = notes(tmp_path)
    UnderWay(tmp_path)
    assert note.exists()
    os.utime(note, (1, time.time() - 8 * 24 * 3600))
    UnderWay(tmp_path)
    assert not note.exists()


def test_a_shorter_note_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    under_way = UnderWay(tmp_path)
    under_way.begin("cat")
    (note,) = notes(tmp_path)
    for plan, phase in ((MemoryPlan(64, 2048, 2048, 150), "denoise"), (MemoryPlan(1, 64, 64, 1), "decode")):
        under_way.at(plan, phase)  # type: ignore[arg-type]
        content = json.loads(note.read_text())
        assert (content["phase"], content["plan"]["width"]) == (phase, plan.width)
    under_way.end()


def test_a_folder_that_cannot_be_written_to_means_that_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "under-way").write_text("a file")
    assert died(tmp_path, Kernel(1)) is None
    assert died(tmp_path, Kernel(2)) is None
