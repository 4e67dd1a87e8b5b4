"""The end of a job: its verdict is written, its folder moves to ``done/`` or ``failed/``, and all are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from darkroom.config import Config
from darkroom.errors import DarkroomError, InvalidRequest, RenderFailed, first_line
from darkroom.events import Event
from darkroom.health import Health, Recent
from darkroom.job import Job, is_entry_file
from darkroom.page import Page
from darkroom.reading import Reader
from darkroom.spool import Spool, Ticket, Verdict
from darkroom.work.record import Record


class Viewer(Protocol):
    """Somebody who is shown what goes on, such as a terminal."""

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """The engine is woken for a job."""

    def event(self, ticket: Ticket, event: Event) -> None:
        """The engine said something."""

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """A job ended; its results are at ``path``."""

    def state(self, state: str, why: str | None) -> None:
        """The daemon is idle, working, paused, …"""


class Insist(Protocol):
    """Does a thing that needs the disk, and after trouble with the disk again, until it is done."""

    def __call__(self, operation: Callable[[], Any]) -> Any:
        """Returns what ``operation`` does. Raises Stopped."""


@dataclass
class Publisher:
    """Publishes jobs, and counts them."""

    config: Config
    reader: Reader
    spool: Spool
    health: Health
    logger: Any
    viewer: Viewer | None
    insist: Insist
    page: Page | None = None
    done: int = 0
    failed: int = 0

    def publish(self, record: Record, error: DarkroomError | None = None) -> None:
        """A job that is done, or failed with ``error``. Raises Stopped, FileNotFoundError."""
        ticket = record.ticket
        self._draw_grid(record)
        verdict = record.verdict(error)
        if error is None and record.sheet is not None:
            record.sheet.finish((index, picture.file) for index, picture in sorted(record.pictures.items()))
        event, level, fields = "job.done", "info", {"name": ticket.name, "pictures": len(verdict.result.pictures)}
        if verdict.error is None:
            fields["seconds"] = verdict.result.seconds["total"]
        else:
            event, level = "job.failed", "warning"
            fields |= {"reason": verdict.error.reason, "why": self._why(error)}
        ticket.log(event, fields, last=True)
        path = self.insist(lambda: self.spool.publish(ticket, verdict))
        self._tidy(record)
        getattr(self.logger, level)(event, id=ticket.id, path=str(path), **fields)
        if verdict.error is None:
            self.done += 1
        else:
            self.failed += 1
        self.health.ended(self._recent(verdict, path))
        if self.page is not None:
            self.page.add(path, record.thumbnail)
        if self.viewer:
            self.viewer.verdict(ticket, verdict, path)

    def _draw_grid(self, record: Record) -> None:
        """The picture of all pictures of a matrix, where there are any. A job does not fail for it."""
        ticket = record.ticket
        if not record.pictures or record.job.matrix is None:
            return
        from darkroom.output import grid  # brings Pillow

        files = (record.pictures.get(index) for index in range(record.job.total))
        places = [
            record.why_not(index) if picture is None else Path(ticket.at(picture.file))
            for index, picture in enumerate(files)
        ]
        try:
            data = grid(record.job.matrix, places, each=record.job.count)
        except Exception as error:
            why = first_line(error)
            self.logger.warning("grid.failed", id=ticket.id, why=why)
            ticket.log("grid.failed", {"why": why})
            return
        record.grid = self.insist(lambda: ticket.save_grid(data))

    def _why(self, error: DarkroomError | None) -> str:
        """A sentence for the logs. Those about a job's text may quote it."""
        assert error is not None
        if isinstance(error, InvalidRequest | RenderFailed) and not self.config.log.prompts:
            return "see error.json"
        return error.message

    def _recent(self, verdict: Verdict, path: Path) -> Recent:
        base = self.spool.done if verdict.error is None else self.spool.failed
        return Recent(
            name=str(path.relative_to(base)),
            status=verdict.result.status,
            reason=verdict.error.reason if verdict.error else None,
            finished_at=verdict.result.finished_at,
            seconds=verdict.result.seconds["total"],
            pictures=len(verdict.result.pictures),
        )

    def _tidy(self, record: Record) -> None:
        """The folder of a list goes with the last of its entries."""
        folder = record.ticket.origin.dropped.rpartition("/")[0]
        if folder and folder not in self.reader.presets and is_entry_file(record.request or b""):
            self.spool.tidy(folder)
