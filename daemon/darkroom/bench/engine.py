"""Whole pictures: our engine beside the engine of the well-known tutorial, and diffusers' pipeline as it comes."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darkroom.bench import Progress
from darkroom.config import Config
from darkroom.errors import UsageError
from darkroom.events import Finished, Loaded
from darkroom.executors import LocalExecutor
from darkroom.job import Job

SIDES = ("tutorial", "pipeline", "ours")

PROMPTS = (
    "a red circle on a blue background",
    "a house at sunset",
    "a yellow triangle above a green square",
    "the sea at night, under a white moon",
    "a tree in a meadow, in the morning",
)

_FEW, _MANY = 4, 104
"""Steps of the two jobs whose difference tells what one step costs."""


@dataclass(frozen=True)
class Case:
    """What is made: square pictures of ``size`` pixels a side, ``batch`` of them a job."""

    size: int
    steps: int
    batch: int = 1


def cases(sizes: Sequence[int], steps: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """All combinations, the small ones first."""
    return [Case(*values) for values in itertools.product(sizes, steps, batches)]


def compare(config: Config, model: str, cases: Sequence[Case], rounds: int, progress: Progress) -> dict[str, Any]:
    """Each case so many times by every side, each round with another prompt, after a short job that warms it up.

    ``…_ratio`` is the median of the rounds' ratios: how many times faster ours is.
    """
    rows, done, total = [], 0, len(cases) * (rounds + 1)
    about: dict[str, Any] = {}
    with _engine(config, "Comparison") as executor:
        for case in cases:
            warm = _seconds(executor, _job(config, model, Case(case.size, 1, case.batch), 0), about)
            progress(done := done + 1, total)
            measured = []
            for turn in range(rounds):
                measured.append(_seconds(executor, _job(config, model, case, turn), about))
                progress(done := done + 1, total)
            rows.append({**asdict(case), "rounds": rounds, "first_s": round(warm["ours"], 3), **_row(case, measured)})
    return {"model": model, **about, "cases": rows}


def frame(config: Config, model: str, rounds: int, progress: Progress) -> dict[str, Any]:
    """What a step and a job cost besides UNet and VAE, in the processor's time; a step of diffusers' beside it.

    A job's PNG, of 64 × 64 pixels, is counted too. ``known_call_us`` is of jobs whose texts were read before.
    """
    step_us: dict[str, list[float]] = {side: [] for side in ("pipeline", "ours", "ours_known")}
    call_us: dict[str, list[float]] = {side: [] for side in ("ours", "ours_known")}
    with _engine(config, "Frame") as executor:
        for turn in range(rounds + 1):
            few, many = (_seconds(executor, _job(config, model, Case(64, steps), 0), {}) for steps in (_FEW, _MANY))
            progress(turn + 1, rounds + 1)
            if turn == 0:  # loads the model
                continue
            for side, found in step_us.items():
                found.append(1e6 * (many[side] - few[side]) / (_MANY - _FEW))
            for side, found in call_us.items():
                found.append(1e6 * few[side] - _FEW * step_us["ours_known"][-1])
    return {
        "step_us": round(statistics.median(step_us["ours_known"])),
        "pipeline_step_us": round(statistics.median(step_us["pipeline"])),
        "step_us_ratio": _ratio(step_us["pipeline"], step_us["ours"]),
        "call_us": round(statistics.median(call_us["ours"])),
        "known_call_us": round(statistics.median(call_us["ours_known"])),
    }


@contextmanager
def random_model(config: Config, architecture: str, folder: Path) -> Iterator[Config]:
    """The configuration with a model of that name in it: the exact architecture, random weights, made in ``folder``."""
    with tempfile.TemporaryDirectory(prefix=f"{architecture}-", dir=folder) as place:
        made = subprocess.run(
            [sys.executable, "-m", "darkroom.engine.architectures", architecture, place],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if made.returncode:
            raise UsageError(f"{architecture} could not be made in {place}: {made.stderr.strip().splitlines()[-1]}")
        models = config.models.model_dump() | {architecture: {"path": place}}
        yield config.model_copy(update={"models": type(config.models)(**models)})


@contextmanager
def _engine(config: Config, name: str) -> Iterator[LocalExecutor]:
    """The engine of that name in a child, which may be silent for as long as it likes."""
    changes = {"stall_s": 1e6, "preload": False, "idle_unload_s": 0, "recycle_after_jobs": 0}
    settings = config.engine.model_copy(update=changes)
    executor = LocalExecutor(config.model_copy(update={"engine": settings}), f"darkroom.engine.benchmark:{name}")
    try:
        yield executor
    finally:
        executor.close()


def _job(config: Config, model: str, case: Case, turn: int) -> Job:
    return Job(
        id=f"bench-{turn}",
        prompt=PROMPTS[turn % len(PROMPTS)],
        negative_prompt="",
        num_inference_steps=case.steps,
        guidance_scale=7.5,
        seed=turn,
        width=case.size,
        height=case.size,
        count=case.batch,
        model=model,
        sampler="Euler",
        schedule="uniform",
        clip_skip=1,
        long_prompt="chunk",
        on_oom="fail",
        output_format="png",
        quality=config.output.quality,
    )


def _seconds(executor: LocalExecutor, job: Job, about: dict[str, Any]) -> Mapping[str, float]:
    seconds: Mapping[str, float] = {}
    for event in executor.run(job):
        match event:
            case Loaded():
                about["device"] = event.device
            case Finished():
                seconds = event.seconds
    return seconds


def _row(case: Case, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    taken = {side: [seconds[side] for seconds in measured] for side in SIDES}
    for side, found in taken.items():
        row[f"{side}_s"] = {
            "median": round(statistics.median(found), 3),
            "average": round(statistics.mean(found), 3),
            "minimum": round(min(found), 3),
            "maximum": round(max(found), 3),
        }
    for side in SIDES[:-1]:
        row[f"{side}_ratio"] = _ratio(taken[side], taken["ours"])
        if case.batch == 1 and f"{side}_step" in measured[0]:
            steps = ([seconds[f"{name}_step"] for seconds in measured] for name in (side, "ours"))
            row[f"{side}_step_ratio"] = _ratio(*steps)
    if "mm_flop_per_s" in measured[0]:
        reached, possible = ([seconds[f"{name}_flop_per_s"] for seconds in measured] for name in ("ours", "mm"))
        row["tflop_per_s"] = round(statistics.median(reached) / 1e12, 3)
        row["efficiency_ratio"] = _ratio(reached, possible)
    return row


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)
