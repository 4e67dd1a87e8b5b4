"""Intake: from files dropped in the inbox to arrivals that are whole. Events wake it, a scan decides."""

from darkroom.intake.candidate import Needs
from darkroom.intake.guard import Guard
from darkroom.intake.intake import Intake
from darkroom.intake.wake import Waker

__all__ = ["Guard", "Intake", "Needs", "Waker"]
