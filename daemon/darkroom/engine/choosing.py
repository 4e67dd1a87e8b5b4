"""What a short measurement chooses for this machine and a model: number format, way of attention, memory format.

On a GPU ``auto`` means float16. On a CPU it means bfloat16 only where that is clearly faster for the model at hand:
AMX and AVX512-BF16 make it so for large models, nothing does for tiny ones. Each choice is measured once (a fifth of a
second) and remembered, because one that changed from day to day would change the pictures.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from darkroom.config import EngineSettings
from darkroom.engine import cache, host

CLEARLY_FASTER = 1.4
"""How many times faster bfloat16 must be on this CPU to be preferred to float32.

Measured on an EPYC with AVX512-BF16: 1.2 to 1.3 for the bundled model, 1.5 to 2.5 for SD 1.5.
"""

FASTER_TILED = 1.2
"""How many times faster attention by tiles must be than torch's kernel. 1.4 to 1.7 on that EPYC, in bfloat16."""

FASTER_CHANNELS_LAST = 1.05
"""The same of a VAE's widest layers with the channels of a pixel side by side. 1.1 to 1.2 there, in bfloat16."""

_MEMORY_FILE = "dtype.json"


@dataclass(frozen=True)
class Workload:
    """What a network's level computes: ``channels`` features on ``side`` × ``side`` positions."""

    channels: int
    side: int


TYPICAL = Workload(channels=640, side=16)
"""The second level of SD 1.5's UNet at 256 × 256."""


def choose_dtype(settings: EngineSettings, device: torch.device, workload: Workload = TYPICAL) -> torch.dtype:
    """The number format of ``[engine] dtype``; ``auto`` as the module says."""
    if settings.dtype != "auto":
        chosen: torch.dtype = getattr(torch, settings.dtype)
        return chosen
    if device.type != "cpu":
        return torch.float16
    key = _machine_key(workload)
    way = _remembered(settings, key, ("float32", "bfloat16"), lambda: bfloat16_gain(workload) >= CLEARLY_FASTER)
    return torch.bfloat16 if way == "bfloat16" else torch.float32


def tiles_attention(
    settings: EngineSettings, device: torch.device, dtype: torch.dtype, workload: Workload = TYPICAL
) -> bool:
    """Whether the UNet's attention is to go by tiles (``engine.attention``) instead of torch's own kernel."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    side = min(workload.side, 2 * TYPICAL.side)
    key = f"attention {_machine_key(workload)}"
    chosen = _remembered(
        settings, key, ("fused", "tiled"), lambda: tiled_gain(dtype, workload.channels, side) >= FASTER_TILED
    )
    return chosen == "tiled"


def lays_channels_last(settings: EngineSettings, device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether the VAE is to be given what it works on in torch's memory format ``channels_last``.

    Its weights stay as they are. ``channels`` are those of its first level, where a picture has its full size.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    workload = Workload(channels, side=128)
    key = f"memory format {_machine_key(workload)}"
    chosen = _remembered(
        settings,
        key,
        ("contiguous", "channels_last"),
        lambda: channels_last_gain(dtype, workload) >= FASTER_CHANNELS_LAST,
    )
    return chosen == "channels_last"


def _remembered(settings: EngineSettings, key: str, ways: tuple[str, str], better: Callable[[], bool]) -> str:
    """The choice made before for such a model on such a machine, or a new one: the second way where it is better.

    A choice that cannot be written down is not made: without a cache it is the first way, always.
    """
    file = cache.cache_dir(settings) / _MEMORY_FILE
    choices = cache.read(file)
    chosen = choices.get(key)
    if chosen not in ways:
        chosen = ways[better()]
        if not cache.write(file, choices | {key: chosen}):
            return ways[0]
    return str(chosen)


def _machine_key(workload: Workload) -> str:
    facts = (host.cpu_name(), torch.get_num_threads(), torch.__version__, workload.channels, workload.side)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def bfloat16_gain(workload: Workload) -> float:
    """How many times faster this CPU is in bfloat16 than in float32, on what a UNet mostly does."""
    channels, side = workload.channels, min(workload.side, TYPICAL.side)

    def way(dtype: torch.dtype) -> Callable[[], object]:
        block = torch.nn.Sequential(
            _layer(channels, dtype),
            torch.nn.Flatten(2),
            torch.nn.Linear(side * side, side * side, dtype=dtype),
        )
        return lambda: block(torch.zeros(2, channels, side, side, dtype=dtype))

    return times_faster(way(torch.float32), way(torch.bfloat16))


def tiled_gain(dtype: torch.dtype, channels: int, side: int, heads: int = 8) -> float:
    """How many times faster attention by tiles is here than torch's kernel, on ``side`` × ``side`` positions."""
    from darkroom.engine.attention import attend, by_heads

    query, key, value = (torch.randn(2, side * side, channels).to(dtype) for _ in range(3))

    def fused() -> None:
        queries, keys, values = (by_heads(tensor, heads) for tensor in (query, key, value))
        torch.nn.functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)

    return times_faster(fused, lambda: attend(query, key, value, heads))


def channels_last_gain(dtype: torch.dtype, workload: Workload) -> float:
    """How many times faster a VAE's layer is where the channels of each position lie side by side."""
    block = _layer(workload.channels, dtype)
    features = torch.randn(1, workload.channels, workload.side, workload.side).to(dtype)
    turned = features.contiguous(memory_format=torch.channels_last)
    return times_faster(lambda: block(features), lambda: block(turned))


def _layer(channels: int, dtype: torch.dtype) -> torch.nn.Module:
    """Norm, activation and convolution, as in each block of a UNet and a VAE."""
    return torch.nn.Sequential(
        torch.nn.GroupNorm(math.gcd(channels, 32), channels),
        torch.nn.SiLU(),
        torch.nn.Conv2d(channels, channels, 3, padding=1),
    ).to(dtype)


@torch.inference_mode()
def times_faster(plain: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times faster ``other`` is than ``plain``.

    The best of alternating rounds, so that a busy machine disturbs both alike; about 0.25 s, three rounds at least.
    """
    best = {plain: math.inf, other: math.inf}
    deadline = time.perf_counter() + 0.25
    for turn in itertools.count():
        for way in best:
            begin = time.perf_counter()
            way()
            if turn:  # the first prepares kernels
                best[way] = min(best[way], time.perf_counter() - begin)
        if turn >= 3 and time.perf_counter() > deadline:
            break
    return best[plain] / best[other]
