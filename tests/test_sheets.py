"""What people see of a job: a preview while it runs, how long it will take, a contact sheet when it is done."""

from __future__ import annotations

import errno
import io
import json
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.errors import EngineDied
from darkroom.events import Event, Picture, Preview, Step
from darkroom.executors import FakeExecutor
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.output import thumbnail, thumbnail_of
from darkroom.spool import Call, Disk
from darkroom.work.pace import Pace

PREVIEW = b"\xff\xd8 a preview"


class Previewing(FakeExecutor):
    """Shows a preview after each step, and says what lay in the job's folder then."""

    def __init__(self, darkroom: Darkroom) -> None:
        super().__init__(darkroom.config)
        self.working = darkroom.working
        self.seen: list[bytes] = []
        self.progress: list[dict[str, object]] = []

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        for event in super().run(job, skip, images):
            yield event
            if isinstance(event, Step):
                yield Preview(event.first, 1, PREVIEW + str(event.step).encode())
                self.seen += [path.read_bytes() for path in self.working.glob("*/preview.jpg")]
                self.progress += [json.loads(path.read_bytes()) for path in self.working.glob("*/progress.json")]


def test_the_preview_lies_beside_the_progress_while_the_job_runs_and_not_in_the_result(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", num_inference_steps=3)
    executor = Previewing(darkroom)
    darkroom.run_once(executor)
    assert executor.seen == [PREVIEW + b"1", PREVIEW + b"2", PREVIEW + b"3"]
    assert executor.progress[-1]["steps"] == 3
    assert {"steps_per_s", "seconds_left"} <= set(executor.progress[-1])
    assert files(darkroom.done / "cat") == ["cat-1.png", "log.jsonl", "request.json", "result.json"]


def test_a_preview_that_cannot_be_written_is_left_out(darkroom: Darkroom) -> None:
    def full(call: Call) -> None:
        if "preview.jpg" in call.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    darkroom.drop("cat.json")
    executor = Previewing(darkroom)
    darkroom.run_once(executor, Disk(full))
    assert executor.seen == []
    assert darkroom.result("cat")["status"] == "done"


def sheet(darkroom: Darkroom, name: str) -> Image.Image:
    with Image.open(darkroom.done / name / "contact-sheet.jpg") as image:
        return image.convert("RGB")


def pixel(image: Image.Image, place: tuple[int, int]) -> tuple[int, ...]:
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    return found


def colour(path: Path) -> tuple[int, ...]:
    with Image.open(path) as image:
        return pixel(image.convert("RGB"), (5, 5))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_several_pictures_have_a_contact_sheet_and_one_has_none(darkroom: Darkroom) -> None:
    darkroom.drop("cats.json", count=4)
    darkroom.drop("cat.json")
    darkroom.run_once()
    assert sheet(darkroom, "cats").size[0] > 2 * 256
    assert len(darkroom.result("cats")["pictures"]) == 4, "the sheet is no picture of the job's"
    assert not (darkroom.done / "cat" / "contact-sheet.jpg").exists()
    assert not [path for path in (darkroom.done / "cats").iterdir() if path.name.startswith(".")]


def test_the_sheet_can_be_switched_off(darkroom: Darkroom) -> None:
    darkroom.configure(output={"contact_sheet": False})
    darkroom.drop("cats.json", count=4)
    darkroom.run_once()
    assert "contact-sheet.jpg" not in files(darkroom.done / "cats")


def test_a_job_that_failed_has_no_sheet(darkroom: Darkroom) -> None:
    class Dying(FakeExecutor):
        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            for event in super().run(job, skip, images):
                yield event
                if isinstance(event, Picture):
                    raise EngineDied("it died")

    darkroom.configure(executor={"max_attempts": 1})
    darkroom.drop("cats.json", count=4)
    darkroom.run_once(Dying(darkroom.config))
    assert darkroom.error("cats")["status"] == "partial"
    assert "contact-sheet.jpg" not in files(darkroom.failed / "cats")


def test_a_sheet_that_cannot_be_written_costs_nothing_but_the_sheet(darkroom: Darkroom) -> None:
    def full(call: Call) -> None:
        if "contact-sheet" in call.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    darkroom.drop("cats.json", count=2)
    darkroom.run_once(disk=Disk(full))
    assert darkroom.result("cats")["status"] == "done"
    assert "contact-sheet.jpg" not in files(darkroom.done / "cats")
    assert "No space left" in darkroom.log.of("sheet.failed")[0]["why"]


def test_pictures_that_an_earlier_daemon_made_are_on_the_sheet(darkroom: Darkroom) -> None:
    class Killed(BaseException):
        pass

    class Dying(FakeExecutor):
        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            for event in super().run(job, skip, images):
                yield event
                if isinstance(event, Picture) and event.index == dies_after:
                    raise Killed

    for dies_after in (0, 2):  # the second time nothing is left to be made
        darkroom.drop("cats.json", count=3)
        with pytest.raises(Killed):
            darkroom.run_once(Dying(darkroom.config))
        darkroom.run_once()
        name = "cats" if dies_after == 0 else "cats~2"
        drawn = sheet(darkroom, name)
        colours = {colour(path) for path in (darkroom.done / name).glob("*.png")}
        assert len(colours) == 3
        for wanted in colours:
            row = [pixel(drawn, (x, drawn.height // 3)) for x in range(0, drawn.width, 16)]
            assert any(max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 12 for found in row)


def test_a_large_picture_with_a_thumbnail_is_not_decoded(darkroom: Darkroom) -> None:
    class Large(FakeExecutor):
        """Its pictures have a whole head and nothing after it; only what is small can be decoded."""

        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            for event in super().run(job, skip, images):
                if isinstance(event, Picture):
                    small = thumbnail_of(event.data)
                    cut = event.data[: event.data.index(b"IDAT") + 8]
                    yield Picture(event.index, event.seed, event.width, event.height, cut, "png", small)
                else:
                    yield event

    darkroom.drop("cats.json", count=2)
    darkroom.run_once(Large(darkroom.config))
    assert sheet(darkroom, "cats").getpixel((160, 160)) != (34, 34, 38), "an empty frame"


def test_a_hundred_pictures_delay_their_verdict_by_less_than_they_took(darkroom: Darkroom) -> None:
    darkroom.drop("cats.json", count=100)
    times: list[float] = []

    def watch(call: Call) -> None:
        if call.name == "rename" and call.path.name.startswith(".cats-"):
            times[:] = [time.process_time()]
        if call.name == "rename" and call.path.name == ".result.json.tmp":
            times.append(time.process_time())

    begin = time.process_time()
    darkroom.run_once(disk=Disk(watch))
    last_picture, verdict = times
    assert verdict - last_picture < (last_picture - begin) / 2 + 0.5


@pytest.mark.parametrize(
    ("size", "wanted"), [((1024, 512), (256, 128)), ((64, 32), (64, 32)), ((300, 300), (256, 256))]
)
def test_a_thumbnail_is_small_and_keeps_its_shape(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    made = Image.open(io.BytesIO(thumbnail(Image.new("RGB", size, (200, 30, 30)))))
    assert made.size == wanted
    assert made.format == "JPEG"


def test_the_pace_is_that_of_the_batch_and_what_is_left_counts_everything_between() -> None:
    pace, now = Pace(), 100.0
    assert pace.steps_per_s() is None
    assert pace.seconds_left(4) is None
    pace.stepped(Step(0, 2, 1, 10), now)
    assert pace.steps_per_s() is None
    for step in range(2, 11):
        now += 0.5
        pace.stepped(Step(0, 2, step, 10), now)
    assert pace.steps_per_s() == 2.0
    assert pace.seconds_left(4) == pytest.approx(5.0), "20 steps of 18 a 4.5 seconds"
    now += 4.5 + 0.5  # decoding
    pace.stepped(Step(2, 2, 1, 10), now)
    assert pace.seconds_left(2) == pytest.approx(18 * 9.5 / 20, abs=0.06)
    now += 0.25
    pace.stepped(Step(2, 2, 2, 10), now)
    assert pace.steps_per_s() == 4.0
