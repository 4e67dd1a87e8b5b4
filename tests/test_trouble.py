"""Waiting out what is wrong with the machine, by a clock of the test's own."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import pytest

from conftest import Lines
from darkroom.errors import DeviceGone, StorageTrouble
from darkroom.trouble import LONGEST_PAUSE_S, Trouble


@dataclass
class Days:
    """A clock that moves where somebody rests, and what was said and slept."""

    now: float = 0.0
    told: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    log: Lines = field(default_factory=Lines)

    def rest(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def trouble(self) -> Trouble:
        return Trouble(self.log, self.told.append, self.rest, 1.0, lambda: self.now)


FULL = StorageTrouble("the disk is full")
GONE = DeviceGone("the GPU is gone")


def test_each_wait_is_twice_the_one_before_up_to_half_a_minute_and_then_all_begins_anew() -> None:
    days = Days()
    trouble = days.trouble()
    failures = [FULL] * 7

    def operation() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert trouble.insist(operation) == "done"
    assert days.slept == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert days.told == ["the disk is full"] * 7
    assert days.log.events() == ["spool.trouble", "spool.trouble_over"], "the same is said once"
    failures[:] = [FULL]
    trouble.insist(operation)
    assert days.slept[-1] == 1.0


def test_what_goes_well_while_it_is_too_early_proves_nothing() -> None:
    days = Days()
    trouble = days.trouble()
    trouble.pause(FULL)
    trouble.over()
    assert trouble.why == "the disk is full"
    assert trouble.waits()
    days.now = 1.0
    assert not trouble.waits()
    trouble.over()
    assert trouble.why is None


def test_only_a_job_on_the_device_proves_that_it_is_back_whatever_else_went_wrong_meanwhile() -> None:
    days = Days()
    trouble = days.trouble()
    trouble.pause(GONE)
    trouble.pause(FULL)
    days.now = 60.0
    trouble.over()
    assert trouble.why == "the disk is full"
    trouble.over(device=True)
    assert trouble.why is None
    assert days.log.events() == ["device.gone", "spool.trouble", "device.back"]


def test_what_vanished_is_not_waited_for() -> None:
    days = Days()

    def operation() -> None:
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(FileNotFoundError):
        days.trouble().insist(operation)
    assert days.slept == []
