"""The soak of tools/soak.py, short: real processes, real SIGKILL (fault 56), memory and descriptors flat (fault 63)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SOAK = Path(__file__).parent.parent / "tools" / "soak.py"


def soak(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(SOAK), *arguments], capture_output=True, text=True, timeout=300)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["faults"] == []
    assert done.returncode == 0
    return figures


def test_jobs_under_a_rain_of_kills_each_get_one_verdict() -> None:
    assert soak("--jobs", "1500", "--kills", "30")["kills"] >= 10


def test_thousands_dropped_at_once_while_the_daemon_watches_each_get_one_verdict() -> None:
    assert soak("--jobs", "3000", "--kills", "0", "--waiting", "3000")["jobs"] >= 3000
