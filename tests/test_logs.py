"""The log: JSON lines, never an exception."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.config import Log
from darkroom.executors import LocalExecutor
from darkroom.logs import make_logger
from test_loop import Running, until


def test_each_line_is_a_json_object_with_event_level_and_time() -> None:
    stream = io.StringIO()
    logger = make_logger(Log(), stream)
    logger.info("job.done", id="x", name="caf\udce9")
    line = json.loads(stream.getvalue())
    assert line["event"] == "job.done"
    assert line["level"] == "info"
    assert line["name"] == r"caf\udce9"
    assert line["time"].endswith("Z")


def test_what_is_below_the_level_or_silent_is_left_out() -> None:
    stream = io.StringIO()
    logger = make_logger(Log(level="warning"), stream, silent=frozenset({"job.failed"}))
    logger.info("job.done")
    logger.warning("job.failed")
    logger.error("spool.trouble")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["spool.trouble"]


def test_the_console_format_is_for_people() -> None:
    stream = io.StringIO()
    make_logger(Log(format="console"), stream).info("job.done", name="cat")
    assert "job.done" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away_is_no_reason_to_stop() -> None:
    make_logger(Log(), Broken()).error("spool.trouble")


def test_what_a_job_says_does_not_steer_the_terminal() -> None:
    stream = io.StringIO()
    make_logger(Log(format="console"), stream).warning("job.failed", name="caf\udce9", why="a\x1b[2J\x9b\x07")
    assert r"why=a\x1b[2J\x9b\x07" in stream.getvalue()
    assert r"caf\udce9" in stream.getvalue()
    assert not set("\x1b\x9b\x07") & set(stream.getvalue())


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def said() -> str:
        stream = Terminal()
        make_logger(Log(), stream).info("job.done")
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in said()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in said()


# What is said of jobs

SECRET = "unspeakable"


def said_of(darkroom: Darkroom) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines about jobs, in the daemon's log and in the jobs' own."""
    ours = [{"event": event, **fields} for event, fields in darkroom.log.lines if not event.startswith("daemon.")]
    theirs = [
        json.loads(line)
        for path in (*darkroom.done.rglob("log.jsonl"), *darkroom.failed.rglob("log.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return ours, theirs


def a_bad_day(darkroom: Darkroom, **log: Any) -> None:
    """Jobs that go well, that are warned of, that step down, fail, kill the engine, and are no jobs at all."""
    darkroom.configure(executor={"max_attempts": 1}, intake={"settle_s": 0.2}, log=log)
    darkroom.drop("good.json", {"prompt": SECRET, "steps": 2, "width": 64, "height": 64})
    darkroom.run_once()
    for name, engine in (("warned", "Quoting"), ("down", "SteppingDown"), ("raised", "Quoting"), ("died", "Dying")):
        job = {"prompt": SECRET, "steps": 2, "width": 64, "height": 64}
        darkroom.drop(f"{name}.json", job | {"negative_prompt": SECRET if name == "raised" else ""})
        darkroom.run_once(LocalExecutor(darkroom.config, f"engines:{engine}"))
    darkroom.drop("typo.json", {"prompt": "x", SECRET: 1})
    darkroom.drop("broken.json", f'{{"prompt": "{SECRET}')
    darkroom.drop("model.json", {"prompt": "x", "model": SECRET})
    darkroom.run_once()


@pytest.fixture(autouse=True)
def _engines_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def test_prompts_are_in_no_log_where_they_are_not_wanted(darkroom: Darkroom) -> None:
    a_bad_day(darkroom, prompts=False)
    ours, theirs = said_of(darkroom)
    assert {"job.done", "job.failed", "job.warning", "oom.step_down", "engine.died"} <= {line["event"] for line in ours}
    assert [line for line in (*ours, *theirs) if SECRET in json.dumps(line)] == []
    reasons = {line["name"]: line["reason"] for line in ours if line["event"] == "job.failed"}
    assert reasons["typo"] == "invalid-request"
    assert reasons["raised"] == "render-failed"
    assert SECRET in json.dumps(darkroom.error("typo"))
    assert SECRET in json.dumps(darkroom.error("raised"))


def test_prompts_are_in_the_logs_otherwise(darkroom: Darkroom) -> None:
    a_bad_day(darkroom)
    for lines in said_of(darkroom):
        with_it = {line["event"] for line in lines if SECRET in json.dumps(line)}
        assert {"job.claimed", "job.warning", "job.failed"} <= with_it


def test_every_line_of_a_job_has_its_id_and_its_event(darkroom: Darkroom) -> None:
    a_bad_day(darkroom)
    darkroom.drop("cat.json", num_inference_steps=150, count=5)
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))):
        until(lambda: list(darkroom.working.glob("*/progress.json")))
    darkroom.run_once()
    ours, theirs = said_of(darkroom)
    assert "job.interrupted" in {line["event"] for line in ours} & {line["event"] for line in theirs}
    assert [line for line in (*ours, *theirs) if not (line.get("id") and line.get("event"))] == []
    for path in (*darkroom.done.rglob("log.jsonl"), *darkroom.failed.rglob("log.jsonl")):
        id = json.loads((path.parent / "result.json").read_bytes())["id"]
        assert {json.loads(line)["id"] for line in path.read_text().splitlines()} == {id}
    heard = {line["event"] for line in ours if line["level"] != "debug"}
    assert heard <= {line["event"] for line in theirs} | {"job.published"}
