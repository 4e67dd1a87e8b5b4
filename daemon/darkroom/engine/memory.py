"""How a job is fitted into memory: a plan, and the next smaller one. Pure: no torch here, so all of it can be tested.

The ladder, from the first rung to the last. The rungs above the line change nothing that the job asked for::

    smaller_batch     half as many pictures at a time
    sliced_vae        pictures of a batch decoded one by one
    tiled_vae         a picture decoded in overlapping tiles, blended
    model_offload     on the GPU only the part that is at work (GPU only)
    ----------------  below only with on_oom = "degrade"
    smaller_picture   three quarters of width and height
    fewer_steps       half the steps
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

Vae = Literal["whole", "sliced", "tiled"]
Weights = Literal["resident", "offload"]
Phase = Literal["encode", "denoise", "decode"]

GRAIN = 8
"""Width and height in pixels are multiples of this."""

_SHRINK = 0.75
_FEWEST_STEPS = 8


@dataclass(frozen=True)
class MemoryPlan:
    """How pictures are made. ``width`` and ``height`` in pixels; ``smallest_side`` is where shrinking ends."""

    batch: int
    width: int
    height: int
    steps: int
    vae: Vae = "whole"
    weights: Weights = "resident"
    smallest_side: int = 64

    def __str__(self) -> str:
        pictures = "1 picture" if self.batch == 1 else f"{self.batch} pictures"
        offload = ", weights offloaded" if self.weights == "offload" else ""
        return f"{pictures} of {self.width}×{self.height} at a time, {self.steps} steps, VAE {self.vae}{offload}"


@dataclass(frozen=True)
class Rung:
    """A step down. ``lossless`` means that size and steps are those asked for; ``changes`` what they are now."""

    name: str
    lossless: bool
    changes: dict[str, int] = field(default_factory=dict)


def step_down(
    plan: MemoryPlan, *, on_oom: Literal["degrade", "fail"], can_offload: bool, phase: Phase = "denoise"
) -> tuple[MemoryPlan, Rung] | None:
    """The next smaller plan and the rung that leads to it, or None at the ladder's foot.

    A picture that did not fit while it was decoded is helped by the VAE's rungs first: they come before
    ``smaller_batch`` then, and nothing that was denoised is lost.
    """
    ladder: list[Callable[[MemoryPlan], Iterator[tuple[MemoryPlan, Rung]]]] = [_smaller_batch, _smaller_vae]
    if phase == "decode":
        ladder.reverse()
    if can_offload:
        ladder.append(_offload)
    if on_oom == "degrade":
        ladder += [_smaller_picture, _fewer_steps]
    return next((step for rung in ladder for step in rung(plan)), None)


def _smaller_batch(plan: MemoryPlan) -> Iterator[tuple[MemoryPlan, Rung]]:
    if plan.batch > 1:
        yield replace(plan, batch=plan.batch // 2), Rung("smaller_batch", True)


def _smaller_vae(plan: MemoryPlan) -> Iterator[tuple[MemoryPlan, Rung]]:
    if plan.vae == "whole" and plan.batch > 1:
        yield replace(plan, vae="sliced"), Rung("sliced_vae", True)
    elif plan.vae != "tiled":  # slices of a batch of one are the whole again
        yield replace(plan, vae="tiled"), Rung("tiled_vae", True)


def _offload(plan: MemoryPlan) -> Iterator[tuple[MemoryPlan, Rung]]:
    if plan.weights == "resident":
        yield replace(plan, weights="offload"), Rung("model_offload", True)


def _smaller_picture(plan: MemoryPlan) -> Iterator[tuple[MemoryPlan, Rung]]:
    """Both sides by the same factor, so that the aspect stays as near as multiples of 8 allow."""
    shorter = min(plan.width, plan.height)
    if shorter <= plan.smallest_side:
        return
    factor = max(_SHRINK, plan.smallest_side / shorter)
    width, height = (max(_floored(side * factor), plan.smallest_side) for side in (plan.width, plan.height))
    yield replace(plan, width=width, height=height), Rung("smaller_picture", False, {"width": width, "height": height})


def _fewer_steps(plan: MemoryPlan) -> Iterator[tuple[MemoryPlan, Rung]]:
    steps = max(plan.steps // 2, _FEWEST_STEPS)
    if steps < plan.steps:
        yield replace(plan, steps=steps), Rung("fewer_steps", False, {"num_inference_steps": steps})


def _floored(side: float) -> int:
    return int(side) // GRAIN * GRAIN
