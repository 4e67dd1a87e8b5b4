"""``darkroom bench``: what darkroom itself costs on this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom.errors import UsageError

app = typer.Typer(
    help="Measure what darkroom itself costs here, beside the least that it can cost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command()
def spool(
    jobs: Annotated[int, typer.Option("--jobs", "-n", min=1, max=1_000_000, help="How many jobs.")] = 1000,
    folder: Annotated[
        Path | None, typer.Option("--dir", "-d", metavar="DIR", help="On which disk; default: where temporaries go.")
    ] = None,
    waiting: Annotated[
        int | None,
        typer.Option("--waiting", "-w", min=200, metavar="N", help="Instead: N files waiting, against 100."),
    ] = None,
    results: Annotated[
        int | None, typer.Option("--results", min=1, metavar="N", help="Instead: N results in done/, against none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end, for programs.")] = False,
) -> None:
    """What the spool's promise costs: jobs without an engine, against the bare calls to the disk that they make.

    Beside it the whole daemon, which also checks each job, records and logs what was done.

    [dim]darkroom bench spool
    darkroom bench spool --dir /dev/shm --json
    darkroom bench spool --dir /dev/shm --waiting 100000 --jobs 20000[/dim]
    """
    from darkroom import bench

    with _place(folder) as place, _progress(as_json) as progress:
        if waiting is not None:
            figures = bench.many_against_few(place, waiting, jobs, progress)
        elif results is not None:
            figures = bench.crowded_against_empty(place, results, jobs, progress)
        else:
            figures = bench.against_the_floor(place, jobs, progress)
    if as_json:
        print(json.dumps(figures))
    else:
        _show(figures)


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """A folder of our own, removed at the end."""
    try:
        place = Path(tempfile.mkdtemp(prefix="darkroom-bench-", dir=folder))
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; --dir names a folder that can be written") from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("jobs", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


_Sentence = Callable[[Any], str]

_ROWS: dict[str, tuple[str, _Sentence]] = {
    "file_system": ("file system", str),
    "waiting": ("waiting", lambda n: f"{n:,} files"),
    "results": ("results in done/", lambda n: f"{n:,}"),
    "jobs": ("jobs", lambda n: f"{n:,}"),
    "floor_jobs_per_s": ("the bare calls", lambda n: f"{n:,.0f} jobs/s"),
    "spool_jobs_per_s": ("the spool", lambda n: f"{n:,.0f} jobs/s"),
    "jobs_per_s": ("the whole daemon", lambda n: f"{n:,.0f} jobs/s"),
    "few_jobs_per_s": ("beside it, with few", lambda n: f"{n:,.0f} jobs/s"),
    "ratio": ("ratio", lambda n: f"[bold]{n:.2f}[/bold]"),
    "daemon_ratio": ("ratio of the whole daemon", lambda n: f"[bold]{n:.2f}[/bold]"),
    "cpu_us_per_job": ("processor", lambda n: f"{n:,} µs a job"),
    "calls_per_job": ("calls", lambda n: f"{n} a job"),
    "fsyncs_per_job": ("of them fsync", lambda n: f"{n} a job"),
    "claim_us": ("one claim", lambda n: f"{n:,} µs"),
    "few_claim_us": ("beside it, with few", lambda n: f"{n:,} µs"),
    "first_claim_s": ("first job done after", lambda n: f"{n:.2f} s"),
    "peak_memory_mb": ("memory, at most", lambda n: f"{n:,} MB"),
}


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for key, (title, sentence) in _ROWS.items():
        if key in figures:
            table.add_row(title, sentence(figures[key]))
    Console(highlight=False).print(table)


@app.callback()
def _root() -> None:
    """One command for each thing that is measured."""
