"""Where the system refuses: a sentence and an exit code, no traceback, and no waiting for what does not mend itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import Darkroom
from darkroom.cli import app
from darkroom.cli.drop import drop
from darkroom.errors import StorageTrouble, refusal
from darkroom.spool import Disk, Ticket, Verdict
from darkroom.systemd import MORE_S
from darkroom.trouble import Trouble

WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""For root too, modes then mean what they say."""


def bound() -> tuple[str, ...]:
    """What a command begins with that is to be refused what its modes do not allow."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None or subprocess.run([*WITHOUT_PRIVILEGES, "true"], check=False).returncode:
        pytest.skip("root, who may do anything here, and cannot let go of it")
    return WITHOUT_PRIVILEGES


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may look into."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("arguments", ["run", "status --json", "submit a", "check"])
def test_a_spool_that_one_may_not_look_into_is_said_and_not_waited_for(arguments: str, closed: Path) -> None:
    name, *rest = arguments.split()
    command = [*bound(), sys.executable, "-m", "darkroom", name, "--root", str(closed / "spool"), *rest]
    environment = os.environ | {"DARKROOM_EXECUTOR__KIND": "fake"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=closed.parent, env=environment)
    said = done.stdout if arguments == "check" else done.stderr
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{closed}/spool" in said
    assert "Permission denied" in said
    assert "Errno" not in said
    assert "Traceback" not in said


def test_a_config_is_not_made_where_one_may_not_look(closed: Path) -> None:
    command = [*bound(), sys.executable, "-m", "darkroom", "init", str(closed / "house")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"darkroom: {closed}/house/config.toml: Permission denied\n"


def test_a_folder_that_does_not_let_its_jobs_go_is_told_once_and_keeps_nobody_waiting(darkroom: Darkroom) -> None:
    """As another user makes them whose umask is 022."""
    darkroom.drop("cat.json")
    for name in ("anna/dog.json", "whole/job.json"):
        darkroom.drop(name)
        (darkroom.inbox / name).parent.chmod(0o555)
    command = [*bound(), sys.executable, "-m", "darkroom", "run", "--once", "--root", str(darkroom.root)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"DARKROOM_EXECUTOR__KIND": "fake"}
    )
    assert done.returncode == 0, done.stderr
    assert darkroom.names("done") == ["cat"]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    left = {event["name"]: event["why"] for event in events if event["event"] == "inbox.left"}
    assert len(left) == sum(event["event"] == "inbox.left" for event in events) == 2
    assert left.keys() == {"anna/dog.json", "whole/job.json"}
    assert all("chmod g+w" in why for why in left.values())
    assert "watch.missed" not in done.stdout
    health = json.loads((darkroom.root / "health.json").read_bytes())
    assert health["left"] == 2
    assert health["left_why"] in {f"{name}: {why}" for name, why in left.items()}


def test_an_inbox_that_one_may_not_write_into_is_said_without_numbers(darkroom: Darkroom) -> None:
    darkroom.inbox.chmod(0o555)
    command = [*bound(), sys.executable, "-m", "darkroom", "submit", "a", "--root", str(darkroom.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"darkroom: cannot write into {darkroom.inbox}: Permission denied\n"


@pytest.mark.parametrize(("inbox", "file"), [(0o2770, 0o640), (0o755, 0o600), (0o777, 0o644)])
def test_what_is_submitted_may_be_read_by_those_who_may_take_it(darkroom: Darkroom, inbox: int, file: int) -> None:
    darkroom.inbox.chmod(inbox)
    before = os.umask(0o077)
    try:
        dropped = drop(darkroom.spool(), "cat", b"{}")
    finally:
        os.umask(before)
    assert dropped.path.stat().st_mode & 0o777 == file


class Refusing(Disk):
    """Lets nothing into ``done/``, as one whose owner changed does, until ``refuses`` is told otherwise."""

    refuses = True

    def rename(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        if self.refuses and f"{os.sep}done{os.sep}cat" in os.fspath(target):
            raise PermissionError(13, "Permission denied", os.fspath(source), None, os.fspath(target))
        super().rename(source, target)


def test_done_that_cannot_be_written_is_told_by_its_name_and_waited_out(darkroom: Darkroom) -> None:
    disk = Refusing()
    darkroom.drop("cat.json")
    loop = darkroom.loop(disk=disk, once=True, first_pause_s=0.01)
    said: list[str | None] = []
    turn = loop.trouble.paused

    def paused(why: str) -> None:
        said.append(why)
        turn(why)
        disk.refuses = False

    loop.trouble.paused = paused
    loop.run()
    assert said == [f"{darkroom.done / 'cat'}: Permission denied"]
    assert darkroom.names("done") == ["cat"]


def test_a_disk_that_cannot_be_written_when_the_daemon_starts_is_waited_for_however_long(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd would end it after TimeoutStartSec, and after five such starts leave it ended."""

    class ReadOnly(Disk):
        refusals = 3

        def write(self, path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
            if self.refusals and os.fspath(path).endswith("inbox/.darkroom-probe"):
                self.refusals -= 1
                raise StorageTrouble(f"{os.fspath(path)}: Read-only file system (at write)")
            super().write(path, data, sync=sync)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(darkroom.root / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.getsockname())
        disk = ReadOnly()
        darkroom.loop(disk=disk, once=True, first_pause_s=0.01).run()
        assert disk.refusals == 0
        said = []
        with suppress(BlockingIOError):
            while True:
                said.append(systemd.recv(4096).decode())
    begun = next(number for number, message in enumerate(said) if message.startswith("READY=1"))
    assert said[:begun].count(f"EXTEND_TIMEOUT_USEC={MORE_S * 1e6:.0f}") >= 3


def test_the_unit_lets_it_start_for_as_long_as_it_asks_for() -> None:
    unit = (Path(__file__).parent.parent / "systemd" / "darkroom.service").read_text()
    assert f"TimeoutStartSec={MORE_S:.0f}\n" in unit


def test_a_refusal_names_the_place_and_of_a_rename_where_to() -> None:
    assert refusal(PermissionError(13, "Permission denied", "/srv/a")) == "/srv/a: Permission denied"
    assert refusal(OSError(18, "Invalid cross-device link", b"/srv/a", None, b"/srv/b\xfc")) == (
        "/srv/b\udcfc: Invalid cross-device link"
    )
    assert refusal(OSError("no more than this")) == "no more than this"


def test_what_is_waited_for_is_told_without_numbers() -> None:
    said: list[str] = []
    trouble = Trouble(_Silent(), said.append, lambda seconds: None, 1.0)
    trouble.pause(OSError(5, "Input/output error", "/srv/x"))
    trouble.pause(StorageTrouble("/srv/y: No space left on device (at write)"))
    assert said == ["/srv/x: Input/output error", "/srv/y: No space left on device (at write)"]


class _Silent:
    def error(self, event: str, **fields: object) -> None:
        """The log is not looked at here."""


def test_status_says_that_the_disk_is_full_where_the_daemon_cannot_write_so(darkroom: Darkroom) -> None:
    """Its last report is of the time before: nothing can be written any more."""
    loop = darkroom.loop()
    loop.spool.open()
    loop.startup()
    try:
        assert loop.health.report.state == "idle"
        environment = os.environ | {"DARKROOM_LIMITS__MIN_FREE_BYTES": str(1 << 60), "COLUMNS": "200"}

        def status(*options: str) -> str:
            command = [sys.executable, "-m", "darkroom", "status", "--root", str(darkroom.root), *options]
            return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

        assert "less space is free than [limits] min_free_bytes keeps" in status()
        told = json.loads(status("--json"))
        assert told["free_bytes"] < told["min_free_bytes"]
    finally:
        loop.shutdown()


def test_done_that_somebody_removed_is_made_again(darkroom: Darkroom) -> None:
    darkroom.drop("team/cat.json")
    darkroom.run_once()
    shutil.rmtree(darkroom.done)
    darkroom.drop("team/dog.json")
    darkroom.drop("bad.json", "5")
    shutil.rmtree(darkroom.failed)
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (1, 1)
    assert darkroom.result("team/dog")["status"] == "done"


def test_done_that_is_removed_while_the_daemon_works_is_made_again(darkroom: Darkroom) -> None:
    loop = darkroom.loop(once=True, first_pause_s=0.01)
    publish = loop.work.publisher.spool.publish

    def after_somebody(ticket: Ticket, verdict: Verdict) -> Path:
        shutil.rmtree(darkroom.done)
        return publish(ticket, verdict)

    loop.work.publisher.spool.publish = after_somebody  # type: ignore[method-assign]
    darkroom.drop("team/cat.json")
    darkroom.drop("team/dog.json")
    loop.run()
    assert loop.work.done == 2
    assert darkroom.result("team/dog")["status"] == "done"
    assert darkroom.log.of("spool.trouble") == []


def test_an_inbox_that_is_gone_is_told_as_such(darkroom: Darkroom) -> None:
    darkroom.run_once()
    darkroom.inbox.rmdir()
    done = CliRunner().invoke(app, ["status", "--root", str(darkroom.root)])
    assert str(done.exception) == f"the inbox {darkroom.inbox} is gone; make it again, or mount it, to go on"
