"""What a short measurement chooses for this machine and a model: number format, way of attention, memory format.

On a GPU ``auto`` means float16. On a CPU it means bfloat16 only where that is clearly faster for the model at hand:
AMX and AVX512-BF16 make it so for large models, nothing does for tiny ones. Each choice is between a plain way and
another, on layers like the model's, measured once (a quarter of a second) and remembered, because one that changed from
day to day would change the pictures. Where it can be neither measured nor remembered it is the plain way.

===================  ====================================  =======================================
choice               on a CPU                              on an NVIDIA GPU
===================  ====================================  =======================================
number format        float32, or bfloat16                  float16
attention            torch's kernel, or tiles in bfloat16  torch's kernel
UNet, memory format  contiguous                            contiguous, or all of it channels_last
VAE, memory format   contiguous, or in bfloat16 what it    contiguous, or all of it channels_last
                     works on channels_last
===================  ====================================  =======================================
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from darkroom.config import EngineSettings
from darkroom.engine import cache
from darkroom.engine.memory import host

CLEARLY_FASTER = 1.4
"""How many times faster bfloat16 must be on this CPU to be preferred to float32.

Measured on an EPYC with AVX512-BF16: 1.2 to 1.3 for the bundled model, 1.5 to 2.5 for SD 1.5.
"""

FASTER_TILED = 1.2
"""How many times faster attention by tiles must be than torch's kernel. 1.4 to 1.7 on that EPYC, in bfloat16."""

FASTER_CHANNELS_LAST = 1.05
"""The same of layers with the channels of a position side by side. 1.1 to 1.2 there, a VAE's, in bfloat16."""

MEASURED_S = 0.25
"""How long each is measured."""

_POSITIONS = 1 << 14
"""Of a UNet's level at a time, on a GPU: enough that a fast one takes longer to compute them than to be told."""

_MEMORY_FILE = "dtype.json"

Part = Literal["unet", "vae"]
Clock = Callable[[], float]


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
    key = _key(device, workload)
    way = _remembered(settings, key, ("float32", "bfloat16"), lambda: bfloat16_gain(workload) >= CLEARLY_FASTER)
    return torch.bfloat16 if way == "bfloat16" else torch.float32


def tiles_attention(
    settings: EngineSettings, device: torch.device, dtype: torch.dtype, workload: Workload = TYPICAL
) -> bool:
    """Whether the UNet's attention is to go by tiles (``engine.attention``) instead of torch's own kernel."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    side = min(workload.side, 2 * TYPICAL.side)
    key = f"attention {_key(device, workload)}"
    chosen = _remembered(
        settings, key, ("fused", "tiled"), lambda: tiled_gain(dtype, workload.channels, side) >= FASTER_TILED
    )
    return chosen == "tiled"


def lays_channels_last(
    settings: EngineSettings, device: torch.device, part: Part, dtype: torch.dtype, workload: Workload
) -> bool:
    """Whether a part is to work in torch's memory format ``channels_last``.

    A GPU copies its weights anyway, which lie so too then. On a CPU they stay the mapped file that they are: what a VAE
    works on lies so, where it is bfloat16. ``workload`` is the UNet's, or the VAE's at a picture's full size.
    """
    name = f"memory format of {part} in {dtype}"
    if device.type == "cpu":
        if part == "unet" or dtype != torch.bfloat16:
            return False
        name, workload = "memory format", replace(workload, side=min(workload.side, 128))
    elif device.type != "cuda":
        return False
    key = f"{name} {_key(device, workload)}"
    chosen = _remembered(
        settings,
        key,
        ("contiguous", "channels_last"),
        lambda: channels_last_gain(device, part, dtype, workload) >= FASTER_CHANNELS_LAST,
    )
    return chosen == "channels_last"


def _remembered(settings: EngineSettings, key: str, ways: tuple[str, str], better: Callable[[], bool]) -> str:
    """The choice made before for such a model on such a machine, or a new one: the second way where it is better.

    A choice that cannot be written down is not made: without a cache it is the first way, always. So it is, until the
    next time, where memory runs out over the measurement or a kernel refuses.
    """
    file = cache.cache_dir(settings) / _MEMORY_FILE
    choices = cache.read(file)
    chosen = choices.get(key)
    if chosen not in ways:
        try:
            chosen = ways[better()]
        except (RuntimeError, MemoryError):
            return ways[0]
        if not cache.write(file, choices | {key: chosen}):
            return ways[0]
    return str(chosen)


def _key(device: torch.device, workload: Workload) -> str:
    """Of what a measurement depends on."""
    machine: tuple[Any, ...] = (host.cpu_name(), torch.get_num_threads())
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn  # which has no types
        machine = (torch.cuda.get_device_name(device), cudnn.version())
    facts = (*machine, torch.__version__, workload.channels, workload.side)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def bfloat16_gain(workload: Workload) -> float:
    """How many times faster this CPU is in bfloat16 than in float32, on what a UNet mostly does."""
    channels, side = workload.channels, min(workload.side, TYPICAL.side)

    def way(dtype: torch.dtype) -> Callable[[], object]:
        block = torch.nn.Sequential(
            _layer(channels).to(dtype),
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


def channels_last_gain(
    device: torch.device, part: Part, dtype: torch.dtype, workload: Workload, clock: Clock | None = None
) -> float:
    """How many times faster a part's layers are where the channels of each position lie side by side."""
    channels, side = workload.channels, workload.side
    looks = max(2, _POSITIONS // side**2) if part == "unet" else 1
    plain: Any = _Level(channels) if part == "unet" else _layer(channels)  # whose types know no memory format
    plain = plain.to(device, dtype)
    turned = plain if device.type == "cpu" else copy.deepcopy(plain).to(memory_format=torch.channels_last)
    features = torch.randn(looks, channels, side, side).to(device, dtype)
    other = features.contiguous(memory_format=torch.channels_last)
    return times_faster(lambda: plain(features), lambda: turned(other), clock or clock_of(device))


def _layer(channels: int) -> torch.nn.Module:
    """Norm, activation and convolution, as in each block of a UNet and a VAE."""
    return torch.nn.Sequential(
        torch.nn.GroupNorm(math.gcd(channels, 32), channels),
        torch.nn.SiLU(),
        torch.nn.Conv2d(channels, channels, 3, padding=1),
    )


class _Level(torch.nn.Module):
    """Convolutions and attention as they follow one another in a UNet: the numbers are laid out anew between them."""

    def __init__(self, channels: int) -> None:
        from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D

        super().__init__()
        self.times, self.texts = 4 * channels, 768
        kind: Any = CrossAttnDownBlock2D  # which has no types
        self.block = kind(
            in_channels=channels,
            out_channels=channels,
            temb_channels=self.times,
            num_layers=1,
            resnet_groups=math.gcd(channels, 32),
            num_attention_heads=max(1, channels // 64),
            cross_attention_dim=self.texts,
            add_downsample=False,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        looks = len(features)
        made: torch.Tensor = self.block(
            features, features.new_zeros(looks, self.times), features.new_zeros(looks, 77, self.texts)
        )[0]
        return made


def clock_of(device: torch.device) -> Clock:
    """Seconds, told when the device has done all that it was told to do."""

    def when_done() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return when_done if device.type == "cuda" else time.perf_counter


@torch.inference_mode()
def times_faster(plain: Callable[[], object], other: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """How many times faster ``other`` is than ``plain``.

    The best of alternating rounds, so that a busy machine disturbs both alike; three rounds at least.
    """
    best = {plain: math.inf, other: math.inf}
    deadline = clock() + MEASURED_S
    for turn in itertools.count():
        for way in best:
            begin = clock()
            way()
            if turn:  # the first prepares kernels
                best[way] = min(best[way], clock() - begin)
        if turn >= 3 and clock() > deadline:
            break
    return best[plain] / best[other]
