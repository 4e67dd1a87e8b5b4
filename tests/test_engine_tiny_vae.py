"""A tiny VAE makes the pixels where a job asks for it, of the very latents that the full one would have got."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.errors import InvalidRequest, ModelUnavailable
from darkroom.job import Hires, parse_fields, resolve
from darkroom.models.catalog import Catalog
from darkroom.output import recipe
from engine_models import make_job, pictures, render
from engine_pictures import make_kind, pixels, with_plan
from test_engine_fidelity import our_latents

pytest_plugins = ("engine_fixtures",)


def save_decoder(folder: Path, **settings: Any) -> Path:
    """Random weights; four levels and four latent channels, as those of Stable Diffusion."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**widths | settings).save_pretrained(folder)
    return folder


def configured(tmp_path: Path, path: Path, decoder: Path | None) -> Config:
    entries = {"sd": {"path": path, "tiny_vae": decoder}, "plain": {"path": path}}
    engine = {"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": tmp_path / "cache"}
    return Config(models={"default": "sd", **entries}, engine=engine)


@pytest.fixture
def config(tmp_path: Path, tiny_sd: Path) -> Config:
    return configured(tmp_path, tiny_sd, save_decoder(tmp_path / "decoder", scaling_factor=1.5))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_pixels_are_the_tiny_decoder_s_of_the_same_latents(config: Config, tmp_path: Path, batch: int) -> None:
    from diffusers import AutoencoderTiny
    from diffusers.image_processor import VaeImageProcessor

    engine, job = Engine(config), make_job(count=batch)
    latents = our_latents(engine, job.model_copy(update={"count": 1, "seed": 7 + batch - 1}))
    theirs = AutoencoderTiny.from_pretrained(tmp_path / "decoder")
    with torch.inference_mode():
        made = theirs.decode(latents / theirs.config.scaling_factor).sample
    (expected,) = VaeImageProcessor().postprocess(made, output_type="pil")
    tiny = job.model_copy(update={"decoder": "tiny"})
    ours = pictures(list(with_plan(engine, tiny, tmp_path, batch=batch)))
    assert np.abs(pixels(ours[batch - 1]) - np.asarray(expected).astype(np.int16)).max() <= 1
    assert np.asarray(expected).std() > 5
    full = pictures(render(engine, job))
    assert np.abs(pixels(ours[0]) - pixels(full[0])).mean() > 5
    assert pictures(render(engine, job.model_copy(update={"decoder": "full"})))[0] != ours[0]
    own = recipe(ours[0])
    assert own is not None and own["decoder"] == "tiny"


def test_in_tiles_it_is_nearly_the_same_picture(config: Config, tmp_path: Path) -> None:
    job = make_job(decoder="tiny", width=128, height=192)
    whole, tiled = (
        pixels(pictures(list(with_plan(Engine(config), job, tmp_path, vae=vae)))[0]) for vae in ("whole", "tiled")
    )
    assert whole.shape == tiled.shape == (192, 128, 3)
    assert np.abs(whole - tiled).mean() < 8
    assert np.abs(whole - whole.mean()).mean() > 16


@pytest.mark.parametrize(
    "fields",
    [
        {"init_image": "init_image.png", "strength": 0.5},
        {"hires": Hires(scale=1.5, strength=0.5)},
        {"reuse_features": 2, "num_inference_steps": 4},
    ],
)
def test_the_full_vae_encodes_and_the_next_job_is_as_it_was(config: Config, fields: dict[str, Any]) -> None:
    engine = Engine(config)
    plain = pictures(render(engine, make_job()))
    tiny = make_kind(engine, make_job(decoder="tiny", **fields))
    assert make_kind(engine, make_job(decoder="tiny", **fields)) == tiny
    assert make_kind(engine, make_job(**fields)) != tiny
    assert pictures(render(engine, make_job())) == plain


def test_a_model_without_one_refuses_the_field_at_arrival(config: Config) -> None:
    def resolved(**fields: Any) -> str | None:
        return resolve(parse_fields({"prompt": "a cat", **fields}), config, Catalog(config.models), "x").decoder

    assert resolved(decoder="tiny") == "tiny"
    assert resolved(model="plain", decoder="full") == "full"
    with pytest.raises(InvalidRequest) as raised:
        resolved(model="plain", decoder="tiny")
    assert raised.value.errors[0].field == "decoder"
    assert "tiny_vae" in str(raised.value)


def renamed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "no tiny VAE in"),
        (renamed, "no AutoencoderTiny"),
        (lambda folder: save_decoder(folder, latent_channels=16), "other latents"),
    ],
)
def test_what_is_none_or_is_for_other_latents_is_told(config: Config, tmp_path: Path, change: Any, words: str) -> None:
    change(tmp_path / "decoder")
    with pytest.raises(ModelUnavailable, match=words):
        render(Engine(config), make_job())
