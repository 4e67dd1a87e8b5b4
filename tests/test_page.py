"""The page of results: what is on it, that nothing on it is markup, that it keeps up with the folders, and its cost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.page import Page, page
from darkroom.page.entry import Entry
from darkroom.spool import Call, Disk

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' \u2028 {{ 7 * 7 }} &amp;"
)


@pytest.fixture
def darkroom(darkroom: Darkroom) -> Darkroom:
    darkroom.configure(output={"page": True})
    return darkroom


class Seen(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and the text outside of scripts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[str] = []
        self._in_script = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag in ("script", "style")
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script and self.cards:
            self.cards[-1] += data

    def links(self) -> list[Path]:
        """Whatever the page leads to, as files."""
        found = [attrs.get("href") or attrs.get("src") for _, attrs in self.elements]
        return [Path(os.path.normpath(self.file.parent / unquote(link))) for link in found if link]


def index(darkroom: Darkroom) -> Seen:
    return Seen(darkroom.done / "index.html")


def put(
    darkroom: Darkroom, name: str, *, base: str = "done", picture: bool = False, at: float | None = None, **job: Any
) -> Path:
    """A result, as another daemon would have left it."""
    folder = darkroom.root / base / name
    folder.mkdir(parents=True)
    fields = {"prompt": f"prompt of {name}", "seed": 7, "width": 64, "height": 64, "model": "seedling", **job}
    pictures = [{"file": "a-1.png", "width": 64, "height": 64, "seed": 7}] if picture else []
    if picture:
        Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "a-1.png")
    result = {"finished_at": "2026-11-25T03:36:23.032Z", "pictures": pictures, "job": fields, "seconds": {"total": 1.2}}
    (folder / "result.json").write_text(json.dumps(result))
    if at is not None:
        os.utime(folder / "result.json", (at, at))
    return folder


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(darkroom: Darkroom, clock: Callable[[], float] = time.monotonic, disk: Disk | None = None) -> Page:
    spool = darkroom.spool(disk)
    for folder in (spool.done, spool.failed):
        folder.mkdir(exist_ok=True)
    return Page(spool, darkroom.log, clock)


def settle(made: Page, clock: Clock, seconds: float = 200.0) -> None:
    """Let it work until nothing is left to do, and its next scan too."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 0.5
        made.work(idle=True)


# ---------------------------------------------------------------- what is on it


def test_of_a_matrix_all_pictures_are_its_grid(darkroom: Darkroom) -> None:
    darkroom.drop("cats.json", {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "matrix": {"seed": [1, 2]}})
    darkroom.run_once()
    seen = index(darkroom)
    assert darkroom.done / "cats" / "cats-grid.jpg" in seen.links()
    assert "1 step" in seen.cards[0]
    assert "1 steps" not in seen.cards[0]


def test_every_result_is_a_card_newest_first_with_its_picture_and_what_it_was_made_of(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", prompt="a red cat")
    darkroom.run_once()
    darkroom.drop("team/dogs.json", prompt="blue dogs", count=3)
    darkroom.run_once()
    seen = index(darkroom)
    newest, oldest = seen.cards
    assert "a red cat" in oldest
    for text in ("blue dogs", "seed 7", "64 × 64", "seedling", "2 steps", "team/dogs"):
        assert text in newest
    assert darkroom.done / "team" / "dogs" / "contact-sheet.jpg" in seen.links()
    assert darkroom.done / "team" / "dogs" / "dogs-3.png" in seen.links()
    assert darkroom.done / "cat" / "cat-1.png" in seen.links()
    images = [Path(src) for tag, attrs in seen.elements if tag == "img" and (src := attrs["src"])]
    assert len(images) == 2
    for image in images:
        with Image.open(darkroom.done / image) as thumb:
            assert thumb.size == (64, 64)


def test_everything_that_it_leads_to_is_there(darkroom: Darkroom) -> None:
    for name in ("cat.json", "grüße & 猫 #1 100%.json", "a'quoted'.json", "sub folder/x?.json", 'we"ird<.json'):
        darkroom.drop(name)
    darkroom.drop("typo.json", {"prompt": "x", "widht": 3})
    darkroom.run_once()
    seen = index(darkroom)
    assert len(seen.cards) == 6
    missing = [path for path in seen.links() if not path.exists()]
    assert missing == []


def test_a_failure_says_why_and_what_was_asked(darkroom: Darkroom) -> None:
    darkroom.drop("typo.json", {"prompt": "a boat", "widht": 3})
    darkroom.run_once()
    (card,) = index(darkroom).cards
    assert "invalid-request: " in card
    assert "did you mean width?" in card
    assert "a boat" in card
    assert darkroom.failed / "typo" in index(darkroom).links()


def test_what_people_wrote_is_text_never_markup(darkroom: Darkroom) -> None:
    darkroom.drop("evil.json", prompt=EVIL)
    darkroom.drop("failed.json", prompt=EVIL, model=EVIL)
    darkroom.run_once()
    seen = index(darkroom)
    assert sum(EVIL in card for card in seen.cards) == 2
    assert [tag for tag, _ in seen.elements].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in seen.elements for name in attrs)
    data = (darkroom.done / ".page" / "0001.js").read_text(encoding="ascii")
    assert "<" not in data
    entries = json.loads(data[data.index("[") : data.rindex("]") + 1])
    assert {entry["prompt"] for entry in entries} == {EVIL}


def test_results_that_somebody_tampered_with_break_nothing(darkroom: Darkroom) -> None:
    odd: list[Any] = [
        {},
        [],
        {"job": [], "pictures": {}, "seconds": 5, "finished_at": 7},
        {"job": {"prompt": 3, "seed": "x"}, "pictures": [1, {"file": "../../secret.png"}, {"file": 2}]},
        {"job": {"prompt": "\ud800 lone"}, "pictures": [{"file": "\ud800.png"}, {"file": "javascript:alert(1)"}]},
    ]
    for number, result in enumerate(odd):
        folder = put(darkroom, f"odd{number}")
        (folder / "result.json").write_text(json.dumps(result))
    (put(darkroom, "nested") / "result.json").write_text("[" * 100_000)
    (darkroom.done / os.fsdecode(b"raw-\xff")).mkdir()
    (darkroom.done / os.fsdecode(b"raw-\xff") / "result.json").write_text("{}")
    clock = Clock()
    settle(make(darkroom, clock), clock)
    assert darkroom.log.of("page.trouble") == []
    seen = index(darkroom)
    assert len(seen.cards) == 5, "what is no object is no result"
    assert not any("secret" in str(path) for path in seen.links())
    hrefs = [attrs.get("href") or "" for _, attrs in seen.elements]
    assert not any(href.startswith("javascript") for href in hrefs)
    assert darkroom.done / os.fsdecode(b"raw-\xff") in [Path(os.fsdecode(os.fsencode(path))) for path in links(seen)]


def links(seen: Seen) -> list[Path]:
    """As ``Seen.links``, names that are not UTF-8 included."""
    found = [attrs.get("href") for _, attrs in seen.elements]
    return [
        Path(os.path.normpath(seen.file.parent / unquote(link, errors="surrogateescape"))) for link in found if link
    ]


def test_a_prompt_of_ten_thousand_characters_is_cut(darkroom: Darkroom) -> None:
    darkroom.drop("long.json", prompt="word " * 2000)
    darkroom.run_once()
    (card,) = index(darkroom).cards
    assert "word word" in card
    assert len(card) < 1500


# ---------------------------------------------------------------- that it keeps up


def test_an_empty_spool_has_a_page_that_says_so(darkroom: Darkroom) -> None:
    darkroom.run_once()
    assert "Nothing here yet" in (darkroom.done / "index.html").read_text()


def test_switched_off_there_is_none(darkroom: Darkroom) -> None:
    darkroom.configure(output={"page": False})
    darkroom.drop("cat.json")
    darkroom.run_once()
    assert sorted(path.name for path in darkroom.done.iterdir()) == ["cat"]


def test_results_from_before_come_onto_it_and_those_deleted_leave_it(darkroom: Darkroom) -> None:
    put(darkroom, "old", at=1e9)
    put(darkroom, "group/new", at=2e9)
    put(darkroom, "bad", base="failed", at=1.5e9)
    clock = Clock()
    made = make(darkroom, clock)
    settle(made, clock)
    assert [name in card for card, name in zip(index(darkroom).cards, ("group/new", "bad", "old"), strict=True)] == [
        True
    ] * 3
    shutil.rmtree(darkroom.done / "group" / "new")
    put(darkroom, "foreign")
    settle(made, clock)
    assert [re.search("prompt of (\\S+)", card)[1] for card in index(darkroom).cards] == ["foreign", "bad", "old"]  # type: ignore[index]


def test_a_result_in_the_place_of_a_deleted_one_takes_its_place_on_the_page(darkroom: Darkroom) -> None:
    for prompt in ("the first", "the second"):
        darkroom.drop("cat.json", prompt=prompt)
        darkroom.run_once()
        shutil.move(darkroom.done / "cat", darkroom.root / prompt)
    shutil.move(darkroom.root / "the second", darkroom.done / "cat")
    darkroom.run_once()
    (card,) = index(darkroom).cards
    assert "the second" in card


def test_what_somebody_removes_while_it_is_looked_for_keeps_nothing_on_the_page(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    old = put(darkroom, "old")
    made = make(darkroom, clock)
    settle(made, clock)
    assert len(index(darkroom).cards) == 1
    shutil.rmtree(old)
    names = page._folders_in

    def late(folder: Path, gone: list[str] | None) -> list[str] | None:
        return [*(names(folder, gone) or ()), *(["consumed"] if folder == darkroom.done else [])]

    monkeypatch.setattr(page, "_folders_in", late)
    settle(made, clock)
    assert not index(darkroom).cards


def test_the_pauses_of_a_scan_are_not_taken_for_its_cost(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    """While jobs run it pauses twenty times as long as it works; what is deleted leaves it after a minute still."""
    monkeypatch.setattr(page, "_NAMES_AT_ONCE", 1)

    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 0.001
            return self.now

    clock = Ticking()
    fill(darkroom, 80)
    made = make(darkroom, clock)
    settle(made, clock)
    assert len(index(darkroom).cards) == 80
    for folder in list(darkroom.done.glob("r*"))[:2]:
        shutil.rmtree(folder)
        deleted, before = clock.now, len(index(darkroom).cards)
        while len(index(darkroom).cards) == before:
            clock.now += 0.5
            made.work(idle=False)
            assert clock.now < deleted + page.RESCAN_S + 15


def test_a_share_that_is_away_for_a_moment_does_not_empty_the_page(darkroom: Darkroom) -> None:
    put(darkroom, "cat")
    clock = Clock()
    made = make(darkroom, clock)
    settle(made, clock)
    before = (darkroom.done / ".page").stat().st_ino
    darkroom.failed.rename(darkroom.root / "away")
    put(darkroom, "dog")
    settle(made, clock)
    assert len(index(darkroom).cards) == 2
    (darkroom.root / "away").rename(darkroom.failed)
    settle(made, clock)
    assert len(index(darkroom).cards) == 2
    assert (darkroom.done / ".page").stat().st_ino == before


def fill(darkroom: Darkroom, count: int) -> None:
    for number in range(1, count + 1):
        put(darkroom, f"r{number:05}", at=1e9 + number)


def test_the_next_daemon_knows_what_the_last_one_wrote_and_reads_no_result_again(darkroom: Darkroom) -> None:
    fill(darkroom, 250)
    clock = Clock()
    settle(make(darkroom, clock), clock)
    before = {path: path.stat().st_mtime_ns for path in (darkroom.done / ".page").rglob("0*")}
    for path in darkroom.done.glob("r*/result.json"):
        path.write_text("{")  # would not be read again
    settle(make(darkroom, clock), clock)
    assert {path: path.stat().st_mtime_ns for path in (darkroom.done / ".page").rglob("0*")} == before
    assert len(index(darkroom).cards) == 150


def walk_back(darkroom: Darkroom) -> list[str]:
    """The names on all pages, by following their links from the newest to the oldest."""
    seen, names = index(darkroom), []
    while True:
        names += [re.search("prompt of (\\S+)", card)[1] for card in seen.cards]  # type: ignore[index]
        older = [attrs["href"] for tag, attrs in seen.elements if attrs.get("rel") == "next"]
        if not older:
            return names
        assert older[0] is not None
        seen = Seen(seen.file.parent / older[0])


def test_older_results_are_pages_behind_links_each_result_once(darkroom: Darkroom) -> None:
    fill(darkroom, 430)
    clock = Clock()
    made = make(darkroom, clock)
    settle(made, clock)
    assert walk_back(darkroom) == [f"r{number:05}" for number in range(430, 0, -1)]
    for number in range(101, 201):  # a whole page goes
        shutil.rmtree(darkroom.done / f"r{number:05}")
    settle(made, clock)
    assert walk_back(darkroom) == [f"r{number:05}" for number in (*range(430, 200, -1), *range(100, 0, -1))]
    assert not [path for path in (darkroom.done / ".page").iterdir() if path.name.startswith("0002")]
    for file in (darkroom.done / ".page").glob("*.html"):
        assert not [path for path in Seen(file).links() if not path.exists()]


def test_of_very_many_the_newest_are_on_it_and_it_comes_to_rest(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "KEPT", 300)
    fill(darkroom, 450)
    clock = Clock()
    made = make(darkroom, clock)
    settle(made, clock)
    assert walk_back(darkroom) == [f"r{number:05}" for number in range(450, 150, -1)]
    before = (darkroom.done / "index.html").stat().st_mtime_ns
    settle(made, clock)
    assert (darkroom.done / "index.html").stat().st_mtime_ns == before, "what left the page does not come back"
    made.add(put(darkroom, "r00451", at=2e9))
    settle(made, clock)
    names = walk_back(darkroom)
    assert names[0] == "r00451"
    assert 200 < len(names) <= 300


@pytest.mark.parametrize("damage", ["delete", "tear", "old", "block"])
def test_what_is_lost_of_its_own_files_is_made_again(darkroom: Darkroom, damage: str) -> None:
    fill(darkroom, 150)
    clock = Clock()
    settle(make(darkroom, clock), clock)
    own = darkroom.done / ".page"
    match damage:
        case "delete":
            shutil.rmtree(own)
        case "tear":
            for file in own.glob("*.js"):
                file.write_bytes(file.read_bytes()[:-30])
        case "old":
            for file in own.glob("*.js"):
                file.write_text(file.read_text().replace('"sheet"', '"shoot"'))
        case "block":
            (own / "0002.js").unlink()
    settle(make(darkroom, clock), clock)
    assert sorted(walk_back(darkroom)) == [f"r{number:05}" for number in range(1, 151)]


def test_a_page_of_another_version_is_written_anew(darkroom: Darkroom) -> None:
    fill(darkroom, 250)
    clock = Clock()
    settle(make(darkroom, clock), clock)
    own = darkroom.done / ".page"
    for file in own.glob("*.js"):
        file.write_text(re.sub('"[0-9a-f]{12}"', '"000000000000"', file.read_text()))
    for file in (*own.glob("*.html"), darkroom.done / "index.html"):
        file.write_text("old")
    settle(make(darkroom, clock), clock)
    assert len(walk_back(darkroom)) == 250
    assert "old" not in [file.read_text() for file in own.glob("*.html")]


# ---------------------------------------------------------------- that it costs nothing


def test_a_job_called_index_html_is_no_matter_to_it_nor_it_to_the_job(darkroom: Darkroom) -> None:
    darkroom.drop("index.html.json")
    darkroom.drop(".page.json")
    darkroom.run_once()
    darkroom.drop("index.html.json")
    darkroom.run_once()
    names = {path.name for path in darkroom.done.iterdir() if path.is_dir()}
    assert names <= {"index.html", "index.html~2", "index.html~3", ".page"}
    assert sum(name.startswith("index") for name in names) == 2


def test_a_folder_in_its_place_is_said_once_and_jobs_go_on(darkroom: Darkroom) -> None:
    (darkroom.done / "index.html").mkdir(parents=True)
    (darkroom.done / "index.html" / "mine.txt").write_text("x")
    darkroom.drop("cat.json")
    loop = darkroom.run_once()
    assert loop.work.done == 1
    assert "index.html" in darkroom.log.of("page.trouble")[0]["why"]
    assert (darkroom.done / "index.html" / "mine.txt").exists()


@pytest.mark.parametrize("call", ["mkdir", "create", "write", "rename", "unlink"])
def test_a_disk_that_refuses_the_page_delays_no_job_and_the_page_comes_later(darkroom: Darkroom, call: str) -> None:
    full = True

    def refuse(seen: Call) -> None:
        if full and seen.name == call and (".page" in seen.path.parts or "index.html" in seen.path.name):
            raise OSError(28, "No space left on device")

    put(darkroom, "cat", picture=True)
    clock = Clock()
    made = make(darkroom, clock, Disk(refuse))
    settle(made, clock)
    shutil.rmtree(darkroom.done / "cat")
    settle(made, clock)
    assert len(darkroom.log.of("page.trouble")) == 1
    full = False
    put(darkroom, "dog", picture=True)
    settle(made, clock, 400)
    (card,) = index(darkroom).cards
    assert "dog" in card


def test_a_crash_at_any_call_leaves_a_page_that_is_put_right(darkroom: Darkroom) -> None:
    class Crash(BaseException):
        pass

    at = 0
    while True:
        at += 1
        shutil.rmtree(darkroom.done, ignore_errors=True)
        put(darkroom, "a", picture=True)
        put(darkroom, "b")
        crashed = False

        def crash(call: Call, at: int = at) -> None:
            if call.number == at:
                raise Crash

        clock = Clock()
        made = make(darkroom, clock, Disk(crash))
        try:
            settle(made, clock, 10)
            shutil.rmtree(darkroom.done / "b")
            settle(made, clock, 80)
        except Crash:
            crashed = True
        shutil.rmtree(darkroom.done / "b", ignore_errors=True)
        clock = Clock()
        settle(make(darkroom, clock), clock, 80)
        seen = index(darkroom)
        assert len(seen.cards) == 1, f"crash at call {at}"
        assert not [path for path in seen.links() if not path.exists()], f"crash at call {at}"
        if not crashed:
            break
    assert at > 20


@pytest.mark.parametrize("total", ["1e999", "-1e999", "NaN", "1" + 400 * "0", "true", '"1"'])
def test_a_result_of_whatever_seconds_keeps_no_other_off_the_page(darkroom: Darkroom, total: str) -> None:
    put(darkroom, "cat")
    result = put(darkroom, "odd", picture=True) / "result.json"
    result.write_text(result.read_text().replace("1.2", total))
    clock = Clock()
    settle(make(darkroom, clock), clock)
    assert len(index(darkroom).cards) == 2
    assert "page.trouble" not in darkroom.log.events()


def test_it_is_rewritten_every_few_seconds_at_most(darkroom: Darkroom) -> None:
    written: list[float] = []
    clock = Clock()

    def note(call: Call) -> None:
        if call.name == "rename" and call.target == darkroom.done / "index.html":
            written.append(clock.now)

    made = make(darkroom, clock, Disk(note))
    for number in range(200):
        clock.now += 0.1
        made.add(put(darkroom, f"r{number}"))
        made.work(idle=False)
    assert 5 <= len(written) <= 8
    settle(made, clock)
    assert len(index(darkroom).cards) == 200


def test_while_jobs_run_it_takes_a_twentieth_of_the_time(darkroom: Darkroom) -> None:
    fill(darkroom, 400)
    made = make(darkroom)
    begin, worked = time.monotonic(), 0.0
    while time.monotonic() < begin + 2:
        before = time.process_time()
        made.work(idle=False)
        worked += time.process_time() - before
        time.sleep(0.001)
    assert 0 < worked < 2 / 10


def test_more_news_than_it_remembers_are_found_by_the_scan(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_NEWS", 5)
    clock = Clock()
    made = make(darkroom, clock)
    settle(made, clock, 5)
    for number in range(20):
        made.add(put(darkroom, f"r{number}"))
    settle(made, clock, 10)
    assert len(index(darkroom).cards) == 20


def test_the_end_of_the_daemon_waits_for_it_a_moment_at_most(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "FINISH_S", 0.3)
    fill(darkroom, 500)
    clock = Clock()

    def hundredths() -> float:
        clock.now += 0.01
        return clock.now

    made = make(darkroom, hundredths)
    for folder in sorted(darkroom.done.glob("r*")):
        made.add(folder)
    begin = clock.now
    made.finish()
    assert clock.now - begin < 0.6
    assert made.wait_s() == 0, "there was more to be done"


# ---------------------------------------------------------------- in a browser


def in_browser(darkroom: Darkroom, tmp_path: Path, fragment: str = "") -> str:
    """The page after its scripts ran, as a browser has it."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    url = f"file://{darkroom.done}/index.html{fragment}"
    command += ["--virtual-time-budget=15000", "--dump-dom", url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout


needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@needs_browser
def test_in_a_browser_the_search_finds_what_is_on_older_pages(darkroom: Darkroom, tmp_path: Path) -> None:
    fill(darkroom, 350)
    put(darkroom, "evil", prompt=EVIL.replace("alert", "document.title="), at=5)
    put(darkroom, "bad", base="failed", at=6)
    clock = Clock()
    settle(make(darkroom, clock), clock)
    page = in_browser(darkroom, tmp_path, "#r00007")
    found = page[page.index('<main id="found"') : page.index('id="more"')]
    assert ">1 found<" in page
    assert found.count("<article") == 1
    assert "prompt of r00007" in found
    page = in_browser(darkroom, tmp_path, "#onmouseover%20seed")
    found = page[page.index('<main id="found"') : page.index('id="more"')]
    assert "&lt;script&gt;" in found
    assert "<script" not in found
    assert "<img" not in found
    assert "– darkroom</title>" in page, "nothing of it was run"
    assert ">1 found<" in in_browser(darkroom, tmp_path, "#FAILED")
    page = in_browser(darkroom, tmp_path, "#seed")
    assert ">352 found<" in page
    assert page[page.index('<main id="found"') :].count("<article") == 120
    assert "Nothing found." in in_browser(darkroom, tmp_path, "#zebra")


@needs_browser
def test_in_a_browser_the_cards_of_the_search_are_those_of_the_page(darkroom: Darkroom, tmp_path: Path) -> None:
    put(darkroom, "grüße #1", picture=True)
    put(darkroom, "bad", base="failed")
    clock = Clock()
    settle(make(darkroom, clock), clock)
    page = in_browser(darkroom, tmp_path, "#prompt")
    (tmp_path / "dom.html").write_text(page)

    def cards(part: str) -> list[list[str]]:
        at = page.index(f'<main id="{part}"')
        html = page[at : page.index("</main>", at)]
        return [sorted(re.findall('(?:href|src)="([^"]*)"', card)) for card in html.split("<article")[1:]]

    assert cards("found") == cards("results")
    assert len(cards("found")) == 2


@needs_browser
def test_in_a_browser_an_open_page_learns_of_new_results(darkroom: Darkroom, tmp_path: Path) -> None:
    put(darkroom, "cat")
    clock = Clock()
    settle(make(darkroom, clock), clock)
    assert '<a id="new" href="" hidden="">' in in_browser(darkroom, tmp_path, "#cat")
    (darkroom.done / ".page" / "latest.js").write_text("darkroomLatest(2);\n")
    assert '<a id="new" href="">' in in_browser(darkroom, tmp_path, "#cat"), "it is searched, so it is not renewed"


# ---------------------------------------------------------------- entries


def test_an_entry_survives_its_line() -> None:
    entry = Entry(3, False, "a", "./a/", "t", EVIL, ("seed 1",), "", ("a-1.png",), 0, True, True)
    assert Entry.of(json.loads(entry.line())) == entry
    with pytest.raises(TypeError):
        Entry.of({"facts": [], "pictures": [], "n": 1, "colour": 2})
