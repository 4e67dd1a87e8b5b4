"""The plan of one job: chosen from what is free, what was learnt and what an earlier process died of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from darkroom.engine.memory.fitting import Fitting
from darkroom.engine.memory.learned import CLEARLY_MORE, FILE, RETRY_S, Learned
from darkroom.engine.memory.need import Need
from darkroom.engine.memory.plan import Ladder, MemoryPlan
from darkroom.engine.memory.underway import Death

MIB = 1 << 20
NEED = Need(
    texts=200 * MIB,
    denoiser=1600 * MIB,
    vae=200 * MIB,
    workspace=50 * MIB,
    position=32 << 10,
    scores=0,
    heads=16,
    pixel=2 << 10,
)
FULL = MemoryPlan(batch=1, width=1024, height=1024, steps=20, smallest_side=256)
"""Needs 4.0 GiB while it decodes, 2.5 GiB in tiles."""


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class House:
    """A card with so much memory, and what is remembered of it."""

    def __init__(self, folder: Path, room: int | None) -> None:
        self.folder = folder
        self.room = room
        self.clock = Clock()

    def fitting(self, full: MemoryPlan = FULL, on_oom: Any = "fail", key: str = "card and model") -> Fitting:
        learned = Learned(self.folder, self.clock)
        return Fitting(full, Ladder(on_oom, streams_layers=True), NEED, lambda: self.room, learned, key)

    def begun(self, *arguments: Any, **options: Any) -> tuple[Fitting, list[str]]:
        fitting = self.fitting(**options)
        return fitting, [rung.name for rung, _ in fitting.begin(*arguments)]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, 16 << 30)


def test_where_memory_is_no_object_nothing_is_said_and_nothing_written(house: House) -> None:
    fitting, told = house.begun()
    assert (fitting.plan, told) == (FULL, [])
    fitting.fitted()
    assert list(house.folder.iterdir()) == []


def test_what_will_not_fit_is_not_tried_and_why_is_said(house: House) -> None:
    house.room = 3 << 30
    fitting = house.fitting()
    ((rung, why),) = fitting.begin()
    assert (rung.name, rung.lossless, fitting.plan.vae) == ("tiled_vae", True, "tiled")
    assert why == "about 4.0 GiB are needed otherwise and 3.0 GiB are free"


def test_a_batch_is_chosen_and_not_fallen_to(house: House) -> None:
    house.room = 5 << 30
    fitting, told = house.begun(full=replace(FULL, batch=8))
    assert fitting.plan.batch < 8
    assert "smaller_batch" not in told


def test_no_estimate_makes_a_picture_smaller(house: House) -> None:
    house.room = 1
    fitting, told = house.begun(on_oom="degrade")
    assert (fitting.plan.width, fitting.plan.steps) == (1024, 20)
    assert told == ["tiled_vae", "sequential_offload"]


def stepped_down(house: House, *phases: Any) -> Fitting:
    fitting, _ = house.begun(on_oom="degrade")
    for phase in phases:
        assert fitting.step_down(phase) is not None
    fitting.fitted()
    return fitting


def test_the_next_job_begins_with_what_fitted(house: House) -> None:
    stepped_down(house, "decode", "decode")
    fitting = house.fitting()
    ((rung, why),) = fitting.begin()
    assert (rung.name, fitting.plan) == ("tiled_vae", replace(FULL, vae="tiled"))
    assert "fitted before" in why


def test_a_job_of_another_kind_begins_with_its_own(house: House) -> None:
    stepped_down(house, "decode", "decode")
    assert house.begun(key="another card")[1] == []


def test_memory_that_was_short_for_a_moment_leaves_no_trace(house: House) -> None:
    stepped_down(house, "decode")
    assert not (house.folder / FILE).exists()


def test_a_picture_that_was_made_smaller_is_asked_for_in_full_again(house: House) -> None:
    stepped_down(house, *["denoise"] * 5)
    fitting, told = house.begun(on_oom="degrade")
    assert (fitting.plan.width, fitting.plan.weights) == (1024, "layers")
    assert told == ["sequential_offload"]


def test_after_an_hour_a_better_plan_is_tried_and_forgotten_or_learnt_anew(house: House) -> None:
    stepped_down(house, "decode", "decode")
    house.clock.now += RETRY_S
    fitting, told = house.begun()
    assert (fitting.plan, told) == (FULL, [])
    fitting.fitted()
    assert house.begun()[1] == []
    stepped_down(house, "decode", "decode")
    house.clock.now += RETRY_S
    stepped_down(house, "decode", "decode")
    house.clock.now += RETRY_S / 2
    assert house.begun()[1] == ["tiled_vae"]


def test_jobs_that_begin_with_what_was_learnt_do_not_put_off_the_retry(house: House) -> None:
    stepped_down(house, "decode", "decode")
    for _ in range(4):
        house.clock.now += RETRY_S / 4
        fitting, told = house.begun()
        fitting.fitted()
    assert told == []


def test_when_clearly_more_memory_is_free_a_better_plan_is_tried(house: House) -> None:
    stepped_down(house, "decode", "decode")
    assert house.room is not None
    house.room = int(house.room * CLEARLY_MORE * 0.99)
    assert house.begun()[1] == ["tiled_vae"]
    house.room = int(house.room * 1.02)
    assert house.begun()[1] == []


def test_a_clock_that_was_put_back_is_no_reason_to_wait_for_it(house: House) -> None:
    stepped_down(house, "decode", "decode")
    house.clock.now -= 10
    assert house.begun()[1] == []


def test_a_retry_gives_a_pessimistic_estimate_the_benefit_of_the_doubt(house: House) -> None:
    house.room = 3 << 30
    fitting, told = house.begun()
    assert told == ["tiled_vae"]
    fitting.fitted()
    assert house.begun()[1] == ["tiled_vae"]
    house.clock.now += RETRY_S
    assert house.begun()[1] == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"card and model": 5}',
        b'{"card and model": {"plan": {"batch": "x"}, "at": 1e6, "room": 1}}',
        b'{"card and model": {"plan": null, "at": 1e6, "room": 1}}',
    ],
)
def test_what_is_lost_or_damaged_is_learnt_again(house: House, damage: bytes) -> None:
    (house.folder / FILE).write_bytes(damage)
    assert house.begun()[1] == []
    stepped_down(house, "decode", "decode")
    assert house.begun()[1] == ["tiled_vae"]
    assert [path.name for path in house.folder.iterdir()] == [FILE]


def test_damaged_numbers_are_long_ago(house: House) -> None:
    stepped_down(house, "decode", "decode")
    content = json.loads((house.folder / FILE).read_text())
    content["card and model"] |= {"at": None, "room": "much"}
    (house.folder / FILE).write_text(json.dumps(content))
    assert house.begun()[1] == []


def test_the_file_does_not_grow_for_ever(house: House) -> None:
    learned = Learned(house.folder, house.clock)
    (house.folder / FILE).write_text(json.dumps({f"old {number}": {} for number in range(600)}))
    learned.learn("new", replace(FULL, vae="tiled"), FULL, None)
    content = json.loads((house.folder / FILE).read_text())
    assert len(content) == 500
    assert "new" in content


def test_a_folder_that_cannot_be_written_to_only_costs_the_memory(house: House) -> None:
    house.folder = house.folder / "a file" / "cache"
    house.folder.parent.write_text("")
    stepped_down(house, "decode", "decode")
    assert house.begun()[1] == []


# ---------------------------------------------------------------- a process that died


def test_what_the_kernel_killed_is_tried_a_rung_lower_and_that_is_said(house: House) -> None:
    fitting = house.fitting()
    ((rung, why),) = fitting.begin(Death(1, FULL, "decode", by_kernel=True))
    assert (rung.name, fitting.plan) == ("tiled_vae", replace(FULL, vae="tiled", alone=True))
    assert why == f"the kernel killed the engine's process while it made {FULL}"


def test_the_second_time_it_is_made_as_small_as_it_can_be_unchanged(house: House) -> None:
    fitting, told = house.begun(Death(2, replace(FULL, vae="tiled"), "decode", by_kernel=True))
    assert told == ["dropped_text_encoders", "model_offload", "sequential_offload"]
    assert (fitting.plan.width, fitting.plan.vae, fitting.plan.weights) == (1024, "tiled", "layers")


def test_the_second_time_it_is_made_smaller_too_where_that_is_allowed(house: House) -> None:
    fitting, told = house.begun(Death(2, replace(FULL, vae="tiled"), "decode", by_kernel=True), on_oom="degrade")
    assert told[-1] == "smaller_picture"
    assert fitting.plan.width == 768


def test_the_last_attempt_is_as_small_as_should_well_fit(house: House) -> None:
    house.room = 600 * MIB
    fitting, told = house.begun(Death(2, replace(FULL, vae="tiled"), "decode", by_kernel=True), on_oom="degrade")
    assert told.count("smaller_picture") > 1
    assert NEED.peak(fitting.plan) <= 300 * MIB or fitting.plan.width == FULL.smallest_side
    assert fitting.plan.steps == FULL.steps


def test_a_process_that_died_otherwise_is_tried_again_as_it_was(house: House) -> None:
    fitting, told = house.begun(Death(1, FULL, "decode", by_kernel=False), on_oom="degrade")
    assert (fitting.plan, told) == (FULL, [])


def test_a_process_that_dies_again_is_not_made_smaller_without_proof(house: House) -> None:
    fitting, told = house.begun(Death(2, FULL, "decode", by_kernel=False), on_oom="degrade")
    assert (fitting.plan.width, fitting.plan.steps) == (1024, 20)
    assert told == ["tiled_vae", "dropped_text_encoders", "model_offload", "sequential_offload"]


@pytest.mark.parametrize("by_kernel", [True, None])
def test_one_that_died_while_it_loaded_the_model_loads_it_part_by_part(house: House, by_kernel: bool | None) -> None:
    fitting = house.fitting()
    ((rung, why),) = fitting.begin(Death(1, None, None, by_kernel))
    assert (rung.name, fitting.plan.weights) == ("model_offload", "parts")
    assert why.endswith("while it loaded the model")


def test_what_fitted_after_a_death_is_learnt(house: House) -> None:
    fitting, _ = house.begun(Death(1, FULL, "decode", by_kernel=True))
    fitting.fitted()
    assert house.begun()[1] == ["tiled_vae"]


# ---------------------------------------------------------------- at the foot


def test_at_the_foot_a_size_that_should_fit_is_named(house: House) -> None:
    fitting, _ = house.begun()
    house.room = 3 << 30
    assert fitting.remedies() == [
        "576×576 may fit, and 3.0 GiB are free",
        '"on_oom": "degrade" lets the picture be made smaller',
    ]


def test_where_no_size_fits_it_is_said_how_much_is_missing(house: House) -> None:
    fitting, _ = house.begun(on_oom="degrade")
    house.room = 1 << 30
    assert fitting.remedies() == ["4.0 GiB to 7.9 GiB are needed, and 1.0 GiB are free"]


def test_what_may_or_may_not_fit_by_the_estimate_is_not_said_to_fit(house: House) -> None:
    fitting, _ = house.begun(on_oom="degrade")
    house.room = 5 << 30
    assert fitting.remedies() == ["4.0 GiB to 7.9 GiB are needed, and 5.0 GiB are free"]


def test_of_a_model_that_was_never_in_memory_it_is_not_said_what_it_needs(house: House) -> None:
    fitting, _ = house.begun(on_oom="degrade")
    house.room = 1 << 30
    (remedy,) = fitting.remedies(weighed=False)
    assert remedy == "1.0 GiB are free, and the model could not even be read into them part by part"


def test_where_it_should_have_fitted_another_program_is_suspected(house: House) -> None:
    fitting, _ = house.begun(on_oom="degrade")
    (remedy,) = fitting.remedies()
    assert remedy == "about 4.0 GiB should do, and 16.0 GiB are free now: did another program hold them?"
