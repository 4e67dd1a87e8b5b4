"""A job's model from the hub, if it may be: fetched while the executor is told that the engine lives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from darkroom.config import Models
from darkroom.errors import DarkroomError, ModelUnavailable, Stopped
from darkroom.events import Alive, Event
from darkroom.models.catalog import Model
from darkroom.models.hub import fetch

ALIVE_S = 0.5


class Fetching:
    """Downloads under way; a job that is stopped leaves its own behind for the next to go on with."""

    def __init__(self, settings: Models) -> None:
        self._settings = settings
        self._under_way: dict[str, _Download] = {}

    def fetch(self, model: Model, stopping: Callable[[], bool]) -> Iterator[Event]:
        """Return when the model is there; nothing happens where it is. Raises ModelUnavailable, Stopped."""
        hub = model.configured.hub
        if hub is None or model.fetched:
            return
        if not self._settings.allow_download:
            raise ModelUnavailable(
                f'The model "{model.name}" ({hub}) has not been fetched from the hub, and [models] allow_download is '
                f"false: run `darkroom pull {model.name}`, or set it to true"
            )
        download = self._under_way.get(hub)
        if download is None:
            download = self._under_way[hub] = _Download(hub, model)
            download.start()
        while download.is_alive():
            if stopping():
                raise Stopped("The engine was asked to stop")
            download.join(ALIVE_S)
            yield Alive()
        del self._under_way[hub]
        if download.error is not None:
            raise download.error


class _Download(threading.Thread):
    def __init__(self, hub: str, model: Model) -> None:
        super().__init__(name="fetch", daemon=True)
        self.hub = hub
        self.model = model
        self.error: DarkroomError | None = None

    def run(self) -> None:
        try:
            fetch(self.hub, self.model.folder)
        except DarkroomError as error:
            self.error = error
