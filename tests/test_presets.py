"""Presets: fields that a folder of the inbox gives to the jobs in it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.config import Config
from darkroom.errors import ConfigError
from darkroom.job import read_presets
from darkroom.output import recipe

PORTRAIT: dict[str, Any] = {
    "steps": 3,
    "width": 64,
    "height": 96,
    "negative_prompt": "blurry",
    "sampler": "Euler",
    "seed": 5,
}


@pytest.fixture
def darkroom(darkroom: Darkroom) -> Darkroom:
    darkroom.configure(presets={"portrait": PORTRAIT, "tiny": {"width": 64, "height": 64}}, intake={"settle_s": 0.2})
    return darkroom


def made(darkroom: Darkroom, name: str) -> dict[str, Any]:
    job = darkroom.result(name)["job"]
    return {
        field: job[field] for field in ("num_inference_steps", "width", "height", "negative_prompt", "sampler", "seed")
    }


WANTED = {
    "num_inference_steps": 3,
    "width": 64,
    "height": 96,
    "negative_prompt": "blurry",
    "sampler": "Euler",
    "seed": 5,
}


def test_each_preset_has_its_folder_from_the_start(darkroom: Darkroom) -> None:
    darkroom.run_once()
    assert darkroom.names("inbox") == ["portrait", "tiny"]
    darkroom.run_once()
    assert darkroom.names("inbox") == ["portrait", "tiny"]


def test_jobs_of_every_kind_in_its_folder_take_its_fields(darkroom: Darkroom) -> None:
    darkroom.drop("portrait/one.json", {"prompt": "a"})
    darkroom.drop("portrait/team/two.json", {"prompt": "a"})
    darkroom.drop("portrait/many.txt", "a\nb")
    darkroom.drop("portrait/list.json", [{"prompt": "a"}])  # type: ignore[arg-type]
    darkroom.drop("portrait/lines.jsonl", '{"prompt": "a"}')
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (6, 0)
    for name in ("one", "team/two", "many/0001", "many/0002", "list/0001", "lines/0001"):
        assert made(darkroom, f"portrait/{name}") == WANTED
        assert darkroom.result(f"portrait/{name}")["source"]["preset"] == "portrait"
    assert darkroom.names("inbox") == ["portrait", "tiny"]


def test_what_the_job_says_wins_by_any_name_and_the_preset_wins_over_the_model(darkroom: Darkroom) -> None:
    darkroom.drop("portrait/one.json", {"prompt": "a", "num_inference_steps": 2, "sampler_name": "DDIM"})
    darkroom.drop("portrait/list.json", {"defaults": {"width": 128}, "jobs": [{"prompt": "a", "height": 128}]})
    darkroom.run_once()
    assert made(darkroom, "portrait/one") == WANTED | {"num_inference_steps": 2, "sampler": "DDIM"}
    assert made(darkroom, "portrait/list/0001") == WANTED | {"width": 128, "height": 128}


def test_a_job_elsewhere_may_name_a_preset_and_outside_none_applies(darkroom: Darkroom) -> None:
    darkroom.drop("one.json", {"prompt": "a", "preset": "portrait"})
    darkroom.drop("portrait/two.json", {"prompt": "a", "preset": "tiny", "steps": 1})
    darkroom.drop("plain.json", {"prompt": "a", "steps": 1, "width": 128, "height": 128})
    darkroom.drop("list.json", {"defaults": {"preset": "portrait"}, "jobs": [{"prompt": "a"}]})
    darkroom.run_once()
    assert made(darkroom, "one") == made(darkroom, "list/0001") == WANTED
    assert made(darkroom, "portrait/two")["height"] == 64
    assert made(darkroom, "portrait/two")["negative_prompt"] == ""
    assert made(darkroom, "plain")["negative_prompt"] == ""
    assert "source" not in darkroom.result("plain")


def test_an_unknown_preset_is_refused_with_the_nearest(darkroom: Darkroom) -> None:
    darkroom.drop("one.json", {"prompt": "a", "preset": "portrat"})
    darkroom.drop("two.json", {"prompt": "a", "preset": 5})
    darkroom.run_once()
    assert "preset: there is no such preset (did you mean portrait?)" in darkroom.error("one")["message"]
    assert "preset: there is no such preset" in darkroom.error("two")["message"]


def test_a_recipe_needs_the_preset_no_more(darkroom: Darkroom) -> None:
    darkroom.drop("portrait/one.json", {"prompt": "a"})
    darkroom.run_once()
    own = recipe((darkroom.done / "portrait" / "one" / "one-1.png").read_bytes())
    assert own is not None
    assert "preset" not in own
    darkroom.configure()
    darkroom.drop("again.json", (darkroom.done / "portrait" / "one" / "result.json").read_bytes())
    darkroom.run_once()
    first, again = darkroom.result("portrait/one"), darkroom.result("again")
    assert again["job"] == first["job"]
    assert again["pictures"][0]["sha256"] == first["pictures"][0]["sha256"]


def test_a_preset_may_hold_the_prompt_a_matrix_and_be_dynamic(darkroom: Darkroom) -> None:
    darkroom.configure(
        presets={
            "sheet": {"prompt": "a circle", "steps": 1, "width": 64, "height": 64, "matrix": {"cfg_scale": [1, 2]}},
            "dice": {"dynamic": True, "steps": 1, "width": 64, "height": 64},
        }
    )
    darkroom.drop("sheet/one.json", {"seed": 4})
    darkroom.drop("dice/two.json", {"prompt": "{a|b}"})
    darkroom.run_once()
    assert [picture["cell"] for picture in darkroom.result("sheet/one")["pictures"]] == [
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.0},
    ]
    assert darkroom.result("dice/two")["job"]["template"] == "{a|b}"


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ({"portrait": {"widht": 64}}, "[presets.portrait] widht: unknown field (did you mean width?)"),
        ({"portrait": {"width": 65}}, "[presets.portrait] width: must be a multiple of 8"),
        ({"portrait": {"steps": "20"}}, "[presets.portrait] steps: must be a whole number (remove the quotes)"),
        ({"portrait": {"preset": "tiny"}}, "[presets.portrait] preset: a preset has no preset of its own"),
        ({"portrait": {"source": {}}}, "[presets.portrait] source: unknown field"),
        ({"portrait": {"matrix": {"seed": []}}}, "[presets.portrait] matrix.seed: must be a list"),
        ({"a/b": {}}, "[presets.a/b]: a preset's name is a folder's"),
        ({".hidden": {}}, "a preset's name is a folder's"),
        ({"x~": {}}, "a preset's name is a folder's"),
        ({"..": {}}, "a preset's name is a folder's"),
    ],
)
def test_what_is_wrong_with_a_preset_is_said_before_the_daemon_starts(
    darkroom: Darkroom, presets: dict[str, Any], said: str
) -> None:
    darkroom.configure(presets=presets)
    with pytest.raises(ConfigError) as caught:
        darkroom.loop()
    assert said in caught.value.message


def test_presets_are_listed_when_all_is_looked_over() -> None:
    from darkroom.check import _presets

    config = Config(presets={"portrait": {"steps": 3}, "bad": {"model": "nothing", "steps": 5, "sampler": "Hen"}})  # type: ignore[arg-type]
    findings = {finding.what: finding for finding in _presets(config)}
    assert findings["preset portrait"].message == "inbox/portrait/: num_inference_steps 3"
    assert not findings["preset bad"].ok
    said = (
        'model: there is no model "nothing" (did you mean seedling?); sampler: there is no sampler "Hen" (one of: Heun)'
    )
    assert findings["preset bad"].message == said
    assert read_presets(config)["bad"]["model"] == "nothing"


def test_a_picture_in_the_folder_of_a_preset_with_strength_is_begun_with(darkroom: Darkroom) -> None:
    oil = {"prompt": "in oil", "strength": 0.5, "steps": 2, "width": 64, "height": 64}
    darkroom.configure(presets={"oil": oil, "portrait": PORTRAIT}, intake={"settle_s": 0.2})
    Image.new("RGB", (80, 60), (200, 30, 30)).save(darkroom.root / "plain.png")
    data = (darkroom.root / "plain.png").read_bytes()
    darkroom.drop("oil/holiday.png", data)
    darkroom.drop("oil/team/other.png", data)
    darkroom.drop("portrait/holiday.png", data)
    darkroom.run_once()
    for name in ("oil/holiday", "oil/team/other"):
        result = darkroom.result(name)
        assert (result["job"]["prompt"], result["job"]["strength"]) == ("in oil", 0.5)
        assert (darkroom.done / name / result["job"]["init_image"]).read_bytes() == data
        assert result["source"] == {"preset": "oil"}
    assert "no recipe" in darkroom.error("portrait/holiday")["message"]


def test_a_fault_that_is_none_of_the_job_s_own_is_told_with_where_it_comes_from(darkroom: Darkroom) -> None:
    darkroom.configure(presets={"house": {"sampler": "Hen", "width": 4096}})
    darkroom.drop("house/cat.json", {"prompt": "a", "width": 64})
    darkroom.drop("house/typo.json", {"prompt": "a", "clip_skip": "1", "sampler_name": "Hen"})
    darkroom.drop(
        "list.json", {"defaults": {"steps": 3, "sampler": "Hen", "preset": "house"}, "jobs": [{"prompt": "a"}]}
    )
    darkroom.run_once()
    of_preset, of_list = (f"it comes from {where}" for where in ('the preset "house"', "the list's defaults"))
    told = {
        name: {
            (fault["field"], fault["line"], fault["hint"].partition("; ")[2])
            for fault in darkroom.error(name)["errors"]
        }
        for name in ("house/cat", "house/typo", "list/0001")
    }
    assert told == {
        "house/cat": {("sampler", None, of_preset)},
        "house/typo": {("clip_skip", 1, ""), ("sampler_name", 1, ""), ("width", None, of_preset)},
        "list/0001": {("sampler", None, of_list), ("width", None, of_preset)},
    }
    assert f"(one of: Heun; {of_preset})" in darkroom.error("house/cat")["message"]
