"""job.json: a job as it is rendered now. Apart from the ticket, for it brings all the types of jobs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from darkroom.job import Job


class State(BaseModel):
    """job.json: what is to be rendered now, and how it came to differ from what was asked."""

    model_config = ConfigDict(defer_build=True)

    job: Job
    requested: dict[str, Any] = Field(default_factory=dict)
    fallbacks: list[dict[str, Any]] = Field(default_factory=list)
    warnings: list[dict[str, Any]] = Field(default_factory=list)
    shared_batch: int | None = None
    started_at: str
