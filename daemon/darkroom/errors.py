"""Every failure darkroom knows, as one tree.

::

    DarkroomError
    ├── ConfigError            config.toml or the environment is wrong: say it and exit (2)
    ├── UsageError             the command line asks for what cannot be (2)
    ├── SpoolInUse             another daemon owns the spool (3)
    ├── JobError               the job is at fault: it goes to failed/, the next one is taken
    │   ├── InvalidRequest     invalid-request     the file is not a job: each field named
    │   │   └── Unfinished                         not JSON as it stands: it may still be being written
    │   ├── OutOfMemory        out-of-memory       even the smallest plan does not fit
    │   ├── ModelUnavailable   model-unavailable   its model is missing, damaged or refused
    │   ├── RenderFailed       render-failed       the engine raised while rendering it
    │   └── Cancelled          cancelled           somebody asked for that
    ├── MachineError           the machine is at fault: the job is tried again or put back
    │   ├── EngineDied         engine-died         the engine's process ended by itself
    │   │   └── EngineKilled                       the kernel ended it for want of memory
    │   ├── EngineStalled      engine-stalled      no step within the limit: it was killed
    │   ├── DeviceGone                             the GPU is gone or has failed: pause, go on later
    │   └── StorageTrouble                         disk full, read-only, I/O error: pause, go on later
    └── Stopped                asked to stop at the next step; nobody's fault, never shown

All of them can be pickled: the engine raises them in its own process and the daemon catches them in another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class FieldError:
    """One thing that is wrong in a job file: which field, where it stands, what to do.

    Lines and columns count from 1; both are None where the fault has no place (a missing field).
    """

    message: str
    field: str | None = None
    line: int | None = None
    column: int | None = None
    got: Any = None
    hint: str | None = None

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line is not None else ""
        name = f"{self.field}: " if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{name}{self.message}{hint}"


class DarkroomError(Exception):
    """Base of all. ``message`` is one sentence for a person; ``errors`` the details; ``trace`` for bug reports."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, errors: tuple[FieldError, ...] = (), trace: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., DarkroomError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.message, self.errors, self.trace)


def _rebuild(
    kind: type[DarkroomError], message: str, errors: tuple[FieldError, ...], trace: str | None
) -> DarkroomError:
    return kind(message, errors=errors, trace=trace)


class ConfigError(DarkroomError):
    """config.toml or a ``DARKROOM_…`` variable is wrong."""

    exit_code = 2


class UsageError(DarkroomError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class SpoolInUse(DarkroomError):
    """Another daemon holds the lock of this spool."""

    exit_code = 3


class JobError(DarkroomError):
    """The job is at fault. ``reason`` is the word that stands in error.json."""

    reason: ClassVar[str] = "render-failed"


class InvalidRequest(JobError):
    """The file is not a valid job."""

    reason = "invalid-request"

    @classmethod
    def of(cls, message: str, faults: Iterable[FieldError]) -> InvalidRequest:
        """Begins with the message, then says the first fault and how many more there are."""
        first, *others = faults
        more = f" (and {len(others)} more)" if others else ""
        return cls(f"{message}: {first}{more}.", errors=(first, *others))


class Unfinished(InvalidRequest):
    """The file is not JSON as it stands: wrong, or still being written. Time tells."""


class OutOfMemory(JobError):
    """Not even the smallest memory plan that the job allows fits."""

    reason = "out-of-memory"


class ModelUnavailable(JobError):
    """The model cannot be loaded: missing, damaged, of an unknown family, or refused."""

    reason = "model-unavailable"


class RenderFailed(JobError):
    """The engine raised an exception that is none of the others."""

    reason = "render-failed"


class Cancelled(JobError):
    """Somebody cancelled the job."""

    reason = "cancelled"


class MachineError(DarkroomError):
    """The machine is at fault, not the job."""

    reason: ClassVar[str] = "storage"


class EngineDied(MachineError):
    """The engine's process ended while it had a job."""

    reason: ClassVar[Literal["engine-died"]] = "engine-died"


class EngineKilled(EngineDied):
    """The kernel ended the engine's process for want of memory."""


class EngineStalled(MachineError):
    """The engine made no step within ``engine.stall_s`` and was killed."""

    reason: ClassVar[Literal["engine-stalled"]] = "engine-stalled"


class DeviceGone(MachineError):
    """The GPU is not there any more, or fails: the job is put back, and nothing is claimed until it works again."""

    reason: ClassVar[str] = "device-gone"


class StorageTrouble(MachineError):
    """The disk is full, read-only, failing or gone: the daemon pauses and tries again."""


class Stopped(DarkroomError):
    """The engine was asked to stop and did so between two steps."""


def refusal(error: Exception) -> str:
    """What the system refused, and where: ``/srv/spool/done/cat: Permission denied``. Of a rename, where to.

    What is no refusal of the system's has said so itself.
    """
    if not isinstance(error, OSError):
        return str(error)
    where = error.filename2 or error.filename
    return str(error) if where is None or error.strerror is None else f"{os.fsdecode(where)}: {error.strerror}"


def plainly(error: Exception) -> str:
    """What went wrong, where the place is told already: ``Permission denied``, without number and path."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def first_line(error: BaseException) -> str:
    """The kind of a foreign exception and its message, without the pages that some libraries add."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
