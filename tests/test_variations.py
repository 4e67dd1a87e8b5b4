"""``matrix`` and ``cells``: one job, every combination a picture, resumable, with a grid."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import darkroom as package
from conftest import Darkroom
from darkroom.config import Config
from darkroom.errors import EngineDied, InvalidRequest
from darkroom.events import Event, Fallback, Loaded, Picture, Preview, Step
from darkroom.executors import FakeExecutor, LocalExecutor
from darkroom.job import NO_IMAGES, Images, Job, parse, resolve, running_order
from darkroom.models.catalog import Catalog
from darkroom.output import grid, job_in, recipe
from darkroom.work.cells import run_cell

SMALL = {"prompt": "a red circle", "num_inference_steps": 2, "width": 64, "height": 64}


def job(config: Config | None = None, **fields: Any) -> Job:
    config = config or Config()
    return resolve(parse(json.dumps(SMALL | fields).encode()), config, Catalog(config.models), "x")


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        job(**fields)
    return caught.value.message


# What varies


def test_every_combination_is_a_cell_the_last_field_first() -> None:
    varied = job(matrix={"seed": [1, 2], "cfg_scale": [4, 7.5]})
    assert varied.cells == (
        {"seed": 1, "guidance_scale": 4.0},
        {"seed": 1, "guidance_scale": 7.5},
        {"seed": 2, "guidance_scale": 4.0},
        {"seed": 2, "guidance_scale": 7.5},
    )
    assert varied.total == 4
    assert varied.at(2).guidance_scale == 4.0
    assert varied.at(2).cells == ()
    assert [varied.seed_of(index) for index in range(4)] == [1, 1, 2, 2]


def test_each_cell_has_count_pictures_with_seeds_of_their_own() -> None:
    varied = job(seed=10, count=3, matrix={"steps": [1, 2]})
    assert [varied.seed_of(index) for index in range(6)] == [10, 11, 12, 10, 11, 12]
    assert [(varied.cell_of(index) or {})["num_inference_steps"] for index in range(6)] == [1, 1, 1, 2, 2, 2]


def test_without_a_seed_all_cells_share_one_and_minus_one_is_one_each() -> None:
    shared = job(matrix={"steps": [1, 2]})
    assert shared.at(0).seed == shared.at(1).seed
    own = job(matrix={"seed": [-1, -1, 5]})
    seeds = [cell["seed"] for cell in own.cells]
    assert own.matrix == {"seed": seeds}
    assert len(set(seeds)) == 3
    assert seeds[2] == 5


def test_a_sampler_that_varies_brings_its_schedule_along() -> None:
    varied = job(matrix={"sampler": ["Euler", "DPM++ 2M Karras", "ddim"]})
    made = [(varied.at(cell).sampler, varied.at(cell).schedule) for cell in range(3)]
    assert made == [("Euler", "uniform"), ("DPM++ 2M", "karras"), ("DDIM", "uniform")]
    assert varied.matrix == {"sampler": ["Euler", "DPM++ 2M Karras", "ddim"]}


def test_prompts_may_vary_and_then_none_is_needed_besides() -> None:
    text = json.dumps({"matrix": {"prompt": ["a cat", "a dog"]}, "seed": 1}).encode()
    config = Config()
    varied = resolve(parse(text), config, Catalog(config.models), "x")
    assert [varied.at(cell).prompt for cell in range(2)] == ["a cat", "a dog"]


def two_models(tmp_path: Path) -> Config:
    source = Path(package.__file__).parent / "seedling"
    for name, steps in (("first", 3), ("second", 5)):
        (tmp_path / name).mkdir()
        for file in source.iterdir():
            if file.name != "darkroom.json":
                (tmp_path / name / file.name).symlink_to(file)
        (tmp_path / name / "darkroom.json").write_text(json.dumps({"num_inference_steps": steps}))
    return Config(models={"models_dir": tmp_path})  # type: ignore[arg-type]


def test_models_that_vary_bring_their_defaults_and_are_not_changed_back_and_forth(tmp_path: Path) -> None:
    config = two_models(tmp_path)
    text = json.dumps({"prompt": "a", "matrix": {"seed": [1, 2], "model": ["second", "first"]}}).encode()
    varied = resolve(parse(text), config, Catalog(config.models), "x")
    assert [(varied.at(cell).model, varied.at(cell).num_inference_steps) for cell in range(2)] == [
        ("second", 5),
        ("first", 3),
    ]
    assert running_order(varied) == [0, 2, 1, 3]


def test_a_recipe_of_cells_is_a_job_that_is_the_same() -> None:
    varied = job(count=2, matrix={"seed": [1, -1], "sampler": ["Euler", "DPM++ 2M Karras"]})
    config = Config()
    again = resolve(parse(json.dumps(varied.recipe()).encode()), config, Catalog(config.models), "x")
    assert again == varied
    alone = parse(json.dumps(varied.at(3).recipe()).encode())
    assert resolve(alone, config, Catalog(config.models), "x") == varied.at(3)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([], "matrix: must be an object"),
        ({}, "matrix: must be an object"),
        ({"seed": 1}, "matrix.seed: must be a list of values"),
        ({"seed": []}, "matrix.seed: must be a list of values"),
        ({"seeds": [1]}, "matrix.seeds: unknown field (did you mean seed?)"),
        ({"count": [1, 2]}, "matrix.count: cannot vary within a job"),
        ({"matrix": [{}]}, "matrix.matrix: cannot vary within a job"),
        ({"source": [{}]}, "matrix.source: cannot vary"),
        ({"steps": [1], "num_inference_steps": [2]}, "the same as num_inference_steps"),
        ({"seed": [1, "2"]}, "matrix.seed[1]: must be a whole number (remove the quotes)"),
        ({"seed": [1, True]}, "matrix.seed[1]: must be a whole number"),
        ({"seed": [1, None]}, "matrix.seed[1]: must not be null here"),
        ({"width": [64, 65]}, "matrix.width[1]: must be a multiple of 8"),
        ({"seed": [1, 2, 1]}, "matrix.seed[2]: stands here twice"),
        ({"seed": list(range(1001))}, "matrix.seed: has 1,001 values"),
        ({"seed": list(range(40)), "guidance_scale": list(range(30))}, "matrix: is 1,200 pictures; at most 1,000"),
        ({"model": ["seedling", "seeding"]}, 'matrix.model[1]: there is no model "seeding" (did you mean seedling?).'),
        ({"sampler": ["Eula", "Euler"], "schedule": ["karas"]}, 'matrix.sampler[0]: there is no sampler "Eula"'),
        ({"sampler": ["Eula", "Euler"], "schedule": ["karas"]}, "(and 1 more)"),
        ({"sampler": ["Euler", "PLMS"], "schedule": ["karras"]}, "in cell 2 (sampler PLMS, schedule karras)"),
        ({"width": [64, 4096]}, "matrix.width[1]: must be at most 2048 here"),
        ({"loras": [["blueprint"], [{"name": "bluprint"}]]}, 'matrix.loras[1]: there is no LoRA "bluprint"'),
    ],
)
def test_what_is_wrong_with_a_matrix_is_said_when_it_arrives(matrix: Any, said: str) -> None:
    assert said in refusal(matrix=matrix)


def test_a_fault_in_a_matrix_has_its_place() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(b'{"prompt": "a",\n "matrix": {"seed": [1,\n "x"]}}')
    assert [(fault.line, fault.column) for fault in caught.value.errors] == [(3, 2)]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({}, "cells: must be a list"),
        ([], "cells: must be a list"),
        ([{}], "cells[0]: must be an object"),
        ([{"seed": 1}, {"steps": 0}], "cells[1].steps: must be at least 1"),
        ([{"count": 1}], "cells[0].count: cannot vary"),
    ],
)
def test_what_is_wrong_with_cells_is_said(cells: Any, said: str) -> None:
    assert said in refusal(cells=cells)


def test_the_number_of_pictures_is_bounded_here_too() -> None:
    config = Config(limits={"max_count": 10})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"4 cells × 3 are 12 pictures \(at most 10 are allowed here\)"):
        job(config, count=3, matrix={"seed": [1, 2, 3, 4]})
    assert "is 500 × 3 = 1,500 pictures" in refusal(count=3, matrix={"seed": list(range(500))})


def test_the_largest_matrix_is_judged_soon() -> None:
    import time

    begin = time.process_time()
    job(matrix={"seed": list(range(100)), "guidance_scale": list(range(1, 11))})
    seconds = time.process_time() - begin
    print(f"1,000 cells in {seconds:.2f} s")
    assert seconds < 5  # 0.3 s on a quiet machine


# Through the daemon


def test_a_matrix_is_one_job_with_a_picture_for_each_cell_and_a_grid(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SMALL | {"matrix": {"seed": [1, 2], "guidance_scale": [4, 7]}, "count": 2})
    darkroom.run_once()
    result = darkroom.result("cat")
    assert [picture["file"] for picture in result["pictures"]] == [f"cat-{number}.png" for number in range(1, 9)]
    assert [picture["cell"] for picture in result["pictures"]][::2] == result["job"]["cells"]
    assert [picture["seed"] for picture in result["pictures"]] == [1, 2, 1, 2, 2, 3, 2, 3]
    assert result["grid"] == "cat-grid.jpg"
    with Image.open(darkroom.done / "cat" / "cat-grid.jpg") as image:
        assert image.width > image.height
    own = recipe((darkroom.done / "cat" / "cat-7.png").read_bytes())
    assert own is not None
    assert (own["seed"], own["guidance_scale"], own["count"]) == (2, 7.0, 1)
    assert not {"matrix", "cells"} & set(own)


def test_an_interval_varies_and_may_be_none() -> None:
    varied = job(matrix={"guidance_interval": [None, [0, 1], [0.2, 0.6]]})
    assert [varied.at(cell).guidance_interval for cell in range(3)] == [None, (0, 1), (0.2, 0.6)]
    assert (
        job(guidance_interval=[0, 0.5], cells=[{"seed": 1}, {"guidance_interval": None}]).at(1).guidance_interval
        is None
    )


def test_features_may_be_reused_in_some_cells_and_not_in_others() -> None:
    varied = job(matrix={"reuse_features": [None, 1, 3]})
    assert [varied.at(cell).reuse_features for cell in range(3)] == [None, 1, 3]


def test_cells_with_and_without_an_interval_and_two_passes_are_made_again(darkroom: Darkroom) -> None:
    cells = [{"hires": {"scale": 1.5}}, {"guidance_interval": [0.1, 0.8]}, {"seed": 2}]
    darkroom.drop("cat.json", SMALL | {"seed": 1, "cells": cells})
    darkroom.run_once()
    made = darkroom.result("cat")
    assert [cell["guidance_interval"] for cell in made["job"]["cells"]] == [None, [0.1, 0.8], None]
    assert [cell["hires"] is None for cell in made["job"]["cells"]] == [False, True, True]
    for number, interval in enumerate([None, [0.1, 0.8], None], 1):
        own = recipe((darkroom.done / "cat" / f"cat-{number}.png").read_bytes())
        assert own is not None
        assert own.get("guidance_interval") == interval
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.drop("one.png", (darkroom.done / "cat" / "cat-2.png").read_bytes())
    darkroom.run_once()
    assert hashes(darkroom.result("again")) == hashes(made)
    assert hashes(darkroom.result("one")) == hashes(made)[1:2]
    assert darkroom.result("one")["job"]["guidance_interval"] == [0.1, 0.8]


def hashes(result: dict[str, Any]) -> list[str]:
    return [picture["sha256"] for picture in result["pictures"]]


def test_a_result_of_a_matrix_dropped_again_is_made_again_whole(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SMALL | {"matrix": {"seed": [-1, -1], "guidance_scale": [4, 7]}})
    darkroom.run_once()
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.drop("one.png", (darkroom.done / "cat" / "cat-3.png").read_bytes())
    darkroom.run_once()
    first, again = darkroom.result("cat"), darkroom.result("again")
    assert hashes(again) == hashes(first)
    assert again["grid"] == "again-grid.jpg"
    assert hashes(darkroom.result("one")) == hashes(first)[2:3]


class Troubled(FakeExecutor):
    """Dies once, and makes one cell smaller."""

    def __init__(self, darkroom: Darkroom, *, dies_at: int = -1, shrinks: float = -1, deaths: int = 1) -> None:
        super().__init__(darkroom.config)
        self.dies_at = dies_at
        self.deaths = deaths
        self.shrinks = shrinks
        self.made: list[float] = []

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        assert job.cells == ()
        assert job.matrix is None
        for event in super().run(job, skip, images):
            if isinstance(event, Picture):
                self.made.append(job.guidance_scale)
            if isinstance(event, Step) and job.guidance_scale == self.dies_at and self.deaths:
                self.deaths -= 1
                raise EngineDied("The engine's process was ended by signal SIGSEGV")
            yield event
            if isinstance(event, Loaded) and job.guidance_scale == self.shrinks:
                yield Fallback("smaller", "no memory", lossless=False, changes={"width": 72, "height": 72})


def test_pictures_of_cells_that_exist_are_not_made_again(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SMALL | {"matrix": {"guidance_scale": [1, 2, 3]}, "count": 2})
    executor = Troubled(darkroom, dies_at=2)
    darkroom.run_once(executor)
    assert executor.made == [1, 1, 2, 2, 3, 3]
    assert darkroom.result("cat")["attempts"] == 2


def test_a_smaller_cell_is_told_of_and_leaves_the_others_as_they_were_asked(darkroom: Darkroom) -> None:
    fields = SMALL | {"matrix": {"guidance_scale": [1, 2, 3]}, "seed": 5}
    darkroom.drop("cat.json", fields)
    darkroom.run_once(Troubled(darkroom, shrinks=2, dies_at=3))
    result = darkroom.result("cat")
    (fallback,) = result["fallbacks"]
    assert fallback["cell"] == 2
    assert fallback["changes"] == {"width": 72, "height": 72}
    assert [cell.get("width") for cell in result["job"]["cells"]] == [None, 72, None]
    assert result["requested"] == {"cells": [{"guidance_scale": 1.0}, {"guidance_scale": 2.0}, {"guidance_scale": 3.0}]}
    assert result["pictures"][1]["cell"] == {"guidance_scale": 2.0, "width": 72, "height": 72}
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.run_once()
    assert [picture["width"] for picture in darkroom.result("again")["pictures"]] == [64, 72, 64]


def test_of_a_matrix_that_failed_in_part_the_rest_can_be_dropped_again(darkroom: Darkroom) -> None:
    fields = SMALL | {"matrix": {"guidance_scale": [1, 2, 3]}, "count": 2, "seed": 5}
    darkroom.drop("whole.json", fields)
    darkroom.run_once()
    darkroom.drop("cat.json", fields)
    darkroom.run_once(Troubled(darkroom, dies_at=2, deaths=3))
    made = json.loads((darkroom.failed / "cat" / "result.json").read_bytes())
    assert made["status"] == "partial"
    assert made["grid"] == "cat-grid.jpg"
    darkroom.drop("rest.json", (darkroom.failed / "cat" / "retry.json").read_bytes())
    darkroom.run_once()
    assert hashes(made) + hashes(darkroom.result("rest")) == hashes(darkroom.result("whole"))


def test_a_grid_that_cannot_be_drawn_fails_no_job(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.output.grid", lambda *_, **__: 1 / 0)
    darkroom.drop("cat.json", SMALL | {"matrix": {"seed": [1, 2]}})
    darkroom.run_once()
    assert "grid" not in darkroom.result("cat")
    assert darkroom.log.of("grid.failed") == [
        {"level": "warning", "id": darkroom.result("cat")["id"], "why": "ZeroDivisionError: division by zero"}
    ]


def test_progress_counts_the_pictures_of_all_cells(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr("darkroom.work.work.PROGRESS_S", 0)
    monkeypatch.setattr(
        "darkroom.spool.Ticket.write_progress",
        lambda _, progress: shown.append((progress["picture"], progress["pictures"])),
    )
    darkroom.drop("cat.json", SMALL | {"steps": 1, "matrix": {"seed": [1, 2]}, "count": 2} | {"num_inference_steps": 1})
    darkroom.drop(
        "cat.json", {"prompt": "a", "steps": 1, "width": 64, "height": 64, "matrix": {"seed": [1, 2]}, "count": 2}
    )
    darkroom.run_once()
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_matrix_is_cancelled_in_its_midst(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    from test_loop import Running, until

    darkroom.drop("cat.json", SMALL | {"num_inference_steps": 30, "matrix": {"seed": list(range(50))}})
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))):
        until(lambda: "picture.saved" in darkroom.log.events())
        (folder,) = [path for path in darkroom.working.iterdir() if path.is_dir()]
        (folder / "cancel").touch()
        until((darkroom.failed / "cat" / "error.json").exists)
    assert darkroom.error("cat")["reason"] == "cancelled"


# The grid


def coloured(folder: Path, number: int) -> list[Path]:
    paths = []
    for index in range(number):
        path = folder / f"{index}.png"
        Image.new("RGB", (32, 32), (255 - 20 * index, 20 * index, 100)).save(path)
        paths.append(path)
    return paths


def found(data: bytes, number: int) -> list[tuple[int, int]]:
    """The middle of each picture's area, by its colour."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = image.convert("RGB")
    middles = []
    for index in range(number):
        wanted = (255 - 20 * index, 20 * index, 100)
        near = [
            (x, y)
            for x in range(0, pixels.width, 8)
            for y in range(0, pixels.height, 8)
            if all(abs(a - b) < 8 for a, b in zip(pixels.getpixel((x, y)), wanted, strict=True))  # type: ignore[arg-type]
        ]
        assert len(near) > 100, index
        middles.append((sum(x for x, _ in near) // len(near), sum(y for _, y in near) // len(near)))
    return middles


def rows(middles: list[tuple[int, int]]) -> list[int]:
    """Which row each is in, counted from 0."""
    heights: list[int] = []
    for _, y in sorted(middles, key=lambda middle: middle[1]):
        if not heights or y - heights[-1] > 40:
            heights.append(y)
    return [sum(y > height + 40 for height in heights) for _, y in middles]


@pytest.mark.parametrize(
    ("axes", "each", "wanted"),
    [
        ({"seed": [1, 2, 3]}, 1, [0, 0, 0]),
        ({"seed": [1, 2], "steps": [1, 2, 3]}, 1, [0, 0, 0, 1, 1, 1]),
        ({"seed": [1, 2], "steps": [1, 2]}, 2, [0, 0, 0, 0, 1, 1, 1, 1]),
        ({"model": ["a", "b"], "seed": [1, 2], "steps": [1, 2]}, 1, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
    ids=["one", "two", "two, and two pictures each", "three"],
)
def test_the_last_field_goes_across_and_the_one_before_it_down(
    axes: dict[str, list[Any]], each: int, wanted: list[int], tmp_path: Path
) -> None:
    middles = found(grid(axes, coloured(tmp_path, len(wanted)), each=each), len(wanted))
    assert rows(middles) == wanted
    for row in set(wanted):
        across = [x for (x, _), where in zip(middles, wanted, strict=True) if where == row]
        assert across == sorted(across)


def test_a_grid_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no recipe"):
        job_in(grid({"seed": [1]}, coloured(tmp_path, 1)))


def test_a_large_matrix_has_small_pictures_and_one_too_large_to_read_has_no_grid(tmp_path: Path) -> None:
    (path,) = coloured(tmp_path, 1)
    with Image.open(io.BytesIO(grid({"seed": list(range(25)), "steps": list(range(40))}, [path] * 1000))) as image:
        assert image.width * image.height <= 24_000_000
    with pytest.raises(ValueError, match="too large a picture"):
        grid({"seed": list(range(1000))}, [path] * 1000)


def test_words_that_no_font_has_and_pictures_that_are_none_leave_a_grid_all_the_same(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    assert grid({"prompt": ["日本語 🐈 " * 50, "a" * 500]}, [*coloured(tmp_path, 1), broken])


def test_what_is_said_of_a_picture_is_said_by_its_number_in_the_whole_job() -> None:
    class Showing(FakeExecutor):
        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            yield Preview(1, 1, b"JPEG")
            yield from super().run(job, skip, images)

    cells = job(count=2, matrix={"guidance_scale": [1, 2, 3]})
    events = list(run_cell(Showing(Config()), cells, 2, frozenset()))
    assert [event.first for event in events if isinstance(event, Preview)] == [5]
    assert [event.index for event in events if isinstance(event, Picture)] == [4, 5]
    assert {event.first for event in events if isinstance(event, Step)} == {4, 5}
