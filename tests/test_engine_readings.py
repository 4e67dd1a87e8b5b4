"""Texts are read once: a job with those of an earlier one gets the same pictures, and no text encoder is woken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom.config import Config
from darkroom.engine.models import Models
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.prompt import encode
from darkroom.engine.readings import Conditioning, Embeddings, Readings, Texts
from darkroom.engine.render import Engine
from darkroom.errors import Stopped
from darkroom.events import Ending, Loaded, Step
from darkroom.job import Job
from engine_models import fallbacks, make_config, make_job, pictures, render, warned
from test_engine_render import Failing, loaded, no_memory, put

pytest_plugins = ("engine_fixtures",)


class Read:
    """How often a pipeline's first text encoder is at work, and how often it is read from the disk."""

    stopping = False
    """Whether somebody asked the engine to stop."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.texts = self.files = 0
        read = pipeline.loaders["text_encoder"]

        def load() -> Any:
            self.files += 1
            return self._watched(read())

        pipeline.loaders["text_encoder"] = load
        pipeline.loaded["text_encoder"] = self._watched(pipeline.part("text_encoder"))

    def _watched(self, encoder: Any) -> Any:
        def count(*_: Any) -> None:
            self.texts += 1

        encoder.register_forward_pre_hook(count)
        return encoder


def fresh(config: Config, job: Job) -> dict[int, bytes]:
    """What an engine makes that never made anything."""
    return pictures(render(Engine(config), job))


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_the_texts_of_an_earlier_job_are_not_read_again_and_the_picture_is_the_same(
    engine: Engine, config: Config, model: str
) -> None:
    read = Read(loaded(engine, model))
    job = make_job(model=model)
    first = render(engine, job)
    assert read.texts == 2, "the prompt and the negative one"
    second = render(engine, job)
    assert read.texts == 2
    assert pictures(first) == pictures(second) == fresh(config, job)


def test_what_does_not_touch_the_texts_may_be_otherwise(engine: Engine, config: Config) -> None:
    read = Read(loaded(engine, "sd"))
    render(engine, make_job())
    other = make_job(seed=1, count=2, num_inference_steps=3, sampler="DPM++ 2M", guidance_scale=3.0, width=128, id="b")
    assert pictures(render(engine, other)) == fresh(config, other)
    assert read.texts == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a red circle on the blue  sky"},
        {"negative_prompt": ""},
        {"clip_skip": 2},
        {"long_prompt": "truncate"},
        {"guidance_scale": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_texts_or_another_way_to_read_them_are_read(
    engine: Engine, config: Config, changes: dict[str, Any]
) -> None:
    read = Read(loaded(engine, "sd"))
    render(engine, make_job())
    job = make_job(**changes)
    assert pictures(render(engine, job)) == fresh(config, job)
    assert read.texts > 2


def test_the_key_has_all_of_a_job_that_reading_goes_by(config: Config) -> None:
    seen: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            seen.add(name)
            return getattr(job, name)

    job = make_job(prompt="(red:1.2) circle, [a|b] <lora:fur:0.8>", clip_skip=2)
    watched: Any = Watched()
    for model in ("sd", "sdxl"):
        pipeline = Models(config, torch.device("cpu")).get(model)
        for guided in (True, False):
            encode(pipeline, watched, guided=guided)
    assert seen == set(Texts.__dataclass_fields__)


def test_a_warning_is_told_to_each_job(engine: Engine) -> None:
    job = make_job(prompt="red [a|b] " * 60, long_prompt="truncate")
    first, second = (warned(render(engine, job)) for _ in range(2))
    assert [warning.code for warning in first] == ["prompt_editing_ignored", "prompt_truncated"]
    assert second == first


def test_a_model_that_was_replaced_on_the_disk_reads_anew(tmp_path: Path, tiny_sd: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_sd, folder)
    config = make_config(tmp_path, {"sd": folder})
    engine = Engine(config)
    before = pictures(render(engine, make_job()))
    file = folder / "text_encoder/model.safetensors"
    save_file({name: weight * 1.5 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    after = pictures(render(engine, make_job()))
    assert after != before
    assert after == fresh(config, make_job())


def test_the_models_leave_memory_with_what_they_read(engine: Engine) -> None:
    job = make_job()
    render(engine, job)
    engine.close()
    read = Read(loaded(engine, "sd"))
    render(engine, job)
    assert read.texts == 2


def test_what_was_read_is_let_go_when_memory_runs_out(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    read = Read(pipeline)
    render(engine, make_job())
    put(pipeline, "vae", Failing(pipeline.vae, no_memory(), times=1))
    assert len(fallbacks(render(engine, make_job()))) == 1
    assert read.texts == 2, "the job at work has no need to read again"
    render(engine, make_job())
    assert read.texts == 4


def test_text_encoders_that_had_to_leave_are_not_read_from_the_disk_for_texts_that_are_known(engine: Engine) -> None:
    pipeline = loaded(engine, "sd")
    whole = pictures(render(engine, make_job()))
    unet = pipeline.unet
    put(pipeline, "unet", Failing(unet, no_memory(), times=2))
    rungs = [fallback.rung for fallback in fallbacks(render(engine, make_job()))]
    assert rungs[-1] == "dropped_text_encoders"
    put(pipeline, "unet", unet)
    read = Read(pipeline)
    render(engine, make_job())
    files, texts = read.files, read.texts
    assert texts == 2
    events = []
    for event in engine.render(make_job(), frozenset(), lambda: False):
        events.append(event)
        assert not isinstance(event, Step) or set(pipeline.loaded) == {"unet", "vae"}
    assert [event.seconds for event in events if isinstance(event, Loaded)] == [0.0]
    assert (read.files, read.texts) == (files, texts)
    assert pictures(events) == whole
    other = make_job(prompt="a house")
    assert pictures(render(engine, other))
    assert (read.files > files, read.texts) == (True, texts + 2)


def save_lora(file: Path, layer: str, sides: tuple[int, int]) -> None:
    torch.manual_seed(3)
    down, up = torch.randn(2, sides[0]), torch.randn(sides[1], 2)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, file)


def test_a_lora_on_the_text_encoder_is_heard_each_time_and_leaves_nothing_to_the_next_job(
    config: Config, tmp_path: Path
) -> None:
    save_lora(tmp_path / "words.safetensors", "lora_te_text_model_encoder_layers_0_mlp_fc1", (16, 32))
    config = config.model_copy(update={"models": config.models.model_copy(update={"loras_dir": tmp_path})})
    engine = Engine(config)
    read = Read(loaded(engine, "sd"))
    plain, tagged = make_job(), make_job(loras=({"name": "words", "weight": 1.0},))
    first = pictures(render(engine, plain))
    adapted = pictures(render(engine, tagged))
    assert read.texts == 4
    assert adapted == fresh(config, tagged)
    assert adapted != first
    stronger = tagged.model_copy(update={"loras": (tagged.loras[0].model_copy(update={"weight": 2.0}),)})
    assert pictures(render(engine, stronger)) == fresh(config, stronger)
    assert read.texts == 6
    assert pictures(render(engine, plain)) == first
    assert read.texts == 6


def test_a_lora_on_the_unet_alone_changes_no_text(config: Config, tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    save_lora(tmp_path / "brush.safetensors", layer, (32, 32))
    config = config.model_copy(update={"models": config.models.model_copy(update={"loras_dir": tmp_path})})
    engine = Engine(config)
    read = Read(loaded(engine, "sd"))
    render(engine, make_job())
    painted = make_job(loras=({"name": "brush", "weight": 1.0},))
    assert pictures(render(engine, painted)) == fresh(config, painted)
    assert read.texts == 2


# Before their turn


def told(engine: Engine, job: Job, following: Job, read: Read) -> list[str]:
    """What happens in ``job``, where ``following`` is announced as it ends: kinds of events, and ``read``."""
    story: list[str] = []
    for event in engine.render(job, frozenset(), lambda: False):
        if isinstance(event, Ending):
            engine.announce(following)
        story += ["read"] * (read.texts - story.count("read"))
        story.append(type(event).__name__)
    return story


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_the_texts_of_the_next_job_are_read_before_the_one_that_ends_is_over(
    engine: Engine, config: Config, model: str
) -> None:
    read = Read(loaded(engine, model))
    job, following = make_job(model=model), make_job(model=model, prompt="a green house", negative_prompt="", seed=3)
    story = told(engine, job, following, read)
    assert [line for line in story if line != "Step"] == [
        *("Loaded", "read", "read", "Ending", "Picture", "read", "read", "Finished")
    ]
    events = render(engine, following)
    assert read.texts == 4
    assert pictures(events) == fresh(config, following)
    assert pictures(render(engine, job)) == fresh(config, job)


@pytest.mark.parametrize(
    "following",
    [
        {"model": "sdxl", "prompt": "red"},
        {"prompt": "red <lora:words>"},
        {"prompt": "(red:1000)"},
        {},
    ],
    ids=["another model", "a LoRA", "no such weight", "known already"],
)
def test_texts_that_cannot_be_read_beforehand_or_need_not_be_are_left_to_their_turn(
    engine: Engine, following: dict[str, Any]
) -> None:
    read = Read(loaded(engine, "sd"))
    assert told(engine, make_job(), make_job(**following), read).count("read") == 2


def test_of_what_was_announced_to_a_job_that_was_stopped_the_next_one_hears_nothing(engine: Engine) -> None:
    read = Read(loaded(engine, "sd"))
    render(engine, make_job())
    with pytest.raises(Stopped):
        for event in engine.render(make_job(), frozenset(), lambda: read.stopping):
            engine.announce(make_job(prompt="red"))
            read.stopping = isinstance(event, Step)
    render(engine, make_job())
    assert read.texts == 2


def test_memory_that_runs_out_as_texts_are_read_beforehand_costs_nobody_anything(
    engine: Engine, config: Config
) -> None:
    pipeline = loaded(engine, "sd")
    read = Read(pipeline)
    job, following = make_job(), make_job(prompt="a green house")
    render(engine, job)
    encoder = pipeline.part("text_encoder")
    put(pipeline, "text_encoder", Failing(encoder, no_memory(), times=1))
    events = []
    for event in engine.render(job, frozenset(), lambda: False):
        events.append(event)
        if isinstance(event, Ending):
            engine.announce(following)
    assert fallbacks(events) == []
    assert pictures(events) == fresh(config, job)
    assert read.texts == 2
    events = render(engine, following)
    assert fallbacks(events) == []
    assert pictures(events) == fresh(config, following)
    assert read.texts == 4


def embeddings(numbers: int) -> Conditioning:
    return Conditioning(Embeddings(torch.zeros(1, 77, numbers)), None)


def test_so_many_bytes_are_kept_and_what_was_not_asked_for_longest_goes_first() -> None:
    size = 77 * 8 * 4
    readings = Readings(keep_bytes=3 * size)
    texts = [Texts(prompt, None, 1, "chunk") for prompt in "abcd"]
    for one in texts[:3]:
        readings.keep(one, embeddings(8))
    assert readings.get(texts[0]) is not None
    readings.keep(texts[3], embeddings(8))
    assert [readings.get(one) is not None for one in texts] == [True, False, True, True]
    readings.keep(texts[1], embeddings(32))
    assert [readings.get(one) for one in texts] == [None] * 4, "one that is too large by itself is not kept"
