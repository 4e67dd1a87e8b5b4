"""Pictures that a job begins with, in the engine: image to image, masks, two passes, enlarging."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from darkroom.config import Config
from darkroom.engine.memory.host import Bound
from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.underway import UnderWay
from darkroom.engine.render import Engine
from darkroom.engine.rendering import Rendering
from darkroom.engine.sampling.beginning import pixels_of
from darkroom.errors import InvalidRequest, ModelUnavailable, RenderFailed
from darkroom.events import Event, Fallback, Picture, Step
from darkroom.job import Given, Hires, Job, parse, resolve
from darkroom.job.passes import Pass, final_size, passes
from darkroom.models.catalog import Catalog
from darkroom.sampling import SAMPLERS
from engine_models import make_config, make_job, pictures, render, steps, warned
from engine_pictures import (
    begun,
    drawing,
    left_half,
    make,
    out_of_memory,
    pixels,
    png,
)

pytest_plugins = ("engine_fixtures",)

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture
def engine(with_inpainting: Config) -> Iterator[Engine]:
    engine = Engine(with_inpainting)
    yield engine
    engine.close()


# ---------------------------------------------------------------- image to image


def test_at_strength_0_the_picture_goes_through_the_vae_and_no_step_is_taken(engine: Engine) -> None:
    job = begun(strength=0.0)
    events = make(engine, job, init_image=drawing())
    assert steps(events) == []
    pipeline = engine._models.get("sd")
    with torch.inference_mode():
        through = pipeline.vae.encode(pixels_of(drawing())).latent_dist.sample(torch.Generator().manual_seed(7))
        expected = pipeline.vae.decode(through).sample.div(2).add(0.5).clamp(0, 1).mul(255).round()
    assert np.abs(pixels(pictures(events)[0]) - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def test_a_picture_of_another_size_is_stretched_to_the_job_s(engine: Engine) -> None:
    job = begun(width=96, height=64)
    large = drawing(200, 300)
    stretched = large.resize((96, 64), Image.Resampling.LANCZOS)
    made = [pictures(make(engine, job, init_image=image))[0] for image in (large, stretched)]
    assert made[0] == made[1]
    assert Image.open(io.BytesIO(made[0])).size == (96, 64)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_begins_with_a_picture_with_a_mask_and_in_two_passes(sampler: str, engine: Engine) -> None:
    job = begun(
        sampler=sampler,
        schedule=SAMPLERS[sampler].automatic,
        strength=0.5,
        mask_image="mask_image.png",
        num_inference_steps=8,
        hires=Hires(scale=1.5, strength=0.5, steps=3),
    )
    events = make(engine, job, init_image=drawing(), mask_image=left_half())
    counted = [event.step for event in steps(events)]
    assert (counted == sorted(counted), set(counted)) == (True, set(range(1, 8)))
    assert {event.steps for event in steps(events)} == {7}
    original = np.asarray(drawing().resize((96, 96), Image.Resampling.LANCZOS)).astype(np.int16)
    made = pixels(pictures(events)[0])
    assert np.array_equal(made[:, 49:], original[:, 49:])
    assert np.abs(made[:, :47] - original[:, :47]).mean() > 10


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("model", ["sd", "inpaint"])
def test_what_is_not_masked_keeps_its_very_pixels_and_greys_blend(model: str, engine: Engine) -> None:
    mask = left_half()
    mask.paste(64, (32, 0, 40, 64))
    job = begun(model=model, mask_image="mask_image.png", strength=1.0)
    made = pixels(pictures(make(engine, job, init_image=drawing(), mask_image=mask))[0])
    original = np.asarray(drawing()).astype(np.int16)
    assert np.array_equal(made[:, 40:], original[:, 40:])
    painted, blended = np.abs(made - original)[:, :32].mean(), np.abs(made - original)[:, 32:40].mean()
    assert painted > 30
    assert 0 < blended < painted


def test_a_mask_of_one_pixel_paints(engine: Engine) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.putpixel((13, 21), 255)
    job = begun(mask_image="mask_image.png", strength=1.0)
    made = pixels(pictures(make(engine, job, init_image=drawing(), mask_image=mask))[0])
    changed = np.argwhere((made != np.asarray(drawing())).any(2))
    assert changed.tolist() == [[21, 13]]


def test_a_mask_that_is_black_everywhere_gives_the_picture_itself(engine: Engine) -> None:
    nothing = Image.new("L", (64, 64), 0)
    events = make(engine, begun(mask_image="mask_image.png"), init_image=drawing(), mask_image=nothing)
    assert np.array_equal(pixels(pictures(events)[0]), np.asarray(drawing()))


# ---------------------------------------------------------------- two passes, enlarging


@pytest.mark.parametrize(("model", "sampler"), [("sd", "DPM++ SDE"), ("sd", "Euler a"), ("sdxl", "DPM++ 2M")])
def test_two_passes_are_an_image_to_image_of_the_first_pass_enlarged(model: str, sampler: str, engine: Engine) -> None:
    fields = {"model": model, "sampler": sampler, "schedule": SAMPLERS[sampler].automatic, "num_inference_steps": 4}
    (draft,) = pictures(make(engine, make_job(**fields))).values()
    enlarged = Image.open(io.BytesIO(draft)).resize((128, 128), Image.Resampling.LANCZOS)
    whole = make(engine, make_job(**fields, hires=Hires(scale=2, strength=0.5)))
    second = begun(**{**fields, "num_inference_steps": 8}, width=128, height=128, strength=0.5)
    expected = pictures(make(engine, second, init_image=enlarged))[0]
    assert np.array_equal(pixels(pictures(whole)[0]), pixels(expected))
    counted = [(step.step, step.steps) for step in steps(whole)]
    assert sorted(set(counted)) == [(number, 8) for number in range(1, 9)]


def test_the_picture_is_enlarged_when_it_is_finished(engine: Engine) -> None:
    small = Image.open(io.BytesIO(pictures(make(engine, make_job()))[0]))
    events = make(engine, make_job(upscale=1.7))
    (picture,) = [event for event in events if isinstance(event, Picture)]
    assert (picture.width, picture.height) == (109, 109)
    assert np.array_equal(pixels(picture.data), np.asarray(small.resize((109, 109), Image.Resampling.LANCZOS)))


def test_the_recipe_in_an_enlarged_picture_makes_it_again(engine: Engine) -> None:
    job = make_job(hires=Hires(scale=1.5, strength=0.5, steps=3), upscale=2.0, seed=5)
    data = pictures(make(engine, job))[0]
    assert Image.open(io.BytesIO(data)).size == (192, 192)
    again = Job(**json.loads(Image.open(io.BytesIO(data)).info["darkroom"]), id="again")
    assert pictures(make(engine, again))[0] == data


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [(64, 96, 20, 20)]),
        ({"init_image": "a", "strength": 0.29}, [(64, 96, 20, 5)]),
        ({"init_image": "a", "strength": 0.0}, [(64, 96, 20, 0)]),
        ({"init_image": "a", "strength": 0.01}, [(64, 96, 20, 1)]),
        ({"init_image": "a", "strength": 1.0}, [(64, 96, 20, 20)]),
        ({"hires": Hires()}, [(64, 96, 20, 20), (128, 192, 33, 20)]),
        ({"hires": Hires(scale=1.3, strength=1.0, steps=7)}, [(64, 96, 20, 20), (80, 128, 7, 7)]),
        ({"hires": Hires(strength=0.01)}, [(64, 96, 20, 20), (128, 192, 999, 9)]),
        ({"hires": Hires(strength=0.05), "sampler": "LCM"}, [(64, 96, 20, 20), (128, 192, 200, 10)]),
        (
            {"init_image": "a", "strength": 0.5, "hires": Hires(strength=0.5, steps=3)},
            [(64, 96, 20, 10), (128, 192, 6, 3)],
        ),
    ],
)
def test_the_passes_of_a_job(fields: dict[str, Any], expected: list[tuple[int, ...]]) -> None:
    job = make_job(**{"width": 64, "height": 96, "num_inference_steps": 20} | fields)
    assert passes(job) == tuple(Pass(*numbers) for numbers in expected)
    assert final_size(job) == expected[-1][:2]
    assert final_size(job.model_copy(update={"upscale": 1.5})) == tuple(side * 3 // 2 for side in expected[-1][:2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_longest_schedule_of_a_second_pass_can_be_followed(sampler: str, engine: Engine) -> None:
    hires = Hires(scale=1.5, strength=0.001, steps=100)
    job = make_job(sampler=sampler, schedule=SAMPLERS[sampler].automatic, hires=hires, num_inference_steps=1)
    assert (passes(job)[1].steps, passes(job)[1].taken) == (200 if sampler == "LCM" else 999, 1)
    assert pictures(make(engine, job))


# ---------------------------------------------------------------- out of memory


def fallen(events: list[Event]) -> list[tuple[str, dict[str, int]]]:
    return [(event.rung, dict(event.changes)) for event in events if isinstance(event, Fallback)]


def test_the_picture_to_begin_with_is_made_smaller_with_the_job(engine: Engine) -> None:
    job = begun(width=128, height=96, num_inference_steps=8)
    out_of_memory(engine._models.get("sd"), 4)
    events = make(engine, job, init_image=drawing(128, 96))
    assert fallen(events)[-1] == ("smaller_picture", {"width": 96, "height": 72})
    smaller = make(engine, begun(width=96, height=72, num_inference_steps=8), init_image=drawing(128, 96))
    assert np.array_equal(pixels(pictures(events)[0]), pixels(pictures(smaller)[0]))


def test_in_two_passes_the_job_is_made_smaller_so_that_its_last_pass_fits(engine: Engine) -> None:
    job = make_job(width=128, height=96, num_inference_steps=4, hires=Hires(scale=2, strength=0.5))
    failing = out_of_memory(engine._models.get("sd"), 4)
    events = make(engine, job)
    assert fallen(events)[-1] == ("smaller_picture", {"width": 96, "height": 72})
    (picture,) = [event for event in events if isinstance(event, Picture)]
    assert (picture.width, picture.height) == (192, 144)
    assert failing.times == 0
    again = Job(**json.loads(Image.open(io.BytesIO(picture.data)).info["darkroom"]), id="again")
    assert (again.width, again.height) == (96, 72)
    assert pictures(make(engine, again))[0] == picture.data


def test_the_plan_is_made_for_the_last_pass(engine: Engine, tmp_path: Path) -> None:
    pipeline = engine._models.get("sd")
    job = make_job(width=128, height=96, hires=Hires(scale=1.5))
    rendering = Rendering(
        pipeline, job, [0], 8, "cpu", lambda: False, learned=Learned(tmp_path), under_way=UnderWay(tmp_path),
        bound=Bound(wanted=False), save_memory=lambda: None,
    )  # fmt: skip
    assert (rendering.plan.width, rendering.plan.height, rendering.plan.smallest_side) == (192, 144, 96)


def test_a_picture_that_cannot_be_encoded_for_want_of_memory_is_tried_in_tiles(engine: Engine) -> None:
    vae = out_of_memory(engine._models.get("sd"), 2, "vae", "encode")
    events = make(engine, begun(width=128, height=128), init_image=drawing())
    assert [rung for rung, _ in fallen(events)] == ["freed_memory", "tiled_vae"]
    assert len(steps(events)) == 3
    assert vae.seen[:3] == [(1, 3, 128, 128)] * 3
    assert pictures(events)


def test_a_first_pass_is_not_made_again_when_memory_runs_out_in_the_second(engine: Engine) -> None:
    pipeline = engine._models.get("sd")
    job = make_job(num_inference_steps=4, hires=Hires(scale=2, strength=0.5))
    whole = pictures(make(engine, job))
    events: list[Event] = []
    for event in engine.render(job, frozenset(), lambda: False):
        events.append(event)
        if isinstance(event, Step) and event.step == 6:
            out_of_memory(pipeline, 1, "vae", "decode")
    assert [rung for rung, _ in fallen(events)] == ["freed_memory"]
    assert [event.step for event in steps(events)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert pictures(events) == whole


# ---------------------------------------------------------------- failing, and reported


def test_a_picture_that_cannot_be_decoded_is_the_job_s_fault(engine: Engine) -> None:
    data = bytearray(png(Image.effect_noise((64, 64), 90).convert("RGB")))
    middle = data.index(b"IDAT") + 200
    data[middle : middle + 50] = bytes(50)
    with pytest.raises(InvalidRequest, match="init_image: the picture's file is damaged") as raised:
        render(engine, begun(), images={"init_image": bytes(data)})
    assert [(error.field, error.hint is not None) for error in raised.value.errors] == [("init_image", True)]
    with pytest.raises(InvalidRequest, match="mask_image: the picture's file ends too early"):
        images = {"init_image": png(drawing()), "mask_image": png(drawing())[:90]}
        render(engine, begun(mask_image="mask_image.png"), images=images)


def test_a_picture_that_was_not_handed_over_is_an_error_not_another_picture(engine: Engine) -> None:
    with pytest.raises(RenderFailed, match="was not given the picture that the job's init_image names"):
        render(engine, begun())


def test_a_black_picture_may_stay_black(engine: Engine) -> None:
    pipeline = engine._models.get("sd")
    pipeline.load()
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.zero_()
        pipeline.vae.decoder.conv_out.bias.fill_(-1.0)
    made = pictures(make(engine, begun(), init_image=Image.new("RGB", (64, 64))))
    assert not pixels(made[0]).any()
    with pytest.raises(RenderFailed, match="all black"):
        make(engine, begun(), init_image=drawing())


class Overflowing(torch.nn.Module):
    """A VAE whose numbers run out of range, one way or both, until it is asked in float32."""

    def __init__(self, vae: Any, *calls: str) -> None:
        super().__init__()
        self.vae, self.calls, self.config = vae, calls, vae.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def encode(self, sample: torch.Tensor) -> Any:
        encoded = self.vae.encode(sample)
        if "encode" in self.calls and sample.dtype != torch.float32:
            encoded.latent_dist.mean.fill_(float("nan"))
        return encoded

    def decode(self, sample: torch.Tensor) -> Any:
        decoded = self.vae.decode(sample)
        if "decode" in self.calls and sample.dtype != torch.float32:
            decoded.sample.fill_(float("nan"))
        return decoded


@pytest.mark.parametrize("calls", [("encode",), ("decode",), ("encode", "decode")])
def test_that_the_vae_needed_float32_is_told_once(calls: tuple[str, ...], tmp_path: Path, tiny_sd: Path) -> None:
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd}, dtype="bfloat16"))
    plain = pictures(make(engine, begun(count=2), init_image=drawing()))
    pipeline = engine._models.get("sd")
    pipeline.loaded["vae"] = Overflowing(pipeline.vae, *calls)
    events = make(engine, begun(count=2), init_image=drawing())
    (warning,) = warned(events)
    assert warning.code == "vae_float32"
    assert "ran out of range in bfloat16, so it was used in float32" in warning.message
    assert isinstance(events[events.index(warning) + 1], Picture)
    for index, data in pictures(events).items():
        assert np.abs(pixels(data) - pixels(plain[index])).mean() < 10
    assert pipeline.vae.dtype is torch.bfloat16


def test_a_model_for_another_task_is_refused(tmp_path: Path, tiny_sd: Path) -> None:
    folder = tmp_path / "depth"
    shutil.copytree(tiny_sd, folder)
    settings = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(settings | {"in_channels": 5}))
    engine = Engine(make_config(tmp_path, {"depth": folder}))
    with pytest.raises(ModelUnavailable, match="takes 5 channels where its VAE has 4: it is made for a task that"):
        render(engine, make_job(model="depth"))


# ---------------------------------------------------------------- on a model that has learnt something


@pytest.fixture(scope="module")
def seedling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    cache = tmp_path_factory.mktemp("cache")
    engine = Engine(Config(engine={"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": cache}))
    yield engine
    engine.close()


def grown(**fields: Any) -> Job:
    plain = {"model": "seedling", "prompt": "a red circle on a blue background", "negative_prompt": "", "seed": 3}
    size = {"width": 128, "height": 128, "num_inference_steps": 12, "sampler": "DPM++ 2M", "schedule": "karras"}
    return make_job(**plain | size | fields)


def test_the_stronger_the_less_is_left_of_the_picture(seedling: Engine) -> None:
    triangle = Image.new("RGB", (128, 128), (240, 220, 120))
    ImageDraw.Draw(triangle).polygon([(64, 20), (110, 105), (18, 105)], fill=(40, 150, 60))
    begin, away = np.asarray(triangle).astype(np.int16), []
    for strength in (0.2, 0.5, 0.8):
        job = grown(init_image="init_image.png", strength=strength)
        made = pixels(pictures(make(seedling, job, init_image=triangle))[0])
        away.append(np.abs(made - begin).mean())
    assert away == sorted(away)
    assert away[0] < 8
    assert away[2] > 60
    assert made[10, 10, 2] > 150 > made[10, 10, 0]
    assert made[64, 64, 0] > 150 > made[64, 64, 2]


def test_only_what_is_masked_becomes_what_the_prompt_says(seedling: Engine) -> None:
    blue = Image.new("RGB", (128, 128), (40, 80, 210))
    job = grown(prompt="a green square on a yellow background", init_image="a", mask_image="b", strength=0.95, seed=5)
    made = pixels(pictures(make(seedling, job, init_image=blue, mask_image=left_half(128, 128)))[0])
    assert np.array_equal(made[:, 64:], np.asarray(blue)[:, 64:])
    mean = made[:, :60].reshape(-1, 3).mean(0)
    assert mean[1] > 140
    assert mean[1] > mean[2] + 60


def test_two_passes_keep_the_composition_and_draw_sharper_than_enlarging(seedling: Engine) -> None:
    job = grown(prompt="a house at sunset", seed=11)
    small = Image.open(io.BytesIO(pictures(make(seedling, job))[0]))
    enlarged = small.resize((256, 256), Image.Resampling.LANCZOS)
    two = pictures(make(seedling, job.model_copy(update={"hires": Hires(scale=2, strength=0.4, steps=8)})))[0]
    made = pixels(two)
    assert made.shape == (256, 256, 3)
    assert np.abs(made - np.asarray(enlarged).astype(np.int16)).mean() < 15

    def edges(image: Any) -> float:
        return float(np.percentile(np.abs(np.diff(np.asarray(image).astype(np.int16).sum(2), axis=1)), 99.5))

    assert edges(made) > 1.2 * edges(enlarged)


def test_the_examples_of_the_documentation_run(seedling: Engine) -> None:
    text = (Path(__file__).parent.parent / "docs/jobs.md").read_text(encoding="utf-8")
    section = text.partition("### What becomes of them")[2].partition("\n## ")[0]
    examples = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 2
    config = Config()
    given = {field: Given(f"{field}.png", 128, 96) for field in ("init_image", "mask_image")}
    sizes = []
    for example in examples:
        request = parse(example.encode()).model_copy(update={"num_inference_steps": 3})
        job = resolve(request, config, Catalog(config.models), "id", given if request.init_image else {})
        (picture,) = pictures(make(seedling, job, init_image=drawing(128, 96), mask_image=left_half(128, 96))).values()
        sizes.append(Image.open(io.BytesIO(picture)).size)
    assert sizes == [(128, 96), (384, 384)]
