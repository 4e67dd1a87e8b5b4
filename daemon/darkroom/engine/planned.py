"""``Planned``: a job on the plan that memory allows, chosen at first and stepped down as often as memory runs out."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from darkroom.engine import device as devices
from darkroom.engine.memory.fitting import Fitting, gib
from darkroom.engine.memory.host import Bound
from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.plan import GRAIN, Ladder, MemoryPlan, Phase, Rung
from darkroom.engine.memory.underway import Death, UnderWay
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.sampling.diffusion import is_guided
from darkroom.errors import OutOfMemory, RenderFailed
from darkroom.events import Fallback
from darkroom.job import Job
from darkroom.job.passes import passes


class Planned(ABC):
    """Which plan, and its phases: what is on the device in each, and how long they take."""

    def __init__(
        self,
        pipeline: Pipeline,
        job: Job,
        description: str,
        *,
        batch: int,
        learned: Learned,
        under_way: UnderWay,
        bound: Bound,
        save_memory: Callable[[], None],
    ) -> None:
        self.pipeline = pipeline
        self.job = job
        self.description = description
        self.under_way = under_way
        self.bound = bound
        self.save_memory = save_memory
        self.phase: Phase = "encode"
        self.seconds = {"encode": 0.0, "denoise": 0.0, "decode": 0.0, "save": 0.0}
        device = pipeline.device
        slices = pipeline.slices_attention and devices.slices_attention(device)
        last = passes(job)[-1]
        self.fitting = Fitting(
            full=MemoryPlan(
                batch=batch,
                width=last.width,
                height=last.height,
                steps=job.num_inference_steps,
                smallest_side=_ceiled(
                    max(64, pipeline.native_side // 2 // pipeline.grain * pipeline.grain) * _scale(job)
                ),
            ),
            ladder=Ladder(
                job.on_oom, slices_attention=slices, streams_layers=device.type == "cuda", grain=pipeline.grain
            ),
            need=pipeline.need(guided=is_guided(pipeline, job), slices_attention=slices),
            room=self._room,
            learned=learned,
            key=f"{description}; {devices.driver(device)}; {job.model} {last.width}×{last.height} ×{batch}",
        )

    @property
    def plan(self) -> MemoryPlan:
        """How the pictures are made now."""
        return self.fitting.plan

    def choose(self, death: Death | None, unloaded: str | None) -> Iterator[Fallback]:
        """The first plan, and how it is below the full one. Raises RenderFailed for a size that cannot be."""
        self._check_size()
        rungs = list(self.fitting.begin(death, unloaded))
        used = devices.memory_used(self.pipeline.device) if rungs else None
        for rung, because in rungs:
            yield self._fallen(rung, because, used)

    @abstractmethod
    def start_over(self) -> None:
        """The job is another now: what was made of it is of no use."""

    def _step_down(self, because: str, trace: str, used: int | None) -> Fallback:
        """Take the next smaller plan. Raises OutOfMemory where there is none."""
        tried = self.plan
        self.pipeline.readings.clear()
        rung = self.fitting.step_down(self.phase)
        if rung is None:
            pipeline, device = self.pipeline, self.pipeline.device
            devices.free_memory(device)
            less = "ask for a smaller picture" if pipeline.weighed else "give darkroom more memory"
            helps = [f"{less}, or free memory that other programs hold"]
            helps += self.fitting.remedies(weighed=pipeline.weighed)
            used = devices.memory_used(device)
            if used is not None and device.type == "cpu":
                helps.append(f"the engine itself has {gib(max(0, used - sum(pipeline.held().values())))}")
            raise OutOfMemory(
                f"Not even {tried} fits into the memory of {self.description}: {'; '.join(helps)}. ({because})",
                trace=trace,
            )
        return self._fallen(rung, because, used)

    def _fallen(self, rung: Rung, because: str, used: int | None) -> Fallback:
        """Make it so, and say so."""
        pipeline, plan = self.pipeline, self.plan
        self.save_memory()
        changes = self._changes(rung)
        if changes:
            self.job = self.job.model_copy(update=changes)
            self.start_over()
        if plan.weights != "resident":
            pipeline.let_go()
        elif plan.texts == "dropped":
            pipeline.let_go(*pipeline.text_encoder_names)
        devices.free_memory(pipeline.device)
        self.bound.draw()  # what others gave back meanwhile may be taken
        after = devices.memory_used(pipeline.device)
        return Fallback(rung.name, because, rung.lossless, changes, used, after)

    def _changes(self, rung: Rung) -> dict[str, int]:
        """What a rung changes of the job. A plan's size is that of the last pass, a job's that of the first."""
        scale = _scale(self.job)
        return {
            key: value if scale == 1 or key == "num_inference_steps" else int(value / scale) // GRAIN * GRAIN
            for key, value in rung.changes.items()
        }

    def _room(self) -> int | None:
        """Bytes that this model and this job may have together."""
        return devices.memory_free(self.pipeline.device, **self.pipeline.held())

    def _check_size(self) -> None:
        grain = self.pipeline.grain
        if self.job.width % grain or self.job.height % grain:
            raise RenderFailed(
                f"{self.job.width} × {self.job.height} is no size for this model: width and height must be multiples "
                f"of {grain}"
            )

    @contextmanager
    def _at_work(self, phase: Phase, *parts: str) -> Iterator[None]:
        """A phase begins, and its parts are on the device; away again afterwards if the plan says so."""
        pipeline = self.pipeline
        absent = [name for name in parts if name not in pipeline.loaded]
        self.phase = "encode" if phase == "encode" else "load"
        self.under_way.at(self.plan, self.phase if absent else phase)
        if absent:
            self.bound.draw(min(pipeline.on_disk, sum(pipeline.sizes.get(name, pipeline.on_disk) for name in absent)))
        with pipeline.at_work(self.plan, *parts):
            if absent:
                self.bound.draw()  # what was read by way of a map of its file is mapped no more
                self.under_way.at(self.plan, phase)
            self.phase = phase
            yield

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - begin


def _scale(job: Job) -> float:
    """How many times larger the last pass is than the first."""
    return job.hires.scale if job.hires is not None else 1.0


def _ceiled(side: float) -> int:
    return math.ceil(side / GRAIN) * GRAIN
