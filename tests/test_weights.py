"""Safetensors files told by their headers: whole or not, and of which family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.models.catalog import BUNDLED
from darkroom.models.weights import BadFile, Header, family_of, read_header, what_else

PREFIX = "model.diffusion_model."
UNET = f"{PREFIX}input_blocks.0.0.weight"
FLOWS = {
    "SD 3": ("joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight", "y_embedder.mlp.0.weight"),
    "Flux": ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "txt_in.weight", "img_in.weight"),
}


def header(**shapes: tuple[int, ...]) -> Header:
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return Header(named, dict.fromkeys(named, 2), 0)


def checkpoint(*names: str, channels: int = 4) -> Header:
    shapes = {UNET: (320, channels, 3, 3)} | dict.fromkeys(names, (8,))
    return Header(shapes, dict.fromkeys(shapes, 2), 0)


def flow(family: str, prefix: str, *more: str) -> Header:
    shapes = {prefix + name: (8,) for name in (*FLOWS[family], *more)}
    return Header(shapes, dict.fromkeys(shapes, 2), 0)


def write(file: Path, tensors: dict[str, Any], data: int) -> Path:
    text = json.dumps(tensors).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * data)
    return file


def test_a_real_file_is_read_as_it_is() -> None:
    file = BUNDLED / "vae/diffusion_pytorch_model.safetensors"
    found = read_header(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as real:
        assert {name: tuple(real.get_slice(name).get_shape()) for name in real.keys()} == dict(found.shapes)  # noqa: SIM118
    assert found.size < file.stat().st_size
    assert 0 < found.largest < found.size
    assert found.numbers() > 1000


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise_anything_else(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            read_header(Path(file.name))
        except BadFile as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        {"a": 5},
        {"a": {"shape": [1], "dtype": "F32"}},
        {"a": {"shape": "x", "dtype": "F32", "data_offsets": [0, 4]}},
        {"a": {"shape": [1], "dtype": "F32", "data_offsets": [0]}},
    ],
)
def test_a_header_that_is_none_is_said(tmp_path: Path, tensors: Any) -> None:
    with pytest.raises(BadFile, match="its header cannot be read"):
        read_header(write(tmp_path / "file", tensors, 4))


def test_a_file_that_is_cut_short_says_by_how_much(tmp_path: Path) -> None:
    entry = {"a": {"shape": [2], "dtype": "F32", "data_offsets": [0, 8]}}
    whole = write(tmp_path / "file", entry, 8)
    assert read_header(whole).shapes == {"a": (2,)}
    size = whole.stat().st_size
    with pytest.raises(BadFile, match=f"is cut short: it has {size - 1} bytes and should have {size}"):
        read_header(write(tmp_path / "file", entry, 7))


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["cond_stage_model.transformer.text_model.embeddings.position_ids"], "SD 1"),
        (["cond_stage_model.model.token_embedding.weight"], "SD 2"),
        (["conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.positional_embedding"], "SDXL"),
    ],
)
def test_the_family_is_told_by_the_text_encoder(names: list[str], family: str) -> None:
    assert family_of(checkpoint(*names)) == family
    assert family_of(checkpoint(*names, channels=9)) == family
    assert family_of(checkpoint(*names, channels=5)) is None


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("family", FLOWS)
def test_one_that_follows_a_flow_is_told_by_its_transformer(family: str, prefix: str) -> None:
    assert family_of(flow(family, prefix)) == family


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (checkpoint("cond_stage_model.transformer.x", channels=8), "for another task: its UNet takes 8"),
        (checkpoint("conditioner.embedders.0.model.positional_embedding"), "the SDXL refiner"),
        (checkpoint(), "a UNet without its text encoder"),
        (header(lora_unet_down__lora_down__weight=(8, 8)), "a LoRA"),
        (header(double_blocks__0__x=(8,)), "part of a Flux or Stable Diffusion 3 model"),
        (header(model__diffusion_model__joint_blocks__0__x=(8,)), "part of a Flux or Stable Diffusion 3 model"),
        (flow("Flux", "", "distilled_guidance_layer.norms.0.scale"), "a model of Flux's kin (Chroma, Flux 2)"),
        (flow("Flux", PREFIX, "double_blocks.0.img_attn.qkv.scale_weight"), "stored in 8 bits with scales"),
        (header(control_model__x=(8,)), "a ControlNet"),
        (header(decoder__up__0__block__0__x=(8,)), "a VAE"),
        (header(x=(8,)), "nothing that darkroom knows"),
    ],
)
def test_what_is_no_checkpoint_is_named(found: Header, words: str) -> None:
    assert family_of(found) is None
    assert words in what_else(found)
