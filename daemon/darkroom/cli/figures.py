"""The figures of ``darkroom bench`` as tables for a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_Sentence = Callable[[Any], str]


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms"


def _times(value: float) -> str:
    return f"[bold]{value:.2f}[/bold]"


_ROWS: dict[str, dict[str, tuple[str, _Sentence]]] = {
    "spool": {
        "file_system": ("file system", str),
        "waiting": ("waiting", lambda n: f"{n:,} files"),
        "results": ("results in done/", lambda n: f"{n:,}"),
        "jobs": ("jobs", lambda n: f"{n:,}"),
        "floor_jobs_per_s": ("the bare calls", lambda n: f"{n:,.0f} jobs/s"),
        "spool_jobs_per_s": ("the spool", lambda n: f"{n:,.0f} jobs/s"),
        "jobs_per_s": ("the whole daemon", lambda n: f"{n:,.0f} jobs/s"),
        "few_jobs_per_s": ("beside it, with few", lambda n: f"{n:,.0f} jobs/s"),
        "ratio": ("ratio", _times),
        "daemon_ratio": ("ratio of the whole daemon", _times),
        "cpu_us_per_job": ("processor", lambda n: f"{n:,} µs a job"),
        "calls_per_job": ("calls", lambda n: f"{n} a job"),
        "fsyncs_per_job": ("of them fsync", lambda n: f"{n} a job"),
        "claim_us": ("one claim", lambda n: f"{n:,} µs"),
        "few_claim_us": ("beside it, with few", lambda n: f"{n:,} µs"),
        "first_claim_s": ("first job done after", _seconds),
        "peak_memory_mb": ("memory, at most", lambda n: f"{n:,} MB"),
    },
    "publish": {
        "file_system": ("file system", str),
        "device": ("device", str),
        "jobs": ("jobs of four steps", lambda n: f"{n:,}"),
        "pictures_per_s": ("published", lambda n: f"{n:,.2f} pictures/s"),
        "null_pictures_per_s": ("thrown away", lambda n: f"{n:,.2f} pictures/s"),
        "ratio": ("ratio", _times),
        "png_ms": ("one PNG", lambda n: f"{n:.1f} ms"),
        "png_ratio": ("times as fast as Pillow's", _times),
        "png_bytes_ratio": ("times as large", _times),
    },
    "start": {
        "rounds": ("rounds", str),
        "python_s": ("python alone", _seconds),
        "help_s": ("darkroom --help", _seconds),
        "status_s": ("darkroom status", _seconds),
        "submit_s": ("darkroom submit", _seconds),
        "daemon_ready_s": ("daemon ready", _seconds),
        "drops": ("files dropped", str),
        "drop_idle_ms": ("taken when idle after", _milliseconds),
        "drop_idle_p99_ms": ("99 of 100 of them", _milliseconds),
        "drop_rendering_ms": ("refused while rendering after", _milliseconds),
        "drop_rendering_p99_ms": ("99 of 100 of them", _milliseconds),
        "engine_ready_s": ("engine with its model", _seconds),
        "torch_s": ("import torch, read the model", _seconds),
        "engine_ratio": ("ratio", _times),
    },
}


def show(name: str, figures: dict[str, Any]) -> None:
    """Print what ``bench`` found, with the machine and the versions under it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if name == "engine":
        _show_cases(figures)
    else:
        table = Table.grid(padding=(0, 2))
        for key, (title, sentence) in _ROWS[name].items():
            if key in figures:
                table.add_row(title, sentence(figures[key]))
        console.print(table)
    if "machine" in figures:
        machine, versions = figures["machine"], figures["versions"]
        place = f"{machine['cpu']} ×{machine['cores']}, {machine['system']}, load {machine['load']}"
        console.print(f"[dim]{figures['date']}, {place}[/dim]")
        console.print(f"[dim]{', '.join(f'{library} {version}' for library, version in versions.items())}[/dim]")


def _show_cases(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("size", "steps", "batch", "the tutorial's", "diffusers'", "darkroom", "ratio", "and", "efficiency"):
        table.add_column(column, justify="right", no_wrap=column == "size")
    for row in figures["cases"]:
        table.add_row(
            f"{row['size']}²",
            str(row["steps"]),
            str(row["batch"]),
            *(_span(row[f"{side}_s"]) for side in ("tutorial", "pipeline", "ours")),
            *(_times(row[f"{side}_ratio"]) for side in ("tutorial", "pipeline")),
            f"{row['efficiency_ratio']:.2f}" if "efficiency_ratio" in row else "",
        )
    console.print(f"{figures['model']} on {figures['device']}: seconds a job, average (minimum – maximum)")
    console.print(table)
    if "frame" in figures:
        frame = figures["frame"]
        console.print(
            f"Outside the networks: {frame['step_us']} µs a step (diffusers: {frame['pipeline_step_us']}), "
            f"{frame['call_us']} µs a job, {frame['known_call_us']} where its texts are known"
        )


def _span(seconds: dict[str, float]) -> str:
    return f"{seconds['average']:.2f} ({seconds['minimum']:.2f} – {seconds['maximum']:.2f})"
