"""``Engine``: one job from its model to its pictures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator

import torch

from darkroom.config import Config
from darkroom.engine import device as devices
from darkroom.engine import host
from darkroom.engine.cache import cache_dir
from darkroom.engine.fetching import Fetching
from darkroom.engine.learned import Learned
from darkroom.engine.models import Models
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.rendering import Rendering, Stopping, stop_if
from darkroom.engine.underway import Death, UnderWay
from darkroom.errors import ConfigError, DarkroomError, DeviceGone, RenderFailed, first_line
from darkroom.events import Event, Loaded
from darkroom.job import NO_IMAGES, Images, Job


class Engine:
    """Renders jobs, one at a time. No model is loaded before the first."""

    def __init__(self, config: Config) -> None:
        if config.engine.threads:
            torch.set_num_threads(config.engine.threads)
        self._max_batch = config.engine.max_batch
        try:
            self._device = devices.choose_device(config.engine)
        except ConfigError as missing:
            raise DeviceGone(missing.message) from None
        self._models = Models(config, self._device)
        self._fetching = Fetching(config.models)
        folder = cache_dir(config.engine)
        self._learned = Learned(folder)
        self._under_way = UnderWay(folder)
        self._bound = host.Bound()
        self._saving = False

    def render(self, job: Job, skip: frozenset[int], stopping: Stopping, images: Images = NO_IMAGES) -> Iterator[Event]:
        """The pictures of ``job`` whose index is not in ``skip``, each as soon as it is made, then Finished.

        Raises Stopped at the next step after ``stopping()`` is true; else ModelUnavailable, OutOfMemory, RenderFailed.
        """
        stop_if(stopping)
        yield from self._fetching.fetch(self._models.find(job.model), stopping)
        death = self._under_way.begin(job.id)
        try:
            yield from self._render(job, skip, stopping, death, images)
        except DarkroomError:
            raise
        except Exception as error:
            failure = devices.device_failure(error)
            if failure is not None:
                raise failure from None
            raise RenderFailed(
                f"The engine failed on this job: {first_line(error)}", trace=traceback.format_exc()
            ) from None
        finally:
            self._bound.lift()
            if self._saving:
                self._saving = False
                host.save_memory(False)
            self._under_way.end()

    def close(self) -> None:
        """Let go of all models."""
        self._models.clear()

    def _render(
        self, job: Job, skip: frozenset[int], stopping: Stopping, death: Death | None, images: Images
    ) -> Iterator[Event]:
        begin = time.monotonic()
        pipeline = self._models.get(job.model)
        loaded_before = len(pipeline.loaded) == len(pipeline.loaders)
        unloaded = None
        if not loaded_before and not _died_loading(death):
            self._draw_bound(self._models.find(job.model).size())
            unloaded = self._load(pipeline)
        self._draw_bound()
        seconds = 0.0 if loaded_before else time.monotonic() - begin
        description = devices.describe(pipeline.device, pipeline.dtype)
        yield Loaded(job.model, seconds, description, devices.versions())
        missing = [index for index in range(job.count) if index not in skip]
        rendering = Rendering(
            pipeline,
            job,
            missing,
            self._max_batch,
            description,
            stopping,
            images=images,
            learned=self._learned,
            under_way=self._under_way,
            draw_bound=self._draw_bound,
            save_memory=lambda: self._save_memory(pipeline),
        )
        yield from rendering.begin(death, unloaded)
        yield from rendering.run()

    def _save_memory(self, pipeline: Pipeline) -> None:
        """Nothing but this model, and nothing held back for later, until the job ends."""
        self._models.keep_only(pipeline)
        self._saving = True
        host.save_memory(True)

    def _draw_bound(self, mapping: int = 0) -> None:
        """An allocation that does not fit is to fail, not to kill. A GPU's memory does that by itself."""
        if self._device.type == "cpu":
            self._bound.draw(mapping)

    def _load(self, pipeline: Pipeline) -> str | None:
        """All parts into memory; where they do not fit even alone, none, and why. Raises ModelUnavailable."""
        because = ""
        for _ in ("beside other models", "alone"):
            try:
                pipeline.load()
                return None
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                because = first_line(error)
            # Here the exception is gone, and so is what its traceback held.
            self._models.keep_only(pipeline)
            pipeline.let_go()
            devices.free_memory(self._device)
        return because


def _died_loading(death: Death | None) -> bool:
    """Then its parts are loaded one by one, each when it is needed."""
    return death is not None and death.plan is None and death.by_kernel is not False
