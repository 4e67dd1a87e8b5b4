"""``darkroom status``: what the folders say, and what the daemon last said of itself."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from darkroom.config import load
from darkroom.errors import UsageError
from darkroom.health import read as read_health
from darkroom.spool import Spool, holder, is_held


def show_status(config_file: Path | None, root: Path | None, *, as_json: bool) -> None:
    """Print it. Raises UsageError where there is no spool."""
    status = gather(existing_spool(config_file, root))
    if as_json:
        print(json.dumps(status, ensure_ascii=False))
    else:
        _show(status)


def existing_spool(config_file: Path | None, root: Path | None) -> Spool:
    """The spool of the config, which a daemon has made. Raises UsageError where there is none."""
    config = load(config_file, root=root)
    spool = Spool(config.folders, config.limits)
    if not spool.inbox.is_dir():
        raise UsageError(f"there is no spool at {spool.root}: `darkroom run` makes one; --root names another")
    return spool


def gather(spool: Spool) -> dict[str, Any]:
    """Everything there is to say, as one object that JSON can hold."""
    running = is_held(spool.working)
    health = read_health(spool.root)
    return {
        "root": str(spool.root),
        "running": running,
        "holder": holder(spool.working) if running else None,
        "paused": spool.paused(),
        "daemon": asdict(health) if health is not None else None,
        "waiting": spool.waiting(),
        "working": _working(spool.working),
        "done": _count(spool.done),
        "failed": _count(spool.failed),
        "free_bytes": spool.free_bytes(),
    }


def _count(base: Path) -> int:
    """Published results, those in groups too."""
    total = 0
    if not base.is_dir():
        return 0
    with os.scandir(base) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            total += 1 if Path(entry.path, "result.json").exists() else _count(Path(entry.path))
    return total


def _working(working: Path) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    if not working.is_dir():
        return jobs
    for folder in sorted(working.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        job: dict[str, Any] = {"id": folder.name}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            job["fallbacks"] = json.loads((folder / "job.json").read_bytes())["fallbacks"]
        with contextlib.suppress(OSError, ValueError):
            job |= json.loads((folder / "progress.json").read_bytes())
        jobs.append(job)
    return jobs


def _show(status: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    daemon = status["daemon"]
    state = daemon["state"] if status["running"] and daemon else "not running"
    colour = {"idle": "green", "working": "green", "paused": "yellow"}.get(state, "red")
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]darkroom[/bold]", f"[{colour}]{state}[/{colour}]")
    if status["running"] and daemon and daemon["why"]:
        table.add_row("", escape(daemon["why"]))
    elif status["paused"]:
        table.add_row("", "paused: `darkroom resume` goes on")
    table.add_row("spool", escape(status["root"]))
    table.add_row("waiting", str(status["waiting"]))
    for job in status["working"]:
        progress = f"picture {job['picture']} of {job['pictures']}, step {job['step']} of {job['steps']}"
        table.add_row("working", f"{escape(job.get('name', job['id']))}  {progress}" if "step" in job else job["id"])
        for fallback in job.get("fallbacks", []):
            table.add_row("", f"[yellow]↓[/yellow] {escape(fallback['rung'])}: {escape(fallback['because'])}")
    table.add_row("done", str(status["done"]))
    table.add_row("failed", f"[red]{status['failed']}[/red]" if status["failed"] else "0")
    table.add_row("free space", f"{status['free_bytes'] / 2**30:.1f} GiB")
    Console(highlight=False).print(table)
