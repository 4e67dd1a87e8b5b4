"""``Engine``: one job from its model to its pictures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import torch

from darkroom.config import Config
from darkroom.engine import device as devices
from darkroom.engine.ahead import Ahead
from darkroom.engine.cache import cache_dir
from darkroom.engine.fetching import ALIVE_S, Fetching
from darkroom.engine.flow import FlowPipeline
from darkroom.engine.flow_rendering import FlowRendering
from darkroom.engine.hashes import Hashes
from darkroom.engine.lane import Lane
from darkroom.engine.lora import Adapters, LoraCache
from darkroom.engine.memory import host
from darkroom.engine.memory.fitting import gib
from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.need import DOUBT
from darkroom.engine.memory.underway import Death, UnderWay
from darkroom.engine.models import Models
from darkroom.engine.openvino.quantizing import quantize
from darkroom.engine.openvino.served import Served, Unserved
from darkroom.engine.pipeline import DECODER, Pipeline
from darkroom.engine.prompt import recall
from darkroom.engine.rendering import Rendering, Stopping, stop_if
from darkroom.engine.sampling.diffusion import is_guided
from darkroom.engine.sampling.graphs import Graphs
from darkroom.engine.sampling.reuse import reuses
from darkroom.errors import ConfigError, DarkroomError, DeviceGone, EngineDied, OutOfMemory, RenderFailed, first_line
from darkroom.events import Alive, Event, Loaded, Warned
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.job.passes import passes


class Engine:
    """Renders jobs, one at a time. No model is loaded before the first, or ``prepare``."""

    def __init__(self, config: Config) -> None:
        if config.engine.threads:
            torch.set_num_threads(config.engine.threads)
        self._default = config.models.default
        self._max_batch = config.engine.max_batch
        self._previews = config.output.previews
        try:
            self._device = devices.choose_device(config.engine)
        except ConfigError as missing:
            raise DeviceGone(missing.message) from None
        self._models = Models(config, self._device)
        self._loras = LoraCache(config.models)
        self._adapted: Pipeline | None = None
        self._fetching = Fetching(config.models)
        folder = cache_dir(config.engine)
        self._learned = Learned(folder)
        self._hashes = Hashes(folder)
        self._under_way = UnderWay(folder)
        self._bound = host.Bound(wanted=self._device.type == "cpu")  # a GPU's memory has an end by itself
        self._lane = Lane()
        self._saving = False
        self._saves_beside = self._device.type != "cpu"  # where sampling has all cores
        self._graphs = Graphs(self._device) if config.engine.cuda_graphs else None
        self._rendering: Rendering | None = None
        self._ahead = Ahead()
        self._expected: tuple[Job, ...] = ()
        self._announced: Job | None = None

    def expect(self, jobs: tuple[Job, ...]) -> None:
        """These are likely to come after the job that is rendered next, in whose passes they may be denoised."""
        self._expected = jobs

    def announce(self, job: Job) -> None:
        """The one after the job that is rendered: its texts may be read as that one ends."""
        self._announced = job

    def render(self, job: Job, skip: frozenset[int], stopping: Stopping, images: Images = NO_IMAGES) -> Iterator[Event]:
        """The pictures of ``job`` whose index is not in ``skip``, each as soon as it is made, then Finished.

        Raises Stopped at the next step after ``stopping()`` is true; else ModelUnavailable, OutOfMemory, RenderFailed.
        """
        stop_if(stopping)
        yield from self._fetching.fetch(self._models.find(job.model), stopping)
        death, lives = self._under_way.begin(job.id), True
        try:
            yield from self._render(job, skip, stopping, death, images)
        except DarkroomError:
            raise
        except Exception as error:
            self._bound.lift()  # to speak takes memory too
            failure = devices.device_failure(error)
            lives = not isinstance(failure, EngineDied)
            if failure is not None:
                raise failure from None
            if devices.is_out_of_memory(error):
                raise self._out_of_memory(error) from None
            raise RenderFailed(
                f"The engine failed on this job: {first_line(error)}", trace=traceback.format_exc()
            ) from None
        finally:
            self._rendering = None
            self._expected = ()
            self._announced = None
            self._bound.end()
            if self._adapted is not None:
                self._adapted.adapt(None)
                self._adapted = None
            if self._saving:
                self._saving = False
                host.save_memory(False)
            if lives:
                self._under_way.end()

    def prepare(self, stopping: Stopping) -> None:
        """Load the default model, part by part, until ``stopping()``. Raises what the first job of it would.

        A model on the hub that is not here yet is not fetched: ModelUnavailable.
        """
        try:
            pipeline = self._models.get(self._default)
            self._bound.draw(pipeline.on_disk)
            openvino, later = pipeline.openvino, set[str]()
            if openvino is not None and openvino.refused is None:
                pipeline.serve(True)
                # to convert takes a minute, which no job should have to wait for
                later = {"vae"} if openvino.ready else {"unet", DECODER}
            for name in pipeline.parts:
                if stopping():
                    return
                if name not in later:
                    pipeline.load(name)
        finally:
            self._bound.lift()

    def forget_texts(self) -> None:
        """Let go of what was read of prompts, so that a measurement of the next job counts its reading."""
        self._models.forget_texts()

    def close(self) -> None:
        """Let go of all models."""
        if self._graphs is not None:
            self._graphs.clear()
        self._models.clear()
        self._loras.clear()
        self._ahead.clear()

    def _render(
        self, job: Job, skip: frozenset[int], stopping: Stopping, death: Death | None, images: Images
    ) -> Iterator[Event]:
        begin = time.monotonic()
        pipeline = self._models.get(job.model)
        yield from self._adapt(pipeline, job)
        self._ahead.begin(pipeline)
        yield from self._choose_backend(pipeline, job, died=death is not None)
        try:
            yield from self._attempt(pipeline, job, skip, stopping, death, images, begin)
            return
        except Unserved as error:
            because = str(error)
        # Here the exception is gone, and so is what its traceback held.
        rendering, self._rendering = self._rendering, None
        if rendering is not None:
            job, skip = rendering.job, frozenset(range(job.count)) - frozenset(rendering.missing)
        del rendering
        pipeline.serve(False)
        devices.free_memory(self._device)
        yield Warned("openvino_failed", f"OpenVINO failed, and torch did the rest: {because}")
        yield from self._attempt(pipeline, job, skip, stopping, None, images, time.monotonic())

    def _choose_backend(self, pipeline: Pipeline, job: Job, *, died: bool) -> Iterator[Event]:
        """Who runs the UNet in this job; said where it is not whom the config wants, or where that takes a while."""
        openvino = pipeline.openvino
        if openvino is None:
            return
        against = openvino.against(adapted=pipeline.adapts_unet, reuses=reuses(job), died=died)
        free = devices.memory_free(self._device)
        plenty = not died and (free is None or free > DOUBT * pipeline.on_disk)
        pipeline.serve(against is None, plenty=plenty)
        if against is not None:
            yield Warned("openvino_unused", f"The UNet was run by torch, not by OpenVINO: {against}.")
            return
        if not openvino.converted:
            message = "The model is converted for OpenVINO, once: that took a part of this job's time."
            yield Warned("openvino_converted", message)
        yield from self._quantize(pipeline, job)

    def _quantize(self, pipeline: Pipeline, job: Job) -> Iterator[Event]:
        """The UNet in 8 bits, where that is wanted and not done yet; said, and where it cannot be, why."""
        openvino = pipeline.openvino
        assert openvino is not None
        if openvino.unquantized is None and not openvino.quantized:
            yield Warned(
                "openvino_quantized",
                "The UNet is brought to 8 bits for OpenVINO, once, which takes some minutes for a large model: that is "
                "a part of this job's time.",
            )
            self._bound.draw(pipeline.on_disk)
            try:
                yield from _alive_while(partial(quantize, pipeline, job))
            except Unserved as error:
                openvino.unquantized = str(error)  # until the engine's process is another one
            devices.free_memory(self._device)
        if openvino.unquantized:
            yield Warned("openvino_unquantized", f"The UNet was not run in 8 bits: {openvino.unquantized}.")

    def _attempt(
        self,
        pipeline: Pipeline,
        job: Job,
        skip: frozenset[int],
        stopping: Stopping,
        death: Death | None,
        images: Images,
        begin: float,
    ) -> Iterator[Event]:
        """With the pipeline as it is, ``begin`` being when its loading did. Raises Unserved where OpenVINO fails."""
        model_hash = self._model_hash(job, stopping)
        needed = set(pipeline.parts)
        if pipeline.served and not (job.init_image or job.hires or pipeline.inpaints):
            needed.discard("vae")  # to decode it is not asked, unless by tiles or in float32
        if recall(pipeline, job, guided=is_guided(pipeline, job)) is not None:
            needed -= set(pipeline.text_encoder_names)
        loaded_before = needed <= pipeline.loaded.keys()
        unloaded = None
        if not loaded_before and not _died_loading(death):
            self._bound.draw(pipeline.on_disk)
            unloaded = self._load(pipeline, [name for name in pipeline.parts if name in needed])
        self._bound.draw()
        description, versions = devices.describe(pipeline.device, pipeline.dtype), devices.versions()
        if pipeline.openvino is not None and pipeline.served:
            description = f"{description}, {pipeline.openvino.describe()}"
            versions = {**versions, **pipeline.openvino.versions()}
            loaded_before &= not self._compile(pipeline, job)
        seconds = 0.0 if loaded_before else time.monotonic() - begin
        yield Loaded(job.model, seconds, description, versions)
        missing = [index for index in range(job.count) if index not in skip]
        kind: type[Rendering] = FlowRendering if isinstance(pipeline, FlowPipeline) else Rendering
        rendering = kind(
            pipeline,
            job,
            missing,
            self._max_batch,
            description,
            stopping,
            images=images,
            learned=self._learned,
            under_way=self._under_way,
            bound=self._bound,
            save_memory=lambda: self._save_memory(pipeline),
            previews=self._previews,
            model_hash=model_hash,
            saves_beside=self._saves_beside,
            graphs=self._graphs if death is None else None,
            ahead=self._ahead,
            expected=self._expected if death is None else (),
            announced=lambda: self._announced,
            lane=self._lane,
        )
        self._rendering = rendering
        yield from rendering.begin(death, unloaded)
        yield from rendering.run()

    def _compile(self, pipeline: Pipeline, job: Job) -> bool:
        """What OpenVINO runs first, so that the time it takes counts as loading. Whether that was news."""
        unet, decoder = pipeline.loaded.get("unet"), pipeline.loaded.get(DECODER)
        (first, last), reduction = (passes(job)[0], passes(job)[-1]), pipeline.reduction
        news = False
        if isinstance(unet, Served):
            looks = 2 if is_guided(pipeline, job) else 1
            news |= unet.compile((looks, 77, first.height // reduction, first.width // reduction))
        if isinstance(decoder, Served) and job.decoder != "tiny":
            news |= decoder.compile((1, 0, last.height // reduction, last.width // reduction))
        return news

    def _out_of_memory(self, error: Exception) -> OutOfMemory:
        """Before or beside the work that can be made smaller."""
        free = devices.memory_free(self._device)
        there = "" if free is None else f", of which {gib(free)} are free"
        return OutOfMemory(
            f"What the job needs before its first step does not fit into memory{there}: free memory that other "
            f"programs hold, or give darkroom more. ({first_line(error)})",
            trace=traceback.format_exc(),
        )

    def _model_hash(self, job: Job, stopping: Stopping) -> Callable[[], str | None]:
        """The start of a checkpoint's sha256, as other tools write it; waited for only when it is asked for."""
        checkpoint = self._models.find(job.model).checkpoint
        if checkpoint is None:
            return lambda: None
        begun = self._hashes.begin(checkpoint)
        return lambda: (begun.wait(lambda: stop_if(stopping)) or "")[:10] or None

    def _adapt(self, pipeline: Pipeline, job: Job) -> Iterator[Event]:
        """The job's LoRAs are beside the model's layers until the job ends. Raises ModelUnavailable."""
        chosen, warnings = self._loras.for_job(job)
        yield from warnings
        if chosen:
            adapters = Adapters(chosen, pipeline.name, pipeline.device, pipeline.dtype)
            adapters.check(tuple(pipeline.loaders))
            self._adapted = pipeline
            pipeline.adapt(adapters)

    def _save_memory(self, pipeline: Pipeline) -> None:
        """Nothing but this model, and nothing held back for later, until the job ends."""
        self._keep_only(pipeline)
        pipeline.forget_aside()
        self._loras.clear()
        self._saving = True
        host.save_memory(True)

    def _keep_only(self, pipeline: Pipeline) -> None:
        """Of all models this one, and none of what was recorded."""
        self._models.keep_only(pipeline)
        if self._graphs is not None:
            self._graphs.clear()

    def _load(self, pipeline: Pipeline, names: list[str]) -> str | None:
        """These parts into memory; where they do not fit even alone, none, and why. Raises ModelUnavailable."""
        because = ""
        for _ in ("beside other models", "alone"):
            try:
                pipeline.load(*names)
                return None
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                because = first_line(error)
            # Here the exception is gone, and so is what its traceback held.
            self._keep_only(pipeline)
            pipeline.let_go()
            devices.free_memory(self._device)
        return because


def _died_loading(death: Death | None) -> bool:
    """Then its parts are loaded one by one, each when it is needed."""
    return death is not None and death.plan is None and death.by_kernel is not False


def _alive_while(work: Callable[[], None]) -> Iterator[Alive]:
    """Do what takes minutes and has no steps. Raises what it does; whoever has enough of it waits for its end."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while not done.done():
            wait([done], ALIVE_S)
            yield Alive()
        done.result()
