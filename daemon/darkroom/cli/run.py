"""``darkroom run``: wire the daemon, let signals set a flag, and end with a contact sheet if asked."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from darkroom.cli.screen import SHOWN, Screen
from darkroom.config import Config, Log, load
from darkroom.executors import make_executor
from darkroom.logs import make_logger
from darkroom.loop import Loop
from darkroom.reload import Relay
from darkroom.spool import Spool


def run_daemon(config_file: Path | None, root: Path | None, *, once: bool, sheet: Path | None) -> int:
    """Run until stopped, or until the inbox is empty. Returns the exit code."""
    config = load(config_file, root=root)
    on_terminal = sys.stdout.isatty() and config.log.format != "json"
    screen = Screen(live=on_terminal)
    logger = Relay(_logger(config.log, on_terminal=on_terminal))

    def reread() -> Config:
        config = load(config_file, root=root)
        logger.logger = _logger(config.log, on_terminal=on_terminal)
        return config

    loop = Loop(
        config=config,
        spool=Spool(config.folders, config.limits),
        executor=make_executor(config),
        logger=logger,
        viewer=screen,
        once=once,
        reread=reread,
    )
    _obey_signals(loop)
    with screen.showing(loop.spool):
        loop.run()
    screen.say(f"{loop.work.done} done, {loop.work.failed} failed")
    if sheet is not None:
        _make_sheet(screen, sheet, logger)
    return 1 if once and loop.work.failed else 0


def _logger(log: Log, *, on_terminal: bool) -> Any:
    if on_terminal and log.format == "auto":
        # The screen shows what goes on; the log is left with what went wrong otherwise.
        log = Log(level="warning", format="console")
    return make_logger(log, silent=SHOWN if on_terminal else frozenset())


def _obey_signals(loop: Loop) -> None:
    """The first SIGTERM or SIGINT stops at the next step; the second ends the process at once.

    SIGHUP reads the configuration again before the next job; so a closed terminal does no harm.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if loop.stopping:
            os._exit(128 + number)
        loop.stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: loop.reload())


def _make_sheet(screen: Screen, sheet: Path, logger: Any) -> None:
    if not screen.pictures:
        logger.warning("sheet.empty", why="no picture was made in this run")
        return
    from darkroom.output import contact_sheet

    contact_sheet(list(screen.pictures)).save(sheet)
    logger.info("sheet.saved", path=str(sheet), pictures=len(screen.pictures))
    many = "1 picture" if len(screen.pictures) == 1 else f"{len(screen.pictures)} pictures"
    screen.say(f"contact sheet of {many}: {sheet}")
