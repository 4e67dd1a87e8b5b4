"""The daemon's log: structlog, JSON lines for machines or coloured lines for people. Logging never raises."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import structlog

from darkroom import strict_json
from darkroom.config import Log
from darkroom.spool import timestamp
from darkroom.visible import visible


class _Unbreakable:
    """A stream whose reader may go away: a closed terminal or pipe does not end the daemon.

    None is what ``sys.stdout`` is at the moment of writing, which a progress bar may have replaced.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return (self._stream or sys.stdout).write(text)
        except (OSError, ValueError) as error:
            self._passed_over(error)
            return len(text)

    def flush(self) -> None:
        try:
            (self._stream or sys.stdout).flush()
        except (OSError, ValueError) as error:
            self._passed_over(error)

    def _passed_over(self, error: Exception) -> None:
        """What a pipe without a reader was not given would be tried again at Python's end, and be its exit code."""
        if isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), (self._stream or sys.stdout).fileno())


def make_logger(log: Log, stream: TextIO | None = None, *, silent: frozenset[str] = frozenset()) -> Any:
    """A logger: ``logger.info("job.done", id=…)``, to ``stream`` or standard output.

    Where ``log.format`` is ``auto``, a terminal gets coloured lines. The events in ``silent`` are left out.
    """
    target = stream or sys.stdout
    pretty = target.isatty() if log.format == "auto" else log.format == "console"
    colours = target.isatty() and not os.environ.get("NO_COLOR")

    def leave_out(logger: Any, method: str, fields: Any) -> Any:
        if fields["event"] in silent:
            raise structlog.DropEvent
        return fields

    def stamp(logger: Any, method: str, fields: Any) -> Any:
        fields["level"] = method
        fields["time"] = timestamp()
        return fields

    console = structlog.dev.ConsoleRenderer(colors=colours, timestamp_key="time")
    logger = structlog.wrap_logger(
        structlog.WriteLogger(_Unbreakable(stream)),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log.level.upper())),
        processors=[
            *([leave_out] if silent else []),
            stamp,
            *([_printable, console] if pretty else [_one_line]),
        ],
    )
    return logger.bind()  # once, instead of at each line


def _one_line(logger: Any, method: str, fields: Any) -> str:
    return strict_json.line(fields).decode("utf-8")


def _printable(logger: Any, method: str, fields: Any) -> Any:
    """Names and words of jobs stand in them, whatever those hold."""
    return {key: visible(value) if isinstance(value, str) else value for key, value in fields.items()}
