"""What every test may use: a spool in a temporary folder, and a daemon that does what lies in it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkroom.config import Config, Folders, Output
from darkroom.executors import Executor, FakeExecutor
from darkroom.loop import Loop
from darkroom.spool import Disk, Spool

MANY = 50_000
"""More objects than a test makes; torch, diffusers and transformers are 200,000 at least."""


def pytest_runtest_setup() -> None:
    """What was imported stays: to look through it each time that an engine frees memory took 0.2 s."""
    if len(gc.get_objects(generation=2)) > MANY:
        gc.collect()
        gc.freeze()


class Lines:
    """A logger that keeps what it is told, as (event, fields)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((event, {"level": level, **fields}))

    def events(self) -> list[str]:
        return [event for event, _ in self.lines]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]


class Darkroom:
    """A spool, and daemons on it, one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inbox = root / "inbox"
        self.working = root / "working"
        self.done = root / "done"
        self.failed = root / "failed"
        self.inbox.mkdir(parents=True)
        self.log = Lines()
        self.config = Config(folders=Folders(root=root), output=Output(page=False))

    def configure(self, **sections: dict[str, Any]) -> None:
        data = {"folders": {"root": self.root}, **sections}
        data["output"] = {"page": False, **data.get("output", {})}
        self.config = Config(**data)

    def drop(self, name: str, job: dict[str, Any] | bytes | str | None = None, **fields: Any) -> Path:
        """Put a file into the inbox; by default a small job."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if job is None:
            job = {"prompt": "a red circle", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 7, **fields}
        data = job.encode() if isinstance(job, str) else job if isinstance(job, bytes) else json.dumps(job).encode()
        path.write_bytes(data)
        return path

    def spool(self, disk: Disk | None = None) -> Spool:
        return Spool(self.config.folders, self.config.limits, disk)

    def loop(self, executor: Executor | None = None, disk: Disk | None = None, **options: Any) -> Loop:
        return Loop(
            config=self.config,
            spool=self.spool(disk),
            executor=executor or FakeExecutor(self.config),
            logger=self.log,
            **options,
        )

    def run_once(self, executor: Executor | None = None, disk: Disk | None = None) -> Loop:
        loop = self.loop(executor, disk, once=True)
        loop.run()
        return loop

    def result(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.done / name / "result.json").read_bytes())
        return found

    def error(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.failed / name / "error.json").read_bytes())
        return found

    def names(self, folder: str) -> list[str]:
        """What lies there, but for what is hidden and the page of all results."""
        found = (path.name for path in (self.root / folder).iterdir())
        return sorted(name for name in found if not name.startswith(".") and name != "index.html")


@pytest.fixture
def darkroom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Darkroom:
    for variable in ("DARKROOM_CONFIG", "NOTIFY_SOCKET"):
        monkeypatch.delenv(variable, raising=False)
    return Darkroom(tmp_path / "spool")
