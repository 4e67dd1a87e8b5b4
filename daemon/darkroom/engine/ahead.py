"""Pictures of jobs that are expected, denoised in passes of the job before them, and kept as latents for their turn."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from darkroom.engine.pipeline import Pipeline
from darkroom.engine.prompt import read, recall
from darkroom.engine.readings import Conditioning, Embeddings
from darkroom.errors import RenderFailed
from darkroom.job import Job
from darkroom.job.together import go_together, latents_key

KEEP_BYTES = 64 << 20
"""So much is kept, the oldest let go first: 256 pictures of SDXL."""


@dataclass(eq=False)
class Shot:
    """A picture of a job that is expected."""

    job: Job
    index: int

    @property
    def seed(self) -> int:
        """That of its noise."""
        return self.job.seed_of(self.index)

    @cached_property
    def key(self) -> str:
        """By which its latents are found again."""
        return latents_key(self.job, self.index)


@dataclass(frozen=True)
class Denoised:
    """Latents on the CPU, and of how many pictures the passes were that made them."""

    latents: torch.Tensor
    batch: int


class Ahead:
    """What is kept: of no job, but of pictures. Whoever asks for an equal one gets it, once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Denoised] = OrderedDict()
        self._pipeline: Callable[[], Pipeline | None] = lambda: None
        self._loras: dict[str, str] = {}
        self._most: dict[tuple[str, int, int], int] = {}

    def begin(self, pipeline: Pipeline) -> None:
        """A job by this model, with its LoRAs as they are now: what others made is not for it."""
        loras = dict(pipeline.adapters.hashes) if pipeline.adapters else {}
        if self._pipeline() is not pipeline or self._loras != loras:
            self.clear()
        self._pipeline, self._loras = weakref.ref(pipeline), loras

    def __contains__(self, shot: Shot) -> bool:
        return shot.key in self._kept

    def take(self, job: Job, index: int) -> Denoised | None:
        """The latents of a job's picture, where they were made."""
        return self._kept.pop(latents_key(job, index), None) if self._kept else None

    def keep(self, shots: Sequence[Shot], latents: torch.Tensor, batch: int) -> None:
        """Until they are asked for. What is no number is not kept: its own job is to find that out."""
        for place, shot in enumerate(shots):
            one = latents[place : place + 1].clone()
            if torch.isfinite(one).all():
                self._kept[shot.key] = Denoised(one, batch)
        while sum(one.latents.nbytes for one in self._kept.values()) > KEEP_BYTES:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()

    def most(self, job: Job) -> int:
        """So many pictures of this size may be tried in one pass, after what did not fit before."""
        return self._most.get((job.model, job.width, job.height), 64)

    def did_not_fit(self, job: Job, pictures: int) -> None:
        """Memory ran out with so many in a pass."""
        self._most[job.model, job.width, job.height] = max(1, pictures // 2)


class Companions:
    """Those that may come along in one job's passes. ``aboard`` are the ones in the pass that is under way."""

    def __init__(self, ahead: Ahead, job: Job, expected: Sequence[Job], most: int) -> None:
        self.ahead = ahead
        self._most = most
        shots = [Shot(other, index) for other in expected if go_together(job, other) for index in range(other.count)]
        self._waiting = list({shot.key: shot for shot in shots if shot not in ahead}.values())
        self.aboard: list[Shot] = []
        self._texts: dict[Shot, Conditioning] = {}

    def __bool__(self) -> bool:
        """Whether anybody is left who may come along."""
        return bool(self._waiting)

    def board(self, own: int, room: int) -> list[Shot]:
        """Fill a pass of ``own`` pictures up to the most that it may have, or to ``room``."""
        free = max(0, min(self._most, room) - own)
        self.aboard, self._waiting = self._waiting[:free], self._waiting[free:]
        return self.aboard

    def read(self, pipeline: Pipeline, like: Conditioning) -> None:
        """Their texts. Those whose texts cannot be read, or are of another length, stay behind."""
        guided = like.negative is not None
        for shot in tuple(self.aboard):
            try:
                found = recall(pipeline, shot.job, guided=guided) or read(pipeline, shot.job, guided=guided)
            except RenderFailed:
                found = None
            if found is not None and found.positive.tokens.shape == like.positive.tokens.shape:
                self._texts[shot] = found
            else:
                self.aboard.remove(shot)

    def texts(self, own: Conditioning, pictures: int) -> Conditioning:
        """All texts of the pass one under the other: the job's own for its pictures, then those of its companions."""
        all_texts = [own] * pictures + [self._texts[shot] for shot in self.aboard]
        negatives = [texts.negative for texts in all_texts if texts.negative is not None]
        positive = _stacked([texts.positive for texts in all_texts])
        return Conditioning(positive, _stacked(negatives) if negatives else None)

    def arrived(self, latents: torch.Tensor, batch: int) -> None:
        """Theirs, at the end of a pass of ``batch`` pictures."""
        self.ahead.keep(self.aboard, latents, batch)
        self.aboard = []

    def leave(self, job: Job, own: int) -> bool:
        """Memory ran out: the job goes on alone. Returns whether anybody was aboard."""
        if not self.aboard:
            return False
        self.ahead.did_not_fit(job, own + len(self.aboard))
        self.aboard, self._waiting = [], []
        self._texts.clear()
        return True


def _stacked(texts: Sequence[Embeddings]) -> Embeddings:
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Embeddings(torch.cat([text.tokens for text in texts]), torch.cat(pooled) if pooled else None)
