"""How soon a file that is moved into the inbox is taken: by an idle daemon, and by one whose engine renders.

While a job is rendered no other one is begun; what can be no job is refused meanwhile, and that is measured there.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from darkroom.bench import Progress
from darkroom.bench.spool import JOB
from darkroom.bench.start import running
from darkroom.errors import RenderFailed

LONG = json.dumps({"prompt": "a red circle", "seed": 7, "num_inference_steps": 150, "num_images": 100}).encode()
NO_JOB = json.dumps({"prompt": "a red circle", "num_inference_steps": 0}).encode()

_WITHIN_S = 120.0
_LOOK_S = 0.0002


def drops(config_file: Path | None, folder: Path, count: int, progress: Progress) -> dict[str, Any]:
    """Milliseconds from the rename until the file has left the inbox: the median, and what 99 of 100 stay below."""
    chosen = () if config_file is None else ("--config", str(config_file))
    idle, rendering = folder / "idle", folder / "rendering"
    with running(idle, *chosen, DARKROOM_EXECUTOR__KIND="fake"):
        at_rest = [_taken(idle, JOB, "done", number) for number in range(count)]
        progress(1, 2)
    with running(rendering, *chosen):
        _drop(rendering, "long.json", LONG)
        _wait(lambda: any((rendering / "working").glob("*/progress.json")), "a step of the job that is rendered")
        at_work = [_taken(rendering, NO_JOB, "failed", number) for number in range(count)]
        if not any((rendering / "working").glob("*/progress.json")):
            raise RenderFailed("The job that was to be rendered meanwhile has ended, see its log; take a larger model")
        progress(2, 2)
    return {"drops": count, **_figures("idle", at_rest), **_figures("rendering", at_work)}


def _figures(name: str, taken: list[float]) -> dict[str, float]:
    ninety_ninth = sorted(taken)[math.ceil(0.99 * len(taken)) - 1]
    return {
        f"drop_{name}_ms": round(1000 * statistics.median(taken), 1),
        f"drop_{name}_p99_ms": round(1000 * ninety_ninth, 1),
    }


def _taken(root: Path, data: bytes, verdict: str, number: int) -> float:
    """Seconds until it is gone from the inbox; the daemon has come to rest before the next one."""
    name = f"{number:05}.json"
    begin = _drop(root, name, data)
    _wait(lambda: not (root / "inbox" / name).exists(), f"{name} being taken")
    taken = time.perf_counter() - begin
    _wait((root / verdict / Path(name).stem).exists, f"{name} in {verdict}/")
    time.sleep(0.02)
    return taken


def _drop(root: Path, name: str, data: bytes) -> float:
    """Moved in whole. Returns when."""
    file = root / name
    file.write_bytes(data)
    begin = time.perf_counter()
    file.rename(root / "inbox" / name)
    return begin


def _wait(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _WITHIN_S
    while not happened():
        if time.monotonic() > end:
            raise RenderFailed(f"After {_WITHIN_S:.0f} s there was no {what}")
        time.sleep(_LOOK_S)
