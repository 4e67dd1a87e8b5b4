"""Verdicts are told to a command and to a webhook, and nobody waits for it."""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.config import Notify
from darkroom.loop import Loop
from darkroom.spool import Call, Disk
from darkroom.viewers import notify as telling
from darkroom.viewers.notify import MOST_WAITING, Courier, Notice, Teller
from test_loop import Running, until


class Hook:
    """A server on loopback that refuses the first ``refuse`` requests and remembers all. ``go_on`` lets it answer."""

    def __init__(self, refuse: int = 0, go_on: threading.Event | None = None) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.requests.append((dict(self.headers), body))
                if go_on is not None:
                    go_on.wait(60)
                self.send_response(503 if len(hook.requests) <= refuse else 204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def hook(refuse: int = 0, go_on: threading.Event | None = None) -> Iterator[Hook]:
    hook = Hook(refuse, go_on)
    thread = threading.Thread(target=hook.server.serve_forever)
    thread.start()
    try:
        yield hook
    finally:
        hook.server.shutdown()
        thread.join()
        hook.server.server_close()


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tell"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def quick(loop: Loop, *delays: float) -> Loop:
    """The same with other waits between the tries."""
    loop.onlookers.teller = Teller(loop.config.notify, loop.health, loop.logger, delays)
    loop.onlookers.audience.viewers = [loop.onlookers.teller]
    return loop


def test_a_command_gets_each_verdict_as_json_on_its_standard_input(darkroom: Darkroom, tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"
    command = script(tmp_path, f'[ "$1" = "a b; exit 1" ] && cat >> {told} && echo >> {told}')
    darkroom.configure(notify={"command": [str(command), "a b; exit 1"]})
    darkroom.drop("team/cat.json", count=2)
    darkroom.drop("typo.json", {"promt": "x"})
    loop = darkroom.run_once()
    said = {notice["result"]["name"]: notice for notice in map(json.loads, told.read_text().splitlines())}
    assert said["team/cat"]["event"] == "job.done"
    assert said["team/cat"]["path"] == str(darkroom.done / "team" / "cat")
    assert said["team/cat"]["result"] == darkroom.result("team/cat")
    assert said["team/cat"]["error"] is None
    assert said["typo"]["event"] == "job.failed"
    assert said["typo"]["error"] == darkroom.error("typo")
    assert (loop.health.report.told, loop.health.report.untold) == (2, 0)
    assert {line["id"] for line in darkroom.log.of("notify.delivered")} == {
        notice["result"]["id"] for notice in said.values()
    }


def test_the_name_told_is_the_one_it_was_published_under(darkroom: Darkroom, tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"
    darkroom.configure(notify={"command": [str(script(tmp_path, f"cat >> {told}; echo >> {told}"))]})
    for _ in range(2):
        darkroom.drop("cat.json")
        darkroom.run_once()
    assert [json.loads(line)["result"]["name"] for line in told.read_text().splitlines()] == ["cat", "cat~2"]


def ended(pid: int) -> bool:
    """Whether the process is no more, or only waits to be buried."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("timeout_s", "why"),
    [(1.0, "it took longer than 1 s and was killed"), (600.0, "the daemon ended before it was delivered")],
)
def test_a_command_that_hangs_is_killed_with_what_it_started_and_delays_no_job(
    darkroom: Darkroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float, why: str
) -> None:
    monkeypatch.setattr(telling, "CLOSE_S", 1.0)
    pids = tmp_path / "pids"
    command = script(tmp_path, f"sleep 600 & echo $! >> {pids}; sleep 600")
    darkroom.configure(notify={"command": [str(command)], "command_timeout_s": timeout_s})
    loop = darkroom.loop()
    with Running(loop):
        for name in ("a", "b", "c"):
            darkroom.drop(f"{name}.json")
        until(lambda: loop.work.done == 3)
        if timeout_s == 1.0:
            until(lambda: darkroom.log.of("notify.given_up"))
        else:
            until(pids.exists)
    assert darkroom.log.of("notify.given_up")[0]["why"] == why
    assert loop.health.report.untold == 3
    for pid in pids.read_text().split():
        until(lambda pid=pid: ended(int(pid)))


@pytest.mark.parametrize(
    ("text", "why"), [("exit 3", "exit code 3"), (None, "No such file"), ("exec 0<&-; exit 0", None)]
)
def test_a_command_that_fails_is_on_record_and_the_job_is_done(
    darkroom: Darkroom, tmp_path: Path, text: str | None, why: str | None
) -> None:
    command = script(tmp_path, text) if text is not None else tmp_path / "nothing"
    darkroom.configure(notify={"command": [str(command)]})
    darkroom.drop("cat.json")
    loop = darkroom.run_once()
    assert loop.work.done == 1
    if why is None:
        assert darkroom.log.events().count("notify.delivered") == 1
    else:
        assert why in darkroom.log.of("notify.given_up")[0]["why"]
        assert darkroom.log.of("notify.given_up")[0]["tries"] == 1


def test_a_webhook_that_fails_at_first_is_tried_again_and_hears_all(darkroom: Darkroom) -> None:
    with hook(refuse=2) as server:
        darkroom.configure(notify={"webhook": server.address, "secret": "s3cret"})
        loop = quick(darkroom.loop(), 0.05, 0.1, 0.2)
        with Running(loop):
            darkroom.drop("cat.json")
            until(lambda: "notify.delivered" in darkroom.log.events())
    assert len(server.requests) == 3
    assert [line["again_s"] for line in darkroom.log.of("notify.failed")] == [0.05, 0.1]
    assert "answered 503" in darkroom.log.of("notify.failed")[0]["why"]
    assert darkroom.log.of("notify.delivered")[0]["tries"] == 3
    headers, body = server.requests[-1]
    assert json.loads(body)["result"] == darkroom.result("cat")
    assert headers["X-Darkroom-Delivery"] == darkroom.result("cat")["id"]
    signed = headers["X-Darkroom-Timestamp"].encode() + b"." + body
    assert headers["X-Darkroom-Signature"] == "sha256=" + hmac.new(b"s3cret", signed, "sha256").hexdigest()
    assert abs(int(headers["X-Darkroom-Timestamp"]) - time.time()) < 60
    assert "s3cret" not in repr(darkroom.log.lines) + repr(loop.config)


def test_without_a_secret_nothing_is_signed(darkroom: Darkroom) -> None:
    with hook() as server:
        darkroom.configure(notify={"webhook": server.address})
        darkroom.drop("cat.json")
        darkroom.run_once()
        assert "X-Darkroom-Signature" not in server.requests[0][0]


def test_a_webhook_that_nobody_answers_is_given_up_and_the_daemon_ends_in_time(darkroom: Darkroom) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        darkroom.configure(notify={"webhook": f"http://127.0.0.1:{closed.getsockname()[1]}/"})
        darkroom.drop("cat.json")
        loop = quick(darkroom.loop(once=True), 600.0)
        loop.run()
    assert loop.work.done == 1
    assert "notify.given_up" in darkroom.log.events()
    assert loop.health.report.untold == 1


def test_what_cannot_be_delivered_before_the_end_is_said_to_be_lost(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "CLOSE_S", 1.0)
    go_on = threading.Event()
    with hook(go_on=go_on) as server:
        darkroom.configure(notify={"webhook": server.address, "webhook_timeout_s": 600})
        for name in ("a", "b"):
            darkroom.drop(f"{name}.json")
        loop = darkroom.run_once()  # would not end
        go_on.set()
    assert loop.work.done == 2
    assert [line["why"] for line in darkroom.log.of("notify.given_up")] == [
        "the daemon ended before it was delivered",
        "the daemon ended before it was delivered",
    ]


def test_a_slow_webhook_delays_no_job(darkroom: Darkroom) -> None:
    go_on = threading.Event()
    with hook(go_on=go_on) as server:
        darkroom.configure(notify={"webhook": server.address, "webhook_timeout_s": 600})
        loop = darkroom.loop()
        with Running(loop):
            for number in range(5):
                darkroom.drop(f"{number}.json")
            until(lambda: loop.work.done == 5)
            assert len(server.requests) < 5, "it had to wait for none of them"
            go_on.set()
            until(lambda: loop.health.report.told == 5)


def test_one_that_is_refused_holds_up_no_other(darkroom: Darkroom) -> None:
    with hook(refuse=1) as server:
        darkroom.configure(notify={"webhook": server.address})
        loop = quick(darkroom.loop(), 60.0)
        with Running(loop):
            darkroom.drop("a.json")
            until(lambda: "notify.failed" in darkroom.log.events())
            darkroom.drop("b.json")
            until(lambda: len(server.requests) == 2)
        # the first is tried once more at the end, although its time has not come
        assert [body["result"]["name"] for body in server.bodies()] == ["a", "b", "a"]
    assert loop.health.report.told == 2


def test_the_queue_is_bounded_and_what_is_too_much_is_on_record(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json")
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        name = "slow"

        def deliver(self, notice: Notice) -> None:
            begun.set()
            go_on.wait(60)

        def abandon(self) -> None:
            pass

    reports: list[tuple[Any, ...]] = []
    courier = Courier(Slow(), (), lambda *report: reports.append(report))
    notice: Any = object()
    courier.take(notice)
    assert begun.wait(60)
    for _ in range(MOST_WAITING + 5):
        courier.take(notice)
    assert [report[3] for report in reports] == [f"{MOST_WAITING} others wait to be told"] * 5
    go_on.set()
    courier.close(time.monotonic() + 10)
    assert len([report for report in reports if report[3] is None]) == MOST_WAITING + 1


class PowerCut(BaseException):
    pass


def test_a_verdict_that_was_written_before_a_crash_is_told_when_it_is_published(
    darkroom: Darkroom, tmp_path: Path
) -> None:
    told = tmp_path / "told.jsonl"
    darkroom.configure(notify={"command": [str(script(tmp_path, f"cat >> {told}; echo >> {told}"))]})
    darkroom.drop("cat.json")

    def cut(call: Call) -> None:
        if call.name == "rename" and call.target == darkroom.done / "cat":
            raise PowerCut

    with pytest.raises(PowerCut):
        darkroom.run_once(disk=Disk(cut))
    assert not told.exists()
    darkroom.run_once()
    assert json.loads(told.read_text())["result"] == darkroom.result("cat")


@pytest.mark.parametrize(
    "settings", [{"webhook": "ftp://x/"}, {"webhook": "https://"}, {"command": []}, {"command": "rm -rf /"}]
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Notify.model_validate(settings)
