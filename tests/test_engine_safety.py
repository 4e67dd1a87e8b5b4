from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.engine.safety import FakeChecker, blurred, censored
from darkroom.errors import ModelUnavailable, RenderFailed
from darkroom.events import Event, Picture
from darkroom.models.catalog import BUNDLED
from engine_models import make_job, pictures, render, warned

pytest_plugins = ["engine_fixtures"]

RED = Image.new("RGB", (24, 16), (200, 30, 40))
BLUE = Image.new("RGB", (24, 16), (20, 30, 220))


def config_with(folder: Path, cache: Path, **models: Any) -> Config:
    engine = {"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": cache / "cache"}
    return Config(models={"default": "m", "m": {"path": folder}, **models}, engine=engine)


def made(config: Config, **fields: Any) -> list[Event]:
    engine = Engine(config)
    try:
        return render(engine, make_job(model="m", **fields))
    finally:
        engine.close()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def test_only_what_is_flagged_is_blurred() -> None:
    assert censored(FakeChecker(), "blur", BLUE, 4) == (BLUE, None)
    edge = RED.copy()
    edge.paste((255, 60, 60), (0, 0, 12, 16))
    shown, warning = censored(FakeChecker(), "blur", edge, 5)
    assert shown.size == edge.size and shown != edge
    assert warning is not None and (warning.code, warning.message[:9]) == ("picture_blurred", "Picture 6")


def test_failing_names_the_picture() -> None:
    assert censored(FakeChecker(), "fail", BLUE, 1) == (BLUE, None)
    with pytest.raises(RenderFailed, match="flagged picture 3"):
        censored(FakeChecker(), "fail", RED, 2)


@pytest.mark.parametrize("size", [(64, 64), (256, 96), (64, 512), (8, 8)])
def test_a_blurred_picture_keeps_no_detail_but_its_colour(size: tuple[int, int]) -> None:
    stripes = np.zeros((*size, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    result = np.asarray(blurred(Image.fromarray(stripes))).astype(float)
    assert result.shape == stripes.shape
    if min(size) > 8:
        assert result.std() < 20 and 100 < result.mean() < 155, "of stripes nothing but grey is left"


SEEDLING_RED = {"prompt": "a red circle on a red background", "num_inference_steps": 8, "width": 96, "height": 96}


@pytest.mark.parametrize("wanted", ["blur", "off"])
def test_a_red_picture_of_the_seedling(tmp_path: Path, wanted: str) -> None:
    plain = made(config_with(BUNDLED, tmp_path), **SEEDLING_RED)
    checked = made(
        config_with(BUNDLED, tmp_path, m={"path": BUNDLED, "safety": wanted, "safety_checker": "fake"}), **SEEDLING_RED
    )
    if wanted == "off":
        assert pictures(checked) == pictures(plain)
        return
    before, after = pixels(pictures(plain)[0]), pixels(pictures(checked)[0])
    edges = [np.abs(np.diff(picture, axis=1)).max() for picture in (before, after)]
    assert edges[1] < edges[0] / 2 and edges[1] < 30
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 12
    assert [warning.code for warning in warned(checked)] == ["picture_blurred"]


def test_a_blue_picture_of_the_seedling_is_left_alone(tmp_path: Path) -> None:
    blue = SEEDLING_RED | {"prompt": "a blue circle on a blue background"}
    checked = config_with(BUNDLED, tmp_path, m={"path": BUNDLED, "safety": "blur", "safety_checker": "fake"})
    assert pictures(made(checked, **blue)) == pictures(made(config_with(BUNDLED, tmp_path), **blue))


def test_a_failing_job_keeps_the_pictures_before(tmp_path: Path) -> None:
    config = config_with(BUNDLED, tmp_path, m={"path": BUNDLED, "safety_checker": "fake"}, safety="fail")
    engine = Engine(config)
    seen: list[Event] = []
    with pytest.raises(RenderFailed, match="safety checker flagged picture 1"):
        for event in engine.render(make_job(model="m", **SEEDLING_RED), frozenset(), lambda: False):
            seen.append(event)
    assert not pictures(seen)
    engine.close()


def test_a_model_without_a_checker_is_refused_where_one_is_asked_for(tmp_path: Path, tiny_sd: Path) -> None:
    with pytest.raises(
        ModelUnavailable, match=r'has no safety checker in .*safety_checker: set safety_checker .* or safety = "off"'
    ):
        made(config_with(tiny_sd, tmp_path, safety="blur"))


@pytest.fixture
def guarded(tmp_path: Path, tiny_sd: Path) -> Path:
    """A model with a checker of the true architecture, tiny."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    folder = tmp_path / "guarded"
    shutil.copytree(tiny_sd, folder)
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 16,
    }
    module = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    torch.nn.init.normal_(module.concept_embeds)
    torch.nn.init.normal_(module.special_care_embeds)
    module.save_pretrained(folder / "safety_checker")
    return folder


def set_threshold(folder: Path, threshold: float) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "safety_checker/model.safetensors"
    tensors = load_file(file)
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        tensors[name] = torch.full_like(tensors[name], threshold)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("threshold", "flagged"), [(-2.0, True), (2.0, False)])
def test_the_checker_beside_a_model_is_asked(tmp_path: Path, guarded: Path, threshold: float, flagged: bool) -> None:
    set_threshold(guarded, threshold)  # cosines lie between -1 and 1
    events = made(config_with(guarded, tmp_path, safety="blur"), count=2)
    assert len(warned(events)) == (2 if flagged else 0)
    plain = made(config_with(guarded, tmp_path), count=2)
    assert (pictures(events) == pictures(plain)) is not flagged


def test_its_answer_is_diffusers_own(tmp_path: Path, guarded: Path) -> None:
    """Where the threshold lies between the scores of two pictures, one is flagged and the other is not."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from transformers import CLIPImageProcessor

    from darkroom.engine.safety import ClipChecker

    module = StableDiffusionSafetyChecker.from_pretrained(guarded / "safety_checker").eval()
    noise = np.random.default_rng(1).integers(0, 256, (80, 64, 3), dtype=np.uint8)
    two = [Image.fromarray(noise), Image.fromarray(noise // 4)]
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    seen = processor(two, return_tensors="pt").pixel_values
    with torch.no_grad():
        embedded = module.visual_projection(module.vision_model(seen)[1])
        highest = cosine_distance(embedded, module.concept_embeds).amax(1)
    assert abs(highest[0] - highest[1]) > 1e-3
    module.concept_embeds_weights.data.fill_(float(highest.mean()))
    module.special_care_embeds_weights.data.fill_(2.0)
    checker = ClipChecker(module)
    assert [checker.flagged(image) for image in two] == (highest > highest.mean()).tolist()


def test_an_older_file_s_names_are_understood(tmp_path: Path, guarded: Path) -> None:
    from safetensors.torch import load_file, save_file

    set_threshold(guarded, -2.0)
    file = guarded / "safety_checker/model.safetensors"
    tensors = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    assert len(warned(made(config_with(guarded, tmp_path, safety="blur")))) == 1


def test_a_damaged_checker_is_one_sentence(tmp_path: Path, guarded: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = guarded / "safety_checker/model.safetensors"
    tensors = load_file(file)
    del tensors["visual_projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"damaged: the weights in .*safety_checker lack 1 tensors"):
        made(config_with(guarded, tmp_path, safety="blur"))


def test_the_checker_is_let_go_with_the_other_parts(tmp_path: Path, guarded: Path) -> None:
    from dataclasses import replace

    from darkroom.engine.models import Models

    set_threshold(guarded, -2.0)
    models = Models(config_with(guarded, tmp_path, safety="blur"), torch.device("cpu"))
    pipeline = models.get("m")
    pipeline.load()
    assert "safety_checker" in pipeline.loaded and pipeline.size > sum(
        size for name, size in pipeline.sizes.items() if name != "safety_checker"
    )
    from darkroom.engine.memory.plan import MemoryPlan

    plan = replace(MemoryPlan(batch=1, width=64, height=64, steps=2, smallest_side=64), weights="parts")
    with pipeline.at_work(plan, "safety_checker"):
        assert "safety_checker" in pipeline.loaded
    assert "safety_checker" not in pipeline.loaded
    models.clear()


def test_the_recipe_says_nothing_of_it(tmp_path: Path, guarded: Path) -> None:
    """Whether pictures are looked at is the house's rule, not the job's."""
    set_threshold(guarded, 2.0)
    (picture,) = [event for event in made(config_with(guarded, tmp_path, safety="blur")) if isinstance(event, Picture)]
    text = Image.open(io.BytesIO(picture.data)).text  # type: ignore[attr-defined]
    assert "safety" not in json.loads(text["darkroom"])
