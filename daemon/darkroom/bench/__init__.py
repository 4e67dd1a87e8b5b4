"""``darkroom bench``: darkroom beside what it is to be compared with, in turns in one process.

Machines are noisy, and no two are alike: what counts are ratios of things done in turns. Each module measures one thing
and returns its figures, which JSON can hold: ``spool``, ``publish``, ``start``, ``engine``.
"""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told how much is done, of how much."""
