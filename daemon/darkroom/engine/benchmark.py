"""Engines to measure with, for the executor's child: ours beside diffusers' pipelines, in turns in one process.

A job is one measurement: all sides make its pictures, one after the other, each time another one first. ``Finished``
tells their seconds: ``tutorial`` (float32 on a CPU, float16 on a GPU, attention slicing, a call of the pipeline,
Pillow's PNG), ``pipeline`` (the same without slicing: diffusers as it comes) and ``ours``, from job to files.
"""

from __future__ import annotations

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from darkroom.config import Config
from darkroom.engine import device as devices
from darkroom.engine.models import Models
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.engine.rendering import Stopping
from darkroom.engine.sampling.diffusion import is_guided
from darkroom.events import Event, Finished, Loaded, Step
from darkroom.job import NO_IMAGES, Images, Job

Seconds = dict[str, float]

KNOWN = 20
"""So many jobs whose texts are known are made in a row."""

_MM_SIDE = {"cpu": 2048}
"""Of the matrices whose product tells what the device can do."""


class Comparison:
    """Each job on our engine and on the references.

    With more than one step also ``…_step``, the seconds from one to the next (on a GPU, which does not wait for us, of
    ours alone); and ``ours_flop_per_s`` and ``mm_flop_per_s``: what the UNet reached, and what a matrix product reaches
    in the number format that ours computes with.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(self, config: Config) -> None:
        self._ours = Engine(config)
        self._device = devices.choose_device(config.engine)
        self._models = Models(config, self._device)
        plain = "float32" if self._device.type == "cpu" else "float16"
        settings = config.engine.model_copy(update={"dtype": plain, "backend": "torch"})
        self._references = Models(config.model_copy(update={"engine": settings}), self._device)
        self._pipes: dict[str, Any] = {}
        self._sides: list[Callable[[Job], Iterator[Event | Seconds]]] = [self._tutorial, self._pipeline, self._our]

    def render(self, job: Job, skip: frozenset[int], stopping: Stopping, images: Images = NO_IMAGES) -> Iterator[Event]:
        """What was loaded, and the seconds of all sides; no steps, since to tell them would count as our time."""
        seconds: Seconds = {}
        for side in self._sides:
            for told in side(job):
                if isinstance(told, dict):
                    seconds |= told
                elif isinstance(told, Loaded):
                    yield told
        self._sides.append(self._sides.pop(0))
        seconds |= self._rates(job, seconds.get("ours_step"))
        yield Finished(seconds)

    def close(self) -> None:
        """Let go of all models."""
        self._pipes.clear()
        self._references.clear()
        self._ours.close()

    def _our(self, job: Job) -> Iterator[Event | Seconds]:
        beats: list[float] = []
        self._ours.forget_texts()  # the others read the prompt each time
        begin = self.clock()
        for event in self._ours.render(job, frozenset(), lambda: False):
            match event:
                case Step():
                    beats.append(self.clock())
                case Finished(seconds):
                    phases = dict(seconds)
            yield event
        taken = self.clock() - begin
        step = {"ours_step": phases["denoise"] / len(beats)} if self._device.type != "cpu" else _between("ours", beats)
        yield {"ours": taken, **step, **phases}

    def _tutorial(self, job: Job) -> Iterator[Event | Seconds]:
        pipe = self._pipe(job)
        own = dict(pipe.unet.attn_processors)
        pipe.enable_attention_slicing()
        yield self._call(pipe, job, "tutorial")
        pipe.unet.set_attn_processor(own)

    def _pipeline(self, job: Job) -> Iterator[Event | Seconds]:
        yield self._call(self._pipe(job), job, "pipeline")

    def _call(self, pipe: Any, job: Job, name: str) -> Seconds:
        beats: list[float] = []

        def beat(pipe: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            beats.append(self.clock())
            return {}

        begin = self.clock()
        made = pipe(
            job.prompt,
            negative_prompt=job.negative_prompt,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            width=job.width,
            height=job.height,
            num_images_per_prompt=job.count,
            generator=torch.Generator().manual_seed(job.seed),
            callback_on_step_end=beat,
        ).images
        for image in made:
            image.save(io.BytesIO(), "PNG")
        seconds = self.clock() - begin
        return {name: seconds} if self._device.type != "cpu" else {name: seconds, **_between(name, beats)}

    def _pipe(self, job: Job) -> Any:
        """diffusers' pipeline over the model's parts, with the sampler that the job asks of ours."""
        if job.model not in self._pipes:
            pipeline = self._references.get(job.model)
            pipeline.load()
            for name in pipeline.loaders:
                pipeline.part(name).to(self._device)
            self._pipes[job.model] = _diffusers_pipeline(pipeline)
        return self._pipes[job.model]

    def _rates(self, job: Job, step: float | None) -> Seconds:
        """The UNet's arithmetic a second, and a matrix product's; nothing where steps cannot be told apart."""
        if step is None:
            return {}
        pipeline = self._models.get(job.model)
        pictures = 1 if self._device.type == "cpu" else job.count
        flops = _unet_flops(pipeline, job, pictures * (2 if is_guided(pipeline, job) else 1))
        return {"ours_flop_per_s": flops / step, "mm_flop_per_s": _mm_rate(self._device, pipeline.dtype)}


class Frame(Comparison):
    """The same with a UNet and a VAE that answer at once: what is left is what the loops around them cost.

    In seconds of the processor's, which others that use it do not make more. ``ours_known`` are those of a job whose
    texts were read before, the median of many.
    """

    clock = staticmethod(time.process_time)

    def __init__(self, config: Config) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from diffusers.models.autoencoders.vae import DecoderOutput

        def at_once(unet: Any, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            return (sample,)

        pictures: dict[torch.Size, torch.Tensor] = {}

        def grey(vae: Any, latents: torch.Tensor, return_dict: bool = True, **_: Any) -> Any:
            picture = pictures.get(latents.shape)
            if picture is None:
                reduction = 2 ** (len(vae.config.block_out_channels) - 1)
                size = (reduction * side for side in latents.shape[-2:])
                picture = pictures[latents.shape] = torch.zeros(()).expand(len(latents), 3, *size)
            return DecoderOutput(picture) if return_dict else (picture,)

        for kind, name, answer in ((UNet2DConditionModel, "forward", at_once), (AutoencoderKL, "decode", grey)):
            setattr(kind, name, answer)
        settings = config.engine.model_copy(update={"backend": "torch"})  # whose UNet it is that answers
        super().__init__(config.model_copy(update={"engine": settings}))

    def _our(self, job: Job) -> Iterator[Event | Seconds]:
        yield from super()._our(job)
        taken = []
        for _ in range(KNOWN):
            begin = self.clock()
            for _ in self._ours.render(job, frozenset(), lambda: False):
                pass
            taken.append(self.clock() - begin)
        yield {"ours_known": statistics.median(taken)}

    def _rates(self, job: Job, step: float | None) -> Seconds:
        return {}


def _diffusers_pipeline(pipeline: Pipeline) -> Any:
    import diffusers

    library: Any = diffusers  # whose classes have no types
    parts = {name: pipeline.part(name) for name in pipeline.loaders}
    tokenizers = dict(zip(("tokenizer", "tokenizer_2"), pipeline.tokenizers, strict=False))
    scheduler = library.EulerDiscreteScheduler.from_config(dict(pipeline.scheduler_config))
    if len(tokenizers) == 2:
        pipe = library.StableDiffusionXLPipeline(**parts, **tokenizers, scheduler=scheduler, add_watermarker=False)
    else:
        pipe = library.StableDiffusionPipeline(
            **parts,
            **tokenizers,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _between(name: str, beats: list[float]) -> Seconds:
    """The median time from one step to the next, where there are two."""
    spans = [after - before for before, after in itertools.pairwise(beats)]
    return {f"{name}_step": statistics.median(spans)} if spans else {}


def _unet_flops(pipeline: Pipeline, job: Job, batch: int) -> int:
    """Of one step: counted without computing, on tensors that have no content."""
    import diffusers
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = pipeline.unet_config
    with torch.device("meta"):
        kind: Any = diffusers.UNet2DConditionModel
        unet = kind.from_config(dict(config))
        sides = (job.height // pipeline.reduction, job.width // pipeline.reduction)
        latents = torch.empty(batch, config.get("in_channels", 4), *sides)
        texts = torch.empty(batch, 77, config["cross_attention_dim"])
        added = None
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            added = {"text_embeds": torch.empty(batch, pooled), "time_ids": torch.empty(batch, 6)}
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            unet(latents, torch.empty(batch), encoder_hidden_states=texts, added_cond_kwargs=added)
    return int(counter.get_total_flops())


def _mm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few matrix products."""
    side = _MM_SIDE.get(device.type, 8192)
    left, right = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best
