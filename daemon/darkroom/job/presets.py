"""Presets: fields that jobs need not repeat. Each makes a hot folder, ``inbox/<name>/``, whose jobs take them."""

from __future__ import annotations

import re

from darkroom.config import Config
from darkroom.errors import ConfigError, InvalidRequest
from darkroom.job.parse import Presets, check_fields

_NAME = re.compile(r"[A-Za-z0-9](?:[\w .-]{0,62}\w)?")


def read_presets(config: Config) -> Presets:
    """Those of the config, by name, in our names for fields. Raises ConfigError, a line for each fault."""
    faults: list[str] = []
    presets = {}
    for name, table in config.presets.items():
        where = f"[presets.{name}]"
        if not _NAME.fullmatch(name):
            faults.append(f"{where}: a preset's name is a folder's: letters, digits, dots, dashes, spaces")
            continue
        try:
            presets[name] = check_fields(table)
        except InvalidRequest as error:
            faults += [f"{where} {fault}" for fault in error.errors]
        if "preset" in table:
            faults.append(f"{where} preset: a preset has no preset of its own")
    if faults:
        raise ConfigError("\n".join(f"configuration: {fault}" for fault in faults))
    return presets


def preset_of(dropped: str, presets: Presets) -> str | None:
    """The preset in whose folder a dropped file lies; ``dropped`` is its name below the inbox."""
    folder, slash, _ = dropped.partition("/")
    return folder if slash and folder in presets else None
