"""The engine for the executor's child process, one that leaves a file where it is ready: ``engine_marked:Marking``."""

from __future__ import annotations

from collections.abc import Callable

from darkroom.config import Config
from darkroom.engine.cache import cache_dir
from darkroom.engine.render import Engine


class Marking(Engine):
    """Touches ``prepared`` in its cache's folder."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.folder = cache_dir(config.engine)

    def prepare(self, stopping: Callable[[], bool]) -> None:
        super().prepare(stopping)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "prepared").touch()
