"""Several processes that train one model: each takes its own batch, all take the same step.

On a CPU, two processes of one thread each are faster than one process of two threads, and lose far less when
others use the machine too: they wait for each other once a step, not in every loop.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing


class Crew:
    """One member's view of the crew."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """True for the one that reports and writes checkpoints."""
        return self.rank == 0

    def agree(self, parameters: Sequence[Tensor], progress: float) -> float:
        """Average the gradients over the crew, in place; gives the leader's progress, the same to all."""
        if self.size == 1:
            return progress
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        said = torch.tensor([progress if self.leads else 0.0])
        everything = torch.cat([*(gradient.flatten() for gradient in gradients), said])
        distributed.all_reduce(everything)
        start = 0
        for gradient in gradients:
            part = everything[start : start + gradient.numel()]
            gradient.copy_(part.view_as(gradient)).div_(self.size)
            start += gradient.numel()
        return float(everything[-1])


def train_together(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(crew, *arguments)`` in so many processes, or in this one if it is one."""
    if size == 1:
        work(Crew(), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_member, (size, Path(folder) / "meeting", work, arguments), nprocs=size)


def _member(rank: int, size: int, meeting: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    work(Crew(rank, size), *arguments)
    distributed.destroy_process_group()
