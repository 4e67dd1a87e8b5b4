"""What people drop, of whatever kind, as a ``Request``: a job file, or a picture with its recipe inside."""

from __future__ import annotations

from darkroom.errors import FieldError, InvalidRequest
from darkroom.job import Request, parse, parse_fields
from darkroom.spool import is_picture


def read(name: str, data: bytes | None, most_bytes: int) -> Request:
    """The request in a file of that name; ``data`` is None where it has more than ``most_bytes``.

    Raises InvalidRequest; Unfinished, a kind of it, where the file may not be whole yet.
    """
    if data is None:
        key = "max_picture_bytes" if is_picture(name) else "max_job_bytes"
        fault = FieldError(f"the file is larger than {most_bytes:,} bytes", hint=f"see [limits] {key}")
        raise InvalidRequest(f"This is too large for a job: {fault}.", errors=(fault,))
    if not is_picture(name):
        return parse(data)
    from darkroom.output import job_in  # brings Pillow, which a daemon that gets no pictures need not load

    return parse_fields(job_in(data))
