"""SD 3 and Flux: diffusers' own pictures, step by step, stopped, cut down when memory runs out, and what is refused."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Darkroom
from darkroom.check import preflight
from darkroom.cli.models import gather
from darkroom.config import Config
from darkroom.engine.flow import FlowPipeline
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.errors import InvalidRequest, ModelUnavailable, OutOfMemory, RenderFailed, Stopped
from darkroom.events import Event, Finished, Loaded, Picture, Step, Warned
from darkroom.executors import LocalExecutor
from darkroom.job import Hires, Job, LoraUse, misfits, parse_fields, resolve
from darkroom.models.catalog import Catalog
from darkroom.models.families import FLOWS
from engine_checkpoints import save_checkpoint
from engine_flows import save_tiny_flow
from engine_models import fallbacks, kinds, make_config, pictures, render, steps, warned
from engine_models import make_job as make_any_job
from test_engine_readings import Read, fresh, told
from test_engine_render import assert_the_same_in_parts, loaded, no_memory, pixels, put, rungs, stop_after, with_plan

OWN = {"sd3": "uniform", "sd3-clip": "uniform", "flux": "sgm_uniform", "schnell": "sgm_uniform"}
"""The models, and the schedule that is each one's own."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flows")
    return {
        "sd3": save_tiny_flow(root / "sd3"),
        "sd3-clip": save_tiny_flow(root / "sd3-clip", t5=False),
        "flux": save_tiny_flow(root / "flux", "Flux"),
        "schnell": save_tiny_flow(root / "schnell", "Flux", guidance_embeds=False),
    }


@pytest.fixture
def config(tmp_path: Path, folders: dict[str, Path]) -> Config:
    return make_config(tmp_path, folders)


@pytest.fixture
def engine(config: Config) -> Iterator[Engine]:
    engine = Engine(config)
    yield engine
    engine.close()


def make_job(model: str = "sd3", **fields: Any) -> Job:
    return make_any_job(**{"model": model, "negative_prompt": "", "schedule": OWN[model], **fields})


def working(pipeline: Pipeline, name: str, before: Callable[[], None]) -> None:
    """Have ``before`` called each time the part goes to work, when it was let go and read again too."""
    put(pipeline, name, pipeline.part(name)).register_forward_pre_hook(lambda *_: before())


def failing(times: int) -> Callable[[], None]:
    left = iter(range(times))

    def fail() -> None:
        if next(left, None) is not None:
            raise no_memory()

    return fail


# ---------------------------------------------------------------- what comes out


def test_a_job_goes_from_loaded_over_its_steps_and_pictures_to_finished(engine: Engine) -> None:
    events = render(engine, make_job(count=2, num_inference_steps=3))
    assert kinds(events) == [Loaded, *[Step, Step, Step, Picture] * 2, Finished]
    assert steps(events)[3:] == [Step(1, 1, 1, 3), Step(1, 1, 2, 3), Step(1, 1, 3, 3)]
    assert [(event.index, event.seed) for event in events if isinstance(event, Picture)] == [(0, 7), (1, 8)]
    last = events[-1]
    assert isinstance(last, Finished)
    assert all(seconds > 0 for seconds in last.seconds.values())


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("model", OWN)
def test_the_picture_is_the_one_that_diffusers_own_pipeline_makes(
    model: str, guidance_scale: float, folders: dict[str, Path], engine: Engine
) -> None:
    import diffusers

    sd3 = model.startswith("sd3")
    kind = diffusers.StableDiffusion3Pipeline if sd3 else diffusers.FluxPipeline
    absent = {"text_encoder_3": None, "tokenizer_3": None} if model == "sd3-clip" else {}
    theirs: Any = kind.from_pretrained(folders[model], dtype=torch.float32, **absent)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 16, 12, 8), generator=torch.Generator().manual_seed(7))
    options: dict[str, Any] = {"negative_prompt": "house"} if sd3 else {}
    if model == "schnell":
        options["max_sequence_length"] = 256
    expected = theirs(
        prompt="a red circle on the blue sky",
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        height=96,
        width=64,
        latents=noise if sd3 else theirs._pack_latents(noise, 1, 16, 12, 8),
        **options,
    ).images[0]
    job = make_job(model, guidance_scale=guidance_scale, width=64, height=96, num_inference_steps=4)
    events = render(engine, job.model_copy(update={"negative_prompt": "house"} if sd3 else {}))
    difference = np.abs(pixels(pictures(events)[0]) - np.asarray(expected).astype(np.int16))
    assert difference.max() <= 1


@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_the_guidance_and_the_other_schedule_change_the_picture(model: str, engine: Engine) -> None:
    made = [
        pixels(pictures(render(engine, make_job(model, num_inference_steps=4, **fields)))[0])
        for fields in ({}, {"guidance_scale": 2.0}, {"schedule": ({"uniform", "sgm_uniform"} - {OWN[model]}).pop()})
    ]
    assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


@pytest.mark.parametrize(
    ("model", "fields", "code", "detail"),
    [
        ("flux", {"negative_prompt": "house"}, "negative_prompt_ignored", None),
        ("schnell", {"guidance_scale": 5.0}, "guidance_ignored", None),
        ("sd3", {"prompt": "a (red:1.2) circle, ((blue)) sky"}, "prompt_weights_ignored", "red, blue"),
        ("sd3", {"negative_prompt": "a (house:1.2)"}, "prompt_weights_ignored", "house"),
        ("flux", {"prompt": "a red circle BREAK a blue sky"}, "prompt_weights_ignored", None),
        ("sd3", {"prompt": "a [red|blue] circle"}, "prompt_editing_ignored", "[red|blue]"),
        ("sd3", {"prompt": "red " * 255 + "circle"}, "prompt_truncated", "circle"),
        ("sd3", {"negative_prompt": "red " * 255 + "house"}, "prompt_truncated", "house"),
        ("sd3-clip", {"prompt": "red " * 75 + "circle"}, "prompt_truncated", "circle"),
        ("flux", {"prompt": "red " * 511 + "circle"}, "prompt_truncated", "circle"),
        ("schnell", {"prompt": "red " * 255 + "circle"}, "prompt_truncated", "circle"),
    ],
)
def test_what_such_a_model_cannot_honour_is_a_warning(
    engine: Engine, model: str, fields: dict[str, Any], code: str, detail: str | None
) -> None:
    scale = 0.0 if model == "schnell" else 5.0
    seen = warned(render(engine, make_job(model, **{"num_inference_steps": 1, "guidance_scale": scale, **fields})))
    assert (code, detail) in [(warning.code, warning.detail) for warning in seen]


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("sd3", {"prompt": "red " * 254 + "circle", "negative_prompt": "a house"}),
        ("sd3-clip", {"prompt": "red " * 74 + "circle"}),
        ("flux", {"prompt": "red " * 510 + "circle"}),
        ("schnell", {"guidance_scale": 0.0, "prompt": r"a \(red\) circle"}),
    ],
)
def test_what_it_honours_is_none(engine: Engine, model: str, fields: dict[str, Any]) -> None:
    assert warned(render(engine, make_job(model, num_inference_steps=1, **fields))) == []


@pytest.mark.parametrize("model", ["sd3", "sd3-clip", "flux"])
def test_texts_are_read_once_and_those_of_the_next_job_before_its_turn(
    engine: Engine, config: Config, model: str
) -> None:
    read = Read(loaded(engine, model))
    job, following = make_job(model), make_job(model, prompt="a green house", seed=3)
    story = [line for line in told(engine, job, following, read) if line not in ("Step", "read")]
    assert story == ["Loaded", "Ending", "Picture", "Finished"]
    before = read.texts
    events = render(engine, following)
    assert pictures(events) == fresh(config, following)
    assert pictures(render(engine, job)) == fresh(config, job)
    assert read.texts == before == (2 if model == "flux" else 4)


def test_what_a_job_cannot_have_is_said_though_its_texts_are_known(engine: Engine) -> None:
    told = [
        {warning.code for warning in warned(render(engine, make_job("schnell", num_inference_steps=1, **fields)))}
        for fields in ({}, {"negative_prompt": "red", "guidance_scale": 5.0}, {"guidance_scale": 1.0})
    ]
    assert told == [{"guidance_ignored"}, {"negative_prompt_ignored", "guidance_ignored"}, set()]


def test_weights_that_are_left_out_leave_the_words(engine: Engine) -> None:
    weighed, plain = (
        pictures(render(engine, make_job(prompt=prompt)))[0]
        for prompt in ("a (red:1.4) circle on [the] blue sky", "a red circle on the blue sky")
    )
    assert np.array_equal(pixels(weighed), pixels(plain))


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_the_same_job_gives_the_same_bytes_whatever_was_skipped_or_made_before(config: Config, model: str) -> None:
    job = make_job(model, count=3, num_inference_steps=3)
    whole = pictures(render(Engine(config), job))
    assert pictures(render(Engine(config), job, skip={0, 2})) == {1: whole[1]}
    engine = Engine(config)
    render(engine, make_job({"sd3": "flux", "flux": "sd3"}[model]))
    alone = pictures(render(engine, job.model_copy(update={"seed": 9, "count": 1})))
    assert np.array_equal(pixels(alone[0]), pixels(whole[2]))


@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_pictures_made_in_batches_are_those_made_alone(engine: Engine, model: str, tmp_path: Path) -> None:
    job = make_job(model, count=5, num_inference_steps=3, negative_prompt="house" if model == "sd3" else "")
    alone = pictures(render(engine, job))
    events = list(with_plan(loaded(engine, model), job, tmp_path, batch=2))
    assert [(step.first, step.batch) for step in steps(events)] == [(0, 2)] * 3 + [(2, 2)] * 3 + [(4, 1)] * 3
    together = pictures(events)
    assert list(together) == list(alone) == [0, 1, 2, 3, 4]
    for index, data in alone.items():
        assert np.abs(pixels(data) - pixels(together[index])).max() <= 1


@pytest.mark.parametrize("model", ["sd3", "flux"])
@pytest.mark.parametrize(
    ("changes", "while_denoising"),
    [
        ({"texts": "dropped"}, {"transformer", "vae"}),
        ({"texts": "dropped", "weights": "parts"}, {"transformer"}),
        ({"texts": "dropped", "weights": "layers"}, {"transformer"}),
    ],
)
def test_parts_that_are_not_at_work_leave_memory_and_the_picture_is_the_same(
    engine: Engine, tmp_path: Path, model: str, changes: dict[str, Any], while_denoising: set[str]
) -> None:
    assert_the_same_in_parts(engine, make_job(model, count=2), tmp_path, changes, while_denoising)


# ---------------------------------------------------------------- stopping


def step_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "steps"]


def test_it_stops_before_the_next_step_and_can_go_on(engine: Engine) -> None:
    job = make_job(count=2, num_inference_steps=4)
    calls: list[None] = []
    working(loaded(engine, "sd3"), "transformer", lambda: calls.append(None))
    events: list[Event] = []
    with pytest.raises(Stopped):
        events.extend(engine.render(job, frozenset(), lambda: Step(1, 1, 2, 4) in events))
    assert (len(steps(events)), len(calls)) == (6, 6)
    assert step_threads() == []
    assert pictures(render(engine, job, skip={0}))[1] == pictures(render(engine, job))[1]


@pytest.mark.parametrize("calls", range(5))
def test_it_can_be_stopped_at_every_turn(engine: Engine, calls: int) -> None:
    with pytest.raises(Stopped):
        list(engine.render(make_job(num_inference_steps=2), frozenset(), stop_after(calls)))
    assert step_threads() == []


def test_a_generator_that_is_closed_leaves_the_engine_usable(engine: Engine) -> None:
    stream = engine.render(make_job("flux"), frozenset(), lambda: False)
    assert any(isinstance(event, Step) for event in stream)
    assert len(step_threads()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert step_threads() == []
    assert pictures(render(engine, make_job("flux")))


# ---------------------------------------------------------------- out of memory


def test_memory_that_runs_out_is_a_retry_and_what_the_failure_held_is_free_by_then(engine: Engine) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def fail_once() -> None:
        alive.append(any(reference() is not None for reference in held))
        if not held:
            ballast = torch.zeros(1000)
            held.append(weakref.ref(ballast))
            raise no_memory()

    working(loaded(engine, "sd3"), "transformer", fail_once)
    events = render(engine, make_job())
    assert rungs(events) == ["freed_memory"]
    assert set(pictures(events)) == {0}
    assert alive == [False, False, False]


@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_the_ladder_is_stepped_down_to_a_smaller_picture_of_a_size_that_fits(engine: Engine, model: str) -> None:
    pipeline = loaded(engine, model)
    pipeline.unet_config = {**pipeline.unet_config, "sample_size": 8}
    working(pipeline, "transformer", failing(4))
    events = render(engine, make_job(model, width=160, height=112))
    assert [(step.rung, step.changes) for step in fallbacks(events)] == [
        ("freed_memory", {}),
        ("dropped_text_encoders", {}),
        ("model_offload", {}),
        ("smaller_picture", {"width": 112, "height": 80}),
    ]
    (picture,) = (event for event in events if isinstance(event, Picture))
    assert pixels(picture.data).shape == (80, 112, 3)


def test_a_job_that_forbids_it_is_not_made_smaller(engine: Engine) -> None:
    working(loaded(engine, "flux"), "transformer", failing(1000))
    with pytest.raises(OutOfMemory, match="1 picture of 64×64 at a time, 2 steps, VAE whole, one part in memory"):
        render(engine, make_job("flux", on_oom="fail"))


def test_another_failure_is_told_with_its_trace(engine: Engine) -> None:
    def fail() -> None:
        raise ValueError("the shutter is stuck")

    working(loaded(engine, "sd3"), "transformer", fail)
    with pytest.raises(RenderFailed, match="ValueError: the shutter is stuck") as raised:
        render(engine, make_job())
    assert raised.value.trace is not None
    assert "pipeline_stable_diffusion_3.py" in raised.value.trace
    assert step_threads() == []


# ---------------------------------------------------------------- when the job arrives


def resolved(config: Config, **fields: Any) -> Job:
    return resolve(parse_fields({"prompt": "x", **fields}), config, Catalog(config.models), "test")


@pytest.mark.parametrize(
    ("model", "steps", "scale", "side"),
    [("sd3", 28, 7.0, 64), ("flux", 28, 3.5, 1024), ("schnell", 4, 0.0, 1024)],
)
def test_a_job_gets_what_suits_the_family(config: Config, model: str, steps: int, scale: float, side: int) -> None:
    job = resolved(config, model=model)
    assert (job.sampler, job.schedule, job.num_inference_steps, job.guidance_scale, job.width, job.height) == (
        *("Euler", OWN[model], steps, scale),
        *(side, side),
    )
    assert resolved(config, **{**job.recipe(), "schedule": "simple"}).schedule == "sgm_uniform"
    assert resolved(config, **job.recipe()).recipe() == job.recipe()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampler": "DPM++ 2M Karras"}, 'does not go with SD 3, which follows a flow (the nearest is "Euler")'),
        ({"schedule": "karras"}, 'the sampler "Euler" cannot follow the schedule "karras"'),
        ({"width": 72}, "width: SD 3 models need multiples of 16 (the nearest are 64 and 80)"),
        ({"height": 1032}, "height: SD 3 models need multiples of 16 (the nearest are 1024 and 1040)"),
        ({"clip_skip": 2}, "clip_skip: darkroom leaves out no layers"),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_its_field(config: Config, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        resolved(config, model="sd3", **fields)
    assert words in raised.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"loras": (LoraUse(name="x"),)},
        {"prompt": "a <lora:x:0.5> house"},
        {"init_image": "x.png"},
        {"hires": Hires()},
        {"guidance_interval": (0.1, 0.8)},
        {"reuse_features": 2},
        {"decoder": "tiny"},
    ],
)
def test_so_is_what_only_unets_can_do(fields: dict[str, Any]) -> None:
    assert [fault.field for fault in misfits(make_job("flux", **fields), FLOWS["Flux"])] == list(fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampler": "DPM++ 2M", "schedule": "karras"}, "does not go with Flux"),
        ({"schedule": "karras"}, "cannot follow the schedule"),
        ({"width": 72}, "need multiples of 16"),
    ],
)
def test_the_engine_looks_again(engine: Engine, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RenderFailed, match=words):
        render(engine, make_job("flux", **fields))


# ---------------------------------------------------------------- folders


def test_they_are_listed_with_family_and_size(config: Config, tmp_path: Path) -> None:
    listed = {model["name"]: model for model in gather(config)}
    families = {name: listed[name]["family"] for name in OWN}
    assert families == {"sd3": "SD 3", "sd3-clip": "SD 3", "flux": "Flux", "schnell": "Flux"}
    assert all(listed[name]["usable"] and listed[name]["bytes"] > 100_000 for name in OWN)
    fake = config.model_copy(
        update={
            "executor": config.executor.model_copy(update={"kind": "fake"}),
            "folders": config.folders.model_copy(update={"root": tmp_path / "spool"}),
        }
    )
    found = [finding.message for finding in preflight(fake) if finding.ok and finding.what == "model"]
    assert any("flux" in message and "Flux, native size 1024" in message for message in found)
    assert any("SD 3, native size 64" in message for message in found)


def test_what_is_wrong_with_a_folder_is_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    def copied(name: str, source: str = "sd3") -> Path:
        return Path(shutil.copytree(folders[source], tmp_path / name))

    part = "diffusion_pytorch_model.safetensors"
    cut = copied("cut") / "transformer" / part
    cut.write_bytes(cut.read_bytes()[:-5])
    pickled = copied("pickled") / "text_encoder_3/model.safetensors"
    pickled.rename(pickled.with_suffix(".bin"))
    shutil.rmtree(copied("texts") / "text_encoder_3")
    (copied("tokenizer", "flux") / "tokenizer_2/tokenizer.json").unlink()
    shutil.rmtree(copied("missing", "flux") / "transformer")
    tensors = copied("tensors", "flux") / "transformer" / part
    _drop_tensors(tensors, 2)
    filling = copied("filling", "flux") / "transformer/config.json"
    filling.write_text(json.dumps(json.loads(filling.read_text()) | {"in_channels": 384}))
    said = {
        "cut": "is cut short: it has",
        "pickled": "has its weights as a pickle",
        "texts": "text_encoder_3/config.json is missing",
        "tokenizer": "tokenizer_2 has no tokenizer.json",
        "missing": "transformer/config.json is missing",
        "tensors": "lack 2 tensors that its config.json asks for",
        "filling": "takes 96 channels where its VAE has 16",
    }
    engine = Engine(make_config(tmp_path, {name: tmp_path / name for name in said}))
    for name, words in said.items():
        with pytest.raises(ModelUnavailable) as raised:
            render(engine, make_any_job(model=name))
        assert words in raised.value.message
        assert "\n" not in raised.value.message


def _drop_tensors(file: Path, count: int) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    save_file({name: weights[name] for name in sorted(weights)[count:]}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("with_vae", [True, False])
def test_a_checkpoint_of_sd_3_makes_the_picture_of_the_folder_it_was_made_of(
    folders: dict[str, Path], tmp_path: Path, with_vae: bool
) -> None:
    from safetensors.torch import load_file, save_file

    file = save_checkpoint(folders["sd3"], tmp_path / "one.safetensors", "SD 3")
    if not with_vae:
        kept = {name: weight for name, weight in load_file(file).items() if not name.startswith("first_stage_model.")}
        save_file(kept, file)
    base = Path(shutil.copytree(folders["sd3"], tmp_path / "base"))
    for part in ("transformer", *(("vae",) if with_vae else ())):
        next((base / part).glob("*.safetensors")).unlink()
    config = make_config(tmp_path, {"folder": folders["sd3"], "file": file})
    entry = config.models.named["file"].model_copy(update={"base": str(base)})
    models = config.models.model_copy(update={"named": {**config.models.named, "file": entry}})
    config = config.model_copy(update={"models": models})
    (listed,) = (model for model in gather(config) if model["name"] == "file")
    assert (listed["family"], listed["usable"]) == ("SD 3", True)
    assert listed["bytes"] > file.stat().st_size
    engine = Engine(config)
    whole, one = (pictures(render(engine, make_any_job(model=name, negative_prompt=""))) for name in ("folder", "file"))
    assert np.abs(pixels(one[0]) - pixels(whole[0])).max() <= 1
    (base / "text_encoder_3/model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"there is no safetensors file in .*text_encoder_3"):
        render(Engine(config), make_any_job(model="file"))


def test_a_dropped_job_goes_through_the_daemon(darkroom: Darkroom, folders: dict[str, Path], tmp_path: Path) -> None:
    darkroom.configure(
        models={name: {"path": path} for name, path in folders.items()},
        engine={"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": tmp_path / "cache"},
    )
    size = {"width": 64, "height": 64, "num_inference_steps": 2}
    darkroom.drop("sd3.json", model="sd3", **size)
    darkroom.drop("flux.json", model="flux", negative_prompt="house", **size)
    darkroom.drop("odd.json", model="flux", sampler="DDIM", **size)
    darkroom.run_once(LocalExecutor(darkroom.config))
    assert darkroom.names("done") == ["flux", "sd3"]
    assert darkroom.result("sd3")["job"]["sampler"] == "Euler"
    assert [warning["code"] for warning in darkroom.result("flux")["warnings"]] == ["negative_prompt_ignored"]
    assert darkroom.error("odd")["reason"] == "invalid-request"


def test_the_engine_s_pipeline_is_of_its_own_kind(engine: Engine) -> None:
    assert isinstance(loaded(engine, "flux"), FlowPipeline)
    assert isinstance(loaded(engine, "sd3"), FlowPipeline)
    assert not [warning for warning in render(engine, make_job(num_inference_steps=1)) if isinstance(warning, Warned)]
