"""Jobs that wait, denoised in the passes of the one before them: their pictures and verdicts are their own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Darkroom
from darkroom.engine import rendering
from darkroom.engine.render import Engine
from darkroom.errors import Stopped
from darkroom.events import Event, Picture, Step
from darkroom.executors import FakeExecutor, LocalExecutor
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.job.together import FREE, go_together, latents_key
from darkroom.spool import PAUSE
from engine_models import fallbacks, make_config, make_job, pictures, render, save_tiny, steps
from test_loop import Running, until

PATIENCE_S = 300.0
"""For an engine that starts and makes hundreds of steps on a machine that is busy otherwise."""

TOLERANCE = 2
"""Of 255: docs/jobs.md states it."""


# Which jobs go together


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"prompt": "blue", "negative_prompt": "", "seed": 9, "count": 3, "clip_skip": 2}, True),
        ({"output_format": "jpeg", "quality": 5, "upscale": 2.0, "decoder": "tiny", "on_oom": "fail"}, True),
        ({"width": 72}, False),
        ({"num_inference_steps": 3}, False),
        ({"guidance_scale": 4.0}, False),
        ({"guidance_interval": (0.0, 0.5)}, False),
        ({"sampler": "Heun"}, False),
        ({"schedule": "karras"}, False),
        ({"model": "other"}, False),
        ({"prompt": "blue <lora:style>"}, False),
        ({"loras": ({"name": "style"},)}, False),
        ({"reuse_features": 2}, False),
        ({"hires": {}}, False),
        ({"init_image": "init_image.png", "strength": 0.5}, False),
        ({"cells": ({"seed": 1},), "matrix": {"seed": [1]}}, False),
    ],
)
def test_jobs_go_together_that_differ_in_texts_and_seeds_alone(fields: dict[str, Any], wanted: bool) -> None:
    job, other = make_job(), make_job(**fields)
    assert go_together(job, other) == go_together(other, job) == wanted
    assert set(Job.model_fields) >= FREE


def test_latents_are_found_by_what_makes_them_not_by_whose_they_are() -> None:
    job = make_job(seed=7, count=2)
    assert latents_key(job, 1) == latents_key(make_job(seed=8, id="other", quality=3), 0)
    assert latents_key(job, 1) != latents_key(job, 0)
    assert latents_key(job, 0) != latents_key(make_job(prompt="blue"), 0)
    assert latents_key(job, 0) != latents_key(make_job(clip_skip=2), 0)


# In the engine


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def near(one: dict[int, bytes], other: dict[int, bytes]) -> bool:
    return one.keys() == other.keys() and all(
        int(np.abs(pixels(one[index]) - pixels(other[index])).max()) <= TOLERANCE for index in one
    )


@pytest.mark.parametrize(
    ("family", "sampler"), [("SD 1", "Euler a"), ("SD 1", "DPM++ SDE"), ("SD 2", "DPM++ 2M"), ("SDXL", "DPM++ 2M SDE")]
)
def test_pictures_made_together_are_those_of_each_job_alone(tmp_path: Path, family: str, sampler: str) -> None:
    config = make_config(tmp_path, {"sd": save_tiny(tmp_path / "sd", family)})
    fields: dict[str, Any] = {"sampler": sampler, "schedule": "karras", "num_inference_steps": 3}
    a, b = make_job(**fields), make_job(**fields, prompt="the house", negative_prompt="", seed=40, count=2)
    alone = [pictures(render(Engine(config), job)) for job in (a, b)]
    engine = Engine(config)
    engine.expect((b,))
    first, second = render(engine, a), render(engine, b)
    assert near(pictures(first), alone[0])
    assert near(pictures(second), alone[1])
    assert {step.batch for step in steps(first)} == {1}
    assert steps(second) == []
    shared = [event.shared_batch for event in (*first, *second) if isinstance(event, Picture)]
    assert shared == [3, 3, 3]
    again = render(engine, b)
    assert pictures(again) == alone[1]  # alone, to the bit


def test_what_is_equal_but_for_its_texts_length_stays_behind(tmp_path: Path) -> None:
    engine = Engine(make_config(tmp_path, {"sd": save_tiny(tmp_path / "sd")}))
    long, heavy = make_job(prompt="red house " * 60), make_job(prompt="(red:1000)")
    engine.expect((long, heavy, make_job(width=72)))
    (picture,) = [event for event in render(engine, make_job()) if isinstance(event, Picture)]
    assert picture.shared_batch is None
    assert steps(render(engine, long))


def test_latents_of_a_model_that_was_replaced_since_are_of_no_use(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"sd": save_tiny(tmp_path / "sd")})
    engine, other = Engine(config), make_job(seed=9)
    engine.expect((other,))
    render(engine, make_job())
    (weights,) = (tmp_path / "sd" / "unet").glob("*.safetensors")
    os.utime(weights, ns=(1, 1))
    assert steps(render(engine, other))


def test_of_a_job_that_is_stopped_the_companions_of_its_whole_passes_are_kept(tmp_path: Path) -> None:
    engine = Engine(make_config(tmp_path, {"sd": save_tiny(tmp_path / "sd")}))
    other = make_job(seed=40, count=12)
    engine.expect((other,))
    events: list[Event] = []

    def cancelled() -> bool:
        return any(isinstance(event, Step) and event.first == 1 for event in events)

    with pytest.raises(Stopped):
        for event in engine.render(make_job(count=3), frozenset(), cancelled):
            events.append(event)
    made = render(engine, other)
    assert sorted(pictures(made)) == list(range(12))
    assert {step.first for step in steps(made)} == set(range(7, 12))


def test_out_of_memory_costs_the_companions_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, {"sd": save_tiny(tmp_path / "sd")})
    alone = pictures(render(Engine(config), make_job()))
    engine, real = Engine(config), rendering.step

    def hungry(denoiser: Any, scheduler: Any, timestep: Any, latents: torch.Tensor, arguments: Any) -> torch.Tensor:
        if len(latents) > 1:
            raise MemoryError("no room")
        return real(denoiser, scheduler, timestep, latents, arguments)

    monkeypatch.setattr(rendering, "step", hungry)
    other = make_job(seed=9)
    for _ in range(2):  # the second time nobody is tried
        engine.expect((other,))
        events = render(engine, make_job())
        assert fallbacks(events) == []
        assert pictures(events) == alone
    assert steps(render(engine, other))


# In the daemon


class Told(FakeExecutor):
    """Keeps what it was told to expect, by the prompt of the job that came next."""

    def __init__(self, darkroom: Darkroom, when: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(darkroom.config)
        self.expected: dict[str, list[Job]] = {}
        self.jobs: dict[str, Job] = {}
        self.when = when
        self._next: list[Job] = []

    def expect(self, jobs: Sequence[Job]) -> None:
        self._next = list(jobs)

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        self.expected[job.prompt], self._next = self._next, []
        self.jobs[job.prompt] = job
        self.when(job.prompt)
        yield from super().run(job, skip, images)

    def names(self) -> dict[str, list[str]]:
        return {name: [job.prompt for job in jobs] for name, jobs in self.expected.items()}


def drop(darkroom: Darkroom, *names: str, **fields: Any) -> None:
    for name in names:
        job = {"prompt": name.strip("!"), "num_inference_steps": 2, "width": 64, "height": 64, **fields}
        darkroom.drop(f"{name}.json", job)


def test_the_engine_is_told_of_those_that_wait_and_nothing_is_claimed_early(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"batch_across_jobs": True})
    drop(darkroom, "a", "b")
    drop(darkroom, "wide", width=72)
    darkroom.drop("typo.json", b'{"promt": "a"}')
    drop(darkroom, "c")
    waiting: list[list[str]] = []
    executor = Told(darkroom, lambda _: waiting.append(darkroom.names("inbox")))
    darkroom.run_once(executor)
    assert executor.names() == {"a": ["b", "c"], "b": ["c"], "wide": [], "c": []}
    assert [name for name in waiting[0] if name != "typo.json"] == ["b.json", "c.json", "wide.json"]
    for name in ("b", "c"):  # no seed was asked for: what was chosen beforehand is the job's
        assert latents_key(executor.expected["a"][0 if name == "b" else 1], 0) == latents_key(executor.jobs[name], 0)
    verdicts = [fields["name"] for fields in darkroom.log.of("job.done")]
    assert verdicts == ["a", "b", "wide", "c"]


def test_without_the_option_nobody_is_looked_at(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b")
    executor = Told(darkroom)
    darkroom.run_once(executor)
    assert executor.names() == {"a": [], "b": []}


def test_files_of_one_name_have_seeds_of_their_own_and_one_that_was_edited_is_another(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"batch_across_jobs": True})
    drop(darkroom, "a", "b")

    def edit(name: str) -> None:
        if name == "a":
            drop(darkroom, "b", negative_prompt="blue")

    executor = Told(darkroom, edit)
    darkroom.run_once(executor)
    assert executor.jobs["b"].negative_prompt == "blue"
    assert executor.jobs["b"].seed != executor.expected["a"][0].seed
    seeds = {executor.jobs["b"].seed}
    for _ in range(2):
        drop(darkroom, "a", "b")
        darkroom.run_once(executor)
        seeds.add(executor.jobs["b"].seed)
    assert len(seeds) == 3


def test_what_is_urgent_overtakes_and_what_is_deleted_is_not_made(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"batch_across_jobs": True})
    drop(darkroom, "a", "b", "c")

    def change(name: str) -> None:
        if name == "a":
            (darkroom.inbox / "b.json").unlink()
            drop(darkroom, "!now")
            loop.intake.look_afresh()

    loop = darkroom.loop(Told(darkroom, change), once=True)
    loop.run()
    assert [fields["name"] for fields in darkroom.log.of("job.done")] == ["a", "!now", "c"]


def test_a_job_that_goes_on_during_a_pause_is_made_alone(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"batch_across_jobs": True})
    drop(darkroom, "a", "b")
    executor = Told(darkroom)
    loop = darkroom.loop(executor)
    loop.spool.open()
    loop.startup()
    ticket = None
    while ticket is None:
        loop.tick()
        ticket = loop.turns.next()
    (darkroom.root / PAUSE).touch()
    loop._work_on(ticket)
    loop.step()
    loop.shutdown()
    assert executor.names() == {"a": []}
    assert darkroom.names("inbox") == ["b.json"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Darkroom, LocalExecutor]]:
    house = Darkroom(tmp_path_factory.mktemp("engine") / "spool")
    house.configure(engine={"device": "cpu", "batch_across_jobs": True})
    executor = LocalExecutor(house.config)
    yield house, executor
    executor.close()


def test_an_engine_killed_or_cancelled_with_companions_costs_none_of_them(
    shared: tuple[Darkroom, LocalExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    darkroom, executor = shared
    monkeypatch.setattr(executor, "close", lambda: None)
    for name in ("a", "b", "c", "d"):
        darkroom.drop(f"{name}.json", {"prompt": f"a red circle {name}", "steps": 150, "seed": 5})

    def under_way(name: str) -> Path | None:
        for folder in darkroom.working.glob("*"):
            if f"-{name}-" in folder.name and (folder / "progress.json").exists():
                return folder
        return None

    with Running(darkroom.loop(executor)):
        until(lambda: under_way("a"), PATIENCE_S)
        assert executor.pid is not None
        os.kill(executor.pid, signal.SIGKILL)
        until(lambda: under_way("b"), PATIENCE_S)
        folder = under_way("b")
        assert folder is not None
        (folder / "cancel").touch()
        until((darkroom.done / "d" / "result.json").exists, PATIENCE_S)
    assert darkroom.result("a")["attempts"] == 2
    assert darkroom.error("b")["reason"] == "cancelled"
    assert darkroom.names("done") == ["a", "c", "d"]
    assert darkroom.names("working") == darkroom.names("inbox") == []
    assert "shared_batch" not in darkroom.result("a")
    assert darkroom.result("c")["shared_batch"] == darkroom.result("d")["shared_batch"] == 2
    log = (darkroom.done / "d" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["job.claimed", "model.loaded", "picture.saved", "job.done"]


def test_a_pass_that_does_not_fit_is_made_apart_and_each_job_has_its_own_pictures_and_verdict(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    darkroom.configure(engine={"device": "cpu", "batch_across_jobs": True, "max_batch": 8})
    jobs: dict[str, dict[str, Any]] = {
        name: {"prompt": f"a red circle {name}", "num_inference_steps": 3, "seed": 10 * place}
        for place, name in enumerate("abcd")
    }
    jobs["b"] |= {"on_oom": "fail"}
    jobs["c"] |= {"count": 2}
    hopeless = jobs["a"] | {"prompt": "a hopeless circle", "seed": 99, "on_oom": "fail"}

    def made_of(*together: str) -> dict[str, dict[int, bytes]]:
        for name in together:
            darkroom.drop(f"{name}.json", jobs[name.partition("-")[0]])
        if len(together) > 1:
            darkroom.drop("e.json", hopeless)
        loop = darkroom.loop(executor, once=True)
        monkeypatch.setattr(loop.executor, "close", lambda: None)
        loop.run()
        return {
            name: dict(enumerate(path.read_bytes() for path in sorted((darkroom.done / name).glob("*-?.png"))))
            for name in together
        }

    executor = LocalExecutor(darkroom.config, "engines:crowded")
    with closing(executor):
        made = made_of(*jobs)
        for name in jobs:
            (alone,) = made_of(f"{name}-alone").values()
            assert len(alone) == jobs[name].get("count", 1)
            assert near(made[name], alone)
    results = {name: darkroom.result(name) for name in jobs}
    assert {name: result.get("shared_batch") for name, result in results.items()} == {"a": None, "b": 3, "c": 3, "d": 2}
    for name, result in results.items():
        assert (result["attempts"], result["fallbacks"], result["warnings"]) == (1, [], [])
        assert [picture["seed"] for picture in result["pictures"]] == [
            jobs[name]["seed"] + index for index in range(jobs[name].get("count", 1))
        ]
    assert darkroom.error("e")["reason"] == "out-of-memory"
    assert darkroom.error("e")["attempts"] == 1


def test_a_daemon_killed_with_companions_costs_none_of_them(tmp_path: Path) -> None:
    house = Darkroom(tmp_path / "spool")
    names = ["a", "b", "c", "d"]
    for name in names:
        house.drop(f"{name}.json", {"prompt": f"a red circle {name}", "steps": 8, "seed": -1})
    command = [sys.executable, "-m", "darkroom", "run", "--root", str(house.root)]
    environment = {**os.environ, "DARKROOM_ENGINE__BATCH_ACROSS_JOBS": "true", "DARKROOM_ENGINE__DEVICE": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as daemon:
        until((house.done / "a" / "result.json").exists, PATIENCE_S)
        daemon.kill()
        daemon.wait(60)
    before = (house.done / "a" / "result.json").read_bytes()
    subprocess.run([*command, "--once"], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=300)
    assert house.names("done") == names
    assert house.names("inbox") == house.names("working") == house.names("failed") == []
    assert (house.done / "a" / "result.json").read_bytes() == before
    assert house.result("a")["shared_batch"] == 4
    assert {len(house.result(name)["pictures"]) for name in names} == {1}
