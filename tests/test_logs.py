"""The log: JSON lines, never an exception."""

from __future__ import annotations

import io
import json

import pytest

from darkroom.config import Log
from darkroom.logs import make_logger


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
