"""What a pass of the sampling loop begins with: noise, or a picture that noise is added to, and a mask that keeps some.

A mask works in two ways. An ordinary model paints everywhere, and after each step what is not masked is put back, as
noisy as it is to be by then. A model for inpainting takes nine channels, and is shown with the noisy latents also the
mask and the picture without what is masked; asked without a mask it paints everything. In both ways the pixels that
are not masked are put back in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from darkroom.engine.pipeline import Pipeline
from darkroom.engine.sampling.diffusion import Posterior, noise
from darkroom.engine.sampling.samplers import add_noise
from darkroom.errors import FieldError, InvalidRequest, RenderFailed
from darkroom.inputs import images as pictures
from darkroom.job import Images, Job
from darkroom.job.passes import Pass

if TYPE_CHECKING:
    from PIL.Image import Image

PAINTED = 0.5
"""From how white on the mask counts as painted where it is one or the other: in latents."""


class Originals:
    """The picture and the mask that a job begins with, decoded, at whatever size they are asked for.

    Raises InvalidRequest for what cannot be decoded.
    """

    def __init__(self, job: Job, images: Images) -> None:
        self._picture = self._mask = None
        if job.init_image is not None:
            self._picture = _opened(images, "init_image", pictures.load)
            if job.mask_image is not None:
                self._mask = _opened(images, "mask_image", pictures.load_mask)
        extrema: Any = ((255, 255),) if self._picture is None else self._picture.getextrema()
        self.black = all(high < 16 for _, high in extrema)
        """Whether there is a picture, and it is as good as black everywhere: what comes of it may be black too."""

    def __bool__(self) -> bool:
        return self._picture is not None

    def picture(self, width: int, height: int) -> Image | None:
        """Stretched to this size, by Lanczos' filter."""
        return None if self._picture is None else resized(self._picture, width, height)

    def mask(self, width: int, height: int) -> Image | None:
        """Stretched in the same way, without overshoot: 255 is painted."""
        from PIL import Image

        return None if self._mask is None else self._mask.resize((width, height), Image.Resampling.BILINEAR)

    def kept(self, made: Image) -> Image:
        """``made``, with the original's own pixels where nothing was to be painted; greys of the mask blend."""
        from PIL import Image

        mask = self.mask(*made.size)
        if mask is None or (picture := self.picture(*made.size)) is None:
            return made
        return Image.composite(made, picture, mask)


def _opened(images: Images, field: str, load: Callable[[bytes], Image]) -> Image:
    if field not in images:
        raise RenderFailed(f"The engine was not given the picture that the job's {field} names")
    try:
        return load(images[field])
    except pictures.BadPicture as error:
        fault = FieldError(str(error), field, hint=error.hint)
        raise InvalidRequest(f"The picture cannot be used: {fault}.", errors=(fault,)) from None


def resized(image: Image, width: int, height: int) -> Image:
    """By Lanczos' filter, on the pixels as they are stored: in linear light edges would ring more when enlarged."""
    from PIL import Image

    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def pixels_of(image: Image) -> torch.Tensor:
    """(1, 3, height, width) in [-1, 1], float32, on the CPU."""
    import numpy as np

    pixels = torch.from_numpy(np.array(image)).float().div(255).mul(2).sub(1)
    return pixels.permute(2, 0, 1)[None]


def mask_of(image: Image) -> torch.Tensor:
    """(1, 1, height, width): 1 where it is painted, 0 where not."""
    import numpy as np

    return (torch.from_numpy(np.array(image)).float().div(255) >= PAINTED).float()[None, None]


@dataclass(frozen=True)
class Encoded:
    """A picture that a pass begins with, in latents; all on the CPU, of one picture each."""

    picture: Posterior | None = None
    """None where only its surroundings matter."""
    mask: torch.Tensor | None = None
    """(1, 1, height / 8, width / 8): 1 where anything of the 8 × 8 pixels is painted."""
    around: Posterior | None = None
    """The picture with grey where it is painted, for a model that wants to see that."""


def encoded(
    pipeline: Pipeline,
    picture: Image | None,
    mask: Image | None,
    size: tuple[int, int],
    encode: Callable[[torch.Tensor], Posterior],
) -> Encoded:
    """In latents what a pass of ``size`` (width, height) begins with; ``encode`` is the VAE's work."""
    # grey lies in memory as a picture does: kernels round otherwise for another layout
    grey = torch.zeros(1, size[1], size[0], 3).permute(0, 3, 1, 2)
    pixels = grey if picture is None else pixels_of(picture)
    painted = None if mask is None else mask_of(mask)
    of_picture = None if picture is None else encode(pixels)
    around = None
    if pipeline.inpaints:
        painted = torch.ones(1, 1, size[1], size[0]) if painted is None else painted
        around = encode(pixels * (1 - painted))
    reduced = None if painted is None else torch.nn.functional.max_pool2d(painted, pipeline.reduction)
    return Encoded(of_picture, reduced, around)


class Start:
    """The latents that a batch begins with, and what of them is to stay.

    The order in which a picture's generator is asked is that of diffusers' pipelines: picture, noise, surroundings.
    """

    @torch.inference_mode()
    def __init__(
        self,
        pipeline: Pipeline,
        this: Pass,
        begins: list[Encoded],
        generators: list[torch.Generator],
        scheduler: Any,
        timesteps: Any,
    ) -> None:
        device = pipeline.device
        masks = [one.mask for one in begins if one.mask is not None]
        self._mask = torch.cat(masks).to(device) if masks else None
        # what is painted wholly anew begins with nothing but noise; a picture without a mask leaves a trace even then
        anew = this.taken == this.steps and self._mask is not None
        self._pictures: torch.Tensor | None = None
        if not (anew and pipeline.inpaints):
            self._pictures = _sampled([one.picture for one in begins], generators, device)
        self._noise = noise(pipeline, this.width, this.height, generators)
        if self._pictures is None or anew:
            self.latents = self._noise * scheduler.init_noise_sigma
        else:
            self.latents = self._pictures
            if this.taken:
                self.latents = add_noise(scheduler, self._pictures, self._noise, timesteps[0])
        around = _sampled([one.around for one in begins], generators, device)
        self.beside = None
        """What a model for inpainting is shown with the latents: mask and surroundings."""
        if around is not None and self._mask is not None:
            self.beside = torch.cat([self._mask, around], dim=1)

    def keep(self, scheduler: Any, latents: torch.Tensor, following: Any | None) -> torch.Tensor:
        """``latents``, with the picture's own outside the mask; ``following`` is the next timestep, None at the end."""
        if self._mask is None or self.beside is not None or self._pictures is None:
            return latents
        own = self._pictures
        with torch.inference_mode():
            if following is not None:
                own = add_noise(scheduler, own, self._noise, following)
            return own * (1 - self._mask) + latents * self._mask


def _sampled(
    posteriors: list[Posterior | None], generators: list[torch.Generator], device: torch.device
) -> torch.Tensor | None:
    """One of each, drawn on the CPU by the picture's own generator."""
    there = [posterior for posterior in posteriors if posterior is not None]
    if not there:
        return None
    drawn = [posterior.sample(generator) for posterior, generator in zip(there, generators, strict=True)]
    return torch.cat(drawn).to(device)
