"""Train the autoencoder: pictures to latents of an eighth the size, and back."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from . import dataset
from .architecture import LATENT_CHANNELS, SCALING_FACTOR, new_vae
from .grammar import NATIVE_SIZE
from .optimizers import Optimizers, split_matrices
from .pace import Every, Pace, best_device, load_checkpoint, save_checkpoint

MUON_RATE, ADAM_RATE = 3e-3, 2e-3
KL_WEIGHT = 2e-4
CROP = 64
CROPS_UNTIL = 0.6  # of the time; whole pictures after
BATCH_OF_CROPS, BATCH = 16, 8  # so many times as many on a GPU:
ON_GPU = 8
MINUTES = {"cpu": 21.0, "cuda": 3.0}
HELD_OUT = 200  # the last pictures of native size measure, and do not train
LOG_VARIANCE_BIAS = -5.0
CHECKPOINT_NAME = "vae.pt"


@torch.no_grad()
def initialize(vae: AutoencoderKL) -> None:
    """Start near the identity; with the default initialisation a short training gets stuck."""
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.endswith("conv2"):
            module.weight.mul_(0.1)
        elif "downsamplers" in name:
            module.weight.mul_(0.2)
            for channel in range(module.out_channels):
                module.weight[channel, channel, :2, :2] += 0.25
        elif "upsamplers" in name:
            module.weight.mul_(0.2)
            for channel in range(module.out_channels):
                module.weight[channel, channel, 1, 1] += 1.0
    log_variance = slice(LATENT_CHANNELS, None)
    vae.quant_conv.weight[log_variance] *= 0.1
    vae.quant_conv.bias[log_variance] = LOG_VARIANCE_BIAS


def to_unit(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, h, w, 3) bytes -> (n, 3, h, w) in -1..1."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def _gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures.diff(dim=2), pictures.diff(dim=3)


def loss_of(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(what is minimised, mean square error)"""
    posterior = vae.encode(pictures).latent_dist
    drawn = vae.decode(posterior.sample()).sample.float()
    error = functional.mse_loss(drawn, pictures)
    slopes = sum(functional.l1_loss(a, b) for a, b in zip(_gradients(drawn), _gradients(pictures), strict=True))
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    return functional.l1_loss(drawn, pictures) + 0.5 * slopes + 0.3 * error + KL_WEIGHT * divergence, error.detach()


@torch.no_grad()
def decibels(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal to noise of what comes back, over the pictures."""
    errors = []
    for part in pictures.split(20):
        drawn = vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(functional.mse_loss(drawn, part).item())
    return 10 * math.log10(4.0 / float(np.mean(errors)))


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel."""
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pictures.split(20)])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Make every latent channel have mean 0 and deviation 1 / scaling_factor, changing no picture."""
    gain = 1.0 / (deviation * SCALING_FACTOR)
    channels, log_variance = slice(0, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.bias[channels] = (inward.bias[channels] - mean) * gain
    inward.weight[channels] *= gain[:, None, None, None]
    inward.bias[log_variance] += 2.0 * gain.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight /= gain[None, :, None, None]


def adopt(folder: Path, run: Path) -> None:
    """Let a run begin with the autoencoder of a pipeline folder, scaled already, in place of training one."""
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    save_checkpoint(run / CHECKPOINT_NAME, {"vae": vae.state_dict(), "finished": True})


def _batch(pictures: NDArray[np.uint8], rng: np.random.Generator, cropped: bool, times: int) -> NDArray[np.uint8]:
    chosen = rng.integers(0, len(pictures) - HELD_OUT, times * (BATCH_OF_CROPS if cropped else BATCH))
    if not cropped:
        return np.ascontiguousarray(pictures[np.sort(chosen)])
    corners = rng.integers(0, NATIVE_SIZE - CROP + 1, (len(chosen), 2))
    return np.stack([pictures[n, y : y + CROP, x : x + CROP] for n, (y, x) in zip(chosen, corners, strict=True)])


def train(pictures_folder: Path, run: Path, minutes: float | None = None) -> AutoencoderKL:
    """Train for so many minutes in all (by default as the device needs), resuming from ``run``; scales the latents."""
    device = best_device()
    pictures = dataset.load_pictures(pictures_folder, (NATIVE_SIZE, NATIVE_SIZE))
    torch.manual_seed(1)
    vae = new_vae().to(device)
    initialize(vae)
    matrices, others = split_matrices(
        vae, but=("encoder.conv_in", "decoder.conv_out", "quant_conv", "post_quant_conv", "encoder.conv_out")
    )
    optimizers = Optimizers(matrices, others, MUON_RATE, ADAM_RATE)
    checkpoint = run / CHECKPOINT_NAME
    steps, spent = 0, 0.0
    if (state := load_checkpoint(checkpoint, device)) is not None:
        vae.load_state_dict(state["vae"])
        if state["finished"]:
            return vae
        optimizers.load_state_dict(state["optimizers"])
        steps, spent = state["steps"], state["spent"]
    rng = np.random.default_rng(1 + steps)
    times = ON_GPU if device.type == "cuda" else 1
    held_out = to_unit(np.array(pictures[-HELD_OUT:]), device)
    pace, checkpoints, reports = Pace(minutes or MINUTES[device.type], spent), Every(120), Every(30)

    def save(finished: bool) -> None:
        state = {"vae": vae.state_dict(), "optimizers": optimizers.state_dict()}
        save_checkpoint(checkpoint, state | {"steps": steps, "spent": pace.spent, "finished": finished})

    while not pace.over:
        batch = to_unit(_batch(pictures, rng, pace.progress < CROPS_UNTIL, times), device)
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = loss_of(vae, batch)
        loss.backward()
        optimizers.step(0.5 * (1 + math.cos(math.pi * pace.progress)))
        steps += 1
        if reports.due():
            print(
                f"vae: step {steps}, {pace.spent:.0f} s, loss {loss.item():.4f}, {decibels(vae, held_out[:40]):.2f} dB",
                flush=True,
            )
        if checkpoints.due():
            save(finished=False)
    print(f"vae: {steps} steps, {pace.spent:.0f} s, held out {decibels(vae, held_out):.2f} dB", flush=True)
    fold_scale(vae, *latent_statistics(vae, to_unit(np.array(pictures[:400]), device)))
    print(f"vae: scaled, held out {decibels(vae, held_out):.2f} dB", flush=True)
    save(finished=True)
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, help="default: 21, on a GPU 3")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    train(options.pictures, options.run, options.minutes)


if __name__ == "__main__":
    main()
