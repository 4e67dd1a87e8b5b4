"""Train blueprint, the LoRA that ships with seedling: the same words, drawn in white lines on blue paper.

A style, since nothing shows more plainly whether a LoRA is applied. The networks stay as they are; beside each of the
UNet's linear and convolutional layers a product of two small matrices is learned. By hand: no training library.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from .architecture import BETA_END, BETA_START, SCALING_FACTOR, TRAINING_TIMESTEPS
from .captions import caption
from .drawing import draw
from .grammar import NATIVE_SIZE
from .make import SHIPPED
from .pace import Every, held_then_linear
from .picture import Plan, Scene, random_plan
from .unet import EMPTY_SHARE, RATE_HOLD, stratified_timesteps, timestep_bounds, tokenize
from .vae import to_unit

TARGET = SHIPPED.with_name("seedling-loras") / "blueprint.safetensors"
RANK, ALPHA = 8, 8.0
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


class LowRank(nn.Module):
    """What is added to a layer's output: ``up(down(x))``, at first nothing."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, RANK, bias=False)
            self.up = nn.Linear(RANK, layer.out_features, bias=False)
        else:
            shape: Any = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            self.down = nn.Conv2d(layer.in_channels, RANK, bias=False, **shape)
            self.up = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
        nn.init.normal_(self.down.weight, std=1 / RANK)
        nn.init.zeros_(self.up.weight)

    def forward(self, value: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(value)) * (ALPHA / RANK)
        return added


def beside(unet: UNet2DConditionModel) -> dict[str, LowRank]:
    """One for each of the UNet's layers but the first and the last, by the layer's name, and at work from now on."""
    learned: dict[str, LowRank] = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and name not in ("conv_in", "conv_out"):
            learned[name] = added = LowRank(layer)
            layer.register_forward_hook(lambda _, given, out, added=added: out + added(given[0]))
    return learned


@torch.no_grad()
def _encoded(folder: Path, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Scaled latents, and the embeddings of their prompts, the empty prompt's last."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    reader = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    pictures, prompts = zip(*examples(seed, number), strict=True)
    latents = torch.cat(
        [
            vae.encode(to_unit(np.stack(pictures[start : start + _AT_ONCE]), torch.device("cpu"))).latent_dist.mode()
            for start in range(0, number, _AT_ONCE)
        ]
    )
    tokens = torch.from_numpy(tokenize(tokenizer, [*prompts, ""])).long()
    texts = torch.cat([reader(input_ids=part).last_hidden_state for part in tokens.split(_AT_ONCE)])
    return latents * SCALING_FACTOR, texts


def train(folder: Path, target: Path, steps: int, seed: int) -> None:
    """The same seed gives the same LoRA, as far as the machine's arithmetic is the same."""
    torch.manual_seed(seed)
    latents, texts = _encoded(folder, seed, PICTURES)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())  # on a CPU the backward pass of the fused one takes twice as long
    learned = beside(unet)
    optimizer = torch.optim.AdamW([weight for added in learned.values() for weight in added.parameters()], RATE)
    noising = DDPMScheduler(TRAINING_TIMESTEPS, BETA_START, BETA_END, "scaled_linear", prediction_type="v_prediction")
    bounds, reports, losses = timestep_bounds(), Every(30), []
    for step in range(steps):
        chosen = torch.randint(PICTURES, (BATCH,))
        read = torch.where(torch.rand(BATCH) < EMPTY_SHARE, PICTURES, chosen)
        clean, noise = latents[chosen], torch.randn(BATCH, *latents.shape[1:])
        timesteps = stratified_timesteps(bounds, BATCH)
        noisy, aim = noising.add_noise(clean, noise, timesteps), noising.get_velocity(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, timesteps, encoder_hidden_states=texts[read]).sample
        loss = functional.mse_loss(predicted.float(), aim)
        for group in optimizer.param_groups:
            group["lr"] = RATE * held_then_linear(step / steps, RATE_HOLD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if reports.due():
            print(f"lora: step {step + 1} of {steps}, loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
    save(learned, target)
    print(f"{target.stat().st_size} bytes in {target}", flush=True)


def save(learned: dict[str, LowRank], target: Path) -> None:
    """In kohya's spelling, which every program reads."""
    tensors: dict[str, Tensor] = {}
    for name, added in learned.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = added.down.weight.detach().half().contiguous()
        tensors[f"{key}.lora_up.weight"] = added.up.weight.detach().half().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA).half()
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}.new")
    save_file(tensors, hidden, {"ss_v2": "False"})  # not SD 2; of several they would be in any order
    hidden.chmod(0o644)
    hidden.replace(target)


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
