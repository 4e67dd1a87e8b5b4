"""How a job's picture comes about: the passes of the sampling loop, their sizes and steps, and the size at the end."""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.job.types import Job

_MOST_STEPS = 999
_MOST_STEPS_OF = {"LCM": 200}
"""How finely a schedule can be cut: the models know a thousand times, of which LCM goes by two hundred at most."""


@dataclass(frozen=True)
class Pass:
    """One run of the sampling loop at one size: ``taken`` steps, the last ones of a schedule of ``steps``.

    Fewer are taken than there are where it begins with a picture, to which as much noise is added as is left by then.
    """

    width: int
    height: int
    steps: int
    taken: int


def passes(job: Job) -> tuple[Pass, ...]:
    """One, or with ``hires`` two.

    ``strength`` says how many of the job's steps are taken, as in diffusers. The second pass takes as many as were
    asked for, of a schedule that is as much longer, as in A1111.
    """
    taken = job.num_inference_steps
    if job.init_image is not None and job.strength is not None:
        taken = max(int(taken * job.strength), 1) if job.strength > 0 else 0  # as diffusers counts
    first = Pass(job.width, job.height, job.num_inference_steps, taken)
    if job.hires is None:
        return (first,)
    width, height = (_multiple_of_8(side * job.hires.scale) for side in (job.width, job.height))
    taken, strength = job.hires.steps or job.num_inference_steps, job.hires.strength
    steps, most = int(taken / strength), _MOST_STEPS_OF.get(job.sampler, _MOST_STEPS)
    if steps > most:
        steps, taken = most, max(int(most * strength), 1)
    return first, Pass(width, height, steps, taken)


def is_guided_in(job: Job, this: Pass, step: int) -> bool:
    """Whether a pass has guidance in one of the steps that it takes, counted from 0, as far as the job has any.

    ``guidance_interval`` is of the pass's whole schedule, also where only the last steps are taken: a step is in it if
    it begins in it. After Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724, who set it in noise levels.
    """
    if job.guidance_interval is None:
        return True
    start, end = job.guidance_interval
    return start <= (this.steps - this.taken + step) / this.steps < end


def final_size(job: Job) -> tuple[int, int]:
    """Width and height in pixels of the picture that is saved."""
    last = passes(job)[-1]
    factor = job.upscale or 1.0
    return round(last.width * factor), round(last.height * factor)


def _multiple_of_8(side: float) -> int:
    return int(side / 8 + 0.5) * 8
