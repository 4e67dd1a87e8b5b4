"""What the names of a LoRA's tensors mean: which layer of which part of a model, and which matrix of the pair.

Two spellings are in use, and older ones beside them::

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight                    kohya (A1111, most of the web)
    lora_unet_input_blocks_4_1_proj_in.lora_down.weight                              the same for SDXL: CompVis's names
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight    diffusers
    unet.….attn1.processor.to_q_lora.down.weight, unet.….to_q.lora.down.weight       diffusers, older

Read here with underscores throughout, so that all of them are one. Text in, text out: no torch, no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Role = Literal["down", "up", "mid", "alpha"]


class Key(NamedTuple):
    """A tensor's place: ``layer`` of ``part``, and what it is to it."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    layer: str
    """In diffusers' names or in CompVis's, underscores for points."""
    role: Role


class Foreign(Exception):
    """It is no LoRA that can be applied; the message is half a sentence that follows the file's name."""


_PARTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
}
_BARE = ("down_blocks.", "mid_block.", "up_blocks.")
"""How names begin in diffusers' oldest files, which hold a UNet's attention and nothing else."""

_KEY = re.compile(
    r"""(?P<layer> .+?)
        (?: \.alpha
          | [._] (?: lora_(?P<kohya> down|up|mid) | lora_(?P<peft> [AB]) (?: \.default)?
                   | (?: lora|lora_linear_layer) \. (?P<diffusers> down|up)) \.weight )""",
    re.VERBOSE,
)

_OTHER_KINDS = {
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector": "a DoRA",
    r"\.oft_": "an OFT",
    r"\.on_input$": "an IA3",
    r"\.[ab]1\.weight$": "a GLoRA",
    r"\.[wb]_norm$": "a LoRA with weights of norms",
    r"\.diff(_b)?$": "a LoRA with differences of whole layers",
    r"\.lora_B\.bias$": "a LoRA with biases",
    r"^bundle_emb\.": "a LoRA with embeddings of words",
}
"""How names of those kinds look that darkroom does not apply."""

_OTHER_FAMILIES = {
    r"double_blocks|single_blocks|single_transformer_blocks": "Flux",
    r"joint_blocks|^lora_te3_|^transformer\.transformer_blocks": "Stable Diffusion 3",
    r"^lora_prior_": "Stable Cascade",
}

_WIDTHS = {768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL refiner"}
"""Numbers to a token of the prompt, as the UNet's cross-attention takes them."""


_LIKE_A_LORA = re.compile(r"^lora_|lora_[AB]|\.lora\.|^lycoris_|^bundle_emb\.")


def parse_key(name: str) -> Key | None:
    """None for a name that is none of a LoRA's."""
    match = _KEY.fullmatch(name)
    prefix = next((prefix for prefix in _PARTS if name.startswith(prefix)), None)
    if match is None or prefix is None:
        return None
    layer = match["layer"] if prefix in _BARE else match["layer"].removeprefix(prefix)
    if ".processor." in layer:
        layer = layer.replace(".processor.", ".")
        layer = f"{layer}.0" if layer.endswith(".to_out") else layer
    written = match["kohya"] or match["diffusers"] or {"A": "down", "B": "up"}.get(match["peft"] or "", "alpha")
    role: Role = {"down": "down", "up": "up", "mid": "mid"}.get(written, "alpha")  # type: ignore[assignment]
    return Key(_PARTS[prefix], layer.replace(".", "_").removeprefix("text_model_"), role)


def parse_keys(names: Iterable[str]) -> dict[str, Key]:
    """The names of a file, each with what it means; none at all where it is no LoRA.

    Raises Foreign for a LoRA that cannot be applied, saying what it is.
    """
    names = list(names)
    for table, sentence in (
        (_OTHER_FAMILIES, "is a LoRA for {}, and darkroom applies those for SD 1, SD 2 and SDXL alone"),
        (_OTHER_KINDS, "is {}, which darkroom cannot apply: it knows LoRAs of two matrices a layer, and LoCons"),
    ):
        for mark, kind in table.items():
            if any(re.search(mark, name) for name in names) and any(_LIKE_A_LORA.search(name) for name in names):
                raise Foreign(sentence.format(kind))
    keys = {name: key for name in names if (key := parse_key(name)) is not None}
    roles: dict[tuple[str, str], set[Role]] = {}
    for key in keys.values():
        roles.setdefault((key.part, key.layer), set()).add(key.role)
    if not any("down" in found or "up" in found for found in roles.values()):
        return {}
    strange = [name for name in names if name not in keys]
    if strange:
        raise Foreign(f"is a LoRA of a kind that darkroom does not know: it cannot tell what {strange[0]} is")
    for (part, layer), found in roles.items():
        if found != {"alpha"} and not {"down", "up"} <= found:
            raise Foreign(f"is not whole: of the two matrices for {layer} in the {part} it has one")
    return keys


def text_width(keys: Mapping[str, Key], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Numbers to a token of the prompt that its UNet takes; None where it does not touch what reads the prompt."""
    for name, key in keys.items():
        shape = shapes[name]
        if key.role == "down" and key.layer.endswith(("attn2_to_k", "attn2_to_v")) and len(shape) > 1:
            return shape[1]
    return None


def family_of(keys: Mapping[str, Key], width: int | None) -> str:
    """``SD 1``, ``SD 2``, ``SDXL``, as far as it can be told."""
    if width in _WIDTHS:
        return _WIDTHS[width]
    xl = any(key.part == "text_encoder_2" or "add_embedding" in key.layer for key in keys.values())
    return "SDXL" if xl else "SD 1"


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def compvis_name(layer: str, resnets: int, attends: bool) -> str | None:
    """CompVis's name of a UNet's layer, given diffusers'; None where it is none that both have.

    ``resnets`` is how many there are to a block on the way down (``layers_per_block``); ``attends`` whether the
    layer's block has attention.
    """
    match layer.split("."):
        case ["down_blocks", block, "downsamplers", "0", "conv"]:
            return f"input_blocks.{(int(block) + 1) * (resnets + 1)}.0.op"
        case ["down_blocks", block, kind, number, *rest]:
            front = f"input_blocks.{1 + int(block) * (resnets + 1) + int(number)}.{_column(kind)}"
        case ["mid_block", kind, number, *rest]:
            front = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
        case ["up_blocks", block, "upsamplers", "0", "conv"]:
            return f"output_blocks.{int(block) * (resnets + 1) + resnets}.{2 if attends else 1}.conv"
        case ["up_blocks", block, kind, number, *rest]:
            front = f"output_blocks.{int(block) * (resnets + 1) + int(number)}.{_column(kind)}"
        case _:
            return _ENDS.get(layer)
    if kind == "resnets":
        rest = [_RESNET.get(rest[0], rest[0]), *rest[1:]]
    return ".".join([front, *rest])


def _column(kind: str) -> int:
    return 0 if kind == "resnets" else 1
