"""The machine's memory: what is free, counted from the files of a machine made up, and bounded on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom.engine.memory.host import Bound, free_bytes, oom_kills, used_bytes

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells, and bounds")

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """16 GiB of which 8 are free; no limits."""
    put(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable: 8388608 kB\n")
    put(tmp_path, "proc/vmstat", "oom_kill_disable 9\noom_kill 7\n")
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


def put(root: Path, file: str, content: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_without_limits_the_machines_memory_counts(machine: Path) -> None:
    assert free_bytes(machine) == 8 << 30


def test_a_control_group_counts_and_so_do_those_around_it(machine: Path) -> None:
    put(machine, "proc/self/cgroup", "0::/outer/inner\n")
    group = "sys/fs/cgroup/outer"
    put(machine, f"{group}/memory.max", str(4 << 30))
    put(machine, f"{group}/memory.current", str(3 << 30))
    put(machine, f"{group}/memory.stat", f"anon 5\ninactive_file {200 * MIB}\nactive_file {56 * MIB}\n")
    put(machine, f"{group}/inner/memory.max", "max\n")
    put(machine, f"{group}/inner/memory.current", "5\n")
    assert free_bytes(machine) == (1 << 30) + 256 * MIB


def test_a_control_group_of_the_first_version_counts_too(machine: Path) -> None:
    put(machine, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/box\n0::/\n")
    group = "sys/fs/cgroup/memory/box"
    put(machine, f"{group}/memory.limit_in_bytes", str(1 << 30))
    put(machine, f"{group}/memory.usage_in_bytes", str(1 << 29))
    put(machine, f"{group}/memory.stat", "total_inactive_file 1000\ntotal_active_file 24\n")
    put(machine, f"{group}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    put(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    put(machine, "sys/fs/cgroup/memory/memory.usage_in_bytes", "5")
    assert free_bytes(machine) == (1 << 29) + 1024
    assert oom_kills(machine) == 2


def test_a_container_that_sees_its_group_as_the_top_is_understood(machine: Path) -> None:
    put(machine, "proc/self/cgroup", "0::/docker/abc\n")
    put(machine, "sys/fs/cgroup/memory.max", str(1 << 30))
    put(machine, "sys/fs/cgroup/memory.current", "0")
    put(machine, "sys/fs/cgroup/memory.events", "low 0\noom 5\noom_kill 4\noom_group_kill 0\n")
    assert free_bytes(machine) == 1 << 30
    assert oom_kills(machine) == 4


def test_another_limit_is_seen_and_so_is_another_group(machine: Path) -> None:
    """Which files there are is found out once, what stands in them each time."""
    for group, most in (("one", 3), ("other", 5)):
        put(machine, f"sys/fs/cgroup/{group}/memory.max", str(most << 30))
        put(machine, f"sys/fs/cgroup/{group}/memory.current", str(1 << 30))
    found = []
    for group, most in (("one", 3), ("one", 4), ("other", 5), ("one", 2)):
        put(machine, "proc/self/cgroup", f"0::/{group}\n")
        put(machine, f"sys/fs/cgroup/{group}/memory.max", str(most << 30))
        found.append((free_bytes(machine) or 0) >> 30)
    assert found == [2, 3, 4, 1]


def test_what_is_over_its_limit_has_nothing_free(machine: Path) -> None:
    put(machine, "sys/fs/cgroup/memory.max", "5")
    put(machine, "sys/fs/cgroup/memory.current", "10")
    assert free_bytes(machine) == 0


def test_without_a_group_the_whole_machines_dead_are_counted(machine: Path) -> None:
    assert oom_kills(machine) == 7


def test_a_machine_that_does_not_tell_is_not_guessed(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None


@linux
def test_this_machine_tells() -> None:
    free, used = free_bytes(), used_bytes()
    assert free is not None
    assert used is not None
    assert 1 << 20 < used < 1 << 36
    assert 1 << 20 < free < 1 << 44


@linux
def test_a_bound_lets_an_allocation_fail_and_is_lifted_again() -> None:
    code = """
import json, torch
from darkroom.engine.memory.host import Bound, RESERVE, free_bytes
bound = Bound()
free = free_bytes()
room = bound.draw()
free_then = free_bytes()
said = []
for size in (room + (64 << 20), 64 << 20):
    try:
        torch.empty(size, dtype=torch.uint8)
        said.append("fine")
    except RuntimeError as error:
        said.append(str(error))
again = bound.draw()
bound.lift()
torch.empty(room + (64 << 20), dtype=torch.uint8)
print(json.dumps([room + RESERVE, free, free_then, again - room, said]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    room, free, free_then, drift, (too_much, enough) = json.loads(ran.stdout)
    others = 512 * MIB + 2 * abs(free - free_then)  # they use the machine too
    assert abs(free - room) < others
    assert abs(drift) < others
    assert "allocate memory" in too_much
    assert enough == "fine"


@linux
def test_a_limit_that_the_process_was_started_with_is_kept(tmp_path: Path) -> None:
    import resource

    code = """
import resource
from darkroom.engine.memory.host import Bound, free_bytes
free = free_bytes()
bound = Bound()
bound.draw()
bound.lift()
print(free, resource.getrlimit(resource.RLIMIT_DATA)[0])
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY))

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=limit)
    free, soft = map(int, ran.stdout.split())
    assert free < 1 << 30
    assert soft == 1 << 30


@linux
def test_a_bound_that_code_filled_or_had_no_room_for_is_told_and_the_next_one_is_wider() -> None:
    code = """
import json, mmap, resource
from darkroom.engine.memory.host import Bound, code_bytes

bound, kept, said = Bound(), [], []
said.append(bound.too_narrow(for_code=True))  # there is none
bound.draw()
said.append(bound.too_narrow(for_code=False))
said.append(resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)
bound.draw()
before = code_bytes()
kept.append(mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
said.append(code_bytes() - before == 8 << 20)
said.append(bound.too_narrow(for_code=False))  # there was room enough besides
bound.draw()
kept.append(mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
data = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data + (8 << 20), resource.getrlimit(resource.RLIMIT_DATA)[1]))
said.append(bound.too_narrow(for_code=False))
bound.draw()
said.append(bound.too_narrow(for_code=False))  # counted by now
wider = 0
for _ in range(20):
    bound.draw()
    wider += bound.too_narrow(for_code=True)
said.append(0 < wider < 20)
bound.draw()
more = bound._more
bound.end()
said.append((more > 0, bound._more == 0))
print(json.dumps(said))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [False, False, True, True, False, True, False, True, [True, True]]


def test_lifting_a_bound_that_was_never_drawn_does_nothing() -> None:
    Bound().lift()
    assert os.getpid()
