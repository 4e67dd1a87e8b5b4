"""How long one waits: for a command's answer, for a daemon that is ready, for an engine that has its model."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from darkroom.bench import Progress
from darkroom.bench.spool import JOB
from darkroom.config import Config
from darkroom.errors import RenderFailed
from darkroom.events import Loaded
from darkroom.executors import LocalExecutor
from darkroom.job import parse, resolve
from darkroom.models.catalog import Catalog

_READY_WITHIN_S = 60


def waits(config: Config, config_file: Path | None, folder: Path, rounds: int, progress: Progress) -> dict[str, Any]:
    """Whole processes, in turns; medians in seconds.

    ``engine_ratio``: ``import torch`` and reading the model's files, by an engine that has it in memory.
    """
    root = folder / "spool"
    (root / "inbox").mkdir(parents=True)
    chosen = () if config_file is None else ("--config", str(config_file))
    here = (*chosen, "--root", str(root))
    measured: dict[str, Callable[[], float]] = {
        "python": lambda: _run("-c", "pass"),
        "help": lambda: _run("-m", "darkroom", "--help"),
        "status": lambda: _run("-m", "darkroom", "status", *here),
        "submit": lambda: _run("-m", "darkroom", "submit", "a red circle", *here),
        "daemon_ready": lambda: _daemon(folder / "watched", *chosen),
        "torch": lambda: _torch(config),
        "engine_ready": lambda: _engine(config),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(rounds + 1):
        for name, measure in measured.items():
            taken = measure()
            if turn:  # the first finds nothing in the disk's cache
                seconds[name].append(taken)
        progress(turn + 1, rounds + 1)
    ratios = [a / b for a, b in zip(seconds["torch"], seconds["engine_ready"], strict=True)]
    return {
        "rounds": rounds,
        **{f"{name}_s": round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "engine_ratio": round(statistics.median(ratios), 3),
    }


def _environment() -> dict[str, str]:
    """Ours, where Python keeps what it compiled, as it does where darkroom is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _run(*arguments: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, *arguments]
    ran = subprocess.run(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if ran.returncode:
        raise RenderFailed(f"`{' '.join(arguments)}` failed: {ran.stderr.strip()}")
    return time.perf_counter() - begin


def _daemon(root: Path, *chosen: str) -> float:
    """From its start until it tells systemd that it is ready; it is stopped then."""
    begin = time.perf_counter()
    with running(root, *chosen):
        return time.perf_counter() - begin


@contextmanager
def running(root: Path, *chosen: str, **environment: str) -> Iterator[None]:
    """A daemon that has said that it is ready, until the end."""
    address = root.with_name("notify")
    with suppress(FileNotFoundError):
        address.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(_READY_WITHIN_S)
        daemon = subprocess.Popen(
            [sys.executable, "-m", "darkroom", "run", *chosen, "--root", str(root)],
            env=_environment() | {"NOTIFY_SOCKET": str(address)} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in notify.recv(4096):
                continue
            yield
        except TimeoutError:
            raise RenderFailed(f"The daemon was not ready after {_READY_WITHIN_S} s") from None
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()


def _torch(config: Config) -> float:
    """The least that an engine must do: import torch, read the weights."""
    model = Catalog(config.models).get(config.models.default)
    if model is None:
        raise RenderFailed(f'There is no model "{config.models.default}"')
    files = [model.checkpoint] if model.checkpoint else sorted(model.folder.glob("*/*.safetensors"))
    read = "import sys, torch; [open(file, 'rb').read() for file in sys.argv[1:]]"
    return _run("-c", read, *map(str, files))


def _engine(config: Config) -> float:
    """From the start of its process until the default model is in its memory."""
    job = resolve(parse(JOB), config, Catalog(config.models), "bench")
    executor = LocalExecutor(config)
    begin = time.perf_counter()
    try:
        for event in executor.run(job):
            if isinstance(event, Loaded):
                return time.perf_counter() - begin
    finally:
        executor.close()
    raise RenderFailed("The engine said nothing of its model")
