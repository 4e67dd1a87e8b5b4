"""Memory that really runs out: under a limit of address space, and by the kernel's hand (faults 51, 61).

Nothing here is made up: the bundled model, large pictures, and a limit that the system enforces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces limits like these")

HERE = str(Path(__file__).parent)
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([HERE, *sys.path]),
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "DARKROOM_ENGINE__DEVICE": "cpu",
    "DARKROOM_ENGINE__DTYPE": "float32",
    "DARKROOM_ENGINE__THREADS": "1",
}

PREPARED = """
import gc, json, resource, sys
from pathlib import Path
from darkroom.models.catalog import BUNDLED
from darkroom.engine.render import Engine
from darkroom.errors import OutOfMemory
from engine_models import make_config, make_job, fallbacks, pictures, render

def memory():
    size, resident, *_ = (int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split())
    return size, resident

def limit(room):
    size, _ = memory()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))

def brief(events):
    made = [event for event in events if hasattr(event, "data") and hasattr(event, "index")]
    return {"rungs": [event.rung for event in fallbacks(events)], "because": [e.because for e in fallbacks(events)],
            "lossless": [event.lossless for event in fallbacks(events)], "sizes": [[e.width, e.height] for e in made],
            "memory": [[event.memory_before, event.memory_after] for event in fallbacks(events)]}

engine = Engine(make_config(Path(sys.argv[1]), {"seedling": BUNDLED}))
small = dict(model="seedling", width=128, height=128, num_inference_steps=1)
render(engine, make_job(**small))
gc.freeze()  # as the engine's process does
"""


def told(script: str, tmp_path: Path, *arguments: str) -> Any:
    """What a script says of itself, in JSON, in its last line."""
    command = [sys.executable, "-c", PREPARED + script, str(tmp_path), *arguments]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_picture_too_large_for_memory_is_planned_in_tiles_and_the_job_after_it_whole(tmp_path: Path) -> None:
    script = """
limit(210 << 20)
first = brief(render(engine, make_job(model="seedling", width=1024, height=512, num_inference_steps=1)))
after = brief(render(engine, make_job(**small)))
print(json.dumps([first, after]))
"""
    first, after = told(script, tmp_path)
    assert first["rungs"][0] == "tiled_vae"
    assert "are needed otherwise and" in first["because"][0]
    assert first["sizes"] == [[1024, 512]]
    assert after["rungs"] == []
    assert after["sizes"] == [[128, 128]]


HOG = """
from darkroom.events import Step
import torch

def hogged(job, room):
    "Another program takes all but ``room`` bytes once the first step is made, and gives it back at the end."
    events = []
    for event in engine.render(job, frozenset(), lambda: False):
        events.append(event)
        if isinstance(event, Step) and event.step == 1 and resource.getrlimit(resource.RLIMIT_AS)[0] < 0:
            limit(room)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return events
"""


def test_memory_that_another_program_takes_in_the_middle_is_a_step_down_and_given_back_the_full_plan_again(
    tmp_path: Path,
) -> None:
    # What a whole decoding needs differs between machines, so room is taken away until it fits no more.
    script = """
job = make_job(model="seedling", width=1024, height=512, num_inference_steps=2, guidance_scale=1.0)
engine._learned.learn = lambda *_: None
for room in range(360, 100, -60):
    first = brief(hogged(job, room << 20))
    if "tiled_vae" in first["rungs"]:
        break
after = brief(render(engine, job))
print(json.dumps([first, after]))
"""
    first, after = told(HOG + script, tmp_path)
    assert first["rungs"] == ["freed_memory", "tiled_vae"]
    assert all("memory" in because for because in first["because"])
    assert first["sizes"] == [[1024, 512]]
    for before, now in first["memory"]:
        assert now <= before
    assert after["rungs"] == []


WIDE = 'fields = dict(model="seedling", width=2048, height=1024, num_inference_steps=1, guidance_scale=1.0)'


def test_with_fail_what_cannot_fit_is_never_made_smaller_and_told_what_would_help(tmp_path: Path) -> None:
    script = """
limit(150 << 20)
try:
    print(json.dumps(brief(render(engine, make_job(on_oom="fail", **fields)))))
except OutOfMemory as error:
    print(json.dumps(error.message))
"""
    failed = told(WIDE + script, tmp_path)
    assert isinstance(failed, str)
    assert "Not even 1 picture of 2048×1024 at a time, 1 step, " in failed
    assert '"on_oom": "degrade" lets the picture be made smaller' in failed


def test_with_degrade_it_is_made_smaller_and_the_job_after_it_whole(tmp_path: Path) -> None:
    script = """
limit(150 << 20)
smaller = brief(render(engine, make_job(on_oom="degrade", **fields)))
after = brief(render(engine, make_job(**small)))
print(json.dumps([smaller, after]))
"""
    smaller, after = told(WIDE + script, tmp_path)
    assert "smaller_picture" in smaller["rungs"]
    assert smaller["lossless"] == sorted(smaller["lossless"], reverse=True)
    ((width, height),) = smaller["sizes"]
    assert width < 2048
    assert width / height == pytest.approx(2, rel=0.05)
    assert after == {"rungs": [], "because": [], "lossless": [], "sizes": [[128, 128]], "memory": []}


def test_after_twenty_times_out_of_memory_it_is_all_there_again(tmp_path: Path) -> None:
    script = """
limit(60 << 20)
job = make_job(model="seedling", width=1024, height=1024, num_inference_steps=1, guidance_scale=1.0, on_oom="fail")
seen, messages = [], set()
for turn in range(21):
    try:
        render(engine, job)
    except OutOfMemory as error:
        messages.add(error.message.partition("(")[2][:30])
    seen.append(memory())
after = brief(render(engine, make_job(**small)))
print(json.dumps([seen, sorted(messages), after["rungs"]]))
"""
    seen, messages, after = told(script, tmp_path)
    assert messages, "it fitted: the limit is not one"
    for first, last in zip(seen[0], seen[-1], strict=True):
        assert last <= first * 1.05
    assert after == []


def test_attention_without_a_kernel_runs_out_and_goes_on_head_by_head(tmp_path: Path) -> None:
    script = """
from darkroom.engine.device import slices_attention
torch.backends.cuda.enable_flash_sdp(False)
assert slices_attention(torch.device("cpu"))
# Attention at 64 × 64 positions: 4,096² scores for each of 4 heads, and their softmax, are 512 MiB in float32
job = make_job(model="seedling", width=1024, height=1024, num_inference_steps=2, guidance_scale=1.0, on_oom="fail")
print(json.dumps(brief(hogged(job, 400 << 20))))
"""
    one = told(HOG + script, tmp_path)
    assert one["rungs"][:2] == ["freed_memory", "sliced_attention"]
    assert one["sizes"] == [[1024, 1024]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_plan_is_thought_to_need_is_within_a_factor_of_two_of_what_it_takes(tmp_path: Path, dtype: str) -> None:
    script = """
import torch
from darkroom.engine.memory.host import give_back
from darkroom.engine.memory.plan import MemoryPlan

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) << 10

engine.close()
engine = Engine(make_config(Path(sys.argv[1]), {"seedling": BUNDLED}, dtype=sys.argv[2]))
render(engine, make_job(**small))
pipeline = engine._models.get("seedling")
pipeline.load()
need, plan = pipeline.need(guided=True, slices_attention=False), MemoryPlan(1, 768, 768, 1, weights="parts")
latents = torch.randn(2, 4, 96, 96, dtype=pipeline.dtype)
texts = torch.randn(2, 77, pipeline.unet_config["cross_attention_dim"], dtype=pipeline.dtype)
found = {}
with torch.inference_mode():
    for phase, weights, work in (
        ("denoise", need.denoiser, lambda: pipeline.unet(latents, torch.tensor(5), encoder_hidden_states=texts)),
        ("decode", need.vae, lambda: pipeline.vae.decode(latents[:1])),
    ):
        work()
        gc.collect()
        give_back()
        open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
        before = status("VmRSS")
        work()
        found[phase] = (need.phases(plan)[phase] - weights) / (status("VmHWM") - before)
print(json.dumps(found))
"""
    for phase, ratio in told(script, tmp_path, dtype).items():
        assert 0.5 <= ratio <= 2, f"{phase}: {ratio:.2f} of what was measured"


# ---------------------------------------------------------------- by the kernel's hand

GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group of our own."""
    own = next(
        (line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None
    )
    folder = GROUPS / (own or "").strip("/") / f"darkroom-test-{os.getpid()}"
    if own is None or not folder.parent.is_dir():
        folder = GROUPS / folder.name
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("needs the right to make a memory control group")
    yield folder
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def test_an_engine_that_the_kernel_kills_is_started_again_a_rung_lower_and_the_job_is_done(
    darkroom: Darkroom, group: Path, tmp_path: Path
) -> None:
    """The limit comes down in the middle of the job, as when another program takes the memory."""
    side = 768
    # The decoding of a whole picture ends in a convolution from 32 channels to 32, in float32, and needs both at once.
    room = 2 * 32 * side * side * 4 - (4 << 20)
    sizes = {"width": side, "height": side}
    darkroom.drop("large.json", {"prompt": "a red circle", "steps": 4, **sizes, "guidance_scale": 1.0, "seed": 1})
    darkroom.drop("small.json", {"prompt": "a red circle", "steps": 2, "width": 128, "height": 128, "seed": 1})

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    def tighten() -> None:
        while not list(darkroom.working.glob("*/progress.json")):
            time.sleep(0.05)
        usage = int((group / "memory.usage_in_bytes").read_text())
        (group / "memory.limit_in_bytes").write_text(str(usage + room))

    watcher = threading.Thread(target=tighten, daemon=True)
    watcher.start()
    environment = ENVIRONMENT | {"DARKROOM_ENGINE__CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "darkroom", "run", "--once", "--root", str(darkroom.root)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, preexec_fn=enter)
    watcher.join(1)
    assert "oom_kill 0" not in (group / "memory.oom_control").read_text().splitlines(), ran.stdout
    large, small = darkroom.result("large"), darkroom.result("small")
    assert large["status"] == small["status"] == "done"
    assert large["attempts"] in (2, 3)
    first = large["fallbacks"][0]
    assert first["because"].startswith("the kernel killed the engine's process while it made 1 picture of 768×768")
    assert first["lossless"] is True
    assert small["fallbacks"] == []


HUNGRY = """
import sys
from pathlib import Path
from conftest import Darkroom
from darkroom.executors import LocalExecutor

darkroom = Darkroom(Path(sys.argv[1]))
darkroom.drop("a.json", prompt="much")
darkroom.drop("b.json", prompt="little")
darkroom.run_once(LocalExecutor(darkroom.config, "engines:Hungry"))
"""


def test_a_job_that_the_kernel_kills_each_time_is_out_of_memory_and_the_next_one_runs(
    tmp_path: Path, group: Path
) -> None:
    (group / "memory.limit_in_bytes").write_text(str(256 << 20))

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-c", HUNGRY, str(tmp_path / "hungry")]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, preexec_fn=enter)
    assert ran.returncode == 0, ran.stderr
    error = json.loads((tmp_path / "hungry/failed/a/error.json").read_bytes())
    assert (error["reason"], error["attempts"]) == ("out-of-memory", 3)
    assert "SIGKILL" in error["message"]
    assert (tmp_path / "hungry/done/b/result.json").is_file()
