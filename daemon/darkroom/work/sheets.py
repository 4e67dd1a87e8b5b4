"""The contact sheet of one job: drawn picture by picture while the engine makes the next, so that none waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.events import Picture
from darkroom.spool import Ticket

if TYPE_CHECKING:
    from darkroom.output import Sheet


class JobSheet:
    """Never raises: where it cannot be made the log says why, and the job is published without."""

    def __init__(self, ticket: Ticket, count: int, logger: Any) -> None:
        self._ticket = ticket
        self._count = count
        self._logger = logger
        self._sheet: Sheet | None = None
        self._failed = False

    def add(self, event: Picture, file: str) -> None:
        """A picture was made, and is called so."""
        self._try(lambda: self._add(event.index, file, event.data, event.thumbnail))

    def finish(self, files: Iterable[tuple[int, str]]) -> None:
        """All pictures are made, by index: those that an earlier daemon made are read, and the sheet is written."""
        self._try(lambda: self._finish(files))

    def _finish(self, files: Iterable[tuple[int, str]]) -> None:
        for index, file in files:
            if self._sheet is None or index not in self._sheet:
                self._add(index, file, Path(self._ticket.at(file)).read_bytes())
        if self._sheet is not None:
            self._ticket.save_sheet(self._sheet.jpeg())

    def _add(self, index: int, file: str, data: bytes, thumbnail: bytes = b"") -> None:
        if self._sheet is None:
            from darkroom.output import Sheet

            self._sheet = Sheet(self._count)
        self._sheet.add(index, file.rpartition(".")[0], BytesIO(data), thumbnail)

    def _try(self, operation: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            operation()
        except Exception as error:
            self._failed = True
            self._logger.warning("sheet.failed", id=self._ticket.id, why=f"{type(error).__name__}: {error}")
