"""What the text encoders made of the last jobs' texts, kept for jobs that have the same.

Each pipeline has its own: what it depends on besides the texts (the files, the number format, the device) is the
pipeline's, for as long as there is that pipeline.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from darkroom.events import Warned
from darkroom.job import Job

KEEP_BYTES = 32 << 20
"""So much stays, the least recently used let go first: some thirty prompts of SDXL."""


@dataclass(frozen=True)
class Embeddings:
    """What the UNet is told about one text."""

    tokens: torch.Tensor
    """(1, 77 × chunks, width): an embedding a token."""
    pooled: torch.Tensor | None = None
    """(1, width): one for the whole text, SDXL only."""


@dataclass(frozen=True)
class Conditioning:
    """Both texts of a job. ``negative`` is None where there is no guidance, and so no use for it."""

    positive: Embeddings
    negative: Embeddings | None
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True)
class Texts:
    """All of a job that ``prompt.encode`` goes by."""

    prompt: str
    negative_prompt: str | None
    """None where there is no guidance: it is not read then."""
    clip_skip: int
    long_prompt: str

    @classmethod
    def of(cls, job: Job, *, guided: bool) -> Texts:
        """A job's."""
        return cls(job.prompt, job.negative_prompt if guided else None, job.clip_skip, job.long_prompt)


class Readings:
    """Texts to what was made of them."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep = keep_bytes
        self._read: OrderedDict[Texts, Conditioning] = OrderedDict()

    def get(self, texts: Texts) -> Conditioning | None:
        """None where they were not read, or too long ago."""
        if texts in self._read:
            self._read.move_to_end(texts)
        return self._read.get(texts)

    def keep(self, texts: Texts, conditioning: Conditioning) -> None:
        """For the next job that has the same; others go where they are too many."""
        self._read[texts] = conditioning
        self._read.move_to_end(texts)
        while sum(_size(other) for other in self._read.values()) > self._keep:
            self._read.popitem(last=False)

    def clear(self) -> None:
        """Let go of all."""
        self._read.clear()


def _size(conditioning: Conditioning) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(conditioning))


def _tensors(conditioning: Conditioning) -> Iterator[torch.Tensor]:
    for embeddings in (conditioning.positive, conditioning.negative):
        if embeddings is not None:
            yield embeddings.tokens
            if embeddings.pooled is not None:
                yield embeddings.pooled
