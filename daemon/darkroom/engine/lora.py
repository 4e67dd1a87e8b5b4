"""LoRAs: read from their files, and at work beside a pipeline's layers while a job that asks for them is made.

A layer's weights W become W + s·B·A, where A makes few numbers of many, and B many of few again (Hu et al.,
https://arxiv.org/abs/2106.09685); s is the job's weight times alpha over the rank. Not by writing into W, which may be
a mapped file, or half precision that would swallow a small change: a hook adds B(A(x)) to what the layer makes of x.
Without the hook the layer is to the bit what it was. Several LoRAs on one layer are one pair of larger matrices.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.nn import Conv2d, Linear
from torch.nn import functional as F  # noqa: N812 - as torch's own documentation has it

from darkroom.config import Models
from darkroom.errors import ModelUnavailable, RenderFailed, first_line, plainly
from darkroom.events import Warned
from darkroom.job import Job
from darkroom.models.lora_keys import Foreign, compvis_name, parse_keys
from darkroom.models.loras import Lora, Loras
from darkroom.prompt_syntax import BadTag

KEEP_BYTES = 256 << 20
"""Of the files that were read, this much stays in memory for the next job, the least recently used let go first."""


@dataclass(frozen=True)
class Matrices:
    """For one layer. A convolution's have height and width too, 1 × 1 in ``up``."""

    down: torch.Tensor
    """(rank, in)"""
    up: torch.Tensor
    """(out, rank)"""
    scale: float
    """Alpha over the rank."""


@dataclass(frozen=True)
class Weights:
    """A LoRA that was read, as it is on the disk: matrices by part and layer, underscores for points."""

    lora: Lora
    hash: str
    parts: Mapping[str, Mapping[str, Matrices]]
    size: int


class LoraCache:
    """The LoRAs that jobs ask for, read once as long as they do not change on the disk."""

    def __init__(self, models: Models, keep_bytes: int = KEEP_BYTES) -> None:
        self._loras = Loras(models.loras_dir)
        self._warns = models.missing_lora == "warn"
        self._keep = keep_bytes
        self._read: OrderedDict[tuple[Path, int, int], Weights] = OrderedDict()

    def for_job(self, job: Job) -> tuple[list[tuple[Weights, float]], list[Warned]]:
        """What is to be applied, and how strongly; what is not there is a warning where the config says so.

        Raises ModelUnavailable.
        """
        try:
            uses = [use for use in job.all_loras() if use.weight]
        except BadTag as tag:
            raise RenderFailed(f"In the prompt, {tag}; {tag.hint}") from None
        chosen, warnings = [], []
        for use in uses:
            lora = self._loras.get(use.name)
            if lora is not None:
                chosen.append((self._get(lora), use.weight))
            elif self._warns:
                message = f'There is no LoRA "{use.name}": the picture was made without it.'
                warnings.append(Warned("lora_missing", message, use.name))
            else:
                raise ModelUnavailable(f'There is no LoRA "{use.name}"; `darkroom models` lists those that there are')
        return chosen, warnings

    def clear(self) -> None:
        """Let go of all of them. Those of a job that runs stay, in its hands."""
        self._read.clear()

    def _get(self, lora: Lora) -> Weights:
        try:
            stat = lora.file.stat()
        except OSError as error:
            raise lora.bad(f"cannot be read: {plainly(error)}") from None
        key = (lora.file, stat.st_mtime_ns, stat.st_size)
        if key not in self._read:
            self._read[key] = read(lora)
        self._read.move_to_end(key)
        weights = self._read[key]
        while sum(other.size for other in self._read.values()) > self._keep:
            self._read.popitem(last=False)
        return weights


def read(lora: Lora) -> Weights:
    """All of it into memory, nothing mapped: the file may be written over. Raises ModelUnavailable."""
    import safetensors
    import safetensors.torch

    try:
        data = lora.file.read_bytes()
        tensors = safetensors.torch.load(data)
        keys = parse_keys(tensors)
    except OSError as error:
        raise lora.bad(f"cannot be read: {plainly(error)}") from None
    except safetensors.SafetensorError as error:
        raise lora.bad(f"is no safetensors file, or not all of one ({first_line(error)})") from None
    except Foreign as error:
        raise lora.bad(str(error)) from None
    begin = 8 + int.from_bytes(data[:8], "little")
    settings = _Settings(json.loads(data[8:begin]).get("__metadata__", {}))
    found: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for name, key in keys.items():
        found.setdefault(key.part, {}).setdefault(key.layer, {})[key.role] = tensors[name]
        if not bool(torch.isfinite(tensors[name].float()).all()):
            raise lora.bad(f"is damaged: {name} holds what is no number")
        sound = tensors[name].numel() == 1 if key.role == "alpha" else tensors[name].dim() in (2, 4)
        if not sound or not tensors[name].numel():
            raise lora.bad(f"is damaged: {name} has the shape {tuple(tensors[name].shape)}")
    parts = {
        part: {layer: _matrices(roles, settings, part, layer) for layer, roles in layers.items() if "down" in roles}
        for part, layers in found.items()
    }
    if not any(parts.values()):
        raise lora.bad("is no LoRA")
    # as A1111 writes it into its pictures, and other programs look it up: without the header, which tools change
    digest = hashlib.sha256(memoryview(data)[begin:]).hexdigest()[:12]
    return Weights(lora, digest, parts, len(data))


class _Settings:
    """What diffusers notes of its LoRAs beside the tensors; other programs have a tensor ``alpha`` for each layer."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            content = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            content = {}
        self._content: Mapping[str, Any] = content if isinstance(content, dict) else {}

    def scale(self, part: str, layer: str, rank: int) -> float:
        """Alpha over the rank, where it is noted; else 1."""
        alpha: Any = self._content.get(f"{part}.lora_alpha", rank)
        patterns = self._content.get(f"{part}.alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if layer.endswith(str(pattern).replace(".", "_")):
                alpha = value
        root = 0.5 if self._content.get(f"{part}.use_rslora") is True else 1.0
        return float(alpha) / rank**root if isinstance(alpha, int | float) else 1.0


def _matrices(roles: Mapping[str, torch.Tensor], settings: _Settings, part: str, layer: str) -> Matrices:
    down, up = roles["down"], roles["up"]
    rank = down.shape[0]
    if "mid" in roles:  # a convolution in three, the middle one with height and width: the first two are one
        down = torch.einsum("abhw,bi->aihw", roles["mid"].float(), down.float().flatten(1))
    alpha = roles.get("alpha")
    return Matrices(down, up, settings.scale(part, layer, rank) if alpha is None else float(alpha) / rank)


class Adapters:
    """A job's LoRAs beside one pipeline's layers. ``model`` is the pipeline's name."""

    def __init__(
        self, chosen: Sequence[tuple[Weights, float]], model: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._chosen = chosen
        self._model = model
        self._device, self._dtype = device, dtype
        self._hooks: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        """By the part that they are in: one that is let go takes its own along."""
        self.hashes = {weights.lora.name: weights.hash for weights, _ in chosen}
        self.sizes: dict[str, int] = {}
        """Bytes that they take beside each part."""
        for weights, _ in chosen:
            for part, layers in weights.parts.items():
                numbers = sum(prod(layer.down.shape) + prod(layer.up.shape) for layer in layers.values())
                self.sizes[part] = self.sizes.get(part, 0) + numbers * torch.empty((), dtype=dtype).element_size()

    def check(self, parts: Sequence[str]) -> None:
        """Raises ModelUnavailable where one is for parts that the model has not."""
        for weights, _ in self._chosen:
            for part in weights.parts:
                if part not in parts:
                    raise self._misfit(weights.lora, f"it changes a {part}, which that model has not")

    def attach(self, name: str, part: Any) -> None:
        """To a part, once. Raises ModelUnavailable where one does not fit it, and then leaves it as it is."""
        if part in self._hooks or name not in self.sizes:
            return
        layers = _layers(name, part)
        pairs: dict[Any, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for weights, strength in self._chosen:
            for layer, matrices in weights.parts.get(name, {}).items():
                if layer not in layers:
                    raise self._misfit(weights.lora, f"it changes the layer {layer}, which that model has not")
                fitted = _fitted(matrices, layers[layer], strength)
                if fitted is None:
                    have, want = tuple(matrices.down.shape[1:]), tuple(layers[layer].weight.shape[1:])
                    raise self._misfit(weights.lora, f"its {layer} takes {have} numbers, that model's {want}")
                pairs.setdefault(layers[layer], []).append(fitted)
        added = [(layer, _LowRank(several, self._device, self._dtype)) for layer, several in pairs.items()]
        self._hooks[part] = [layer.register_forward_hook(hook) for layer, hook in added]

    def detach(self) -> None:
        """From all parts: they are what they were."""
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()
        self._hooks.clear()

    def _misfit(self, lora: Lora, why: str) -> ModelUnavailable:
        return ModelUnavailable(f'The LoRA "{lora.name}" is made for another model than "{self._model}": {why}')


class _LowRank:
    """What is added to one layer's output, on the device."""

    def __init__(
        self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._down = torch.cat([down for down, _ in pairs]).to(device, dtype)
        self._up = torch.cat([up for _, up in pairs], dim=1).to(device, dtype)

    def __call__(self, layer: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, Linear):
            return output + F.linear(F.linear(given[0], self._down), self._up)
        low = F.conv2d(given[0], self._down, None, layer.stride, layer.padding, layer.dilation)
        return output + F.conv2d(low, self._up)


def _layers(name: str, part: Any) -> dict[str, Any]:
    """What of a part a LoRA can change, by every spelling of the layers' names, underscores for points."""
    found: dict[str, Any] = {}
    modules = {name: module for name, module in part.named_modules() if isinstance(module, Linear | Conv2d)}
    attending = {name.split(".attentions.")[0] for name in modules if ".attentions." in name}
    resnets = part.config.layers_per_block if name == "unet" else None
    for module_name, module in modules.items():
        found[module_name.removeprefix("text_model.").replace(".", "_")] = module
        if isinstance(resnets, int):
            block = ".".join(module_name.split(".")[:2])
            other = compvis_name(module_name, resnets, block in attending)
            if other is not None:
                found[other.replace(".", "_")] = module
    return found


def _fitted(matrices: Matrices, layer: Any, strength: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """In float32, in the layer's form, weight and scale in ``up``; None where they are for another form."""
    down, up = matrices.down.float(), matrices.up.float().flatten(1) * (matrices.scale * strength)
    if isinstance(layer, Linear):
        down = down.flatten(1)
    else:
        down = down.view(*down.shape, 1, 1) if down.dim() == 2 else down
        up = up.view(*up.shape, 1, 1)
    if down.shape[1:] != layer.weight.shape[1:] or up.shape[:2] != (layer.weight.shape[0], down.shape[0]):
        return None
    return down, up
