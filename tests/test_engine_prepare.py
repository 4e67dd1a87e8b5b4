"""The default model is loaded before the first job, where that is asked for; what is wrong then, the job says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.config import Config, ModelEntry
from darkroom.engine.render import Engine
from darkroom.errors import ModelUnavailable
from darkroom.events import Finished, Loaded, Picture
from darkroom.executors import LocalExecutor
from darkroom.job import parse_fields, resolve
from darkroom.models.catalog import Catalog
from engine_models import fallbacks, make_config, make_job, pictures, render
from test_engine_render import no_memory

pytest_plugins = ("engine_fixtures",)


def never() -> bool:
    return False


def after(parts: int) -> Callable[[], bool]:
    """Somebody comes once so many parts are loaded."""
    calls = iter([False] * parts)
    return lambda: next(calls, True)


def loading(events: list[Any]) -> float:
    (seconds,) = (event.seconds for event in events if isinstance(event, Loaded))
    return float(seconds)


def test_the_first_job_finds_the_default_model_loaded(engine: Engine, config: Config) -> None:
    engine.prepare(never)
    events = render(engine, make_job())
    assert loading(events) == 0.0
    cold = render(Engine(config), make_job())
    assert loading(cold) > 0.0
    assert pictures(events) == pictures(cold)


def test_it_stops_between_two_parts_and_the_job_loads_the_others(engine: Engine) -> None:
    engine.prepare(after(1))
    pipeline = engine._models.get("sd")
    (first,) = pipeline.loaded.values()
    events = render(engine, make_job())
    assert loading(events) > 0.0
    assert pipeline.loaded[next(iter(pipeline.loaded))] is first
    assert set(pipeline.loaded) == set(pipeline.loaders)


def test_a_job_of_another_model_is_made_as_ever(engine: Engine, config: Config) -> None:
    engine.prepare(after(2))
    job = make_job(model="sdxl")
    assert pictures(render(engine, job)) == pictures(render(Engine(config), job))


def test_a_default_model_that_is_no_whole_model_is_the_jobs_matter(tmp_path: Path, tiny_sd: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    engine = Engine(make_config(tmp_path, {"broken": broken, "sd": tiny_sd}))
    for attempt in (lambda: engine.prepare(never), lambda: render(engine, make_job(model="broken"))):
        with pytest.raises(ModelUnavailable):
            attempt()
    assert pictures(render(engine, make_job()))


def test_a_model_on_the_hub_is_not_fetched_for_it(tmp_path: Path, config: Config) -> None:
    named = config.models.named | {"far": ModelEntry(path=Path("hub:nobody/nothing"))}
    models = config.models.model_copy(
        update={"named": named, "default": "far", "hub_dir": tmp_path, "allow_download": True}
    )
    engine = Engine(config.model_copy(update={"models": models}))
    with pytest.raises(ModelUnavailable):
        engine.prepare(never)
    assert list(tmp_path.glob("nobody*")) == []


def test_where_memory_runs_out_the_job_is_made_on_what_there_is(engine: Engine) -> None:
    pipeline = engine._models.get("sd")
    read = pipeline.loaders["vae"]
    failures = iter([no_memory()])

    def load() -> Any:
        for failure in failures:
            raise failure
        return read()

    pipeline.loaders["vae"] = load
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        engine.prepare(never)
    engine.close()
    events = render(engine, make_job())
    assert fallbacks(events) == []
    assert pictures(events)


@pytest.fixture
def executor(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    darkroom.configure(engine={"preload": True, "device": "cpu", "threads": 1, "cache_dir": darkroom.root / "cache"})
    executor = LocalExecutor(darkroom.config, "engine_marked:Marking")
    yield executor
    executor.close()


def test_a_process_that_was_started_for_no_job_has_the_model_when_one_comes(
    darkroom: Darkroom, executor: LocalExecutor
) -> None:
    executor.start()
    end = time.monotonic() + 120
    while not (darkroom.root / "cache/prepared").exists() and time.monotonic() < end:
        time.sleep(0.05)
    fields = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}
    job = resolve(parse_fields(fields), darkroom.config, Catalog(darkroom.config.models), "test")
    events = list(executor.run(job))
    assert loading(events) == 0.0
    assert [type(event) for event in events if isinstance(event, Picture | Finished)] == [Picture, Finished]
