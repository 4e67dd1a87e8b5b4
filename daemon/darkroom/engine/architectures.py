"""SD 1.5, SD 2.1 and SDXL as they are, but for their weights, which are random: to measure with, nothing to look at.

The vocabulary and the schedule are the bundled model's. ``python -m darkroom.engine.architectures sd15 FOLDER`` makes
one, in the number format that is usual for the device.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from darkroom.models.catalog import BUNDLED

_SD = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}

UNETS: Mapping[str, Mapping[str, Any]] = {
    "sd15": {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        **_SD,
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def make_model(folder: Path, architecture: str, dtype: torch.dtype) -> Path:
    """A diffusers folder of this architecture. Returns the folder; the same one has the same weights."""
    tokenizers = ["tokenizer"]
    for name, make in parts(architecture).items():
        _filled(make, dtype).save_pretrained(folder / name)
        if name == "text_encoder_2":
            tokenizers.append("tokenizer_2")
    for name in tokenizers:
        shutil.copytree(BUNDLED / "tokenizer", folder / name)
    shutil.copytree(BUNDLED / "scheduler", folder / "scheduler")
    kind = "StableDiffusionPipeline" if len(tokenizers) == 1 else "StableDiffusionXLPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "unet": [], "vae": []}))
    return folder


def parts(architecture: str) -> dict[str, Callable[[], Any]]:
    """What makes each part, by the name of its folder."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    library: Any = diffusers  # whose classes have no types
    unet = UNETS[architecture]
    clip = _text(1024, 23, 16, "gelu") if architecture == "sd21" else _text(768, 12, 12, "quick_gelu")
    found: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: CLIPTextModel(clip),
        "unet": lambda: library.UNet2DConditionModel(**unet),
        "vae": lambda: library.AutoencoderKL(**_VAE, sample_size=8 * unet["sample_size"]),
    }
    if architecture == "sdxl":
        found["text_encoder_2"] = lambda: CLIPTextModelWithProjection(_text(1280, 32, 20, "gelu"))
    return found


def _text(width: int, layers: int, heads: int, activation: str) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        hidden_act=activation,
    )


@torch.no_grad()
def _filled(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """The part, its norms doing nothing, all other weights small and random."""
    with torch.device("meta"):  # where nothing is computed
        part = make()
    part = part.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(0)
    for name, weight in part.named_parameters():
        if "norm" in name:
            weight.fill_(float(name.endswith("weight")))
        else:
            weight.normal_(0, 0.02, generator=generator)
    return part


if __name__ == "__main__":
    make_model(Path(sys.argv[2]), sys.argv[1], torch.float16 if torch.cuda.is_available() else torch.bfloat16)
