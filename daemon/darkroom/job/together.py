"""Which jobs may be denoised in one another's passes: those whose pictures differ in texts and seeds alone."""

from __future__ import annotations

from darkroom.job.types import Job

FREE = frozenset(
    {
        "id",
        "prompt",
        "negative_prompt",
        "seed",
        "count",
        "clip_skip",
        "long_prompt",
        "upscale",
        "decoder",
        "on_oom",
        "output_format",
        "quality",
        "template",
        "negative_template",
        "source",
    }
)
"""Fields in which they may differ. Those that are not texts or seeds count before the passes, or after them."""

_AFTER = FREE - {"prompt", "negative_prompt", "seed", "clip_skip", "long_prompt"}
"""Fields that the denoised latents do not depend on."""


def is_plain(job: Job) -> bool:
    """Whether it is one pass from noise, as those of others may be."""
    reuses = (job.reuse_features or 1) > 1
    return not (job.cells or job.matrix or job.init_image or job.hires or reuses)


def go_together(job: Job, other: Job) -> bool:
    """Whether pictures of both may be made in the same passes of a UNet."""
    if not (is_plain(job) and is_plain(other)):
        return False
    same = all(getattr(job, field) == getattr(other, field) for field in Job.model_fields.keys() - FREE)
    return same and job.all_loras() == other.all_loras()


def latents_key(job: Job, index: int) -> str:
    """All that the denoised latents of picture ``index`` depend on: equal for equal pictures of any job."""
    return job.model_copy(update={"seed": job.seed_of(index)}).model_dump_json(exclude=set(_AFTER))
