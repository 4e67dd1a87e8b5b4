"""A checkpoint in one file makes the picture that the folder it was made of makes, and says what it lacks."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Darkroom
from darkroom.config import Config
from darkroom.engine.models import Models
from darkroom.engine.render import Engine
from darkroom.errors import ModelUnavailable
from darkroom.executors import LocalExecutor
from darkroom.models.weights import family_of, read_header
from darkroom.output.infotext import read_infotext
from engine_checkpoints import save_checkpoint, vae
from engine_models import make_job, pictures, render
from test_engine_render import pixels

pytest_plugins = ("engine_fixtures",)

TEXT = "cond_stage_model.transformer.text_model"

FAMILIES = ["SD 1", "SD 2", "SDXL"]


@pytest.fixture
def folder(request: pytest.FixtureRequest, family: str) -> Path:
    path: Path = request.getfixturevalue({"SD 1": "tiny_sd", "SD 2": "tiny_sd2", "SDXL": "tiny_sdxl"}[family])
    return path


def config_of(cache: Path, named: dict[str, dict[str, Any]], **models: Any) -> Config:
    engine = {"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": cache / "cache"}
    return Config(models={"default": next(iter(named)), **named, **models}, engine=engine)


def without_weights(folder: Path, copy: Path) -> Path:
    """What a base needs to be."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_is_the_one_of_the_folder_it_was_made_of(folder: Path, family: str, tmp_path: Path) -> None:
    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    assert family_of(read_header(file)) == family
    base = without_weights(folder, tmp_path / "base")
    config = config_of(tmp_path, {"folder": {"path": folder}, "file": {"path": file, "base": str(base)}})
    engine = Engine(config)
    whole, one = (render(engine, make_job(model=name)) for name in ("folder", "file"))
    assert len(pictures(one)) == 1
    theirs, ours = (engine._models.get(name).loaded for name in ("folder", "file"))
    for part in theirs:
        weights = ours[part].state_dict()
        for name, weight in theirs[part].state_dict().items():
            assert torch.equal(weight, weights[name]), f"{part} {name}"
    # In one file the tensors lie at other addresses, and some kernels round otherwise there.
    assert np.abs(pixels(pictures(one)[0]) - pixels(pictures(whole)[0])).max() <= 1


@pytest.mark.parametrize("family", ["SD 1"])
def test_one_for_inpainting_takes_its_nine_channels_though_its_base_takes_four(
    folder: Path, family: str, tiny_inpaint: Path, tmp_path: Path
) -> None:
    file = save_checkpoint(tiny_inpaint, tmp_path / "one.safetensors", family)
    assert family_of(read_header(file)) == family
    base = without_weights(folder, tmp_path / "base")
    config = config_of(tmp_path, {"folder": {"path": tiny_inpaint}, "file": {"path": file, "base": str(base)}})
    engine = Engine(config)
    whole, one = (pictures(render(engine, make_job(model=name)))[0] for name in ("folder", "file"))
    assert np.abs(pixels(one) - pixels(whole)).max() <= 1
    assert engine._models.get("file").unet.config.in_channels == 9


@pytest.mark.parametrize("family", ["SD 1"])
def test_a_checkpoint_is_loaded_in_the_format_that_was_chosen(folder: Path, family: str, tmp_path: Path) -> None:
    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    config = config_of(tmp_path, {"file": {"path": file, "base": str(folder)}})
    settings = config.engine.model_copy(update={"dtype": "bfloat16"})
    pipeline = Models(config.model_copy(update={"engine": settings}), torch.device("cpu")).get("file")
    pipeline.load()
    dtypes = {weight.dtype for part in pipeline.loaded.values() for weight in part.parameters()}
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize("family", ["SDXL"])
def test_one_in_the_models_folder_finds_a_base_of_its_family_there(folder: Path, family: str, tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    shutil.copytree(folder, models_dir / "base")
    save_checkpoint(folder, models_dir / "mine.safetensors", family)
    config = config_of(tmp_path, {"other": {"path": folder}}, models_dir=models_dir)
    assert len(pictures(render(Engine(config), make_job(model="mine")))) == 1


def refusal(config: Config, name: str = "file") -> str:
    with pytest.raises(ModelUnavailable) as raised:
        render(Engine(config), make_job(model=name))
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("family", ["SD 2"])
def test_without_a_base_it_is_said_what_to_set(folder: Path, family: str, tmp_path: Path) -> None:
    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    message = refusal(config_of(tmp_path, {"file": {"path": file}}))
    assert 'set base = "…" in [models.file] to a diffusers folder of the family SD 2' in message


@pytest.mark.parametrize("family", ["SD 2"])
def test_a_base_of_another_family_is_refused(folder: Path, family: str, tmp_path: Path, tiny_sd: Path) -> None:
    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    config = config_of(tmp_path, {"file": {"path": file, "base": "sd"}, "sd": {"path": tiny_sd}})
    assert f"is of the family SD 2, but its base {tiny_sd} is of SD 1" in refusal(config)
    config = config_of(tmp_path, {"file": {"path": file, "base": "nowhere"}})
    assert 'its base "nowhere" is no model here; there are: file, seedling' in refusal(config)
    config = config_of(tmp_path, {"file": {"path": file, "base": str(tmp_path / "nowhere")}})
    assert "model_index.json is missing" in refusal(config)


@pytest.mark.parametrize("family", ["SD 1"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("model.diffusion_model.out.2.bias"), "lacks some tensors of the unet"),
        (lambda tensors: tensors.pop("first_stage_model.decoder.conv_out.bias"), "lacks some tensors of the vae"),
        (
            lambda tensors: tensors.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
            "lacks 1 tensors of the text_encoder",
        ),
    ],
)
def test_weights_that_are_not_all_there_are_not_made_up(
    folder: Path, family: str, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    from safetensors.torch import load_file, save_file

    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    assert words in refusal(config_of(tmp_path, {"file": {"path": file, "base": str(folder)}}))


@pytest.mark.parametrize("family", ["SD 1"])
def test_one_whose_shapes_are_not_its_bases_is_refused(folder: Path, family: str, tmp_path: Path) -> None:
    from engine_models import save_tiny

    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    base = save_tiny(tmp_path / "base")
    config = (base / "unet/config.json").read_text()
    (base / "unet/config.json").write_text(config.replace('"cross_attention_dim": 16', '"cross_attention_dim": 24'))
    assert "cannot be loaded" in refusal(config_of(tmp_path, {"file": {"path": file, "base": str(base)}}))


@pytest.mark.parametrize("family", ["SD 1"])
def test_a_file_cut_short_or_of_another_kind_is_one_sentence(folder: Path, family: str, tmp_path: Path) -> None:
    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    whole = file.read_bytes()
    config = config_of(tmp_path, {"file": {"path": file, "base": str(folder)}})
    file.write_bytes(whole[:-1])
    assert f"{file} is cut short: it has {len(whole) - 1:,} bytes and should have {len(whole):,}" in refusal(config)
    file.unlink()
    assert f"{file} cannot be read: No such file or directory" in refusal(config)
    pickle = tmp_path / "one.ckpt"
    pickle.write_bytes(b"PK\3\4")
    message = refusal(config_of(tmp_path, {"file": {"path": pickle, "base": str(folder)}}))
    assert "no safetensors file; a pickle (.ckpt, .pt, .bin) can run any code" in message


# ---------------------------------------------------------------- another VAE


@pytest.mark.parametrize("family", ["SD 1"])
@pytest.mark.parametrize("kind", ["folder", "file of diffusers", "file of CompVis"])
def test_another_vae_takes_the_place_of_the_models_own(folder: Path, family: str, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(folder / "vae", tmp_path / "vae"))
    weights = load_file(other / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"] += 0.25
    save_file(weights, other / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    place = other
    if kind == "file of diffusers":
        place = other / "diffusion_pytorch_model.safetensors"
    elif kind == "file of CompVis":
        place = tmp_path / "vae.safetensors"
        save_file({name: weight.contiguous() for name, weight in vae(other).items()}, place)
    config = config_of(tmp_path, {"plain": {"path": folder}, "brighter": {"path": folder, "vae": place}})
    engine = Engine(config)
    plain, brighter = (pictures(render(engine, make_job(model=name)))[0] for name in ("plain", "brighter"))
    difference = pixels(brighter) - pixels(plain)
    assert difference.mean() == pytest.approx(0.25 / 2 * 255, abs=8)


@pytest.mark.parametrize("family", ["SD 1"])
def test_a_vae_that_is_nowhere_is_named(folder: Path, family: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, {"file": {"path": folder, "vae": tmp_path / "nowhere"}})
    assert f"is to use the VAE {tmp_path / 'nowhere'}, which is neither a safetensors file nor a folder" in refusal(
        config
    )


# ---------------------------------------------------------------- all the way to error.json


@pytest.mark.parametrize("family", ["SD 1"])
def test_every_model_that_cannot_be_used_is_one_sentence_in_error_json_and_the_next_job_runs(
    folder: Path, family: str, tmp_path: Path, darkroom: Darkroom
) -> None:
    models = tmp_path / "models"
    shutil.copytree(folder, models / "good")
    whole = save_checkpoint(folder, models / "whole.safetensors", family)
    (models / "cut.safetensors").write_bytes(whole.read_bytes()[:-5])
    (models / "pickle.safetensors").write_bytes(b"PK\3\4" + bytes(100))
    shutil.copytree(folder, models / "cut-folder")
    part = models / "cut-folder/unet/diffusion_pytorch_model.safetensors"
    part.write_bytes(part.read_bytes()[:-5])
    shutil.copytree(folder, models / "kandinsky")
    index = models / "kandinsky/model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "KandinskyPipeline"))
    shutil.copytree(folder, models / "pickles")
    weights = models / "pickles/vae/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    darkroom.configure(
        models={"models_dir": models, "missing": {"path": tmp_path / "nowhere"}},
        engine={"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": tmp_path / "cache"},
    )
    said = {
        "cut": "cut.safetensors is cut short: it has ",
        "pickle": "pickle.safetensors is a pickle with a safetensors name",
        "cut-folder": f"{part} is cut short: it has ",
        "kandinsky": "is of the family KandinskyPipeline, which darkroom cannot run; it can run SD 1, ",
        "pickles": "has its weights as a pickle",
        "missing": "model_index.json is missing",
    }
    for name in [*said, "good", "whole"]:
        darkroom.drop(f"{name}.json", model=name)
    darkroom.run_once(LocalExecutor(darkroom.config))
    for name, words in said.items():
        error = darkroom.error(name)
        assert error["reason"] == "model-unavailable", name
        assert words in error["message"]
        assert "\n" not in error["message"]
    assert darkroom.names("failed") == sorted(said)
    assert darkroom.names("done") == ["good", "whole"]


@pytest.mark.parametrize("family", ["SD 1"])
def test_the_files_hash_is_in_the_picture_and_a_folders_is_not(folder: Path, family: str, tmp_path: Path) -> None:
    file = save_checkpoint(folder, tmp_path / "one.safetensors", family)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    engine = Engine(config_of(tmp_path, {"file": {"path": file, "base": str(folder)}, "folder": {"path": folder}}))
    texts = {
        name: Image.open(io.BytesIO(pictures(render(engine, make_job(model=name)))[0])).info["parameters"]
        for name in ("file", "folder")
    }
    assert f", Model hash: {digits}, Model: file, " in texts["file"]
    assert "hash" not in texts["folder"]
    assert read_infotext(texts["file"])["model"] == "file"
