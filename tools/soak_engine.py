"""Soak of the whole daemon with the bundled model: is memory flat, of the daemon and of its engine?

    python tools/soak_engine.py --jobs 1000

A real ``darkroom run`` with everything on that can be: metrics read all the while, a webhook and a command told of each
verdict, retention. Jobs are of several sizes, lengths of prompt and counts of pictures; one in fifty is broken. The
engine is not recycled. Memory is read every few jobs, and is flat if its median over the last fifth of the run is at
most 5 % above that of the second fifth: the first is warming up. Exit code 1 where it is not, or where a verdict is
missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from darkroom.processes import resident_bytes

GROWTH = 1.05
EVERY = 10
KEPT = 100
WORDS = (
    "a red circle",
    "a green square",
    "and",
    "beside",
    "a house",
    "a yellow star",
    "on a blue background",
    "at sunset",
)


class Hook(BaseHTTPRequestHandler):
    """Counts what it is told; refuses now and then."""

    told = 0
    chance = random.Random(1)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.chance.random() < 0.02
        Hook.told += not refused
        self.send_response(503 if refused else 204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def job(number: int, chance: random.Random) -> dict[str, object]:
    side = chance.choice((64, 64, 64, 80))
    prompt = " ".join(chance.choices(WORDS, k=chance.choice((1, 2, 4, 40))))
    fields: dict[str, object] = {"prompt": prompt, "steps": chance.randint(1, 3), "width": side, "height": 64}
    fields["count"] = chance.choice((1, 1, 1, 1, 2))
    fields["sampler"] = chance.choice(("Euler", "Euler a", "DPM++ 2M", "DDIM"))
    return fields | ({"promt": "x"} if number % 50 == 49 else {})


def soak(root: Path, jobs: int) -> dict[str, Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = root / "config.toml"
    config.write_text(
        f'[folders]\nroot = "spool"\n[engine]\ndevice = "cpu"\nthreads = 1\nrecycle_after_jobs = 0\n'
        f'[metrics]\nlisten = "127.0.0.1:0"\ntextfile = "darkroom.prom"\n'
        f"[retention]\ndone_count = {KEPT}\nfailed_count = {KEPT}\n"
        f'[notify]\ncommand = ["cat"]\nwebhook = "http://127.0.0.1:{server.server_address[1]}/"\nsecret = "x"\n'
    )
    with (root / "log.jsonl").open("w") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "darkroom", "run", "--config", str(config)], stdout=log, stderr=log
        )
    try:
        return watch(root, daemon, jobs)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
        server.shutdown()


def watch(root: Path, daemon: subprocess.Popen[bytes], jobs: int) -> dict[str, Any]:
    chance = random.Random(0)
    inbox, health_file = root / "spool" / "inbox", root / "spool" / "health.json"
    while not health_file.exists():
        time.sleep(0.1)
    dropped = done = 0
    readings: list[tuple[int, int, int]] = []
    port = next(line["port"] for line in _log(root) if line["event"] == "metrics.listening")
    begin = time.monotonic()
    while done < jobs:
        assert daemon.poll() is None, "the daemon ended"
        while dropped < jobs and dropped - done < 20:
            hidden = inbox / ".job.tmp"
            hidden.write_text(json.dumps(job(dropped, chance)))
            hidden.rename(inbox / f"job-{dropped:05}.json")
            dropped += 1
        health = json.loads(health_file.read_bytes())
        done = health["done"] + health["failed"]
        if done >= EVERY * (len(readings) + 1) and health["engine_pid"] is not None:
            engine, ours = resident_bytes(health["engine_pid"]), resident_bytes(daemon.pid)
            readings.append((health["engine_pid"], engine or 0, ours or 0))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                answer.read()
            print(f"{done} jobs, engine {(engine or 0) >> 20} MiB, daemon {(ours or 0) >> 20} MiB", file=sys.stderr)
        time.sleep(0.05)
    return figures(root, readings, jobs, time.monotonic() - begin)


def figures(root: Path, readings: list[tuple[int, int, int]], jobs: int, seconds: float) -> dict[str, Any]:
    health = json.loads((root / "spool" / "health.json").read_bytes())
    fifth = len(readings) // 5
    memory: dict[str, Any] = {}
    faults = []
    for name, column in (("engine", 1), ("daemon", 2)):
        early = statistics.median(reading[column] for reading in readings[fifth : 2 * fifth])
        late = statistics.median(reading[column] for reading in readings[-fifth:])
        memory[f"{name}_mib"] = [round(early / 2**20, 1), round(late / 2**20, 1)]
        memory[f"{name}_growth"] = f"{100 * (late / early - 1):+.1f} %"
        if late > GROWTH * early:
            faults.append(f"the {name} grew from {early:.0f} to {late:.0f} bytes")
    if len({reading[0] for reading in readings}) != 1:
        faults.append("the engine was replaced")
    if health["failed"] != jobs // 50:
        faults.append(f"{health['failed']} jobs failed, not {jobs // 50}")
    return {
        "jobs": health["done"] + health["failed"],
        "pictures": health["pictures"],
        "seconds": round(seconds),
        **memory,
        "told": health["told"],
        "kept": sum(1 for _ in (root / "spool" / "done").iterdir()),
        "faults": faults,
    }


def _log(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines() if line.startswith("{")]


def main() -> int:
    """Read the arguments, run, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--dir", type=Path, default=None, help="where to make the spool; default: a RAM disk")
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    base = arguments.dir or (memory if os.access(memory, os.W_OK) else None)
    root = Path(tempfile.mkdtemp(prefix="darkroom-soak-", dir=base))
    try:
        found = soak(root, arguments.jobs)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(found))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
