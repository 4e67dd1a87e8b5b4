"""One dropped file, followed from ``inbox/`` to ``done/`` through the real engine and the bundled model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.executors import LocalExecutor
from darkroom.job import Job
from darkroom.output import recipe
from test_loop import Running, until

EXAMPLES = sorted((Path(__file__).parent.parent / "inbox.example").glob("*.json"))
JOB: dict[str, Any] = {"prompt": "a red circle on a blue background", "steps": 4, "seed": 11, "count": 3}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalExecutor]:
    """One child for all tests here: the model is loaded once."""
    house = Darkroom(tmp_path_factory.mktemp("engine") / "spool")
    house.configure(engine={"device": "cpu"})
    executor = LocalExecutor(house.config)
    yield executor
    executor.close()


class Borrowed:
    """An executor that outlives the loop that uses it."""

    def __init__(self, executor: LocalExecutor) -> None:
        self.run, self.announce, self.nudge = executor.run, executor.announce, executor.nudge
        self.executor = executor

    @property
    def pid(self) -> int | None:
        return self.executor.pid

    def start(self) -> None:
        self.executor.start()

    def close(self) -> None:
        pass


def shas(darkroom: Darkroom, name: str) -> list[str]:
    return [picture["sha256"] for picture in darkroom.result(name)["pictures"]]


def test_a_prompt_becomes_pictures_that_carry_their_recipe(darkroom: Darkroom, engine: LocalExecutor) -> None:
    darkroom.drop("cat.json", JOB)
    darkroom.run_once(Borrowed(engine))
    result = darkroom.result("cat")
    assert result["status"] == "done"
    assert result["device"].startswith("cpu")
    assert set(result["versions"]) >= {"torch", "diffusers"}
    assert set(result["seconds"]) == {"queued", "load", "encode", "denoise", "decode", "save", "total"}
    for index, picture in enumerate(result["pictures"]):
        path = darkroom.done / "cat" / picture["file"]
        with Image.open(path) as image:
            assert image.size == (128, 128)
            assert image.info["parameters"].startswith("a red circle on a blue background\nSteps: 4, Sampler: ")
            assert len(image.convert("RGB").getcolors(1 << 16) or []) > 50
        assert recipe(path.read_bytes()) == result["job"] | {"seed": 11 + index, "count": 1}


def test_a_result_dropped_again_gives_equal_pictures_one_alone_too(darkroom: Darkroom, engine: LocalExecutor) -> None:
    darkroom.drop("cat.json", JOB)
    darkroom.run_once(Borrowed(engine))
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.drop("between.json", {"prompt": "mountains", "steps": 1, "width": 64, "height": 96, "sampler": "Euler a"})
    darkroom.drop("second.json", {**JOB, "seed": 12, "count": 1})
    darkroom.run_once(Borrowed(engine))
    assert shas(darkroom, "again") == shas(darkroom, "cat")
    assert shas(darkroom, "second") == shas(darkroom, "cat")[1:2]


def test_an_engine_killed_in_the_middle_costs_no_picture(darkroom: Darkroom, engine: LocalExecutor) -> None:
    job = {**JOB, "steps": 40}
    darkroom.drop("undisturbed.json", job)
    darkroom.run_once(Borrowed(engine))
    darkroom.log.lines.clear()
    darkroom.drop("killed.json", job)
    with Running(darkroom.loop(Borrowed(engine))):
        until(lambda: "picture.saved" in darkroom.log.events())
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        until((darkroom.done / "killed" / "result.json").exists, 60)
    assert "engine.died" in darkroom.log.events()
    assert darkroom.result("killed")["attempts"] == 2
    assert shas(darkroom, "killed") == shas(darkroom, "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_ended_in_the_middle_goes_on_at_the_next_start(
    darkroom: Darkroom, engine: LocalExecutor, number: signal.Signals
) -> None:
    darkroom.drop("cut.json", {**JOB, "steps": 40, "seed": -1})
    command = [sys.executable, "-m", "darkroom", "run", "--root", str(darkroom.root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as daemon:
        until(lambda: list(darkroom.working.glob("*/cut-1.png")), 60)
        daemon.send_signal(number)
        daemon.wait(60)
        assert daemon.stderr is not None
        assert daemon.stderr.read() == ""
    (state,) = darkroom.working.glob("*/job.json")
    seed = json.loads(state.read_bytes())["job"]["seed"]
    darkroom.run_once(Borrowed(engine))
    result = darkroom.result("cut")
    assert [picture["seed"] for picture in result["pictures"]] == [seed, seed + 1, seed + 2]
    darkroom.drop("again.json", (darkroom.done / "cut" / "result.json").read_bytes())
    darkroom.run_once(Borrowed(engine))
    assert shas(darkroom, "again") == shas(darkroom, "cut")


def test_a_long_prompt_is_used_whole_or_cut_with_a_warning(darkroom: Darkroom, engine: LocalExecutor) -> None:
    prompt = "a red circle, " * 40 + "on a blue background"
    short = {"prompt": prompt, "steps": 2, "seed": 1}
    darkroom.drop("chunk.json", short)
    darkroom.drop("truncate.json", {**short, "long_prompt": "truncate"})
    darkroom.run_once(Borrowed(engine))
    assert darkroom.result("chunk")["warnings"] == []
    (warning,) = darkroom.result("truncate")["warnings"]
    assert warning["code"] == "prompt_truncated"
    assert warning["detail"].endswith("on a blue background")
    assert shas(darkroom, "chunk") != shas(darkroom, "truncate")


def test_a_lora_styles_its_own_job_alone_and_its_result_makes_the_same_again(
    darkroom: Darkroom, engine: LocalExecutor
) -> None:
    plain = {**JOB, "count": 1}
    darkroom.drop("1-before.json", plain)
    darkroom.drop("2-styled.json", {**plain, "prompt": f"{JOB['prompt']} <lora:blueprint:0.8>"})
    darkroom.drop("3-after.json", plain)
    darkroom.run_once(Borrowed(engine))
    assert shas(darkroom, "1-before") == shas(darkroom, "3-after")
    styled = darkroom.done / "2-styled"
    darkroom.drop("from-result.json", (styled / "result.json").read_bytes())
    darkroom.drop("from-picture.png", (styled / "2-styled-1.png").read_bytes())
    darkroom.run_once(Borrowed(engine))
    assert shas(darkroom, "from-result") == shas(darkroom, "from-picture") == shas(darkroom, "2-styled")
    red = []
    for path in (darkroom.done / "3-after" / "3-after-1.png", styled / "2-styled-1.png"):
        with Image.open(path) as image:
            red.append(np.asarray(image.convert("RGB"))[:, :, 0].mean())
    assert red[1] < red[0] - 20, "white lines on blue have less red than a red circle on blue"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_job_that_runs(darkroom: Darkroom, engine: LocalExecutor, path: Path) -> None:
    text = re.sub(r'("(?:num_inference_)?steps": )\d+', r"\g<1>2", path.read_text())
    darkroom.drop(path.name, text)
    loop = darkroom.run_once(Borrowed(engine))
    assert loop.work.failed == 0
    assert darkroom.names("done") == [path.stem]
    results = [
        darkroom.result(str(found.parent.relative_to(darkroom.done))) for found in darkroom.done.rglob("result.json")
    ]
    jobs = [result for result in results if "entries" not in result]
    assert len(jobs) == loop.work.done == sum(result.get("entries", 0) for result in results) or len(results) == 1
    for result in jobs:
        assert len(result["pictures"]) == Job.model_validate(result["job"] | {"id": result["id"]}).total
        assert result["warnings"] == result["fallbacks"] == []
