"""The device: which, what it is called, how it says that memory is out or that it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from darkroom.config import EngineSettings
from darkroom.engine.cache import cache_dir
from darkroom.engine.device import (
    choose_device,
    describe,
    device_failure,
    is_out_of_memory,
)
from darkroom.errors import ConfigError, DeviceGone, EngineDied

CPU = torch.device("cpu")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir(EngineSettings()) == tmp_path / "darkroom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir(EngineSettings()) == tmp_path / ".cache/darkroom"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_a_mistake_in_the_config() -> None:
    with pytest.raises(ConfigError, match=r'device = "cuda:1", but torch finds no such device'):
        choose_device(EngineSettings(device="cuda:1"))
    assert choose_device(EngineSettings()).type in ("cpu", "mps")


def test_a_person_is_told_the_processor_and_the_format() -> None:
    text = describe(CPU, torch.float32)
    assert text.startswith("cpu ")
    assert text.endswith(f" ×{torch.get_num_threads()}, float32")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("std::bad_alloc"),
        ImportError("libheif.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_the_ways_to_say_that_memory_is_out_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_taken_for_a_want_of_memory() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(5)):
        assert not is_out_of_memory(error)


def test_a_real_allocation_that_is_too_large_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: no CUDA-capable device is detected", DeviceGone),
        ("CUDA error: unspecified launch failure", DeviceGone),
        ("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported later", DeviceGone),
        ("CUDA driver error: unknown error", DeviceGone),
        ("No CUDA GPUs are available", DeviceGone),
        ("CUDA error: device-side assert triggered", EngineDied),
        ("CUDA error: an illegal memory access was encountered", EngineDied),
        ("CUDA error: out of memory", type(None)),
        ("mat1 and mat2 shapes cannot be multiplied", type(None)),
    ],
)
def test_a_gpu_that_fails_is_told_from_a_process_that_can_use_it_no_more(message: str, kind: type) -> None:
    """Fault 52. As CUDA's runtime words its errors."""
    assert type(device_failure(RuntimeError(message))) is kind


def test_as_a_command_it_prints_one_line_of_json(tmp_path: Path) -> None:
    environment = os.environ | {
        "DARKROOM_ENGINE__DEVICE": "cpu",
        "DARKROOM_ENGINE__CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "darkroom.engine.device"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    facts = json.loads(told)
    assert told.count("\n") == 1
    assert set(facts) == {"device", "dtype", "name", "memory_bytes", "versions"}
    assert facts["device"] == "cpu"
    assert facts["dtype"] in ("float32", "bfloat16")
    assert facts["memory_bytes"] > 1 << 28
    assert facts["versions"]["torch"] == torch.__version__
