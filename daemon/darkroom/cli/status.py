"""``darkroom status``: what the folders say, and what the daemon last said of itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typer import echo, style

from darkroom.cli.units import age, ago, clock, duration, size
from darkroom.config import load
from darkroom.errors import UsageError
from darkroom.health import LOST_S, Report
from darkroom.health import read as read_health
from darkroom.spool import Spool, Ticket, holder, is_held, is_of_list, results
from darkroom.visible import visible

WATCH_S = 1.0
INDENT = 12
"""Where the second column begins."""
COUNTING = 10
"""What lies in the folders is counted anew at most so often that it takes a tenth of the time."""


def show_status(config_file: Path | None, root: Path | None, *, as_json: bool, watch: bool = False) -> None:
    """Print it, once or until Ctrl-C. Raises UsageError where there is no spool."""
    spool = existing_spool(config_file, root)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(spool, as_json)
    elif as_json:
        print(json.dumps(gather(spool), ensure_ascii=False))
    else:
        echo(table(gather(spool)), file=sys.stdout, color=_has_colours())


def existing_spool(config_file: Path | None, root: Path | None) -> Spool:
    """The spool of the config, which a daemon has made. Raises UsageError where there is none."""
    config = load(config_file, root=root)
    spool = Spool(config.folders, config.limits)
    if not spool.inbox.is_dir():
        if spool.working.is_dir():
            raise UsageError(f"the inbox {spool.inbox} is gone; make it again, or mount it, to go on")
        raise UsageError(f"there is no spool at {spool.root}: `darkroom run` makes one; --root names another")
    return spool


# What there is


def gather(spool: Spool, counts: dict[str, int] | None = None) -> dict[str, Any]:
    """Everything there is to say, as one object that JSON can hold. ``counts`` saves the counting of files."""
    health = read_health(spool.root)
    running = is_held(spool.working) or _lives_elsewhere(health)
    ahead, working = _claimed(spool)
    counted = counts or count(spool)
    return {
        "root": str(spool.root),
        "running": running,
        "holder": holder(spool.working) if running else None,
        "paused": spool.paused(),
        "daemon": asdict(health) if health is not None else None,
        **counted,
        "waiting": counted["waiting"] + len(ahead),
        "next": ahead,
        "working": working,
        "free_bytes": spool.free_bytes(),
        "min_free_bytes": spool.limits.min_free_bytes,
    }


def count(spool: Spool) -> dict[str, int]:
    """How many jobs lie in the folders: a list is none, as in the daemon's counters."""

    def published(base: Path) -> int:
        return sum(not is_of_list(*each) for each in results(base)) if base.is_dir() else 0

    return {"waiting": spool.waiting(), "done": published(spool.done), "failed": published(spool.failed)}


def _lives_elsewhere(health: Report | None) -> bool:
    """A lock is not seen on every share; then a daemon on another machine is told by its heartbeat."""
    if health is None or health.host == socket.gethostname() or health.state == "stopped":
        return False
    return health.age_s() < LOST_S


def _claimed(spool: Spool) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of jobs that were claimed ahead of their turn, and so wait; and all there is to say of the others."""
    ahead: list[str] = []
    jobs: list[dict[str, Any]] = []
    for folder in sorted(spool.working.iterdir()) if spool.working.is_dir() else ():
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        job: dict[str, Any] = {"id": folder.name}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            job["fallbacks"] = json.loads((folder / "job.json").read_bytes())["fallbacks"]
        with contextlib.suppress(OSError, ValueError):
            job |= json.loads((folder / "progress.json").read_bytes())
        with contextlib.suppress(OSError):
            if (ticket := Ticket.load(folder, spool.disk)) is not None:
                job.setdefault("name", ticket.name)
                if "step" not in job and not ticket.is_begun:
                    ahead.append(ticket.name)
                    continue
        jobs.append(job)
    return ahead, jobs


# Watching


def _watch(spool: Spool, as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        _tell_changes(spool, as_json)
        return
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        for status in _again_and_again(spool):
            grid = Table.grid()
            grid.add_column(min_width=INDENT, no_wrap=True)
            for what, said in _rows(status):
                grid.add_row(Text(what, "bold" if what == "darkroom" else ""), Text.from_ansi(said))
            live.update(grid, refresh=True)


def _again_and_again(spool: Spool) -> Iterator[dict[str, Any]]:
    """The status once a second. A share that goes away for a while is waited for."""
    counts: dict[str, int] | None = None
    count_at = 0.0
    while True:
        with contextlib.suppress(OSError):
            begin = time.monotonic()
            if counts is None or begin >= count_at:
                counts = count(spool)
                took = time.monotonic() - begin
                count_at = begin + COUNTING * took
            yield gather(spool, counts)
        time.sleep(WATCH_S)


def _tell_changes(spool: Spool, as_json: bool) -> None:
    """For programs and files: a line each time that something is another than before."""
    said = None
    for status in _again_and_again(spool):
        line = json.dumps(status, ensure_ascii=False) if as_json else summary(status)
        if line != said:
            print(line, flush=True)
            said = line


def summary(status: dict[str, Any]) -> str:
    """All that matters in one line."""
    state, why = _state(status)
    jobs = [f"{job.get('name', job['id'])} {_progress(job)}".strip() for job in status["working"]]
    parts = [
        state + (f" ({why})" if why else ""),
        f"{status['waiting']:,} waiting" + (f" (next {status['next'][0]})" if status["next"] else ""),
        *jobs,
        f"{status['done']:,} done",
        f"{status['failed']:,} failed",
    ]
    return visible(", ".join(parts))


# For people


def table(status: dict[str, Any]) -> str:
    """All of it, in two columns, with the colours of a terminal."""
    text = "\n".join(f"{what:<{INDENT}}{said}".replace("\n", "\n" + INDENT * " ") for what, said in _rows(status))
    return text.replace("darkroom", style("darkroom", bold=True), 1)


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    daemon = status["daemon"] or {}
    state, why = _state(status)
    said = style(state, {"idle": "green", "working": "green", "paused": "yellow"}.get(state, "red"))
    if status["running"] and daemon:
        said += style(f"  for {duration(age(daemon['since']))}", dim=True)
    rows = [("darkroom", said)]
    if why:
        rows.append(("", style(visible(why), "yellow")))
    if status["running"] and daemon.get("config_error"):
        rows.append(("config", style(visible(daemon["config_error"]), "yellow")))
    following = "".join(style(f"  next {visible(name)}", dim=True) for name in status["next"][:1])
    rows += [("spool", visible(status["root"])), ("waiting", f"{status['waiting']:,}{_outlook(status)}{following}")]
    if status["running"] and daemon.get("left"):
        more = f", and {daemon['left'] - 1:,} more in the inbox" if daemon["left"] > 1 else ""
        rows.append(("left", style(visible(f"{daemon['left_why']}{more}"), "yellow")))
    for job in status["working"]:
        name = style(visible(str(job.get("name", job["id"]))), bold=True)
        rows.append(("working", f"{name}  {_progress(job)}"))
        for fallback in job.get("fallbacks", []):
            step = visible(f"{fallback['rung']}: {fallback['because']}")
            rows.append(("", f"{style('↓', 'yellow')} {step}"))
    failed = f"{status['failed']:,}"
    rows += [("done", f"{status['done']:,}"), ("failed", style(failed, "red") if status["failed"] else failed)]
    for number, recent in enumerate(daemon.get("recent", ())):
        rows.append(("last" if number == 0 else "", _verdict(recent)))
    total = daemon.get("total_bytes")
    rows.append(("free space", size(status["free_bytes"]) + (f" of {size(total)}" if total else "")))
    if status["running"]:
        rows += [(what, said) for what, said in (("memory", _memory(daemon)), ("mishaps", _mishaps(daemon))) if said]
    return rows


def _has_colours() -> bool:
    """Whether standard output is to have them, by what terminals and those who dislike colours agree on."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def _state(status: dict[str, Any]) -> tuple[str, str | None]:
    """In a word, and why."""
    daemon = status["daemon"]
    if status["running"]:
        if daemon and daemon["state"] != "paused" and status["free_bytes"] < status["min_free_bytes"]:
            # On a full disk the daemon cannot even write that it is paused.
            return daemon["state"], "less space is free than [limits] min_free_bytes keeps: no job is begun"
        return (daemon["state"], daemon["why"]) if daemon else ("starting", None)
    if status["paused"]:
        return "not running", "paused: `darkroom resume` goes on"
    if daemon and daemon["state"] != "stopped":
        return "not running", f"it ended without a word; its last sign of life was {ago(daemon['updated_at'])}"
    return "not running", None


def _outlook(status: dict[str, Any]) -> str:
    """How long what waits may take, if there is something to tell it by. A list is one file until it is split."""
    daemon = status["daemon"] or {}
    took = [recent["seconds"] for recent in daemon.get("recent", ()) if recent["status"] == "done"]
    if not status["running"] or daemon.get("state") != "working" or status["waiting"] < 2 or len(took) < 3:
        return ""
    return f", about {duration(status['waiting'] * sum(took) / len(took))} if they are as the last ones"


def _progress(job: dict[str, Any]) -> str:
    """``picture 2 of 4, step 12 of 30, 3.1 steps/s, 1:20 left``."""
    if "step" not in job:
        return ""
    parts = [f"step {job['step']} of {job['steps']}"]
    if job["pictures"] > 1:
        parts.insert(0, f"picture {job['picture']} of {job['pictures']}")
    if job.get("steps_per_s"):
        parts.append(f"{job['steps_per_s']:.1f} steps/s")
    if job.get("seconds_left") is not None:
        parts.append(f"{clock(job['seconds_left'])} left")
    return ", ".join(parts)


def _verdict(recent: dict[str, Any]) -> str:
    done = recent["status"] == "done"
    pictures = "1 picture" if recent["pictures"] == 1 else f"{recent['pictures']} pictures"
    told = f"{pictures}, {duration(recent['seconds'])}" if done else str(recent["reason"])
    mark = style("✓", "green") if done else style("✗", "red")
    return f"{mark} {visible(recent['name'])}" + style(visible(f"  {told}, {ago(recent['finished_at'])}"), dim=True)


def _memory(daemon: dict[str, Any]) -> str:
    parts = []
    for key, what in (("engine_memory", "engine"), ("memory", "daemon")):
        if daemon.get(f"{key}_bytes"):
            peak = daemon.get(f"{key}_peak_bytes")
            parts.append(f"{what} {size(daemon[f'{key}_bytes'])}" + (f" (at most {size(peak)})" if peak else ""))
    return ", ".join(parts)


def _mishaps(daemon: dict[str, Any]) -> str:
    """What went wrong and was overcome since the daemon was started."""
    names = {
        "engine_restarts": ("engine restart", "engine restarts"),
        "fallbacks": ("step down in memory", "steps down in memory"),
        "missed_events": ("missed notification", "missed notifications"),
        "untold": ("verdict that nobody could be told", "verdicts that nobody could be told"),
    }
    return ", ".join(f"{daemon[key]:,} {name[daemon[key] != 1]}" for key, name in names.items() if daemon.get(key))
