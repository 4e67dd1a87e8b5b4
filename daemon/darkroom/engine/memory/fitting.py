"""The plan one job is made by: chosen from what is free and what was learnt, stepped down, and remembered.

All the rules of memory meet here, still without torch: what the engine measures comes in as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.need import DOUBT, Need, first_plan, largest_size
from darkroom.engine.memory.plan import Ladder, MemoryPlan, Phase, Rung, between, foot, step_down
from darkroom.engine.memory.underway import Death


@dataclass
class Fitting:
    """One job's. ``room`` tells the bytes that model and job may have together now; None where that is not known."""

    full: MemoryPlan
    """What is made where memory is no object."""
    ladder: Ladder
    need: Need
    room: Callable[[], int | None]
    learned: Learned
    key: str
    """Card, driver, model, size and batch: what was learnt holds for the same."""
    plan: MemoryPlan = field(init=False)
    _news: bool = field(init=False, default=True)
    """Whether what fits in the end is to be remembered: not where that is what chose it, nor all of it at once."""
    _room: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.plan = self.full

    def begin(self, death: Death | None = None, unloaded: str | None = None) -> Iterator[tuple[Rung, str]]:
        """Choose the first plan. Yields each rung that it is below the full one, and why.

        ``death`` is how the attempt before ended, ``unloaded`` why the model could not be loaded whole, if so.
        """
        self._room = self.room()
        if death is not None and death.plan is not None:
            self.plan = self.full.like(death.plan)  # how it came to that is on record
        else:
            yield from self._from_experience()
        if unloaded is not None and self.plan.weights == "resident":
            yield self._offload(), unloaded
        if death is not None:
            yield from self._after(death)

    def step_down(self, phase: Phase | None) -> Rung | None:
        """The next smaller plan, memory having run out in ``phase``; None where there is none."""
        found = step_down(self.plan, self.ladder, phase)
        if found is None:
            return None
        self.plan, rung = found
        self._news = self._news or rung.name != "freed_memory"
        return rung

    def fits_at_once(self, most: int = 64) -> int:
        """How many pictures may be denoised at a time by the estimate, in the room that there is: 1 at least."""
        room = self.room()
        if room is None:
            return most
        return next(
            (
                pictures
                for pictures in range(most, 1, -1)
                if self.need.phases(replace(self.plan, batch=pictures))["denoise"] <= room
            ),
            1,
        )

    def fitted(self) -> None:
        """All pictures are made: the next job of the kind begins with this plan."""
        if self._news:
            self.learned.learn(self.key, self.plan, self.full, self._room)

    def remedies(self, *, weighed: bool = True) -> list[str]:
        """What would have helped, at the ladder's foot. What is needed is known of a model that was ``weighed``."""
        found = []
        room, needed = self.room(), self.need.peak(self.plan)
        if room is not None and not weighed:
            found.append(f"{gib(room)} are free, and the model could not even be read into them part by part")
        elif room is not None and needed * DOUBT <= room:
            found.append(f"about {gib(needed)} should do, and {gib(room)} are free now: did another program hold them?")
        elif room is not None:
            size = largest_size(self.plan, self.need, room, self.ladder.grain) if needed > room else None
            some = "{}×{} may fit".format(*size) if size else f"{gib(needed)} to {gib(DOUBT * needed)} are needed"
            found.append(f"{some}, and {gib(room)} are free")
        if self.ladder.on_oom == "fail":
            found.append('"on_oom": "degrade" lets the picture be made smaller')
        return found

    def _from_experience(self) -> Iterator[tuple[Rung, str]]:
        room = self._room
        known = self.learned.recall(self.key, self.full, room)
        if known.plan is not None:
            self.plan, self._news = known.plan, False
            why = "it is what fitted before on this device, for this model and size"
        else:
            # On a retry the estimate has the benefit of the doubt, so that one that is too large is found out.
            hope = DOUBT if known.retry else 1.0
            self.plan = first_plan(self.full, self.ladder, self.need, None if room is None else room * hope)
            if self.plan == self.full:
                self._news = known.retry
                return
            why = f"about {gib(self.need.peak(self.full))} are needed otherwise and {gib(room or 0)} are free"
        for rung in between(self.full, self.plan):
            yield rung, why

    def _after(self, death: Death) -> Iterator[tuple[Rung, str]]:
        """What the kernel ended is taken a rung lower, the second time as low as can be.

        A process that died otherwise is tried once more as it was: memory may have had no part in it.
        """
        if death.by_kernel is False and death.count == 1:
            return
        killer = "the kernel killed the engine's process" if death.by_kernel else "the engine's process died"
        rungs: list[Rung] = []
        self._news = True
        self.plan = replace(self.plan, alone=True)
        if death.plan is None:
            why = f"{killer} while it loaded the model"
            rungs += [self._offload()] if self.plan.weights == "resident" else []
        else:
            why = f"{killer} while it made {death.plan}"
        if death.count > 1:
            self.plan, more = foot(self.plan, self.ladder)
            rungs += more
        if death.plan is not None and (death.by_kernel or not rungs):
            rungs += self._further_down(death)
        for rung in rungs:
            yield rung, why

    def _further_down(self, death: Death) -> list[Rung]:
        """One rung; where it may be the last attempt, as many as make a picture that should well fit."""
        room = self._room
        rungs: list[Rung] = []
        while not rungs or (death.count > 1 and room is not None and self.need.peak(self.plan) > room / DOUBT):
            ladder = self.ladder if death.by_kernel else replace(self.ladder, on_oom="fail")
            found = step_down(self.plan, ladder, death.phase)
            if found is None:
                break
            self.plan, rung = found
            rungs.append(rung)
        return rungs

    def _offload(self) -> Rung:
        self._news = True
        self.plan = replace(self.plan, weights="parts", texts="dropped", alone=True)
        return Rung("model_offload")


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
