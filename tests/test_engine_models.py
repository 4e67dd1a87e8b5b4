"""Model folders: what is loaded, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.engine.models import Models, Pipeline
from darkroom.errors import ModelUnavailable
from engine_models import make_config

pytest_plugins = ("engine_fixtures",)


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "mine"))


def load(folder: Path, **settings: Any) -> Pipeline:
    config = make_config(folder.parent, {"mine": folder}, **settings)
    return Models(config, torch.device("cpu")).get("mine")[0]


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_folder_is_loaded_in_the_format_that_was_chosen(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = load(folder, dtype="bfloat16")
    dtypes = {weight.dtype for part in pipeline.parts() for weight in part.parameters()}
    assert dtypes == {torch.bfloat16}
    assert (pipeline.reduction, pipeline.native_side, len(pipeline.text_encoders)) == (8, 64, 1)
    assert capfd.readouterr() == ("", "")


def test_half_precision_files_are_loaded_whole_in_float32(folder: Path) -> None:
    half = load(folder, dtype="float16")
    for part in ("unet", "vae"):
        getattr(half, part).save_pretrained(folder / part)
    half.text_encoders[0].save_pretrained(folder / "text_encoder")
    pipeline = load(folder, dtype="float32")
    assert {weight.dtype for part in pipeline.parts() for weight in part.parameters()} == {torch.float32}


def test_sdxl_has_two_encoders_and_its_own_rules(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, {"xl": tiny_sdxl})
    pipeline = Models(config, torch.device("cpu")).get("xl")[0]
    assert [tokenizer.pad_token for tokenizer in pipeline.tokenizers] == ["<|endoftext|>", "!"]
    assert (pipeline.penultimate, pipeline.zero_empty_negative, pipeline.vae_upcast) == (True, True, False)
    half = Models(make_config(tmp_path, {"xl": tiny_sdxl}, dtype="float16"), torch.device("cpu")).get("xl")[0]
    assert half.vae_upcast


def test_a_variant_is_found_where_it_is_all_there_is(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(
        folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/model.fp16.safetensors")
    assert load(folder).unet.dtype is torch.float32


def test_a_model_is_kept_until_room_is_needed_for_another(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    models = Models(make_config(tmp_path, {"sd": tiny_sd, "xl": tiny_sdxl}), torch.device("cpu"))
    first, seconds = models.get("sd")
    assert seconds > 0
    assert models.get("sd") == (first, 0.0)
    models.get("xl")
    again, seconds = models.get("sd")
    assert again is not first
    assert seconds > 0


def test_the_least_recently_used_goes_first(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    named = {"a": tiny_sd, "b": tiny_sd, "c": tiny_sd}
    config = make_config(tmp_path, named)
    config = config.model_copy(update={"models": config.models.model_copy(update={"cached": 2})})
    models = Models(config, torch.device("cpu"))
    for name in ("a", "b", "a", "c"):
        models.get(name)
    assert models.get("a")[1] == 0.0
    assert models.get("b")[1] > 0.0


def test_a_model_that_was_replaced_on_the_disk_is_loaded_anew(folder: Path) -> None:
    models = Models(make_config(folder.parent, {"mine": folder}), torch.device("cpu"))
    before, _ = models.get("mine")
    os.utime(folder / "unet/diffusion_pytorch_model.safetensors", ns=(1, 1))
    after, seconds = models.get("mine")
    assert after is not before
    assert seconds > 0


def test_a_pickle_is_refused_and_never_read(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelUnavailable, match=r"diffusion_pytorch_model.bin\), which can run any code") as raised:
        load(folder)
    assert "safetensors only" in raised.value.message


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model_index.json", "model_index.json is missing"),
        ("unet/config.json", "unet/config.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "there is no safetensors file in"),
        ("tokenizer/tokenizer.json", "has neither tokenizer.json nor vocab.json and merges.txt"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
    ],
)
def test_what_is_missing_is_named(folder: Path, missing: str, words: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelUnavailable) as raised:
        load(folder)
    assert words in raised.value.message
    assert "mine" in raised.value.message


def test_damaged_weights_are_a_damaged_model_with_a_trace(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelUnavailable, match=r'"mine" in .* cannot be loaded') as raised:
        load(folder)
    assert raised.value.trace is not None
    assert "Traceback" in raised.value.trace


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    change(folder / "unet/config.json", block_out_channels=[8, 16], cross_attention_dim=24)
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_are_not_all_there_are_not_made_up(folder: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    del weights[sorted(weights)[0]]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="lack 1 tensors"):
        load(folder)


def test_an_unknown_family_is_refused_with_the_known_ones(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelUnavailable, match=r"is a FluxPipeline.*StableDiffusionPipeline and StableDiffusionXL"):
        load(folder)


def test_a_name_that_is_nowhere_is_told_with_those_that_are(folder: Path) -> None:
    models = Models(make_config(folder.parent, {"mine": folder}), torch.device("cpu"))
    with pytest.raises(ModelUnavailable, match='no model "other"; there are: mine, seedling'):
        models.get("other")
