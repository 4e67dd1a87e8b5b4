"""Pictures in: from the job itself, from beside it, from a folder that is one job; kept with the result (fault 32)."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.cli.embed import in_job_folder
from darkroom.config import Config
from darkroom.errors import RenderFailed
from darkroom.events import Event
from darkroom.executors import FakeExecutor
from darkroom.job import NO_IMAGES, Images, Job, parse, resolve
from darkroom.models.catalog import Catalog
from darkroom.output import encode
from darkroom.reading import Reader
from darkroom.spool import Call, Disk
from test_intake import Desk
from test_loop import Running, until


def picture(width: int = 96, height: int = 64, colour: str = "red", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


def with_recipe(**fields: Any) -> bytes:
    document = {"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 1, "seed": 7, **fields}
    job = resolve(parse(json.dumps(document).encode()), Config(), Catalog(Config().models), "a")
    return encode(Image.new("RGB", (64, 64)), job, seed=7, device="fake")


JOB: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 1, "seed": 7}
PNG, MASK, SECRET = picture(), picture(colour="white"), picture(colour="black")


class Watching(FakeExecutor):
    """The fake executor, which keeps what it was given."""

    def __init__(self, darkroom: Darkroom) -> None:
        super().__init__(darkroom.config)
        self.given: list[dict[str, bytes]] = []

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        self.given.append(dict(images))
        yield from super().run(job, skip, images)


@pytest.fixture
def house(darkroom: Darkroom) -> Darkroom:
    darkroom.configure(intake={"settle_s": 0.6, "rescan_s": 0.05})
    return darkroom


def run(house: Darkroom) -> list[dict[str, bytes]]:
    """What the engine was given, job by job."""
    watching = Watching(house)
    house.run_once(watching)
    assert house.names("working") == []
    return watching.given


def judging(house: Darkroom) -> Desk:
    """A desk, with its own clock, at which the daemon judges."""
    return Desk(house, judge=Reader(house.config, house.inbox).judge)


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Where they come from


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "data:;base64,", "DATA:image/png;charset=x;base64,"])
@pytest.mark.parametrize("field", ["init_image", "init_images"])
def test_a_picture_in_the_job_itself(house: Darkroom, head: str, field: str) -> None:
    text = head + base64.b64encode(PNG).decode()
    house.drop("cat.json", {**JOB, field: [text] if field == "init_images" else text})
    assert run(house) == [{"init_image": PNG}]
    assert left_in(house.done / "cat") == ["cat-1.png", "init_image.png", "log.jsonl", "request.json", "result.json"]
    job = house.result("cat")["job"]
    assert (job["init_image"], job["strength"], job["width"], job["height"]) == ("init_image.png", 0.75, 96, 64)


def test_base64_with_line_breaks_and_without_its_padding(house: Darkroom) -> None:
    text = base64.encodebytes(PNG).decode()
    house.drop("a.json", {**JOB, "init_image": text})
    house.drop("b.json", {**JOB, "init_image": base64.b64encode(PNG).decode().rstrip("=")})
    assert run(house) == [{"init_image": PNG}] * 2


def test_a_picture_beside_the_job_goes_with_it(house: Darkroom) -> None:
    house.drop("team/cat.png", PNG)
    house.drop("team/masks/m.png", MASK)
    house.drop("team/cat.json", {**JOB, "init_image": "cat.png", "mask_image": "./masks/m.png", "strength": 0.5})
    assert run(house) == [{"init_image": PNG, "mask_image": MASK}]
    assert left_in(house.inbox) == []
    assert left_in(house.done / "team" / "cat") == [
        *("cat-1.png", "init_image.png", "log.jsonl", "mask_image.png", "request.json", "result.json")
    ]
    assert house.result("team/cat")["job"]["strength"] == 0.5
    assert house.names("failed") == []


def test_a_picture_that_two_jobs_name_serves_both_and_goes_with_the_last(house: Darkroom) -> None:
    for name in ("a.json", "b.json", "c.json"):
        house.drop(name, {**JOB, "init_image": "x.png"})
    house.drop("x.png", with_recipe())
    assert len(run(house)) == 3
    assert left_in(house.inbox) == house.names("failed") == []
    assert house.names("done") == ["a", "b", "c"]


def test_one_picture_may_be_both_begin_and_mask(house: Darkroom) -> None:
    house.drop("cat.json", {**JOB, "init_image": "x.png", "mask_image": "x.png"})
    house.drop("x.png", PNG)
    house.drop("dog/job.json", {**JOB, "init_image": "x.png", "mask_image": "x.png"})
    house.drop("dog/x.png", PNG)
    assert run(house) == [{"init_image": PNG, "mask_image": PNG}] * 2
    assert left_in(house.inbox) == house.names("failed") == []


def test_a_picture_below_an_allowed_folder_is_copied(house: Darkroom, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "cat.jpg").write_bytes(jpeg := picture(kind="JPEG"))
    house.configure(intake={"settle_s": 0.6}, limits={"image_roots": [root]})
    house.drop("a.json", {**JOB, "init_image": "deep/cat.jpg"})
    house.drop("b.json", {**JOB, "init_image": str(root / "deep" / "cat.jpg")})
    assert run(house) == [{"init_image": jpeg}] * 2
    assert (root / "deep" / "cat.jpg").exists()
    assert (house.done / "a" / "init_image.jpg").read_bytes() == jpeg


# A folder that is one job


def test_a_folder_with_a_job_and_its_pictures_is_one_job(house: Darkroom) -> None:
    house.drop("cat/photo.png", PNG)
    house.drop("cat/parts/mask.png", MASK)
    house.drop("cat/job.json", {**JOB, "init_image": "photo.png", "mask_image": "parts/mask.png"})
    assert run(house) == [{"init_image": PNG, "mask_image": MASK}]
    assert house.names("inbox") == house.names("failed") == []
    assert house.names("done") == ["cat"]
    assert left_in(house.done / "cat") == [
        *("cat-1.png", "init_image.png", "log.jsonl", "mask_image.png", "request.json", "result.json")
    ]
    assert not (house.done / "cat" / "dropped").exists()
    assert house.result("cat")["original_name"] == "cat/"


def test_what_a_job_s_folder_holds_besides_stays_with_it_and_is_no_job(house: Darkroom) -> None:
    house.drop("cat/photo.png", PNG)
    house.drop("cat/another.png", with_recipe())
    house.drop("cat/notes.md", b"mine")
    house.drop("cat/job.json", {**JOB, "init_image": "photo.png"})
    assert len(run(house)) == 1
    assert house.names("inbox") == []
    assert left_in(house.done / "cat" / "dropped") == ["another.png", "notes.md"]


def test_a_typo_in_a_folder_s_job_leaves_nothing_behind(house: Darkroom) -> None:
    house.drop("cat/photo.png", with_recipe())
    house.drop("cat/job.json", {"promt": "x", "init_image": "photo.png"})
    assert run(house) == []
    assert house.names("inbox") == []
    assert left_in(house.failed / "cat") == [
        *("dropped/photo.png", "error.json", "log.jsonl", "request.json", "result.json")
    ]


def test_a_folder_with_other_jobs_is_a_queue_whatever_they_are_called(house: Darkroom) -> None:
    for name in ("team/job.json", "team/other.json", "team/sub/job.json"):
        house.drop(name, JOB)
    assert len(run(house)) == 3
    assert house.names("done") == ["team"]
    assert sorted(house.names("done/team")) == ["job", "other", "sub"]


def test_an_urgent_folder_goes_first(house: Darkroom) -> None:
    desk = Desk(house)
    for name in ("a.json", "!z/job.json", "b/job.json"):
        house.drop(name, JOB)
    assert desk.after(0).taken() == ["a.json"]  # the others rest for a second
    (house.inbox / "a.json").unlink()
    house.drop("c.json", JOB)
    assert desk.after(2).taken() == ["!z/job.json", "b/job.json", "c.json"]


def test_a_folder_is_taken_when_all_that_it_names_has_arrived(house: Darkroom) -> None:
    desk = judging(house)
    house.drop("cat/job.json", {**JOB, "init_image": "photo.png"})
    assert desk.after(0).taken() == desk.after(9).taken() == []
    path = house.drop("cat/photo.png", PNG[:40])
    for size in (50, 60, len(PNG) - 1, len(PNG)):
        assert desk.after(0).taken() == desk.after(9).taken() == []
        path.write_bytes(PNG[:size])
    assert desk.after(1).taken() == desk.refused() == []
    assert desk.after(1.5).taken() == ["cat/job.json"]
    desk.spool.close()
    assert run(house) == [{"init_image": PNG}]
    assert house.names("failed") == []


def test_a_folder_of_the_same_name_is_heard_of_again_and_again(house: Darkroom) -> None:
    """watchdog goes on to watch a folder that was claimed, beside the one that came in its place."""
    house.configure(intake={"settle_s": 1, "rescan_s": 600})
    loop = house.loop()
    with Running(loop):
        until(lambda: "daemon.ready" in house.log.events())
        time.sleep(0.3)
        for number in range(4):
            house.drop("cat/x.png", PNG)
            if number < 3:  # what the job does not use stays in its folder, which stays watched
                house.drop("cat/more.png", PNG)
            house.drop("cat/job.json", {**JOB, "init_image": "x.png"})
            until(lambda number=number: loop.work.done > number)
        house.drop("dog/job.json", JOB)
        until(lambda: loop.work.done == 5)
    assert loop.work.failed == 0
    assert not {"watch.restarted", "watch.trouble", "watch.missed"} & set(house.log.events())


@pytest.mark.parametrize("job", ["cat.json", "cat/job.json"])
def test_what_never_comes_is_named_when_the_settle_time_has_passed(house: Darkroom, job: str) -> None:
    house.drop(job, json.dumps({**JOB, "init_image": "photo.png"}, indent=1))
    house.drop(job.replace("job.json", "mask.png").replace("cat.json", "mask.png"), MASK)
    begin = time.monotonic()
    assert run(house) == []
    assert time.monotonic() - begin > 0.5
    (fault,) = house.error("cat")["errors"]
    assert (fault["field"], fault["line"]) == ("init_image", 5)
    assert 'the picture "photo.png" is not beside the job' in fault["message"]
    assert fault["hint"]


def test_a_picture_cut_short_is_given_the_settle_time_and_then_refused(house: Darkroom) -> None:
    house.drop("cat.json", {**JOB, "init_image": "photo.png"})
    house.drop("photo.png", PNG[:-20])
    assert run(house) == []
    assert "ends too early" in house.error("cat")["message"]
    assert left_in(house.inbox) == []
    assert house.names("failed") == ["cat"]
    assert (house.failed / "cat" / "init_image.png").exists()


# What is no job


def test_a_picture_without_a_recipe_is_refused_and_told_how_to_be_used(house: Darkroom) -> None:
    house.drop("photo.png", PNG)
    assert run(house) == []
    assert "init_image" in house.error("photo")["errors"][0]["hint"]


def test_pictures_in_a_folder_wait_for_its_job(house: Darkroom) -> None:
    desk = judging(house)
    house.drop("cat/photo.png", with_recipe())
    house.drop("cat/request.json", JOB)
    assert desk.after(0).taken() == desk.after(7).taken() == []
    house.drop("cat/late.png", with_recipe())
    assert desk.after(0).taken() == desk.after(7).taken() == []
    house.drop("cat/job.json", {**JOB, "init_image": "photo.png"})
    assert desk.after(0).taken() == []
    assert desk.after(1.5).taken() == ["cat/job.json"]
    desk.spool.close()
    assert len(run(house)) == 1
    assert house.names("inbox") == house.names("failed") == []


def test_a_picture_with_a_recipe_in_a_queue_s_folder_is_a_job_after_the_settle_time(house: Darkroom) -> None:
    house.drop("team/cat.png", with_recipe())
    assert run(house) == [{}]
    assert house.names("done/team") == ["cat"]


def test_a_picture_that_begins_with_another_is_made_again_from_both(house: Darkroom) -> None:
    house.drop("photo.png", PNG)
    house.drop("cat.json", {**JOB, "init_image": "photo.png"})
    run(house)
    for file in ("cat-1.png", "init_image.png"):
        shutil.copy(house.done / "cat" / file, house.inbox / file)
    assert run(house) == [{"init_image": PNG}]
    assert house.names("inbox") == house.names("failed") == []
    assert shas(house, "cat-1") == shas(house, "cat")


def test_pictures_that_name_each_other_are_not_waited_for_for_ever(house: Darkroom) -> None:
    for name, names in (("a", "b.png"), ("b", "a.png")):
        job = resolve(parse(json.dumps(JOB).encode()), Config(), Catalog(Config().models), name)
        job = job.model_copy(update={"init_image": names, "strength": 0.5})
        house.drop(f"{name}.png", encode(Image.new("RGB", (64, 64)), job, seed=7, device="fake"))
    assert len(run(house)) == 1
    assert house.names("inbox") == []


def test_a_picture_that_names_itself_is_refused(house: Darkroom) -> None:
    job = resolve(parse(json.dumps(JOB).encode()), Config(), Catalog(Config().models), "a")
    job = job.model_copy(update={"init_image": "a.png", "strength": 0.5})
    house.drop("a.png", encode(Image.new("RGB", (64, 64)), job, seed=7, device="fake"))
    assert run(house) == []
    assert "is the job file itself" in house.error("a")["message"]


def test_no_picture_is_refused_before_all_that_waits_was_looked_into(house: Darkroom) -> None:
    """Beyond the window there may be a job that begins with it."""
    desk = Desk(house, window=5, judge=house.loop().work.reader.judge)
    house.drop("photo.png", PNG)
    for number in range(12):
        house.drop(f"{number:02}.json", {**JOB, "init_image": "photo.png"} if number == 11 else JOB)
    taken: list[str] = []
    while "11.json" not in taken:
        assert desk.after(30).refused() == []
        arrival = desk.intake.take()
        if arrival is not None:
            taken.append(arrival.name)
            Path(arrival.path).unlink()
            assert not arrival.takes or desk.intake.waiting <= 5  # another job beyond may begin with it


# Made again


def shas(house: Darkroom, name: str) -> list[str]:
    return [record["sha256"] for record in house.result(name)["pictures"]]


@pytest.fixture
def published(house: Darkroom) -> Darkroom:
    house.drop("cat/photo.png", PNG)
    house.drop("cat/mask.png", MASK)
    house.drop("cat/job.json", {**JOB, "init_image": "photo.png", "mask_image": "mask.png", "count": 2})
    run(house)
    return house


def test_a_published_folder_dropped_again_is_one_job_and_makes_the_same(published: Darkroom) -> None:
    shutil.copytree(published.done / "cat", published.inbox / "again")
    assert run(published) == [{"init_image": PNG, "mask_image": MASK}]
    assert published.names("inbox") == published.names("failed") == []
    assert sorted(published.names("done")) == ["again", "cat"]
    assert shas(published, "again") == shas(published, "cat")
    assert published.result("again")["job"] == published.result("cat")["job"]
    unused = ["cat-1.png", "cat-2.png", "contact-sheet.jpg", "log.jsonl", "request.json"]
    assert left_in(published.done / "again" / "dropped") == unused


def test_a_published_folder_is_one_job_in_whatever_order_its_files_come(published: Darkroom) -> None:
    files = sorted(path.name for path in (published.done / "cat").iterdir())
    for order in (files, files[::-1]):
        desk = judging(published)
        (published.inbox / "again").mkdir()
        for name in order:
            assert desk.after(5).taken() == []
            shutil.copy(published.done / "cat" / name, published.inbox / "again" / name)
        assert desk.after(0).taken() == []
        desk.spool.close()
        assert run(published) == [{"init_image": PNG, "mask_image": MASK}]
        assert published.names("inbox") == published.names("failed") == []


def test_a_result_beside_its_pictures_makes_the_same(published: Darkroom) -> None:
    for file in ("result.json", "init_image.png", "mask_image.png"):
        shutil.copy(published.done / "cat" / file, published.inbox / file)
    assert len(run(published)) == 1
    assert shas(published, "result") == shas(published, "cat")


# Hostile (fault 32)


def outside(tmp_path: Path) -> str:
    (tmp_path / "secret.png").write_bytes(SECRET)
    return str(tmp_path / "secret.png")


def linked(house: Darkroom, tmp_path: Path) -> str:
    (house.inbox / "link.png").symlink_to(outside(tmp_path))
    return "link.png"


def to_passwd(house: Darkroom, tmp_path: Path) -> str:
    (house.inbox / "passwd.png").symlink_to("/etc/passwd")
    return "passwd.png"


def linked_folder(house: Darkroom, tmp_path: Path) -> str:
    outside(tmp_path)
    (house.inbox / "there").symlink_to(tmp_path)
    return "there/secret.png"


def fifo(house: Darkroom, tmp_path: Path) -> str:
    os.mkfifo(house.inbox / "pipe.png")
    return "pipe.png"


def device(house: Darkroom, tmp_path: Path) -> str:
    house.configure(intake={"settle_s": 0.6}, limits={"image_roots": ["/dev"]})
    return "/dev/zero"


def folder(house: Darkroom, tmp_path: Path) -> str:
    (house.inbox / "folder.png").mkdir()
    return "folder.png"


def huge(house: Darkroom, tmp_path: Path) -> str:
    with (house.inbox / "huge.png").open("wb") as file:
        file.write(PNG)
        file.truncate(1 << 40)
    return "huge.png"


def bomb(house: Darkroom, tmp_path: Path) -> str:
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    house.drop("bomb.png", file.getvalue())
    return "bomb.png"


def text_file(house: Darkroom, tmp_path: Path) -> str:
    house.drop("notes.png", b"root:x:0:0:root:/root:/bin/bash\n")
    return "notes.png"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (lambda house, tmp_path: f"../../{Path(outside(tmp_path)).name}", 'leads upward ("..")'),
        (lambda house, tmp_path: "a/../cat.png", 'leads upward ("..")'),
        (lambda house, tmp_path: outside(tmp_path), "outside the folders"),
        (lambda house, tmp_path: "/etc/passwd", "outside the folders"),
        (lambda house, tmp_path: "/", "is a folder"),
        (lambda house, tmp_path: "https://example.org/cat.png", "darkroom fetches nothing"),
        (lambda house, tmp_path: "file:///etc/passwd", "darkroom fetches nothing"),
        (lambda house, tmp_path: "cat.png\0.json", "NUL"),
        (lambda house, tmp_path: "x/" * 3000 + "cat.png", "is not base64"),
        (lambda house, tmp_path: "x-/" * 3000 + "cat.png", "neither a path nor base64"),
        (lambda house, tmp_path: "x" * 300 + ".png", "File name too long"),
        (lambda house, tmp_path: "data:image/png;base64,!!!!", "is not base64"),
        (lambda house, tmp_path: "data:text/html,<b>", "not one of base64"),
        (lambda house, tmp_path: "data:image/png;base64," + "QUJD" * 30, "no picture that darkroom knows"),
        (lambda house, tmp_path: "QUJD" * 30, "no picture that darkroom knows"),
        (linked, "symbolic link"),
        (to_passwd, "symbolic link"),
        (linked_folder, "symbolic link"),
        (fifo, "not a regular file"),
        (device, "not a regular file"),
        (folder, "is a folder"),
        (huge, "at most 67,108,864 are allowed"),
        (bomb, "too many pixels"),
        (text_file, "no picture that darkroom knows"),
    ],
)
@pytest.mark.parametrize("field", ["init_image", "mask_image"])
def test_no_job_reaches_what_it_may_not(house: Darkroom, tmp_path: Path, named: Any, said: str, field: str) -> None:
    """Fault 32; and what is wrong is told at once, with its field and line."""
    name = named(house, tmp_path)
    house.configure(intake={"settle_s": 600}, limits=house.config.limits.model_dump())
    good = base64.b64encode(PNG).decode()
    house.drop("cat.json", json.dumps({**JOB, "init_image": good, field: name}, indent=1))
    watching = Watching(house)
    with Running(house.loop(watching)):
        until((house.failed / "cat" / "error.json").exists)
    assert watching.given == []
    error = house.error("cat")
    assert error["reason"] == "invalid-request"
    (fault,) = error["errors"]
    assert said in fault["message"]
    assert fault["field"] == field
    assert fault["line"] == (5 if field == "init_image" else 6)
    assert len(json.dumps(fault)) < 1000
    for path in house.failed.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.read_bytes() not in (SECRET, Path("/etc/passwd").read_bytes())


def test_a_root_that_is_reached_through_a_link_is_fine_but_no_link_below_it(house: Darkroom, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "cat.png").write_bytes(PNG)
    (tmp_path / "real" / "away.png").symlink_to("/etc/passwd")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    house.configure(intake={"settle_s": 0.6}, limits={"image_roots": [tmp_path / "root"]})
    house.drop("a.json", {**JOB, "init_image": str(tmp_path / "root" / "cat.png")})
    house.drop("b.json", {**JOB, "init_image": str(tmp_path / "root" / "away.png")})
    assert run(house) == [{"init_image": PNG}]
    assert "symbolic link" in house.error("b")["message"]


def test_a_picture_that_is_exchanged_between_check_and_claim_is_looked_at_again(house: Darkroom) -> None:
    """Fault 32: what is rendered is what lies in the job's folder, and that was checked there."""
    house.drop("cat.json", {**JOB, "init_image": "x.png"})
    house.drop("x.png", PNG)
    loop = house.loop(once=True)
    claim = loop.spool.claim

    def exchange_and_claim(arrival: Any) -> Any:
        (house.inbox / "x.png").unlink()
        (house.inbox / "x.png").symlink_to("/etc/passwd")
        return claim(arrival)

    loop.spool.claim = exchange_and_claim  # type: ignore[method-assign]
    loop.run()
    assert "symbolic link" in house.error("cat")["message"]
    assert house.names("done") == []
    assert not any(path.is_symlink() for path in house.failed.rglob("*"))


def test_nor_does_it_help_to_exchange_it_in_the_last_moment(house: Darkroom) -> None:
    """Fault 32: a link that is moved into the job's folder is not followed there."""
    house.drop("cat.json", {**JOB, "init_image": "x.png"})
    house.drop("x.png", PNG)

    def exchange(call: Call) -> None:
        if call.name == "rename" and call.path.name == "x.png":
            call.path.unlink()
            call.path.symlink_to("/etc/passwd")

    house.run_once(watching := Watching(house), Disk(exchange))
    assert watching.given == []
    assert "is empty" in house.error("cat")["message"]
    assert (house.failed / "cat" / "init_image.png").is_symlink()
    assert in_job_folder(house.failed / "cat")("init_image", "x.png") is None


def test_one_that_becomes_another_kind_in_the_last_moment_is_taken_as_it_is(house: Darkroom) -> None:
    house.drop("cat.json", {**JOB, "init_image": "x.png"})
    house.drop("x.png", PNG)
    other = picture(64, 128, "blue", "JPEG")

    def exchange(call: Call) -> None:
        if call.name == "rename" and call.path.name == "x.png":
            call.path.write_bytes(other)

    house.run_once(watching := Watching(house), Disk(exchange))
    assert watching.given == [{"init_image": other}]
    assert house.result("cat")["job"]["init_image"] == "init_image.png"
    assert house.result("cat")["job"]["height"] == 128


def test_a_picture_that_somebody_takes_out_of_the_job_s_folder_fails_the_job_alone(house: Darkroom) -> None:
    house.drop("a.json", {**JOB, "init_image": base64.b64encode(PNG).decode()})
    house.drop("b.json", JOB)

    class Taken(Watching):
        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            if images.get("init_image") == b"":
                raise RenderFailed("The picture's file is empty")
            yield from super().run(job, skip, images)

    def take(call: Call) -> None:
        if call.name == "create" and call.path.name == "attempt.1":
            for path in house.working.rglob("init_image.png"):
                path.unlink()

    house.run_once(Taken(house), Disk(take))
    assert house.names("failed") == ["a"]
    assert house.names("done") == ["b"]


@pytest.mark.parametrize("text", ["/etc/passwd", "../../../../../../../../etc/passwd", "link.png"])
def test_retry_reads_nothing_for_a_job_but_what_lies_in_its_folder(tmp_path: Path, text: str) -> None:
    """Fault 32."""
    (tmp_path / "dropped").mkdir()
    (tmp_path / "dropped" / "link.png").symlink_to("/etc/passwd")
    (tmp_path / "dropped" / "x.png").write_bytes(PNG)
    find = in_job_folder(tmp_path)
    assert find("init_image", text) is None
    assert find("init_image", "x.png") == tmp_path / "dropped" / "x.png"


def test_a_picture_that_is_replaced_while_it_waits_is_taken_as_it_is_now(house: Darkroom) -> None:
    """Fault 12, for pictures."""
    house.drop("cat.json", {**JOB, "init_image": "x.png"})
    house.drop("x.png", PNG)
    loop = house.loop(watching := Watching(house), once=True)
    claim = loop.spool.claim
    other = picture(64, 128, "blue", "JPEG")

    def replace_and_claim(arrival: Any) -> Any:
        (house.inbox / "x.png").write_bytes(other)
        return claim(arrival)

    loop.spool.claim = replace_and_claim  # type: ignore[method-assign]
    loop.run()
    assert watching.given == [{"init_image": other}]
    job = house.result("cat")["job"]
    assert (job["width"], job["height"]) == (64, 128)


# Large ones


def test_a_job_may_be_as_large_as_the_picture_in_it_makes_it(house: Darkroom) -> None:
    file = io.BytesIO()
    Image.effect_noise((1600, 1600), 90).convert("RGB").save(file, "PNG", compress_level=0)
    data = file.getvalue()
    assert len(data) > 4 << 20
    house.drop("cat.json", {**JOB, "width": 64, "height": 64, "init_images": [base64.b64encode(data).decode()]})
    house.drop("text.json", {"prompt": "x", "negative_prompt": "a word " * 200_000})
    assert run(house) == [{"init_image": data}]
    assert "max_job_bytes" in house.error("text")["errors"][0]["hint"]


def test_a_picture_of_twenty_megabytes_in_a_job_is_read_in_a_moment() -> None:
    data = json.dumps({"prompt": "x", "init_images": [base64.b64encode(os.urandom(20 << 20)).decode()]}).encode()
    begin = time.process_time()
    request = parse(data)
    assert time.process_time() - begin < 5  # 0.1 s on a quiet machine
    assert request.init_image is not None
