"""What the documentation shows is true: every example in docs/jobs.md is dropped in, and done."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.job import Request, read_presets

JOBS = (Path(__file__).parent.parent / "docs" / "jobs.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", JOBS, re.MULTILINE | re.DOTALL)
EXAMPLES = [(kind, text) for kind, text in FENCED if kind in ("json", "jsonl", "txt")]
CONFIG = [text for kind, text in FENCED if kind == "toml"]
WILDCARDS = {"colour.txt": "red\nblue\n", "things/shape.txt": "circle\n"}


@pytest.fixture
def house(darkroom: Darkroom, tmp_path: Path) -> Darkroom:
    for name, text in WILDCARDS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    sections = tomllib.loads("\n".join(CONFIG))
    darkroom.configure(**sections, prompts={"wildcards_dir": tmp_path}, intake={"settle_s": 0.1})
    return darkroom


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=[f"{kind} {text[:40]}" for kind, text in EXAMPLES])
def test_every_example_of_a_job_runs(house: Darkroom, kind: str, text: str) -> None:
    for name in re.findall(r'"(?:init|mask)_image": "([^"]+)"', text):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(house.inbox / name)
    house.drop(f"example.{kind}", text)
    loop = house.run_once()
    assert loop.work.failed == 0
    assert loop.work.done > 0
    assert house.names("working") == []


def test_the_forms_that_are_described_have_an_example() -> None:
    assert {kind for kind, _ in EXAMPLES} == {"json", "jsonl", "txt"}
    assert len(EXAMPLES) >= 10
    assert CONFIG


def test_every_field_is_in_the_table() -> None:
    table = "\n".join(line for line in JOBS.splitlines() if line.startswith("|"))
    missing = [field for field in Request.model_fields if f"`{field}`" not in table and field != "source"]
    assert not missing


def test_the_presets_that_it_shows_are_valid(house: Darkroom) -> None:
    assert list(read_presets(house.config)) == ["portrait", "oil"]
