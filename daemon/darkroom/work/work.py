"""One claimed job, from its request to its end: resolved, rendered picture by picture.

It is published when the engine has the next one, or there is none: see ``Work.publish``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from darkroom.config import Config
from darkroom.errors import (
    Cancelled,
    DarkroomError,
    DeviceGone,
    EngineDied,
    EngineStalled,
    JobError,
    RenderFailed,
    Stopped,
    StorageTrouble,
)
from darkroom.events import Alive, Ending, Event, Fallback, Finished, Loaded, Picture, Preview, Step, Warned
from darkroom.executors import Executor
from darkroom.foresight import Foresight
from darkroom.health import Health
from darkroom.inputs.collect import images_of
from darkroom.job import JobList, Request, running_order
from darkroom.page import Page
from darkroom.reading import Reader
from darkroom.spool import Spool, Ticket, timestamp
from darkroom.work.attempts import refuse_another, refuse_repeat_offender
from darkroom.work.cells import one_of_many, refuse, run_cell
from darkroom.work.opening import known, resolve
from darkroom.work.publishing import Insist, Publisher, Viewer
from darkroom.work.record import Record
from darkroom.work.sheets import JobSheet

LOOK_AROUND_S = 0.02
PROGRESS_S = 0.25


@dataclass
class Work:
    """Does jobs. ``look_around`` is called between events, a few dozen times a second at most; it raises Stopped."""

    config: Config
    reader: Reader
    spool: Spool
    executor: Executor
    health: Health
    logger: Any
    viewer: Viewer | None
    look_around: Callable[[], None]
    meanwhile: Callable[[], None]
    """Called as soon as the engine has a job, or will not get it; is to ``publish``. Raises nothing that is a job's."""
    ahead: Callable[[], None]
    """Called as the engine is all but done with a job; is to ``prepare`` the next. Raises nothing that is a job's."""
    insist: Insist
    clock: Callable[[], float] = time.monotonic
    foresight: Foresight | None = None
    """Where jobs that wait may be made along with the one that runs."""
    prepared: Record | None = None
    """The job to come, claimed while the one before it ends."""
    ended: Record | None = None
    """The job before, of which all is known, and of which nobody was told yet."""
    foreign: Exception | None = None
    """What went wrong in publishing or claiming: not the fault of the job that runs meanwhile."""
    looked_around_at: float = float("-inf")
    loaded: str | None = None
    """The model that the engine last worked with."""
    heard_at: float | None = None
    """When the engine last said something of the job that runs."""

    def __post_init__(self) -> None:
        self.publisher = Publisher(
            self.config, self.reader, self.spool, self.health, self.logger, self.viewer, self.insist
        )

    def configure(self, config: Config, reader: Reader, page: Page | None) -> None:
        """Others from the next job on."""
        self.config = self.publisher.config = config
        self.reader = self.publisher.reader = reader
        self.publisher.page = page

    @property
    def done(self) -> int:
        """How many jobs are in ``done/``."""
        return self.publisher.done

    @property
    def failed(self) -> int:
        """How many are in ``failed/``."""
        return self.publisher.failed

    def silent_s(self) -> float:
        """For how long the engine has said nothing of the job that runs; 0 while none does."""
        return 0.0 if self.heard_at is None else self.clock() - self.heard_at

    def refuse(self, ticket: Ticket) -> bool:
        """File a job that can never be done. Returns False, and does nothing, where it can be done after all."""
        record = self._record(ticket)
        try:
            if not isinstance(self._request(record), JobList):
                self._resolve(record)
        except JobError as error:
            self.publisher.publish(record, error)
            return True
        return False

    def split(self, ticket: Ticket) -> Iterator[None] | None:
        """Make jobs of a list's entries, in slices: go on until it ends. None where the ticket is a job.

        Raises StorageTrouble: the list lies in ``working/`` and is gone on with later.
        """
        record = self._record(ticket)
        found = self._request(record)
        return self._split(record, found) if isinstance(found, JobList) else None

    def do(self, ticket: Ticket) -> None:
        """From claimed to ``ended``. Raises Stopped, StorageTrouble: the job lies in ``working/`` and goes on later."""
        try:
            self._do(self._taken_up(ticket))
        except Stopped:
            self._say("job.interrupted", ticket)
            raise
        finally:
            self.heard_at = None
            _write_log(ticket)

    def _taken_up(self, ticket: Ticket) -> Record:
        """What is known of a job whose turn has come."""
        record = self.prepared
        if record is None or record.ticket is not ticket:
            return self._record(ticket)
        self.prepared = None
        record.started_at = timestamp()
        return record

    def _do(self, record: Record) -> None:
        with self._blamed(record):
            if record.state is None and record.error is None:
                found = self._request(record)
                if isinstance(found, JobList):
                    self.meanwhile()
                    for _ in self._split(record, found):
                        self._look_around_at_times()
                    return
                self._resolve(record)
            if record.error is None:
                if record.ticket.cancel_wanted():
                    raise Cancelled("The job was cancelled before its turn")
                self._render(record)
        if self.ended is not None:
            self.meanwhile()
        self.ended = record

    @contextmanager
    def _blamed(self, record: Record) -> Iterator[None]:
        """What the job is at fault for is kept as its ``error``; all else is raised."""
        try:
            yield
        except (JobError, EngineDied, EngineStalled) as caught:
            record.error = caught
        except DarkroomError:
            raise
        except Exception as bug:
            if bug is self.foreign or (isinstance(bug, OSError) and bug.errno is not None):
                raise  # not this job's; or the disk's, not ours
            message = f"darkroom itself failed on this job: {type(bug).__name__}: {bug}; please report it"
            record.error = RenderFailed(message, trace=traceback.format_exc())

    def prepare(self, ticket: Ticket) -> None:
        """All that comes before the engine, of the job whose turn is next. Raises OSError, StorageTrouble."""
        self.prepared = record = self._record(ticket)
        with self._blamed(record):
            if isinstance(self._request(record), JobList):
                return
            self._resolve(record)
            ticket.prepare_attempt()
            self.executor.announce(record.job.at(running_order(record.job)[0]))

    def unprepare(self) -> None:
        """The job to come has been claimed, and no more than that."""
        record = self.prepared
        if record is None:
            return
        with suppress(OSError, StorageTrouble):
            record.ticket.unprepare_attempt()
        self.prepared = Record(record.ticket, record.request)

    def publish(self) -> None:
        """What has ``ended``. Raises Stopped, StorageTrouble: it lies in ``working/`` and is published later."""
        record, self.ended = self.ended, None
        if record is None:
            return
        try:
            self._catch_up(record)
            self.publisher.publish(record, record.error)
        except Stopped:
            self._say("job.interrupted", record.ticket)
            _write_log(record.ticket)
            raise
        except Exception as bug:
            self.foreign = bug
            raise

    def _request(self, record: Record) -> Request | JobList:
        """What was asked for. Raises InvalidRequest."""
        return self.reader.read(record.ticket.origin.dropped, record.request)

    def _split(self, record: Record, found: JobList) -> Iterator[None]:
        ticket, entries = record.ticket, found.entries
        width = max(4, len(str(entries[-1].number)))
        files = (
            (f"{entry.number:0{width}}.json", entry.as_file(ticket.origin.name, found.defaults)) for entry in entries
        )
        plan = yield from self.spool.split(ticket, files)
        ticket.log("list.split", {"jobs": plan.entries})
        path = self.spool.publish(ticket, record.verdict_of_list(plan.folder, plan.entries))
        self.logger.info("list.split", id=ticket.id, path=str(path), jobs=plan.entries)

    def _record(self, ticket: Ticket) -> Record:
        return known(ticket, self.spool, self._say, tells_prompts=self.config.log.prompts)

    def _resolve(self, record: Record) -> None:
        """Fill every gap and put the job on record. Raises JobError."""
        request = self._request(record)
        assert isinstance(request, Request)
        if self.foresight is not None:
            request = self.foresight.seeded(record.ticket, request)
        resolve(record, request, self.reader, self.spool, tells_prompts=self.config.log.prompts)

    def _render(self, record: Record) -> None:
        """Have the missing pictures made; an engine that dies is tried again. Raises as ``do``, and JobError."""
        ticket, state = record.ticket, record.state
        assert state is not None
        if state.job.total > 1 and state.job.matrix is None and self.config.output.contact_sheet:
            record.sheet = JobSheet(ticket, state.job.total, self.logger)
        most = self.config.executor.max_attempts
        while record.missing():
            refuse_repeat_offender(ticket, most)
            number = ticket.begin_attempt()
            _write_log(ticket)
            try:
                self._run(record)
            except (Stopped, DeviceGone):
                ticket.forget_attempt(number)
                raise
            except (EngineDied, EngineStalled) as error:
                ticket.end_attempt(number, error.reason)
                self.health.update(engine_restarts=self.health.report.engine_restarts + 1)
                self._say("engine.died", ticket, level="error", attempt=number, why=error.message)
                if record.missing():
                    refuse_another(ticket, error, most)

    def _run(self, record: Record) -> None:
        """One attempt, event by event. What comes with the last picture is taken when the engine has the next job."""
        ticket, state = record.ticket, record.state
        assert state is not None
        record.model, record.failures = None, {}
        images = images_of(ticket, state.job, self.spool)
        begun = False
        try:
            for record.cell in running_order(state.job):
                if self.foresight is not None and ticket.count_attempts() == 1:  # one that failed is tried alone
                    self.executor.expect(self.foresight.companions(record.job))
                made = frozenset(record.pictures)
                with (
                    one_of_many(record.job, record.cell, record.failures),
                    closing(run_cell(self.executor, record.job, record.cell, made, images)) as events,
                ):
                    for event in events:
                        if not begun:
                            begun = True
                            self._begun(record)
                        if isinstance(event, Ending):
                            self._prepare_next(record)
                        if record.late or record.is_last(event):
                            record.late.append(event)
                        else:
                            self._take(record, event)
                        if not isinstance(event, Alive):
                            self.heard_at = self.clock()
                        if self._look_around_at_times(event) and not record.late and ticket.cancel_wanted():
                            raise Cancelled("The job was cancelled while it ran")
            refuse(record.job, record.failures)
        except DarkroomError:
            self._catch_up(record)
            raise

    def _begun(self, record: Record) -> None:
        """The engine has the job: time for the one before."""
        self.meanwhile()
        ticket, claimed = record.ticket, record.claimed
        if claimed is not None:
            self.logger.info("job.claimed", id=ticket.id, **claimed)
            record.claimed = None
        if self.viewer:
            self.viewer.claimed(ticket, record.job)
        self.heard_at = self.clock()

    def _prepare_next(self, record: Record) -> None:
        """The next cell of the job, or the next job."""
        if (cell := record.following()) is not None:
            self.executor.announce(record.job.at(cell))
            return
        try:
            self.ahead()
        except Exception as bug:
            self.foreign = bug
            raise

    def _catch_up(self, record: Record) -> None:
        """Take what came with the last picture."""
        while record.late:
            self._take(record, record.late[0])
            record.late.pop(0)

    def _look_around_at_times(self, event: Event | None = None) -> bool:
        """Where the engine is silent, or somebody asks for it, at once."""
        if not isinstance(event, Alive) and self.clock() - self.looked_around_at < LOOK_AROUND_S:
            return False
        self.looked_around_at = self.clock()
        self.look_around()
        return True

    def _take(self, record: Record, event: Event) -> None:
        ticket = record.ticket
        match event:
            case Loaded():
                known = record.loaded(event)
                self.loaded = event.model
                seconds = round(event.seconds, 3)
                fields = {"model": event.model, "seconds": seconds, "device": event.device}
                if not known:
                    self._say("model.loaded", ticket, level="info" if seconds else "debug", **fields)
            case Step():
                now = self.clock()
                record.pace.stepped(event, now)
                if now - record.progress_at >= PROGRESS_S:
                    record.progress_at = now
                    _write_log(ticket)
                    ticket.write_progress(record.progress(event))
            case Preview():
                ticket.write_preview(event.data)
            case Picture():
                begin = self.clock()
                if record.shared(event):
                    self._keep_state(record)
                file = self.insist(lambda: ticket.save_picture(event.index, event.extension, event.data))
                record.saved(event, file, self.clock() - begin)
                if event.index == 0:
                    record.thumbnail = event.thumbnail
                if record.sheet is not None:
                    record.sheet.add(event, file)
                self._say("picture.saved", ticket, level="debug", file=file, seed=event.seed)
            case Fallback():
                record.fell_back(event)
                self.health.update(fallbacks=self.health.report.fallbacks + 1)
                self._keep_state(record)
                step = {"rung": event.rung, "lossless": event.lossless, "why": event.because}
                self._say("oom.step_down", ticket, level="warning", **step)
            case Warned():
                record.warned(event)
                self._keep_state(record)
                said = {"message": event.message} if self.config.log.prompts else {}
                self._say("job.warning", ticket, level="warning", code=event.code, **said)
            case Finished():
                record.finished(event)
        if self.viewer:
            self.viewer.event(ticket, event)

    def _keep_state(self, record: Record) -> None:
        state = record.state
        assert state is not None
        self.insist(lambda: record.ticket.save_state(state))

    def _say(self, event: str, ticket: Ticket, *, level: str = "info", **fields: Any) -> None:
        """One line in the daemon's log and the same in the job's."""
        getattr(self.logger, level)(event, id=ticket.id, **fields)
        ticket.log(event, fields)


def _write_log(ticket: Ticket) -> None:
    """For those who look on. The disk's troubles are for what matters to meet."""
    with suppress(StorageTrouble):
        ticket.write_log()
