"""What is known of a file that waits in the inbox."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from darkroom.spool import Arrival, Fingerprint


class Needs(NamedTuple):
    """What is to be known of a job before its turn.

    ``pictures`` are those that it begins with, by their names in the inbox, files that are not there yet included.
    """

    pictures: tuple[str, ...]
    arrived: bool
    """Whether all is there, wherever it is to lie, and whole."""
    hopeless: bool = False
    """Whether the job can never be done, for whatever reason."""
    is_list: bool = False
    """Whether it is no job but a list of them, which is to be split before what arrived later has its turn."""
    pictured: bool = True
    """Whether it begins with pictures at all, wherever they lie."""
    model: str | None = None


class Is(Enum):
    """What is known of a waiting file."""

    NEW = auto()
    READY = auto()
    LIST = auto()
    UNFINISHED = auto()
    """Not whole, or a picture that it begins with is not: hopeless when the settle time has passed."""
    RESTING = auto()
    """To be examined anew when nothing has changed around it for a while: more of it may be on its way."""
    BESIDE = auto()
    """A picture that a job begins with, and no job."""
    HOPELESS = auto()
    UNREADABLE = auto()
    """Or not to be moved out of the inbox: tried again later."""


@dataclass(slots=True, eq=False)
class Candidate:
    """A file that waits. ``since``: when its present content was first seen, in monotonic seconds."""

    arrival: Arrival
    since: float
    scan: int
    """The number of the last scan that saw it."""
    state: Is = Is.NEW
    retry_at: float = 0.0
    queue: str = ""
    """In which order it stands."""
    model: str | None = None
    """Which it needs, as far as is known."""
    needs: Needs | None = None
    seen: tuple[Fingerprint | None, ...] = ()
    """The pictures that it begins with, as they were when it was examined."""

    @property
    def name(self) -> str:
        """Relative to the inbox."""
        return self.arrival.name

    @property
    def waits(self) -> bool:
        """Whether time alone decides about it."""
        return self.state is Is.UNFINISHED or self.state is Is.RESTING
