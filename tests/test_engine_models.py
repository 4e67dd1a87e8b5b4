"""Model folders: what is loaded, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.engine.models import Models
from darkroom.engine.pipeline import Pipeline
from darkroom.errors import ModelUnavailable
from engine_models import make_config

pytest_plugins = ("engine_fixtures",)

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "mine"))


def load(folder: Path, **settings: Any) -> Pipeline:
    config = make_config(folder.parent, {"mine": folder}, **settings)
    pipeline = Models(config, CPU).get("mine")
    pipeline.load()
    return pipeline


def parts(pipeline: Pipeline) -> list[Any]:
    return list(pipeline.loaded.values())


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_folder_is_loaded_in_the_format_that_was_chosen(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = load(folder, dtype="bfloat16")
    dtypes = {weight.dtype for part in parts(pipeline) for weight in part.parameters()}
    assert dtypes == {torch.bfloat16}
    assert (pipeline.reduction, pipeline.native_side, len(pipeline.text_encoders)) == (8, 64, 1)
    assert capfd.readouterr() == ("", "")


def test_half_precision_files_are_loaded_whole_in_float32(folder: Path) -> None:
    half = load(folder, dtype="float16")
    for part in ("unet", "vae"):
        getattr(half, part).save_pretrained(folder / part)
    half.text_encoders[0].save_pretrained(folder / "text_encoder")
    pipeline = load(folder, dtype="float32")
    assert {weight.dtype for part in parts(pipeline) for weight in part.parameters()} == {torch.float32}


def test_sdxl_has_two_encoders_and_its_own_rules(tiny_sdxl: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, {"xl": tiny_sdxl})
    pipeline = Models(config, CPU).get("xl")
    assert [tokenizer.pad_token for tokenizer in pipeline.tokenizers] == ["<|endoftext|>", "!"]
    assert (pipeline.penultimate, pipeline.zero_empty_negative, pipeline.vae_upcast) == (True, True, False)
    half = Models(make_config(tmp_path, {"xl": tiny_sdxl}, dtype="float16"), CPU).get("xl")
    assert half.vae_upcast


def test_a_variant_is_found_where_it_is_all_there_is(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(
        folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/model.fp16.safetensors")
    assert load(folder).unet.dtype is torch.float32


def models_of(tmp_path: Path, named: dict[str, Path], **settings: Any) -> Models:
    config = make_config(tmp_path, named)
    return Models(config.model_copy(update={"models": config.models.model_copy(update=settings)}), CPU)


def loaded(models: Models, name: str) -> Pipeline:
    pipeline = models.get(name)
    pipeline.load()
    return pipeline


def test_models_stay_in_memory_while_their_bytes_fit(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    models = models_of(tmp_path, {"sd": tiny_sd, "xl": tiny_sdxl}, keep_bytes=1 << 30)
    first, other = loaded(models, "sd"), loaded(models, "xl")
    assert models.get("sd") is first
    assert models.get("xl") is other


def test_the_least_recently_used_goes_first_and_only_as_many_as_must(tiny_sd: Path, tmp_path: Path) -> None:
    size = models_of(tmp_path, {"a": tiny_sd}).find("a").size()
    models = models_of(tmp_path, dict.fromkeys("abc", tiny_sd), keep_bytes=2 * size + size // 2)
    first = {name: loaded(models, name) for name in ("a", "b")}
    models.get("a")
    loaded(models, "c")
    assert models.get("a") is first["a"]
    assert models.get("b") is not first["b"]


def test_the_model_at_work_is_kept_however_large(tiny_sd: Path, tmp_path: Path) -> None:
    models = models_of(tmp_path, {"a": tiny_sd, "b": tiny_sd}, keep_bytes=0)
    first = loaded(models, "a")
    assert models.get("a") is first
    loaded(models, "b")
    assert models.get("a") is not first


def test_a_model_that_was_replaced_on_the_disk_is_loaded_anew(folder: Path) -> None:
    models = Models(make_config(folder.parent, {"mine": folder}), CPU)
    before = loaded(models, "mine")
    os.utime(folder / "unet/diffusion_pytorch_model.safetensors", ns=(1, 1))
    after = models.get("mine")
    assert after is not before
    assert not after.loaded


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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"\0" * 100, "is no safetensors file"),
        (lambda data: data[:-1], "is cut short: it has"),
        (lambda data: data[:1000], "is cut short"),
        (lambda data: b"", "is no safetensors file: it has only 0 bytes"),
        (lambda data: b"PK\3\4" + data, "is a pickle with a safetensors name"),
    ],
)
def test_damaged_weights_are_named_in_one_sentence(folder: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ModelUnavailable) as raised:
        load(folder)
    assert f'model "mine": {weights} {words}' in raised.value.message
    assert "\n" not in raised.value.message


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
    change(folder / "model_index.json", _class_name="KandinskyPipeline")
    with pytest.raises(ModelUnavailable, match=r"is of the family Kandinsky.*, which .* SD 1, SD 2, SDXL, SD 3, Flux"):
        load(folder)


def test_a_name_that_is_nowhere_is_told_with_those_that_are(folder: Path) -> None:
    models = Models(make_config(folder.parent, {"mine": folder}), CPU)
    with pytest.raises(ModelUnavailable, match='no model "other"; there are: mine, seedling'):
        models.get("other")
