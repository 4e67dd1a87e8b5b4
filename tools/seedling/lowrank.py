"""Learn a LoRA for seedling's UNet, by hand: no training library.

The networks stay as they are; beside each of the UNet's linear and convolutional layers a product of two small
matrices is learned. What it is to learn is its trainer's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .pace import Every, held_then_linear
from .unet import RATE_HOLD, tokenize

_AT_ONCE = 32


class LowRank(nn.Module):
    """What is added to a layer's output: ``up(down(x))``, at first nothing. Alpha is the rank."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            shape: Any = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, value: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(value))
        return added


def open_unet(folder: Path) -> UNet2DConditionModel:
    """A pipeline folder's, its weights frozen."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())  # on a CPU the backward pass of the fused one takes twice as long
    return unet


def beside(unet: UNet2DConditionModel, rank: int) -> nn.ModuleDict:
    """One for each of the UNet's layers but the first and the last, by the layer's key, and at work from now on."""
    learned = nn.ModuleDict()
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and name not in ("conv_in", "conv_out"):
            learned[name.replace(".", "_")] = added = LowRank(layer, rank)
            layer.register_forward_hook(lambda _, given, out, added=added: out + added(given[0]))
    return learned


@torch.no_grad()
def read(folder: Path, prompts: Sequence[str]) -> Tensor:
    """Embeddings of prompts by a pipeline folder's text encoder."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    reader = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tokens = torch.from_numpy(tokenize(tokenizer, list(prompts))).long()
    return torch.cat([reader(input_ids=part).last_hidden_state for part in tokens.split(_AT_ONCE)])


def optimizer_of(learned: nn.ModuleDict, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(learned.parameters(), rate)


def descend(
    optimizer: torch.optim.Optimizer, rate: float, steps: Iterable[int], of: int, loss_of: Callable[[], Tensor]
) -> None:
    """Take these steps of ``of`` in all, the rate held, then down to nothing."""
    reports, losses = Every(30), []
    for step in steps:
        loss = loss_of()
        for group in optimizer.param_groups:
            group["lr"] = rate * held_then_linear(step / of, RATE_HOLD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if reports.due():
            print(f"lora: step {step + 1} of {of}, loss {np.mean(losses):.4f}", flush=True)
            losses.clear()


def save(learned: nn.ModuleDict, target: Path, metadata: Mapping[str, str]) -> None:
    """In kohya's spelling, which every program reads."""
    tensors: dict[str, Tensor] = {}
    for name, added in learned.items():
        assert isinstance(added, LowRank)
        key = f"lora_unet_{name}"
        tensors[f"{key}.lora_down.weight"] = added.down.weight.detach().half().contiguous()
        tensors[f"{key}.lora_up.weight"] = added.up.weight.detach().half().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(added.rank)).half()
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}.new")
    save_file(tensors, hidden, dict(metadata))
    hidden.chmod(0o644)
    hidden.replace(target)
    print(f"{target.stat().st_size} bytes in {target}", flush=True)
