"""The spool: folders that are the queue. SPOOL's promise is kept here: no job lost, none twice, nothing half."""

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
from darkroom.spool.spool import PAUSE, Spool, Verdict, as_json, request_in
from darkroom.spool.ticket import State, Ticket

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
