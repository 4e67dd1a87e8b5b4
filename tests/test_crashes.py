"""Every crash point: each path is cut short at each of its calls to the disk, restarted, and held to the promise.

Fault 56. Nothing lost, nothing twice, nothing half; finished pictures are not made again, seeds are kept.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.config import Config
from darkroom.errors import EngineDied
from darkroom.events import Event, Fallback, Step
from darkroom.executors import FakeExecutor
from darkroom.intake import Waker
from darkroom.job import IMAGE_FIELDS, NO_IMAGES, Images, Job, is_entry_file, parse, resolve
from darkroom.models.catalog import Catalog
from darkroom.output import encode
from darkroom.spool import PAUSE, Call, Disk
from disk_model import files_in


class Crash(BaseException):
    """The process is gone: nothing that the code could catch."""


class CrashingDisk(Disk):
    """Dies at call ``at``, and at every call after it, since the dead do not write."""

    def __init__(self, at: int) -> None:
        def observe(call: Call) -> None:
            if call.number >= at:
                raise Crash

        super().__init__(observe)


class Engine(FakeExecutor):
    """The fake executor, with deaths, fallbacks, and a person who asks for a pause, on order."""

    def __init__(
        self, darkroom: Darkroom, *, deaths: int = 0, falls_back: bool = False, pause: Path | None = None
    ) -> None:
        super().__init__(darkroom.config)
        self.deaths = deaths
        self.falls_back = falls_back
        self.pause = pause

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        for event in super().run(job, skip, images):
            if isinstance(event, Step) and self.deaths > 0 and event.first == 1:
                self.deaths -= 1
                raise EngineDied("The engine's process was ended by signal SIGSEGV")
            if isinstance(event, Step) and self.falls_back and job.width == 64 and event.first == 1:
                yield Fallback("smaller", "no memory", lossless=False, changes={"width": 56 + 16})
                self.falls_back = False
            if isinstance(event, Step) and self.pause is not None:
                self.pause.touch()
            yield event


class Lifting(Waker):
    """Whoever paused the daemon lets it go on as soon as it sleeps. Counts how often."""

    def __init__(self, pause: Path) -> None:
        super().__init__()
        self.pause = pause
        self.lifted = 0

    def wait(self, timeout: float) -> bool:
        if self.pause.exists():
            self.pause.unlink()
            self.lifted += 1
            return super().wait(0)
        return super().wait(timeout)


@dataclass
class Way:
    """One way through the daemon: what is dropped before, with which engine, and what must come out.

    ``pictures`` are dropped with the jobs that begin with them; ``kept`` is what lies beside the results of these.
    """

    name: str
    files: dict[str, dict[str, object] | bytes]
    done: list[str]
    failed: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    deaths: int = 0
    falls_back: bool = False
    pauses: bool = False
    together: bool = False
    """Whether jobs are made along with others; their seeds are then chosen before they are claimed."""
    entries: int = 0
    """Of a list: how many jobs it holds."""
    prepare: Callable[[Darkroom], None] | None = None


PICTURE_JOB = resolve(
    parse(b'{"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 1, "seed": 7}'),
    Config(),
    Catalog(Config().models),
    "a",
)
JOB = {"width": 64, "height": 64, "num_inference_steps": 1}


def cancel_it(darkroom: Darkroom) -> None:
    """A job that was claimed by an earlier daemon, and cancelled since."""

    def observe(call: Call) -> None:
        if call.path.name == ".job.json.tmp":
            raise Crash

    loop = darkroom.loop(Engine(darkroom), Disk(observe), once=True)
    with pytest.raises(Crash):
        loop.run()
    loop.guard.stop()
    loop.spool.close()
    (folder,) = [path for path in darkroom.working.iterdir() if path.is_dir()]
    (folder / "cancel").touch()


def picture() -> bytes:
    """One that carries its recipe."""
    return encode(Image.new("RGB", (64, 64)), PICTURE_JOB, seed=7, device="fake")


def photo(colour: str) -> bytes:
    """One that carries none."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def took_the_name(darkroom: Darkroom) -> None:
    for folder in (darkroom.done / "cat", darkroom.failed / "typo"):
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")


LIST = json.dumps([{"prompt": "a"} | JOB, {"promt": "b"}, {"prompt": "c"} | JOB]).encode()

WAYS = [
    Way("done", {"cat.json": {"prompt": "a"} | JOB}, done=["cat"]),
    Way("a picture", {"cat.png": picture()}, done=["cat"]),
    Way("several pictures", {"cat.json": {"prompt": "a", "count": 3} | JOB}, done=["cat"]),
    Way("refused", {"typo.json": {"promt": "a"}}, done=[], failed=["typo"]),
    Way(
        "names taken",
        {"cat.json": {"prompt": "a"} | JOB, "typo.json": {"promt": "a"}},
        done=["cat~2"],
        failed=["typo~2"],
        prepare=took_the_name,
    ),
    Way(
        "subfolder",
        {"team/cat.json": {"prompt": "a"} | JOB, "cat.json": {"prompt": "b"} | JOB},
        done=["team/cat", "cat"],
    ),
    Way("engine dies once", {"cat.json": {"prompt": "a", "count": 2} | JOB}, done=["cat"], deaths=1),
    Way("engine dies for good", {"cat.json": {"prompt": "a", "count": 2} | JOB}, done=[], failed=["cat"], deaths=99),
    Way("steps down", {"cat.json": {"prompt": "a", "count": 3} | JOB}, done=["cat"], falls_back=True),
    Way("cancelled", {"cat.json": {"prompt": "a", "count": 2} | JOB}, done=[], failed=["cat"], prepare=cancel_it),
    Way("paused", {"a.json": {"prompt": "a"} | JOB, "b.json": {"prompt": "b"} | JOB}, done=["a", "b"], pauses=True),
    Way(
        "made together",
        {"a.json": {"prompt": "a"} | JOB, "b.json": {"prompt": "b"} | JOB},
        done=["a", "b"],
        together=True,
    ),
    Way("matrix", {"cat.json": {"prompt": "a", "matrix": {"seed": [1, 2]}, "count": 2} | JOB}, done=["cat"], deaths=1),
    Way(
        "a list",
        {"night.json": LIST},
        done=["night/list", "night/0001", "night/0003"],
        failed=["night/0002"],
        entries=3,
    ),
    Way(
        "a list, its name taken",
        {"team/night.json": b'{"defaults": {"steps": 1, "width": 64, "height": 64}, "jobs": [{"prompt": "a"}]}'},
        done=["team/night~2/list", "team/night~2/0001"],
        entries=1,
        prepare=lambda darkroom: (darkroom.failed / "team" / "night").mkdir(parents=True),
    ),
    Way(
        "three in a row",
        {
            "a.json": {"prompt": "a"} | JOB,
            "b.json": b'{"prompt": "a", "prompt": "b"}',
            "!c.json": {"prompt": "c"} | JOB,
        },
        done=["a", "!c"],
        failed=["b"],
    ),
    Way(
        "pictures beside",
        {
            "a.json": {"prompt": "a", "init_image": "x.png"} | JOB,
            "b.json": {"prompt": "b", "init_image": "x.png", "mask_image": "m.png"} | JOB,
        },
        done=["a", "b"],
        pictures={"x.png": picture(), "m.png": photo("white")},
        kept=frozenset({"init_image.png", "mask_image.png"}),
    ),
    Way(
        "a folder",
        {"cat/job.json": {"prompt": "a", "init_image": "x.png", "mask_image": "below/m.png"} | JOB},
        done=["cat"],
        pictures={"cat/x.png": photo("red"), "cat/below/m.png": photo("white"), "cat/more.png": picture()},
        kept=frozenset({"init_image.png", "mask_image.png", "dropped"}),
    ),
    Way(
        "a refused folder",
        {"team/cat/job.json": {"promt": "a", "init_image": "x.png"} | JOB},
        done=[],
        failed=["team/cat"],
        pictures={"team/cat/x.png": picture()},
    ),
    Way(
        "a picture inside",
        {"cat.json": {"prompt": "a", "init_image": base64.b64encode(photo("red")).decode()} | JOB},
        done=["cat"],
        kept=frozenset({"init_image.png"}),
    ),
]


def named(*names: str) -> list[Way]:
    found = [way for way in WAYS if way.name in names]
    assert len(found) == len(names)
    return found


Requests = dict[str, list[Path]]
"""Digests of contents, and where each lies."""

REQUESTS = ("request.", "job.json")


class House:
    """A darkroom on a fast file system, made anew for each crash."""

    lifted = 0
    """How often it was paused, and let go on."""

    def __init__(self, way: Way, base: Path) -> None:
        self.way = way
        self.impatient = False
        self.darkroom = Darkroom(Path(tempfile.mkdtemp(dir=base)))
        self.configure()
        for name, content in (way.files | way.pictures).items():
            self.darkroom.drop(name, content)
        self.contents = sorted(
            hashlib.sha256((self.darkroom.inbox / name).read_bytes()).hexdigest() for name in way.files
        )
        self.engine = Engine(
            self.darkroom, deaths=way.deaths, falls_back=way.falls_back, pause=self.pause if way.pauses else None
        )
        if way.prepare is not None:
            way.prepare(self.darkroom)

    def configure(self) -> None:
        if self.way.pictures or self.way.kept:  # these jobs rest for a tenth of it
            self.darkroom.configure(intake={"settle_s": 0.2, "rescan_s": 0.05})
        if self.way.together:
            self.darkroom.configure(engine={"batch_across_jobs": True})

    @property
    def pause(self) -> Path:
        return self.darkroom.root / PAUSE

    def run(self, disk: Disk) -> bool:
        """Returns whether it came to its end."""
        waker = Lifting(self.pause)
        loop = self.darkroom.loop(self.engine, disk, once=True, waker=waker)
        loop.guard.local = False  # all lies there; to begin and end a watch takes as long as a job
        if self.impatient:
            loop.trouble.first_pause_s = 0.001
        try:
            loop.run()
        except Crash:
            return False
        finally:  # what the kernel does when a process is gone
            loop.guard.stop()
            loop.spool.close()
            waker.close()
            self.lifted += waker.lifted
        return True

    def requests(self) -> Requests:
        """Where each dropped content lies now."""
        return self.requests_and_entries()[0]

    def requests_and_entries(self) -> tuple[Requests, Requests]:
        """And where each entry of a list that became a job of its own."""
        requests: Requests = {}
        entries: Requests = {}
        for folder, beginnings in (("inbox", ()), *((each, REQUESTS) for each in ("working", "done", "failed"))):
            for path in files_in(self.darkroom.root / folder, *beginnings):
                if self._is_request(path, folder):
                    found = entries if is_entry_file(data := path.read_bytes()) else requests
                    found.setdefault(hashlib.sha256(data).hexdigest(), []).append(path)
        return requests, entries

    def _is_request(self, path: Path, folder: str) -> bool:
        if folder == "inbox":
            name = path.relative_to(self.darkroom.inbox).as_posix()
            return path.suffix != "" and not path.name.startswith(".") and name not in self.way.pictures
        return path.stem == "request" or (path.parent.name == "dropped" and path.name == "job.json")

    def pictures(self) -> dict[str, list[str]]:
        """Where each picture lies that was dropped with the jobs, or a copy of it, by its content."""
        found: dict[str, list[str]] = {hashlib.sha256(data).hexdigest(): [] for data in self.way.pictures.values()}
        for path in files_in(self.darkroom.root) if found else ():
            if path.suffix == ".png" and not path.name.startswith("."):
                key = hashlib.sha256(path.read_bytes()).hexdigest()
                if key in found:
                    found[key].append(path.relative_to(self.darkroom.root).as_posix())
        return found

    def hold_to_the_promise(self) -> Requests:
        """At every instant: each job in exactly one place, no picture of one lost, what is published whole.

        Returns what there is, entries of lists too.
        """
        assert all(self.pictures().values()), self.pictures()
        found, entries = self.requests_and_entries()
        assert sorted(found) == self.contents
        assert all(len(paths) == 1 for paths in (*found.values(), *entries.values())), (found, entries)
        is_split = any(path.parent.name == "list" for (path,) in found.values() if "done" in path.parts)
        assert len(entries) == self.way.entries or not (entries or is_split), "a list in part"
        for base in (self.darkroom.done, self.darkroom.failed):
            for folder in (file.parent for file in files_in(base, "request.")):
                result = json.loads((folder / "result.json").read_bytes())
                assert folder.relative_to(base).as_posix() == result["name"]
                assert (folder / "error.json").exists() == (base == self.darkroom.failed)
                for picture in result["pictures"]:
                    data = (folder / picture["file"]).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == picture["sha256"]
        return found | entries

    def finished(self) -> dict[tuple[str, int], tuple[int, str]]:
        """Pictures that are finished, in ``working/`` or published: name and inode to time written and content."""
        return {
            (path.name, path.stat().st_ino): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in self.darkroom.root.rglob("*.png")
            if not path.name.startswith((".", "request.", *IMAGE_FIELDS))
            and self.darkroom.inbox not in path.parents
            and "dropped" not in path.parts
        }

    def hold_to_the_end(self) -> None:
        """After a restart: every job has the verdict it should, once, and nothing else lies about."""
        requests = self.hold_to_the_promise()
        found = {path.relative_to(self.darkroom.root).parent.as_posix() for (path,) in requests.values()}
        wanted = {f"done/{name}" for name in self.way.done} | {f"failed/{name}" for name in self.way.failed}
        assert found == wanted
        assert self.darkroom.names("working") == []
        assert [path for path in self.darkroom.inbox.rglob("[!.]*") if path.is_file()] == []
        for name in self.way.done:
            result = self.darkroom.result(name)
            if "entries" in result:
                assert result["entries"] == self.way.entries
                continue
            job = Job.model_validate(result["job"] | {"id": result["id"]})
            assert len(result["pictures"]) == job.total
            first = result["pictures"][0]["seed"]
            seeds = [picture["seed"] - first for picture in result["pictures"]]
            assert seeds == [job.seed_of(index) - job.seed for index in range(job.total)]
            left = {path.name for path in (self.darkroom.done / name).iterdir()}
            pictures = {picture["file"] for picture in result["pictures"]}
            (request,) = (name for name in left if name.startswith("request."))
            given = {result["job"][field] for field in IMAGE_FIELDS if field in result["job"]}
            assert given <= left
            grid = {result["grid"]} if "grid" in result else set()
            sheet = {"contact-sheet.jpg"} if len(pictures) > 1 and not grid else set()
            assert left - self.way.kept - sheet == pictures | grid | {request, "result.json", "log.jsonl"}
            assert self.impatient or sheet <= left

    def remove(self) -> None:
        shutil.rmtree(self.darkroom.root)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A RAM disk where there is one: the order of the calls is tested, not the disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path, prefix="darkroom-"))
    yield folder
    shutil.rmtree(folder)


def calls_of(way: Way, base: Path) -> int:
    house = House(way, base)
    disk = Disk()
    assert house.run(disk)
    house.hold_to_the_end()
    assert bool(house.lifted) == way.pauses
    house.remove()
    return disk.calls


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_crash_at_any_call_loses_nothing_and_doubles_nothing(way: Way, base: Path) -> None:
    points = calls_of(way, base)
    for at in range(1, points + 1):
        house = House(way, base)
        assert not house.run(CrashingDisk(at)), f"call {at} of {points} was not reached"
        house.hold_to_the_promise()
        before = house.finished()
        assert house.run(Disk())
        house.hold_to_the_end()
        after = house.finished()
        assert before.items() <= after.items(), f"crash at call {at}: a finished picture was made again"
        house.remove()
    print(f"{way.name}: {points} crash points")


@pytest.mark.parametrize(
    "way", named("several pictures", "engine dies once", "cancelled", "a folder", "a list"), ids=lambda way: way.name
)
def test_a_crash_in_the_recovery_from_a_crash_loses_nothing(way: Way, base: Path) -> None:
    points = calls_of(way, base)
    every, then_every = max(5, points // 16), max(4, points // 20)
    pairs = 0
    for first in range(1, points + 1, every):
        for second in itertools.count(1, then_every):
            house = House(way, base)
            assert not house.run(CrashingDisk(first))
            ended = house.run(CrashingDisk(second))
            house.hold_to_the_promise()
            assert house.run(Disk())
            house.hold_to_the_end()
            house.remove()
            pairs += 1
            if ended:
                break
    print(f"{way.name}: {pairs} pairs of crash points")


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE]


class FailingDisk(Disk):
    """Refuses call ``at`` and the ``more`` after it, then is well again."""

    def __init__(self, at: int, number: int, more: int = 0) -> None:
        def observe(call: Call) -> None:
            if at <= call.number <= at + more:
                raise OSError(number, os.strerror(number), str(call.path))

        super().__init__(observe)


@pytest.mark.parametrize(
    "way",
    named(
        *("several pictures", "refused", "engine dies once", "steps down", "three in a row", "pictures beside"),
        *("a folder", "a list", "matrix"),
    ),
    ids=lambda way: way.name,
)
def test_an_error_of_the_disk_at_any_call_is_waited_out_and_blamed_on_no_job(way: Way, base: Path) -> None:
    """Faults 48, 49."""
    points = calls_of(way, base)
    for at in range(1, points + 1):
        house = House(way, base)
        house.impatient = True
        assert house.run(FailingDisk(at, ERRORS[at % len(ERRORS)], more=at % 3)), f"call {at}"
        house.hold_to_the_end()
        house.remove()
    print(f"{way.name}: an error at each of {points} calls")


@pytest.mark.parametrize("way", named("several pictures", "three in a row"), ids=lambda way: way.name)
def test_a_crash_while_the_disk_is_in_trouble_loses_nothing(way: Way, base: Path) -> None:
    """The daemon has paused for a full disk; it is killed in the pause, or as it goes on."""
    points = calls_of(way, base)
    crashes = 0
    for at in range(1, points + 1, 2):
        for later in (1, 2, 4):

            def observe(call: Call, at: int = at, dead: int = at + later) -> None:
                if call.number >= dead:
                    raise Crash
                if call.number >= at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(call.path))

            house = House(way, base)
            house.impatient = True
            crashes += not house.run(Disk(observe))
            house.hold_to_the_promise()
            assert house.run(Disk())
            house.hold_to_the_end()
            house.remove()
    assert crashes > points
    print(f"{way.name}: {crashes} crashes in a pause for a full disk")
