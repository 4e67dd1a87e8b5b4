"""``darkroom bench``: what darkroom costs on this machine, beside what it is to be compared with."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom.errors import UsageError

app = typer.Typer(
    help="Measure what darkroom costs here, beside what it is to be compared with.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class Arch(StrEnum):
    """Architectures that can be made on the spot."""

    sd15 = "sd15"
    sd21 = "sd21"
    sdxl = "sdxl"


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="config.toml; default: $DARKROOM_CONFIG, then ./config.toml."),
]
FolderOption = Annotated[
    Path | None, typer.Option("--dir", "-d", metavar="DIR", help="On which disk; default: where temporaries go.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object at the end, for programs.")]
RoundsOption = Annotated[int, typer.Option("--rounds", "-n", min=1, max=1000, help="How often each is measured.")]


@app.command()
def engine(
    size: Annotated[
        list[int] | None, typer.Option("--size", min=64, metavar="N", help="Pixels a side; default: the model's own.")
    ] = None,
    steps: Annotated[list[int] | None, typer.Option("--steps", min=1, max=150, help="Default: 20.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, max=64, help="Pictures a job.")] = None,
    rounds: RoundsOption = 5,
    table: Annotated[
        bool, typer.Option("--table", help="The tutorial's table: sizes 512 and 768; 20, 50 and 100 steps.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the config's.")] = None,
    arch: Annotated[
        Arch | None, typer.Option("--arch", help="Instead: this very architecture with random weights.")
    ] = None,
    config: ConfigOption = None,
    folder: FolderOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="The figures as a picture too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Whole pictures, beside the tutorial's engine and diffusers' pipeline as it comes; each round another prompt.

    Sizes, steps and batches may be given several times: all combinations are measured. The tutorial's engine is
    float32 on a CPU, float16 on a GPU, with attention slicing.

    [dim]darkroom bench engine
    darkroom bench engine --arch sd15 --size 512 --steps 2 --rounds 3
    darkroom bench engine --table --model sd15 --plot table.png[/dim]
    """
    from darkroom.bench.engine import cases

    chosen = cases([512, 768], [20, 50, 100], batch or [1]) if table else None
    with _place(folder) as place, _progress("rounds", as_json) as progress:
        figures = _engine(config, model, arch, size, steps, batch, rounds, place, progress, chosen)
    if plot is not None:
        _save_plot(figures, plot)
    _show("engine", figures, as_json)


@app.command()
def publish(
    jobs: Annotated[int, typer.Option("--jobs", "-n", min=1, max=10_000, help="How many jobs.")] = 20,
    config: ConfigOption = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """What it costs to encode pictures and to publish them for good, beside the same ones thrown away.

    [dim]darkroom bench publish
    darkroom bench publish --dir /srv/spool[/dim]
    """
    from darkroom.bench.publish import against_a_null_sink
    from darkroom.config import load

    with _place(folder) as place, _progress("jobs", as_json) as progress:
        figures = against_a_null_sink(load(config), place, jobs, progress)
    _show("publish", figures, as_json)


@app.command()
def start(
    rounds: RoundsOption = 5, config: ConfigOption = None, folder: FolderOption = None, as_json: JsonOption = False
) -> None:
    """How long one waits: for a command's answer, a daemon that is ready, an engine that has its model, a file's turn.

    [dim]darkroom bench start[/dim]
    """
    from darkroom.config import load

    settings = load(config)
    with _place(folder) as place, _progress("rounds", as_json) as progress:
        figures = _start(settings, config, rounds, place, progress)
    _show("start", figures, as_json)


@app.command()
def spool(
    jobs: Annotated[int, typer.Option("--jobs", "-n", min=1, max=1_000_000, help="How many jobs.")] = 1000,
    folder: FolderOption = None,
    waiting: Annotated[
        int | None,
        typer.Option("--waiting", "-w", min=200, metavar="N", help="Instead: N files waiting, against 100."),
    ] = None,
    results: Annotated[
        int | None, typer.Option("--results", min=1, metavar="N", help="Instead: N results in done/, against none.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What the spool's promise costs: jobs without an engine, against the bare calls to the disk that they make.

    Beside it the whole daemon, which also checks each job, records and logs what was done.

    [dim]darkroom bench spool
    darkroom bench spool --dir /dev/shm --json
    darkroom bench spool --dir /dev/shm --waiting 100000 --jobs 20000[/dim]
    """
    from darkroom.bench import spool as bench

    with _place(folder) as place, _progress("jobs", as_json) as progress:
        if waiting is not None:
            figures = bench.many_against_few(place, waiting, jobs, progress)
        elif results is not None:
            figures = bench.crowded_against_empty(place, results, jobs, progress)
        else:
            figures = bench.against_the_floor(place, jobs, progress)
    _show("spool", figures, as_json)


@app.command(name="all")
def everything(config: ConfigOption = None, folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """Spool, start, publish and engine with the default model, each as it is by default; about three minutes.

    [dim]darkroom bench all
    darkroom bench all --json > figures.json[/dim]
    """
    from darkroom.bench import publish
    from darkroom.bench import spool as bench
    from darkroom.bench.machine import about
    from darkroom.config import load

    settings = load(config)
    parts: dict[str, Callable[[Path, Callable[[int, int], None]], dict[str, Any]]] = {
        "spool": lambda place, progress: bench.against_the_floor(place, 300, progress),
        "start": lambda place, progress: _start(settings, config, 5, place, progress),
        "publish": lambda place, progress: publish.against_a_null_sink(settings, place, 20, progress),
        "engine": lambda place, progress: _engine(config, None, None, None, None, None, 5, place, progress),
    }
    found = {}
    for name, measure in parts.items():
        with _place(folder) as place, _progress(name, as_json) as progress:
            found[name] = measure(place, progress)
        if not as_json:
            _show(name, found[name], as_json)
    if as_json:
        print(json.dumps({"bench": "all", **about(), **found}))


def _start(
    settings: Any, config_file: Path | None, rounds: int, place: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    from darkroom.bench.drop import drops
    from darkroom.bench.start import waits

    return waits(settings, config_file, place, rounds, progress) | drops(config_file, place, 20 * rounds, progress)


def _engine(
    config_file: Path | None,
    model: str | None,
    arch: Arch | None,
    size: list[int] | None,
    steps: list[int] | None,
    batch: list[int] | None,
    rounds: int,
    place: Path,
    progress: Callable[[int, int], None],
    chosen: Any = None,
) -> dict[str, Any]:
    """The comparison of whole pictures, and with it what a step costs outside the networks."""
    from contextlib import nullcontext

    from darkroom.bench.engine import cases, compare, frame, random_model
    from darkroom.config import load
    from darkroom.models.catalog import Catalog

    settings = load(config_file)
    if arch is not None and model is not None:
        raise UsageError("--model and --arch: one of them")
    made = nullcontext(settings) if arch is None else random_model(settings, arch.value, place)
    with made as settings:
        name = arch.value if arch is not None else model or settings.models.default
        found = Catalog(settings.models).get(name)
        if found is None:
            raise UsageError(f'there is no model "{name}"; `darkroom models` lists them')
        chosen = chosen or cases(size or [found.defaults.width or 512], steps or [20], batch or [1])
        figures = compare(settings, name, chosen, rounds, progress)
    return figures | {"frame": frame(settings, settings.models.default, rounds, progress)}


def _save_plot(figures: dict[str, Any], file: Path) -> None:
    from darkroom.bench.machine import about
    from darkroom.bench.plot import plot

    try:
        plot(about() | figures).save(file, "PNG")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; --plot names a file that can be written") from None


def _show(name: str, figures: dict[str, Any], as_json: bool) -> None:
    from darkroom.bench.machine import about
    from darkroom.cli.figures import show

    if as_json:
        print(json.dumps({"bench": name, **about(), **figures}))
    else:
        show(name, about() | figures)


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
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


@app.callback()
def _root() -> None:
    """One command for each thing that is measured."""
