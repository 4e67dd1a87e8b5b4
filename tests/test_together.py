"""What was built apart, in one house: LoRAs in a matrix, pictures in lists and presets, and all of it made again."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from conftest import Darkroom
from darkroom.executors import LocalExecutor
from test_walk import Borrowed, shas
from test_walk import engine as engine  # the fixture: one child for all

SMALL: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "steps": 4,
    "width": 96,
    "height": 96,
    "seed": 5,
}


def photo(*, mask: bool = False) -> bytes:
    image = Image.new("RGB", (96, 96), "black" if mask else "yellow")
    ImageDraw.Draw(image).rectangle((0, 0, 48, 96), fill="white" if mask else "purple")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def house(darkroom: Darkroom, tmp_path: Path) -> Darkroom:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "colour.txt").write_text("green\norange\nblack\n")
    darkroom.configure(
        engine={"device": "cpu"},
        intake={"settle_s": 0.4, "rescan_s": 0.05},
        prompts={"wildcards_dir": tmp_path / "words"},
        presets={
            "poster": {"steps": 4, "width": 96, "height": 64, "loras": [{"name": "blueprint", "weight": 0.7}]},
            "again": {"prompt": "a green star", "strength": 0.6, "steps": 5, "seed": 3},
        },
    )
    return darkroom


def test_what_was_made_of_everything_at_once_is_made_again(house: Darkroom, engine: LocalExecutor) -> None:
    jobs: dict[str, Any] = {
        "before": SMALL,
        "loras-and-samplers": {
            **SMALL,
            "matrix": {"loras": [[], [{"name": "blueprint"}]], "sampler": ["Euler", "DPM++ 2M SDE Karras"]},
        },
        "poster/words": {"prompt": "a {large|small} __colour__ heart", "dynamic": True, "count": 3, "seed": 40},
        "quick": {**SMALL, "steps": 6, "reuse_features": 2, "guidance_interval": [0, 0.8], "prompt": "a grey ring"},
        "large": {**SMALL, "hires": {"scale": 1.5, "steps": 2}, "upscale": 2, "prompt": "a house <lora:blueprint:0.5>"},
    }
    for name, job in jobs.items():
        house.drop(f"{name}.json", job)
    house.drop("trip/photo.png", photo())
    house.drop("trip/mask.png", photo(mask=True))
    house.drop("trip/job.json", {**SMALL, "init_image": "photo.png", "mask_image": "mask.png", "strength": 0.8})
    house.drop("night/photo.png", photo())
    entries = [{"prompt": "a white star", "init_image": "photo.png", "strength": 0.5}, {"prompt": "a black ring"}]
    house.drop("night/all.json", {"defaults": {**SMALL, "count": 2}, "jobs": entries})
    house.drop("again/picture.png", photo())
    house.run_once(Borrowed(engine))
    house.drop("after.json", SMALL)
    house.run_once(Borrowed(engine))
    assert house.names("failed") == [], [path.read_text() for path in house.failed.rglob("error.json")]

    made = {*jobs, "trip", "night/all/0001", "night/all/0002", "again/picture"}
    sums = {name: shas(house, name) for name in made}
    assert sums["before"] == shas(house, "after")
    assert {name: len(found) for name, found in sums.items()} == dict.fromkeys(made, 1) | {
        "loras-and-samplers": 4,
        "poster/words": 3,
        "night/all/0001": 2,
        "night/all/0002": 2,
    }
    everything = [sum_ for found in sums.values() for sum_ in found]
    assert len(set(everything)) == len(everything), "no two of them are the same picture"

    for name in made:
        shutil.copytree(house.done / name, house.inbox / "repeat" / name.replace("/", "-"))
    house.run_once(Borrowed(engine))
    assert house.names("failed") == [], [path.read_text() for path in house.failed.rglob("error.json")]
    assert {name: shas(house, f"repeat/{name.replace('/', '-')}") for name in made} == sums


def test_each_picture_of_a_matrix_is_a_job_that_makes_it_alone(house: Darkroom, engine: LocalExecutor) -> None:
    matrix = {"loras": [[], [{"name": "blueprint"}]], "guidance_scale": [1, 6], "prompt": ["a star", "a heart"]}
    house.drop("many.json", {**SMALL, "matrix": matrix})
    house.run_once(Borrowed(engine))
    result = house.result("many")
    assert len(result["pictures"]) == 8
    with Image.open(house.done / "many" / "many-grid.jpg") as grid:
        assert grid.width > 96 * 2 and grid.height > 96 * 2
    for picture in result["pictures"]:
        shutil.copy(house.done / "many" / picture["file"], house.inbox)
    house.run_once(Borrowed(engine))
    assert house.names("failed") == []
    for picture in result["pictures"]:
        assert shas(house, picture["file"].removesuffix(".png")) == [picture["sha256"]], json.dumps(picture["cell"])
