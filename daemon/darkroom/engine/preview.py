"""What a picture will be, while it is denoised: small, rough, and next to free.

The UNet's prediction says at each step which picture it has in mind. A linear map makes colours of its latents, one for
each position; so much of a VAE is linear. For VAEs of no known family there are no previews.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from darkroom.engine.pipeline import Pipeline

SOONEST_S = 1.0
"""So many seconds at least are between two previews, and before the first."""

SHARE = 100
"""A preview that took t seconds is not followed by another within this many t."""

FIRST = 0.2
"""Before this share of the steps there is nothing to be seen but a blur."""

SIDE = 256
"""The longer side of a preview, in pixels."""

Colors = tuple[tuple[float, float, float], ...]
"""How much red, green and blue each channel of the latents adds, and last what there is without any; 1 is full."""

_COLORS: dict[tuple[int, float], Colors] = {
    # https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204, for pixels from -1 to 1
    (512, 0.18215): (
        (0.149, 0.1035, 0.104),
        (0.0935, 0.143, 0.0865),
        (-0.079, 0.0945, 0.132),
        (-0.092, -0.1355, -0.2365),
        (0.5, 0.5, 0.5),
    ),
    # diffusers' documentation, "Pipeline callbacks", for pixels from 0 to 255
    (512, 0.13025): (
        (60 / 255, 60 / 255, 60 / 255),
        (-60 / 255, -5 / 255, 10 / 255),
        (25 / 255, 15 / 255, -5 / 255),
        (-70 / 255, -50 / 255, -35 / 255),
        (150 / 255, 140 / 255, 130 / 255),
    ),
    # tools/seedling/colors.py
    (64, 0.18215): (
        (-0.0998, 0.0949, -0.3267),
        (0.1520, -0.0756, 0.1637),
        (0.0070, 0.2139, 0.1352),
        (-0.1717, -0.2145, 0.1895),
        (0.5683, 0.4846, 0.4513),
    ),
}
"""By the width of the VAE's last level and its scaling factor, which tell Stable Diffusion 1 and 2, SDXL and the
bundled model from each other and from others."""


def colors_of(vae_config: Any) -> Colors | None:
    """The map for a VAE; None where none is known."""
    return _COLORS.get((vae_config["block_out_channels"][-1], round(vae_config.get("scaling_factor", 0.0), 5)))


@dataclass(frozen=True)
class Sight:
    """What the UNet was shown, noise and picture mixed to unit deviation, and what it predicted."""

    latents: torch.Tensor
    timestep: torch.Tensor
    predicted: torch.Tensor
    pictures: int | None = None
    """How many of the batch are to be seen; None is all of them."""


class Previews:
    """The previews of one job. They look over the denoiser's shoulder, and never fail."""

    def __init__(self, pipeline: Pipeline, *, wanted: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._colors = colors_of(pipeline.vae_config) if wanted else None
        self._clock = clock
        self._next = clock() + SOONEST_S
        self._sight: Sight | None = None

    def watch(
        self, denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], pictures: int | None = None
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The denoiser, watched over the first so many ``pictures`` of its batch."""
        if self._colors is None:
            return denoiser

        def watched(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            predicted = denoiser(latents, timestep)
            self._sight = Sight(latents, timestep, predicted, pictures)
            return predicted

        return watched

    def due(self, scheduler: Any, done: int, steps: int) -> bytes | None:
        """A JPEG of the batch, side by side, after ``done`` of the scheduler's ``steps``; None where it is not time."""
        begin = self._clock()
        if self._sight is None or self._colors is None or begin < self._next or not FIRST * steps <= done < steps:
            return None
        try:
            data = _jpeg(pixels(expected(self._sight, scheduler), self._colors))
        except Exception:  # a sampler of another kind: a preview is never worth a job
            self._colors = None
            return None
        finally:
            self._sight = None
        end = self._clock()
        self._next = end + max(SOONEST_S, SHARE * (end - begin))
        return data


@torch.inference_mode()
def expected(sight: Sight, scheduler: Any) -> torch.Tensor:
    """The latents without noise that the prediction amounts to; whatever the sampler, since all show the UNet the same.

    With α² the share of the picture and σ² that of the noise, x = α·picture + σ·noise and v = α·noise - σ·picture.
    """
    kept = _kept(scheduler, float(sight.timestep))
    alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
    latents, predicted = sight.latents[: sight.pictures], sight.predicted[: sight.pictures]
    match scheduler.config.prediction_type:
        case "epsilon":
            return (latents - sigma * predicted) / max(alpha, 1e-3)
        case "v_prediction":
            return alpha * latents - sigma * predicted
        case "sample":
            return predicted
    raise ValueError(scheduler.config.prediction_type)


def _kept(scheduler: Any, timestep: float) -> float:
    """α² at a timestep, which may lie between two that the model was trained on."""
    table = scheduler.alphas_cumprod
    low = min(max(int(timestep), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    return float(table[low]) + (float(table[high]) - float(table[low])) * min(max(timestep - low, 0.0), 1.0)


@torch.inference_mode()
def pixels(latents: torch.Tensor, colors: Colors) -> torch.Tensor:
    """Pictures side by side, one pixel for each position of the latents: (height, pictures · width, 3), uint8, CPU."""
    table = torch.tensor(colors, dtype=latents.dtype, device=latents.device)
    mixed = torch.einsum("nchw,cr->hnwr", latents, table[:-1]) + table[-1]
    return mixed.mul(255).clamp(0, 255).to(torch.uint8).flatten(1, 2).cpu()


def _jpeg(small: torch.Tensor) -> bytes:
    from PIL import Image

    image = Image.fromarray(small.numpy())
    factor = max(1.0, SIDE / max(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    return file.getvalue()
