"""What a safetensors file holds, told from its header: names and shapes of tensors, sizes, the family it is of.

The file is eight bytes, the header's length; the header, a JSON object; the tensors. No torch, and no tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

_LONGEST_HEADER = 100 << 20

_ITEMSIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes to a number; of the kinds that are not here, one."""


class BadFile(Exception):
    """It is no whole safetensors file; the message is half a sentence that follows the file's name."""


@dataclass(frozen=True)
class Header:
    """Shapes by tensor's name, and bytes."""

    shapes: Mapping[str, tuple[int, ...]]
    itemsizes: Mapping[str, int]
    size: int
    """Of all tensors together."""

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max((prod(shape) * self.itemsizes[name] for name, shape in self.shapes.items()), default=0)

    def numbers(self) -> int:
        """How many numbers it holds."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(file: Path) -> Header:
    """Raises BadFile for what is no safetensors file or not the whole of one, OSError for what cannot be read."""
    with file.open("rb") as stream:
        begin = stream.read(8)
        there = file.stat().st_size
        if len(begin) < 8:
            raise BadFile(f"is no safetensors file: it has only {len(begin)} bytes")
        length = int.from_bytes(begin, "little")
        if begin[:2] in (b"PK", b"\x80\x02"):
            raise BadFile("is a pickle with a safetensors name, which can run any code when it is read")
        if length > _LONGEST_HEADER:
            raise BadFile("is no safetensors file: it begins with something else")
        text = stream.read(length)
    if len(text) < length:
        raise BadFile(f"is cut short: it has {there:,} bytes, and its header alone should have {length:,}")
    try:
        content = json.loads(text)
        tensors = {name: entry for name, entry in content.items() if name != "__metadata__"}
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in tensors.items()}
        itemsizes = {name: _ITEMSIZES.get(entry["dtype"], 1) for name, entry in tensors.items()}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
        raise BadFile("is no safetensors file: its header cannot be read") from None
    if there < 8 + length + end:
        raise BadFile(f"is cut short: it has {there:,} bytes and should have {8 + length + end:,}")
    return Header(shapes, itemsizes, end)


_UNET = "model.diffusion_model."
_FIRST = f"{_UNET}input_blocks.0.0.weight"
_SD1_TEXT = "cond_stage_model.transformer."
_SD2_TEXT = "cond_stage_model.model."
_SDXL_TEXT = "conditioner.embedders.1.model."
_REFINER_TEXT = "conditioner.embedders.0.model."
_FLOWS = {
    "SD 3": ("joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight", "y_embedder.mlp.0.weight"),
    "Flux": ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "txt_in.weight", "img_in.weight"),
}
"""Tensors of transformers, with or without the prefix of a UNet."""
_KIN = ("distilled_guidance_layer.", "double_stream_modulation_img.")
"""What Flux's kin have besides its tensors: Chroma, Flux 2."""
_SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale")
"""What stands beside weights that were stored in 8 bits and must be multiplied by it."""


def family_of(header: Header) -> str | None:
    """One of ``FAMILIES`` for a checkpoint as CompVis, Stability, Black Forest Labs and their kin lay it out.

    None for what is no such checkpoint; ``what_else`` says what it may be.
    """
    names = header.shapes
    for prefix in ("", _UNET):
        for family, tensors in _FLOWS.items():
            if all(prefix + tensor in names for tensor in tensors):
                return None if any(part in name for part in (*_KIN, *_SCALES) for name in names) else family
    if channels_of(header) not in (4, 9):  # nine: for inpainting
        return None
    for family, prefix in (("SDXL", _SDXL_TEXT), ("SD 2", _SD2_TEXT), ("SD 1", _SD1_TEXT)):
        if any(name.startswith(prefix) for name in names):
            return family
    return None


def channels_of(header: Header) -> int:
    """How many channels a checkpoint's UNet takes; 0 for what has none."""
    shape = header.shapes.get(_FIRST, ())
    return shape[1] if len(shape) > 1 else 0


def what_else(header: Header) -> str:
    """What a file that is no checkpoint of a known family seems to be, for a person."""
    names = header.shapes

    def any_has(*parts: str) -> bool:
        return any(part in name for part in parts for name in names)

    if channels_of(header) not in (0, 4, 9):
        return f"a model for another task: its UNet takes {channels_of(header)} channels where 4 are usual"
    if any_has(_REFINER_TEXT):
        return "the SDXL refiner, which is no text-to-image model by itself"
    if any_has("lora_", ".lora.", "lora_A", "lora_down"):
        return "a LoRA, not a model"
    if any_has(*_KIN):
        return "a model of Flux's kin (Chroma, Flux 2), which darkroom cannot run"
    if any_has(*_SCALES):
        return "a model whose weights are stored in 8 bits with scales beside them, which darkroom cannot read"
    if any_has("double_blocks.", "single_transformer_blocks.", "joint_blocks."):
        return "part of a Flux or Stable Diffusion 3 model, or one in another layout"
    if any_has("control_model.", "controlnet_cond_embedding"):
        return "a ControlNet, not a model"
    if _FIRST in names:
        return "a UNet without its text encoder"
    if any_has("decoder.up.", "decoder.up_blocks."):
        return "a VAE, not a model"
    return "nothing that darkroom knows"
