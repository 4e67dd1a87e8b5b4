"""Another configuration for a daemon that runs: what may change, and what takes a restart."""

from __future__ import annotations

from typing import Any

from darkroom.config import Config

NOT_THE_ENGINES = {"folders", "intake", "limits", "log", "retention", "metrics", "notify", "presets", "prompts"}
"""Sections that the engine's process does not read. A change in another one replaces it."""

AT_START_ONLY = ("folders", "metrics", "notify")
"""Sections that count for as long as a daemon runs: it holds a lock, or a port, or has a thread at work."""


class Relay:
    """A logger that stands for another, which may be exchanged while many hold on to this one."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self.logger, name)


def settled(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The new configuration as far as it can be had now, and the sections whose change waits for a restart."""
    waiting = [section for section in AT_START_ONLY if getattr(old, section) != getattr(new, section)]
    return new.model_copy(update={section: getattr(old, section) for section in waiting}), waiting


def needs_another_engine(old: Config, new: Config) -> bool:
    """Whether the engine's process was made from something that is otherwise now."""
    sections = set(Config.model_fields) - NOT_THE_ENGINES
    return any(getattr(old, section) != getattr(new, section) for section in sections)
