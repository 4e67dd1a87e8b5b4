"""``darkroom bench``: it runs, cleans up, and its floor does what the daemon does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from darkroom.bench import JOB, Daemon, Floor
from darkroom.cli import app


def bench(*arguments: str) -> dict[str, Any]:
    ran = CliRunner().invoke(app, ["bench", *arguments])
    assert ran.exit_code == 0, ran.output
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def test_the_spool_is_measured_against_the_bare_calls(tmp_path: Path) -> None:
    figures = bench("spool", "--jobs", "40", "--dir", str(tmp_path), "--json")
    assert figures["jobs"] == 40
    assert 0.02 < figures["ratio"] < 3
    assert figures["jobs_per_s"] > 1
    assert figures["cpu_us_per_job"] > 0
    assert 8 <= figures["fsyncs_per_job"] < figures["calls_per_job"]
    assert list(tmp_path.iterdir()) == []


def test_many_waiting_are_measured_against_few(tmp_path: Path) -> None:
    """Fault 53."""
    figures = bench("spool", "--waiting", "2000", "--jobs", "60", "--dir", str(tmp_path), "--json")
    assert figures["waiting"] == 2000
    assert 0.1 < figures["ratio"] < 10
    assert 0 < figures["claim_us"] < 1e6
    assert figures["first_claim_s"] < 20


def test_many_results_are_measured_against_none(tmp_path: Path) -> None:
    """Fault 54."""
    figures = bench("spool", "--results", "500", "--jobs", "60", "--dir", str(tmp_path), "--json")
    assert figures["results"] == 500
    assert 0.1 < figures["ratio"] < 10


def test_without_json_the_figures_are_for_people(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["bench", "spool", "--jobs", "5", "--dir", str(tmp_path)])
    assert ran.exit_code == 0
    assert "jobs/s" in ran.stdout
    assert "ratio" in ran.stdout


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    from darkroom.errors import UsageError

    with pytest.raises(UsageError, match="--dir"):
        app(["bench", "spool", "--dir", str(tmp_path / "none")], standalone_mode=False)


def test_the_floor_leaves_the_same_files_as_the_daemon(tmp_path: Path) -> None:
    floor = Floor(tmp_path)
    for call, values in floor.prepare(1):
        call(*values)
    (tmp_path / "real" / "inbox").mkdir(parents=True)
    (tmp_path / "real" / "inbox" / "job-0000000.json").write_bytes(JOB)
    with Daemon(tmp_path / "real") as daemon:
        daemon.do(1)

    def sizes(root: Path) -> dict[str, int]:
        folders = [root / name for name in ("inbox", "working", "done")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(root)): path.stat().st_size for path in files}

    ours, bare = sizes(tmp_path / "real"), sizes(tmp_path / "floor")
    assert ours.keys() == bare.keys()
    assert all(abs(ours[name] - bare[name]) <= 50 for name in ours)
