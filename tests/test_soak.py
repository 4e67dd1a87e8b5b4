"""The soak of tools/soak.py, short: real processes, real SIGKILL (fault 56), memory and descriptors flat (fault 63)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parent.parent / "tools" / "soak.py"


def test_jobs_under_a_rain_of_kills_each_get_one_verdict() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--jobs", "1500", "--kills", "30"], capture_output=True, text=True, timeout=300
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["faults"] == []
    assert done.returncode == 0
    assert figures["kills"] >= 10
