"""Where the engine computes, and what to call it. ``python -m darkroom.engine.device`` tells."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from darkroom.config import Config, EngineSettings
from darkroom.engine.choosing import choose_dtype
from darkroom.engine.memory import host
from darkroom.errors import ConfigError, DeviceGone, EngineDied, MachineError, first_line


def choose_device(settings: EngineSettings) -> torch.device:
    """The device of ``[engine] device``; ``auto`` is CUDA, else MPS, else the CPU. Raises ConfigError if not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    wanted = settings.device
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    device = torch.device(wanted)
    missing = (device.type == "cuda" and not cuda) or (device.type == "mps" and not mps)
    if missing:
        raise ConfigError(f'[engine] device = "{wanted}", but torch finds no such device here; use "auto" or "cpu"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f'[engine] device = "{wanted}", but there are only {torch.cuda.device_count()}, from cuda:0')
    return device


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """For a person: ``cuda NVIDIA H200, float16`` or ``cpu AMD EPYC ×2, float32``."""
    return f"{device.type} {device_name(device)}, {str(dtype).removeprefix('torch.')}"


def device_name(device: torch.device) -> str:
    """The maker's name of the device; of a CPU also the number of threads, on which the last bits depend."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{host.cpu_name()} ×{torch.get_num_threads()}" if device.type == "cpu" else platform.processor() or "Apple"


def memory_bytes(device: torch.device) -> int | None:
    """The device's memory; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def memory_free(device: torch.device, *, anonymous: int = 0, mapped: int = 0) -> int | None:
    """Bytes that could still be allocated, as far as that is known: others may take them first.

    The bytes of what is partly there count too, if given: ``mapped`` ones come from a file (``host.free_bytes``). On a
    GPU what this process holds back for later counts as free, and a limit set to it counts as the end.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        idle = torch.cuda.memory_reserved(device) - allocated
        fraction = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # torch before 2.8 does not tell it
        share = 1.0 if fraction is None else fraction(device)
        return max(0, min(free + idle, int(total * share) - allocated)) + anonymous + mapped
    return host.free_bytes(anonymous=anonymous, mapped=mapped) if device.type == "cpu" else None


def memory_used(device: torch.device) -> int | None:
    """Bytes in use now, by tensors on a GPU or by this process on a CPU; None where it is not known."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else host.used_bytes()


def driver(device: torch.device) -> str:
    """What runs the device besides torch: what was learnt holds until it changes."""
    if device.type != "cuda":
        return platform.release()
    for file in ("/sys/module/nvidia/version", "/proc/driver/nvidia/version"):
        with contextlib.suppress(OSError):
            return " ".join(Path(file).read_text(encoding="utf-8").split())
    return str(torch.version.cuda or torch.version.hip)


def slices_attention(device: torch.device) -> bool:
    """Whether attention takes a kernel that holds all scores in memory, so that one head at a time would save some.

    torch has memory-efficient kernels for CUDA and for the CPU, unless they were switched off; MPS has none.
    """
    switches: Any = torch.backends.cuda
    flash = switches.flash_sdp_enabled()  # the CPU's kernel obeys the same switch
    if device.type == "cuda":
        return not (flash or switches.mem_efficient_sdp_enabled())
    return device.type != "cpu" or not flash


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",  # cuBLAS and its kin
    "allocation_failed",  # cuDNN 9
    "cublas_status_not_initialized when calling `cublascreate",  # its workspace does not fit
    "unable to find a valid cudnn algorithm",  # none whose workspace fits
    "unable to find an engine to execute this computation",  # the same, from its newer half
    "out_of_memory",
    "could not create a memory",  # oneDNN
    "could not create a primitive",
    "could not execute a primitive",  # its scratchpad does not fit
    "can't start new thread",  # its stack does not fit
    "failed to map segment from shared object",  # a library that is only needed now
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, its libraries or Python say that there is no memory left, or comes of it."""
    seen: BaseException | None = error
    while seen is not None:  # diffusers says that a file cannot be read where it cannot be mapped into memory
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        speaks = isinstance(seen, RuntimeError | OSError | ImportError) or type(seen).__name__ == "SafetensorError"
        if speaks and any(words in str(seen).lower() for words in _OUT_OF_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_for_code(error: BaseException) -> bool:
    """Whether memory ran out where a kernel was to be compiled (oneDNN)."""
    return "could not create a primitive" in str(error)


_GONE = (
    "no cuda-capable device",
    "no cuda gpus are available",
    "cuda-capable device(s) is/are busy or unavailable",
    "device not ready",
    "driver shutting down",
    "ecc error",
    "fallen off the bus",
    "gpu is lost",
    "hardware stack error",
    "initialization error",
    "unspecified launch failure",
    "unknown error",
)
"""How CUDA says that the card, not the work, is at fault; see cudaError_t in CUDA's runtime documentation."""


def device_failure(error: BaseException) -> MachineError | None:
    """What an error of the GPU means: DeviceGone, or EngineDied where only this process can use it no more.

    After any error of CUDA's but a want of memory, the process can do nothing more with the card. None for others.
    """
    message = str(error).lower()
    of_cuda = isinstance(error, getattr(torch, "AcceleratorError", ())) or (
        isinstance(error, RuntimeError) and message.startswith(("cuda error", "cuda driver error", "hip error"))
    )
    if is_out_of_memory(error) or not (of_cuda or "no cuda gpus are available" in message):
        return None
    if any(words in message for words in _GONE):
        return DeviceGone(f"The GPU is gone, or fails: {first_line(error)}")
    return EngineDied(f"The engine can use its GPU no more: {first_line(error)}")


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more. Of use only when no exception's traceback holds it still."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    host.give_back()


@functools.cache
def versions() -> Mapping[str, str]:
    """What a picture's bits depend on, read from the installed packages without importing them."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def main() -> None:
    """Print one line of JSON about the device that the environment's configuration chooses."""
    settings = Config().engine
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        device = choose_device(settings)
    except ConfigError as error:
        sys.exit(error.message)
    dtype = choose_dtype(settings, device)
    facts = {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "name": f"{device.type} {device_name(device)}",
        "memory_bytes": memory_bytes(device),
        "versions": versions(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
