"""The linear map from the autoencoder's latents to colours that previews use, by least squares over drawn pictures.

Prints it as ``daemon/darkroom/engine/preview.py`` holds it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .architecture import SCALING_FACTOR
from .dataset import sample
from .drawing import draw
from .vae import to_unit

PICTURES = 300


@torch.inference_mode()
def fit(vae: AutoencoderKL, pictures: int = PICTURES) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(4, 3) factors and (3,) offsets: scaled latents to colours from 0 to 1; and the root of the mean square error."""
    latents, colors = [], []
    for number in range(pictures):
        plan, frame, rng = sample(0, number)
        unit = to_unit(np.array(draw(plan, frame, rng))[None], torch.device("cpu"))
        latent = vae.encode(unit).latent_dist.mode() * SCALING_FACTOR
        small = torch.nn.functional.interpolate(unit, latent.shape[-2:], mode="area") / 2 + 0.5
        latents.append(latent[0].flatten(1).T)
        colors.append(small[0].flatten(1).T)
    known, wanted = torch.cat(latents), torch.cat(colors)
    known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    found = torch.linalg.lstsq(known, wanted).solution
    return found[:-1], found[-1], float((known @ found - wanted).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("daemon/darkroom/seedling"))
    options = parser.parse_args()
    factors, offsets, error = fit(AutoencoderKL.from_pretrained(options.folder / "vae"))
    for row in factors.tolist():
        print("({:.4f}, {:.4f}, {:.4f}),".format(*row))
    print("({:.4f}, {:.4f}, {:.4f}),".format(*offsets.tolist()))
    print(f"off by {error:.4f} of the range of a colour")


if __name__ == "__main__":
    main()
