"""Feature reuse: what a UNet's deep layers made of the latents in one look serves in the looks after it.

From one step to the next the output of the inner blocks changes little, that of the outermost layers much. So the whole
UNet is computed in every Nth look alone, and in those between only its outermost layers, on the features that the last
whole look left (DeepCache: Ma et al. 2023, https://arxiv.org/abs/2312.00858).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import Module, ModuleList

from darkroom.events import Warned
from darkroom.job import Job

OUTERMOST = 2
"""So many layers of the last block are computed in every look, and of the first block one less."""

_FIRST, _LAST = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
"""The kinds of first and last block whose layers can be computed by themselves."""


def reuses(job: Job) -> bool:
    """Whether a job asks for it."""
    return (job.reuse_features or 1) > 1


def looking(unet: Any, job: Job) -> Any:
    """The UNet as one pass of a job calls it: itself, or one that reuses its features where the job asks for that."""
    return FeatureReuse(unet, job.reuse_features or 1) if reuses(job) else unet


def can_reuse(unet: Any) -> bool:
    """Whether it is built of blocks that are known here."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return (
        isinstance(unet, UNet2DConditionModel)
        and type(unet.down_blocks[0]).__name__ in _FIRST
        and type(unet.up_blocks[-1]).__name__ in _LAST
    )


class FeatureReuse:
    """A UNet for one pass, called as it is itself. Nothing of it stays behind in the UNet.

    All of it is computed in every Nth look, and in the first of another batch: guidance begins or ends there.
    """

    def __init__(self, unet: Any, every: int, outermost: int = OUTERMOST) -> None:
        self._unet, self._every = unet, every
        layers = unet.up_blocks[-1].resnets
        self._entrance = layers[-min(outermost, len(layers))]
        """Where the way from the deep layers meets the outermost ones."""
        self._features = _Features()
        self._outer = _outermost(unet, min(outermost, len(layers)), self._features)
        self._looks = 0
        """Since all of it was computed, that one counted."""

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> Any:
        """As the UNet's."""
        kept = self._features.kept
        if kept is not None and len(kept) == len(sample) and self._looks < self._every:
            self._looks += 1
            return self._outer(sample, timestep, **conditions)
        self._looks = 1
        watch = self._entrance.register_forward_pre_hook(self._keep)
        try:
            return self._unet(sample, timestep, **conditions)
        finally:
            watch.remove()

    def _keep(self, layer: Module, given: tuple[torch.Tensor, ...]) -> None:
        """What comes from below, without what comes from beside: the last channels, as many as the first block has."""
        beside = self._unet.config.block_out_channels[0]
        self._features.kept = given[0][:, :-beside].clone()


class _Features(Module):
    """Stands in the deep layers' place, with what they made last."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: torch.Tensor | None = None

    def forward(self, *given: Any, **conditions: Any) -> torch.Tensor | None:
        return self.kept


def _outermost(unet: Any, layers: int, features: Module) -> Any:
    """The same UNet, weights and all, with the deep layers left out: its own forward finds its way through the rest."""
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    return _with(
        unet,
        down_blocks=ModuleList([_with(first, **_layers(first, slice(layers - 1)), downsamplers=None)]),
        mid_block=features,
        up_blocks=ModuleList([_with(last, **_layers(last, slice(-layers, None)))]),
    )


def _layers(block: Any, some: slice) -> dict[str, Module]:
    return {name: getattr(block, name)[some] for name in ("resnets", "attentions") if hasattr(block, name)}


def _with(module: Any, **children: Module | None) -> Any:
    """A copy of a module that shares all with it but these children."""
    other = copy.copy(module)
    other.__dict__["_modules"] = {**module._modules, **children}
    return other


def unfit(unet: Any, job: Job) -> Warned | None:
    """That a job asks for it and its model cannot."""
    if not reuses(job) or can_reuse(unet):
        return None
    return Warned(
        "features_not_reused",
        f'The denoiser of "{job.model}" is none whose features darkroom can reuse: every step computed all of it',
    )
