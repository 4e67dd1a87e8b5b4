"""The spool: folders that are the queue. SPOOL's promise is kept here: no job lost, none twice, nothing half."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from darkroom.spool.disk import Call, Disk
from darkroom.spool.fingerprint import Fingerprint
from darkroom.spool.folders import DROPPED, owner
from darkroom.spool.inbox import (
    MAX_FOLDER_DEPTH,
    Arrival,
    Oddity,
    fingerprint,
    is_candidate,
    look_at,
    read,
)
from darkroom.spool.lock import holder, is_held
from darkroom.spool.names import (
    JOBS_OF_FOLDERS,
    KINDS,
    PUBLISHED,
    is_job,
    is_picture,
    is_plain,
    is_temporary,
    is_urgent,
    new_id,
    published_name,
    request_name,
    slug,
    timestamp,
)
from darkroom.spool.results import OF_LIST, is_of_list, results
from darkroom.spool.spool import PAUSE, Spool, request_in
from darkroom.spool.ticket import Ticket

if TYPE_CHECKING:
    from darkroom.spool.state import State
    from darkroom.spool.verdict import Verdict, as_json

_BRING_JOBS = {"State": "state", "Verdict": "verdict", "as_json": "verdict"}
"""Names, and the modules that hold them, which bring the types of jobs: a tenth of a second that `status` can save."""

__all__ = [
    "DROPPED",
    "JOBS_OF_FOLDERS",
    "KINDS",
    "MAX_FOLDER_DEPTH",
    "OF_LIST",
    "PAUSE",
    "PUBLISHED",
    "Arrival",
    "Call",
    "Disk",
    "Fingerprint",
    "Oddity",
    "Spool",
    "State",
    "Ticket",
    "Verdict",
    "as_json",
    "fingerprint",
    "holder",
    "is_candidate",
    "is_held",
    "is_job",
    "is_of_list",
    "is_picture",
    "is_plain",
    "is_temporary",
    "is_urgent",
    "look_at",
    "new_id",
    "owner",
    "published_name",
    "read",
    "request_in",
    "request_name",
    "results",
    "slug",
    "timestamp",
]


def __getattr__(name: str) -> Any:
    """Those are loaded by who asks for them."""
    if name not in _BRING_JOBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_BRING_JOBS[name]}"), name)
