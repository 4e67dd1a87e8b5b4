"""Names of dropped files: temporaries, conflict copies, slugs, ids (faults 5, 9, 10, 19, 20, 21)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.spool.names import (
    is_conflict_copy,
    is_job,
    is_plain,
    is_temporary,
    new_id,
    published_name,
    slug,
    timestamp,
)


@pytest.mark.parametrize(
    "name",
    [
        ".cat.json.x7Gh2k",
        "~cat.json",
        "cat.json~",
        "cat.json.tmp",
        "cat.json.part",
        "cat.json.partial",
        "cat.json.crdownload",
        ".cat.json.swp",
        "cat.json.filepart",
        "._cat.json",
        ".nfs000000000123",
        ".syncthing.cat.json.tmp",
        "~syncthing~cat.json.tmp",
        "#cat.json#",
        ".dropbox.cache",
    ],
)
def test_temporaries_of_editors_and_sync_tools_are_no_arrivals(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize(
    "name", ["cat.json", "!cat.json", "my~cat.json", "tmp.json", "part.json", "c#.json", "cat~2.json"]
)
def test_ordinary_names_are_not_taken_for_temporaries(name: str) -> None:
    assert not is_temporary(name)
    assert is_job(name)


@pytest.mark.parametrize(
    "name",
    [
        "cat.sync-conflict-20261124-101112-ABCDEFG.json",
        "cat (Anna's conflicted copy 2026-11-24).json",
        "cat (conflicted copy 2026-11-24 101112).json",
        "cat_conf(1).json",
    ],
)
def test_conflict_copies_are_known(name: str) -> None:
    assert is_conflict_copy(name)


def test_a_cat_in_conflict_is_only_a_cat() -> None:
    assert not is_conflict_copy("a conflict between cats.json")


@pytest.mark.parametrize(
    ("dropped", "published"),
    [
        ("cat.json", "cat"),
        ("team/cat.json", "team/cat"),
        ("!cat.json", "!cat"),
        ("кот.json", "кот"),
        ("two words.json", "two words"),
        ("CAT.JSON", "CAT"),
        ("-rf.json", "rf"),
        ("a\nb.json", "a-b"),
        ("con.json", "con-job"),
        ("LPT1.json", "LPT1-job"),
        ("caf\udce9.json", "caf"),
        ('what?"yes".json', "what-yes"),
        ("-.json", "job"),
        ("...json", "job"),
        ("x" * 200 + ".json", "x" * 60),
        ("ends with space .json", "ends-with-space"),
    ],
)
def test_odd_names_become_slugs_and_plain_ones_stay(dropped: str, published: str) -> None:
    assert published_name(dropped) == published


@given(st.text(st.characters(codec=None), min_size=1).filter(lambda text: "/" not in text and "\0" not in text))
def test_every_name_is_published_under_a_plain_one(text: str) -> None:
    name = published_name(f"{text}.json")
    assert "/" not in name
    assert is_plain(name)


@given(st.text())
def test_a_slug_is_plain_ascii_and_stays_what_it_is(text: str) -> None:
    once = slug(text)
    assert once.isascii()
    assert is_plain(once)
    assert slug(once) == once


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = {new_id("team/cat") for _ in range(1000)}
    assert len(ids) == 1000
    assert all("-cat-" in id for id in ids)


@given(st.text(min_size=1))
def test_a_slug_is_a_fixed_point(name: str) -> None:
    once = slug(name)
    assert slug(once) == once
    assert is_plain(once)


@given(st.integers(0, 2**62))
def test_moments_are_written_as_the_standard_library_does(ns: int) -> None:
    moment = datetime.fromtimestamp(ns // 1_000_000 / 1000, UTC)
    assert datetime.fromisoformat(timestamp(ns)) - moment < timedelta(milliseconds=1)
    assert timestamp(ns).endswith("Z")
