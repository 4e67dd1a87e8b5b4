"""``FlowRendering``: a job under way on a model that follows a flow. All but reading and denoising is as for UNets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from darkroom.engine import flow
from darkroom.engine.flow import FlowPipeline
from darkroom.engine.readings import Conditioning, Texts
from darkroom.engine.rendering import Rendering, stop_if
from darkroom.engine.sampling.diffusion import is_guided, noise
from darkroom.engine.stepwise import Stepwise
from darkroom.errors import RenderFailed
from darkroom.events import Event, Step
from darkroom.job import Job, misfits
from darkroom.sampling import UnknownName, choose_schedule, find_sampler


class FlowRendering(Rendering):
    """One job under way through diffusers' pipeline."""

    pipeline: FlowPipeline

    def __init__(self, pipeline: FlowPipeline, *arguments: Any, **options: Any) -> None:
        super().__init__(pipeline, *arguments, **options)
        self._check_job()

    def _check_job(self) -> None:
        """Once more: a model that was not fetched yet when the job came could not be asked."""
        family = self.pipeline.flow
        faults = [str(fault) for fault in misfits(self.job, family)]
        try:
            choose_schedule(family.sampler(find_sampler(self.job.sampler)[0]), self.job.schedule)
        except UnknownName as error:
            faults.append(f"{error} ({error.hint})")
        if faults:
            raise RenderFailed(f'The model "{self.pipeline.name}" cannot do this job: {faults[0]}')

    def _encode(self) -> Iterator[Event]:
        yield from super()._encode()
        yield from flow.ignored(self.pipeline, self.job)

    def _read(self, job: Job) -> Conditioning:
        pipeline, guided = self.pipeline, is_guided(self.pipeline, job)
        conditioning = flow.encode(pipeline, job, guided=guided)
        pipeline.readings.keep(Texts.of(job, guided=guided), conditioning)
        return conditioning

    def _denoise(self, batch: list[int], number: int) -> Iterator[Event]:
        self._begins(batch, number)  # with noise alone
        pipeline, job, conditioning = self.pipeline, self.job, self.conditioning
        assert conditioning is not None
        steps = job.num_inference_steps
        generators = [torch.Generator().manual_seed(job.seed_of(index)) for index in batch]
        with self._at_work("denoise", "transformer"):
            begin = noise(pipeline, job.width, job.height, generators)
            with Stepwise(lambda told: flow.denoise(pipeline, job, conditioning, begin, told)) as work:
                for done in range(1, steps + 1):
                    stop_if(self.stopping)
                    with self._timed("denoise"):
                        work.advance()
                    yield from self._saved()
                    yield Step(batch[0], len(batch), done, steps)
                with self._timed("denoise"):
                    latents = work.result().cpu()
        self._denoised(batch, latents)
