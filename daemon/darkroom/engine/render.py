"""``Engine``: one job from its model to its pictures, stepping down when memory runs out.

The sampling loop is our own, over diffusers' UNet, VAE and schedulers: a loop can yield after each step, which a call
of diffusers' pipeline cannot, and it computes the same.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from darkroom.config import Config
from darkroom.engine import device as devices
from darkroom.engine.diffusion import Denoiser, decode, is_guided, noise, step
from darkroom.engine.memory import MemoryPlan, Phase, step_down
from darkroom.engine.models import Models, Pipeline
from darkroom.engine.prompt import Conditioning, encode
from darkroom.engine.samplers import make_scheduler, step_arguments
from darkroom.errors import DarkroomError, OutOfMemory, RenderFailed, Stopped, first_line
from darkroom.events import Event, Fallback, Finished, Loaded, Picture, Step
from darkroom.job import Job

Stopping = Callable[[], bool]


class Engine:
    """Renders jobs, one at a time. No model is loaded before the first."""

    def __init__(self, config: Config) -> None:
        if config.engine.threads:
            torch.set_num_threads(config.engine.threads)
        self._max_batch = config.engine.max_batch
        self._device = devices.choose_device(config.engine)
        self._models = Models(config, self._device)

    def render(self, job: Job, skip: frozenset[int], stopping: Stopping) -> Iterator[Event]:
        """The pictures of ``job`` whose index is not in ``skip``, each as soon as it is made, then Finished.

        Raises Stopped at the next step after ``stopping()`` is true; else ModelUnavailable, OutOfMemory, RenderFailed.
        """
        _stop_if(stopping)
        pipeline, seconds = self._load(job.model)
        description = devices.describe(pipeline.device, pipeline.dtype)
        yield Loaded(job.model, seconds, description, devices.versions())
        missing = [index for index in range(job.count) if index not in skip]
        try:
            yield from _Rendering(pipeline, job, missing, self._max_batch, description, stopping).run()
        except DarkroomError:
            raise
        except Exception as error:
            raise RenderFailed(
                f"The engine failed on this job: {first_line(error)}", trace=traceback.format_exc()
            ) from None

    def close(self) -> None:
        """Let go of all models."""
        self._models.clear()

    def _load(self, name: str) -> tuple[Pipeline, float]:
        """Raises ModelUnavailable and OutOfMemory."""
        try:
            return self._models.get(name)
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            because, trace = first_line(error), traceback.format_exc()
        self._models.clear()
        raise OutOfMemory(f'The model "{name}" does not fit into memory: {because}', trace=trace)


class _Rendering:
    """One job under way: what is missing still, and the plan by which it is made."""

    def __init__(
        self,
        pipeline: Pipeline,
        job: Job,
        missing: list[int],
        max_batch: int,
        description: str,
        stopping: Stopping,
    ) -> None:
        self.pipeline = pipeline
        self.job = job
        self.missing = missing
        self.description = description
        self.stopping = stopping
        self.phase: Phase = "encode"
        self.seconds = {"encode": 0.0, "denoise": 0.0, "decode": 0.0, "save": 0.0}
        self.conditioning: Conditioning | None = None
        self.latents: dict[int, torch.Tensor] = {}
        """Denoised but not decoded yet, by picture: (1, channels, height / 8, width / 8), float32, on the CPU."""
        # On a CPU one at a time: a batch gains little there, and some kernels round otherwise for a batch than for
        # one, where a picture must be the same to the bit whichever others are made with it or were made before.
        batch = 1 if pipeline.device.type == "cpu" else min(max_batch, max(len(missing), 1))
        self.plan = MemoryPlan(
            batch=batch,
            width=job.width,
            height=job.height,
            steps=job.num_inference_steps,
            smallest_side=max(64, pipeline.native_side // 16 * 8),
        )

    def run(self) -> Iterator[Event]:
        """Go on until nothing is missing. Raises OutOfMemory when no smaller plan is left."""
        self._check_size()
        while self.missing:
            failure: tuple[str, str, int | None] | None = None
            try:
                yield from self._next_batch()
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                used = devices.memory_used(self.pipeline.device)
                failure = (first_line(error), traceback.format_exc(), used)
            # Here, outside the except block, the exception is gone, and so are the tensors that its traceback held.
            if failure is not None:
                yield self._step_down(*failure)
        yield Finished(self.seconds)

    def _next_batch(self) -> Iterator[Event]:
        if self.conditioning is None:
            yield from self._encode()
        batch = self.missing[: self.plan.batch]
        if not all(index in self.latents for index in batch):
            yield from self._denoise(batch)
        yield from self._decode(batch)

    def _encode(self) -> Iterator[Event]:
        _stop_if(self.stopping)
        with self._timed("encode"), self._placed(*self.pipeline.text_encoders):
            self.conditioning = encode(self.pipeline, self.job, guided=is_guided(self.pipeline, self.job))
        yield from self.conditioning.warnings

    def _denoise(self, batch: list[int]) -> Iterator[Event]:
        """The sampling loop. Leaves its outcome in ``self.latents``."""
        self.phase = "denoise"
        assert self.conditioning is not None
        pipeline, job = self.pipeline, self.job
        steps = job.num_inference_steps
        scheduler = make_scheduler(job.sampler, job.schedule, pipeline.scheduler_config, steps)
        generators = [torch.Generator().manual_seed(job.seed_of(index)) for index in batch]
        arguments = step_arguments(scheduler, generators)
        with self._placed(pipeline.unet):
            latents = noise(pipeline, job, generators) * scheduler.init_noise_sigma
            denoiser = Denoiser(pipeline, job, self.conditioning, len(batch))
            for done, timestep in enumerate(scheduler.timesteps, 1):
                _stop_if(self.stopping)
                with self._timed("denoise"):
                    latents = step(denoiser, scheduler, timestep, latents, arguments)
                # samplers of the second order look twice in most of their steps
                yield Step(batch[0], len(batch), -(-done * steps // len(scheduler.timesteps)), steps)
        with self._timed("denoise"):
            latents = latents.cpu()
        if not torch.isfinite(latents).all():
            raise RenderFailed(
                f"The model's numbers ran out of range on {self.description}; "
                'set [engine] dtype = "bfloat16" or "float32"'
            )
        self.latents.update(zip(batch, latents.split(1), strict=True))

    def _decode(self, batch: list[int]) -> Iterator[Event]:
        self.phase = "decode"
        together = len(batch) if self.plan.vae == "whole" else 1
        for start in range(0, len(batch), together):
            _stop_if(self.stopping)
            group = batch[start : start + together]
            with self._timed("decode"), self._placed(self.pipeline.vae):
                images = decode(self.pipeline, torch.cat([self.latents[index] for index in group]), self.plan.vae)
            for index, pixels in zip(group, images, strict=True):
                picture = self._picture(index, pixels)
                self.missing.remove(index)
                del self.latents[index]
                yield picture

    def _picture(self, index: int, pixels: torch.Tensor) -> Picture:
        from PIL import Image

        from darkroom.output import encode as save
        from darkroom.output import extension

        job, seed = self.job, self.job.seed_of(index)
        with self._timed("save"):
            image = Image.fromarray(pixels.numpy())
            data = save(image, job, seed=seed, device=self.description, model_hash=None)
        return Picture(index, seed, image.width, image.height, data, extension(job.output_format))

    def _step_down(self, because: str, trace: str, used: int | None) -> Fallback:
        """Take the next smaller plan. Raises OutOfMemory where there is none."""
        device = self.pipeline.device
        devices.free_memory(device)
        found = step_down(self.plan, on_oom=self.job.on_oom, can_offload=device.type == "cuda", phase=self.phase)
        if found is None:
            advice = "" if self.job.on_oom == "degrade" else '; "on_oom": "degrade" lets it be made smaller'
            raise OutOfMemory(
                f"Not even {self.plan} fits into the memory of {self.description}: ask for a smaller picture, or free "
                f"memory that other programs hold{advice}. ({because})",
                trace=trace,
            )
        self.plan, rung = found
        if rung.changes:
            self.job = self.job.model_copy(update=rung.changes)
            self.latents.clear()
        if self.plan.weights == "offload":
            for part in self.pipeline.parts():
                part.to("cpu")
            devices.free_memory(device)
        return Fallback(rung.name, because, rung.lossless, rung.changes, used, devices.memory_used(device))

    def _check_size(self) -> None:
        reduction = self.pipeline.reduction
        if self.job.width % reduction or self.job.height % reduction:
            raise RenderFailed(
                f"{self.job.width} × {self.job.height} is no size for this model: width and height must be multiples "
                f"of {reduction}"
            )

    @contextmanager
    def _placed(self, *parts: Any) -> Iterator[None]:
        """The parts on the device; away again afterwards if the plan is to offload."""
        device = self.pipeline.device
        try:
            for part in parts:
                part.to(device)
            yield
        finally:
            if self.plan.weights == "offload":
                for part in parts:
                    part.to("cpu")

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - begin


def _stop_if(stopping: Stopping) -> None:
    if stopping():
        raise Stopped("The engine was asked to stop")
