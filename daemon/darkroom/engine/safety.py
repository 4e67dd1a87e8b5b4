"""A look at each finished picture, and what is done with one that should not be seen.

The seam is ``Checker``: pixels in, a verdict per picture out. The real one is the CLIP checker that Stable Diffusion 1
came with (diffusers' StableDiffusionSafetyChecker); the fake one is for tests, of ours and of other tools.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from darkroom.config import Safety
from darkroom.errors import RenderFailed
from darkroom.events import Warned

FAKE = "fake"
_COARSE = 12
"""So many blocks along its longer side are left of a picture that is blurred: colours, and nothing to recognise."""


class Checker(Protocol):
    """Part of a model like its UNet: it can be loaded, moved and let go."""

    def flagged(self, pixels: torch.Tensor) -> list[bool]:
        """For each of (pictures, height, width, 3), uint8, on the CPU, whether it should not be seen."""
        ...


class ClipChecker(torch.nn.Module):
    """The checker beside a model, ``safety_checker/``, which compares a picture with concepts that it knows."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    @torch.inference_mode()
    def flagged(self, pixels: torch.Tensor) -> list[bool]:
        """See ``Checker``."""
        from PIL import Image
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        side = self.module.config.vision_config.image_size
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )  # mean and deviation are CLIP's own
        weight = next(self.module.parameters())
        seen = processor([Image.fromarray(picture.numpy()) for picture in pixels], return_tensors="pt").pixel_values
        _, found = self.module(clip_input=seen.to(weight.device, weight.dtype), images=pixels.clone())
        return [bool(one) for one in found]


class FakeChecker(torch.nn.Module):
    """Flags every picture in which red outweighs green and blue together."""

    def flagged(self, pixels: torch.Tensor) -> list[bool]:
        """See ``Checker``."""
        red, green, blue = pixels.float().mean((1, 2)).unbind(1)
        return (red > green + blue).tolist()


def censored(
    checker: Checker, wanted: Safety, pixels: torch.Tensor, indices: list[int]
) -> tuple[torch.Tensor, list[Warned]]:
    """The pictures as they may be shown, and a warning for each that was blurred.

    ``pixels`` are (pictures, height, width, 3), uint8; ``indices`` are their places in the job, from 0. Raises
    RenderFailed where one is flagged and that is to fail the job.
    """
    found = [place for place, flagged in enumerate(checker.flagged(pixels)) if flagged]
    if not found:
        return pixels, []
    if wanted == "fail":
        raise RenderFailed(
            f"The safety checker flagged picture {indices[found[0]] + 1}; it was not kept. Ask for something else, or "
            "try another seed"
        )
    pixels = pixels.clone()
    for place in found:
        pixels[place] = blurred(pixels[place])
    return pixels, [
        Warned("picture_blurred", f"Picture {indices[place] + 1} was blurred: the safety checker flagged it")
        for place in found
    ]


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    """A picture (height, width, 3), uint8, of which only a few soft blotches are left."""
    height, width = pixels.shape[:2]
    share = _COARSE / max(height, width)
    coarse = (max(1, round(height * share)), max(1, round(width * share)))
    planes = pixels.permute(2, 0, 1)[None].float()
    few = torch.nn.functional.adaptive_avg_pool2d(planes, coarse)
    soft = torch.nn.functional.interpolate(few, (height, width), mode="bicubic", align_corners=False)
    return soft[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
