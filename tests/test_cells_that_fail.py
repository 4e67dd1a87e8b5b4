"""What one cell of a job is at fault for: the other cells are made all the same, and it is told which one it was."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.errors import Cancelled, EngineDied, JobError, ModelUnavailable, OutOfMemory, RenderFailed
from darkroom.events import Event, Step
from darkroom.executors import FakeExecutor
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.work.cells import refuse

SMALL = {"prompt": "a red circle", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}
SCALES = SMALL | {"matrix": {"guidance_scale": [1, 2, 3, 4]}}


class Failing(FakeExecutor):
    """Raises over the jobs of some guidance scales, at their first step."""

    def __init__(self, darkroom: Darkroom, failures: dict[float, JobError | EngineDied]) -> None:
        super().__init__(darkroom.config)
        self.failures = failures
        self.made: list[float] = []

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        self.made.append(job.guidance_scale)
        for event in super().run(job, skip, images):
            if isinstance(event, Step) and job.guidance_scale in self.failures:
                raise self.failures[job.guidance_scale]
            yield event


def published(darkroom: Darkroom, name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((darkroom.failed / name / "result.json").read_bytes())
    return result


def test_the_other_cells_are_made_and_the_failed_ones_are_named(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SCALES)
    out = OutOfMemory("It does not fit.")
    executor = Failing(darkroom, {2: out, 4: RenderFailed("Not finite", trace="the trace")})
    loop = darkroom.run_once(executor)
    assert (loop.work.done, loop.work.failed) == (0, 1)
    assert executor.made == [1, 2, 3, 4]
    result, error = published(darkroom, "cat"), darkroom.error("cat")
    assert result["status"] == error["status"] == "partial"
    assert [picture["file"] for picture in result["pictures"]] == ["cat-1.png", "cat-3.png"]
    assert error["reason"] == "out-of-memory"
    assert error["message"] == (
        "2 of 4 cells failed, the others were made: It does not fit, in cell 2 (guidance_scale 2.0)."
    )
    assert [(fault["field"], fault["message"], fault["got"]) for fault in error["errors"]] == [
        ("cells[1]", "It does not fit.", {"guidance_scale": 2.0}),
        ("cells[3]", "Not finite", {"guidance_scale": 4.0}),
    ]


def test_the_grid_has_the_pictures_in_their_places_and_says_in_the_others_that_they_failed(darkroom: Darkroom) -> None:
    fields = SCALES | {"matrix": {"guidance_scale": [1, 2], "seed": [3, 4]}, "count": 2}
    darkroom.drop("cat.json", fields)
    darkroom.run_once(Failing(darkroom, {1: OutOfMemory("It does not fit.")}))
    darkroom.drop("whole.json", fields)
    darkroom.run_once()
    assert published(darkroom, "cat")["grid"] == "cat-grid.jpg"
    files = (darkroom.failed / "cat" / "cat-grid.jpg", darkroom.done / "whole" / "whole-grid.jpg")
    failed, made = [], []
    for file in files:
        with Image.open(file) as image:
            rows = (image.height - 500, image.height - 320), (image.height - 240, image.height)
            for colours, (top, end) in zip((failed, made), rows, strict=True):
                part = image.convert("RGB").crop((image.width // 8, top, image.width, end))
                colours.append(part.getcolors(1 << 24) or [])
    assert made[0] == made[1]
    assert max(failed[0])[1] == (18, 18, 20) != max(failed[1])[1], "no picture"
    assert any(red > 200 and green < 150 and blue < 150 for _, (red, green, blue) in failed[0]), "but words"


@pytest.mark.parametrize("error", [EngineDied("It died."), Cancelled("It was cancelled.")])
def test_a_matrix_that_ends_early_has_a_grid_of_what_was_made(darkroom: Darkroom, error: JobError | EngineDied) -> None:
    darkroom.drop("cat.json", SCALES)
    darkroom.run_once(Failing(darkroom, {3: error}))
    assert [picture["file"] for picture in published(darkroom, "cat")["pictures"]] == ["cat-1.png", "cat-2.png"]
    assert (darkroom.failed / "cat" / published(darkroom, "cat")["grid"]).stat().st_size > 0


def test_what_is_missing_is_made_from_retry_and_is_the_same_in_the_end(darkroom: Darkroom) -> None:
    fields = SCALES | {"count": 2}
    darkroom.drop("whole.json", fields)
    darkroom.drop("cat.json", fields)
    darkroom.run_once(Failing(darkroom, {1: OutOfMemory("It does not fit."), 3: OutOfMemory("It does not fit.")}))
    darkroom.drop("rest.json", (darkroom.failed / "cat" / "retry.json").read_bytes())
    darkroom.drop("all.json", fields)
    darkroom.run_once()

    def hashes(pictures: list[dict[str, Any]]) -> list[str]:
        return [picture["sha256"] for picture in pictures]

    whole = hashes(darkroom.result("all")["pictures"])
    assert hashes(published(darkroom, "cat")["pictures"]) == whole[2:4] + whole[6:8]
    assert hashes(darkroom.result("rest")["pictures"]) == whole[:2] + whole[4:6]


def test_where_all_cells_fail_the_job_is_no_partial_one(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SCALES)
    broken = ModelUnavailable("The model is damaged.")
    darkroom.run_once(Failing(darkroom, dict.fromkeys((1.0, 2.0, 3.0, 4.0), broken)))
    error = darkroom.error("cat")
    assert (error["status"], error["reason"]) == ("failed", "model-unavailable")
    assert error["message"] == "All cells failed: The model is damaged, in cell 1 (guidance_scale 1.0)."
    assert not (darkroom.failed / "cat" / "retry.json").exists()


def test_a_cell_that_failed_is_tried_again_where_the_engine_died_after_it(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SCALES)
    executor = Failing(darkroom, {2: OutOfMemory("It does not fit."), 3: EngineDied("It died.")})
    darkroom.run_once(executor)
    assert executor.made == [1, 2, 3, 2, 3, 2, 3]
    error = darkroom.error("cat")
    assert (error["status"], error["reason"], error["attempts"]) == ("partial", "engine-died", 3)


def test_a_job_without_cells_is_told_as_it_was(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SMALL | {"guidance_scale": 2})
    darkroom.drop("one.json", SMALL | {"matrix": {"guidance_scale": [2]}})
    darkroom.run_once(Failing(darkroom, {2: OutOfMemory("It does not fit.")}))
    assert darkroom.error("cat")["message"] == darkroom.error("one")["message"] == "It does not fit."


def test_one_who_cancels_means_all_cells(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", SCALES)
    executor = Failing(darkroom, {2: Cancelled("The job was cancelled while it ran")})
    darkroom.run_once(executor)
    assert executor.made == [1, 2]
    assert darkroom.error("cat")["reason"] == "cancelled"


@pytest.mark.parametrize("kind", [OutOfMemory, RenderFailed])
def test_the_kind_and_the_trace_are_those_of_the_first(darkroom: Darkroom, kind: type[JobError]) -> None:
    job = darkroom.loop().work.reader
    whole = job.resolve(job.read("cat.json", json.dumps(SCALES).encode()), "x")  # type: ignore[arg-type]
    refuse(whole, {})
    with pytest.raises(kind) as caught:
        refuse(whole, {3: ModelUnavailable("later"), 1: kind("first", trace="its trace")})
    assert caught.value.trace == "its trace"
