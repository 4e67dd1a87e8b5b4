"""What an engine says while it renders one job: the stream between engine and daemon.

All are frozen and can be pickled: they cross a process border.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Alive:
    """Nothing new; sent by executors a few times a second so that the loop can look around."""


@dataclass(frozen=True)
class Loaded:
    """The job's model is ready. ``seconds`` is 0.0 where it was loaded before."""

    model: str
    seconds: float
    device: str
    """For a person, e.g. ``cpu AMD EPYC, float32`` or ``cuda NVIDIA H200, float16``."""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One denoising step of the batch that starts at picture ``first`` (from 0) is done."""

    first: int
    batch: int
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """What the batch that starts at picture ``first`` will be, roughly and small: a JPEG, its pictures side by side."""

    first: int
    batch: int
    data: bytes


@dataclass(frozen=True)
class Ending:
    """The job is all but done: what is left are a few steps at most, and its last pictures' decoding and saving."""


@dataclass(frozen=True)
class Picture:
    """A finished picture, encoded, its recipe inside."""

    index: int
    """From 0; the picture's seed is the job's plus this."""
    seed: int
    width: int
    height: int
    data: bytes
    extension: str
    """``png``, ``jpg`` or ``webp``."""
    thumbnail: bytes = b""
    """A small JPEG of a large picture, which saves others from decoding it."""
    shared_batch: int | None = None
    """Of how many pictures its passes were, where some of them were another job's."""


@dataclass(frozen=True)
class Fallback:
    """The engine stepped down a rung of the memory ladder and goes on."""

    rung: str
    because: str
    lossless: bool
    changes: Mapping[str, int] = field(default_factory=dict)
    """Fields of the job that it changed (``width``, ``height``, ``num_inference_steps``); empty if lossless."""
    memory_before: int | None = None
    memory_after: int | None = None


@dataclass(frozen=True)
class Warned:
    """Something the user should know, that did not stop the job."""

    code: str
    message: str
    detail: str | None = None


@dataclass(frozen=True)
class Finished:
    """All pictures are made. ``seconds`` by phase: ``encode``, ``denoise``, ``decode``, ``save``, which may overlap."""

    seconds: Mapping[str, float]


Event = Alive | Loaded | Step | Preview | Ending | Picture | Fallback | Warned | Finished
