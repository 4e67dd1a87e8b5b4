"""``darkroom pull``: fetch a model from the hub ahead of the jobs that want it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from darkroom.config import load, toml_key
from darkroom.errors import DarkroomError, UsageError
from darkroom.models.catalog import Catalog
from darkroom.models.hub import fetch, fetched_bytes, listing

POLL_S = 0.1


def pull(name: str, config_file: Path | None, root: Path | None) -> None:
    """Fetch the model that the config calls ``name``; a bar on a terminal shows how far it is.

    Raises UsageError where the config names none, ModelUnavailable where the hub does not give it.
    """
    config = load(config_file, root=root)
    entry = config.models.named.get(name)
    if entry is None or entry.hub is None:
        raise UsageError(_no_such(name, Catalog(config.models)))
    folder = config.models.hub_folder(entry.hub)
    if folder.is_dir():
        print(f"{name} is there: {folder}")
        return
    files = listing(entry.hub)
    total = sum(files.values())
    print(f"{entry.hub}: {len(files)} files, {total / 2**20:,.0f} MiB, into {folder}", flush=True)
    download = _Download(entry.hub, folder, files)
    download.start()
    _watch(download, total)
    if download.error is not None:
        raise download.error
    print(f"{name} is fetched")


class _Download(threading.Thread):
    """In the background, and left behind by Ctrl-C; the next pull goes on where it was."""

    def __init__(self, hub: str, folder: Path, files: dict[str, int]) -> None:
        super().__init__(name="pull", daemon=True)
        self.hub, self.folder, self.files = hub, folder, files
        self.error: DarkroomError | None = None

    def run(self) -> None:
        try:
            fetch(self.hub, self.folder, self.files)
        except DarkroomError as error:
            self.error = error


def _watch(download: _Download, total: int) -> None:
    if not sys.stdout.isatty():
        download.join()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total)
        while download.is_alive():
            progress.update(task, completed=min(fetched_bytes(download.folder), total))
            download.join(POLL_S)
        if download.error is None:
            progress.update(task, completed=total)


def _no_such(name: str, catalog: Catalog) -> str:
    if name in catalog.names():
        return f'the model "{name}" is on this machine; there is nothing to fetch'
    return f'there is no model "{name}" in the config; add [models.{toml_key(name)}] with path = "hub:owner/name"'
