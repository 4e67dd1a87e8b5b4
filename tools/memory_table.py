"""What a model does with less and less memory: the table and the curve of docs/memory.md, measured on this machine.

    python tools/memory_table.py --model seedling --size 1024 --steps 2 --room 600 400 300 200 150 100
    python tools/memory_table.py --model sd15 --size 512 --steps 1 --room 4096 3072 2560 2048 1536
    python tools/memory_table.py --model sdxl --device cuda --count 4 --steps 20 --room 24576 12288 8192 6144 4096

``--room`` is in MiB, for the model and its work together: on a CPU the limit of a memory control group that the
process enters when its libraries are loaded (or of its address space, with ``--by address-space`` or where groups may
not be made), on a GPU its share of the card. ``sd15``, ``sd21`` and ``sdxl`` are their
exact architectures with random weights, made on the spot. Each row is a job by the real executor, and a small one
after it, which must run on the full plan.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.config import Config
from darkroom.errors import DarkroomError, EngineDied
from darkroom.events import Event, Fallback, Warned
from darkroom.executors import LocalExecutor
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.models.catalog import BUNDLED

ROOM, MODEL, BY = "MEMORY_TABLE_ROOM", "MEMORY_TABLE_MODEL", "MEMORY_TABLE_BY"

GROUP_FILES = {"memory": ("memory", "memory.limit_in_bytes"), "": ("", "memory.max")}
"""Where control groups of the first and of the second version are, and the file of their limit."""


class Limited:
    """The engine in a room of ``$MEMORY_TABLE_ROOM`` bytes; each job ends with a warning that tells its peak."""

    def __init__(self, config: Config) -> None:
        import torch

        from darkroom.engine.render import Engine

        self.cuda = config.engine.device.startswith("cuda")
        self.engine = Engine(config)
        # A picture first, so that all libraries and their threads are there before the room is measured out.
        list(self.engine.render(job_of(64, 1, count=1), frozenset(), lambda: False))
        self.engine.close()
        room = int(os.environ[ROOM])
        if self.cuda:
            torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
        else:
            self.base = _status("VmRSS")
            for file in Path(os.environ[MODEL]).rglob("*.safetensors"):
                with file.open("rb") as stream:  # what is read of it from now on counts as this group's
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _enter(room)

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark begins anew
        yield from self.engine.render(job, skip, stopping, images)
        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM") - self.base
        yield Warned("peak", str(peak))

    def close(self) -> None:
        self.engine.close()


def _enter(room: int) -> None:
    """Into a control group of its own, or where that is not allowed, a limit of the address space.

    What the process has already stays with the group it came from.
    """
    lines = Path("/proc/self/cgroup").read_text().splitlines() if os.environ[BY] == "group" else []
    for line in lines:
        _, controller, name = line.split(":", 2)
        if controller not in GROUP_FILES:
            continue
        top, limit = GROUP_FILES[controller]
        group = Path("/sys/fs/cgroup") / top / name.strip("/") / f"memory-table-{os.getppid()}"
        try:
            group.mkdir(exist_ok=True)  # the one before it may have been killed in it
            (group / limit).write_text(str(room))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue
        return
    import resource

    if lines:
        print("no control group may be made: the address space is limited instead", file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + room, resource.RLIM_INFINITY))


def _leave_no_groups() -> None:
    for group in Path("/sys/fs/cgroup").rglob("memory-table-*"):
        try:
            group.rmdir()
        except OSError:
            continue


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise ValueError(field)


@dataclass(frozen=True)
class Row:
    room: int
    outcome: str
    rungs: tuple[str, ...]
    size: str
    peak: int | None
    seconds: float
    after: str

    def markdown(self) -> str:
        peak = f"{self.peak >> 20:,} MiB" if self.peak else "–"
        rungs = ", ".join(self.rungs) or "the full plan"
        return (
            f"| {self.room >> 20:,} MiB | {rungs} | {self.size} | {peak} | {self.seconds:.0f} s | {self.outcome} "
            f"| {self.after} |"
        )


def job_of(side: int, steps: int, **fields: Any) -> Job:
    return Job(
        **{
            "id": f"table-{time.monotonic_ns()}",
            "prompt": "a red circle on a blue background",
            "negative_prompt": "",
            "num_inference_steps": steps,
            "guidance_scale": 5.0,
            "seed": 1,
            "width": side,
            "height": side,
            "model": "mine",
            "sampler": "Euler",
            "schedule": "uniform",
            "clip_skip": 1,
            "long_prompt": "chunk",
            "on_oom": "degrade",
            "output_format": "png",
            "quality": 90,
            **fields,
        }
    )


def measure(config: Config, options: argparse.Namespace, room: int) -> Row:
    """One job in that room, in a fresh process that has learnt nothing, and a small one after it."""
    shutil.rmtree(config.engine.cache_dir or "", ignore_errors=True)
    os.environ[ROOM] = str(room)
    executor = LocalExecutor(config, "memory_table:Limited")
    events: list[Event] = []
    begin = time.monotonic()
    outcome, after = "done", "the full plan"
    job = job_of(options.size, options.steps, count=options.count)
    for attempt in range(1, config.executor.max_attempts + 1):
        try:
            for event in _kept(executor.run(job)):
                events.append(event)
                if isinstance(event, Fallback):
                    job = job.model_copy(update=dict(event.changes))
            outcome = "done" if attempt == 1 else f"done, {attempt} attempts"
            break
        except EngineDied as error:
            outcome = "failed: engine-died"
            print(error.message, file=sys.stderr)
        except DarkroomError as error:
            outcome = f"failed: {getattr(error, 'reason', type(error).__name__)}"
            print(error.message, file=sys.stderr)
            break
    seconds = time.monotonic() - begin
    try:
        small = job_of(options.after, options.steps, count=1)
        rungs = [event.rung for event in _kept(executor.run(small)) if isinstance(event, Fallback)]
        after = ", ".join(rungs) or after
    except DarkroomError as error:
        after = f"failed: {getattr(error, 'reason', type(error).__name__)}"
    finally:
        executor.close()
        _leave_no_groups()
    made = [event for event in events if hasattr(event, "data")]
    peaks = [int(event.message) for event in events if isinstance(event, Warned) and event.code == "peak"]
    return Row(
        room,
        outcome,
        tuple(event.rung for event in events if isinstance(event, Fallback)),
        f"{made[0].width}×{made[0].height}" if made else "–",
        peaks[0] if peaks else None,
        seconds,
        after,
    )


def _kept(events: Iterator[Event]) -> Iterator[Event]:
    """Without the silence; each step down is told at once, for whoever waits."""
    for event in events:
        if isinstance(event, Fallback):
            print(f"  ↓ {event.rung}: {event.because[:100]}", file=sys.stderr, flush=True)
        if type(event).__name__ != "Alive":
            yield event


# ---------------------------------------------------------------- the curve


def curve(rows: list[Row], title: str) -> str:
    """Peak memory over room, as SVG; a point's colour says how the job ended, the dashed line is all of the room."""
    left, top, width, height = 70, 50, 560, 320
    most = max(row.room for row in rows)
    high = max([most, *(row.peak or 0 for row in rows)])
    colours = {"whole": "#2a7", "smaller": "#d82", "failed": "#c33"}

    def place(room: float, peak: float) -> tuple[float, float]:
        return left + width * room / most, top + height * (1 - peak / high)

    points = []
    for row in rows:
        kind = (
            "failed" if not row.outcome.startswith("done") else "smaller" if "smaller_picture" in row.rungs else "whole"
        )
        x, y = place(row.room, row.peak or 0)
        label = row.rungs[-1] if row.rungs else "full plan"
        points.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{colours[kind]}"/>')
        points.append(f'<text x="{x:.0f}" y="{y - 10:.0f}" text-anchor="end">{label}, {row.seconds:.0f} s</text>')
    ordered = sorted((row for row in rows if row.peak), key=lambda row: row.room)
    line = " ".join("{:.0f},{:.0f}".format(*place(row.room, row.peak or 0)) for row in ordered)
    end = place(most, most)
    ticks = "".join(
        f'<text x="{place(row.room, 0)[0]:.0f}" y="{top + height + 18}" text-anchor="middle">{row.room >> 20}</text>'
        for row in rows
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40} {top + height + 50}" '
        'font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{left}" y="24" font-size="14">{title}</text>'
        f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#888"/>'
        f'<line x1="{left}" y1="{top + height}" x2="{end[0]:.0f}" y2="{end[1]:.0f}" '
        'stroke="#aaa" stroke-dasharray="4"/>'
        f'<polyline points="{line}" fill="none" stroke="#58a"/>{"".join(points)}{ticks}'
        f'<text x="{left + width}" y="{top + height + 38}" text-anchor="end">room, MiB</text>'
        f'<text x="{left - 8}" y="{top + 10}" text-anchor="end">{high >> 20}</text>'
        f'<text x="{left - 8}" y="{top - 12}" text-anchor="end">peak, MiB</text>'
        f'<text x="{left + width}" y="24" text-anchor="end"><tspan fill="#2a7">● as asked</tspan> '
        '<tspan fill="#d82">● made smaller</tspan> <tspan fill="#c33">● failed</tspan></text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="seedling", help="seedling, sd15, sd21, sdxl, or a diffusers folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: float32 for the seedling on a CPU, bfloat16 else, float16 on a GPU")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--after", type=int, default=128, help="side of the picture of the job after it")
    parser.add_argument("--room", type=int, nargs="+", required=True, metavar="MiB")
    parser.add_argument("--by", choices=["group", "address-space"], default="group", help="how a CPU's room is limited")
    parser.add_argument("--curve", type=Path, metavar="SVG")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    dtype = options.dtype or ("float16" if cuda else "float32" if options.model == "seedling" else "bfloat16")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        match options.model:
            case "seedling":
                model = BUNDLED
            case "sd15" | "sd21" | "sdxl":
                import torch

                from darkroom.engine.architectures import make_model

                model = make_model(folder / "model", options.model, getattr(torch, dtype))
            case path:
                model = Path(path)
        os.environ |= {MODEL: str(model), BY: options.by}
        engine = {"device": options.device, "dtype": dtype, "cache_dir": folder / "cache", "stall_s": 3600}
        config = Config(models={"default": "mine", "mine": {"path": model}}, engine=engine)
        print(
            "| room | steps down | picture | peak | time | outcome | the job after it |\n|" + " --- |" * 7, flush=True
        )
        rows = []
        for room in options.room:
            rows.append(measure(config, options, room << 20))
            print(rows[-1].markdown(), flush=True)
        if options.curve is not None:
            pictures = f"{options.count} × " if options.count > 1 else ""
            title = f"{options.model}, {pictures}{options.size}×{options.size}, {options.device} {dtype}"
            options.curve.write_text(curve(rows, title), encoding="utf-8")


if __name__ == "__main__":
    main()
