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
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import darkroom as package
from conftest import Darkroom, Lines
from darkroom.cli.drop import drop
from darkroom.spool import Call, Disk, ticket
from disk_model import DiskModel, Site, State, caller, digest, files_in, read_state, write_state
from test_crashes import JOB, WAYS, Crash, Engine, House, Way

PACKAGE = Path(package.__file__).parent
POWER_CUT = Path(__file__).parent.parent / "tools" / "power_cut.py"
THOROUGH = os.environ.get("DARKROOM_POWER_LOSS") == "thorough"
MOST = 400 if THOROUGH else 40
"""Up to how many combinations of folders all are looked at."""

NOT_READ = frozenset() if THOROUGH else frozenset({"health.json", ".health.json.tmp", ".darkroom-probe", ".lock"})
"""Written for people and programs, or to see whether it can be written; no recovery depends on them."""

BY_NAME = {way.name: way for way in WAYS}
PUBLISHED = ("job.done", "job.failed", "list.split")


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
    """The folder that the spool is in; it is called ``spool`` here."""
    spool: str
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
        self.sites.append(caller() if call.name in ("fsync", "syncfs") else None)

    def say(self, event: str, fields: dict[str, Any]) -> None:
        """For the logger."""
        if event in PUBLISHED:
            fields = fields | {"digest": digest(read_state(Path(fields["path"])))}
            fields["path"] = Path(fields["path"]).relative_to(self.root).as_posix()
        self.said.append(Said(len(self.calls), event, fields))

    def in_flight(self) -> Iterator[bool]:
        """For each number of calls: whether a job is on its way from one folder to another, and nothing said of it."""
        news = {said.after for said in self.said if said.event in ("job.claimed", *PUBLISHED, "submitted")}
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


BOOTS = itertools.count(1)


class Survivor(House):
    """What is found after a cut, when the machine has been started again."""

    def __init__(self, record: Record, state: State, base: Path) -> None:
        self.way = record.way
        self.impatient = False
        self.top = Path(tempfile.mkdtemp(dir=base))
        self.darkroom = Darkroom(self.top / record.spool)
        self.configure()
        shutil.rmtree(self.darkroom.root)
        write_state(self.top, state)
        self.engine = Engine(self.darkroom, deaths=99 if self.way.deaths == 99 else 0)
        self.record = Record(self.way, self.top, record.spool, state, record.contents)
        self.darkroom.log = Diary(self.record)

    def examine(self, names: dict[str, str], disk: Disk, *, owed: bool) -> Outcome:
        """Hold the state to the promise, as it is and after a restart."""
        found, published = self.requests(), self.published()
        self.contents = sorted(found)
        try:
            assert not owed or set(found) == set(names), f"lost: {[names[key] for key in set(names) - set(found)]}"
            assert set(found) <= set(names), "half a job"
            self.hold_to_the_promise()
            boot = f"boot {next(BOOTS)}"
            with pytest.MonkeyPatch.context() as another:
                another.setattr(ticket, "boot_id", lambda: boot)
                assert self.run(disk), "it did not come to its end"
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
            file.parent.relative_to(self.top).as_posix(): digest(read_state(file.parent))
            for base in (self.darkroom.done, self.darkroom.failed)
            for file in files_in(base, "request.")
        }

    def results(self) -> dict[str, dict[str, Any]]:
        published = (self.darkroom.done, self.darkroom.failed)
        files = [file for base in published for file in files_in(base, "result.json")]
        return {result["id"]: result for result in (json.loads(file.read_bytes()) for file in files)}


def hold_to_what_was_announced(before: list[Said], outcome: Outcome, record: Record) -> str | None:
    """Whether what was said before the cut is still true after it; returns what is not."""
    loaded: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    seeds: dict[str, int] = {}
    saved: set[tuple[str, str]] = set()
    stepped_down: set[str] = set()
    saved_after_step_down: set[str] = set()
    for said in (*before, None, *outcome.said):
        if said is None:
            promised = dict(seeds), set(loaded), set(saved), set(saved_after_step_down)
            continue
        id = said.fields.get("id", "")
        match said.event:
            case "submitted" if not set(record.contents) <= outcome.found:
                return "lost: it was submitted"
            case event if event in PUBLISHED and said in before:
                path = said.fields["path"]
                if outcome.published.get(path) != said.fields["digest"]:
                    return f"{path} was announced as published, and is not, or is not what it was"
            case "model.loaded":
                loaded[id] += 1
            case "engine.died":
                deaths[id] += 1
            case "job.claimed":
                if loaded[id] and seeds.get(id, said.fields["seed"]) != said.fields["seed"]:
                    return "the engine was woken with a seed, and another is chosen now"
                seeds[id] = said.fields["seed"]
            case "oom.step_down":
                stepped_down.add(id)
            case "picture.saved":
                picture = (id, said.fields["file"])
                if picture in saved:
                    return f"{picture[1]} was saved, and is rendered again"
                saved.add(picture)
                saved_after_step_down |= {id} & stepped_down
    old_seeds, old_loaded, old_saved, old_stepped = promised
    for id in old_loaded | {id for id, _ in old_saved}:
        result = outcome.results.get(id)
        if result is None:
            return f"{id} was begun, and there is no verdict with that id"
        if result["job"]["seed"] != old_seeds.get(id, result["job"]["seed"]):
            return "the seed was chosen, and is another now"
        if result["attempts"] < loaded[id]:
            return f"the engine was woken {loaded[id]} times, and {result['attempts']} are on record"
        if deaths[id] > 3:
            return f"the engine died {deaths[id]} times on a job that gets three attempts"
        if id in old_stepped and not result["fallbacks"]:
            return "a picture was made after a step down that is forgotten"
    return None


# Records


def record_way(way: Way, base: Path, *crashes: int) -> Record:
    """The daemon works to the end; before that, one for each of ``crashes``, which dies after so many calls more."""
    top = Path(tempfile.mkdtemp(dir=base))
    house = House(way, top)
    requests = house.requests()
    contents = {key: path.name for key, (path,) in requests.items()}
    record = Record(way, top, house.darkroom.root.name, read_state(top, NOT_READ), contents)
    house.darkroom.log = Diary(record)
    for crash in crashes:
        record.crash_at = len(record.calls) + crash
        house.run(Disk(record.observe))
    record.crash_at = None
    assert house.run(Disk(record.observe))
    house.hold_to_the_end()
    hold_the_model_to_the_disk(record)
    shutil.rmtree(top)
    return record


def record_submit(base: Path) -> Record:
    """A daemon makes the spool and all above it, a job is submitted, another daemon does it."""
    way = Way("submit", {}, done=["cat"])
    top = Path(tempfile.mkdtemp(dir=base))
    house = House(way, top)
    data = json.dumps({"prompt": "a"} | JOB).encode()
    key = hashlib.sha256(data).hexdigest()
    shutil.rmtree(house.darkroom.root)
    record = Record(way, top, house.darkroom.root.name, {}, {key: "cat.json"}, owed=False)
    house.darkroom.log = Diary(record)
    assert house.run(Disk(record.observe))
    drop(house.darkroom.spool(Disk(record.observe)), "cat", data)
    record.say("submitted", {})
    house.contents = [key]
    assert house.run(Disk(record.observe))
    house.hold_to_the_end()
    hold_the_model_to_the_disk(record)
    shutil.rmtree(top)
    return record


def hold_the_model_to_the_disk(record: Record) -> None:
    model = DiskModel(record.root, ignored=NOT_READ)
    model.start_with(record.start)
    for call in record.calls:
        model.apply(call)
    there = {path: data for path, data in read_state(record.root, NOT_READ).items() if not path.endswith("/.lock")}
    told = {path: data for path, data in model.whole().items() if not path.endswith("/.lock")}
    assert told == there, "the disk was changed by a call that was not announced"


# Looking at every state


@dataclass
class Look:
    """At the states of records. What became of a state is found out once."""

    base: Path
    outcomes: dict[tuple[Path, str], Outcome] = field(default_factory=dict)
    cuts: int = 0
    states: int = 0

    def faults(
        self, record: Record, *, journal: bool, since: int = 0, most: int = MOST, without: Site | None = None
    ) -> Iterator[str]:
        """What is broken, where the power is cut after each of the calls.

        Without a journal no order of calls can keep a rename between two folders whole until both are synced; so
        there the promise is that what was said to be claimed or published is so.
        """
        model = DiskModel(record.root, journal=journal, ignored=NOT_READ)
        model.start_with(record.start)
        chance = random.Random(57)
        moving = list(record.in_flight())
        for number in range(len(record.calls) + 1):
            if number:
                if without is not None and record.sites[number - 1] == without:
                    continue
                model.apply(record.calls[number - 1])
            if number < since or (moving[number] and not journal):
                continue
            self.cuts += 1
            before = [said for said in record.said if said.after <= number]
            for state in model.states(chance, most, thorough=THOROUGH):
                outcome = self.outcome(record, state)
                fault = outcome.broken or hold_to_what_was_announced(before, outcome, record)
                if fault:
                    call = record.calls[number - 1] if number else None
                    after = f"call {number}: {call.name} {call.path.name}" if call else "nothing"
                    yield f"{record.way.name}, power cut after {after}: {fault}\nfound: {sorted(state)}"

    def outcome(self, record: Record, state: State) -> Outcome:
        """What became of the state."""
        key = record.root, digest(state)
        if key not in self.outcomes:
            self.states += 1
            survivor = Survivor(record, state, self.base)
            self.outcomes[key] = survivor.examine(record.contents, Disk(), owed=record.owed)
            shutil.rmtree(survivor.top)
        return self.outcomes[key]

    def second_cuts(self, record: Record, chance: random.Random, every: int) -> Iterator[str]:
        """What is broken where the power is cut again while the daemon recovers, after one in ``every`` cuts."""
        model = DiskModel(record.root, ignored=NOT_READ)
        model.start_with(record.start)
        for number, call in enumerate(record.calls, 1):
            model.apply(call)
            if chance.randrange(every):
                continue
            survivor = Survivor(record, chance.choice(list(model.states(chance, MOST))), self.base)
            survivor.examine(record.contents, Disk(survivor.record.observe), owed=record.owed)
            again = survivor.record
            again.owed = record.owed
            again.said[:0] = [Said(0, said.event, said.fields) for said in record.said if said.after <= number]
            shutil.rmtree(survivor.top)
            yield from self.faults(again, journal=True, most=0)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None, prefix="darkroom-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def look(base: Path) -> Iterator[Look]:
    look = Look(base)
    yield look
    print(f"\npower loss: {look.states} states, {look.cuts} cuts")


@pytest.fixture(scope="module")
def records(base: Path) -> dict[str, Record]:
    """Every way; and some where the process was killed before, and the disk not synced in between."""
    records = {way.name: record_way(way, base) for way in WAYS}
    records["submit"] = record_submit(base)
    return records


NAMES = [*BY_NAME, "submit"]


@pytest.mark.parametrize("name", NAMES)
def test_no_power_cut_breaks_the_promise(name: str, records: dict[str, Record], look: Look) -> None:
    """With a journal and without: nearly all that may be found without one may be found with one."""
    cuts, states = look.cuts, look.states
    record = records[name]
    fault = next(itertools.chain(look.faults(record, journal=True), look.faults(record, journal=False)), None)
    assert fault is None, fault
    print(f"{name}: {look.cuts - cuts} cuts, {look.states - states} new states")


def test_nor_does_one_after_the_daemon_was_killed_and_started_again(
    base: Path, records: dict[str, Record], look: Look
) -> None:
    """Killed before each fsync there is in the code: what it had done is seen by all, and not on the disk."""
    cuts, states = look.cuts, look.states
    kills: dict[object, tuple[str, int]] = {}
    for name in BY_NAME:
        for number, site in enumerate(records[name].sites):
            if site is not None:
                kills.setdefault((name, number) if THOROUGH else site, (name, number))
    for name, number in kills.values():
        record = record_way(BY_NAME[name], base, number)
        fault = next(look.faults(record, journal=True, since=number, most=0), None)
        assert fault is None, f"killed before call {number + 1}; {fault}"
    print(f"{len(kills)} kills: {look.cuts - cuts} cuts, {look.states - states} states")


@pytest.mark.parametrize("name", ["several pictures", "submit", "engine dies once", "three in a row", "a list"])
def test_nor_does_a_second_one_while_the_daemon_recovers(name: str, records: dict[str, Record], look: Look) -> None:
    cuts, states = look.cuts, look.states
    fault = next(look.second_cuts(records[name], random.Random(name), 2 if THOROUGH else 25), None)
    assert fault is None, fault
    print(f"{name}: {look.cuts - cuts} cuts, {look.states - states} states")


# Which fsync is needed


def sites() -> dict[Site, str]:
    """Every line of the package that asks the disk module for an fsync, and why it is kept, where that is written."""
    found: dict[Site, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path in (PACKAGE / "spool" / "disk.py", PACKAGE / "bench.py"):
            continue  # where they are made; and the bare calls that the spool is measured against
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and _syncs(node):
                _, kept, why = lines[node.lineno - 1].partition("# kept:")
                above = node.lineno - 2
                while not kept and lines[above].strip().startswith("#"):
                    _, kept, why = lines[above].partition("# kept:")
                    above -= 1
                found[str(path), node.lineno] = why.strip()
    return found


def _syncs(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(attr="sync_folder" | "sync_file" | "sync_all"):
            return True
        case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr="write" | "replace"):
            asked = [keyword.value for keyword in call.keywords if keyword.arg == "sync"]
            return owner.endswith("disk") and not (asked and ast.unparse(asked[0]) == "False")
    return False


def test_every_fsync_is_needed_or_says_why_it_is_kept(records: dict[str, Record], look: Look) -> None:
    found = sites()
    reached = {site for record in records.values() for site in record.sites if site is not None}
    assert reached <= set(found), "an fsync was asked for in a way that this test does not see"
    superfluous = []
    for (file, line), why in found.items():
        place = f"{Path(file).relative_to(PACKAGE)}:{line}"
        fault = why or next(faults_without((file, line), records, look), None)
        if fault is None:
            superfluous.append(place)
        print(f"{place}: {'kept: ' if why else ''}{fault.splitlines()[0] if fault else 'not needed'}")
    assert not superfluous, f"no state shows what these are for; remove them, or say `# kept: why`: {superfluous}"


def faults_without(site: Site, records: dict[str, Record], look: Look) -> Iterator[str]:
    """What breaks where this fsync does nothing: the quick looks first."""
    concerned = [record for record in records.values() if site in record.sites]
    for most in (0, MOST):
        for journal in (True, False):
            for record in concerned:
                yield from look.faults(record, journal=journal, most=most, without=site)


# The real thing


def power_cuts(*arguments: str) -> dict[str, Any]:
    """A few rounds of what ``tools/power_cut.sh`` does in the night."""
    done = subprocess.run([sys.executable, str(POWER_CUT), *arguments], capture_output=True, text=True, timeout=300)
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    if last.startswith("skipped:"):
        pytest.skip(last.removeprefix("skipped: "))
    assert last, done.stderr
    figures: dict[str, Any] = json.loads(last)
    assert done.returncode == bool(figures["faults"])
    print(figures)
    return figures


def test_real_power_cuts_on_a_real_file_system_break_nothing() -> None:
    assert power_cuts("--rounds", "3")["faults"] == []


def test_a_daemon_that_forgets_to_sync_is_found_out_by_real_power_cuts() -> None:
    assert power_cuts("--rounds", "40", "--seed", "3", "--forgetful")["faults"]
