"""Publishing: what it costs that pictures become files that stay, beside the same pictures thrown away."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darkroom.bench import Progress
from darkroom.bench.spool import JOB, Daemon, fill
from darkroom.config import Config
from darkroom.events import Finished, Loaded
from darkroom.executors import Executor, make_executor
from darkroom.intake.mounts import file_system_of
from darkroom.job import parse, resolve
from darkroom.models.catalog import Catalog

ENCODINGS = 9
"""How often each picture is encoded by either side."""


def against_a_null_sink(config: Config, folder: Path, jobs: int, progress: Progress) -> dict[str, Any]:
    """Jobs of four steps through the whole daemon, and as many whose pictures go nowhere, in turns with one engine.

    ``ratio`` is the median of published by thrown away, in pictures a second. Encoding counts as publishing. As in a
    full inbox, each job's turn has in it that the one before is published.
    """
    executor = make_executor(config)
    fill(folder / "inbox", range(jobs + 1))
    published, thrown_away = [], []
    with Daemon(folder, config=config, executor=executor) as daemon:
        daemon.do(1, whole=False)
        device = ""
        for done in range(jobs):
            seconds, device = _thrown_away(executor, config, device)
            thrown_away.append(seconds)
            published.append(daemon.do(1, whole=False))
            progress(done + 1, jobs)
        daemon.loop.work.publish()
    pictures = [path.read_bytes() for path in sorted(folder.glob("done/*/*.png"))[:3]]
    return {
        "file_system": file_system_of(folder),
        "device": device,
        "jobs": jobs,
        "pictures_per_s": round(jobs / sum(published), 2),
        "null_pictures_per_s": round(jobs / sum(thrown_away), 2),
        "ratio": round(statistics.median(a / b for a, b in zip(thrown_away, published, strict=True)), 3),
        **encoding(pictures),
    }


def encoding(pictures: Sequence[bytes]) -> dict[str, Any]:
    """These pictures, encoded by us and by Pillow as it comes, in turns: how much faster, and how much larger."""
    from PIL import Image

    from darkroom.output.png import png

    ours_s, ratios, ours_bytes, pillow_bytes = [], [], 0, 0
    for data in pictures:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(ENCODINGS):
            begin = time.perf_counter()
            ours = png(image, {})
            between = time.perf_counter()
            pillow = io.BytesIO()
            image.save(pillow, "PNG")
            end = time.perf_counter()
            ours_s.append(between - begin)
            ratios.append((end - between) / (between - begin))
        ours_bytes += len(ours)
        pillow_bytes += len(pillow.getvalue())
    return {
        "png_ms": round(1e3 * statistics.median(ours_s), 2),
        "png_ratio": round(statistics.median(ratios), 2),
        "png_bytes_ratio": round(ours_bytes / pillow_bytes, 3),
    }


def _thrown_away(executor: Executor, config: Config, device: str) -> tuple[float, str]:
    """Seconds that one job takes the engine, less those in which it encodes."""
    job = resolve(parse(JOB), config, Catalog(config.models), "bench")
    begin = time.perf_counter()
    saving = 0.0
    for event in executor.run(job):
        match event:
            case Loaded():
                device = event.device
            case Finished():
                saving = event.seconds["save"]
    return time.perf_counter() - begin - saving, device
