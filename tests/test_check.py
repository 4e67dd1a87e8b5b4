"""The preflight: each finding says what is there, or what to do."""

from __future__ import annotations

import pytest

from conftest import Darkroom
from darkroom.check import check_job, preflight
from darkroom.models.catalog import Catalog


def test_a_house_in_order_has_nothing_to_mend(darkroom: Darkroom) -> None:
    darkroom.configure(executor={"kind": "fake"})
    findings = list(preflight(darkroom.config))
    assert all(finding.ok for finding in findings)
    assert [finding.what for finding in findings] == ["folders", "free space", "model", "LoRAs"]
    assert "seedling, the default" in findings[2].message
    assert "native size 128" in findings[2].message


def test_a_running_daemon_is_no_fault(darkroom: Darkroom) -> None:
    darkroom.configure(executor={"kind": "fake"})
    spool = darkroom.spool()
    spool.open()
    assert "is in use by process" in next(iter(preflight(darkroom.config))).message


def test_what_is_missing_is_said_with_the_remedy(darkroom: Darkroom) -> None:
    darkroom.configure(
        executor={"kind": "fake"},
        limits={"min_free_bytes": 1 << 60},
        models={"default": "sd15", "broken": {"path": str(darkroom.root / "nowhere")}},
        notify={"command": ["no-such-program", "--quiet"]},
    )
    bad = {finding.message for finding in preflight(darkroom.config) if not finding.ok}
    assert any("min_free_bytes" in message for message in bad)
    assert any('"sd15"' in message and "seedling" in message for message in bad)
    assert "there is no program no-such-program; see [notify] command" in bad
    assert any("nowhere" in message and "model_index.json" in message for message in bad)


def test_the_device_is_asked_in_a_process_of_its_own(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"device": "cpu", "dtype": "float32"})
    *_, device = preflight(darkroom.config)
    assert device.ok
    assert "float32, torch" in device.message


def test_a_device_that_is_not_there_is_one_line(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"device": "cuda:77"})
    *_, device = preflight(darkroom.config)
    assert not device.ok
    assert device.message.startswith('[engine] device = "cuda:77", but ')
    assert "\n" not in device.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "x"}', []),
        ('{"prompt": "x", "stps": 3}', ["line 1, column 25: stps: unknown field (did you mean steps?)"]),
    ],
)
def test_a_job_file_is_looked_over_without_running_it(darkroom: Darkroom, content: str, said: list[str]) -> None:
    path = darkroom.root / "job.json"
    path.write_text(content)
    assert check_job(path, darkroom.config, Catalog(darkroom.config.models)) == said
