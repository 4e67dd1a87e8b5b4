"""The daemon's figures for Prometheus. prometheus_client is imported when these are wanted, and not before.

Every label has few values: models are those of the config, and after so many they are ``other``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from darkroom import __version__
from darkroom.events import Event, Fallback
from darkroom.health import Health, State
from darkroom.job import Job
from darkroom.spool import Ticket, Verdict

MOST_MODELS = 100
OTHER = "other"

_QUEUE_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
_LOAD_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DENOISE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_TOTAL_S = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """A viewer of the loop that counts; the rest is read from its health when somebody asks."""

    def __init__(self, health: Health) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

        # Else there is a gauge beside each counter and histogram, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._models: set[str] = set()

        def seconds(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"darkroom_{name}_seconds", what, ["model"], registry=self._registry, buckets=buckets)

        self._jobs = Counter("darkroom_jobs", "Verdicts.", ["verdict", "reason"], registry=self._registry)
        self._fallbacks = Counter(
            "darkroom_fallbacks", "Steps down the memory ladder.", ["rung"], registry=self._registry
        )
        self._queue = seconds("queue", "From a job's arrival to its begin.", _QUEUE_S)
        self._load = seconds("load", "Loading a model, where that was needed.", _LOAD_S)
        self._denoise = seconds("denoise", "Denoising all pictures of a job.", _DENOISE_S)
        self._total = seconds("total", "From a job's begin to its end.", _TOTAL_S)
        self._jobs.labels("done", "")
        self._registry.register(_FromHealth(health))

    def exposition(self) -> bytes:
        """In Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= MOST_MODELS:
                return OTHER
            self._models.add(name)
        return name

    # As a viewer

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """Counted at its end."""

    def event(self, ticket: Ticket, event: Event) -> None:
        """Count steps down."""
        if isinstance(event, Fallback):
            self._fallbacks.labels(event.rung).inc()

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """Count it; a job that is done says how long it took."""
        result = verdict.result
        self._jobs.labels(result.status, verdict.error.reason if verdict.error is not None else "").inc()
        if verdict.error is not None or result.job is None:
            return
        model = self._model(result.job["model"])
        took = result.seconds
        self._queue.labels(model).observe(took["queued"])
        self._total.labels(model).observe(took["total"])
        if took.get("load"):
            self._load.labels(model).observe(took["load"])
        if "denoise" in took:
            self._denoise.labels(model).observe(took["denoise"])

    def state(self, state: str, why: str | None) -> None:
        """It is in the health."""


class _FromHealth:
    """A collector of what the health knows."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        report = self._health.report
        gauges: dict[str, tuple[str, float | None]] = {
            "jobs_waiting": ("Files in the inbox, and a job that was claimed ahead of its turn.", report.waiting),
            "files_left": ("What lies in the inbox and cannot be taken, or is no job.", report.left),
            "jobs_running": ("Jobs being worked on.", int(report.job is not None)),
            "in_trouble": ("Whether it is paused because something is wrong.", int(report.trouble)),
            "free_bytes": ("Free space where the spool is.", report.free_bytes),
            "disk_bytes": ("All space where the spool is.", report.total_bytes),
            "loop_age_seconds": ("Since the loop last came by.", self._health.age_s()),
            "start_time_seconds": ("When the daemon was started.", _epoch(report.started_at)),
            "last_verdict_time_seconds": (
                "When the last job ended.",
                _epoch(report.recent[0].finished_at) if report.recent else None,
            ),
        }
        for name, (what, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"darkroom_{name}", what, value=value)
        counters = {
            "pictures": ("Pictures made and published.", report.pictures),
            "engine_restarts": ("Engines that died or hung in a job.", report.engine_restarts),
            "missed_events": ("Files that came without a notification.", report.missed_events),
        }
        for name, (what, count) in counters.items():
            yield CounterMetricFamily(f"darkroom_{name}", what, value=count)
        yield _labelled(
            CounterMetricFamily("darkroom_notices", "Verdicts told to others, or not.", labels=["outcome"]),
            {"told": report.told, "untold": report.untold},
        )
        yield _labelled(
            GaugeMetricFamily("darkroom_memory_bytes", "Memory of the machine in use.", labels=["process"]),
            {"daemon": report.memory_bytes, "engine": report.engine_memory_bytes},
        )
        yield _labelled(
            GaugeMetricFamily("darkroom_memory_peak_bytes", "The same, at most so far.", labels=["process"]),
            {"daemon": report.memory_peak_bytes, "engine": report.engine_memory_peak_bytes},
        )
        yield _labelled(
            GaugeMetricFamily("darkroom_state", "1 for the state it is in.", labels=["state"]),
            {state: int(state == report.state) for state in get_args(State)},
        )
        yield _labelled(
            GaugeMetricFamily("darkroom_version_info", "Which darkroom it is.", labels=["version"]), {__version__: 1}
        )


def _labelled(family: Any, values: dict[str, int | None]) -> Any:
    for label, value in values.items():
        if value is not None:
            family.add_metric([label], value)
    return family


def _epoch(moment: str) -> float | None:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return None
