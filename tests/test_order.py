"""Who is next: urgent first, folders in turn, the loaded model preferred, nobody overtaken for longer than allowed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Darkroom
from darkroom.config import load
from darkroom.intake import Intake, Needs
from darkroom.intake.order import MOST_FOLDERS, URGENT, Order
from darkroom.models.catalog import BUNDLED
from darkroom.spool import Arrival, Fingerprint, is_urgent


@dataclass(eq=False)
class File:
    arrival: Arrival
    model: str | None
    queue: str = ""
    came_at: int = 0

    @property
    def folder(self) -> str:
        return URGENT if is_urgent(self.arrival.name) else self.arrival.name.rpartition("/")[0]


class Day:
    """An order, files that come, and the model that the last one needed. A job takes a second."""

    def __init__(self, *, fair: bool = False, affinity_max_wait_s: float = 0.0) -> None:
        self.now = 0
        self.here: set[File] = set()
        self.numbers = count()
        self.loaded: str | None = None
        self.order: Order[File] = Order(
            self.here.__contains__, fair=fair, affinity_max_wait_s=affinity_max_wait_s, clock=lambda: self.now
        )

    def come(self, folder: str, model: str | None = None, *, urgent: bool = False) -> File:
        number = next(self.numbers)
        name = f"{folder}/{'!' if urgent else ''}{number}.json" if folder else f"{'!' if urgent else ''}{number}.json"
        file = File(Arrival(name, name, Fingerprint(0, number, 1, number, number)), model, came_at=self.now)
        self.here.add(file)
        self.order.push(file)
        self.order.looked_into(file)
        return file

    def take(self) -> File | None:
        self.now += 1
        first = self.order.first()
        if first is None:
            return None
        chosen = self.order.choose(first, self.loaded)
        self.order.took(chosen)
        self.here.remove(chosen)
        self.loaded = chosen.model
        return chosen

    def take_all(self) -> list[File]:
        return list(iter(self.take, None))


events = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.sampled_from(["", "a", "b", "c"]), st.sampled_from(["x", "y", "z"]), st.integers(0, 9)),
    ),
    max_size=120,
)


def live(day: Day, happenings: list[tuple[str, str, int] | None]) -> list[tuple[File, set[File]]]:
    """What was taken, each with what waited besides. One in ten is urgent; None takes one."""
    taken = []
    for happening in [*happenings, *[None] * len(happenings)]:
        if happening is not None:
            folder, model, chance = happening
            day.come(folder, model, urgent=chance == 0)
            continue
        before = set(day.here)
        file = day.take()
        if file is not None:
            taken.append((file, before - {file}))
    return taken


@given(events, st.booleans(), st.sampled_from([0.0, 3.0, 1e9]))
@settings(max_examples=200, deadline=None)
def test_every_file_is_taken_once_and_the_urgent_ones_first_and_in_order(
    happenings: list[tuple[str, str, int] | None], fair: bool, wait: float
) -> None:
    day = Day(fair=fair, affinity_max_wait_s=wait)
    taken = live(day, happenings)
    assert not day.here, "somebody starved"
    assert len({file for file, _ in taken}) == len(taken) == sum(happening is not None for happening in happenings)
    for file, others in taken:
        urgent = [other.arrival.order for other in others if other.folder == URGENT]
        if file.folder == URGENT:
            assert all(file.arrival.order < order for order in urgent)
        else:
            assert not urgent


@given(events)
@settings(max_examples=100, deadline=None)
def test_without_either_the_oldest_of_all_is_next(happenings: list[tuple[str, str, int] | None]) -> None:
    for file, others in live(Day(), happenings):
        assert all(file.arrival.order < other.arrival.order for other in others)


@given(events)
@settings(max_examples=200, deadline=None)
def test_folders_take_turns_and_each_is_in_order(happenings: list[tuple[str, str, int] | None]) -> None:
    taken = [(file, others) for file, others in live(Day(fair=True), happenings) if file.folder != URGENT]
    since: dict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for file, others in taken:
        for other in others:
            if other.folder == file.folder:
                assert file.arrival.order < other.arrival.order
        waiting = {other.folder for other in others} - {URGENT}
        since.pop(file.folder, None)
        for folder in list(since):
            if folder not in waiting:
                del since[folder]
        for folder in waiting - {file.folder}:
            since[folder][file.folder] += 1
            assert since[folder][file.folder] <= 1, f"{file.folder} was served twice while {folder} waited"


@given(events, st.integers(1, 30), st.booleans())
@settings(max_examples=300, deadline=None)
def test_nobody_is_overtaken_for_longer_than_allowed(
    happenings: list[tuple[str, str, int] | None], wait: int, fair: bool
) -> None:
    day = Day(fair=fair, affinity_max_wait_s=wait)
    overtaken_at: dict[File, int] = {}
    now = 0
    for happening in [*happenings, *[None] * len(happenings)]:
        if happening is not None:
            day.come(happening[0], happening[1], urgent=happening[2] == 0)
            continue
        before, loaded = set(day.here), day.loaded
        file = day.take()
        now = day.now
        if file is None:
            continue
        for other in before - {file}:
            if other.queue == file.queue and other.arrival.order < file.arrival.order:
                assert file.model == loaded, "only for the sake of the model that is loaded"
                first = overtaken_at.setdefault(other, now)
                assert now - first < wait, "it was overtaken again, after all that time"


def test_a_stream_of_jobs_for_the_loaded_model_holds_another_up_for_so_long_only() -> None:
    day = Day(affinity_max_wait_s=10)
    day.loaded = "x"
    other = day.come("", "y")
    taken = []
    for _ in range(20):
        day.come("", "x")
        taken.append(day.take())
    assert taken.index(other) == 10


def test_models_are_loaded_less_often() -> None:
    def loads(wait: float) -> int:
        day = Day(affinity_max_wait_s=wait)
        for number in range(60):
            day.come("", "xyz"[number % 3])
        models = [file.model for file in day.take_all()]
        return sum(model != before for model, before in zip(models, [None, *models], strict=False))

    assert (loads(0), loads(1e9)) == (60, 3)


def test_a_folder_that_drops_one_at_a_time_gets_no_more_than_its_turns() -> None:
    day = Day(fair=True)
    for _ in range(30):
        day.come("backlog")
    taken = []
    for _ in range(20):
        if not any(file.folder == "sly" for file in day.here):
            day.come("sly")
        file = day.take()
        assert file is not None
        taken.append(file.folder)
    assert taken.count("sly") == 10


def test_a_folder_that_comes_late_is_not_served_for_the_time_that_it_was_away() -> None:
    day = Day(fair=True)
    for _ in range(100):
        day.come("a")
    for _ in range(50):
        day.take()
    for _ in range(10):
        day.come("b")
    folders = [file.folder for file in (day.take() for _ in range(20)) if file]
    assert folders.count("b") == 10
    assert "".join(folders) in ("ab" * 10, "ba" * 10)


def test_more_folders_than_have_turns_share_one() -> None:
    day = Day(fair=True)
    for number in range(MOST_FOLDERS + 50):
        day.come(f"f{number}")
    assert len(day.order.queues()) == MOST_FOLDERS + 1
    assert len(day.take_all()) == MOST_FOLDERS + 50


# ---------------------------------------------------------------- with real files


def intake(
    darkroom: Darkroom, *, window: int = 1000, models: dict[str, str] | None = None, **options: object
) -> Intake:
    spool = darkroom.spool()
    spool.open()
    made = Intake(
        spool,
        judge=lambda name, data: Needs((), arrived=True, pictured=False, model=(models or {}).get(name[0])),
        report=lambda name, why: None,
        settle_s=10,
        rescan_s=0.05,
        window=window,
    )
    made.arrange(**options)  # type: ignore[arg-type]
    return made


def take_all(made: Intake, loaded: str | None = None) -> list[str]:
    names = []
    made.look_afresh()
    while True:
        arrival = made.take(loaded)
        if arrival is None:
            made.look_afresh()
            arrival = made.take(loaded)
        if arrival is None:
            return names
        names.append(arrival.name)
        made.spool.inbox.joinpath(arrival.name).unlink()
        made.look()


def test_beyond_the_window_each_folder_has_its_share_of_it(darkroom: Darkroom) -> None:
    for number in range(400):
        darkroom.drop(f"a/{number:03}.json")
    made = intake(darkroom, window=100, fair=True)
    made.look_afresh()
    for number in range(5):
        darkroom.drop(f"b/{number}.json")
        made.hint(str(darkroom.inbox / f"b/{number}.json"))
        darkroom.drop(f"c/{number}.json")  # of which nothing tells
    names = take_all(made)
    assert len(set(names)) == len(names) == 410
    places = {folder: [at for at, name in enumerate(names) if name[0] == folder] for folder in "bc"}
    assert max(places["b"]) <= 15
    assert max(places["c"]) <= 15, "the scan finds them, though their window is full of others"
    made.spool.close()


def test_a_window_is_not_outgrown_by_many_folders(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.intake.order.MOST_FOLDERS", 5)
    monkeypatch.setattr("darkroom.intake.shares.LEAST_SHARE", 4)
    for folder in range(40):
        for number in range(20):
            darkroom.drop(f"f{folder}/{number}.json")
    made = intake(darkroom, window=60, fair=True)
    for _ in range(6):
        made.look_afresh()
        assert made.kept <= 60 + 4 * 6
    assert made.waiting == 800
    names = take_all(made)
    assert len(set(names)) == len(names) == 800
    made.spool.close()


def test_a_file_that_was_looked_into_goes_before_an_older_one_for_another_model(darkroom: Darkroom) -> None:
    made = intake(darkroom, models={"x": "one", "y": "two"}, affinity_max_wait_s=1e9)
    for name in ("y1", "x1", "y2", "x2"):
        darkroom.drop(f"{name}.json")
    made.look_afresh()
    list(made.refused(5.0))
    assert take_all(made, "one") == ["x1.json", "x2.json", "y1.json", "y2.json"]
    made.spool.close()


def test_one_that_was_changed_or_removed_meanwhile_is_not_taken(darkroom: Darkroom) -> None:
    made = intake(darkroom, models={"x": "one", "y": "two"}, affinity_max_wait_s=1e9)
    for name in ("y1", "x1", "x2"):
        darkroom.drop(f"{name}.json")
    made.look_afresh()
    list(made.refused(5.0))
    (darkroom.inbox / "x1.json").unlink()
    taken = made.take("one")
    assert taken is not None
    assert taken.name == "x2.json"
    made.spool.close()


def run_by_its_own_clock(darkroom: Darkroom) -> None:
    """However busy the machine is, the daemon knows all that waits before it takes the first."""
    readings = count(0.0, 0.0001)
    darkroom.loop(once=True, clock=lambda: next(readings)).run()


def test_the_daemon_prefers_the_model_that_it_has_loaded_where_config_says_so(darkroom: Darkroom) -> None:
    file = darkroom.root.parent / "config.toml"
    models = "".join(f'[models.{name}]\npath = "{BUNDLED}"\n' for name in ("one", "two"))
    file.write_text(f'executor.kind = "fake"\noutput.page = false\n[intake]\naffinity_max_wait_s = 60\n{models}')
    darkroom.config = load(file, root=darkroom.root)
    for number in range(6):
        darkroom.drop(f"{number}.json", model=("one", "two")[number % 2])
    run_by_its_own_clock(darkroom)
    claimed = [fields["model"] for fields in darkroom.log.of("job.claimed")]
    assert claimed == ["one"] * 3 + ["two"] * 3


def test_folders_take_turns_in_the_daemon_where_config_says_so(darkroom: Darkroom) -> None:
    darkroom.configure(intake={"fair": True})
    for number in range(4):
        darkroom.drop(f"anna/{number}.json")
    for number in range(2):
        darkroom.drop(f"ben/{number}.json")
    darkroom.drop("0.json")
    darkroom.drop("ben/!now.json")
    run_by_its_own_clock(darkroom)
    claimed = [fields["name"] for fields in darkroom.log.of("job.claimed")]
    assert claimed[0] == "ben/!now"
    assert sorted(claimed[1:4]) == ["0", "anna/0", "ben/0"]
    assert claimed[4:] in (["anna/1", "ben/1", "anna/2", "anna/3"], ["ben/1", "anna/1", "anna/2", "anna/3"])


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans(), st.booleans()), max_size=30), st.booleans()
)
@settings(max_examples=100, deadline=None)
def test_what_is_foreseen_is_what_comes_and_is_not_changed_by_it(
    files: list[tuple[str, bool, bool]], fair: bool
) -> None:
    day = Day(fair=fair)
    for folder, urgent, takes_one in files:
        day.come(folder, urgent=urgent)
        if takes_one:
            day.take()
    foreseen = list(day.order.upcoming())
    assert foreseen == list(day.order.upcoming())
    assert foreseen == day.take_all()
