"""The folders: claim, attempts, pictures, recover, publish, each in the order that keeps the promise."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest

from conftest import Darkroom
from darkroom.config import Folders
from darkroom.errors import ConfigError, SpoolInUse
from darkroom.job import ErrorReport
from darkroom.spool import Arrival, Call, Disk, Oddity, Spool, Ticket, Verdict
from darkroom.work.record import Record


@pytest.fixture
def spool(darkroom: Darkroom) -> Spool:
    spool = darkroom.spool()
    spool.open()
    return spool


def claim(spool: Spool, name: str) -> Ticket:
    arrival = next(found for found in spool.pending() if found.name == name)
    assert isinstance(arrival, Arrival)
    ticket = spool.claim(arrival)
    assert ticket is not None
    return ticket


def judged(spool: Spool, name: str) -> tuple[Ticket, Verdict]:
    ticket = claim(spool, name)
    return ticket, verdict_of(ticket)


def verdict_of(ticket: Ticket, *, failed: bool = False) -> Verdict:
    result = Record(ticket, b"{}").verdict().result
    if not failed:
        return Verdict(result)
    report = ErrorReport(status="failed", reason="invalid-request", message="no", errors=[], attempts=0, traceback=None)
    return Verdict(result.model_copy(update={"status": "failed"}), report)


def test_missing_folders_are_made(tmp_path: Path, darkroom: Darkroom) -> None:
    spool = Spool(Folders(root=tmp_path / "a" / "b"), darkroom.config.limits)
    spool.open()
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["done", "failed", "inbox", "working"]


def test_a_second_daemon_is_told_who_has_the_spool(darkroom: Darkroom, spool: Spool) -> None:
    with pytest.raises(SpoolInUse, match=f"process {os.getpid()} on ") as caught:
        darkroom.spool().open()
    assert caught.value.exit_code == 3
    spool.close()
    darkroom.spool().open()


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a second file system: /dev/shm")
def test_folders_on_two_file_systems_are_refused_with_the_remedy(darkroom: Darkroom) -> None:
    other = Path("/dev/shm") / f"darkroom-test-{os.getpid()}"
    folders = Folders(root=darkroom.root, done=other)
    try:
        with pytest.raises(ConfigError, match="put all four folders on one"):
            Spool(folders, darkroom.config.limits).open()
        assert list(darkroom.inbox.iterdir()) == []
    finally:
        other.rmdir()


def test_a_claim_is_one_rename_after_its_origin_is_durable(darkroom: Darkroom) -> None:
    calls: list[Call] = []
    spool = darkroom.spool(Disk(calls.append))
    spool.open()
    darkroom.drop("cat.json")
    calls.clear()
    ticket = claim(spool, "cat.json")
    assert [(call.name, call.path.name) for call in calls] == [
        ("mkdir", ticket.id),
        ("create", "origin.json"),
        ("write", "origin.json"),
        ("fsync", "origin.json"),
        ("fsync", ticket.id),
        ("fsync", "working"),
        ("rename", "cat.json"),
        ("fsync", ticket.id),
        ("fsync", "inbox"),
    ]
    assert [call.number for call in calls] == list(range(calls[0].number, calls[0].number + len(calls)))


def test_a_file_that_vanished_before_the_claim_is_nobodys(darkroom: Darkroom, spool: Spool) -> None:
    path = darkroom.drop("cat.json")
    (arrival,) = spool.pending()
    path.unlink()
    assert isinstance(arrival, Arrival)
    assert spool.claim(arrival) is None
    assert darkroom.names("working") == []


def test_publishing_writes_the_verdict_syncs_and_renames_last(darkroom: Darkroom) -> None:
    calls: list[Call] = []
    spool = darkroom.spool(Disk(calls.append))
    spool.open()
    darkroom.drop("cat.json")
    ticket = claim(spool, "cat.json")
    calls.clear()
    path = spool.publish(ticket, verdict_of(ticket))
    assert path == darkroom.done / "cat"
    steps = [(call.name, call.path.name) for call in calls]
    written = steps.index(("rename", ".result.json.tmp"))
    assert steps[written - 1] == ("fsync", ".result.json.tmp")
    assert {name for name, _ in steps[written + 1 : -4]} == {"unlink"}
    assert steps[-4:] == [("fsync", ticket.id), ("rename", ticket.id), ("fsync", "done"), ("fsync", "working")]
    assert sorted(entry.name for entry in path.iterdir()) == ["request.json", "result.json"]


def test_results_of_one_name_stand_side_by_side(darkroom: Darkroom, spool: Spool) -> None:
    """Fault 13."""
    ids = []
    for _ in range(3):
        darkroom.drop("cat.json")
        ticket = claim(spool, "cat.json")
        spool.publish(ticket, verdict_of(ticket))
        ids.append(ticket.id)
    assert darkroom.names("done") == ["cat", "cat~2", "cat~3"]
    assert [darkroom.result(name)["id"] for name in ("cat", "cat~2", "cat~3")] == ids
    assert darkroom.result("cat~3")["name"] == "cat~3"


def test_somebodys_file_or_empty_folder_in_done_is_not_replaced(darkroom: Darkroom, spool: Spool) -> None:
    (darkroom.done / "cat").mkdir()
    (darkroom.done / "cat~2").write_text("mine")
    darkroom.drop("cat.json")
    ticket = claim(spool, "cat.json")
    assert spool.publish(ticket, verdict_of(ticket)).name == "cat~3"
    assert list((darkroom.done / "cat").iterdir()) == []


def test_a_file_in_a_subfolder_is_published_in_a_subfolder(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("team/night/cat.json")
    ticket = claim(spool, "team/night/cat.json")
    assert spool.publish(ticket, verdict_of(ticket)) == darkroom.done / "team" / "night" / "cat"
    assert darkroom.result("team/night/cat")["name"] == "team/night/cat"


def test_a_group_never_lies_inside_a_result_of_the_same_name(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("team.json")
    ticket = claim(spool, "team.json")
    spool.publish(ticket, verdict_of(ticket))
    darkroom.drop("team/cat.json")
    ticket = claim(spool, "team/cat.json")
    assert spool.publish(ticket, verdict_of(ticket)) == darkroom.done / "team~2" / "cat"


def test_a_group_whose_name_is_somebodys_file_gets_another(darkroom: Darkroom, spool: Spool) -> None:
    (darkroom.done / "team").write_text("mine")
    darkroom.drop("team/cat.json")
    ticket = claim(spool, "team/cat.json")
    assert spool.publish(ticket, verdict_of(ticket)) == darkroom.done / "team~2" / "cat"
    assert (darkroom.done / "team").read_text() == "mine"


def test_a_folder_of_results_that_somebody_took_away_is_made_again_and_its_groups_too(
    darkroom: Darkroom, spool: Spool
) -> None:
    for name in ("one", "two"):
        darkroom.drop(f"team/{name}.json")
        ticket = claim(spool, f"team/{name}.json")
        assert spool.publish(ticket, verdict_of(ticket)) == darkroom.done / "team" / name
        shutil.rmtree(darkroom.done)


def test_a_name_that_is_not_text_is_kept_exactly(darkroom: Darkroom, spool: Spool) -> None:
    raw = b"caf\xe9.json"
    (darkroom.inbox / os.fsdecode(raw)).write_bytes(b"{}")
    ticket = claim(spool, os.fsdecode(raw))
    spool.publish(ticket, verdict_of(ticket))
    result = darkroom.result("caf")
    assert result["original_name"] == r"caf\xe9.json"
    assert base64.b64decode(result["original_name_base64"]) == raw


def test_a_working_folder_without_a_request_is_removed(darkroom: Darkroom, spool: Spool) -> None:
    left = darkroom.working / "20261124T000000Z-cat-00000000"
    left.mkdir()
    (left / "origin.json").write_text("{}")
    assert list(spool.recover()) == []
    assert not left.exists()


def test_a_written_verdict_is_published_not_run_again(darkroom: Darkroom, spool: Spool) -> None:
    for failed, base in ((False, darkroom.done), (True, darkroom.failed)):
        darkroom.drop("cat.json")
        ticket = claim(spool, "cat.json")
        verdict = verdict_of(ticket, failed=failed)
        (ticket.folder / "result.json").write_text(verdict.result.model_dump_json())
        if verdict.error:
            (ticket.folder / "error.json").write_text(verdict.error.model_dump_json())
        assert list(spool.recover()) == []
        assert (base / "cat" / "result.json").exists()
        assert not (base / "cat" / "origin.json").exists()


def test_half_a_result_is_no_verdict(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("cat.json")
    ticket = claim(spool, "cat.json")
    (ticket.folder / "result.json").write_text('{"darkroom": "0.1.0", "id": ')
    (found,) = spool.recover()
    assert (found.id, found.name, found.origin) == (ticket.id, ticket.name, ticket.origin)


def test_a_request_whose_origin_was_lost_is_still_run(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("cat.json")
    ticket = claim(spool, "cat.json")
    (ticket.folder / "origin.json").write_bytes(b"\0\0\0")
    (found,) = spool.recover()
    assert found.folder == ticket.folder
    assert found.name == ticket.id


def test_attempts_are_counted_by_how_they_ended(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("cat.json")
    ticket = claim(spool, "cat.json")
    assert ticket.begin_attempt() == 1
    ticket.end_attempt(1, "engine-died")
    assert ticket.begin_attempt() == 2
    ticket.forget_attempt(2)
    assert ticket.begin_attempt() == 2
    assert [attempt.ended for attempt in ticket.attempts()] == ["engine-died", None]


def test_pictures_are_found_by_their_numbers(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("cat-9.json")
    ticket = claim(spool, "cat-9.json")
    ticket.save_picture(11, "png", b"x")
    ticket.save_picture(0, "jpg", b"y")
    (ticket.folder / ".cat-9-5.png.tmp").write_bytes(b"half")
    assert {index: path.name for index, path in ticket.pictures().items()} == {0: "cat-9-1.jpg", 11: "cat-9-12.png"}


def test_what_is_no_job_is_left_and_reported(darkroom: Darkroom, spool: Spool) -> None:
    """Faults 14–16."""
    (darkroom.inbox / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(darkroom.inbox / "pipe.json")
    (darkroom.inbox / "notes.md").write_text("hello")
    (darkroom.inbox / "cat.sync-conflict-20261124-101112-ABCDEFG.json").write_text("{}")
    (darkroom.inbox / ".hidden.json").write_text("{}")
    (darkroom.inbox / "empty").mkdir()
    found = list(spool.pending())
    assert all(isinstance(one, Oddity) for one in found)
    assert {one.name for one in found} == {
        "link.json",
        "pipe.json",
        "notes.md",
        "cat.sync-conflict-20261124-101112-ABCDEFG.json",
    }


def test_the_log_of_a_job_never_raises(darkroom: Darkroom, spool: Spool) -> None:
    darkroom.drop("cat.json")
    ticket = claim(spool, "cat.json")
    ticket.log("job.note", {"text": "caf\udce9", "path": Path("x")})
    ticket.write_log()
    assert json.loads((ticket.folder / "log.jsonl").read_text())["event"] == "job.note"
    (ticket.folder / "log.jsonl").unlink()
    (ticket.folder / "log.jsonl").mkdir()
    ticket.log("job.note", {})
    ticket.write_log()


def test_ten_thousand_results_of_one_name_are_not_all_looked_at(
    darkroom: Darkroom, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 10_001):
        (darkroom.done / ("cat" if number == 1 else f"cat~{number}")).mkdir()
    looked_at: list[str] = []
    lexists = os.path.lexists

    def counting(path: str) -> bool:
        looked_at.append(path)
        return lexists(path)

    monkeypatch.setattr(os.path, "lexists", counting)
    darkroom.drop("cat.json")
    assert spool.publish(*judged(spool, "cat.json")).name == "cat~10001"
    assert len(looked_at) < 50


def test_the_plain_name_is_used_again_when_its_result_was_taken_away(darkroom: Darkroom, spool: Spool) -> None:
    names = []
    for _ in range(3):
        darkroom.drop("cat.json")
        names.append(spool.publish(*judged(spool, "cat.json")))
    assert [path.name for path in names] == ["cat", "cat~2", "cat~3"]
    shutil.rmtree(names[0])
    darkroom.drop("cat.json")
    assert spool.publish(*judged(spool, "cat.json")).name == "cat"
