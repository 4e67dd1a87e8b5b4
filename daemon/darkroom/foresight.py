"""Which jobs of those that wait may be denoised with the one that runs. They are looked at, and stay where they are."""

from __future__ import annotations

from collections.abc import Iterator

from darkroom.config import Config
from darkroom.errors import DarkroomError
from darkroom.inputs.sources import has_pictures
from darkroom.intake import Intake
from darkroom.job import Job, JobList, Request
from darkroom.job.together import go_together, is_plain
from darkroom.reading import Reader
from darkroom.spool import Arrival, Spool, Ticket

LOOKED_AT = 4
"""Of so many times ``max_batch`` jobs that wait each is looked at."""

Key = tuple[str, int, int, int, int]
"""A file of the inbox and its present content: name, inode, size, and both of its times."""


class Foresight:
    """Resolves jobs before their turn. One that asked for no seed has the one that was chosen here when it comes."""

    def __init__(self, spool: Spool, intake: Intake, config: Config, reader: Reader) -> None:
        self._spool = spool
        self._intake = intake
        self._config = config
        self._reader = reader
        self._seen: dict[Key, Job | None] = {}

    def companions(self, job: Job) -> list[Job]:
        """Those next in order that go with ``job``, as many as two batches hold. None while the daemon is paused."""
        most = self._config.engine.max_batch
        if not is_plain(job) or self._is_flow(job) or self._spool.paused():
            return []
        found: list[Job] = []
        for other in self._upcoming(LOOKED_AT * most):
            if sum(one.count for one in found) >= 2 * most:
                break
            if go_together(job, other):
                found.append(other)
        return found

    def seeded(self, ticket: Ticket, request: Request) -> Request:
        """The request of a job whose turn has come, with the seed that was foreseen for it, if any was."""
        origin = ticket.origin
        key = (origin.dropped, origin.inode, origin.size, origin.mtime_ns, origin.ctime_ns)
        job = self._seen.get(key)
        if job is None or (request.seed is not None and request.seed >= 0):
            return request
        return request.model_copy(update={"seed": job.seed})

    def _upcoming(self, most: int) -> Iterator[Job]:
        """Those that can be resolved. What was seen is known until it waits no longer."""
        before, self._seen = self._seen, {}
        arrivals = self._intake.upcoming(most)
        keys = [_key(arrival) for arrival in arrivals]
        self._seen = {key: before[key] for key in keys if key in before}
        for key, arrival in zip(keys, arrivals, strict=True):
            if key not in self._seen:
                self._seen[key] = self._look(arrival)
            job = self._seen[key]
            if job is not None:
                yield job

    def _look(self, arrival: Arrival) -> Job | None:
        try:
            request = self._reader.read(arrival.dropped, self._spool.read(arrival.path))
            if isinstance(request, JobList) or has_pictures(request):
                return None
            job = self._reader.resolve(request, "foreseen")
        except (OSError, DarkroomError):
            return None  # its own turn is to say why
        return job if is_plain(job) else None

    def _is_flow(self, job: Job) -> bool:
        model = self._reader.catalog.get(job.model)
        return model is None or model.flow is not None


def _key(arrival: Arrival) -> Key:
    seen = arrival.fingerprint
    return (arrival.dropped, seen.inode, seen.size, seen.mtime_ns, seen.ctime_ns)
