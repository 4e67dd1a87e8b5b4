"""A look at each finished picture, and what is done with one that should not be seen.

The seam is ``Checker``: pixels in, a verdict per picture out. The real one is the CLIP checker that Stable Diffusion 1
came with (diffusers' StableDiffusionSafetyChecker); the fake one is for tests, of ours and of other tools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from darkroom.config import Safety
from darkroom.errors import RenderFailed
from darkroom.events import Warned

if TYPE_CHECKING:
    from PIL.Image import Image

FAKE = "fake"
_COARSE = 12
"""So many blocks along its longer side are left of a picture that is blurred: colours, and nothing to recognise."""


class Checker(Protocol):
    """Part of a model like its UNet: it can be loaded, moved and let go."""

    def flagged(self, image: Image) -> bool:
        """Whether an RGB picture should not be seen."""
        ...


class ClipChecker(torch.nn.Module):
    """The checker beside a model, ``safety_checker/``, which compares a picture with concepts that it knows."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    @torch.inference_mode()
    def flagged(self, image: Image) -> bool:
        """See ``Checker``."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        side = self.module.config.vision_config.image_size
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )  # mean and deviation are CLIP's own
        weight = next(self.module.parameters())
        seen = processor(image, return_tensors="pt").pixel_values.to(weight.device, weight.dtype)
        _, found = self.module(clip_input=seen, images=torch.zeros(1))  # which it would blacken
        return bool(found[0])


class FakeChecker(torch.nn.Module):
    """Flags every picture in which red outweighs green and blue together."""

    def flagged(self, image: Image) -> bool:
        """See ``Checker``."""
        from PIL import ImageStat

        red, green, blue = ImageStat.Stat(image).mean
        return bool(red > green + blue)


def censored(checker: Checker, wanted: Safety, image: Image, index: int) -> tuple[Image, Warned | None]:
    """Picture ``index`` (from 0) as it may be shown, and a warning where it was blurred.

    Raises RenderFailed where it is flagged and that is to fail the job.
    """
    if not checker.flagged(image):
        return image, None
    if wanted == "fail":
        raise RenderFailed(
            f"The safety checker flagged picture {index + 1}; it was not kept. Ask for something else, or try another "
            "seed"
        )
    return blurred(image), Warned("picture_blurred", f"Picture {index + 1} was blurred: the safety checker flagged it")


def blurred(image: Image) -> Image:
    """A picture of the same size of which only a few soft blotches are left."""
    from PIL.Image import Resampling

    share = _COARSE / max(image.size)
    few = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), Resampling.BOX)
    return few.resize(image.size, Resampling.BICUBIC)
