"""The arithmetic of making a picture: noise, the guided UNet, a sampler's step, the VAE. Tensors in, tensors out.

Latents are float32 throughout; only what goes into the UNet and the VAE is in the model's own number format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from darkroom.engine.memory.plan import TILE, Vae
from darkroom.engine.pipeline import DECODER, Pipeline
from darkroom.engine.readings import Conditioning
from darkroom.engine.sampling.samplers import advance
from darkroom.errors import RenderFailed
from darkroom.job import Job


def is_guided(pipeline: Pipeline, job: Job) -> bool:
    """Whether there is classifier-free guidance: not at a scale of 1 or less, nor for UNets that were distilled."""
    return job.guidance_scale > 1 and not pipeline.distilled


def noise(pipeline: Pipeline, width: int, height: int, generators: list[torch.Generator]) -> torch.Tensor:
    """Standard normal noise, (pictures, channels, height / 8, width / 8), float32, each from its own generator.

    Made on the CPU, so that it does not depend on the GPU's make.
    """
    reduction = pipeline.reduction
    shape = (1, pipeline.vae_config.get("latent_channels", 4), height // reduction, width // reduction)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(pipeline.device)


class Denoiser:
    """The UNet with everything but latents and time already in its hands.

    ``unet`` is the pipeline's, or what is called in its place; ``size`` is width and height in pixels; ``beside`` are
    channels that it takes with the latents, if it does.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        unet: Callable[..., Any],
        job: Job,
        conditioning: Conditioning,
        size: tuple[int, int],
        batch: int,
        beside: torch.Tensor | None = None,
    ) -> None:
        positive, negative = conditioning.positive, conditioning.negative
        self._unet = unet
        self._dtype = pipeline.dtype
        self._scale = job.guidance_scale
        self._guided = negative is not None
        texts = [positive] if negative is None else [negative, positive]
        self._beside = None if beside is None else beside.repeat(len(texts), 1, 1, 1)
        self._tokens = torch.cat([text.tokens.expand(batch, -1, -1) for text in texts])
        self._added: dict[str, torch.Tensor] | None = None
        if positive.pooled is not None:
            sides = (size[1], size[0])
            times = torch.tensor([[*sides, 0, 0, *sides]], dtype=self._dtype, device=pipeline.device)
            self._added = {
                "text_embeds": torch.cat([_pooled(text.pooled).expand(batch, -1) for text in texts]),
                "time_ids": times.expand(batch * len(texts), -1),
            }
        self._timestep_cond: torch.Tensor | None = None
        if pipeline.unet.config.time_cond_proj_dim is not None:
            embedded = _guidance_embedding(job.guidance_scale, pipeline.unet.config.time_cond_proj_dim)
            self._timestep_cond = embedded.expand(batch, -1).to(pipeline.device, self._dtype)

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the model predicts (noise or velocity, as it was trained), guided, float32, in the latents' shape."""
        doubled = torch.cat([latents, latents]) if self._guided else latents
        if self._beside is not None:
            doubled = torch.cat([doubled, self._beside], dim=1)
        predicted: torch.Tensor = self._unet(
            doubled.to(self._dtype),
            timestep.float() if timestep.dtype == torch.float64 else timestep,  # MPS has no float64
            encoder_hidden_states=self._tokens,
            timestep_cond=self._timestep_cond,
            added_cond_kwargs=self._added,
            return_dict=False,
        )[0].float()
        if not self._guided:
            return predicted
        without, with_prompt = predicted.chunk(2)
        return without + self._scale * (with_prompt - without)


@torch.inference_mode()
def step(
    denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Any,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    arguments: Mapping[str, Any],
) -> torch.Tensor:
    """The latents one step less noisy. ``arguments`` are the sampler's own (``samplers.step_arguments``)."""
    predicted = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
    stepped: torch.Tensor = advance(scheduler, predicted, timestep, latents, arguments)
    return stepped


@dataclass(frozen=True)
class Posterior:
    """A picture in latents, as the VAE has it: a distribution. (1, channels, height / 8, width / 8), on the CPU."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Latents drawn from it, as all pipelines do."""
        return self.mean + self.deviation * torch.randn(self.mean.shape, generator=generator)


@torch.inference_mode()
def encode_picture(pipeline: Pipeline, pixels: torch.Tensor, vae: Vae) -> tuple[Posterior, bool]:
    """Pixels (1, 3, height, width) in [-1, 1] to latents as the UNet knows them; and whether float32 had to help.

    Raises RenderFailed where that does not help either.
    """
    dtype = torch.float32 if pipeline.vae_upcast else pipeline.dtype
    posterior = _encode(pipeline, pixels, vae, dtype)
    helped = not _is_finite(posterior) and dtype != torch.float32
    if helped:
        posterior = _encode(pipeline, pixels, vae, torch.float32)
    if not _is_finite(posterior):
        raise RenderFailed("The picture that the job begins with cannot be encoded; the model's VAE may be damaged")
    return posterior, helped


def _encode(pipeline: Pipeline, pixels: torch.Tensor, kind: Vae, dtype: torch.dtype) -> Posterior:
    with _vae(pipeline, kind, max(pixels.shape[-2:]) // pipeline.reduction, dtype) as vae:
        found = vae.encode(pixels.to(pipeline.device, dtype, memory_format=pipeline.vae_format)).latent_dist
    shift, factor = _scaling(vae.config, found.mean.device)
    return Posterior(((found.mean.float() - shift) * factor).cpu(), (found.std.float() * factor).cpu())


def _is_finite(posterior: Posterior) -> bool:
    return bool(torch.isfinite(posterior.mean).all() and torch.isfinite(posterior.deviation).all())


def decoding_part(pipeline: Pipeline, vae: Vae, by: str) -> str:
    """Which part it is that decodes, ``by`` being ``vae`` or ``tiny_vae``."""
    return DECODER if pipeline.served and by == "vae" and vae != "tiled" else by


@torch.inference_mode()
def decode(
    pipeline: Pipeline, latents: torch.Tensor, vae: Vae, *, may_be_black: bool, by: str = "vae"
) -> tuple[torch.Tensor, bool]:
    """Latents to pictures: (pictures, height, width, 3), uint8, on the CPU; and whether float32 had to help.

    ``by`` is the part that does it, ``vae`` or ``tiny_vae``. Raises Unserved where OpenVINO fails, which decodes for
    the ``vae``, but not by tiles, nor a second time.

    What comes out black or as no number at all is decoded again in float32. Raises RenderFailed where that does not
    help, except for black where it may be meant.
    """
    dtype = torch.float32 if pipeline.vae_upcast and by == "vae" else pipeline.dtype
    served = decoding_part(pipeline, vae, by) == DECODER
    pixels = _decode_served(pipeline, latents) if served else _decode(pipeline, latents, vae, dtype, by)
    void = _is_void(pixels)
    helped = void and (served or dtype != torch.float32)
    if helped:
        pixels = _decode(pipeline, latents, vae, torch.float32, by)
        void = _is_void(pixels)
    if void and (pixels.isnan().any() or not may_be_black):
        raise RenderFailed(
            "The picture came out all black, with the VAE in float32 too; the model may be damaged, or the prompt, "
            "the sampler and its steps do not go together"
        )
    rounded: torch.Tensor = pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()
    return rounded, helped


def _decode(pipeline: Pipeline, latents: torch.Tensor, kind: Vae, dtype: torch.dtype, by: str) -> torch.Tensor:
    """Pictures in [0, 1]: (pictures, 3, height, width), float32."""
    with _vae(pipeline, kind, max(latents.shape[-2:]), dtype, by) as vae:
        shift, factor = _scaling(vae.config, latents.device)
        latents = (latents / factor + shift).to(pipeline.device, dtype, memory_format=pipeline.vae_format)
        pixels: torch.Tensor = vae.decode(latents).sample
    return pixels.float().div(2).add_(0.5).clamp_(0, 1)


def _decode_served(pipeline: Pipeline, latents: torch.Tensor) -> torch.Tensor:
    """The same by OpenVINO. Raises Unserved."""
    shift, factor = _scaling(SimpleNamespace(**{"scaling_factor": 0.18215, **pipeline.vae_config}), latents.device)
    pixels: torch.Tensor = pipeline.part(DECODER).decode(latents / factor + shift)
    return pixels.div(2).add_(0.5).clamp_(0, 1)


@contextmanager
def _vae(pipeline: Pipeline, kind: Vae, side: int, dtype: torch.dtype, name: str = "vae") -> Iterator[Any]:
    """The VAE set up for pictures of a longer side of so many latents, in this number format while it is in use."""
    vae = pipeline.part(name)
    if kind == "tiled":
        # a quarter of each tile overlaps the next: where that is no whole number, what is put together is too large
        tile = min(TILE, max(8, side // 8 * 4))
        vae.tile_latent_min_size, vae.tile_sample_min_size = tile, tile * pipeline.reduction
    vae.use_tiling = kind == "tiled"
    if dtype != pipeline.dtype:
        vae.to(dtype=dtype)
    try:
        yield vae
    finally:
        if dtype != pipeline.dtype:
            vae.to(dtype=pipeline.dtype)


def _scaling(config: Any, device: torch.device) -> tuple[Any, Any]:
    """``shift`` and ``factor``: latents as the UNet knows them, of unit deviation, are (the VAE's - shift) * factor."""
    if getattr(config, "latents_mean", None) is None or config.latents_std is None:  # a tiny VAE knows of neither
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
    mean, deviation = (
        torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
    )
    return mean, config.scaling_factor / deviation


def _is_void(pixels: torch.Tensor) -> bool:
    """Whether one of the pictures is black everywhere, or holds a NaN: then that is its largest number too."""
    return not bool((pixels.flatten(1).amax(1) * 255 >= 0.5).all())


def _pooled(pooled: torch.Tensor | None) -> torch.Tensor:
    assert pooled is not None, "one text has a pooled embedding, the other has none"
    return pooled


def _guidance_embedding(scale: float, size: int) -> torch.Tensor:
    """Sines and cosines of the guidance scale, (1, size), for UNets that were distilled with guidance built in.

    As in https://github.com/google-research/vdm, model_vdm.py.
    """
    half = size // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10_000.0) / (half - 1)))
    angles = (scale - 1) * 1000.0 * frequencies[None]
    embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedded, (0, size % 2))
