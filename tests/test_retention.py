"""What is kept of done/ and failed/: by age, number and size; what darkroom did not make is left alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Darkroom
from darkroom.config import Retention
from darkroom.retention import ASIDE, DAY_S, Housekeeping, Outcome, Rule, rules, sweep
from darkroom.spool import Call, Disk


def made(darkroom: Darkroom, *names: str) -> None:
    """Results, the first the oldest by days."""
    for name in names:
        darkroom.drop(f"{name}.json")
    darkroom.run_once()
    for days, name in enumerate(reversed(names), start=1):
        age(darkroom.done / name, days)


def age(folder: Path, days: float) -> None:
    when = time.time() - days * DAY_S
    os.utime(folder / "result.json", (when, when))


def swept(darkroom: Darkroom, rule: Rule, *, dry_run: bool = False) -> list[Outcome]:
    found = sweep(Disk(), {darkroom.done: rule}, dry_run=dry_run)
    return [outcome for outcome in found if outcome is not None]


def left(folder: Path) -> list[str]:
    """Every name in it, the hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Rule(age_s=2.5 * DAY_S), ["c", "d"]),
        (Rule(count=3), ["b", "c", "d"]),
        (Rule(count=0), []),
        (Rule(age_s=3.5 * DAY_S, count=1), ["d"]),
        (Rule(bytes=1 << 40), ["a", "b", "c", "d"]),
        (Rule(bytes=1), []),
    ],
)
def test_what_is_newest_is_kept_as_the_rule_says(darkroom: Darkroom, rule: Rule, kept: list[str]) -> None:
    made(darkroom, "a", "b", "c", "d")
    removed = swept(darkroom, rule)
    assert left(darkroom.done) == kept
    assert [outcome.name for outcome in removed] == [f"done/{name}" for name in "abcd" if name not in kept]
    assert all(outcome.bytes > 100 for outcome in removed)


def test_the_size_that_counts_is_that_of_the_files(darkroom: Darkroom) -> None:
    made(darkroom, "a", "b", "c")
    sizes = {name: sum(path.stat().st_size for path in (darkroom.done / name).iterdir()) for name in "abc"}
    swept(darkroom, Rule(bytes=sizes["b"] + sizes["c"]))
    assert left(darkroom.done) == ["b", "c"]


def test_a_dry_run_says_the_same_and_touches_nothing(darkroom: Darkroom) -> None:
    made(darkroom, "a", "team/b", "c")
    said = [outcome.name for outcome in swept(darkroom, Rule(count=0), dry_run=True)]
    assert said == ["done/a", "done/team/b", "done/c"]
    assert left(darkroom.done) == ["a", "c", "team"]
    assert [outcome.name for outcome in swept(darkroom, Rule(count=0))] == said
    assert left(darkroom.done / "team") == []


def test_what_darkroom_did_not_make_is_never_touched(darkroom: Darkroom, tmp_path: Path) -> None:
    made(darkroom, "a", "b", "c", "d", "e", "ours")
    (darkroom.done / "a" / "notes.txt").write_text("keep me")
    (darkroom.done / "b" / "retouched").mkdir()
    (darkroom.done / "c" / "result.json").write_text("{")
    (darkroom.done / "d" / "result.json").write_text('{"name": "d", "status": "done"}')
    (darkroom.done / "e" / "e-1.psd").write_text("layers")
    (darkroom.done / "mine").mkdir()
    (darkroom.done / "mine" / "holiday.png").write_text("x")
    (darkroom.done / "index.html").write_text("x")
    elsewhere = tmp_path / "elsewhere"
    (darkroom.done / "ours").rename(elsewhere)
    (darkroom.done / "link").symlink_to(elsewhere)
    before = left(darkroom.done)
    reasons = {outcome.name: outcome.left for outcome in swept(darkroom, Rule(count=0))}
    assert left(darkroom.done) == before
    assert "notes.txt" in str(reasons["done/a"])
    assert "retouched" in str(reasons["done/b"])
    assert reasons["done/c"] == "its result.json is not valid"
    assert reasons["done/d"] == "its result.json is not darkroom's"
    assert "e-1.psd" in str(reasons["done/e"])
    assert (elsewhere / "result.json").exists()


def test_litter_of_file_managers_and_a_link_inside_do_not_keep_a_result(darkroom: Darkroom, tmp_path: Path) -> None:
    made(darkroom, "a")
    (darkroom.done / "a" / ".DS_Store").write_text("x")
    (darkroom.done / "a" / "Thumbs.db").write_text("x")
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    (darkroom.done / "a" / ".link").symlink_to(target)
    swept(darkroom, Rule(count=0))
    assert left(darkroom.done) == []
    assert (target / "precious").exists()


def test_several_pictures_failures_and_numbered_names_are_ours(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", count=3)
    darkroom.run_once()
    darkroom.drop("cat.json", count=2, output_format="jpeg")
    darkroom.drop("typo.json", {"promt": "x"})
    darkroom.run_once()
    assert darkroom.names("done") == ["cat", "cat~2"]
    found = sweep(Disk(), {darkroom.done: Rule(count=0), darkroom.failed: Rule(count=0)})
    assert [outcome.left for outcome in found if outcome is not None] == [None, None, None]
    assert left(darkroom.done) == left(darkroom.failed) == []


class PowerCut(Exception):
    pass


def test_cut_short_at_any_call_nobody_sees_half_a_result_and_the_next_start_ends_it(darkroom: Darkroom) -> None:
    numbers = Disk()
    made(darkroom, "a", "b")
    list(sweep(numbers, {darkroom.done: Rule(count=1)}))
    assert numbers.calls >= 5
    for stop in range(1, numbers.calls + 1):
        made(darkroom, "a", "b")

        def cut(call: Call, stop: int = stop) -> None:
            if call.number == stop:
                raise PowerCut

        with pytest.raises(PowerCut):
            list(sweep(Disk(cut), {darkroom.done: Rule(count=1)}))
        for folder in darkroom.done.iterdir():
            if not folder.name.startswith("."):
                result = json.loads((folder / "result.json").read_bytes())
                assert all((folder / picture["file"]).exists() for picture in result["pictures"])
        assert "b" in left(darkroom.done)
        housekeeping = Housekeeping(darkroom.spool(), Retention(), darkroom.log)
        while housekeeping.work():
            continue
        assert not [name for name in left(darkroom.done) if name.startswith(ASIDE)]
        list(sweep(Disk(), {darkroom.done: Rule(count=0)}))
        assert left(darkroom.done) == []


def test_the_daemon_keeps_house_between_jobs_and_says_what_it_removed(darkroom: Darkroom) -> None:
    made(darkroom, "a", "b", "c")
    (darkroom.done / "b" / "notes.txt").write_text("x")
    darkroom.configure(retention={"done_count": 1})
    darkroom.drop("typo.json", {"promt": "x"})
    darkroom.run_once()
    assert left(darkroom.done) == ["b", "c"]
    assert darkroom.names("failed") == ["typo"]
    (said,) = darkroom.log.of("retention.removed")
    assert said["results"] == 1
    assert said["bytes"] > 100
    assert darkroom.log.of("retention.left")[0]["name"] == "done/b"


def test_a_sweep_rests_after_each_slice_and_is_begun_again_after_a_while(darkroom: Darkroom) -> None:
    made(darkroom, "a", "b", "c")
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    housekeeping = Housekeeping(darkroom.spool(), Retention(done_count=2), darkroom.log, clock)
    slices = 0
    while housekeeping.work(0.002):
        slices += 1
    assert slices >= 3
    assert left(darkroom.done) == ["b", "c"]
    for name in ("d", "e"):
        darkroom.drop(f"{name}.json")
    darkroom.run_once()
    assert not housekeeping.work()
    assert len(left(darkroom.done)) == 4
    now[0] += 400
    while housekeeping.work():
        continue
    assert left(darkroom.done) == ["d", "e"]


def test_trouble_with_the_disk_ends_a_sweep_and_not_the_daemon(darkroom: Darkroom) -> None:
    made(darkroom, "a", "b")

    def refuse(call: Call) -> None:
        if call.name == "rename":
            raise OSError(30, "Read-only file system")

    spool = darkroom.spool(Disk(refuse))
    housekeeping = Housekeeping(spool, Retention(done_count=0), darkroom.log)
    while housekeeping.work():
        continue
    assert "Read-only" in darkroom.log.of("retention.trouble")[0]["why"]
    assert left(darkroom.done) == ["a", "b"]


def test_a_result_that_another_took_in_the_last_moment_is_passed_over(darkroom: Darkroom) -> None:
    made(darkroom, "a", "b")

    def steal() -> Iterator[None]:
        (darkroom.done / "a").rename(darkroom.root / "taken")
        yield None

    thief = steal()

    def before(call: Call) -> None:
        if call.name == "rename":
            next(thief, None)

    names = [outcome.name for outcome in sweep(Disk(before), {darkroom.done: Rule(count=0)}) if outcome is not None]
    assert names == ["done/b"]
    assert (darkroom.root / "taken" / "a-1.png").exists()


def test_what_took_a_result_s_place_in_the_last_moment_is_put_back(darkroom: Darkroom) -> None:
    made(darkroom, "a")

    def before(call: Call) -> None:
        if call.name == "rename" and call.path.name == "a":
            (darkroom.done / "a").rename(darkroom.root / "taken")
            (darkroom.done / "a").mkdir()
            (darkroom.done / "a" / "mine.txt").write_text("mine")

    assert not [outcome for outcome in sweep(Disk(before), {darkroom.done: Rule(count=0)}) if outcome is not None]
    assert left(darkroom.done) == ["a"]
    assert left(darkroom.done / "a") == ["mine.txt"]


def test_what_is_left_alone_is_said_once_and_again_when_it_is_something_else(darkroom: Darkroom) -> None:
    made(darkroom, "a", "b")
    now = [0.0]
    housekeeping = Housekeeping(darkroom.spool(), Retention(done_count=0), darkroom.log, lambda: now[0])
    for name, said in (("a", 1), ("a", 1), ("b", 2)):
        made(darkroom, *({"a", "b"} - set(left(darkroom.done))))
        (darkroom.done / name / "notes.txt").write_text("x")
        while housekeeping.work():
            continue
        now[0] += 400
        assert len(darkroom.log.of("retention.left")) == said


def test_a_link_that_is_called_as_what_is_being_removed_leads_nowhere(darkroom: Darkroom, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    made(darkroom, "a")
    (darkroom.done / f"{ASIDE}0").symlink_to(elsewhere)
    darkroom.run_once()
    assert left(elsewhere) == ["mine.txt"]


def test_without_limits_there_is_no_rule(darkroom: Darkroom) -> None:
    spool = darkroom.spool()
    assert rules(spool, Retention()) == {}
    assert rules(spool, Retention(failed_days=2)) == {spool.failed: Rule(age_s=2 * DAY_S)}
