"""The daemon's loop: take a job, have it done, look around, until stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.config import Config
from darkroom.errors import ConfigError, Stopped
from darkroom.executors import Executor, make_executor
from darkroom.foresight import Foresight
from darkroom.health import Health
from darkroom.health import State as HealthState
from darkroom.intake import Guard, Intake, Needs, Waker
from darkroom.reading import Reader
from darkroom.reload import needs_another_engine, settled
from darkroom.retention import Housekeeping
from darkroom.spool import Spool, Ticket, Verdict
from darkroom.systemd import Notifier
from darkroom.trouble import TROUBLE, Trouble
from darkroom.turns import Turns
from darkroom.viewers.onlookers import Onlookers
from darkroom.work.publishing import Viewer
from darkroom.work.work import Work

LONGEST_SLEEP_S = 1.0
TROUBLE_SLEEP_S = 0.5


@dataclass
class Loop:
    """All the parts, and the story of the daemon's days in ``run``."""

    config: Config
    spool: Spool
    executor: Executor
    logger: Any
    waker: Waker = field(default_factory=Waker)
    viewer: Viewer | None = None
    once: bool = False
    reread: Callable[[], Config] | None = None
    """Reads the configuration again, for ``reload``. Raises ConfigError."""
    make_executor: Callable[[Config], Executor] = make_executor
    first_pause_s: float = 1.0
    """How long the first wait for a disk in trouble is."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.stopping = False
        self._reload_wanted = False
        self.health = Health(self.spool.root, self.spool.disk, self.clock)
        self.notifier = Notifier()
        self.trouble = Trouble(self.logger, self._paused, self._rest, self.first_pause_s, self.clock)
        self.guard = Guard(self.spool, self.logger, self._hint, self.clock)
        self.onlookers = Onlookers(self.config, self.spool, self.health, self.logger, self.viewer, self.clock)
        reader = Reader(self.config, self.spool.inbox)
        self.work = Work(
            config=self.config,
            reader=reader,
            spool=self.spool,
            executor=self.executor,
            health=self.health,
            logger=self.logger,
            viewer=self.onlookers.audience,
            look_around=self._look_around,
            meanwhile=self._meanwhile,
            ahead=self._ahead,
            insist=self.trouble.insist,
            clock=self.clock,
        )
        self.intake = Intake(
            self.spool,
            judge=self._judge,
            report=self._report_left,
            settle_s=0.0,
            rescan_s=0.0,
            clock=self.clock,
        )
        self.turns = Turns(
            spool=self.spool,
            intake=self.intake,
            guard=self.guard,
            trouble=self.trouble,
            health=self.health,
            work=self.work,
            logger=self.logger,
            publish=self._publish,
            rest=self._rest_from_work,
            report_published=self._report_published,
            clock=self.clock,
        )
        self._configure(self.config, reader)

    def _configure(self, config: Config, reader: Reader) -> None:
        """What may change while the daemon runs, but for the engine."""
        self.config = config
        self.spool.limits = config.limits
        times = config.intake
        if self.guard.local:
            self.intake.configure(times.settle_s, times.rescan_s)
        else:
            self.intake.configure(times.network_settle_s, times.network_rescan_s)
        self.intake.arrange(fair=times.fair, affinity_max_wait_s=times.affinity_max_wait_s)
        self.housekeeping = Housekeeping(self.spool, config.retention, self.logger, self.clock)
        self.onlookers.configure(config)
        self.work.configure(config, reader, self.onlookers.page)
        self.work.foresight = (
            Foresight(self.spool, self.intake, config, reader) if config.engine.batch_across_jobs else None
        )

    # The story

    def run(self) -> None:
        """Work until stopped, or with ``once`` until nothing is left. Raises ConfigError, SpoolInUse."""
        try:
            self.trouble.insist(self.spool.open)
        except Stopped:
            return
        try:
            self.startup()
            self.main_loop()
        finally:
            self.shutdown()

    def stop(self) -> None:
        """Ask to stop at the next step; safe in a signal handler."""
        self.stopping = True
        self._wake()

    def reload(self) -> None:
        """Ask to read the configuration again before the next job; safe in a signal handler."""
        self._reload_wanted = True
        self._wake()

    def startup(self) -> None:
        """Watch the inbox, say that we are ready."""
        self._make_hot_folders()
        self.guard.start()
        self.onlookers.start()
        self.logger.info("daemon.ready", root=str(self.spool.root), notifications=self.guard.notified)
        self._turn("idle")
        self.notifier.ready()
        self.executor.start()

    def _make_hot_folders(self) -> None:
        with suppress(Stopped):
            self.trouble.insist(lambda: self.spool.make_hot_folders(self.work.reader.presets))

    def main_loop(self) -> None:
        """Tick, take, work; sleep where there is nothing to take."""
        while not self.stopping and self.step():
            continue
        self._publish()

    def step(self) -> bool:
        """One job, or one sleep. Returns False where nothing is left and nothing more is waited for.

        A job that ended is published when the engine has the next one: the engine is not to wait for the disk.
        """
        if self._reload_wanted:
            self._publish()
            self._reload()
        busy = False
        if self.work.ended is None:
            self.tick()
            busy = self._keep_house()
        ticket = self.turns.next()
        if ticket is not None:
            self._work_on(ticket)
        elif self.work.ended is not None:
            self._publish()
        elif self.once and not busy and self.turns.nothing_left():
            return False
        elif not busy:
            self._sleep()
        return True

    def shutdown(self) -> None:
        """End the engine, let go of the spool."""
        self.notifier.stopping()
        self._turn("stopping")
        self.work.unprepare()
        self.executor.close()
        self.guard.stop()
        self.onlookers.finish()
        self._say_what_is_left()
        self.health.update(engine_pid=None)
        self._turn("stopped")
        self.health.write(now=True)
        self.onlookers.close()
        self.logger.info("daemon.stopped", done=self.work.done, failed=self.work.failed)
        self.spool.close()

    def tick(self) -> None:
        """What must go on even while a job is rendered: refuse hopeless files, watch the inbox, feed the watchdog."""
        self._feed_the_watchdog()
        if self.guard.check():
            self.intake.hint()
        if self.guard.trouble is None:
            try:
                self.intake.look()
            except OSError as error:
                self.guard.unreadable(error)
            if self.intake.unannounced:
                self._watch_anew()
            self._say_what_is_left()
        news = self.intake.has_news or self.turns.lists
        if news and self.turns.recovered and not self.trouble.waits() and not self.spool.paused():
            try:
                self.turns.refuse()
            except TROUBLE as trouble:
                self.trouble.pause(trouble)
        self.health.update(waiting=self.turns.waiting, engine_pid=self.executor.pid)
        self.health.write()
        if not self.trouble.waits():
            self.onlookers.keep_up()

    def _say_what_is_left(self) -> None:
        left = self.intake.left
        self.health.update(left=len(left), left_why=next((f"{name}: {why}" for name, why in left.items()), None))

    def _feed_the_watchdog(self) -> None:
        """Not while the engine hangs: that is ours to end, at ``stall_s``, and if we cannot then systemd ends us both.

        The last ping is early enough for us to have had our turn, and no earlier than that takes.
        """
        stall_s = self.config.engine.stall_s
        margin_s = (self.notifier.watchdog_s or 0.0) / 2
        if self.work.silent_s() <= max(stall_s / 2, stall_s - margin_s):
            self.notifier.watchdog()

    def _watch_anew(self) -> None:
        missed, self.intake.unannounced = self.intake.unannounced, 0
        if self.guard.notified:
            self.health.update(missed_events=self.health.report.missed_events + missed)
            self.guard.missed(missed)

    # Another configuration

    def _reload(self) -> None:
        """Between two jobs. A configuration with a fault is refused as a whole, and the old one stays."""
        self._reload_wanted = False
        if self.reread is None:
            return
        self.notifier.reloading()
        error = None
        try:
            new, waiting = settled(self.config, self.reread())
            reader = Reader(new, self.spool.inbox)
        except ConfigError as fault:
            error = fault.message
            self.logger.error("config.refused", why=error)
        else:
            another_engine = needs_another_engine(self.config, new)
            self.work.unprepare()
            self._configure(new, reader)
            self._make_hot_folders()
            if another_engine:
                self.executor.close()
                self.executor = self.work.executor = self.make_executor(new)
                self.executor.start()
            self.logger.info("config.reloaded", another_engine=another_engine)
            if waiting:
                error = f"[{'], ['.join(waiting)}] changed, which takes a restart of the daemon"
                self.logger.warning("config.waits", why=error)
        self.health.update(config_error=error)
        self.notifier.ready(f"{self.health.report.state}; configuration: {error or 'reloaded'}")

    # Working

    def _rest_from_work(self, state: HealthState, why: str | None = None, *, trouble: bool = False) -> None:
        """Not before what has ended is published."""
        self._publish()
        self._turn(state, why, trouble=trouble)

    def _report_published(self, path: Path, verdict: Verdict) -> None:
        """An earlier daemon had written the verdict and did not live to publish it."""
        self.logger.info("job.published", id=verdict.result.id, path=str(path))
        self.onlookers.published(verdict, path)

    def _judge(self, name: str, data: bytes | None) -> Needs:
        return self.work.reader.judge(name, data)

    def _report_left(self, name: str, why: str) -> None:
        self.logger.warning("inbox.left", name=name, why=why)

    def _work_on(self, ticket: Ticket) -> None:
        self.health.update(job=ticket.id)
        self._turn("working")
        try:
            self.work.do(ticket)
            self.trouble.over(device=True)
        except TROUBLE as trouble:
            self.turns.put_back(ticket, trouble)
        except Stopped:
            pass  # it lies in working/ and goes on later
        finally:
            self.health.update(job=None)

    def _publish(self) -> None:
        """The job that has ended, if it is not published yet."""
        record = self.work.ended
        if record is None:
            return
        try:
            self.work.publish()
        except TROUBLE as trouble:
            self.turns.put_back(record.ticket, trouble)
        except Stopped:
            pass  # it lies in working/ and is published later

    def _meanwhile(self) -> None:
        """While the engine is at a job, what waited for that."""
        self._publish()
        self._keep_house()

    def _ahead(self) -> None:
        """While the engine ends a job, the next one is made ready."""
        if not (self.stopping or self._reload_wanted):
            self.turns.ahead()

    def _keep_house(self) -> bool:
        """Whether there is more of it to do now."""
        return self.trouble.why is None and self.housekeeping.work()

    def _look_around(self) -> None:
        self.tick()
        if self.stopping:
            raise Stopped("stopping")

    # Waiting

    def _hint(self, path: str | None) -> None:
        self.intake.hint(path)
        self._wake()

    def _wake(self) -> None:
        """Out of a sleep, or out of waiting for the engine."""
        self.waker.wake()
        self.executor.nudge()

    def _sleep(self) -> None:
        if self.trouble.why or self.guard.trouble or self.spool.paused():
            self.waker.wait(min(TROUBLE_SLEEP_S, self.trouble.pause_s or TROUBLE_SLEEP_S))
        elif not self.turns.lists:
            self.waker.wait(min(self.intake.wait_s(), self.onlookers.wait_s(), LONGEST_SLEEP_S))

    # Trouble with the machine

    def _paused(self, why: str) -> None:
        self.turns.start_over()
        self._turn("paused", why, trouble=True)

    def _rest(self, seconds: float) -> None:
        """In the middle of something. Raises Stopped."""
        if self.stopping:
            raise Stopped("stopping")
        self.notifier.watchdog()
        self.notifier.waiting()
        self.health.write()
        self.waker.wait(min(LONGEST_SLEEP_S, seconds))

    def _turn(self, state: HealthState, why: str | None = None, *, trouble: bool = False) -> None:
        if self.health.turn(state, why, trouble=trouble):
            self.notifier.status(f"{state}: {why}" if why else state)
            if why is not None:
                self.logger.warning("daemon.paused", why=why)
            self.onlookers.audience.state(state, why)
        self.health.write()
