"""Who is shown what the daemon does: a terminal, the page of results, figures, those who are told of verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from darkroom.config import Config
from darkroom.health import Health
from darkroom.page import Page
from darkroom.spool import Spool, Verdict
from darkroom.viewers.audience import Audience
from darkroom.viewers.exporter import Exporter
from darkroom.viewers.metrics import Metrics
from darkroom.viewers.notify import Teller
from darkroom.work.publishing import Viewer


class Onlookers:
    """Those that the config wants. ``audience`` are the ones who see each job as it goes, ``viewer`` the first."""

    def __init__(
        self,
        config: Config,
        spool: Spool,
        health: Health,
        logger: Any,
        viewer: Viewer | None,
        clock: Callable[[], float],
    ) -> None:
        self._spool = spool
        self._health = health
        self._logger = logger
        self._clock = clock
        self.page: Page | None = None
        self.teller: Teller | None = None
        self.exporter: Exporter | None = None
        viewers = [viewer] if viewer is not None else []
        if config.metrics.listen is not None or config.metrics.textfile is not None:
            metrics = Metrics(health)
            self.exporter = Exporter(config.metrics, metrics, health, logger)
            viewers.append(metrics)
        if config.notify.command is not None or config.notify.webhook is not None:
            self.teller = Teller(config.notify, health, logger)
            viewers.append(self.teller)
        self.audience = Audience(viewers)

    def configure(self, config: Config) -> None:
        """With or without the page from now on; the others are for as long as the daemon runs."""
        if config.output.page != (self.page is not None):
            self.page = Page(self._spool, self._logger, self._clock) if config.output.page else None

    def start(self) -> None:
        """Figures are to be had."""
        if self.exporter is not None:
            self.exporter.start()

    def keep_up(self) -> None:
        """A slice of what the page is behind with."""
        if self.page is not None:
            self.page.work(idle=self._health.report.state == "idle")

    def wait_s(self) -> float:
        """How many seconds one may sleep before there is something to do here."""
        return self.page.wait_s() if self.page is not None else float("inf")

    def published(self, verdict: Verdict, path: Path) -> None:
        """A verdict of an earlier daemon, whose job nobody saw go."""
        if self.page is not None:
            self.page.add(path)
        if self.teller is not None:
            self.teller.tell(verdict, path)

    def finish(self) -> None:
        """No more verdicts will come."""
        if self.page is not None:
            self.page.finish()
        if self.teller is not None:
            self.teller.close()

    def close(self) -> None:
        """The last figures are given out."""
        if self.exporter is not None:
            self.exporter.close()
