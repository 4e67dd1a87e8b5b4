"""What a person at a terminal sees of a running daemon: a line for each verdict, a bar for the job that runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from darkroom.events import Event, Fallback, Loaded, Picture, Step, Warned
from darkroom.job import Job
from darkroom.spool import Spool, Ticket, Verdict
from darkroom.visible import visible

SHOWN = frozenset({"job.failed", "job.warning", "oom.step_down", "daemon.paused"})
"""Events of the log that a person sees here anyway."""

MOST_PICTURES = 1000
"""A contact sheet holds no more."""


class Screen:
    """A viewer of the loop. Shows nothing unless ``live``; remembers the last pictures made, in ``pictures``."""

    def __init__(self, *, live: bool) -> None:
        self.pictures: deque[Path] = deque(maxlen=MOST_PICTURES)
        self._live = live
        self._console = Console(highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._job: Job | None = None
        self._finished = 0
        self._greeting: str | None = None
        """Said once the spool is its own."""

    @contextmanager
    def showing(self, spool: Spool) -> Iterator[None]:
        """While the loop runs."""
        if not self._live:
            yield
            return
        self._greeting = f"[bold]darkroom[/bold] watches {escape(str(spool.inbox))} [dim](Ctrl-C stops)[/dim]"
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            yield
        self._progress = None

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        if self._live:
            self._console.print(_shown(text), soft_wrap=True)

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """A job begins: the bar counts the steps of all its pictures."""
        self._job = job
        self._finished = len(ticket.pictures())
        if self._progress is not None:
            self._drop_bar()
            self._task = self._progress.add_task(
                escape(ticket.name), total=job.total * job.num_inference_steps, detail="loading the model"
            )

    def event(self, ticket: Ticket, event: Event) -> None:
        """Move the bar; say what is worth a line."""
        if self._progress is None or self._task is None or self._job is None:
            return
        match event:
            case Loaded():
                self._progress.update(self._task, detail="")
            case Step():
                done = self._finished * event.steps + event.step * event.batch
                picture = f"picture {event.first + 1} of {self._job.total}, " if self._job.total > 1 else ""
                self._progress.update(
                    self._task,
                    completed=done,
                    total=self._job.total * event.steps,
                    detail=f"{picture}step {event.step} of {event.steps}",
                )
            case Picture():
                self._finished += 1
            case Fallback():
                self._console.print(f"[yellow]↓[/yellow] {escape(ticket.name)}: {event.rung}: {_shown(event.because)}")
            case Warned():
                self._console.print(f"[yellow]![/yellow] {escape(ticket.name)}: {_shown(event.message)}")

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """One line: where the pictures are, or why there are none."""
        self.pictures.extend(path / picture.file for picture in verdict.result.pictures)
        if not self._live:
            return
        self._drop_bar()
        if verdict.error is None:
            seconds = verdict.result.seconds["total"]
            load = verdict.result.seconds.get("load", 0.0)
            loading = f", {load:.1f} s of it loading the model" if load >= 0.1 else ""
            self._console.print(
                f"[green]✓[/green] {escape(str(path))} [dim]{seconds:.1f} s{loading}[/dim]", soft_wrap=True
            )
        else:
            self._console.print(f"[red]✗[/red] {escape(str(path))}: {_shown(verdict.error.message)}", soft_wrap=True)

    def state(self, state: str, why: str | None) -> None:
        """Idle, working, paused."""
        if self._progress is None:
            return
        if self._greeting is not None:
            self._console.print(self._greeting, soft_wrap=True)
            self._greeting = None
        if state == "paused":
            self._console.print(f"[yellow]paused[/yellow]: {_shown(why or '')}")
        if state in ("idle", "paused", "stopping"):
            self._drop_bar()
            text = {"idle": "waiting for jobs", "stopping": "stopping"}.get(state, state)
            self._task = self._progress.add_task(text, total=None, detail="")
            self._job = None

    def _drop_bar(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def _shown(text: str) -> str:
    """A text of others amid rich's markup."""
    return escape(visible(text))
