"""Figures for Prometheus, as its own parser reads them; the dashboard and the alerts name no others."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from conftest import Darkroom
from darkroom.config import MetricsSettings
from darkroom.events import Fallback
from darkroom.executors import LocalExecutor
from darkroom.health import Health, Recent
from darkroom.loop import Loop
from darkroom.spool import Disk
from darkroom.viewers.exporter import Exporter
from darkroom.viewers.metrics import MOST_MODELS, OTHER, Metrics
from test_loop import Running, until

MONITORING = Path(__file__).parents[1] / "docs" / "monitoring"


def samples(text: str) -> dict[str, float]:
    """By name and labels, as they stand: ``darkroom_state{state="idle"}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def get(loop: Loop, path: str) -> tuple[int, str]:
    assert loop.onlookers.exporter is not None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{loop.onlookers.exporter.port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def listening(darkroom: Darkroom) -> Darkroom:
    darkroom.configure(metrics={"listen": "127.0.0.1:0"})
    return darkroom


def test_what_happened_is_counted_by_verdict_and_reason_and_timed_by_model(listening: Darkroom) -> None:
    listening.drop("a.json", count=2)
    listening.drop("b.json")
    listening.drop("typo.json", {"promt": "x"})
    loop = listening.loop()
    with Running(loop):
        until(lambda: loop.onlookers.exporter is not None and loop.onlookers.exporter.port)
        until(lambda: loop.work.done + loop.work.failed == 3)
        until(lambda: samples(get(loop, "/metrics")[1])["darkroom_jobs_running"] == 0)
        status, text = get(loop, "/metrics")
        found = samples(text)
    assert status == 200
    assert found['darkroom_jobs_total{reason="",verdict="done"}'] == 2
    assert found['darkroom_jobs_total{reason="invalid-request",verdict="failed"}'] == 1
    assert found["darkroom_pictures_total"] == 3
    for phase in ("queue", "denoise", "total"):
        assert found[f'darkroom_{phase}_seconds_count{{model="seedling"}}'] == 2
    assert 'darkroom_load_seconds_count{model="seedling"}' not in found, "nothing was loaded"
    assert found["darkroom_jobs_waiting"] == 0
    assert found["darkroom_free_bytes"] > 1 << 20
    assert found['darkroom_memory_bytes{process="daemon"}'] > 1 << 20
    assert found['darkroom_memory_peak_bytes{process="daemon"}'] >= found['darkroom_memory_bytes{process="daemon"}']
    assert sum(value for name, value in found.items() if name.startswith("darkroom_state{")) == 1
    assert abs(found["darkroom_last_verdict_time_seconds"] - time.time()) < 60


def test_steps_down_are_counted_by_rung_and_the_engine_s_memory_is_seen(
    listening: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    listening.drop("cat.json", num_inference_steps=40)
    loop = listening.loop(LocalExecutor(listening.config, "engines:SteppingDown"))
    with Running(loop):
        until(lambda: loop.onlookers.exporter is not None and loop.onlookers.exporter.port)
        until(lambda: 'darkroom_fallbacks_total{rung="tiled_vae"}' in samples(get(loop, "/metrics")[1]))
        loop.health.measure()
        found = samples(get(loop, "/metrics")[1])
    assert found['darkroom_fallbacks_total{rung="tiled_vae"}'] == 1
    assert found['darkroom_memory_bytes{process="engine"}'] > 1 << 20


def test_health_and_readiness_tell_trouble_from_a_pause(listening: Darkroom) -> None:
    loop = listening.loop()
    with Running(loop):
        until(lambda: loop.onlookers.exporter is not None and loop.onlookers.exporter.port)
        until(lambda: get(loop, "/readyz") == (200, "idle\n"))
        assert get(loop, "/healthz") == (200, "ok\n")
        (listening.root / "PAUSE").write_text("lunch")
        until(lambda: get(loop, "/readyz") == (200, "paused: lunch; `darkroom resume` goes on\n"))
        (listening.root / "PAUSE").unlink()
        listening.inbox.rename(listening.root / "elsewhere")
        until(lambda: get(loop, "/readyz")[0] == 503)
        assert samples(get(loop, "/metrics")[1])["darkroom_in_trouble"] == 1
        (listening.root / "elsewhere").rename(listening.inbox)
        until(lambda: get(loop, "/readyz")[0] == 200)
        assert get(loop, "/")[0] == 404


def test_a_loop_that_does_not_come_by_is_not_healthy(tmp_path: Path) -> None:
    now = [0.0]
    health = Health(tmp_path, Disk(), lambda: now[0])
    exporter = Exporter(MetricsSettings(), Metrics(health), health, None)
    health.turn("idle")
    health.write()
    assert exporter.answer("/healthz")[0] == 200
    now[0] = 31.0
    status, _, text = exporter.answer("/healthz")
    assert (status, text) == (503, b"the loop has not come by for 31 s\n")
    assert exporter.answer("/readyz?verbose")[0] == 200


def test_a_port_that_is_taken_is_said_and_tried_again_while_jobs_are_done(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.viewers.exporter.EVERY_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        darkroom.configure(metrics={"listen": f"127.0.0.1:{port}"})
        loop = darkroom.loop()
        with Running(loop):
            until(lambda: "metrics.unavailable" in darkroom.log.events())
            darkroom.drop("cat.json")
            until(lambda: loop.work.done == 1)
            taken.close()
            until(lambda: "metrics.listening" in darkroom.log.events())
            assert get(loop, "/healthz")[0] == 200
    assert len(darkroom.log.of("metrics.unavailable")) == 1
    assert "Address already in use" in darkroom.log.of("metrics.unavailable")[0]["why"]


def test_a_client_that_says_nothing_holds_up_neither_others_nor_the_end(listening: Darkroom) -> None:
    loop = listening.loop()
    with Running(loop):
        until(lambda: loop.onlookers.exporter is not None and loop.onlookers.exporter.port)
        assert loop.onlookers.exporter is not None
        silent = [socket.create_connection(("127.0.0.1", loop.onlookers.exporter.port or 0)) for _ in range(20)]
        assert get(loop, "/metrics")[0] == 200
    for connection in silent:
        connection.close()


def test_the_file_for_node_exporter_is_whole_and_says_at_last_that_it_ended(darkroom: Darkroom, tmp_path: Path) -> None:
    file = tmp_path / "darkroom.prom"
    darkroom.configure(metrics={"textfile": file})
    darkroom.drop("cat.json")
    darkroom.run_once()
    found = samples(file.read_text())
    assert found['darkroom_jobs_total{reason="",verdict="done"}'] == 1
    assert found['darkroom_state{state="stopped"}'] == 1
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["darkroom.prom"]


def test_a_file_that_cannot_be_written_is_said_once(darkroom: Darkroom, tmp_path: Path) -> None:
    darkroom.configure(metrics={"textfile": tmp_path / "nowhere" / "darkroom.prom"})
    darkroom.drop("cat.json")
    darkroom.run_once()
    assert darkroom.names("done") == ["cat"]
    assert len(darkroom.log.of("metrics.unavailable")) == 1


def test_names_of_models_are_bounded(tmp_path: Path, darkroom: Darkroom) -> None:
    metrics = Metrics(Health(tmp_path, Disk()))
    labels = {metrics._model(f"model-{number}") for number in range(3 * MOST_MODELS)}
    assert len(labels) == MOST_MODELS + 1
    assert OTHER in labels


def test_prometheus_client_is_imported_only_where_it_is_wanted(darkroom: Darkroom) -> None:
    script = (
        "import sys; sys.argv = ['darkroom', 'run', '--once']\n"
        "from darkroom.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('prometheus_client', 'httpx2') if name in sys.modules])"
    )
    darkroom.drop("a.json")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "DARKROOM_FOLDERS__ROOT": str(darkroom.root), "PATH": "/usr/bin"}
        | {"DARKROOM_EXECUTOR__KIND": "fake"},
        timeout=60,
    )
    assert (darkroom.done / "a" / "result.json").exists(), done.stderr
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# The dashboard and the alerts


def everything() -> str:
    """An exposition in which every metric has a sample."""
    health = Health(Path("/nowhere"), Disk())
    metrics = Metrics(health)
    for histogram in (metrics._queue, metrics._load, metrics._denoise, metrics._total):
        histogram.labels("seedling").observe(1)
    metrics.event(None, Fallback("tiled_vae", "no memory", True))  # type: ignore[arg-type]
    health.measure()
    health.report.free_bytes = health.report.total_bytes = 1
    health.report.engine_memory_bytes = health.report.engine_memory_peak_bytes = 1
    health.ended(Recent(name="cat", status="done", finished_at="2026-01-01T00:00:00Z", seconds=1.0, pictures=1))
    return metrics.exposition().decode()


def expressions(value: Any) -> list[str]:
    """Every PromQL expression in a dashboard or in rules."""
    match value:
        case dict():
            here = [value["expr"]] if isinstance(value.get("expr"), str) else []
            here += [value["query"]] if isinstance(value.get("query"), str) else []
            return here + [found for each in value.values() for found in expressions(each)]
        case list():
            return [found for each in value for found in expressions(each)]
    return []


@pytest.mark.parametrize("file", ["darkroom-dashboard.json", "darkroom-alerts.yml"])
def test_the_dashboard_and_the_alerts_ask_for_metrics_and_labels_that_there_are(file: str) -> None:
    text = (MONITORING / file).read_text()
    content = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
    there: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(everything()):
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    asked = [expression for expression in expressions(content) if "darkroom_" in expression]
    assert len(asked) >= 8
    labels = set().union(*there.values()) | {"job", "instance"}
    for expression in asked:
        names = set(re.findall(r"\bdarkroom_\w+", expression))
        assert names, expression
        assert names <= set(there), expression
        used = set(re.findall(r'(\w+)(?:=~|!=|!~|=)"', expression))
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            used |= {label.strip() for label in group.split(",")}
        assert used <= labels, expression


def test_every_metric_is_told_of_in_the_manual() -> None:
    manual = (MONITORING.parent / "operations.md").read_text()
    names = {family.name for family in text_string_to_metric_families(everything())}
    missing = [name for name in names if name not in manual]
    assert not missing
