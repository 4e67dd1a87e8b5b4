"""Power loss: each way is cut at each of its calls, on a model of a disk that forgets what was not synced (fault 57).

Every state that may be found after the cut is laid out in a folder and held to the promise twice: as it is found, and
after a daemon has worked in it. Then the same with each fsync of the code left out in turn: one state at least must
break the promise, or the fsync is not needed. One that stays although no state here needs it says why at its line, in
a comment that begins ``# kept:``.

``DARKROOM_POWER_LOSS=thorough`` looks at more states, and at files that recovery does not read.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import darkroom as package
from conftest import Darkroom, Lines
from darkroom.cli.submit import _drop
from darkroom.spool import Call, Disk
from disk_model import DiskModel, Site, State, caller, digest, read_state, write_state
from test_crashes import JOB, WAYS, Crash, Engine, House, Way

PACKAGE = Path(package.__file__).parent
THOROUGH = os.environ.get("DARKROOM_POWER_LOSS") == "thorough"
MOST = 400 if THOROUGH else 40
"""Up to how many combinations of folders all are looked at."""

NOT_READ = frozenset() if THOROUGH else frozenset({"health.json", ".health.json.tmp", ".darkroom-probe"})
"""Written for people and programs, or to see whether it can be written; no recovery depends on them."""

LOCK = frozenset({".lock"})
"""Made by whoever takes the lock; its content is for people."""

BY_NAME = {way.name: way for way in WAYS}


@dataclass(frozen=True)
class Said:
    """A line of the daemon's log, said after so many calls."""

    after: int
    event: str
    fields: dict[str, Any]


@dataclass
class Record:
    """All that a way did to the disk, and what was announced on the way."""

    way: Way
    root: Path
    start: State
    contents: dict[str, str]
    """sha256 of each dropped file to its name."""
    owed: bool = True
    """Whether the files were durable before the start."""
    calls: list[Call] = field(default_factory=list)
    sites: list[Site | None] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    crash_at: int | None = None

    def observe(self, call: Call) -> None:
        """For ``Disk``."""
        if self.crash_at is not None and len(self.calls) >= self.crash_at:
            raise Crash
        self.calls.append(call)
        self.sites.append(caller() if call.name == "fsync" else None)

    def say(self, event: str, fields: dict[str, Any]) -> None:
        """For the logger."""
        if event == "job.published":
            fields = fields | {"digest": digest(read_state(Path(fields["path"])))}
            fields["path"] = Path(fields["path"]).relative_to(self.root).as_posix()
        self.said.append(Said(len(self.calls), event, fields))

    def in_flight(self) -> Iterator[bool]:
        """For each number of calls: whether a job is on its way from one folder to another, and nothing said of it."""
        news = {said.after for said in self.said if said.event in ("job.claimed", "job.published", "submitted")}
        moving = False
        yield False
        for number, call in enumerate(self.calls, 1):
            crosses = call.name == "rename" and call.target is not None and call.path.parent != call.target.parent
            moving = crosses or (moving and number not in news)
            yield moving


class Diary(Lines):
    """The daemon's log, kept in the record."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.record.say(event, fields)


@dataclass(frozen=True)
class Outcome:
    """What became of a state. ``broken`` says how it broke the promise, if it did, whatever had been announced."""

    broken: str | None = None
    found: frozenset[str] = frozenset()
    """The jobs that were found before the restart."""
    published: dict[str, str] = field(default_factory=dict)
    """Folders of results before the restart, and their digests."""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """result.json of each job by id, after the restart."""
    said: tuple[Said, ...] = ()
    """By the daemon that was started after the cut."""


class Survivor(House):
    """What is found after a cut."""

    def __init__(self, record: Record, state: State, base: Path) -> None:
        self.way = record.way
        self.impatient = False
        self.darkroom = Darkroom(Path(tempfile.mkdtemp(dir=base)) / "spool")
        self.darkroom.inbox.rmdir()
        write_state(self.darkroom.root, state)
        self.engine = Engine(self.darkroom, deaths=99 if self.way.deaths == 99 else 0)
        self.record = Record(self.way, self.darkroom.root, state, record.contents)
        self.darkroom.log = Diary(self.record)
        self.contents = sorted(self.requests())

    def examine(self, names: dict[str, str], *, owed: bool) -> Outcome:
        """Hold the state to the promise, as it is and after a restart."""
        found, published = self.requests(), self.published()
        try:
            assert not owed or set(found) == set(names), f"lost: {[names[key] for key in set(names) - set(found)]}"
            assert set(found) <= set(names), "half a job"
            self.hold_to_the_promise()
            assert self.run(Disk(self.record.observe)), "it did not come to its end"
            if len(found) == len(names):
                self.hold_to_the_end()
            else:
                self.hold_to_the_promise()
        except (AssertionError, OSError, ValueError) as fault:
            return Outcome(broken=f"{type(fault).__name__}: {str(fault)[:500]}")
        return Outcome(
            found=frozenset(found), published=published, results=self.results(), said=tuple(self.record.said)
        )

    def published(self) -> dict[str, str]:
        return {
            file.parent.relative_to(self.darkroom.root).as_posix(): digest(read_state(file.parent))
            for base in (self.darkroom.done, self.darkroom.failed)
            for file in base.rglob("request.json")
        }

    def results(self) -> dict[str, dict[str, Any]]:
        files = [file for base in (self.darkroom.done, self.darkroom.failed) for file in base.rglob("result.json")]
        return {result["id"]: result for result in (json.loads(file.read_bytes()) for file in files)}


def hold_to_what_was_announced(before: list[Said], outcome: Outcome, record: Record) -> str | None:
    """Whether what was said before the cut is still true after it; returns what is not."""
    loaded: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    seeds: dict[str, int] = {}
    saved: set[tuple[str, str]] = set()
    stepped_down: set[str] = set()
    for said in (*before, None, *outcome.said):
        if said is None:
            promised = dict(seeds), set(loaded), set(saved), set(stepped_down & {id for id, _ in saved})
            continue
        id = said.fields.get("id", "")
        match said.event:
            case "submitted" if not set(record.contents) <= outcome.found:
                return "lost: it was submitted"
            case "job.published" if said in before:
                path = said.fields["path"]
                if outcome.published.get(path) != said.fields["digest"]:
                    return f"{path} was announced as published, and is not, or is not what it was"
            case "model.loaded":
                loaded[id] += 1
            case "engine.died":
                deaths[id] += 1
            case "job.claimed":
                seeds.setdefault(id, said.fields["seed"])
            case "oom.step_down":
                stepped_down.add(id)
            case "picture.saved":
                picture = (id, said.fields["file"])
                if picture in saved:
                    return f"{picture[1]} was saved, and is rendered again"
                saved.add(picture)
    old_seeds, old_loaded, old_saved, old_stepped = promised
    for id in old_loaded | {id for id, _ in old_saved}:
        result = outcome.results.get(id)
        if result is None:
            return f"{id} was begun, and there is no verdict with that id"
        if result["job"]["seed"] != old_seeds.get(id, result["job"]["seed"]):
            return "the seed was chosen, and is another now"
        if result["attempts"] < loaded[id]:
            return f"the engine was woken {loaded[id]} times, and {result['attempts']} are on record"
        if record.way.deaths == 99 and deaths[id] != 3:
            return f"the engine died {deaths[id]} times on a job that gets three attempts"
        if id in old_stepped and not result["fallbacks"]:
            return "a picture was made after a step down that is forgotten"
    return None


# Records


def record_way(way: Way, base: Path, *crashes: int) -> Record:
    """The daemon works to the end; before that, one for each of ``crashes``, which dies after so many calls more."""
    house = House(way, base)
    ignored = NOT_READ | LOCK
    contents = {
        hashlib.sha256((house.darkroom.inbox / name).read_bytes()).hexdigest(): name
        for name in way.files
        if (house.darkroom.inbox / name).exists()
    } or {hashlib.sha256(file.read_bytes()).hexdigest(): file.name for file in house.darkroom.working.rglob("request.*")}
    root = house.darkroom.root
    record = Record(way, root, read_state(root, ignored), contents)
    house.darkroom.log = Diary(record)
    for crash in crashes:
        record.crash_at = len(record.calls) + crash
        house.run(Disk(record.observe))
    record.crash_at = None
    assert house.run(Disk(record.observe))
    house.hold_to_the_end()
    model = DiskModel(root, ignored=ignored)
    model.start_with(record.start)
    for call in record.calls:
        model.apply(call)
    assert model.whole() == read_state(root, ignored), "the disk was changed by a call that was not announced"
    house.remove()
    return record


def record_submit(base: Path) -> Record:
    """A daemon makes its folders, a job is submitted, another daemon does it."""
    way = Way("submit", {}, done=["cat"])
    top = Path(tempfile.mkdtemp(dir=base))
    house = House(way, base)
    house.darkroom.inbox.rmdir()
    house.darkroom.root.rmdir()
    house.darkroom.root = house.darkroom.root
    data = json.dumps({"prompt": "a"} | JOB).encode()
    key = hashlib.sha256(data).hexdigest()
    record = Record(way, house.darkroom.root, {}, {key: "cat.json"}, owed=False)
    house.darkroom.log = Diary(record)
    assert house.run(Disk(record.observe))
    _drop(house.darkroom.spool(Disk(record.observe)), "cat", data)
    record.say("submitted", {})
    house.contents = [key]
    assert house.run(Disk(record.observe))
    house.hold_to_the_end()
    shutil.rmtree(top)
    house.remove()
    return record


# Looking at every state


@dataclass
class Look:
    """At the states of records. What became of a state is found out once."""

    base: Path
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    cuts: int = 0
    states: int = 0

    def faults(self, record: Record, *, journal: bool, without: Site | None = None) -> Iterator[str]:
        """What is broken, where the power is cut after each of the calls."""
        model = DiskModel(record.root, journal=journal, ignored=NOT_READ | LOCK)
        model.start_with(record.start)
        chance = random.Random(57)
        quiet = [not moving for moving in record.in_flight()]
        changed = True
        for number in range(len(record.calls) + 1):
            if number:
                call = record.calls[number - 1]
                if without is not None and record.sites[number - 1] == without:
                    continue
                model.apply(call)
            if not journal and not quiet[number]:
                continue
            self.cuts += 1
            before = [said for said in record.said if said.after <= number]
            for state in model.states(chance, MOST, thorough=THOROUGH):
                outcome = self.outcome(record, state)
                fault = outcome.broken or hold_to_what_was_announced(before, outcome, record)
                if fault:
                    after = f"{record.calls[number - 1]}" if number else "nothing"
                    yield f"{record.way.name}, power cut after call {number} ({after}): {fault}\n{sorted(state)}"
        del changed

    def outcome(self, record: Record, state: State) -> Outcome:
        """What became of the state."""
        key = f"{record.way.name} {record.root}", digest(state)
        if key not in self.outcomes:
            self.states += 1
            survivor = Survivor(record, state, self.base)
            self.outcomes[key] = survivor.examine(record.contents, owed=record.owed)
            shutil.rmtree(survivor.darkroom.root.parent)
        return self.outcomes[key]
