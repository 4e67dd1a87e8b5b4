"""Models that follow a flow, SD 3 and Flux: diffusers' own pipelines as they are, a phase at a time.

A phase needs only some of a model's parts, and the pipelines are content with these: so memory is saved as it is for
UNets, by parts that wait elsewhere. Import of the pipelines costs seconds, so that it waits for such a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from darkroom.engine.memory.need import Need
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.prompt import edited
from darkroom.engine.readings import Conditioning, Embeddings
from darkroom.events import Warned
from darkroom.job import Job
from darkroom.models.families import Flow
from darkroom.prompt_syntax import parse
from darkroom.sampling import UNIFORM

_LONGEST_OF_T5 = 256
_LONGEST_OF_FLUX_DEV = 512
"""Tokens that T5 reads of a prompt, the end included: what the models were trained with."""


@dataclass(kw_only=True)
class FlowPipeline(Pipeline):
    """One of these in use. Its ``unet_config`` is that of its transformer."""

    flow: Flow
    kind: Any
    """diffusers' class."""

    slices_attention = False

    @property
    def distilled(self) -> bool:
        """Flux has its guidance in the model."""
        return self.is_flux

    @property
    def is_flux(self) -> bool:
        """Rather than SD 3."""
        return self.flow.name == "Flux"

    @property
    def takes_guidance(self) -> bool:
        """Whether the scale of the guidance changes anything: not where a Flux was distilled once more (schnell)."""
        return not self.is_flux or bool(self.unet_config.get("guidance_embeds"))

    @property
    def grain(self) -> int:
        """Two positions of the latents, each way, are one to the transformer."""
        return 2 * self.reduction

    @property
    def native_side(self) -> int:
        """Side in pixels of the pictures it was trained on; Flux's configuration does not tell."""
        return int(self.unet_config.get("sample_size", 128)) * self.reduction

    @property
    def longest(self) -> int:
        """Tokens that the text encoder with the longest reach reads of a prompt, begin and end included."""
        if self.is_flux and self.takes_guidance:
            return _LONGEST_OF_FLUX_DEV
        return _LONGEST_OF_T5 if self.t5 is not None else int(self.tokenizers[0].model_max_length)

    @property
    def t5(self) -> str | None:
        """The part that is T5, where it is not left out (SD 3 can do without)."""
        name = "text_encoder_2" if self.is_flux else "text_encoder_3"
        return name if name in self.loaders else None

    def assembled(self, *names: str, scheduler: Any = None) -> Any:
        """diffusers' pipeline over these parts alone."""
        tokenizers = {name.replace("text_encoder", "tokenizer"): name for name in self.text_encoder_names}
        there = dict(zip(tokenizers, self.tokenizers, strict=True)) | {name: self.part(name) for name in names}
        known = [name for name in inspect.signature(self.kind.__init__).parameters if name != "self"]
        pipe = self.kind(**{name: there.get(name) for name in known} | {"scheduler": scheduler})
        pipe.vae_scale_factor = self.reduction  # it would ask the VAE
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def need(self, *, guided: bool, slices_attention: bool) -> Need:
        """What it needs to make pictures. Parts that were never in memory count as nothing."""
        itemsize = torch.empty((), dtype=self.dtype).element_size()
        return Need.of_flow(
            self.unet_config,
            self.vae_config,
            self.weights("transformer"),
            largest=self.largest,
            itemsize=itemsize,
            guided=guided,
            tokens=self.longest + (0 if self.is_flux else int(self.tokenizers[0].model_max_length)),
        )


@torch.no_grad()
def encode(pipeline: FlowPipeline, job: Job, *, guided: bool) -> Conditioning:
    """Read the job's prompt, and its negative prompt if ``guided``. What is lost of them is a warning."""
    prompt, warnings = _plain(pipeline, "prompt", job.prompt)
    negative_prompt = ""
    if guided:
        negative_prompt, more = _plain(pipeline, "negative_prompt", job.negative_prompt)
        warnings += more
    pipe = pipeline.assembled(*pipeline.text_encoder_names)
    common = {"device": pipeline.device, "max_sequence_length": pipeline.longest}
    if pipeline.is_flux:
        tokens, pooled, _ = pipe.encode_prompt(prompt, **common)
        return Conditioning(Embeddings(tokens, pooled), None, tuple(warnings))
    if pipeline.t5 is None:  # how wide T5's zeros are, it asks the transformer, which is not there yet
        pipe.transformer = SimpleNamespace(config=SimpleNamespace(**pipeline.unet_config))
        common["max_sequence_length"] = _LONGEST_OF_T5
    tokens, negative_tokens, pooled, negative_pooled = pipe.encode_prompt(
        prompt, None, None, negative_prompt=negative_prompt, do_classifier_free_guidance=guided, **common
    )
    negative = Embeddings(negative_tokens, negative_pooled) if guided else None
    return Conditioning(Embeddings(tokens, pooled), negative, tuple(warnings))


def ignored(pipeline: FlowPipeline, job: Job) -> Iterator[Warned]:
    """What of the job a Flux model does not go by, whatever its texts."""
    if pipeline.is_flux and job.negative_prompt:
        yield Warned("negative_prompt_ignored", "Flux models have no use for a negative prompt: it was left out.")
    if pipeline.is_flux and job.guidance_scale > 1 and not pipeline.takes_guidance:
        message = f'The model "{pipeline.name}" takes no guidance: guidance_scale changes nothing.'
        yield Warned("guidance_ignored", message)


def denoise(
    pipeline: FlowPipeline, job: Job, conditioning: Conditioning, noise: torch.Tensor, step_done: Callable[[], None]
) -> torch.Tensor:
    """Noise to latents, both (pictures, channels, height / 8, width / 8) and float32.

    ``step_done`` is called after each step.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler
    scheduler = scheduler.from_config(dict(pipeline.scheduler_config))
    pipe = pipeline.assembled("transformer", scheduler=scheduler)
    pictures, channels, height, width = noise.shape
    texts = {"": conditioning.positive}
    if conditioning.negative is not None:
        texts["negative_"] = conditioning.negative
    arguments: dict[str, Any] = {}
    for prefix, text in texts.items():
        arguments[f"{prefix}prompt_embeds"] = text.tokens.expand(pictures, -1, -1)
        arguments[f"{prefix}pooled_prompt_embeds"] = None if text.pooled is None else text.pooled.expand(pictures, -1)

    def after_step(*_: Any) -> dict[str, Any]:
        step_done()
        return {}

    latents: torch.Tensor = pipe(
        **arguments,
        height=job.height,
        width=job.width,
        num_inference_steps=job.num_inference_steps,
        sigmas=_levels(pipeline, job, scheduler),
        guidance_scale=job.guidance_scale,
        latents=pipe._pack_latents(noise, pictures, channels, height, width) if pipeline.is_flux else noise,
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=[],
        output_type="latent",
    ).images
    if pipeline.is_flux:
        latents = pipe._unpack_latents(latents, job.height, job.width, pipeline.reduction)
    return latents.float()


def _levels(pipeline: FlowPipeline, job: Job, scheduler: Any) -> list[float] | None:
    """The shares of noise to go by, before the model's shift; None where the schedule is the family's own."""
    if job.schedule == pipeline.flow.schedule:
        return None
    steps = job.num_inference_steps
    last = float(scheduler.sigma_min) if job.schedule == UNIFORM else 1 / steps
    levels: list[float] = torch.linspace(1.0, last, steps, dtype=torch.float64).tolist()
    return levels


def _plain(pipeline: FlowPipeline, field: str, text: str) -> tuple[str, list[Warned]]:
    """A text as T5 reads it, without the syntax of weights, and what was lost of it."""
    sections, name, warnings = parse(text), field.replace("_", " "), edited(field, text)
    fragments = [fragment for section in sections for fragment in section]
    heavy = [fragment.text.strip() for fragment in fragments if fragment.weight != 1]
    if heavy or len(sections) > 1:
        message = f"{pipeline.flow.name} models know no weights and no BREAK: the {name} was read without them."
        warnings.append(Warned("prompt_weights_ignored", message, ", ".join(heavy) or None))
    plain = " ".join("".join(fragment.text for fragment in section) for section in sections)
    # T5 ends a text with a token, CLIP begins it with one as well
    tokenizer, room = (
        (pipeline.tokenizers[0], pipeline.longest - 2)
        if pipeline.t5 is None
        else (pipeline.tokenizers[pipeline.text_encoder_names.index(pipeline.t5)], pipeline.longest - 1)
    )
    places = tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(places) > room:
        message = f"The {name} is longer than {room} tokens, which is all that this model reads; its end was left out."
        warnings.append(Warned("prompt_truncated", message, plain[places[room][0] :].strip()))
    return plain, warnings
