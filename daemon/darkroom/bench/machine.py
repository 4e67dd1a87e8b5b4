"""On what, with what and when something was measured."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from typing import Any

from darkroom import __version__
from darkroom.engine.memory.host import cpu_name

_LIBRARIES = ("torch", "diffusers", "transformers", "pillow", "zlib-ng")


def about() -> dict[str, Any]:
    """The machine, the versions, the date. ``load`` is of the last minute: much of it means that others work too."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {
            "darkroom": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
    }
