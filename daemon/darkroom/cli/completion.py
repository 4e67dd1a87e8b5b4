"""Names of jobs, for the shell's Tab key. Whatever is wrong, there is nothing to complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from darkroom.spool import Spool


def complete_unended(context: typer.Context, incomplete: str) -> list[str]:
    """Jobs that wait or run."""
    from darkroom.cli.control import running, waiting

    def names(spool: Spool) -> list[str]:
        return [*(name for name, _ in waiting(spool)), *(ticket.name for ticket in running(spool))]

    return _complete(context, incomplete, names)


def complete_failed(context: typer.Context, incomplete: str) -> list[str]:
    """Jobs that failed."""
    from darkroom.cli.control import failed_jobs

    return _complete(context, incomplete, failed_jobs)


def complete_known(context: typer.Context, incomplete: str) -> list[str]:
    """Jobs that run, and the last that ended."""
    from darkroom.cli.control import running
    from darkroom.health import read

    def names(spool: Spool) -> list[str]:
        health = read(spool.root)
        ended = [recent.name for recent in health.recent] if health is not None else []
        return [ticket.name for ticket in running(spool)] + ended

    return _complete(context, incomplete, names)


def _complete(context: typer.Context, incomplete: str, names: Callable[[Spool], Iterable[str]]) -> list[str]:
    from darkroom.cli.status import existing_spool
    from darkroom.errors import DarkroomError

    config, root = context.params.get("config"), context.params.get("root")
    try:
        spool = existing_spool(config and Path(config), root and Path(root))
        return sorted({name for name in names(spool) if name.startswith(incomplete)})
    except (DarkroomError, OSError):
        return []
