from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.config import EngineSettings
from darkroom.errors import ConfigError, SpoolInUse
from darkroom.page.page import FINISH_S
from darkroom.systemd import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(2)
        yield listener


def notifier(systemd: socket.socket, **environ: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": systemd.getsockname(), **environ})


def heard(systemd: socket.socket) -> list[str]:
    return systemd.recv(4096).decode().split("\n")


def silent(systemd: socket.socket) -> bool:
    systemd.setblocking(False)
    try:
        systemd.recv(4096)
    except BlockingIOError:
        return True
    return False


def test_ready_is_said_with_a_status_beside_it(systemd: socket.socket) -> None:
    notifier(systemd).ready("waiting for jobs")
    assert heard(systemd) == ["READY=1", "STATUS=waiting for jobs"]


def test_the_same_status_is_sent_once(systemd: socket.socket) -> None:
    voice = notifier(systemd)
    voice.status("rendering cat")
    voice.status("rendering cat")
    assert heard(systemd) == ["STATUS=rendering cat"]
    assert silent(systemd)


def test_a_status_cannot_smuggle_in_another_message(systemd: socket.socket) -> None:
    notifier(systemd).status("a cat\nSTOPPING=1")
    assert heard(systemd) == ["STATUS=a cat STOPPING=1"]


def test_a_reload_carries_the_monotonic_clock(systemd: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier(systemd).reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    state, clock = heard(systemd)
    assert state == "RELOADING=1"
    assert before <= int(clock.removeprefix("MONOTONIC_USEC=")) <= after


def test_stopping_is_said(systemd: socket.socket) -> None:
    notifier(systemd).stopping("finishing a step")
    assert heard(systemd) == ["STOPPING=1", "STATUS=finishing a step"]


def test_the_watchdog_is_pinged_at_most_four_times_per_interval(systemd: socket.socket) -> None:
    for interval, pings in (("4000000000", 1), ("4", 2)):  # an hour, and less than a ping takes
        voice = notifier(systemd, WATCHDOG_USEC=interval, WATCHDOG_PID=str(os.getpid()))
        assert voice.watchdog_s == int(interval) / 1e6
        voice.watchdog()
        voice.watchdog()
        assert [heard(systemd) for _ in range(pings)] == [["WATCHDOG=1"]] * pings
        assert silent(systemd)
        systemd.settimeout(2)


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}]
)
def test_without_a_watchdog_for_this_process_nothing_is_pinged(systemd: socket.socket, environ: dict[str, str]) -> None:
    voice = notifier(systemd, **environ)
    voice.watchdog()
    assert voice.watchdog_s is None
    assert silent(systemd)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket_is_understood() -> None:
    name = f"darkroom-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(2)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert heard(listener) == ["READY=1"]


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "relative/path", "/nowhere/notify", "/" + "n" * 300])
def test_without_a_usable_socket_nothing_happens(name: str) -> None:
    voice = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    voice.ready()
    voice.status("idle")
    voice.watchdog()
    voice.reloading()
    voice.stopping()


def test_a_full_socket_is_not_waited_for(systemd: socket.socket) -> None:
    voice = notifier(systemd)
    for number in range(2000):
        voice.status(str(number))  # would not return


UNITS = Path(__file__).parents[1] / "systemd"
UNIT, TEMPLATE = UNITS / "darkroom.service", UNITS / "darkroom@.service"
BOTH = pytest.mark.parametrize("unit", [UNIT, TEMPLATE], ids=lambda unit: unit.name)


def settings(unit: Path = UNIT) -> dict[str, str]:
    lines = [line for line in unit.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_unit_waits_longer_for_a_stop_than_the_daemon_does() -> None:
    assert float(settings()["TimeoutStopSec"]) > EngineSettings().stop_s + FINISH_S
    assert settings()["KillMode"] == "mixed"


def test_the_unit_does_not_restart_on_the_exit_codes_that_a_restart_cannot_cure() -> None:
    codes = {int(code) for code in settings()["RestartPreventExitStatus"].split()}
    assert codes == {ConfigError.exit_code, SpoolInUse.exit_code}


def test_a_reload_is_the_signal_that_the_daemon_obeys() -> None:
    assert settings()["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert settings()["Type"] == "notify"
    assert settings()["User"] == "darkroom"


def test_an_instance_is_the_unit_in_folders_of_its_own() -> None:
    one, several = settings(UNIT), settings(TEMPLATE)
    differing = {key for key in one | several if one.get(key) != several.get(key)}
    assert differing == {
        *("Description", "RequiresMountsFor", "ExecStart", "StateDirectory"),
        *("CacheDirectory", "WorkingDirectory"),
    }
    assert several["ExecStart"] == one["ExecStart"].replace("config.toml", "%i.toml")
    assert several["StateDirectory"] == "darkroom/%i"
    lines = [UNIT.read_text().splitlines(), TEMPLATE.read_text().replace("/%i", "").replace(" %i", "").splitlines()]
    after = [text[text.index("Restart=on-failure") :] for text in lines]
    assert after[0] == after[1]


@BOTH
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_the_unit_safe_and_well_formed(unit: Path, tmp_path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    quiet = os.environ | {"SYSTEMD_PAGER": ""}
    scored = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    assert scored.returncode == 0, scored.stdout[-300:] + scored.stderr
    instance = tmp_path / unit.name.replace("@.", "@desk.")
    instance.write_text(unit.read_text())
    checked = subprocess.run(["systemd-analyze", "verify", str(instance)], capture_output=True, text=True, check=False)
    complaints = [line for line in checked.stderr.splitlines() if "darkroom" in line and "not executable" not in line]
    assert not complaints
