"""How a job is fitted into memory: what it needs, the first plan, and the next smaller one. Pure: no torch here.

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

DOUBT = 2.0
"""An estimate is at most this many times too small or too large (docs/memory.md has the measurements)."""

FLOW_TENSORS = 15
"""Tensors of a transformer's width that lie in memory at the highest peak of its pass, for one position."""

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


def _smaller_picture(plan: MemoryPlan, ladder: Ladder) -> Step:
    """Both sides by the same factor, so that the aspect stays as near as the grain allows."""
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
    (frozenset({"denoise", "decode"}), _smaller_picture),
    (frozenset({"denoise"}), _fewer_steps),
)
"""Where memory may have run out for a rung to help, and the rung."""


@dataclass(frozen=True)
class Need:
    """What a model needs, in bytes, as far as it can be told from its configuration and the size of its files.

    Activations were measured on a CPU for five architectures, in float32 and bfloat16 (docs/memory.md): at the
    highest peak of a UNet's pass some 25 tensors of its first level's width lie in memory, of a transformer's some 15
    of its only one, of a decoding some 9.
    """

    texts: int
    """Weights of the text encoders; so are the next two."""
    denoiser: int
    vae: int
    workspace: int
    """The largest layer's weights, which the libraries' kernels lay out anew."""
    position: int
    """Activations for one position of one picture's latents, both halves of the guidance together."""
    scores: float
    """Attention's scores for one pair of positions of one picture, all heads; 0 where a kernel does without."""
    heads: int
    pixel: int
    """Activations for one pixel that is decoded."""
    reduction: int = 8
    """Pixels to a position, along a side."""

    @classmethod
    def of(
        cls,
        unet: Mapping[str, Any],
        vae: Mapping[str, Any],
        weights: Mapping[str, int],
        *,
        largest: int,
        itemsize: int,
        vae_itemsize: int,
        guided: bool = True,
        slices_attention: bool = False,
    ) -> Need:
        """From the content of a UNet's and a VAE's config.json; ``weights`` in bytes for texts, denoiser and vae.

        ``itemsize`` is that of the numbers the UNet computes with, in bytes; so is ``vae_itemsize``.
        """
        halves = 2 if guided else 1
        first_width, vae_width = unet["block_out_channels"][0], vae["block_out_channels"][0]
        heads, level = _first_attention(unet)
        return cls(
            texts=weights["texts"],
            denoiser=weights["denoiser"],
            vae=weights["vae"],
            workspace=largest,
            position=25 * halves * first_width * itemsize,
            # the scores and their softmax; each level has a quarter of the positions of the one before
            scores=2 * halves * heads * itemsize / 16**level if slices_attention else 0,
            heads=halves * heads,
            pixel=9 * vae_width * vae_itemsize,
            reduction=2 ** (len(vae["block_out_channels"]) - 1),
        )

    @classmethod
    def of_flow(
        cls,
        transformer: Mapping[str, Any],
        vae: Mapping[str, Any],
        weights: Mapping[str, int],
        *,
        largest: int,
        itemsize: int,
        guided: bool,
        tokens: int,
    ) -> Need:
        """The same for a transformer (SD 3, Flux), which attends to ``tokens`` of the prompt besides the picture's.

        Four positions of latents are one of the picture's.
        """
        halves = 2 if guided else 1
        heads = int(transformer["num_attention_heads"])
        token = FLOW_TENSORS * halves * heads * int(transformer["attention_head_dim"]) * itemsize
        return cls(
            texts=weights["texts"],
            denoiser=weights["denoiser"],
            vae=weights["vae"],
            workspace=largest + tokens * token,
            position=token // 4,
            scores=0,
            heads=halves * heads,
            pixel=9 * vae["block_out_channels"][0] * itemsize,
            reduction=2 ** (len(vae["block_out_channels"]) - 1),
        )

    def phases(self, plan: MemoryPlan) -> dict[Phase, int]:
        """The peak of each phase, weights included."""
        resident = plan.weights == "resident"
        texts = 0 if plan.texts == "dropped" else self.texts
        pixels = plan.width * plan.height
        positions = pixels // self.reduction**2
        tile = min(TILE, max(8, max(plan.width, plan.height) // self.reduction // 8 * 4)) * self.reduction
        at_once = {"whole": plan.batch * pixels, "sliced": pixels, "tiled": min(tile * tile, pixels)}[plan.vae]
        scores = plan.batch * positions**2 * self.scores
        if plan.attention == "sliced":
            scores /= plan.batch * self.heads
        most = self.workspace if plan.weights == "layers" else self.texts + self.denoiser
        denoiser, encode = min(most, self.denoiser), min(most, self.texts)
        return {
            "encode": encode + (self.denoiser + self.vae if resident else 0),
            "denoise": denoiser
            + (texts + self.vae if resident else 0)
            + self.workspace
            + plan.batch * positions * self.position
            + int(scores),
            "decode": self.vae
            + (texts + self.denoiser if resident else 0)
            + at_once * self.pixel
            + plan.batch * pixels * 12,  # the pictures themselves, float32
        }

    def look(self, plan: MemoryPlan) -> int:
        """Activations of one pass through the denoiser."""
        return self.workspace + plan.batch * (plan.width * plan.height // self.reduction**2) * self.position

    def peak(self, plan: MemoryPlan) -> int:
        """The highest of all phases."""
        return max(self.phases(plan).values())


def first_plan(full: MemoryPlan, ladder: Ladder, need: Need, room: float | None) -> MemoryPlan:
    """The largest plan that should fit into ``room`` bytes, the model's own weights in them.

    Never smaller than what changes neither size nor steps: only a real want of memory may do that. Where the room is
    not known all is tried.
    """
    plan = replace(full, alone=True)
    lossless = replace(ladder, on_oom="fail")
    while room is not None:
        phases = need.phases(plan)
        worst: Phase = max(phases, key=lambda phase: phases[phase])
        found = step_down(plan, lossless, worst) if phases[worst] > room else None
        if found is None:
            break
        plan = found[0]
    return replace(plan, alone=full.alone)


def largest_size(plan: MemoryPlan, need: Need, room: int, grain: int = GRAIN) -> tuple[int, int] | None:
    """Width and height, in the plan's aspect, that ``plan`` should fit into ``room`` bytes with; None if none does."""
    ladder = Ladder(on_oom="degrade", grain=grain)
    while need.peak(plan) > room:
        found = _smaller_picture(plan, ladder)
        if found is None:
            return None
        plan = found[0]
    return plan.width, plan.height


def _first_attention(unet: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of the first level that attends, and which level that is, from 0.

    diffusers calls the number of heads ``attention_head_dim``.
    """
    kinds = unet.get("down_block_types") or [""]
    level = next((number for number, kind in enumerate(kinds) if "Attn" in kind), 0)
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim") or 8
    return int(heads[level] if isinstance(heads, list | tuple) else heads), level
