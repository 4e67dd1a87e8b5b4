"""Those who are shown what goes on, as one ``Viewer``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from darkroom.events import Event
from darkroom.job import Job
from darkroom.spool import Ticket, Verdict
from darkroom.work.publishing import Viewer


class Audience:
    """Each is shown everything, in turn."""

    def __init__(self, viewers: Sequence[Viewer]) -> None:
        self.viewers = viewers

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """As ``Viewer.claimed``."""
        for viewer in self.viewers:
            viewer.claimed(ticket, job)

    def event(self, ticket: Ticket, event: Event) -> None:
        """As ``Viewer.event``."""
        for viewer in self.viewers:
            viewer.event(ticket, event)

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """As ``Viewer.verdict``."""
        for viewer in self.viewers:
            viewer.verdict(ticket, verdict, path)

    def state(self, state: str, why: str | None) -> None:
        """As ``Viewer.state``."""
        for viewer in self.viewers:
            viewer.state(state, why)
