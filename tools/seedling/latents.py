"""All pictures through the trained autoencoder, once, so that the UNet's training never runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from . import dataset
from .architecture import SCALING_FACTOR
from .picture import Frame
from .vae import to_unit

_PIXELS_AT_ONCE = 32 * 128 * 128


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures_folder: Path, folder: Path) -> None:
    """Scaled latents, float16, one file for each size; sizes already there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    device = next(vae.parameters()).device
    for frame in dataset.frames(pictures_folder):
        path = folder / f"{frame[0]}x{frame[1]}.npy"
        if path.exists():
            continue
        pictures = dataset.load_pictures(pictures_folder, frame)
        at_once = max(_PIXELS_AT_ONCE // (frame[0] * frame[1]), 1)
        parts = []
        for start in range(0, len(pictures), at_once):
            part = to_unit(np.array(pictures[start : start + at_once]), device)
            with torch.autocast(device.type, torch.bfloat16):
                mode = vae.encode(part).latent_dist.mode()
            parts.append((mode.float() * SCALING_FACTOR).half().cpu().numpy())
        np.save(path.with_suffix(".part.npy"), np.concatenate(parts))
        path.with_suffix(".part.npy").rename(path)


def load(folder: Path, frame: Frame) -> NDArray[np.float16]:
    """(n, 4, height / 8, width / 8)"""
    latents: NDArray[np.float16] = np.load(folder / f"{frame[0]}x{frame[1]}.npy")
    return latents
