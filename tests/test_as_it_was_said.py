"""What is said to the command line is what happens: ``--set`` under any name of a field, long prompts, late cancels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import Darkroom
from darkroom.cli import app
from darkroom.errors import UsageError
from darkroom.job import spellings

SMALL = {"prompt": "a red circle", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_EXECUTOR__KIND", "fake")
    monkeypatch.chdir(tmp_path)


def submit(darkroom: Darkroom, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["submit", "--root", str(darkroom.root), *arguments])


def submitted(darkroom: Darkroom, *arguments: str) -> Any:
    """The one job in the inbox, taken out again."""
    done = submit(darkroom, *arguments)
    assert done.exit_code == 0, done.exception
    (path,) = darkroom.inbox.glob("*.json")
    job = json.loads(path.read_bytes())
    path.unlink()
    return job


@pytest.mark.parametrize(
    ("job", "settings", "becomes"),
    [
        ({"num_inference_steps": 2}, ["steps=4"], {"steps": 4}),
        ({"steps": 2}, ["num_inference_steps=4"], {"num_inference_steps": 4}),
        ({"batch_size": 2, "n_iter": 3}, ["count=1"], {"count": 1}),
        ({"count": 3}, ["n_iter=2"], {"n_iter": 2}),
        ({"cfg_scale": 5, "sampler_name": "Euler"}, ["sampler=Heun"], {"cfg_scale": 5, "sampler": "Heun"}),
        ({"seed": 1}, ["seed=2"], {"seed": 2}),
    ],
)
def test_what_is_set_replaces_the_field_under_any_of_its_names(
    darkroom: Darkroom, tmp_path: Path, job: dict[str, Any], settings: list[str], becomes: dict[str, Any]
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    (tmp_path / "one.json").write_text(json.dumps({"prompt": "a"} | job))
    assert submitted(darkroom, "one.json", *options) == {"prompt": "a"} | becomes
    (tmp_path / "many.json").write_text(json.dumps({"defaults": job, "jobs": [{"prompt": "a"}, {"prompt": "b"} | job]}))
    kept = {name: value for name, value in becomes.items() if name in job and name not in options[1]}
    assert submitted(darkroom, "many.json", *options) == {
        "defaults": becomes,
        "jobs": [{"prompt": "a"}, {"prompt": "b"} | kept],
    }


def test_what_is_set_counts_in_a_result_a_published_folder_and_a_picture(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SMALL | {"prompt": "a {red} circle"})
    darkroom.run_once()
    folder = darkroom.done / "cat"
    for source in (folder, folder / "result.json", folder / "cat-1.png"):
        assert submit(darkroom, str(source), "--set", "seed=9", "--set", "steps=3", "--name", "again").exit_code == 0
        darkroom.run_once()
        made = darkroom.result("again")["job"]
        assert (made["seed"], made["num_inference_steps"]) == (9, 3)
        assert made["prompt"] == "a {red} circle"
        (darkroom.done / "again").rename(darkroom.root / source.name)


@pytest.mark.parametrize("prompt", ["a red circle, " * 40, "ä" * 200, "a/" * 3_000])
def test_a_prompt_may_be_longer_than_any_file_s_name(darkroom: Darkroom, prompt: str) -> None:
    assert submitted(darkroom, prompt)["prompt"] == prompt
    assert submit(darkroom, "a", "--set", f"init_image={prompt}").exception is not None  # no picture, and no OSError
    assert isinstance(submit(darkroom, "a", "--set", f"init_image={prompt}").exception, UsageError)


def test_a_file_that_is_no_job_by_its_name_is_not_taken_for_a_prompt(darkroom: Darkroom, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("a red circle\n")
    done = submit(darkroom, "prompts.csv")
    assert isinstance(done.exception, UsageError)
    assert "prompts.csv: this is a file, and files of jobs end in .json, .jsonl, .txt, " in str(done.exception)
    assert list(darkroom.inbox.iterdir()) == []


def test_an_empty_prompt_is_told_as_one(darkroom: Darkroom) -> None:
    assert "prompt: must not be empty" in str(submit(darkroom, "").exception)


def test_a_field_has_its_own_name_and_all_others() -> None:
    assert spellings("steps") == spellings("num_inference_steps") == {"steps", "num_inference_steps"}
    assert spellings("n_iter") == {"count", "num_images", "batch_size", "n_iter"}
    assert spellings("seed") == {"seed"}


def test_to_cancel_what_has_its_verdict_says_so(darkroom: Darkroom) -> None:
    darkroom.drop("team/cat.json")
    darkroom.drop("bad.json", "5")
    darkroom.run_once()
    done = CliRunner().invoke(app, ["cancel", "--root", str(darkroom.root), "team/cat", "bad", "nobody"])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"darkroom: team/cat has its verdict already: {darkroom.done / 'team' / 'cat'}",
        f"darkroom: bad has its verdict already: {darkroom.failed / 'bad'}",
        "darkroom: there is no such job: nobody",
    ]
