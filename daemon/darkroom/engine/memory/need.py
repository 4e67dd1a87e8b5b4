"""What a model needs in memory, and which plan should fit into what there is. Pure: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from darkroom.engine.memory.plan import GRAIN, TILE, Ladder, MemoryPlan, Phase, smaller_picture, step_down

DOUBT = 2.0
"""An estimate is at most this many times too small or too large (docs/memory.md has the measurements)."""

FLOW_TENSORS = 15
"""Tensors of a transformer's width that lie in memory at the highest peak of its pass, for one position."""


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
        found = smaller_picture(plan, ladder)
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
