"""Families of models: which there are, and what is peculiar to those that follow a flow (SD 3, Flux). Facts, no torch.

The older families are UNets that take noise out of a picture step by step, by any sampler. These are transformers that
follow a straight way from noise to a picture (https://arxiv.org/abs/2403.03206): the samplers of the others do not fit
them, and they read a prompt as a sentence, without weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.sampling import UNIFORM, Sampler, UnknownName

UNETS = ("SD 1", "SD 2", "SDXL")


@dataclass(frozen=True)
class Flow:
    """A family that follows a flow, and what a job gets where neither it nor the model says; see diffusers' docs."""

    name: str
    pipeline: str
    """What model_index.json calls it."""
    schedule: str
    """Its own, by which diffusers goes: ``uniform`` ends just above no noise, ``sgm_uniform`` a whole step above."""
    num_inference_steps: int
    guidance_scale: float
    grain: int = 16
    """Width and height in pixels are multiples of this: two positions of latents are read as one."""

    def sampler(self, wanted: Sampler) -> Sampler:
        """``wanted`` with the schedules that it can follow here. Raises UnknownName where it does not fit a flow."""
        if wanted.name != "Euler":
            raise UnknownName(
                f'the sampler "{wanted.name}" does not go with {self.name}, which follows a flow',
                'the nearest is "Euler"',
            )
        return Sampler(wanted.name, wanted.aliases, schedules=(UNIFORM, "sgm_uniform"), automatic=self.schedule)


FLOWS = {
    flow.name: flow
    for flow in (
        Flow("SD 3", "StableDiffusion3Pipeline", UNIFORM, num_inference_steps=28, guidance_scale=7.0),
        Flow("Flux", "FluxPipeline", "sgm_uniform", num_inference_steps=28, guidance_scale=3.5),
    )
}

DISTILLED = {"num_inference_steps": 4, "guidance_scale": 0.0}
"""The same for a Flux that was distilled to a few steps and takes no guidance (schnell)."""

FAMILIES = (*UNETS, *FLOWS)
"""What the engine can run."""
