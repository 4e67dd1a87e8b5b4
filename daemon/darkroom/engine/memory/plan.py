"""How a job is fitted into memory: a plan, and the next smaller one. Pure: no torch here.

The ladder, from the first rung to the last. The rungs above the line change neither size nor steps::

    freed_memory          the same again, once, after all that is not at work was let go
    smaller_batch         half as many pictures at a time
    sliced_vae            pictures of a batch decoded one by one
    tiled_vae             a picture decoded in overlapping tiles, blended
    sliced_attention      one head of attention at a time (only where no memory-efficient kernel serves)
    dropped_text_encoders the text encoders leave memory when the prompt is read
    model_offload         only the part that is at work is in memory
    sequential_offload    only the layer that is at work is in memory (GPU only)
    new_process           the same in a process that has done no job before (``executors.local``)
    --------------------- below only with on_oom = "degrade"
    smaller_picture       three quarters of width and height
    fewer_steps           half the steps

What leaves a GPU's memory waits in the machine's; what leaves a CPU's is read from the disk again when it is needed.
A rung that cannot help where memory ran out (tiles of the VAE while the UNet is at work) is passed over: each attempt
may take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Vae = Literal["whole", "sliced", "tiled"]
Attention = Literal["fused", "sliced"]
Texts = Literal["kept", "dropped"]
Weights = Literal["resident", "parts", "layers"]
Phase = Literal["load", "encode", "denoise", "decode"]
OnOom = Literal["degrade", "fail"]

CHOICES: Mapping[str, Any] = {"vae": Vae, "attention": Attention, "texts": Texts, "weights": Weights}
"""What a plan may choose besides numbers."""

GRAIN = 8
"""Width and height in pixels are multiples of this, or of more."""

TILE = 64
"""Side of the VAE's tiles in latents: 512 pixels."""

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
    attention: Attention = "fused"
    texts: Texts = "kept"
    weights: Weights = "resident"
    alone: bool = False
    """All that this job does not need was let go of."""
    smallest_side: int = 64

    def __str__(self) -> str:
        pictures = "1 picture" if self.batch == 1 else f"{self.batch} pictures"
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        more = {
            ", attention sliced": self.attention == "sliced",
            ", text encoders dropped": self.texts == "dropped" and self.weights == "resident",
            ", one part in memory at a time": self.weights == "parts",
            ", one layer in memory at a time": self.weights == "layers",
        }
        return f"{pictures} of {self.width}×{self.height} at a time, {steps}, VAE {self.vae}" + "".join(
            text for text, true in more.items() if true
        )

    def like(self, other: MemoryPlan) -> MemoryPlan:
        """This plan's size and steps, made in the way of another, in no larger batches."""
        return replace(
            self,
            batch=min(self.batch, other.batch),
            vae=other.vae,
            attention=other.attention,
            texts=other.texts,
            weights=other.weights,
        )

    @classmethod
    def restored(cls, content: Any) -> MemoryPlan:
        """A plan from what ``dataclasses.asdict`` made of it. Raises ValueError for anything else."""
        content = content if isinstance(content, dict) else {}
        numbers = {key: content.get(key) for key in ("batch", "width", "height", "steps", "smallest_side")}
        choices = {key: content.get(key) for key in CHOICES}
        sound = all(type(number) is int and number > 0 for number in numbers.values()) and all(
            choices[key] in get_args(kind) for key, kind in CHOICES.items()
        )
        if not sound:
            raise ValueError("not a memory plan")
        return cls(**numbers, **choices, alone=content.get("alone") is True)


@dataclass(frozen=True)
class Rung:
    """A step down. ``lossless`` means that size and steps are those asked for; ``changes`` what they are now."""

    name: str
    lossless: bool = True
    changes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ladder:
    """Which rungs there are: what the job allows, and what the device has a use for."""

    on_oom: OnOom = "fail"
    slices_attention: bool = False
    """No memory-efficient kernel serves, and the scores of all heads would lie in memory at once."""
    streams_layers: bool = False
    """There is a memory besides the device's own to stream layers from."""
    grain: int = GRAIN
    """Width and height in pixels are multiples of this."""


def step_down(plan: MemoryPlan, ladder: Ladder, phase: Phase | None = None) -> tuple[MemoryPlan, Rung] | None:
    """The next smaller plan and the rung that leads to it, or None at the ladder's foot.

    ``phase`` is where memory ran out; None where that is not known, and then every rung counts.
    """
    for helps, step in _RUNGS:
        if phase is None or phase in helps:
            found = step(plan, ladder)
            if found is not None:
                return found
    return None


def foot(plan: MemoryPlan, ladder: Ladder, phase: Phase | None = None) -> tuple[MemoryPlan, list[Rung]]:
    """The smallest plan that changes neither size nor steps, and the rungs down to it."""
    rungs = []
    lossless = replace(ladder, on_oom="fail")
    while (found := step_down(plan, lossless, phase)) is not None:
        plan, rung = found
        rungs.append(rung)
    return plan, rungs


def between(full: MemoryPlan, plan: MemoryPlan) -> list[Rung]:
    """The rungs from ``full`` down to ``plan``, of the same size and steps, each once; batches are not counted."""
    rungs = []
    if plan.vae != full.vae:
        rungs.append(Rung(f"{plan.vae}_vae"))
    if plan.attention != full.attention:
        rungs.append(Rung("sliced_attention"))
    if plan.weights != full.weights:
        rungs.append(Rung("model_offload" if plan.weights == "parts" else "sequential_offload"))
    elif plan.texts != full.texts:
        rungs.append(Rung("dropped_text_encoders"))
    return rungs


Step = tuple[MemoryPlan, Rung] | None


def _freed_memory(plan: MemoryPlan, ladder: Ladder) -> Step:
    return None if plan.alone else (replace(plan, alone=True), Rung("freed_memory"))


def _smaller_batch(plan: MemoryPlan, ladder: Ladder) -> Step:
    return (replace(plan, batch=plan.batch // 2), Rung("smaller_batch")) if plan.batch > 1 else None


def _sliced_vae(plan: MemoryPlan, ladder: Ladder) -> Step:
    if plan.vae != "whole" or plan.batch == 1:  # slices of a batch of one are the whole again
        return None
    return replace(plan, vae="sliced"), Rung("sliced_vae")


def _tiled_vae(plan: MemoryPlan, ladder: Ladder) -> Step:
    return (replace(plan, vae="tiled"), Rung("tiled_vae")) if plan.vae != "tiled" else None


def _sliced_attention(plan: MemoryPlan, ladder: Ladder) -> Step:
    if plan.attention == "sliced" or not ladder.slices_attention:
        return None
    return replace(plan, attention="sliced"), Rung("sliced_attention")


def _dropped_text_encoders(plan: MemoryPlan, ladder: Ladder) -> Step:
    if plan.texts == "dropped" or plan.weights != "resident":
        return None
    return replace(plan, texts="dropped"), Rung("dropped_text_encoders")


def _model_offload(plan: MemoryPlan, ladder: Ladder) -> Step:
    if plan.weights != "resident":
        return None
    return replace(plan, weights="parts", texts="dropped"), Rung("model_offload")


def _sequential_offload(plan: MemoryPlan, ladder: Ladder) -> Step:
    if plan.weights == "layers" or not ladder.streams_layers:
        return None
    return replace(plan, weights="layers", texts="dropped"), Rung("sequential_offload")


def smaller_picture(plan: MemoryPlan, ladder: Ladder) -> Step:
    """Three quarters of it: both sides by the same factor, so that the aspect stays as near as the grain allows."""
    shorter = min(plan.width, plan.height)
    if ladder.on_oom != "degrade" or shorter <= plan.smallest_side:
        return None
    factor = max(_SHRINK, plan.smallest_side / shorter)
    width, height = (
        max(int(side * factor) // ladder.grain * ladder.grain, plan.smallest_side) for side in (plan.width, plan.height)
    )
    changes = {"width": width, "height": height}
    return replace(plan, width=width, height=height), Rung("smaller_picture", False, changes)


def _fewer_steps(plan: MemoryPlan, ladder: Ladder) -> Step:
    steps = max(plan.steps // 2, _FEWEST_STEPS)
    if ladder.on_oom != "degrade" or steps >= plan.steps:
        return None
    return replace(plan, steps=steps), Rung("fewer_steps", False, {"num_inference_steps": steps})


_RUNGS: tuple[tuple[frozenset[str], Callable[[MemoryPlan, Ladder], Step]], ...] = (
    (frozenset({"load", "encode", "denoise", "decode"}), _freed_memory),
    (frozenset({"denoise"}), _smaller_batch),
    (frozenset({"decode"}), _sliced_vae),
    (frozenset({"decode"}), _tiled_vae),
    (frozenset({"denoise"}), _sliced_attention),
    (frozenset({"load", "denoise", "decode"}), _dropped_text_encoders),
    (frozenset({"load", "encode", "denoise", "decode"}), _model_offload),
    (frozenset({"load", "encode", "denoise"}), _sequential_offload),
    (frozenset({"denoise", "decode"}), smaller_picture),
    (frozenset({"denoise"}), _fewer_steps),
)
"""Where memory may have run out for a rung to help, and the rung."""
