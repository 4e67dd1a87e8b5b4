"""Many jobs from one file: a list becomes its entries, each a job with a verdict of its own."""

from __future__ import annotations

import errno
import json
import os
import time
from itertools import count as count_up
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.cli.status import count
from darkroom.config import Limits
from darkroom.dropped import read
from darkroom.errors import InvalidRequest, Unfinished
from darkroom.executors import LocalExecutor
from darkroom.job import JobList, is_entry_file, parse
from darkroom.reading import Reader
from darkroom.spool import Call, Disk
from test_intake import Desk
from test_loop import Running, until

SMALL = {"num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}


@pytest.fixture
def darkroom(darkroom: Darkroom) -> Darkroom:
    darkroom.configure(intake={"settle_s": 0.2})
    return darkroom


def listed(name: str, text: str, **limits: int) -> JobList:
    found = read(name, text.encode(), Limits(**limits))
    assert isinstance(found, JobList)
    return found


def refusal(name: str, text: str | bytes, **limits: int) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(name, text.encode() if isinstance(text, str) else text, Limits(**limits))
    return caught.value


def names(found: JobList) -> list[int]:
    return [entry.number for entry in found.entries]


# Reading


def test_a_list_has_its_entries_where_they_stand() -> None:
    found = listed("x.json", '[{"prompt": "a"},\n  {"prompt":\n "b"}, 5]')
    assert [(entry.number, entry.line, entry.column) for entry in found.entries] == [(1, 1, 2), (2, 2, 3), (3, 3, 8)]
    assert found.entries[1].written == '{"prompt":\n "b"}'


def test_of_a_text_each_line_is_a_prompt_but_blank_ones_and_comments() -> None:
    found = listed("x.TXT", "\ufeff# colours\n\n  a red circle \r\n\t\na (blue:1.2) {square|circle}, # not a comment\n")
    assert [(entry.number, entry.written) for entry in found.entries] == [
        (3, "a red circle"),
        (5, "a (blue:1.2) {square|circle}, # not a comment"),
    ]
    request = parse(found.entries[1].as_file("x.TXT", None))
    assert request.prompt == "a (blue:1.2) {square|circle}, # not a comment"


def test_json_lines_are_numbered_by_line() -> None:
    assert names(listed("x.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"}')) == [1, 3]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", "[]", "no job in this list"),
        ("x.txt", "# nothing\n\n", "no job in this list"),
        ("x.jsonl", "\n", "no job in this list"),
        ("x.json", '{"jobs": []}', "no job in this list"),
        ("x.json", '{"jobs": {"prompt": "a"}}', "jobs: must be a list"),
        ("x.json", '{"defaults": [], "jobs": [{}]}', "defaults: must be an object"),
        ("x.json", '{"default": {}, "jobs": [{}]}', "line 1, column 13: default: unknown field"),
        ("x.json", '{"defaults": {"widht": 64}, "jobs": [{}]}', "line 1, column 24: widht: unknown field"),
        ("x.json", '[{"prompt": "a"}, ]', "line 1, column 19"),
        ("x.txt", b"\xff\xfea\0", "UTF-16"),
        ("x.jsonl", b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_what_is_wrong_as_a_whole_is_refused_as_a_whole(name: str, text: str | bytes, said: str) -> None:
    assert said in str(refusal(name, text))


def test_a_list_that_is_not_all_there_is_not_refused_yet() -> None:
    assert isinstance(refusal("x.json", '[{"prompt": "a"}, {"prom'), Unfinished)


def test_the_number_of_jobs_in_a_file_is_bounded() -> None:
    assert len(listed("x.txt", "a\n" * 3, max_jobs_per_file=3).entries) == 3
    assert "4 jobs are too many for one list ([limits] max_jobs_per_file is 3)" in str(
        refusal("x.txt", "a\n" * 4, max_jobs_per_file=3)
    )


def test_defaults_cannot_be_blown_up_by_many_small_entries() -> None:
    text = json.dumps({"defaults": {"negative_prompt": "x" * 9000}, "jobs": [{}] * 9000})
    assert "too long to be written into each of 9,000 jobs" in str(refusal("x.json", text))


def test_a_list_too_deep_for_its_jobs_is_refused() -> None:
    assert "too deep" in str(refusal("a/b/c/d/e/f/g/h/x.txt", "a"))
    assert listed("a/b/c/d/e/f/g/x.txt", "a")


# Entries


def entry(name: str, text: str, number: int = 0) -> Any:
    found = listed(name, text)
    return parse(found.entries[number].as_file(name, found.defaults))


def test_an_entry_has_the_defaults_of_its_list_and_its_own_win_by_any_name() -> None:
    text = '{"defaults": {"steps": 3, "cfg_scale": 4}, "jobs": [{"prompt": "a", "num_inference_steps": 5}]}'
    request = entry("x.json", text)
    assert (request.num_inference_steps, request.guidance_scale) == (5, 4)
    assert request.source == {"list": {"file": "x.json", "entry": 1, "line": 1, "column": 53}}


def test_defaults_may_hold_the_prompt() -> None:
    assert entry("x.json", '{"defaults": {"prompt": "a"}, "jobs": [{"seed": 1}]}').prompt == "a"


def test_a_result_in_a_list_is_its_job() -> None:
    result = {"darkroom": "0", "pictures": [], "job": {"prompt": "a", "seed": 3}}
    assert entry("x.json", json.dumps([result])).seed == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "x.json",
            '[{"prompt": "a"},\n {"promt": "b"}]',
            "x.json, entry 2: The job is not valid: line 2, column 12: promt",
        ),
        ("x.json", '[1,\n[{"prompt": "b"}]]', "x.json, entry 2: This is not a job"),
        ("x.json", '[1,\n{"jobs": [{"prompt": "b"}]}]', "line 2, column 10: jobs: a list of jobs cannot stand"),
        ("x.jsonl", '{"prompt": "a"}\n {"prompt": }', "x.jsonl, line 2: This is not valid JSON: line 2, column 13"),
        (
            "x.jsonl",
            '{"prompt": "a"}\n {"prompt": "b", "n": 1}',
            "x.jsonl, line 2: The job is not valid: line 2, column 23: n",
        ),
        ("x.jsonl", '1\n{"prompt": "a", "prompt": "b"}', 'line 2, column 17: "prompt" stands here twice'),
        ("x.txt", "a\n" + "x" * 10_001, "x.txt, line 2: The job is not valid: line 2, column 1: prompt: has 10,001"),
        ("x.txt", "a\nb\0c", "x.txt, line 2: The job is not valid: line 2, column 1: prompt: holds a NUL"),
    ],
)
def test_a_bad_entry_is_told_by_its_place_in_the_list(name: str, text: str, said: str) -> None:
    """Faults 22 to 33, of one entry among others."""
    with pytest.raises(InvalidRequest) as caught:
        entry(name, text, 1)
    assert said in caught.value.message
    assert not isinstance(caught.value, Unfinished)


# Through the daemon


def test_each_entry_becomes_a_job_and_a_bad_one_fails_alone(darkroom: Darkroom) -> None:
    jobs: list[Any] = [{"prompt": "a"}, {"promt": "b"}, {"prompt": "c", "model": "seeding"}, {"prompt": "d", "seed": 9}]
    darkroom.drop("night.json", {"defaults": SMALL, "jobs": jobs})
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (2, 2)
    assert sorted(path.name for path in (darkroom.done / "night").iterdir()) == ["0001", "0004", "list"]
    assert darkroom.result("night/0001")["job"]["seed"] == 7
    assert darkroom.result("night/0004")["job"]["seed"] == 9
    assert darkroom.result("night/0004")["source"]["list"]["entry"] == 4
    assert darkroom.error("night/0002")["errors"][0]["column"] == 116
    said = 'night.json, entry 3: The job cannot be done here: line 1, column 147: model: there is no model "seeding"'
    assert darkroom.error("night/0003")["message"].startswith(said)
    assert darkroom.names("inbox") == darkroom.names("working") == []


def test_the_list_itself_is_kept_as_it_was_with_a_verdict_of_its_own(darkroom: Darkroom) -> None:
    darkroom.drop("team/night.txt", "a\nb\n# c\n")
    darkroom.run_once()
    folder = darkroom.done / "team" / "night" / "list"
    assert (folder / "request.txt").read_text() == "a\nb\n# c\n"
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "request.txt", "result.json"]
    result = darkroom.result("team/night/list")
    assert (result["entries"], result["name"], result["original_name"]) == (2, "team/night/list", "team/night.txt")
    assert darkroom.names("inbox") == ["team"]


def test_a_list_dropped_again_gets_a_folder_of_its_own(darkroom: Darkroom) -> None:
    for _ in range(3):
        darkroom.drop("night.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]
        darkroom.run_once()
    assert darkroom.names("done") == ["night", "night~2", "night~3"]
    assert darkroom.result("night~3/0001")["name"] == "night~3/0001"


def test_a_name_that_somebody_else_has_is_not_used(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json")
    darkroom.run_once()
    (darkroom.inbox / "cat~2").mkdir()
    darkroom.drop("cat.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]
    darkroom.run_once()
    assert darkroom.names("done") == ["cat", "cat~3"]


@pytest.mark.parametrize("stem", ["a.part", "x~", "-night", "con", "é" * 60, "a (conflict 2026-01-01)"])
def test_a_list_of_an_odd_name_runs_as_well(darkroom: Darkroom, stem: str) -> None:
    darkroom.drop(f"{stem}.jsonl", json.dumps({"prompt": "a"} | SMALL))
    if "conflict" in stem:
        (darkroom.inbox / f"{stem}.jsonl").rename(darkroom.inbox / "a.sync-conflict.jsonl")
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (1, 0)
    assert darkroom.names("inbox") == []


def test_a_list_in_a_folder_whose_name_is_no_text_runs_as_well(darkroom: Darkroom) -> None:
    """Fault 19."""
    darkroom.drop("\udcff/night\udcfe.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (1, 0)
    (result,) = darkroom.done.rglob("0001/result.json")
    assert json.loads(result.read_bytes())["source"]["list"]["file"] == "\\xff/night\\xfe.json"


def test_a_list_whose_folder_is_taken_away_meanwhile_goes_on_in_the_inbox(darkroom: Darkroom) -> None:
    darkroom.drop("team/night.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]

    def observe(call: Call) -> None:
        if call.path.name == ".list.json.tmp" and call.name == "rename" and (darkroom.inbox / "team").is_dir():
            (darkroom.inbox / "team").rmdir()

    darkroom.run_once(disk=Disk(observe))
    assert darkroom.result("night/0001")["status"] == "done"
    assert darkroom.names("inbox") == darkroom.names("working") == []


def test_a_name_that_is_taken_in_the_last_moment_leads_to_another(darkroom: Darkroom) -> None:
    darkroom.drop("night.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]

    def observe(call: Call) -> None:
        if call.path.name == ".list.json.tmp" and call.name == "rename" and not (darkroom.inbox / "night").exists():
            (darkroom.inbox / "night").write_text("mine")

    darkroom.run_once(disk=Disk(observe))
    assert darkroom.result("night~2/0001")["status"] == "done"
    assert darkroom.names("working") == []


def test_the_status_counts_jobs_as_the_daemon_does(darkroom: Darkroom) -> None:
    darkroom.drop("night.json", [{"prompt": "a"} | SMALL, {"promt": "b"}])  # type: ignore[arg-type]
    darkroom.drop("team/list.json")
    darkroom.run_once()
    darkroom.drop("night.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]
    loop = darkroom.run_once()
    assert darkroom.result("night~2/list")["entries"] == 1
    counts = count(loop.spool)
    assert (counts["done"], counts["failed"]) == (3, 1)


def claimed(darkroom: Darkroom) -> list[str]:
    return [fields["name"] for fields in darkroom.log.of("job.claimed")]


def test_the_order_is_that_of_the_lines_and_of_arrival(darkroom: Darkroom) -> None:
    darkroom.drop("before.json")
    time.sleep(0.02)
    darkroom.drop("night.json", [{"prompt": str(number)} | SMALL for number in range(30)])  # type: ignore[arg-type]
    time.sleep(0.02)
    darkroom.run_once()
    darkroom.drop("night.json", [{"prompt": "a"} | SMALL, {"prompt": "b"} | SMALL])  # type: ignore[arg-type]
    darkroom.drop("!now.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]
    darkroom.run_once()
    wanted = ["before", *(f"night/{number:04}" for number in range(1, 31)), "!now/0001", "night~2/0001", "night~2/0002"]
    assert claimed(darkroom) == wanted


def test_a_list_that_arrives_while_a_job_runs_keeps_its_place(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    darkroom.drop("long.json")
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Held"))):
        until(lambda: "model.loaded" in darkroom.log.events())
        darkroom.drop("night.json", [{"prompt": "a"} | SMALL, {"prompt": "b"} | SMALL])  # type: ignore[arg-type]
        until((darkroom.done / "night" / "list").exists)
        assert not (darkroom.done / "long").exists()
        time.sleep(0.05)
        darkroom.drop("after.json")
        (darkroom.root / "go-on").touch()
        until((darkroom.done / "after").exists)
    assert claimed(darkroom) == ["long", "night/0001", "night/0002", "after"]


def test_a_text_is_taken_when_it_has_not_grown_for_the_settle_time(darkroom: Darkroom) -> None:
    """Fault 2, of a kind without an end mark."""
    desk = Desk(darkroom, judge=Reader(darkroom.config, darkroom.inbox).judge)
    path = darkroom.drop("night.txt", "a\n")
    for line in "bcd":
        assert desk.after(9).refused() == []
        with path.open("a") as file:
            file.write(f"{line}\n")
        desk.after(0)
    assert desk.after(9).refused() == []
    assert desk.after(2).refused() == ["night.txt"]
    desk.spool.close()
    darkroom.configure(intake={"settle_s": 0.1})
    darkroom.run_once()
    assert darkroom.result("night/list")["entries"] == 4


def test_a_paused_daemon_splits_nothing(darkroom: Darkroom) -> None:
    darkroom.drop("night.json", [{"prompt": "a"} | SMALL])  # type: ignore[arg-type]
    (darkroom.root / "PAUSE").touch()
    with Running(darkroom.loop()):
        time.sleep(1)
        assert darkroom.names("inbox") == ["night.json"]
        (darkroom.root / "PAUSE").unlink()
        until((darkroom.done / "night" / "0001").exists)


def test_an_entry_that_waits_can_be_changed_and_taken_out(darkroom: Darkroom) -> None:
    darkroom.drop("night.json", [{"prompt": "a"} | SMALL, {"prompt": "b"} | SMALL])  # type: ignore[arg-type]

    def observe(call: Call) -> None:
        if call.name == "rename" and call.path.name == "0001.json":
            raise KeyboardInterrupt

    loop = darkroom.loop(disk=Disk(observe), once=True)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    loop.guard.stop()
    first, second = sorted((darkroom.inbox / "night").iterdir())
    assert is_entry_file(first.read_bytes())
    first.unlink()
    second.write_text(second.read_text().replace('"b"', '"c"'))
    darkroom.run_once()
    assert darkroom.names("done") == ["night"]
    assert darkroom.result("night/0002")["job"]["prompt"] == "c"


def test_a_failed_entry_is_tried_again_with_its_defaults(darkroom: Darkroom) -> None:
    darkroom.drop("night.json", {"defaults": SMALL, "jobs": [{"prompt": "a", "model": "later"}]})
    darkroom.run_once()
    again = (darkroom.failed / "night" / "0001" / "request.json").read_text().replace('"later"', '"seedling"')
    darkroom.drop("again.json", again)
    darkroom.run_once()
    assert darkroom.result("again")["job"]["seed"] == 7


def test_a_full_disk_in_the_midst_of_a_list_is_waited_out(darkroom: Darkroom) -> None:
    """Fault 48."""
    darkroom.drop("night.json", [{"prompt": str(number)} | SMALL for number in range(20)])  # type: ignore[arg-type]
    refused = iter(range(3))

    def observe(call: Call) -> None:
        if call.name == "write" and call.path.name == "0010.json" and next(refused, None) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(call.path))

    loop = darkroom.loop(disk=Disk(observe), once=True)
    loop.trouble.first_pause_s = 0.01
    loop.run()
    assert next(refused, None) is None
    assert loop.work.done == 20
    assert len(list((darkroom.done / "night").iterdir())) == 21


def test_a_long_list_is_split_in_slices_and_the_daemon_looks_around(darkroom: Darkroom) -> None:
    number = 3000
    text = "".join(f"a red circle, number {index}\n" for index in range(number))
    darkroom.drop("night.txt", text)
    readings = count_up(0.0, 0.001)
    loop = darkroom.loop(clock=lambda: next(readings))  # however quick the machine is, a slice ends after 50 readings
    loop.spool.open()
    loop.startup()
    assert loop.turns.next() is None
    begin, slices = time.process_time(), 0
    while not (darkroom.done / "night" / "list").exists():
        slices += bool(loop.turns.lists)
        loop.tick()
        time.sleep(0.01)
    seconds = time.process_time() - begin
    print(f"{number} jobs in {slices} slices, {seconds:.2f} s of processor time")
    loop.shutdown()
    assert len(list((darkroom.inbox / "night").iterdir())) == number
    assert seconds < 20  # 0.5 s on a quiet machine
    assert slices >= 3


def test_that_a_list_is_one_is_known_without_parsing_every_job_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr("darkroom.job.lists.read_json", parsed.append)
    read("x.json", b'{"prompt": "a"}', Limits())
    assert not parsed


def test_pictures_that_entries_begin_with_lie_beside_the_list_or_in_a_folder_below_it(darkroom: Darkroom) -> None:
    darkroom.configure(intake={"settle_s": 1})
    darkroom.drop("made.json")
    darkroom.run_once()
    own = (darkroom.done / "made" / "made-1.png").read_bytes()  # it carries a recipe, and would be a job by itself
    Image.new("RGB", (64, 64)).save(darkroom.root / "photo.png")
    darkroom.drop("photo.png", (darkroom.root / "photo.png").read_bytes())
    darkroom.drop("below/made.png", own)
    jobs = [{"prompt": "a", "init_image": name} | SMALL for name in ("photo.png", "photo.png", "below/made.png")]
    darkroom.drop("night.json", [*jobs, {"prompt": "a", "init_image": "none.png"} | SMALL])  # type: ignore[arg-type]
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (3, 1)
    for number in (1, 2, 3):
        result = darkroom.result(f"night/000{number}")
        assert result["job"]["init_image"] == "init_image.png"
    assert (darkroom.done / "night" / "0003" / "init_image.png").read_bytes() == own
    message = darkroom.error("night/0004")["message"]
    assert message.startswith("night.json, entry 4: ")
    assert 'the picture "none.png" is not beside the job' in message
