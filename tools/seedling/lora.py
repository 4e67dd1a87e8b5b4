"""Train blueprint, the LoRA that ships with seedling: the same words, drawn in white lines on blue paper.

A style, since nothing shows more plainly whether a LoRA is applied.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from . import lowrank
from .architecture import BETA_END, BETA_START, SCALING_FACTOR, TRAINING_TIMESTEPS
from .captions import caption
from .drawing import draw
from .grammar import NATIVE_SIZE
from .make import SHIPPED
from .picture import Plan, Scene, random_plan
from .unet import EMPTY_SHARE, stratified_timesteps, timestep_bounds
from .vae import to_unit

TARGET = SHIPPED.with_name("seedling-loras") / "blueprint.safetensors"
RANK = 8
PICTURES, STEPS, BATCH, RATE = 2000, 1500, 24, 2e-3
PAPER, INK = (28, 66, 150), (236, 242, 252)
FAINTEST, PLAINEST = 18.0, 48.0  # differences of neighbouring pixels: not drawn, and drawn in full
_AT_ONCE = 32


def blueprint(picture: Image.Image) -> Image.Image:
    """Its edges in white on blue, three pixels wide."""
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    around = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = around[1:-1, 2:] - around[1:-1, :-2], around[2:, 1:-1] - around[:-2, 1:-1]
    edges = np.sqrt((across**2 + down**2).sum(axis=2))
    drawn = ((edges - FAINTEST) / (PLAINEST - FAINTEST)).clip(0, 1) * 255
    pen = Image.fromarray(drawn.astype(np.uint8)).filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.GaussianBlur(0.5))
    share = np.asarray(pen, dtype=np.float32)[:, :, None] / 255
    return Image.fromarray((np.array(PAPER) * (1 - share) + np.array(INK) * share).round().astype(np.uint8))


def _suits(plan: Plan) -> bool:
    """Whether lines show it: a pattern would cover the sheet, and what is blurred has no edges."""
    return not plan.blurred and (isinstance(plan, Scene) or plan.background.pattern == "plain")


def examples(seed: int, number: int) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Pictures and their prompts, which do not speak of the style: it is in the weights."""
    rng = random.Random(f"blueprint {seed}")
    while number:
        plan = random_plan(rng)
        if _suits(plan):
            yield np.array(blueprint(draw(plan, (NATIVE_SIZE, NATIVE_SIZE), rng))), caption(rng, plan)
            number -= 1


@torch.no_grad()
def _encoded(folder: Path, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Scaled latents, and the embeddings of their prompts, the empty prompt's last."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    pictures, prompts = zip(*examples(seed, number), strict=True)
    latents = torch.cat(
        [
            vae.encode(to_unit(np.stack(pictures[start : start + _AT_ONCE]), torch.device("cpu"))).latent_dist.mode()
            for start in range(0, number, _AT_ONCE)
        ]
    )
    return latents * SCALING_FACTOR, lowrank.read(folder, [*prompts, ""])


def train(folder: Path, target: Path, steps: int, seed: int) -> None:
    """The same seed gives the same LoRA, as far as the machine's arithmetic is the same."""
    torch.manual_seed(seed)
    latents, texts = _encoded(folder, seed, PICTURES)
    unet = lowrank.open_unet(folder)
    learned = lowrank.beside(unet, RANK)
    noising = DDPMScheduler(TRAINING_TIMESTEPS, BETA_START, BETA_END, "scaled_linear", prediction_type="v_prediction")
    bounds = timestep_bounds()

    def loss() -> Tensor:
        chosen = torch.randint(PICTURES, (BATCH,))
        read = torch.where(torch.rand(BATCH) < EMPTY_SHARE, PICTURES, chosen)
        clean, noise = latents[chosen], torch.randn(BATCH, *latents.shape[1:])
        timesteps = stratified_timesteps(bounds, BATCH)
        noisy, aim = noising.add_noise(clean, noise, timesteps), noising.get_velocity(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, timesteps, encoder_hidden_states=texts[read]).sample
        return functional.mse_loss(predicted.float(), aim)

    lowrank.descend(lowrank.optimizer_of(learned, RATE), RATE, range(steps), steps, loss)
    lowrank.save(learned, target, {"ss_v2": "False"})  # not SD 2; of several they would be in any order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="the model that it is for")
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.folder, options.target, options.steps, options.seed)


if __name__ == "__main__":
    main()
