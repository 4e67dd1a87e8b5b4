"""A claimed job before the engine is woken: what its folder says of it, and its request with every gap filled."""

from __future__ import annotations

from typing import Protocol

from darkroom import strict_json
from darkroom.errors import InvalidRequest
from darkroom.inputs.collect import collect
from darkroom.job import Request, placed
from darkroom.reading import Reader
from darkroom.spool import Spool, State, Ticket
from darkroom.work.record import Record


class Say(Protocol):
    """Logs an event of a job."""

    def __call__(self, event: str, ticket: Ticket, *, level: str = "info", **fields: str) -> None:
        """With its fields."""


def known(ticket: Ticket, spool: Spool, say: Say, *, tells_prompts: bool) -> Record:
    """What is known of a job so far, from its folder. Raises StorageTrouble."""
    try:
        request = spool.read_request(ticket)
    except OSError as error:
        # Claimed, yet unreadable: somebody replaced it in the last moment. An empty request says the rest.
        say("job.unreadable", ticket, why=str(error))
        request = b""
    record = Record(ticket, request, ticket.state())
    if record.state is not None:
        record.started_at = record.state.started_at
        for index, path in ticket.pictures().items():
            if not record.found(index, path):
                say("picture.damaged", ticket, level="warning", file=path.name)
        if not ticket.log_size():
            _claimed(record, tells_prompts)  # ahead of its turn, by a daemon that did not live to say so
    return record


def resolve(record: Record, request: Request, reader: Reader, spool: Spool, *, tells_prompts: bool) -> None:
    """Collect its pictures, fill every gap and put the job on record. Raises JobError, OSError, StorageTrouble."""
    ticket = record.ticket
    try:
        found = collect(ticket, request, spool)
        found.refuse(others=lambda: reader.lone_faults(request))
        job = reader.resolve(request, ticket.id, found.given)
    except InvalidRequest as error:
        raise placed(error, record.request or b"", reader.presets, request.preset) from None
    record.state = State(job=job, started_at=record.started_at)
    ticket.save_state(record.state)
    _claimed(record, tells_prompts)


def _claimed(record: Record, tells_prompts: bool) -> None:
    """To be said in the daemon's log when its turn comes."""
    ticket, job = record.ticket, record.job
    said = {"prompt": strict_json.shown(job.prompt)} if tells_prompts else {}
    record.claimed = {"name": ticket.name, "model": job.model, "seed": job.seed, "count": job.total, **said}
    ticket.log("job.claimed", record.claimed)
