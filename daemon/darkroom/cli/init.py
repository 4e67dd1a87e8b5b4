"""``darkroom init``: a folder to begin with: a config that explains every key, and the spool's folders."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import darkroom
from darkroom.config import load
from darkroom.errors import DarkroomError, StorageTrouble, UsageError, plainly
from darkroom.spool import Disk, Spool

CONFIG = "config.toml"


def init(folder: Path) -> None:
    """Make them. Raises UsageError where there is a config already, or where nothing can be written."""
    file = folder.absolute() / CONFIG
    if file.exists() or file.is_symlink():
        raise UsageError(f"{file} is there already, and nothing is overwritten; name another folder")
    disk = Disk()
    try:
        disk.make_folders(file.parent)
        disk.replace(file, shipped_config())  # kept: a person goes on to edit it
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot write {file}: {plainly(error)}") from None
    config = load(file)
    spool = Spool(config.folders, config.limits)
    try:
        spool.open()
    except DarkroomError as error:
        raise UsageError(f"{file} is written, but: {error.message}") from None
    spool.close()
    print(f"made {file}\nmade {spool.root} with inbox, working, done, failed")
    print(f"next: darkroom check --config {file}\n      darkroom run --config {file}")


def shipped_config() -> bytes:
    """The config.toml that comes with darkroom: in the package, or beside its source in a checkout."""
    packaged = resources.files(darkroom).joinpath(CONFIG)
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(darkroom.__file__).parents[2] / CONFIG).read_bytes()
