from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from darkroom.config import ModelEntry, Models
from darkroom.errors import ModelUnavailable
from darkroom.models.catalog import BUNDLED, Catalog, Model


def put(folder: Path, **files: Any) -> Path:
    """A diffusers folder as far as the catalog reads it; each argument is a file without its ``.json``."""
    content = {
        "model_index": {"unet": ["diffusers", "UNet2DConditionModel"]},
        "unet/config": {"sample_size": 64},
        "vae/config": {"block_out_channels": [128, 256, 512, 512]},
    }
    for name, value in (content | files).items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def model(folder: Path, **configured: Any) -> Model:
    found = Catalog(Models(named={"mine": ModelEntry(path=folder, **configured)})).get("mine")
    assert found is not None
    return found


def test_seedling_is_always_there() -> None:
    catalog = Catalog(Models())
    assert catalog.default == "seedling"
    assert catalog.names() == ["seedling"]
    seedling = catalog.get("seedling")
    assert seedling is not None
    assert seedling.folder == BUNDLED


def test_a_folder_of_models_is_looked_into_each_time(tmp_path: Path) -> None:
    catalog = Catalog(Models(models_dir=tmp_path))
    put(tmp_path / "first")
    (tmp_path / "no model").mkdir()
    (tmp_path / "a file").write_text("")
    assert catalog.names() == ["first", "seedling"]
    put(tmp_path / "second")
    assert catalog.names() == ["first", "second", "seedling"]


def test_a_missing_folder_of_models_holds_none(tmp_path: Path) -> None:
    assert Catalog(Models(models_dir=tmp_path / "missing")).names() == ["seedling"]


def test_the_config_outranks_the_folder_of_models(tmp_path: Path) -> None:
    put(tmp_path / "models" / "sd15")
    elsewhere = put(tmp_path / "elsewhere")
    catalog = Catalog(Models(models_dir=tmp_path / "models", named={"sd15": ModelEntry(path=elsewhere)}))
    found = catalog.get("sd15")
    assert found is not None
    assert found.folder == elsewhere


@pytest.mark.parametrize("name", ["unknown", "../first", "", "/etc", "."])
def test_an_unknown_name_is_none(tmp_path: Path, name: str) -> None:
    put(tmp_path / "models" / "first")
    assert Catalog(Models(models_dir=tmp_path / "models")).get(name) is None


def test_the_native_size_is_the_unet_s_times_the_vae_s(tmp_path: Path) -> None:
    defaults = model(put(tmp_path)).defaults
    assert (defaults.width, defaults.height) == (512, 512)


def test_a_transformer_and_a_list_of_sizes_are_read_too(tmp_path: Path) -> None:
    folder = put(
        tmp_path,
        **{
            "model_index": {"transformer": ["diffusers", "SD3Transformer2DModel"]},
            "transformer/config": {"sample_size": [128, 128]},
        },
    )
    assert model(folder).defaults.width == 1024


def test_without_a_size_it_is_512(tmp_path: Path) -> None:
    assert model(put(tmp_path, **{"unet/config": {}})).defaults.height == 512


def test_the_config_outranks_the_makers_advice_which_outranks_the_native_size(tmp_path: Path) -> None:
    folder = put(tmp_path, darkroom={"num_inference_steps": 12, "guidance_scale": 3.5, "width": 256})
    defaults = model(folder, num_inference_steps=9).defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (9, 3.5)
    assert (defaults.width, defaults.height) == (256, 512)


@pytest.mark.parametrize("file", ["model_index", "unet/config", "vae/config"])
def test_a_folder_that_is_no_model_says_which_file_is_missing(tmp_path: Path, file: str) -> None:
    (put(tmp_path) / f"{file}.json").unlink()
    with pytest.raises(ModelUnavailable) as raised:
        _ = model(tmp_path).defaults
    assert raised.value.message == (
        f'model "mine": {tmp_path / file}.json is missing; a model is a diffusers folder with model_index.json, '
        "or a checkpoint *.safetensors"
    )


@pytest.mark.parametrize(
    ("text", "part"), [("{", "cannot be read"), ("[]", "is not a JSON object"), ('{"widht": 5}', "widht")]
)
def test_damaged_advice_is_said(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ModelUnavailable) as raised:
        _ = model(put(tmp_path, darkroom=text)).defaults
    assert part in raised.value.message
    assert "darkroom.json" in raised.value.message


def test_seedling_says_what_suits_it() -> None:
    found = Catalog(Models()).get("seedling")
    assert found is not None
    assert found.defaults.num_inference_steps is not None
    assert found.defaults.width == found.defaults.height == 128


def test_a_checkpoint_in_the_folder_of_models_is_one_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "mine.ckpt").write_bytes(b"")
    catalog = Catalog(Models(models_dir=tmp_path))
    assert catalog.names() == ["mine", "seedling"]
    with pytest.raises(ModelUnavailable, match="is no safetensors file: it has only 0 bytes"):
        catalog.get("mine")


@pytest.mark.parametrize(
    ("kind", "activation", "family"),
    [
        ("StableDiffusionPipeline", "quick_gelu", "SD 1"),
        ("StableDiffusionPipeline", "gelu", "SD 2"),
        ("StableDiffusionXLPipeline", "quick_gelu", "SDXL"),
        ("StableDiffusion3Pipeline", "quick_gelu", "SD 3"),
        ("FluxPipeline", "quick_gelu", "Flux"),
        ("KandinskyPipeline", "quick_gelu", "KandinskyPipeline"),
    ],
)
def test_the_family_of_a_folder_is_told(tmp_path: Path, kind: str, activation: str, family: str) -> None:
    files = {"model_index": {"_class_name": kind}, "text_encoder/config": {"hidden_act": activation}}
    assert model(put(tmp_path, **files)).family == family


def test_a_folder_without_weights_is_a_base_alone(tmp_path: Path) -> None:
    folder = put(tmp_path)
    assert model(folder).is_base_alone
    (folder / "unet/weights.safetensors").write_bytes(b"12345")
    assert not model(folder).is_base_alone


def test_the_size_on_disk_is_that_of_the_weights(tmp_path: Path) -> None:
    folder = put(tmp_path)
    (folder / "unet/weights.safetensors").write_bytes(b"12345")
    (folder / "vae/weights.safetensors").write_bytes(b"123")
    assert model(folder).size() == 8


def test_a_model_from_the_hub_is_looked_for_where_pull_puts_it(tmp_path: Path) -> None:
    entry = ModelEntry(path=Path("hub:owner/name@v1"))
    models = Models(named={"mine": entry}, hub_dir=tmp_path)
    found = Catalog(models).get("mine")
    assert found is not None
    assert (found.folder, found.fetched, found.source) == (tmp_path / "owner--name@v1", False, "hub")
    with pytest.raises(ModelUnavailable, match=r"\(owner/name@v1\) has not been fetched .* `darkroom pull mine`"):
        _ = found.defaults
    put(tmp_path / "owner--name@v1")
    assert found.fetched
    fresh = Catalog(models).get("mine")
    assert fresh is not None
    assert fresh.defaults.width == 512


def test_a_model_that_is_to_be_fetched_has_the_size_that_the_config_says(tmp_path: Path) -> None:
    entry = ModelEntry(path=Path("hub:owner/name"), width=1024, height=768, clip_skip=2)
    found = Catalog(Models(named={"mine": entry}, hub_dir=tmp_path)).get("mine")
    assert found is not None
    assert (found.defaults.width, found.defaults.height, found.defaults.clip_skip) == (1024, 768, 2)
