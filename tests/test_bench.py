"""``darkroom bench``: it runs, cleans up, and its floor does what the daemon does.

How fast it is hangs on what else the machine does: the bounds tell a ratio from other figures, `make speed` judges it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from darkroom.bench.engine import cases
from darkroom.bench.spool import JOB, Daemon, Floor
from darkroom.cli import app
from darkroom.errors import UsageError


def bench(*arguments: str) -> dict[str, Any]:
    ran = CliRunner().invoke(app, ["bench", *arguments])
    assert ran.exit_code == 0, ran.output
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def test_the_spool_is_measured_against_the_bare_calls(tmp_path: Path) -> None:
    figures = bench("spool", "--jobs", "40", "--dir", str(tmp_path), "--json")
    assert figures["jobs"] == 40
    assert 0.01 < figures["ratio"] < 100
    assert figures["jobs_per_s"] > 1
    assert figures["cpu_us_per_job"] > 0
    assert 8 <= figures["fsyncs_per_job"] < figures["calls_per_job"]
    assert list(tmp_path.iterdir()) == []


def test_many_waiting_are_measured_against_few(tmp_path: Path) -> None:
    """Fault 53."""
    figures = bench("spool", "--waiting", "2000", "--jobs", "60", "--dir", str(tmp_path), "--json")
    assert figures["waiting"] == 2000
    assert 0.01 < figures["ratio"] < 100
    assert 0 < figures["claim_us"] < 1e6
    assert figures["first_claim_s"] < 20


def test_many_results_are_measured_against_none(tmp_path: Path) -> None:
    """Fault 54."""
    figures = bench("spool", "--results", "500", "--jobs", "60", "--dir", str(tmp_path), "--json")
    assert figures["results"] == 500
    assert 0.01 < figures["ratio"] < 100


def test_without_json_the_figures_are_for_people(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["bench", "spool", "--jobs", "5", "--dir", str(tmp_path)])
    assert ran.exit_code == 0
    assert "jobs/s" in ran.stdout
    assert "ratio" in ran.stdout


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
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


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's configuration nor their cache."""
    folder = tmp_path_factory.mktemp("alone")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DARKROOM_ENGINE__CACHE_DIR", str(folder / "cache"))


def test_figures_say_where_with_what_and_when(tmp_path: Path) -> None:
    figures = bench("spool", "--jobs", "5", "--dir", str(tmp_path), "--json")
    assert figures["bench"] == "spool"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", figures["date"])
    assert figures["machine"]["cores"] >= 1
    assert {"darkroom", "python", "torch"} <= figures["versions"].keys()


def test_publishing_is_measured_against_pictures_thrown_away(tmp_path: Path) -> None:
    figures = bench("publish", "--jobs", "2", "--dir", str(tmp_path), "--json")
    assert figures["jobs"] == 2
    assert 0.01 < figures["ratio"] < 100
    assert figures["device"].startswith("cpu")
    assert figures["png_ratio"] > 1
    assert 0.9 < figures["png_bytes_ratio"] < 1.07
    assert list(tmp_path.iterdir()) == []


def test_waits_are_measured(tmp_path: Path) -> None:
    figures = bench("start", "--rounds", "1", "--dir", str(tmp_path), "--json")
    assert all(figures[name] > 0 for name in ("python_s", "help_s", "daemon_ready_s"))
    assert 0.01 < figures["engine_ratio"] < 100
    assert figures["drops"] == 20
    assert 0 < figures["drop_idle_ms"] <= figures["drop_idle_p99_ms"]
    assert 0 < figures["drop_rendering_ms"] <= figures["drop_rendering_p99_ms"]
    assert list(tmp_path.iterdir()) == []


def test_whole_pictures_are_measured_beside_diffusers(tmp_path: Path) -> None:
    figures = bench(
        *("engine", "--size", "64", "--steps", "2", "--steps", "3", "--rounds", "1"),
        *("--dir", str(tmp_path), "--plot", str(tmp_path / "plot.png"), "--json"),
    )
    assert [(row["size"], row["steps"], row["batch"]) for row in figures["cases"]] == [(64, 2, 1), (64, 3, 1)]
    for row in figures["cases"]:
        taken = row["ours_s"]
        assert 0 < taken["minimum"] <= taken["median"] <= taken["maximum"]
        for ratio in ("tutorial_ratio", "pipeline_ratio", "pipeline_step_ratio"):
            assert 0.01 < row[ratio] < 100
        assert 0 < row["efficiency_ratio"] < 10
    assert 0 < figures["frame"]["step_us"] < 1e6
    assert figures["frame"]["call_us"] > figures["frame"]["step_us"]
    assert figures["frame"]["known_call_us"] > 0
    assert 0.01 < figures["frame"]["step_us_ratio"] < 100
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.format == "PNG"
        assert plot.width > 600
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_models_are_named_or_made_and_no_others(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="darkroom models"):
        app(["bench", "engine", "--model", "none", "--dir", str(tmp_path)], standalone_mode=False)
    with pytest.raises(UsageError, match="one of them"):
        app(["bench", "engine", "--model", "seedling", "--arch", "sd15"], standalone_mode=False)


def test_the_tutorial_s_table_is_a_preset() -> None:
    table = cases([512, 768], [20, 50, 100], [1])
    assert [(case.size, case.steps) for case in table] == [
        (512, 20), (512, 50), (512, 100), (768, 20), (768, 50), (768, 100),
    ]  # fmt: skip
