"""``Rendering``: one job under way, batch by batch, on the plan that memory allows.

The sampling loop is our own, over diffusers' UNet, VAE and schedulers: a loop can yield after each step, which a call
of diffusers' pipeline cannot, and it computes the same.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from darkroom.engine import device as devices
from darkroom.engine.ahead import Ahead, Companions, Shot
from darkroom.engine.lane import Lane
from darkroom.engine.memory.host import Bound
from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.underway import Death, UnderWay
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.planned import Planned
from darkroom.engine.preview import Previews
from darkroom.engine.prompt import read, recall
from darkroom.engine.readings import Conditioning
from darkroom.engine.safety import censored
from darkroom.engine.sampling.beginning import Encoded, Originals, Start, encoded, resized
from darkroom.engine.sampling.diffusion import (
    Denoiser,
    Posterior,
    decode,
    decoding_part,
    encode_picture,
    is_guided,
    step,
)
from darkroom.engine.sampling.graphs import Graphs, Replays
from darkroom.engine.sampling.reuse import looking, unfit
from darkroom.engine.sampling.samplers import begin_at, make_scheduler, step_arguments, step_of
from darkroom.engine.saving import Saving
from darkroom.errors import RenderFailed, Stopped, first_line
from darkroom.events import Ending, Event, Finished, Picture, Preview, Step, Warned
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.job.passes import final_size, is_guided_in, passes

if TYPE_CHECKING:
    from PIL.Image import Image

Stopping = Callable[[], bool]

ENDING_S = 0.25
"""A job is said to end when its last pictures are denoised, or will be in so many seconds."""

LARGE = 256
"""Pictures of more pixels a side are handed out with a thumbnail."""


class Rendering(Planned):
    """One job under way: what is missing still, and what of it is half made."""

    def __init__(
        self,
        pipeline: Pipeline,
        job: Job,
        missing: list[int],
        max_batch: int,
        description: str,
        stopping: Stopping,
        *,
        images: Images = NO_IMAGES,
        learned: Learned,
        under_way: UnderWay,
        bound: Bound,
        save_memory: Callable[[], None],
        previews: bool = False,
        model_hash: Callable[[], str | None] = lambda: None,
        saves_beside: bool = False,
        graphs: Graphs | None = None,
        ahead: Ahead | None = None,
        expected: Sequence[Job] = (),
        announced: Callable[[], Job | None] = lambda: None,
        lane: Lane | None = None,
    ) -> None:
        # On a CPU one at a time: a batch gains little there, and some kernels round otherwise for a batch than for
        # one, where a picture must be the same to the bit whichever others are made with it or were made before.
        batch = 1 if pipeline.device.type == "cpu" else min(max_batch, max(len(missing), 1))
        super().__init__(
            pipeline,
            job,
            description,
            batch=batch,
            learned=learned,
            under_way=under_way,
            bound=bound,
            save_memory=save_memory,
        )
        self.images = images
        self.missing = missing
        self.stopping = stopping
        # where somebody looks at what is shown, nothing is shown before
        self.previews = Previews(pipeline, wanted=previews and pipeline.safety == "off")
        self.model_hash = model_hash
        self.saving = Saving(beside=saves_beside)
        self.replays = Replays(graphs)
        self.conditioning: Conditioning | None = None
        self.latents: dict[int, torch.Tensor] = {}
        """Denoised but not decoded yet, by picture: (1, channels, height / 8, width / 8), float32, on the CPU."""
        self.shared: dict[int, int] = {}
        """Of how many pictures the passes were, where another job shared them, by picture."""
        alone = pipeline.inpaints or pipeline.served
        self.companions = Companions(ahead or Ahead(), job, () if alone else expected, max_batch)
        self.announced = announced
        self.lane = lane or Lane()
        self.originals: Originals | None = None
        self.drafts: dict[int, Image] = {}
        """What the first of two passes made, by picture."""
        self.begins: dict[tuple[int, int], Encoded] = {}
        """The job's own picture and mask in latents, by width and height."""
        self.ends = False
        """Whether it was said that it does."""
        self.helped = self.told = False
        """Whether the VAE needed float32, and whether that was said."""

    def begin(self, death: Death | None, unloaded: str | None) -> Iterator[Event]:
        """Choose the first plan, and say where it is below the full one."""
        yield from self.choose(death, unloaded)
        for index in self.missing:
            made = self.companions.ahead.take(self.job, index)
            if made is not None:
                self.latents[index], self.shared[index] = made.latents, made.batch
                self.originals = Originals(self.job, {})  # it begins with none

    def start_over(self) -> None:
        """As ``Planned.start_over``."""
        for made in (self.latents, self.drafts, self.begins, self.shared):
            made.clear()

    def run(self) -> Iterator[Event]:
        """Go on until nothing is missing. Raises OutOfMemory when no smaller plan is left."""
        with self.saving:
            while self.missing:
                failure: tuple[str, str, int | None] | None = None
                again = False
                try:
                    yield from self.lane.along(self._next_batch())
                except Exception as error:
                    if not devices.is_out_of_memory(error):
                        yield from self._saved(wait=True)
                        raise
                    again = self.bound.too_narrow(for_code=devices.is_for_code(error))
                    used = devices.memory_used(self.pipeline.device)
                    failure = (first_line(error), traceback.format_exc(), used)
                # Here, outside the except block, the exception is gone, and so are the tensors its traceback held.
                if failure is not None:
                    if self.pipeline.device.type == "cpu":
                        self.lane.change()
                    yield from self._saved(wait=True)
                    if self.companions.leave(self.job, self.plan.batch) or again:
                        devices.free_memory(self.pipeline.device)
                        self.bound.draw()
                    else:
                        yield self._step_down(*failure)
        self.fitting.fitted()
        yield Finished(self.seconds)

    def _next_batch(self) -> Generator[Event]:
        if self.conditioning is None:
            yield from self._encode()
        batch = [index for index in self.missing if index not in self.saving][: self.plan.batch]
        if self.job.hires is not None and not all(index in self.drafts for index in batch):
            if not all(index in self.latents for index in batch):
                yield from self._denoise(batch, 0)
            for index, image in self._decode(batch):
                self.drafts[index] = image
                yield from self._told()
        if undone := [index for index in batch if index not in self.latents]:
            yield from self._denoise(undone, len(passes(self.job)) - 1)
        yield from self._ending(batch)
        yield from self._saved(wait=True)  # no more than a batch is on its way
        for index, image in self._decode(batch):
            shown = yield from self._censored(index, image)
            self.saving.begin(index, partial(self._picture, self.job, index, shown, self.model_hash()))
            yield from self._told()
            yield from self._saved()
        if all(index in self.saving for index in self.missing):
            self._read_ahead()
            yield from self._saved(wait=True)

    def _ending(self, batch: list[int], seconds_left: float = 0.0) -> Iterator[Ending]:
        """Said once, a moment before the device is done with the last batch."""
        last = all(index in batch or index in self.saving for index in self.missing)
        if last and not self.ends and seconds_left <= ENDING_S:
            self.ends = True
            yield Ending()

    def _saved(self, *, wait: bool = False) -> Iterator[Event]:
        """The pictures whose files are made, which are missing no more."""
        for picture in self.saving.made(wait=wait):
            self.missing.remove(picture.index)
            self.drafts.pop(picture.index, None)
            yield picture

    def _encode(self) -> Iterator[Event]:
        stop_if(self.stopping)
        names = self.pipeline.text_encoder_names
        self.conditioning = self._recall(self.job)
        if self.conditioning is not None:
            self.pipeline.make_room(self.plan, *names)  # they may be in memory for the last job, on another plan
        else:
            with self._timed("encode"), self._at_work("encode", *names):
                self.conditioning = self._read(self.job)
        yield from self.conditioning.warnings

    def _recall(self, job: Job) -> Conditioning | None:
        """What was made of the job's texts, where they were read lately."""
        return recall(self.pipeline, job, guided=is_guided(self.pipeline, job))

    def _read(self, job: Job) -> Conditioning:
        """Have them read, and kept."""
        return read(self.pipeline, job, guided=is_guided(self.pipeline, job))

    def _read_ahead(self) -> None:
        """The texts of the job that comes next, while the last files are made and where memory is plenty."""
        job, pipeline = self.announced(), self.pipeline
        if job is None or job.model != self.job.model or job.all_loras() or pipeline.adapts_texts:
            return
        names = pipeline.text_encoder_names
        if self.plan != self.fitting.full or not all(name in pipeline.loaded for name in names):
            return
        with suppress(Exception), pipeline.at_work(self.plan, *names):  # its own turn is to say what is wrong
            if self._recall(job) is None:
                self._read(job)

    def _denoise(self, batch: list[int], number: int) -> Iterator[Event]:
        """A pass of the sampling loop. Leaves its outcome in ``self.latents``."""
        assert self.conditioning is not None
        pipeline, job, all_passes = self.pipeline, self.job, passes(self.job)
        this, steps = all_passes[number], sum(one.taken for one in all_passes)
        before = sum(one.taken for one in all_passes[:number])
        begins = self._begins(batch, number)
        scheduler = make_scheduler(job.sampler, job.schedule, pipeline.scheduler_config, this.steps)
        timesteps = begin_at(scheduler, this.steps - this.taken).unbind()
        aboard = self._board(len(batch))
        seeds = [*(job.seed_of(index) for index in batch), *(shot.seed for shot in aboard)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments = step_arguments(scheduler, generators)
        with self._at_work("denoise", "unet"):
            start = Start(pipeline, this, begins, generators, scheduler, timesteps)
            latents = start.latents
            size = (this.width, this.height)
            if (warning := unfit(pipeline.unet, job)) is not None:
                self.job = job = job.model_copy(update={"reuse_features": None})
                yield warning
            unet = looking(pipeline.unet, job)
            replaying = self.replays.of(unet, self.plan, self.fitting.need, self._room)
            guided = [is_guided_in(job, this, step_of(scheduler, look)) for look in range(len(timesteps))]
            read = self.companions.texts(self.conditioning, len(batch)) if aboard else self.conditioning
            denoisers = {
                which: self.previews.watch(
                    Denoiser(
                        pipeline,
                        replaying(guided.count(which)),
                        job,
                        read if which else replace(read, negative=None),
                        size,
                        len(seeds),
                        start.beside,
                    ),
                    len(batch),
                )
                for which in set(guided)
            }
            begun = time.monotonic()
            for done, timestep in enumerate(timesteps, 1):
                stop_if(self.stopping)
                with self._timed("denoise"):
                    latents = step(denoisers[guided[done - 1]], scheduler, timestep, latents, arguments)
                    if done == len(timesteps):
                        latents = start.keep(scheduler, latents, None)
                    elif done % scheduler.order == 0:
                        latents = start.keep(scheduler, latents, timesteps[done])
                yield from self._saved()
                # samplers of the second order look twice in most of their steps
                yield Step(batch[0], len(batch), before - (-done * this.taken // len(timesteps)), steps)
                if number == len(all_passes) - 1:
                    yield from self._ending(batch, (time.monotonic() - begun) / done * (len(timesteps) - done))
                if (preview := self.previews.due(scheduler, done, len(timesteps))) is not None:
                    yield Preview(batch[0], len(batch), preview)
            with self._timed("denoise"):
                latents = latents.cpu()
            del denoisers, unet, replaying, start
        yield from self.replays.warnings()
        if aboard:
            self.shared |= dict.fromkeys(batch, len(seeds))
            self.companions.arrived(latents[len(batch) :], len(seeds))
        self._denoised(batch, latents[: len(batch)])

    def _board(self, own: int) -> list[Shot]:
        """Who shares the next pass with so many of the job's own: nobody where memory is not known to be plenty."""
        if self.conditioning is None or not self.companions or self.plan != self.fitting.full:
            return []
        if self.companions.board(own, min(self.fitting.fits_at_once(), self.companions.ahead.most(self.job))):
            with self._timed("encode"), self._at_work("encode", *self.pipeline.text_encoder_names):
                self.companions.read(self.pipeline, self.conditioning)
        return self.companions.aboard

    def _denoised(self, batch: list[int], latents: Any) -> None:
        """Keep them for decoding. Raises RenderFailed where they are no numbers."""
        if not math.isfinite(latents.abs().amax()):
            raise RenderFailed(
                f"The model's numbers ran out of range on {self.description}; "
                'set [engine] dtype = "bfloat16" or "float32"'
            )
        self.latents.update(zip(batch, latents.chunk(len(batch)), strict=True))

    def _begins(self, batch: list[int], number: int) -> list[Encoded]:
        """What each of the batch begins this pass with; nothing where that is noise alone."""
        if self.originals is None:
            with self._timed("encode"):
                self.originals = Originals(self.job, self.images)
        this = passes(self.job)[number]
        size = (this.width, this.height)
        drafts = [self.drafts[index] for index in batch] if number else []
        if not (self.originals or drafts or self.pipeline.inpaints):
            return []

        def encode(pixels: torch.Tensor) -> Posterior:
            posterior, helped = encode_picture(self.pipeline, pixels, self.plan.vae)
            self.helped = self.helped or helped
            return posterior

        stop_if(self.stopping)
        with self._timed("encode"), self._at_work("decode", "vae"):
            if drafts:
                mask = self.originals.mask(*size)
                return [encoded(self.pipeline, resized(draft, *size), mask, size, encode) for draft in drafts]
            if size not in self.begins:
                own, mask = self.originals.picture(*size), self.originals.mask(*size)
                self.begins[size] = encoded(self.pipeline, own, mask, size, encode)
        return [self.begins[size]] * len(batch)

    def _decode(self, batch: list[int]) -> Iterator[tuple[int, Image]]:
        """Pictures of what ``self.latents`` holds, which then leaves it; what was not to be painted is put back."""
        from PIL import Image

        assert self.originals is not None
        by = "tiny_vae" if self.job.decoder == "tiny" else "vae"
        together = len(batch) if self.plan.vae == "whole" else 1
        for start in range(0, len(batch), together):
            stop_if(self.stopping)
            group = batch[start : start + together]
            latents = torch.cat([self.latents[index] for index in group])
            with self._timed("decode"), self._at_work("decode", decoding_part(self.pipeline, self.plan.vae, by)):
                black = self.originals.black
                pixels, helped = decode(self.pipeline, latents, self.plan.vae, may_be_black=black, by=by)
            self.helped = self.helped or helped
            for index, picture in zip(group, pixels, strict=True):
                yield index, self.originals.kept(Image.fromarray(picture.numpy()))
                del self.latents[index]

    def _censored(self, index: int, image: Image) -> Generator[Event, None, Image]:
        """The picture as it may be shown, where somebody looks at it."""
        wanted = self.pipeline.safety
        if wanted == "off":
            return image
        with self._timed("decode"), self._at_work("decode", "safety_checker"):
            image, warning = censored(self.pipeline.part("safety_checker"), wanted, image, index)
        if warning is not None:
            yield warning
        return image

    def _picture(self, job: Job, index: int, image: Image, model_hash: str | None) -> Picture:
        """Its file, made in a thread of its own: the job may have changed here by then."""
        from darkroom.output import encode as save
        from darkroom.output import extension, thumbnail

        seed = job.seed_of(index)
        with self._timed("save"):
            image = resized(image, *final_size(job))
            hashes = self.pipeline.adapters.hashes if self.pipeline.adapters else {}
            data = save(
                image,
                job,
                seed=seed,
                device=self.description,
                model_hash=model_hash,
                lora_hashes=hashes,
            )
            small = thumbnail(image) if max(image.size) > LARGE else b""
        batch = self.shared.get(index)
        return Picture(index, seed, image.width, image.height, data, extension(job.output_format), small, batch)

    def _told(self) -> Iterator[Event]:
        """That the VAE needed float32, once."""
        if self.helped and not self.told:
            self.told = True
            openvino = self.pipeline.openvino if self.pipeline.served else None
            name = str(openvino.dtype if openvino else self.pipeline.dtype).removeprefix("torch.")
            saves = {"float16": ' or [engine] dtype = "bfloat16"', "bfloat16": ' or [engine] dtype = "float32"'}
            yield Warned(
                "vae_float32",
                f"The VAE's numbers ran out of range in {'openvino ' if openvino else ''}{name}, so it was used in "
                f"float32; a VAE made for it ([models.NAME] vae){saves.get(name, '')} saves the second try",
            )


def stop_if(stopping: Stopping) -> None:
    """Raises Stopped where somebody asked for it."""
    if stopping():
        raise Stopped("The engine was asked to stop")
