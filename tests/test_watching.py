"""Looking on and tidying up, as an operator does it: status --watch, logs, clean, init, completion, colours."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import Darkroom
from darkroom.cli import app, bench
from darkroom.cli.init import shipped_config
from darkroom.cli.units import clock, duration, read_duration, read_size, size
from darkroom.errors import UsageError
from darkroom.health import Health, Recent
from darkroom.spool import Disk, Ticket
from test_cli import call, command, daemon, slow_daemon_script
from test_loop import until


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_EXECUTOR__KIND", "fake")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOURS = re.compile(r"\x1b\[(?:\d+;)*[349]\d(?:;\d+)*m")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite run in the background ignores it
            os.execve(sys.executable, arguments, os.environ | {"TERM": "xterm-256color"} | environment)
        self.raw = ""

    def read(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self.descriptor], [], [], left)
            try:
                data = os.read(self.descriptor, 65536) if ready else b"?"
            except OSError:
                return
            self.raw += data.decode("utf-8", "replace") if ready else ""
            if not data:
                return

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        end = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < end, self.text
            self.read(0.1)
        return self.text

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw)

    def press(self, key: bytes) -> int:
        os.write(self.descriptor, key)
        return self.end()

    def end(self) -> int:
        self.read(20)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)


# status --watch


def test_the_table_keeps_up_with_a_job_and_ends_with_ctrl_c_leaving_the_cursor(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", num_inference_steps=150, count=4)
    darkroom.drop("typo.json", {"promt": "x"})
    arguments = [sys.executable, "-c", slow_daemon_script(0.02), "run", "--root", str(darkroom.root)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    terminal = Terminal(command(darkroom, "status", "--watch"))
    try:
        text = terminal.wait_for("✗ typo  invalid-request")
        text = terminal.wait_for("picture 2 of 4")
        assert re.search(r"working +cat  picture \d of 4, step \d+ of 150", text)
        assert len(set(re.findall(r"step (\d+) of 150", text))) >= 2
        assert re.search(r"free space +[\d.]+ GiB of", text)
        assert re.search(r"memory +daemon [\d.]+ MiB \(at most", text)
        (darkroom.root / "PAUSE").write_text("lunch")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        terminal.wait_for("not running")
        terminal.wait_for("paused: `darkroom resume` goes on")
        assert terminal.press(b"\x03") == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in terminal.text
    assert terminal.raw.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_daemon_that_finds_another_one_does_not_say_that_it_watches(darkroom: Darkroom) -> None:
    spool = darkroom.spool()
    spool.open()
    terminal = Terminal(command(darkroom, "run"))
    assert terminal.end() == 3
    spool.close()
    assert "another darkroom" in terminal.text
    assert "watches" not in terminal.text
    terminal = Terminal(command(darkroom, "run", "--once"))
    assert terminal.end() == 0
    assert terminal.text.strip().startswith("darkroom watches ")


def test_piped_it_is_a_line_for_each_change(darkroom: Darkroom) -> None:
    process = subprocess.Popen(command(darkroom, "status", "--watch"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "not running, 0 waiting, 0 done, 0 failed\n"
    darkroom.drop("cat.json")
    assert process.stdout.readline() == "not running, 1 waiting, 0 done, 0 failed\n"
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_reader_that_has_enough_ends_it_without_a_word(darkroom: Darkroom) -> None:
    arguments = " ".join(command(darkroom, "status", "--watch", "--json"))
    # a change each second, so that the closed pipe is met
    script = f"({arguments}; echo $? >&2) | head -n 1 & sleep 2; touch {darkroom.inbox}/a.json; wait"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert json.loads(ended.stdout)["waiting"] == 0
    assert ended.stderr == "141\n", "the exit code alone, of what SIGPIPE ended"


def test_what_went_wrong_and_was_overcome_is_shown(darkroom: Darkroom) -> None:
    spool = darkroom.spool()
    spool.open()
    health = Health(darkroom.root, Disk())
    health.turn("paused", "the disk is full [really]", trouble=True)
    health.update(engine_restarts=2, untold=1, config_error="[limits] max_widht: no such key")
    health.write(now=True)
    shown = call(darkroom, "status").stdout
    spool.close()
    assert "the disk is full [really]" in shown
    assert "[limits] max_widht: no such key" in shown
    assert "2 engine restarts, 1 verdict that nobody could be told" in shown


def test_progress_with_a_speed_is_shown_with_the_time_left(darkroom: Darkroom) -> None:
    folder = darkroom.working / "20260101T000000Z-cat-00000000"
    folder.mkdir(parents=True)
    progress: dict[str, Any] = {"name": "cat", "step": 12, "steps": 30, "picture": 2, "pictures": 4}
    (folder / "progress.json").write_text(json.dumps(progress | {"steps_per_s": 3.14, "seconds_left": 80.4}))
    shown = call(darkroom, "status").stdout
    assert "cat  picture 2 of 4, step 12 of 30, 3.1 steps/s, 1:20 left" in shown
    (folder / "progress.json").write_text(json.dumps(progress | {"steps_per_s": None, "seconds_left": None}))
    assert "step 12 of 30\n" in re.sub(" +\n", "\n", call(darkroom, "status").stdout)


def test_what_waits_is_shown_with_how_long_it_may_take(darkroom: Darkroom) -> None:
    spool = darkroom.spool()
    spool.open()
    for name in ("dog.json", "newt.json"):
        darkroom.drop(name)
    health = Health(darkroom.root, Disk())
    recent = [Recent(name=name, status="done", finished_at="", seconds=60.0, pictures=1) for name in "abc"]
    health.update(state="working", recent=recent)
    health.write()
    shown = call(darkroom, "status").stdout
    spool.close()
    assert re.search(r"waiting +2, about 2 min if they are as the last ones\n", shown)


def test_a_daemon_that_was_killed_is_told_from_one_that_was_stopped(darkroom: Darkroom) -> None:
    with daemon(darkroom) as process:
        until((darkroom.root / "health.json").exists)
        process.kill()
        process.wait()
        assert "ended without a word; its last sign of life was" in call(darkroom, "status").stdout
    call(darkroom, "run", "--once")
    assert "without a word" not in call(darkroom, "status").stdout


def test_a_daemon_on_another_machine_is_known_by_its_heartbeat(darkroom: Darkroom) -> None:
    health = Health(darkroom.root, Disk())
    health.report.host = "studio"
    health.turn("idle")
    health.write(now=True)
    assert json.loads(call(darkroom, "status", "--json").stdout)["running"] is True
    report = json.loads((darkroom.root / "health.json").read_text())
    report["updated_at"] = "2026-01-01T00:00:00.000Z"
    (darkroom.root / "health.json").write_text(json.dumps(report))
    assert json.loads(call(darkroom, "status", "--json").stdout)["running"] is False


def test_it_is_quick_among_many_results(darkroom: Darkroom) -> None:
    """Fault 54. The bound is loose, for machines that do other things; 100,000 take half a second on a quiet one."""
    for number in range(20):
        group = darkroom.done / f"group{number:02}"
        group.mkdir(parents=True)
        for each in range(1000):
            (group / str(each)).mkdir()
            (group / str(each) / "result.json").touch()
    begin = os.times()
    status = json.loads(call(darkroom, "status", "--json").stdout)
    end = os.times()
    took = end.children_user + end.children_system - begin.children_user - begin.children_system
    print(f"{took:.2f} s of processor time")
    assert status["done"] == 20_000
    assert took < 5  # 0.5 s on a quiet machine


def imported_by(darkroom: Darkroom, *arguments: str) -> set[str]:
    """The modules that a whole command needs."""
    script = "import sys\nfrom darkroom.cli import main\ntry: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--root", str(darkroom.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "numpy", "PIL", "rich", "pygments", "structlog", "httpx2", "prometheus_client", "watchdog", "asyncio"}


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "--json"], ["pause"], ["resume"], ["cancel", "cat"], ["retry", "cat"]],
    ids=" ".join,
)
def test_a_command_that_only_looks_at_folders_brings_nothing_of_jobs(darkroom: Darkroom, arguments: list[str]) -> None:
    """What a command imports is most of the time that one waits for it."""
    found = imported_by(darkroom, *arguments)
    ours = {name for name in found if name.startswith("darkroom.")}
    print(len(found), "modules,", len(ours), "of them ours")
    assert not found & HEAVY
    assert not {name for name in ours if name.startswith(("darkroom.job", "darkroom.models.catalog", "darkroom.check"))}
    assert len(ours) <= 28


@pytest.mark.parametrize("command_", ["submit", "check"])
def test_a_command_that_reads_jobs_brings_nothing_of_pictures(darkroom: Darkroom, command_: str) -> None:
    (darkroom.root / "cat.json").write_text('{"prompt": "a cat"}')
    found = imported_by(darkroom, command_, str(darkroom.root / "cat.json"))
    assert not found & (HEAVY | {"dynamicprompts", "jinja2", "piexif"})
    assert len({name for name in found if name.startswith("darkroom.")}) <= 56


def test_typer_is_given_annotations_that_need_not_be_compiled() -> None:
    """Else it compiles those of every command, whichever is asked for."""
    commands = [*app.registered_commands, *bench.app.registered_commands]
    written = {
        f"{command.callback.__name__}({name})"
        for command in commands
        if command.callback is not None
        for name, annotation in command.callback.__annotations__.items()
        if isinstance(annotation, str)
    }
    assert len(commands) > 15
    assert not written


# logs


def events(output: str) -> list[str]:
    return [json.loads(line)["event"] for line in output.splitlines()]


def test_the_log_of_a_job_is_shown_wherever_it_is(darkroom: Darkroom) -> None:
    darkroom.drop("team/cat.json")
    darkroom.drop("typo.json", {"promt": "x"})
    call(darkroom, "run", "--once", code=1)
    text = (darkroom.done / "team" / "cat" / "log.jsonl").read_text()
    assert call(darkroom, "logs", "team/cat").stdout == text
    assert events(text) == ["job.claimed", "model.loaded", "picture.saved", "job.done"]
    assert events(call(darkroom, "logs", "typo").stdout) == ["job.failed"]
    assert call(darkroom, "logs", darkroom.result("team/cat")["id"], "-f").stdout == text
    assert call(darkroom, "logs").stdout == text, "the last that ended"
    assert "no such job: dog" in call(darkroom, "logs", "dog", code=2).stderr
    darkroom.drop("dog.json")
    assert "dog waits in the inbox" in call(darkroom, "logs", "dog", code=2).stderr


def test_following_waits_for_a_job_s_turn_and_ends_with_its_verdict(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", count=3, num_inference_steps=40)
    follower = subprocess.Popen(command(darkroom, "logs", "cat", "-f"), stdout=subprocess.PIPE, text=True)
    time.sleep(0.7)
    assert follower.poll() is None
    arguments = [sys.executable, "-c", slow_daemon_script(0.01), "run", "--once", "--root", str(darkroom.root)]
    subprocess.run(arguments, capture_output=True, timeout=60, check=True)
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert output == (darkroom.done / "cat" / "log.jsonl").read_text()
    assert events(output)[-1] == "job.done"


def test_on_a_terminal_it_is_for_people_and_without_colours_if_they_want_none(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", {"prompt": "a [bold]cat[/bold]", "steps": 1, "width": 64, "height": 64})
    call(darkroom, "run", "--once")
    terminal = Terminal(command(darkroom, "logs"))
    assert terminal.end() == 0
    assert re.search(r"\d\d:\d\d:\d\d  job\.claimed +name=cat .*prompt=a \[bold\]cat\[/bold\]", terminal.text)
    assert COLOURS.search(terminal.raw)
    for arguments in (["logs"], ["status"], ["--help"]):
        terminal = Terminal(
            command(darkroom, *arguments) if arguments != ["--help"] else [sys.executable, "-m", "darkroom", "--help"],
            NO_COLOR="1",
        )
        assert terminal.end() == 0
        assert not COLOURS.search(terminal.raw), arguments
    assert events(call(darkroom, "logs").stdout)[0] == "job.claimed"


# clean


def kept(folder: Path) -> list[str]:
    """The results in it."""
    return sorted(path.parent.name for path in folder.glob("*/result.json"))


def test_clean_by_hand_says_what_it_would_do_and_does_it(darkroom: Darkroom) -> None:
    for name in ("a", "b", "c"):
        darkroom.drop(f"{name}.json")
        call(darkroom, "run", "--once")
    darkroom.drop("typo.json", {"promt": "x"})
    call(darkroom, "run", "--once", code=1)
    (darkroom.done / "b" / "notes.txt").write_text("mine")
    said = call(darkroom, "clean", "--keep", "1", "--dry-run")
    assert re.search(r"^would remove done/a  [\d.]+ s old, [\d.]+ KiB$", said.stdout, re.MULTILINE)
    assert "1 result, " in said.stdout
    assert "left alone: done/b: it holds a file that darkroom did not make: notes.txt" in said.stderr
    assert kept(darkroom.done) == ["a", "b", "c"]
    call(darkroom, "clean", "--keep", "1")
    assert kept(darkroom.done) == ["b", "c"]
    outcomes = json.loads(call(darkroom, "clean", "--older-than", "0s", "--only", "failed", "--json").stdout)
    assert [outcome["name"] for outcome in outcomes] == ["failed/typo"]
    assert kept(darkroom.failed) == []
    call(darkroom, "clean", "--max-size", "1T")
    assert kept(darkroom.done) == ["b", "c"]


def test_clean_while_a_daemon_runs_and_by_the_rules_of_the_config(darkroom: Darkroom, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[retention]\ndone_count = 1\n")
    with daemon(darkroom):
        for name in ("a", "b"):
            darkroom.drop(f"{name}.json")
            until((darkroom.done / name / "result.json").exists)
        assert "nothing says what to remove" in call(darkroom, "clean", code=2).stderr
        call(darkroom, "clean", "--config", str(config))
        assert kept(darkroom.done) == ["b"]
        darkroom.drop("c.json")
        until((darkroom.done / "c" / "result.json").exists)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--older-than", "30", "write it as 30d, 12h or 2w"),
        ("--max-size", "much", "write it as 500M, 20G or 1T"),
        ("--only", "working", "there are done and failed"),
    ],
)
def test_what_cannot_be_read_is_said_with_how_to_write_it(
    darkroom: Darkroom, option: str, value: str, said: str
) -> None:
    done = call(darkroom, "clean", "--keep", "0", option, value, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sizes_and_times_are_read_and_written_as_people_do() -> None:
    assert [read_size(text) for text in ("1000", "2K", "1.5G", "20 GiB")] == [1000, 2048, 3 << 29, 20 << 30]
    assert [read_duration(text) for text in ("90s", "2m", "12h", "30d", "2w")] == [90, 120, 43200, 2592000, 1209600]
    assert [size(amount) for amount in (5, 1500, 200 << 20, 3 << 40)] == ["5 bytes", "1.5 KiB", "200 MiB", "3.0 TiB"]
    assert [duration(s) for s in (0.5, 42, 300, 7200, 10 * 86400)] == ["0.5 s", "42 s", "5 min", "2 h", "10 days"]
    assert [clock(s) for s in (5, 65, 7209)] == ["0:05", "1:05", "2:00:09"]
    for wrong in ("", "-1", "1e9", "1 fortnight"):
        with pytest.raises(UsageError):
            read_size(wrong or "x")


# init, completion


def darkroom_command(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_init_makes_a_config_and_a_spool_that_work_as_they_stand(tmp_path: Path) -> None:
    place = tmp_path / "here" / "pictures"
    said = darkroom_command("init", str(place), cwd=tmp_path).stdout
    assert str(place / "config.toml") in said
    assert (place / "config.toml").read_bytes() == shipped_config()
    tomllib.loads((place / "config.toml").read_text())
    assert sorted(path.name for path in (place / "spool").iterdir()) == ["done", "failed", "inbox", "working"]
    config = ("--config", str(place / "config.toml"))
    darkroom_command("submit", "a red circle", "--set", "steps=1", *config, cwd=tmp_path)
    darkroom_command("run", "--once", *config, cwd=tmp_path)
    assert (place / "spool" / "done" / "a-red-circle" / "result.json").exists()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[folders]\nroot = 'mine'\n")
    done = darkroom_command("init", ".", cwd=tmp_path, code=2)
    assert "is there already, and nothing is overwritten" in done.stderr
    assert (tmp_path / "config.toml").read_text() == "[folders]\nroot = 'mine'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def complete(darkroom: Darkroom, words: str) -> list[str]:
    """What the shell's function asks of the installed command."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['darkroom']; from darkroom.cli import main; main()"],
        capture_output=True,
        text=True,
        cwd=darkroom.root,
        env=os.environ
        | {"_DARKROOM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_tab_key_knows_commands_options_and_jobs(darkroom: Darkroom) -> None:
    darkroom.drop("house.json")
    darkroom.drop("team/horse.json")
    root = f"--root {darkroom.root}"
    assert complete(darkroom, "darkroom st") == ["status"]
    assert complete(darkroom, "darkroom status --wa") == ["--watch"]
    assert complete(darkroom, f"darkroom cancel {root} ho") == ["house"]
    darkroom.run_once()
    assert complete(darkroom, f"darkroom logs {root} ") == ["house", "team/horse"]
    darkroom.drop("typo.json", {"promt": "x"})
    darkroom.run_once()
    assert complete(darkroom, f"darkroom retry {root} t") == ["typo"]
    assert complete(darkroom, "darkroom retry --root /nowhere ") == []


def test_every_command_shows_examples_in_its_help(tmp_path: Path) -> None:
    said = darkroom_command("--help", cwd=tmp_path, COLUMNS="200").stdout
    commands = re.findall(r"^│ (\w+) ", said, re.MULTILINE)
    assert {"run", "status", "logs", "clean", "init", "retry"} <= set(commands)
    helps = {name: CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output for name in commands}
    for name, text in helps.items():
        assert f"darkroom {name}" in text, name
    assert "[folders]" in helps["run"]


def test_a_job_s_log_is_bounded_and_has_its_last_words(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json")
    spool = darkroom.spool()
    spool.open()
    (arrival,) = spool.pending()
    ticket = spool.claim(arrival)  # type: ignore[arg-type]
    assert ticket is not None
    for _ in range(30_000):
        ticket.log("job.warning", {"message": "x" * 5000})
    ticket.log("job.done", {}, last=True)
    ticket.write_log()
    log = ticket.folder / "log.jsonl"
    said = events(log.read_text())
    assert log.stat().st_size < (1 << 20) + 4096
    assert said[-2:] == ["log.full", "job.done"]
    assert said.count("log.full") == 1
    again = Ticket.load(ticket.folder, Disk())
    assert again is not None
    again.log("job.warning", {"message": "y"})
    again.write_log()
    assert events(log.read_text())[-1] == "job.done", "what was written before a crash counts"
    spool.close()
