"""A diffusers folder as one checkpoint, in the layout that CompVis and Stability published theirs in.

Written from the names in their files, not from diffusers' conversion, which is what it tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(folder: Path, file: Path, family: str) -> Path:
    from safetensors.torch import save_file

    denoiser = sd3(folder / "transformer") if family == "SD 3" else unet(folder / "unet")
    tensors = {f"model.diffusion_model.{name}": weight for name, weight in denoiser.items()}
    tensors |= {f"first_stage_model.{name}": weight for name, weight in vae(folder / "vae").items()}
    match family:
        case "SD 1":
            tensors |= clip(folder / "text_encoder", "cond_stage_model.transformer.text_model.")
        case "SD 2":
            tensors |= open_clip(folder / "text_encoder", "cond_stage_model.model.")
        case "SDXL":
            tensors |= clip(folder / "text_encoder", "conditioner.embedders.0.transformer.text_model.")
            tensors |= open_clip(folder / "text_encoder_2", "conditioner.embedders.1.model.")
    save_file({name: weight.contiguous().clone() for name, weight in tensors.items()}, file)
    return file


def read(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def unet(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    weights = read(folder)
    attends = {name.split(".attentions.")[0] for name in weights if ".attentions." in name}
    tensors = {}
    for name, weight in weights.items():
        parts = name.split(".")
        match parts:
            case ["down_blocks", level, "downsamplers", _, _, end]:
                new = f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op.{end}"
            case ["down_blocks", level, kind, layer, *rest]:
                place = 1 + int(level) * (layers + 1) + int(layer)
                new = f"input_blocks.{place}.{_block(kind, rest)}"
            case ["mid_block", kind, layer, *rest]:
                place = 1 if kind == "attentions" else 2 * int(layer)
                new = f"middle_block.{place}.{_block(kind, rest)[2:]}"
            case ["up_blocks", level, "upsamplers", _, _, end]:
                place = int(level) * (layers + 1) + layers
                new = f"output_blocks.{place}.{2 if f'up_blocks.{level}' in attends else 1}.conv.{end}"
            case ["up_blocks", level, kind, layer, *rest]:
                place = int(level) * (layers + 1) + int(layer)
                new = f"output_blocks.{place}.{_block(kind, rest)}"
            case _:
                start = name.rpartition(".")[0]
                new = f"{UNET_ENDS[start]}.{parts[-1]}"
        tensors[new] = weight
    assert len(tensors) == len(weights)
    assert levels > 1
    return tensors


def _block(kind: str, rest: list[str]) -> str:
    if kind == "attentions":
        return "1." + ".".join(rest)
    return f"0.{RESNET[rest[0]]}.{rest[1]}"


def vae(folder: Path) -> dict[str, Any]:
    weights = read(folder)
    levels = len(json.loads((folder / "config.json").read_text())["block_out_channels"])
    tensors = {}
    for name, weight in weights.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        match name.split("."):
            case [half, "down_blocks", level, "resnets", layer, *_]:
                new = new.replace(f"down_blocks.{level}.resnets.{layer}", f"down.{level}.block.{layer}")
            case [half, "down_blocks", level, "downsamplers", *_]:
                new = f"{half}.down.{level}.downsample.conv.{name.split('.')[-1]}"
            case [half, "up_blocks", level, "resnets", layer, *_]:
                place = levels - 1 - int(level)
                new = new.replace(f"up_blocks.{level}.resnets.{layer}", f"up.{place}.block.{layer}")
            case [half, "up_blocks", level, "upsamplers", *_]:
                new = f"{half}.up.{levels - 1 - int(level)}.upsample.conv.{name.split('.')[-1]}"
            case [half, "mid_block", "resnets", layer, *_]:
                new = new.replace(f"mid_block.resnets.{layer}", f"mid.block_{int(layer) + 1}")
            case [half, "mid_block", "attentions", _, *rest]:
                kind, end = ".".join(rest[:-1]), rest[-1]
                new = f"{half}.mid.attn_1.{ATTENTION[kind]}.{end}"
                if weight.ndim == 2:
                    weight = weight[:, :, None, None]
        tensors[new] = weight
    assert len(tensors) == len(weights)
    return tensors


def clip(folder: Path, prefix: str) -> dict[str, Any]:
    return {prefix + name.removeprefix("text_model."): weight for name, weight in read(folder).items()}


def open_clip(folder: Path, prefix: str) -> dict[str, Any]:
    import torch

    weights = {name.removeprefix("text_model."): weight for name, weight in read(folder).items()}
    tensors = {
        "token_embedding.weight": weights.pop("embeddings.token_embedding.weight"),
        "positional_embedding": weights.pop("embeddings.position_embedding.weight"),
        "ln_final.weight": weights.pop("final_layer_norm.weight"),
        "ln_final.bias": weights.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in weights:
        tensors["text_projection"] = weights.pop("text_projection.weight").T
    layers = 1 + max(int(name.split(".")[2]) for name in weights)
    for layer in range(layers):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            parts = [weights.pop(f"{old}.self_attn.{part}_proj.{end}") for part in "qkv"]
            tensors[f"{new}.attn.in_proj_{end}"] = torch.cat(parts)
            for theirs, ours in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                tensors[f"{new}.{ours}.{end}"] = weights.pop(f"{old}.{theirs}.{end}")
    assert not weights
    return {prefix + name: weight for name, weight in tensors.items()}


SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def sd3(folder: Path) -> dict[str, Any]:
    """A transformer; the last layer's shift and scale change places, in the last block of the context too."""
    import torch

    weights = read(folder)
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    tensors = {}
    for block in range(last + 1):
        old, new = f"transformer_blocks.{block}.", f"joint_blocks.{block}."
        for end in ("weight", "bias"):
            for half, parts in (
                ("x", ("to_q", "to_k", "to_v")),
                ("context", ("add_q_proj", "add_k_proj", "add_v_proj")),
            ):
                joined = torch.cat([weights.pop(f"{old}attn.{part}.{end}") for part in parts])
                tensors[f"{new}{half}_block.attn.qkv.{end}"] = joined
    for name, weight in weights.items():
        start, _, end = name.rpartition(".")
        swapped = torch.cat(weight.chunk(2)[::-1])
        if name == "pos_embed.pos_embed":
            tensors["pos_embed"] = weight
        elif start in SD3_ENDS:
            tensors[f"{SD3_ENDS[start]}.{end}"] = swapped if start == "norm_out.linear" else weight
        else:
            _, block, kind = start.split(".", 2)
            turned = int(block) == last and kind == "norm1_context.linear"
            tensors[f"joint_blocks.{block}.{SD3_BLOCK[kind]}.{end}"] = swapped if turned else weight
    return tensors
