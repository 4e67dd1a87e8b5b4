"""The ladder of memory plans: each rung smaller, all of them named, and an end."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.engine.memory import MemoryPlan, Phase, Rung, step_down

OnOom = Literal["degrade", "fail"]

sides = st.integers(8, 256).map(lambda eighths: eighths * 8)
plans = st.builds(
    MemoryPlan,
    batch=st.integers(1, 64),
    width=sides,
    height=sides,
    steps=st.integers(1, 150),
    vae=st.sampled_from(["whole", "sliced", "tiled"]),
    weights=st.sampled_from(["resident", "offload"]),
    smallest_side=st.sampled_from([64, 256, 512]),
)
phases = st.sampled_from(["encode", "denoise", "decode"])


def walk(plan: MemoryPlan, on_oom: OnOom, can_offload: bool, phase: Phase = "denoise") -> list[tuple[MemoryPlan, Rung]]:
    """Every rung down to the foot."""
    path = []
    while (found := step_down(plan, on_oom=on_oom, can_offload=can_offload, phase=phase)) is not None:
        path.append(found)
        plan = found[0]
        assert len(path) < 60
    return path


def size(plan: MemoryPlan) -> tuple[int, int, int, int, int, int]:
    vae = ("tiled", "sliced", "whole").index(plan.vae)
    weights = ("offload", "resident").index(plan.weights)
    return (plan.batch, vae, weights, plan.width, plan.height, plan.steps)


def test_the_rungs_come_in_the_order_of_what_they_cost() -> None:
    path = walk(MemoryPlan(batch=4, width=512, height=512, steps=20, smallest_side=256), "degrade", True)
    assert [rung.name for _, rung in path] == [
        "smaller_batch",
        "smaller_batch",
        "tiled_vae",
        "model_offload",
        "smaller_picture",
        "smaller_picture",
        "smaller_picture",
        "fewer_steps",
        "fewer_steps",
    ]
    assert [rung.changes for _, rung in path if not rung.lossless] == [
        {"width": 384, "height": 384},
        {"width": 288, "height": 288},
        {"width": 256, "height": 256},
        {"num_inference_steps": 10},
        {"num_inference_steps": 8},
    ]


def test_without_a_gpu_nothing_is_offloaded() -> None:
    path = walk(MemoryPlan(batch=2, width=512, height=512, steps=20), "fail", False)
    assert [rung.name for _, rung in path] == ["smaller_batch", "tiled_vae"]


def test_what_fails_in_decoding_is_decoded_in_slices_before_the_batch_is_made_smaller() -> None:
    path = walk(MemoryPlan(batch=4, width=512, height=512, steps=20), "fail", True, "decode")
    assert [rung.name for _, rung in path] == [
        "sliced_vae",
        "tiled_vae",
        "smaller_batch",
        "smaller_batch",
        "model_offload",
    ]


def test_a_job_of_one_small_picture_and_one_step_has_nothing_to_give() -> None:
    plan = MemoryPlan(batch=1, width=64, height=64, steps=1, vae="tiled", weights="offload")
    assert step_down(plan, on_oom="degrade", can_offload=True) is None


@pytest.mark.parametrize(("width", "height"), [(768, 512), (512, 768), (1024, 576)])
def test_the_aspect_is_kept_as_near_as_multiples_of_8_allow(width: int, height: int) -> None:
    path = walk(MemoryPlan(1, width, height, 20, vae="tiled"), "degrade", False)
    for plan, _ in path:
        assert plan.width / plan.height == pytest.approx(width / height, rel=8 / min(plan.width, plan.height) + 0.01)


def test_a_plan_reads_as_a_person_would_say_it() -> None:
    plan = MemoryPlan(batch=1, width=512, height=768, steps=20, vae="tiled", weights="offload")
    assert str(plan) == "1 picture of 512×768 at a time, 20 steps, VAE tiled, weights offloaded"
    assert str(MemoryPlan(4, 64, 64, 2)) == "4 pictures of 64×64 at a time, 2 steps, VAE whole"


@given(plans, st.sampled_from(["degrade", "fail"]), st.booleans(), phases)
def test_every_rung_is_smaller_and_the_ladder_ends(
    plan: MemoryPlan, on_oom: OnOom, can_offload: bool, phase: Phase
) -> None:
    before = plan
    for after, rung in walk(plan, on_oom, can_offload, phase):
        assert size(after) != size(before)
        assert all(new <= old for new, old in zip(size(after), size(before), strict=True)), rung
        before = after


@given(plans, st.sampled_from(["degrade", "fail"]), st.booleans(), phases)
def test_only_degrade_changes_what_was_asked_for_and_says_so(
    plan: MemoryPlan, on_oom: OnOom, can_offload: bool, phase: Phase
) -> None:
    before = plan
    for after, rung in walk(plan, on_oom, can_offload, phase):
        asked = {"width": before.width, "height": before.height, "num_inference_steps": before.steps}
        now = {"width": after.width, "height": after.height, "num_inference_steps": after.steps}
        changed = {key for key in asked if asked[key] != now[key]}
        assert rung.lossless == (not changed)
        assert changed <= set(rung.changes)
        assert all(now[key] == value for key, value in rung.changes.items())
        assert on_oom == "degrade" or rung.lossless
        before = after


@given(plans, st.booleans())
def test_no_picture_is_shrunk_below_the_floor_or_off_the_grid(plan: MemoryPlan, can_offload: bool) -> None:
    for after, _ in walk(plan, "degrade", can_offload):
        assert after.width % 8 == after.height % 8 == 0
        assert min(after.width, after.height) >= min(plan.smallest_side, plan.width, plan.height)
