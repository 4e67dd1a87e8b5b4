"""What ``tools/bench_gpu.sh`` found, as rows of Markdown for ``docs/benchmarks.md``.

    python tools/gpu_figures.py pictures gpu-sd15.json …    the table of whole pictures
    python tools/gpu_figures.py formats                     how many times as fast channels_last is, on the device

``TRIAL=1`` in the environment makes the second measure next to nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = {"SD 1.5": (640, 32), "SDXL": (640, 64)}
"""Features and side of their UNets' second levels at the native size."""


def pictures(files: Sequence[str]) -> Iterator[str]:
    """A row for each case; what on and with is told from the first file."""
    found = {Path(file).stem.removeprefix("gpu-"): read(file) for file in files}
    about = next((figures for figures in found.values() if figures), None)
    if about is not None:
        versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "diffusers"))
        yield f"{about['date']}, {about['device']}, {versions}; medians, least and most in brackets,"
        yield "and how many times as fast as the others.\n"
    yield "| what | seconds a picture | the tutorial's | diffusers' pipeline | UNet by `mm` | the first |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, figures in found.items():
        if figures is None:
            yield f"| {name} | failed, or took too long | | | | |"
            continue
        for case in figures["cases"]:
            seconds = [case["ours_s"][which] / case["batch"] for which in ("median", "minimum", "maximum")]
            yield (
                f"| {name}: {case['size']}², {case['steps']} steps, {case['batch']} a job, {case['rounds']} rounds "
                "| {:.3f} ({:.3f} to {:.3f}) ".format(*seconds)
                + f"| {case['tutorial_ratio']} | {case['pipeline_ratio']} | {case.get('efficiency_ratio', '–')} "
                f"| {case['first_s']} s, loading in it |"
            )
        frame = figures["frame"]
        yield f"| {name}: outside the networks | {frame['step_us']} µs a step, {frame['call_us']} a job | | | | |"


def read(file: str) -> dict[str, Any] | None:
    """None for what did not come to its end."""
    try:
        found: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def formats() -> Iterator[str]:
    """As it is chosen at the first load of a model (``darkroom.engine.choosing``)."""
    import torch

    from darkroom.config import Config
    from darkroom.engine.choosing import Workload, channels_last_gain
    from darkroom.engine.device import choose_device, describe

    device = choose_device(Config().engine)
    trial = bool(os.environ.get("TRIAL"))
    full = Workload(32, 16) if trial else Workload(128, 512)
    dtypes = (torch.bfloat16,) if trial else (torch.float16, torch.float32)
    yield "| `channels_last`, times as fast | UNet | VAE |"
    yield "| --- | --- | --- |"
    for name, level in ARCHITECTURES.items():
        unet = Workload(32, 64) if trial else Workload(*level)
        for dtype in dtypes:
            gains = (channels_last_gain(device, "unet", dtype, unet), channels_last_gain(device, "vae", dtype, full))
            yield f"| {name}, {describe(device, dtype)} | " + " | ".join(f"{gain:.2f}" for gain in gains) + " |"


if __name__ == "__main__":
    tables: dict[str, Callable[[], Iterator[str]]] = {"pictures": lambda: pictures(sys.argv[2:]), "formats": formats}
    for line in tables[sys.argv[1]]():
        print(line, flush=True)
