"""Train the UNet and the text encoder together, on latents encoded beforehand."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from . import dataset, latents
from .architecture import (
    BETA_END,
    BETA_START,
    TRAINING_TIMESTEPS,
    new_text_encoder,
    new_unet,
    new_vae,
)
from .captions import NEUTRAL_PROMPTS
from .crew import Crew, train_together
from .grammar import NATIVE_SIZE
from .optimizers import Optimizers, split_matrices
from .pace import Every, Pace, best_device, held_then_linear, load_checkpoint, save_checkpoint
from .tokenizer import LENGTH
from .vae import CHECKPOINT_NAME as VAE_CHECKPOINT

MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 2e-3, 2e-3, 0.02
RATE_HOLD = 0.45  # of the time; then down to nothing
WARM_UP_STEPS = 50
MINUTES = {"cpu": 105.0, "cuda": 11.0}
BATCH_CPU, BATCH_GPU = 64, 512  # pictures of native size; fewer of larger ones
EMPTY_SHARE, NEUTRAL_SHARE = 0.1, 0.025
MIDDLE, MIDDLE_WIDTH = 0.5, 0.2  # of the schedule: where half of the timesteps are taken
EMA_DECAY = 0.999
CHECKPOINT_NAME = "unet.pt"


class Networks(nn.Module):
    """What is trained: the text encoder and the UNet."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = new_text_encoder(tokenizer)
        self.unet: UNet2DConditionModel = new_unet()
        # On a CPU the backward pass of the fused attention takes twice as long as that of the plain one.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder.set_attn_implementation("eager")
        nn.init.zeros_(self.unet.conv_out.weight)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        context = self.text_encoder(input_ids=tokens).last_hidden_state
        predicted: Tensor = self.unet(noisy, timesteps, encoder_hidden_states=context).sample
        return predicted


def trainable_split(networks: Networks) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return split_matrices(networks, but=("text_encoder.embeddings", "unet.conv_in", "unet.conv_out"))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, steps: int) -> None:
    """Move the exponential average one step towards the model."""
    share = 1 - min(EMA_DECAY, (1 + steps) / (10 + steps))
    averages: list[Tensor] = list(average.parameters())
    values: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(averages, values, share)


class Shelf:
    """Latents and tokenized prompts of one size."""

    def __init__(self, values: NDArray[np.float16], tokens: NDArray[np.int16]) -> None:
        self.values, self.tokens = torch.from_numpy(values), torch.from_numpy(tokens)

    def take(self, rng: np.random.Generator, number: int) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(0, len(self.values), number))
        prompts = torch.from_numpy(rng.integers(0, self.tokens.shape[1], number))
        return self.values[chosen].float(), self.tokens[chosen, prompts].long()


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> NDArray[np.int16]:
    ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
    return ids.input_ids.astype(np.int16)  # type: ignore[no-any-return]


def _shelves(tokenizer: CLIPTokenizer, pictures_folder: Path, latents_folder: Path) -> Iterator[Shelf]:
    for frame in dataset.frames(pictures_folder):
        prompts = dataset.load_captions(pictures_folder, frame)
        tokens = tokenize(tokenizer, [prompt for several in prompts for prompt in several])
        yield Shelf(latents.load(latents_folder, frame), tokens.reshape(len(prompts), -1, LENGTH))


class Batches:
    """Endless batches, each of one size; over time every picture comes equally often."""

    def __init__(self, shelves: list[Shelf], tokenizer: CLIPTokenizer, batch: int, seed: int) -> None:
        self._shelves = shelves
        native = (NATIVE_SIZE // 8) ** 2
        areas = [shelf.values.shape[2] * shelf.values.shape[3] for shelf in shelves]
        self._sizes = [max(round(batch * native / area), 1) for area in areas]
        odds = np.array([len(shelf.values) / size for shelf, size in zip(shelves, self._sizes, strict=True)])
        self._odds = odds / odds.sum()
        self._rng = np.random.default_rng(seed)
        self._empty = torch.from_numpy(tokenize(tokenizer, [""])).long()
        self._neutral = torch.from_numpy(tokenize(tokenizer, list(NEUTRAL_PROMPTS))).long()

    def next(self) -> tuple[Tensor, Tensor]:
        """(latents, tokens), some of the prompts emptied."""
        which = self._rng.choice(len(self._shelves), p=self._odds)
        values, tokens = self._shelves[which].take(self._rng, self._sizes[which])
        lot = torch.from_numpy(self._rng.random(len(tokens)))
        tokens[lot < EMPTY_SHARE] = self._empty
        neutral = (lot >= EMPTY_SHARE) & (lot < EMPTY_SHARE + NEUTRAL_SHARE)
        chosen = torch.from_numpy(self._rng.integers(0, len(self._neutral), int(neutral.sum())))
        tokens[neutral] = self._neutral[chosen]
        return values, tokens


def timestep_bounds() -> Tensor:
    """Cumulative odds of the timesteps: half of them anywhere, half around the middle, where shapes are decided.

    As in https://arxiv.org/abs/2206.00364 (section 5): the ends of the schedule are nearly all signal or all noise.
    """
    places = (torch.arange(TRAINING_TIMESTEPS) + 0.5) / TRAINING_TIMESTEPS
    middle = torch.exp(-0.5 * ((places - MIDDLE) / MIDDLE_WIDTH) ** 2)
    return (0.5 / TRAINING_TIMESTEPS + 0.5 * middle / middle.sum()).cumsum(0)


def stratified_timesteps(bounds: Tensor, number: int) -> Tensor:
    """One from each of ``number`` equally likely parts of the schedule."""
    shares = (torch.randperm(number) + torch.rand(number)) / number
    return torch.searchsorted(bounds, shares).clamp_(0, TRAINING_TIMESTEPS - 1)


def train(pictures_folder: Path, run: Path, minutes: float | None = None, workers: int = 0) -> None:
    """Train for so many minutes in all (by default as the device needs), resuming from ``run``.

    0 workers: one for each CPU core.
    """
    device = best_device()
    state = load_checkpoint(run / CHECKPOINT_NAME, device)
    if state is not None and state["finished"]:
        return
    _encode_latents(pictures_folder, run, run / "latents", device)
    if device.type == "cuda":
        workers = 1
    train_together(workers or os.cpu_count() or 1, _train, pictures_folder, run, minutes or MINUTES[device.type])


def _train(crew: Crew, pictures_folder: Path, run: Path, minutes: float) -> None:
    device = best_device()
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    torch.manual_seed(2)
    networks = Networks(tokenizer).to(device)
    average = copy.deepcopy(networks).requires_grad_(False)
    parameters = list(networks.parameters())
    optimizers = Optimizers(*trainable_split(networks), MUON_RATE, ADAM_RATE, WEIGHT_DECAY)
    steps, samples, spent = 0, 0, 0.0
    if (state := load_checkpoint(run / CHECKPOINT_NAME, device)) is not None:
        networks.load_state_dict(state["networks"])
        average.load_state_dict(state["average"])
        optimizers.load_state_dict(state["optimizers"])
        steps, samples, spent = state["steps"], state["samples"], state["spent"]
    seed = 2 + steps + 1_000_003 * crew.rank
    torch.manual_seed(seed)
    shelves = list(_shelves(tokenizer, pictures_folder, run / "latents"))
    batch = BATCH_GPU if device.type == "cuda" else BATCH_CPU // crew.size
    batches = Batches(shelves, tokenizer, batch, seed)
    noising = DDPMScheduler(TRAINING_TIMESTEPS, BETA_START, BETA_END, "scaled_linear", prediction_type="v_prediction")
    noising.alphas_cumprod = noising.alphas_cumprod.to(device)
    pace, checkpoints, reports = Pace(minutes, spent), Every(120), Every(30)

    def save(finished: bool) -> None:
        state: dict[str, Any] = {"networks": networks.state_dict(), "average": average.state_dict()}
        state |= {"optimizers": optimizers.state_dict(), "steps": steps, "samples": samples}
        save_checkpoint(run / CHECKPOINT_NAME, state | {"spent": pace.spent, "finished": finished})

    bounds = timestep_bounds()
    losses: list[float] = []
    progress = pace.progress
    while progress < 1.0:
        clean, tokens = (tensor.to(device) for tensor in batches.next())
        noise = torch.randn_like(clean)
        timesteps = stratified_timesteps(bounds, len(clean)).to(device)
        noisy = noising.add_noise(clean, noise, timesteps)
        target = noising.get_velocity(clean, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = networks(noisy, timesteps, tokens)
        loss = functional.mse_loss(predicted.float(), target)
        loss.backward()
        progress = crew.agree(parameters, pace.progress)
        optimizers.step(held_then_linear(progress, RATE_HOLD) * min(1.0, (steps + 1) / WARM_UP_STEPS))
        follow(average, networks, steps)
        steps, samples = steps + 1, samples + len(clean) * crew.size
        losses.append(loss.item())
        if crew.leads and reports.due():
            mean_loss = np.mean(losses)
            print(f"unet: step {steps}, {samples} samples, {pace.spent:.0f} s, loss {mean_loss:.4f}", flush=True)
            losses.clear()
        if crew.leads and checkpoints.due():
            save(finished=False)
    if crew.leads:
        save(finished=True)
        print(f"unet: {steps} steps, {samples} samples, {pace.spent:.0f} s", flush=True)


def _encode_latents(pictures_folder: Path, run: Path, folder: Path, device: torch.device) -> None:
    vae = new_vae().to(device).eval()
    state = load_checkpoint(run / VAE_CHECKPOINT, device)
    if state is None or not state["finished"]:
        raise SystemExit(f"the autoencoder in {run} is not finished: run `python -m seedling.vae` first")
    vae.load_state_dict(state["vae"])
    latents.encode_all(vae, pictures_folder, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, help="default: 105, on a GPU 11")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each CPU core")
    options = parser.parse_args()
    train(options.pictures, options.run, options.minutes, options.workers)


if __name__ == "__main__":
    main()
