"""The ladder of memory plans: each rung smaller, all of them named, and an end; and what a plan is thought to need."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.engine.memory.need import Need, first_plan, largest_size
from darkroom.engine.memory.plan import Ladder, MemoryPlan, Rung, between, foot, step_down
from darkroom.models.catalog import BUNDLED

sides = st.integers(8, 256).map(lambda eighths: eighths * 8)
plans = st.builds(
    MemoryPlan,
    batch=st.integers(1, 64),
    width=sides,
    height=sides,
    steps=st.integers(1, 150),
    vae=st.sampled_from(["whole", "sliced", "tiled"]),
    attention=st.sampled_from(["fused", "sliced"]),
    texts=st.sampled_from(["kept", "dropped"]),
    weights=st.sampled_from(["resident", "parts", "layers"]),
    alone=st.booleans(),
    smallest_side=st.sampled_from([64, 256, 512]),
)
ladders = st.builds(Ladder, st.sampled_from(["degrade", "fail"]), st.booleans(), st.booleans())
phases = st.sampled_from([None, "encode", "denoise", "decode"])
sizes = st.integers(1, 1 << 34)
needs = st.builds(
    Need,
    texts=sizes,
    denoiser=sizes,
    vae=sizes,
    workspace=st.integers(1, 1 << 28),
    position=st.integers(1, 1 << 18),
    scores=st.floats(0, 256),
    heads=st.integers(1, 64),
    pixel=st.integers(1, 1 << 14),
)

EVERYTHING = Ladder("degrade", slices_attention=True, streams_layers=True)
FULL = MemoryPlan(batch=4, width=512, height=512, steps=20, smallest_side=256)


def walk(plan: MemoryPlan, ladder: Ladder, phase: Any = None) -> list[tuple[MemoryPlan, Rung]]:
    """Every rung down to the foot."""
    path = []
    while (found := step_down(plan, ladder, phase)) is not None:
        path.append(found)
        plan = found[0]
        assert len(path) < 60
    return path


def names(plan: MemoryPlan, ladder: Ladder, phase: Any = None) -> list[str]:
    return [rung.name for _, rung in walk(plan, ladder, phase)]


def size(plan: MemoryPlan) -> tuple[int, ...]:
    return (
        not plan.alone,
        plan.batch,
        ("tiled", "sliced", "whole").index(plan.vae),
        ("sliced", "fused").index(plan.attention),
        ("dropped", "kept").index(plan.texts),
        ("layers", "parts", "resident").index(plan.weights),
        plan.width,
        plan.height,
        plan.steps,
    )


def test_the_rungs_come_in_the_order_of_what_they_cost() -> None:
    path = walk(FULL, EVERYTHING)
    assert [rung.name for _, rung in path] == [
        "freed_memory",
        "smaller_batch",
        "smaller_batch",
        "tiled_vae",
        "sliced_attention",
        "dropped_text_encoders",
        "model_offload",
        "sequential_offload",
        "smaller_picture",
        "smaller_picture",
        "smaller_picture",
        "fewer_steps",
        "fewer_steps",
    ]
    assert [dict(rung.changes) for _, rung in path if not rung.lossless] == [
        {"width": 384, "height": 384},
        {"width": 288, "height": 288},
        {"width": 256, "height": 256},
        {"num_inference_steps": 10},
        {"num_inference_steps": 8},
    ]


@pytest.mark.parametrize(
    ("phase", "rungs"),
    [
        ("encode", ["freed_memory", "model_offload", "sequential_offload"]),
        (
            "denoise",
            [
                "freed_memory",
                "smaller_batch",
                "smaller_batch",
                "sliced_attention",
                "dropped_text_encoders",
                "model_offload",
                "sequential_offload",
            ],
        ),
        ("decode", ["freed_memory", "sliced_vae", "tiled_vae", "dropped_text_encoders", "model_offload"]),
    ],
)
def test_only_rungs_that_help_where_memory_ran_out_are_taken(phase: Any, rungs: list[str]) -> None:
    assert names(FULL, replace(EVERYTHING, on_oom="fail"), phase) == rungs


def test_the_device_decides_which_rungs_there_are() -> None:
    assert "sliced_attention" not in names(FULL, replace(EVERYTHING, slices_attention=False))
    assert "sequential_offload" not in names(FULL, replace(EVERYTHING, streams_layers=False))


def test_a_job_of_one_small_picture_and_one_step_has_nothing_to_give() -> None:
    plan = MemoryPlan(1, 64, 64, 1, "tiled", "sliced", "dropped", "layers", alone=True)
    assert step_down(plan, EVERYTHING) is None


@pytest.mark.parametrize(("width", "height"), [(768, 512), (512, 768), (1024, 576)])
def test_the_aspect_is_kept_as_near_as_multiples_of_8_allow(width: int, height: int) -> None:
    for plan, _ in walk(MemoryPlan(1, width, height, 20), Ladder("degrade")):
        assert plan.width / plan.height == pytest.approx(width / height, rel=8 / min(plan.width, plan.height) + 0.01)


def test_a_plan_reads_as_a_person_would_say_it() -> None:
    plan = MemoryPlan(1, 512, 768, 20, vae="tiled", weights="parts")
    assert str(plan) == "1 picture of 512×768 at a time, 20 steps, VAE tiled, one part in memory at a time"
    assert str(replace(plan, steps=1)).startswith("1 picture of 512×768 at a time, 1 step, VAE")
    assert str(MemoryPlan(4, 64, 64, 2)) == "4 pictures of 64×64 at a time, 2 steps, VAE whole"
    plan = MemoryPlan(1, 64, 64, 2, attention="sliced", texts="dropped")
    assert str(plan).endswith("VAE whole, attention sliced, text encoders dropped")


@given(plans, ladders, phases)
def test_every_rung_is_smaller_and_the_ladder_ends(plan: MemoryPlan, ladder: Ladder, phase: Any) -> None:
    before = plan
    for after, rung in walk(plan, ladder, phase):
        assert size(after) != size(before)
        assert all(new <= old for new, old in zip(size(after), size(before), strict=True)), rung
        before = after


@given(plans, ladders, phases)
def test_only_degrade_changes_what_was_asked_for_and_says_so(plan: MemoryPlan, ladder: Ladder, phase: Any) -> None:
    before = plan
    for after, rung in walk(plan, ladder, phase):
        asked = {"width": before.width, "height": before.height, "num_inference_steps": before.steps}
        now = {"width": after.width, "height": after.height, "num_inference_steps": after.steps}
        changed = {key for key in asked if asked[key] != now[key]}
        assert rung.lossless == (not changed)
        assert changed <= set(rung.changes)
        assert all(now[key] == value for key, value in rung.changes.items())
        assert ladder.on_oom == "degrade" or rung.lossless
        before = after


@given(plans, ladders, phases)
def test_lossless_rungs_come_before_all_others(plan: MemoryPlan, ladder: Ladder, phase: Any) -> None:
    lossless = [rung.lossless for _, rung in walk(plan, ladder, phase)]
    assert lossless == sorted(lossless, reverse=True)


@given(plans, ladders, phases)
def test_no_picture_is_shrunk_below_the_floor_or_off_the_grid(plan: MemoryPlan, ladder: Ladder, phase: Any) -> None:
    for after, _ in walk(plan, ladder, phase):
        assert after.width % 8 == after.height % 8 == 0
        assert min(after.width, after.height) >= min(plan.smallest_side, plan.width, plan.height)


@given(plans, ladders, phases)
def test_the_foot_is_where_the_lossless_rungs_end(plan: MemoryPlan, ladder: Ladder, phase: Any) -> None:
    lowest, rungs = foot(plan, ladder, phase)
    path = walk(plan, replace(ladder, on_oom="fail"), phase)
    assert rungs == [rung for _, rung in path]
    assert lowest == (path[-1][0] if path else plan)


@given(plans, ladders)
def test_what_lies_between_two_plans_is_told_in_the_ladders_words(plan: MemoryPlan, ladder: Ladder) -> None:
    lowest, rungs = foot(plan, ladder)
    told = [rung.name for rung in between(plan, lowest)]
    assert set(told) <= {rung.name for rung in rungs}
    assert between(plan, plan) == []


@given(plans)
def test_a_plan_comes_back_from_json_as_it_was(plan: MemoryPlan) -> None:
    assert MemoryPlan.restored(json.loads(json.dumps(asdict(plan)))) == plan


@given(plans, st.sampled_from(["batch", "width", "vae", "weights", "texts"]), st.sampled_from([None, 0, "x", True, []]))
def test_what_is_no_plan_is_not_taken_for_one(plan: MemoryPlan, field: str, damage: Any) -> None:
    with pytest.raises(ValueError, match="not a memory plan"):
        MemoryPlan.restored(asdict(plan) | {field: damage})


# ---------------------------------------------------------------- what a plan needs

SD15_UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
}
SDXL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
}
VAE = {"block_out_channels": [128, 256, 512, 512]}
SD15_WEIGHTS = {"texts": 246 << 20, "denoiser": 1640 << 20, "vae": 160 << 20}


def need_of(unet: dict[str, Any] = SD15_UNET, **options: Any) -> Need:
    settings: dict[str, Any] = {"largest": 59 << 20, "itemsize": 2, "vae_itemsize": 2, **options}
    return Need.of(unet, VAE, SD15_WEIGHTS, **settings)


@pytest.mark.parametrize(
    ("itemsize", "batch", "side", "measured"),
    # One pass of SD 1.5's exact UNet, random weights, guided: the growth of the process's peak, in MiB.
    [(2, 1, 256, 95), (2, 1, 512, 197), (4, 1, 256, 189)],
)
def test_the_estimate_of_a_unets_pass_is_near_what_was_measured(
    itemsize: int, batch: int, side: int, measured: int
) -> None:
    need = need_of(itemsize=itemsize, largest=(59 << 20) * itemsize // 2)
    plan = MemoryPlan(batch, side, side, 20, weights="parts")
    activations = need.phases(plan)["denoise"] - need.denoiser
    assert 0.5 <= activations / (measured << 20) <= 2


@pytest.mark.parametrize(("itemsize", "side", "measured"), [(4, 256, 311), (4, 512, 1016), (2, 256, 200)])
def test_the_estimate_of_a_decoding_is_near_what_was_measured(itemsize: int, side: int, measured: int) -> None:
    need = need_of(vae_itemsize=itemsize)
    plan = MemoryPlan(1, side, side, 20, weights="parts")
    assert 0.5 <= (need.phases(plan)["decode"] - need.vae) / (measured << 20) <= 2


SD3 = {"num_attention_heads": 24, "attention_head_dim": 64}
FLUX = {"num_attention_heads": 24, "attention_head_dim": 128}


@pytest.mark.parametrize(
    ("transformer", "tokens", "largest", "itemsize", "guided", "side", "measured"),
    # One pass of transformers of SD 3 medium's and Flux's exact width, of two layers, random weights.
    [
        (SD3, 333, 27, 2, True, 512, 146),
        (SD3, 333, 54, 4, True, 512, 232),
        (SD3, 333, 27, 2, False, 1024, 223),
        (FLUX, 512, 108, 2, False, 512, 244),
        (FLUX, 512, 108, 2, False, 1024, 584),
        (FLUX, 512, 216, 4, False, 512, 392),
    ],
)
def test_the_estimate_of_a_transformers_pass_is_near_what_was_measured(
    transformer: dict[str, int], tokens: int, largest: int, itemsize: int, guided: bool, side: int, measured: int
) -> None:
    need = Need.of_flow(
        transformer, VAE, SD15_WEIGHTS, largest=largest << 20, itemsize=itemsize, guided=guided, tokens=tokens
    )
    plan = MemoryPlan(1, side, side, 20, weights="parts")
    activations = need.phases(plan)["denoise"] - need.denoiser
    assert 0.5 <= activations / (measured << 20) <= 2


def test_attention_without_a_kernel_costs_the_square_of_the_positions() -> None:
    plan = MemoryPlan(1, 1024, 1024, 20)
    with_kernel, without = need_of(), need_of(slices_attention=True)
    scores = without.phases(plan)["denoise"] - with_kernel.phases(plan)["denoise"]
    assert scores == 2 * 2 * 8 * 2 * (128 * 128) ** 2  # scores and softmax, two halves, eight heads, two bytes
    sliced = without.phases(replace(plan, attention="sliced"))["denoise"] - with_kernel.phases(plan)["denoise"]
    assert sliced == scores / 16
    xl = need_of(SDXL_UNET, slices_attention=True)
    xl_scores = xl.phases(plan)["denoise"] - need_of(SDXL_UNET).phases(plan)["denoise"]
    assert xl_scores == 2 * 2 * 10 * 2 * (64 * 64) ** 2  # its first level does not attend


@given(plans, ladders, needs)
def test_no_rung_is_thought_to_need_more(plan: MemoryPlan, ladder: Ladder, need: Need) -> None:
    before = need.peak(plan)
    for after, rung in walk(plan, ladder):
        assert need.peak(after) <= before, rung
        before = need.peak(after)


@given(plans, ladders, needs, sizes)
def test_the_first_plan_fits_or_is_as_small_as_it_can_be_unchanged(
    plan: MemoryPlan, ladder: Ladder, need: Need, room: int
) -> None:
    first = first_plan(plan, ladder, need, room)
    assert (first.width, first.height, first.steps, first.alone) == (plan.width, plan.height, plan.steps, plan.alone)
    if need.peak(plan) <= room:
        assert first == plan
    if need.peak(first) > room:
        worst: Any = max(need.phases(first), key=lambda phase: need.phases(first)[phase])
        assert step_down(replace(first, alone=True), replace(ladder, on_oom="fail"), worst) is None


def test_where_the_room_is_not_known_all_is_tried() -> None:
    assert first_plan(FULL, EVERYTHING, need_of(), None) == FULL


@pytest.mark.parametrize(
    ("gib", "plan"),
    [
        (24, "4 pictures of 1024×1024 at a time, 20 steps, VAE whole"),
        (6, "4 pictures of 1024×1024 at a time, 20 steps, VAE sliced"),
        (3.5, "2 pictures of 1024×1024 at a time, 20 steps, VAE tiled"),
        (2.5, "1 picture of 1024×1024 at a time, 20 steps, VAE tiled, text encoders dropped"),
        (1, "1 picture of 1024×1024 at a time, 20 steps, VAE tiled, one layer in memory at a time"),
    ],
)
def test_the_first_plan_for_sd_1_5_at_1024(gib: float, plan: str) -> None:
    full = MemoryPlan(batch=4, width=1024, height=1024, steps=20)
    first = first_plan(full, Ladder("fail", streams_layers=True), need_of(), int(gib * 2**30))
    assert str(first) == plan


@given(plans, needs, sizes)
def test_the_size_that_is_recommended_fits(plan: MemoryPlan, need: Need, room: int) -> None:
    found = largest_size(plan, need, room)
    if found is None:
        assert need.peak(plan) > room
    else:
        width, height = found
        assert need.peak(replace(plan, width=width, height=height)) <= room
        assert (width, height) == (plan.width, plan.height) or need.peak(plan) > room


def test_what_is_needed_grows_with_every_picture_and_pixel() -> None:
    config = {part: json.loads((BUNDLED / part / "config.json").read_text()) for part in ("unet", "vae")}
    weights = {"texts": 1, "denoiser": 1, "vae": 1}
    need = Need.of(config["unet"], config["vae"], weights, largest=1, itemsize=4, vae_itemsize=4)
    peaks = [need.peak(MemoryPlan(*shape, 20)) for shape in ((1, 128, 128), (2, 128, 128), (2, 128, 256))]
    assert peaks == sorted(set(peaks))
    assert need.peak(MemoryPlan(1, 128, 128, 20)) > prod((128, 128, 16, 4))  # its decoder's last level
