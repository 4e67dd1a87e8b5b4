"""How often a job is tried: an engine that dies or hangs over it is started anew, a few times."""

from __future__ import annotations

from darkroom.errors import EngineDied, EngineKilled, EngineStalled, OutOfMemory
from darkroom.spool import Ticket

MAX_INTERRUPTED = 100
"""A job whose attempts the daemon itself did not survive this often is taken to be the reason."""


def refuse_repeat_offender(ticket: Ticket, most: int) -> None:
    """Before an attempt: what earlier daemons lived through with this job counts. Raises EngineDied, EngineStalled."""
    attempts = ticket.attempts()
    deaths = [attempt.ended for attempt in attempts if attempt.ended is not None]
    if len(deaths) >= most:
        kind = EngineStalled if deaths[-1] == "engine-stalled" else EngineDied
        raise kind(f"The engine ended {len(deaths)} times on this job; the daemon ended before it could say so")
    cut_short = len(attempts) - len(deaths)
    if cut_short >= MAX_INTERRUPTED:
        raise EngineDied(f"The daemon itself ended {cut_short} times while it worked on this job")


def refuse_another(ticket: Ticket, error: EngineDied | EngineStalled, most: int) -> None:
    """After one that ended so: raises EngineDied, EngineStalled or OutOfMemory where it was the last."""
    deaths = sum(attempt.ended is not None for attempt in ticket.attempts())
    if deaths < most:
        return
    message = f"{error.message}; this was attempt {deaths}, the last"
    if isinstance(error, EngineKilled):
        message += ": ask for a smaller picture, or give darkroom more memory"
        raise OutOfMemory(message, trace=error.trace) from None
    raise type(error)(message, trace=error.trace) from None
