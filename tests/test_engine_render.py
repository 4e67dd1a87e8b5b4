"""The engine as its executor sees it: events, equal pictures, stopping, and what happens when memory runs out."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.config import Config
from darkroom.engine.flow import FlowPipeline
from darkroom.engine.flow_rendering import FlowRendering
from darkroom.engine.memory.host import Bound
from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.underway import UnderWay
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.engine.rendering import Rendering
from darkroom.errors import ModelUnavailable, OutOfMemory, RenderFailed, Stopped
from darkroom.events import Ending, Event, Fallback, Finished, Loaded, Picture, Step, Warned
from darkroom.job import Job
from darkroom.sampling import SAMPLERS
from engine_models import fallbacks, kinds, make_config, make_job, pictures, render, steps, warned

pytest_plugins = ("engine_fixtures",)


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def loaded(engine: Engine, name: str) -> Pipeline:
    """The engine's own pipeline, so that a test can put a failing part into it."""
    pipeline = engine._models.get(name)
    pipeline.load()
    return pipeline


def put(pipeline: Pipeline, name: str, part: Any) -> Any:
    """A part in the place of another, when it is read from the disk again too."""
    pipeline.loaders[name] = lambda: part
    pipeline.loaded[name] = part
    return part


# ---------------------------------------------------------------- what comes out


def test_a_job_goes_from_loaded_over_its_steps_and_pictures_to_finished(engine: Engine) -> None:
    events = render(engine, make_job(count=2, num_inference_steps=3))
    assert kinds(events) == [Loaded, Step, Step, Step, Picture, Step, Step, Step, Picture, Finished]
    assert steps(events)[:3] == [Step(0, 1, 1, 3), Step(0, 1, 2, 3), Step(0, 1, 3, 3)]
    assert [(event.index, event.seed) for event in events if isinstance(event, Picture)] == [(0, 7), (1, 8)]
    first, last = events[0], events[-1]
    assert isinstance(first, Loaded)
    assert first.seconds > 0
    assert first.device.endswith(", float32")
    assert set(first.versions) == {"torch", "diffusers", "transformers"}
    assert isinstance(last, Finished)
    assert set(last.seconds) == {"encode", "denoise", "decode", "save"}
    assert all(seconds > 0 for seconds in last.seconds.values())


@pytest.mark.parametrize(
    "fields", [{}, {"count": 3}, {"hires": {"scale": 2.0, "strength": 0.5}}, {"num_inference_steps": 8}]
)
@pytest.mark.parametrize("device_makes", [True, False], ids=["denoised", "denoised before"])
def test_that_a_job_ends_is_said_once_before_its_last_picture_and_after_all_others(
    engine: Engine, fields: dict[str, Any], device_makes: bool
) -> None:
    job = make_job(**fields)
    if not device_makes:
        engine.expect((job.model_copy(update={"id": "expected"}),))
        render(engine, make_job(seed=99, num_inference_steps=job.num_inference_steps))
    events = [event for event in render(engine, job) if isinstance(event, Ending | Picture)]
    assert [type(event) for event in events] == [*[Picture] * (job.count - 1), Ending, Picture]


@pytest.mark.parametrize(("output_format", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_a_picture_has_the_size_and_the_format_that_were_asked_for(
    engine: Engine, output_format: str, extension: str
) -> None:
    job = make_job(width=72, height=128, output_format=output_format, num_inference_steps=1)
    picture = next(event for event in render(engine, job) if isinstance(event, Picture))
    assert (picture.width, picture.height, picture.extension) == (72, 128, extension)
    assert Image.open(io.BytesIO(picture.data)).size == (72, 128)


def test_the_second_job_finds_its_model_loaded(engine: Engine) -> None:
    render(engine, make_job(num_inference_steps=1))
    event = render(engine, make_job(num_inference_steps=1))[0]
    assert isinstance(event, Loaded)
    assert event.seconds == 0.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_makes_a_picture_and_counts_its_steps(engine: Engine, name: str) -> None:
    events = render(engine, make_job(sampler=name, schedule=SAMPLERS[name].automatic, num_inference_steps=4))
    counted = [event.step for event in steps(events)]
    assert counted == sorted(counted)
    assert (counted[0], counted[-1], set(counted)) == (1, 4, {1, 2, 3, 4})
    assert pixels(pictures(events)[0]).std() > 0


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize(("model", "kind"), [("sd", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_picture_is_the_one_that_diffusers_own_pipeline_makes(
    model: str, kind: str, guidance_scale: float, config: Config, engine: Engine
) -> None:
    import diffusers

    job = make_job(model=model, guidance_scale=guidance_scale, width=64, height=96, num_inference_steps=4)
    diffusers.utils.logging.disable_progress_bar()
    theirs = getattr(diffusers, kind).from_pretrained(config.models.named[model].path, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        theirs.scheduler.config, timestep_spacing="linspace"
    )
    expected = theirs(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        height=96,
        width=64,
        generator=torch.Generator().manual_seed(job.seed),
    ).images[0]
    difference = np.abs(pixels(pictures(render(engine, job))[0]) - np.asarray(expected).astype(np.int16))
    assert difference.max() <= 1


def test_guidance_of_one_has_no_use_for_the_negative_prompt(engine: Engine) -> None:
    one, other, guided = (
        pictures(render(engine, make_job(negative_prompt=negative, guidance_scale=scale)))[0]
        for negative, scale in (("house", 1.0), ("green", 1.0), ("green", 5.0))
    )
    assert np.array_equal(pixels(one), pixels(other))
    assert not np.array_equal(pixels(one), pixels(guided))


def test_a_prompt_that_is_cut_is_a_warning(engine: Engine) -> None:
    job = make_job(prompt="red " * 75 + "circle", long_prompt="truncate", num_inference_steps=1)
    (warning,) = warned(render(engine, job))
    assert isinstance(warning, Warned)
    assert (warning.code, warning.detail) == ("prompt_truncated", "circle")


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler a", "DPM++ 2M SDE"])
def test_the_same_job_gives_the_same_bytes_whatever_was_skipped(config: Config, sampler: str) -> None:
    job = make_job(sampler=sampler, schedule=SAMPLERS[sampler].automatic, count=3, num_inference_steps=3)
    whole = pictures(render(Engine(config), job))
    resumed = pictures(render(Engine(config), job, skip={0, 2}))
    assert set(resumed) == {1}
    assert resumed[1] == whole[1]
    alone = pictures(render(Engine(config), make_job(**{**job.model_dump(), "seed": 9, "count": 1})))
    assert np.array_equal(pixels(alone[0]), pixels(whole[2]))


def test_the_largest_seed_is_followed_by_zero(engine: Engine) -> None:
    events = render(engine, make_job(seed=2**64 - 1, count=2, num_inference_steps=1))
    assert [event.seed for event in events if isinstance(event, Picture)] == [2**64 - 1, 0]


def test_nothing_missing_is_nothing_done(engine: Engine) -> None:
    events = render(engine, make_job(count=2), skip={0, 1})
    assert [type(event) for event in events] == [Loaded, Finished]


# ---------------------------------------------------------------- stopping


def stop_after(calls: int) -> Callable[[], bool]:
    left = iter([False] * calls)
    return lambda: next(left, True)


def test_it_stops_before_the_next_step_and_can_go_on(engine: Engine) -> None:
    job = make_job(count=2, num_inference_steps=4)
    events: list[Event] = []
    with pytest.raises(Stopped):
        events.extend(engine.render(job, frozenset(), lambda: Step(1, 1, 2, 4) in events))
    assert len(steps(events)) == 6
    assert len(pictures(events)) == 1
    assert pictures(render(engine, job, skip={0}))[1] == pictures(render(engine, job))[1]


@pytest.mark.parametrize("calls", range(5))
def test_it_can_be_stopped_at_every_turn(engine: Engine, calls: int) -> None:
    with pytest.raises(Stopped):
        list(engine.render(make_job(num_inference_steps=2), frozenset(), stop_after(calls)))


def test_a_generator_that_is_closed_leaves_the_engine_usable(engine: Engine) -> None:
    stream = engine.render(make_job(), frozenset(), lambda: False)
    assert any(isinstance(event, Step) for event in stream)
    stream.close()  # type: ignore[attr-defined]
    assert pictures(render(engine, make_job()))


# ---------------------------------------------------------------- failing


def test_a_model_that_is_nowhere_is_the_jobs_fault(engine: Engine) -> None:
    with pytest.raises(ModelUnavailable, match='no model "other"'):
        render(engine, make_job(model="other"))


class Failing(torch.nn.Module):
    """Stands for a part of a pipeline; raises what it is given, as often as it is told, then works."""

    def __init__(self, part: Any, error: Exception, times: int = 1_000_000) -> None:
        super().__init__()
        self.part = part
        self.error = error
        self.times = times
        self.calls: list[tuple[int, ...]] = []
        self.config = part.config
        self.dtype = part.dtype

    def _fail(self, sample: torch.Tensor) -> None:
        self.calls.append(tuple(sample.shape))
        if self.times > 0:
            self.times -= 1
            raise self.error

    def forward(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        self._fail(sample)
        return self.part(sample, *arguments, **options)

    def decode(self, sample: torch.Tensor) -> Any:
        self._fail(sample)
        return self.part.decode(sample)


class Constant(torch.nn.Module):
    """A VAE that decodes everything to one number, until it is asked in float32."""

    def __init__(self, vae: Any, value: float, cured: bool) -> None:
        super().__init__()
        self.vae = vae
        self.value = value
        self.cured = cured
        self.config = vae.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def decode(self, sample: torch.Tensor) -> Any:
        decoded = self.vae.decode(sample)
        if not (self.cured and sample.dtype == torch.float32):
            decoded.sample = torch.full_like(decoded.sample, self.value)
        return decoded


def no_memory() -> Exception:
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.\nmore\nlines")


def test_an_unknown_exception_is_render_failed_with_its_trace(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    put(pipeline, "unet", Failing(pipeline.unet, ValueError("the shutter is stuck")))
    with pytest.raises(RenderFailed, match="ValueError: the shutter is stuck") as raised:
        render(engine, make_job())
    assert raised.value.trace is not None
    assert "Traceback" in raised.value.trace


def test_numbers_out_of_range_are_an_error_that_names_the_remedy(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RenderFailed, match='set \\[engine\\] dtype = "bfloat16" or "float32"'):
        render(engine, make_job())


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_black_picture_is_decoded_again_in_float32(value: float, tmp_path: Path, tiny_sd: Path) -> None:
    """Fault 64."""
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd}, dtype="bfloat16"))
    pipeline = loaded(engine, "sd")
    put(pipeline, "vae", Constant(pipeline.vae, value, cured=True))
    assert pixels(pictures(render(engine, make_job()))[0]).std() > 0
    assert pipeline.vae.dtype is torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_picture_that_stays_black_is_an_error(value: float, engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    put(pipeline, "vae", Constant(pipeline.vae, value, cured=False))
    with pytest.raises(RenderFailed, match="came out all black"):
        render(engine, make_job())


def test_a_size_that_is_no_multiple_of_the_latents_is_refused(engine: Engine) -> None:
    with pytest.raises(RenderFailed, match="multiples of 8"):
        render(engine, make_job(width=68))


# ---------------------------------------------------------------- out of memory


def rungs(events: Iterable[Event]) -> list[str]:
    return [event.rung for event in events if isinstance(event, Fallback)]


def in_memory(pipeline: Pipeline, events: Iterable[Event]) -> list[set[str]]:
    """Which parts were in memory at each step."""
    return [set(pipeline.loaded) for event in events if isinstance(event, Step)]


def test_the_same_is_tried_once_more_when_all_else_was_let_go(tmp_path: Path, tiny_sd: Path, tiny_sdxl: Path) -> None:
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd, "sdxl": tiny_sdxl}))
    other, pipeline = loaded(engine, "sdxl"), loaded(engine, "sd")
    put(pipeline, "vae", Failing(pipeline.vae, no_memory(), times=1))
    events = render(engine, make_job(num_inference_steps=3))
    (fallback,) = fallbacks(events)
    assert (fallback.rung, fallback.lossless, fallback.changes) == ("freed_memory", True, {})
    because = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
    assert fallback.because == because
    assert fallback.memory_before is not None
    assert fallback.memory_after is not None
    assert len(steps(events)) == 3
    assert set(pictures(events)) == {0}
    assert engine._models.get("sdxl") is not other


def test_a_decoding_that_does_not_fit_is_tried_in_tiles_and_denoised_only_once(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    put(pipeline, "vae", Failing(pipeline.vae, no_memory(), times=2))
    events = render(engine, make_job(num_inference_steps=3))
    assert rungs(events) == ["freed_memory", "tiled_vae"]
    assert len(steps(events)) == 3
    assert set(pictures(events)) == {0}


def test_when_nothing_else_helps_the_picture_is_made_smaller_and_its_recipe_says_so(
    tmp_path: Path, tiny_sd: Path
) -> None:
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd}))
    pipeline = loaded(engine, "sd")
    unet = pipeline.unet
    put(pipeline, "unet", Failing(unet, no_memory(), times=4))
    events = render(engine, make_job(width=128, height=96, num_inference_steps=2))
    assert [(step.rung, step.changes) for step in fallbacks(events)] == [
        ("freed_memory", {}),
        ("dropped_text_encoders", {}),
        ("model_offload", {}),
        ("smaller_picture", {"width": 96, "height": 72}),
    ]
    picture = next(event for event in events if isinstance(event, Picture))
    assert (picture.width, picture.height) == (96, 72)
    image = Image.open(io.BytesIO(picture.data))
    assert image.size == (96, 72)
    recipe = json.loads(image.info["darkroom"])
    assert (recipe["width"], recipe["height"]) == (96, 72)
    put(pipeline, "unet", unet)
    again = next(event for event in render(engine, make_job(width=128, height=96)) if isinstance(event, Picture))
    assert (again.width, again.height) == (128, 96)


def test_a_job_that_forbids_it_is_not_made_smaller_and_told_what_would_help(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    put(pipeline, "unet", Failing(pipeline.unet, no_memory()))
    events: list[Any] = []
    with pytest.raises(OutOfMemory) as raised:
        events.extend(engine.render(make_job(width=128, on_oom="fail"), frozenset(), lambda: False))
    assert "1 picture of 128×64 at a time, 2 steps, VAE whole, one part in memory at a time" in raised.value.message
    assert '"on_oom": "degrade" lets the picture be made smaller' in raised.value.message
    assert "did another program hold them?" in raised.value.message
    assert raised.value.trace is not None


def test_at_the_ladders_foot_the_smallest_plan_is_told_and_the_next_job_runs_on_the_full_one(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    unet = pipeline.unet
    failing = put(pipeline, "unet", Failing(unet, no_memory()))
    seen: list[Event] = []
    with pytest.raises(OutOfMemory, match=r"Not even 1 picture of 64×64 at a time, 8 steps, .*one part in memory"):
        for event in engine.render(make_job(width=128, height=128, num_inference_steps=20), frozenset(), lambda: False):
            seen.append(event)
    assert rungs(seen) == [
        "freed_memory",
        "dropped_text_encoders",
        "model_offload",
        "smaller_picture",
        "smaller_picture",
        "smaller_picture",
        "fewer_steps",
        "fewer_steps",
    ]
    assert [shape[-1] for shape in failing.calls] == [16, 16, 16, 16, 12, 9, 8, 8, 8]
    put(pipeline, "unet", unet)
    events = render(engine, make_job(width=128, height=128))
    assert rungs(events) == []
    assert in_memory(pipeline, events) == [{"text_encoder", "unet", "vae"}] * 2


class Uncompiled(Failing):
    """Has no room for a kernel's code once, and in that thread never again: so does oneDNN."""

    def __init__(self, part: Any) -> None:
        super().__init__(part, RuntimeError("could not create a primitive"), times=0)
        self.seen = threading.local()

    def forward(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if len(self.calls) == 1:
            self.seen.it_all = True
        self.times = int(hasattr(self.seen, "it_all"))
        return super().forward(sample, *arguments, **options)


def test_a_thread_in_which_no_kernel_can_be_compiled_any_more_is_left_and_no_picture_made_smaller(
    tmp_path: Path, tiny_sd: Path
) -> None:
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd}))
    made = pictures(render(engine, make_job(num_inference_steps=3)))
    pipeline = loaded(engine, "sd")
    failing = put(pipeline, "unet", Uncompiled(pipeline.unet))
    for _ in range(2):
        events = render(engine, make_job(num_inference_steps=3))
        assert set(rungs(events)) <= {"freed_memory"}  # none where the process has a bound that was too narrow
        assert pictures(events) == made
    assert len(failing.calls) == 1 + 1 + 3 + 3  # a step that was made, one that was not, and all of both


def test_memory_that_runs_out_before_the_work_begins_is_told_as_such(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine._models, "get", no_room)
    with pytest.raises(OutOfMemory, match="needs before its first step does not fit into memory") as raised:
        render(engine, make_job())
    assert "MemoryError" in (raised.value.trace or "")


def test_what_cannot_be_loaded_even_alone_is_not_made_smaller_in_vain(tmp_path: Path, tiny_sd: Path) -> None:
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd}))

    def no_room() -> Any:
        raise no_memory()

    engine._models.get("sd").loaders["unet"] = no_room
    seen: list[Event] = []
    with pytest.raises(OutOfMemory, match=r"128×128 at a time.* could not even be read into them part by part"):
        for event in engine.render(make_job(width=128, height=128), frozenset(), lambda: False):
            seen.append(event)
    assert rungs(seen) == ["model_offload"]


def test_a_prompt_that_cannot_be_read_is_not_made_smaller_in_vain(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    put(pipeline, "text_encoder", Failing(pipeline.text_encoders[0], no_memory()))
    seen: list[Event] = []
    with pytest.raises(OutOfMemory):
        seen.extend(engine.render(make_job(width=128), frozenset(), lambda: False))
    again = []
    with pytest.raises(OutOfMemory):
        for event in engine.render(make_job(width=128), frozenset(), lambda: False):
            again.append(event)
    assert rungs(again) == ["freed_memory", "model_offload"]


def test_pictures_made_before_memory_ran_out_are_not_made_again(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    vae = pipeline.vae
    events = []
    for event in engine.render(make_job(count=3), frozenset(), lambda: False):
        events.append(event)
        if isinstance(event, Picture) and event.index == 0:
            put(pipeline, "vae", Failing(vae, no_memory(), times=1))
    made = [event.index for event in events if isinstance(event, Picture)]
    assert made == [0, 1, 2]
    assert rungs(events) == ["freed_memory"]


def with_plan(pipeline: Pipeline, job: Job, folder: Path, **changes: Any) -> Iterator[Event]:
    """A job on a plan that a test chooses, such as a GPU's batches."""
    kind: type[Rendering] = FlowRendering if isinstance(pipeline, FlowPipeline) else Rendering
    rendering = kind(
        pipeline,
        job,
        list(range(job.count)),
        8,
        "cpu",
        lambda: False,
        learned=Learned(folder),
        under_way=UnderWay(folder),
        bound=Bound(wanted=False),
        save_memory=lambda: None,
    )
    rendering.fitting.plan = replace(rendering.fitting.full, **changes)
    if rendering.plan.weights != "resident":
        pipeline.let_go()
    return rendering.run()


def assert_the_same_in_parts(
    engine: Engine, job: Job, folder: Path, changes: dict[str, Any], while_denoising: set[str]
) -> None:
    """Two pictures of two steps, made with these parts of the model in memory and no others."""
    whole = pictures(render(engine, job))
    pipeline = loaded(engine, job.model)
    there = []
    made = {}
    for event in with_plan(pipeline, job, folder, **changes):
        if isinstance(event, Step):
            there.append(set(pipeline.loaded))
        if isinstance(event, Picture):
            made[event.index] = event.data
    assert there == [while_denoising] * 4
    for index, data in whole.items():
        assert np.array_equal(pixels(made[index]), pixels(data))
    assert pictures(render(engine, job)) == whole


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_pictures_made_in_batches_are_those_made_alone(engine: Engine, model: str, tmp_path: Path) -> None:
    job = make_job(model=model, count=5, num_inference_steps=3, sampler="Euler a")
    alone = pictures(render(engine, job))
    events = list(with_plan(loaded(engine, model), job, tmp_path, batch=2))
    assert [(step.first, step.batch) for step in steps(events)] == [(0, 2)] * 3 + [(2, 2)] * 3 + [(4, 1)] * 3
    together = pictures(events)
    assert list(together) == list(alone) == [0, 1, 2, 3, 4]
    for index, data in alone.items():
        assert np.abs(pixels(data) - pixels(together[index])).max() <= 1


def test_a_batch_that_does_not_fit_is_halved_and_one_that_is_not_decoded_is_sliced(
    engine: Engine, tmp_path: Path
) -> None:
    pipeline = loaded(engine, "sd")
    unet = put(pipeline, "unet", Failing(pipeline.unet, no_memory(), times=2))
    vae = put(pipeline, "vae", Failing(pipeline.vae, no_memory(), times=1))
    job = make_job(count=4, num_inference_steps=2, guidance_scale=1.0)
    events = list(with_plan(pipeline, job, tmp_path, batch=4))
    assert rungs(events) == ["freed_memory", "smaller_batch", "sliced_vae"]
    assert [shape[0] for shape in unet.calls] == [4, 4, 2, 2, 2, 2]
    assert [shape[0] for shape in vae.calls] == [2, 1, 1, 1, 1]
    assert list(pictures(events)) == [0, 1, 2, 3]


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("changes", "while_denoising"),
    [
        ({"texts": "dropped"}, {"unet", "vae"}),
        ({"texts": "dropped", "weights": "parts"}, {"unet"}),
        ({"texts": "dropped", "weights": "layers"}, {"unet"}),
    ],
)
def test_parts_that_are_not_at_work_leave_memory_and_the_picture_is_the_same(
    engine: Engine, tmp_path: Path, model: str, changes: dict[str, Any], while_denoising: set[str]
) -> None:
    assert_the_same_in_parts(engine, make_job(model=model, count=2), tmp_path, changes, while_denoising)


@pytest.mark.parametrize("side", [64, 104, 144, 216, 264])
def test_a_picture_put_together_of_tiles_has_the_size_that_was_asked_for(
    engine: Engine, tmp_path: Path, side: int
) -> None:
    job = make_job(width=side, height=side - 8, num_inference_steps=1)
    (picture,) = (
        event for event in with_plan(loaded(engine, "sd"), job, tmp_path, vae="tiled") if isinstance(event, Picture)
    )
    assert Image.open(io.BytesIO(picture.data)).size == (side, side - 8)


def test_attention_one_head_at_a_time_gives_the_same_picture_and_is_undone(engine: Engine, tmp_path: Path) -> None:
    job = make_job()
    whole = pictures(render(engine, job))
    pipeline = loaded(engine, "sd")
    made = pictures(list(with_plan(pipeline, job, tmp_path, attention="sliced")))
    assert {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()} == {"SlicedAttnProcessor"}
    assert np.abs(pixels(made[0]) - pixels(whole[0])).max() <= 1
    assert pictures(render(engine, job)) == whole
    assert {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()} == {"AttnProcessor2_0"}


# ---------------------------------------------------------------- what was learnt


def test_the_next_job_of_the_kind_begins_where_the_last_one_fitted_and_says_so(tmp_path: Path, tiny_sd: Path) -> None:
    config = make_config(tmp_path, {"sd": tiny_sd})
    engine = Engine(config)
    pipeline = loaded(engine, "sd")
    put(pipeline, "vae", Failing(pipeline.vae, no_memory(), times=2))
    assert rungs(render(engine, make_job())) == ["freed_memory", "tiled_vae"]
    again = Engine(config)
    (fallback,) = fallbacks(render(again, make_job(seed=8)))
    assert (fallback.rung, fallback.lossless) == ("tiled_vae", True)
    assert "fitted before" in fallback.because
    assert rungs(render(again, make_job(width=128))) == []


def test_a_picture_is_never_made_smaller_for_what_was_learnt(tmp_path: Path, tiny_sd: Path) -> None:
    engine = Engine(make_config(tmp_path, {"sd": tiny_sd}))
    pipeline = loaded(engine, "sd")
    put(pipeline, "unet", Failing(pipeline.unet, no_memory(), times=4))
    assert rungs(render(engine, make_job(width=128, height=128)))[-1] == "smaller_picture"
    events = render(engine, make_job(width=128, height=128))
    assert rungs(events) == ["model_offload"]
    assert [event.width for event in events if isinstance(event, Picture)] == [128]


# ---------------------------------------------------------------- loading


def test_a_model_that_does_not_fit_whole_is_loaded_part_by_part(engine: Engine) -> None:
    whole = pictures(render(engine, make_job()))
    pipeline = loaded(engine, "sd")
    pipeline.let_go()
    read = pipeline.loaders["vae"]
    failures = iter([no_memory(), no_memory()])

    def load() -> Any:
        for failure in failures:
            raise failure
        return read()

    pipeline.loaders["vae"] = load
    events = render(engine, make_job())
    (fallback,) = fallbacks(events)
    assert (fallback.rung, fallback.lossless) == ("model_offload", True)
    assert "can't allocate memory" in fallback.because
    assert pictures(events) == whole


def test_a_model_that_does_not_fit_beside_others_is_loaded_alone(engine: Engine) -> None:
    other, pipeline = loaded(engine, "sdxl"), loaded(engine, "sd")
    pipeline.let_go()
    read = pipeline.loaders["vae"]
    failures = iter([no_memory()])

    def load() -> Any:
        for failure in failures:
            raise failure
        return read()

    pipeline.loaders["vae"] = load
    assert rungs(render(engine, make_job())) == []
    assert engine._models.get("sdxl") is not other
