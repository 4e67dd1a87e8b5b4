"""Pause, resume, cancel, retry: said through files, while a daemon runs and while none does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from conftest import Darkroom
from darkroom.cli import app
from darkroom.errors import UsageError
from darkroom.executors import LocalExecutor
from test_loop import Running, until
from test_pictures_in import picture

COLOURS = {"photo.png": "red", "mask.png": "white"}


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_EXECUTOR__KIND", "fake")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


def say(darkroom: Darkroom, *arguments: str, code: int = 0) -> Result:
    ran = CliRunner().invoke(app, [*arguments, "--root", str(darkroom.root)])
    assert ran.exit_code == code, (ran.output, ran.exception)
    return ran


def test_a_pause_says_why_and_ends_with_resume(darkroom: Darkroom) -> None:
    say(darkroom, "pause", "the card is needed until six")
    loop = darkroom.loop()
    with Running(loop):
        darkroom.drop("cat.json")
        until(lambda: loop.health.report.state == "paused")
        assert loop.health.report.why == "the card is needed until six; `darkroom resume` goes on"
        assert json.loads(say(darkroom, "status", "--json").stdout)["paused"] is True
        assert darkroom.names("inbox") == ["cat.json"]
        say(darkroom, "resume")
        until(lambda: loop.work.done == 1)
    assert "not paused" in say(darkroom, "resume").stdout


def test_a_pause_without_words_and_one_with_odd_bytes_are_fine(darkroom: Darkroom) -> None:
    say(darkroom, "pause")
    assert "PAUSE" in darkroom.spool().why_paused()
    (darkroom.root / "PAUSE").write_bytes(b"\xff\n" * 2000)
    assert darkroom.spool().paused()
    assert len(darkroom.spool().why_paused()) < 2000


def test_a_job_that_waits_is_taken_out_of_the_inbox(darkroom: Darkroom) -> None:
    for name in ("cat.json", "team/cat.json", "dog.json"):
        darkroom.drop(name)
    assert "team/cat.json" in say(darkroom, "cancel", "team/cat").stdout
    say(darkroom, "cancel", "dog.json")
    assert [path.name for path in darkroom.inbox.rglob("*.json")] == ["cat.json"]


def test_a_job_that_runs_stops_at_its_next_step(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", num_inference_steps=100, count=5)
    loop = darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))
    with Running(loop):
        until(lambda: list(darkroom.working.glob("*/progress.json")))
        say(darkroom, "cancel", "cat")
        until(lambda: loop.work.failed == 1)
    assert darkroom.error("cat")["reason"] == "cancelled"


def test_a_name_that_nobody_has_is_said_with_those_that_are_near(darkroom: Darkroom) -> None:
    darkroom.drop("house.json")
    ran = say(darkroom, "cancel", "huose", code=1)
    assert "did you mean house?" in ran.stderr
    assert json.loads(say(darkroom, "cancel", "huose", "--json", code=1).stdout) == {"huose": []}
    assert darkroom.names("inbox") == ["house.json"]


def test_what_failed_goes_back_to_the_inbox_and_out_of_failed(darkroom: Darkroom) -> None:
    darkroom.drop("team/typo.json", {"promt": "x"})
    darkroom.drop("typo.json", {"promt": "y"})
    darkroom.run_once()
    content = (darkroom.failed / "typo" / "request.json").read_bytes()
    assert "waits again" in say(darkroom, "retry", "typo").stdout
    assert (darkroom.inbox / "typo.json").read_bytes() == content
    assert not (darkroom.failed / "typo").exists()
    say(darkroom, "retry", "--all")
    assert (darkroom.inbox / "team" / "typo.json").exists()
    darkroom.run_once()
    assert darkroom.names("failed") == ["team", "typo"]


def test_a_name_that_waits_already_is_not_replaced(darkroom: Darkroom) -> None:
    darkroom.drop("typo.json", {"promt": "x"})
    darkroom.run_once()
    newer = darkroom.drop("typo.json", {"prompt": "mended"})
    say(darkroom, "retry", "typo")
    assert b"mended" in newer.read_bytes()
    assert (darkroom.inbox / "typo-2.json").exists()


def test_of_a_job_that_was_done_in_part_the_rest_is_made_and_what_was_made_stays(
    darkroom: Darkroom, tmp_path: Path
) -> None:
    darkroom.configure(executor={"max_attempts": 1})
    marker = tmp_path / "crashes"
    marker.write_text("")
    darkroom.drop("cat.json", count=3, negative_prompt=str(marker))
    darkroom.run_once(LocalExecutor(darkroom.config, "engines:CrashingAfterOnePicture"))
    assert darkroom.error("cat")["status"] == "partial"
    assert json.loads((darkroom.root / "health.json").read_bytes())["engine_pid"] is None
    say(darkroom, "retry", "cat")
    assert "nothing is left" in say(darkroom, "retry", "cat").stdout
    darkroom.run_once()
    assert (darkroom.failed / "cat" / "cat-1.png").exists()
    seeds = [picture["seed"] for picture in darkroom.result("cat")["pictures"]]
    assert seeds == [8, 9]


def failing(darkroom: Darkroom) -> LocalExecutor:
    """An engine that makes one picture and dies, each time."""
    darkroom.configure(executor={"max_attempts": 1}, intake={"settle_s": 0.3, "rescan_s": 0.05})
    return LocalExecutor(darkroom.config, "engines:CrashingAfterOnePicture")


@pytest.mark.parametrize("where", ["cat.json", "cat/job.json"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_job_that_began_with_pictures_is_retried_with_them(darkroom: Darkroom, where: str, count: int) -> None:
    executor = failing(darkroom)
    if count == 1:
        executor = LocalExecutor(darkroom.config, "engines:Raising")
    job = {"prompt": "x", "seed": 7, "steps": 1, "count": count, "init_image": "photo.png", "mask_image": "mask.png"}
    darkroom.drop(where, job)
    for name in ("photo.png", "mask.png"):
        darkroom.drop(where.replace("cat.json", name).replace("job.json", name), picture(colour=COLOURS[name]))
    darkroom.run_once(executor)
    assert darkroom.names("failed") == ["cat"]
    assert "waits again" in say(darkroom, "retry", "cat").stdout
    darkroom.run_once()
    result = darkroom.result("cat")
    assert [made["seed"] for made in result["pictures"]] == ([7] if count == 1 else [8, 9])
    for field in ("init_image", "mask_image"):
        copy = (darkroom.done / "cat" / result["job"][field]).read_bytes()
        assert copy == picture(colour=COLOURS[job[field]])
    assert darkroom.names("failed") == ([] if count == 1 else ["cat"])


def test_a_folder_that_waits_is_taken_out_whole(darkroom: Darkroom) -> None:
    darkroom.drop("cat/job.json", {"prompt": "x", "init_image": "photo.png"})
    darkroom.drop("cat/photo.png", picture())
    darkroom.drop("dog/job.json")
    assert str(darkroom.inbox / "cat") in say(darkroom, "cancel", "cat").stdout
    assert darkroom.names("inbox") == ["dog"]
    say(darkroom, "cancel", "job.json", code=1)


def test_without_a_name_retry_lists_what_failed_and_why(darkroom: Darkroom) -> None:
    darkroom.run_once()
    assert say(darkroom, "retry").stdout == say(darkroom, "retry", "--all").stdout == "nothing has failed\n"
    darkroom.drop("team/typo.json", {"promt": "x"})
    darkroom.run_once()
    message = darkroom.error("team/typo")["message"]
    assert f"✗ team/typo: {message}\n" in say(darkroom, "retry").stdout
    assert json.loads(say(darkroom, "retry", "--json").stdout) == {"team/typo": message}
    (darkroom.failed / "team" / "typo" / "error.json").write_text("{}")
    assert "✗ team/typo: its error.json cannot be read" in say(darkroom, "retry").stdout


def test_a_job_of_folders_that_are_gone_goes_back_into_them(darkroom: Darkroom) -> None:
    path = darkroom.drop("team/deep/typo.json", {"promt": "x"})
    darkroom.run_once()
    shutil.rmtree(darkroom.inbox / "team")
    say(darkroom, "retry", "team/deep/typo")
    assert path.exists()


def test_names_and_all_are_one_or_the_other(darkroom: Darkroom) -> None:
    with pytest.raises(UsageError, match="--all"):
        app(["retry", "cat", "--all", "--root", str(darkroom.root)], standalone_mode=False)


def test_where_there_is_no_spool_it_is_said(tmp_path: Path) -> None:
    for arguments in (["pause"], ["resume"], ["cancel", "cat"], ["retry", "--all"]):
        with pytest.raises(UsageError, match="no spool"):
            app([*arguments, "--root", str(tmp_path / "none")], standalone_mode=False)
