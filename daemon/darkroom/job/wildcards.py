"""Wildcards: a folder of ``*.txt``, each a list of texts to choose from, asked for by their names below the folder."""

from __future__ import annotations

import difflib
import os
from fnmatch import fnmatchcase
from pathlib import Path

from darkroom.strict_json import shown

MOST_FILES = 10_000
MOST_FILE_BYTES = 4 << 20
MOST_LOOKUPS = 1_000
"""So many are filled in for one prompt: only some that contain each other ask for more."""


class Refused(Exception):
    """A prompt cannot be chosen: why, and what to do."""

    def __init__(self, message: str, hint: str | None = None, got: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.got = got


class Wildcards:
    """Those of one folder, read when they are asked for. No name leads out of it: only what was found there counts."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.lookups = 0
        self._files: dict[str, str] | None = None
        self._values: dict[str, list[str]] = {}

    def values(self, name: str) -> list[str]:
        """The texts of the wildcard, sorted, each once. ``*`` in a name stands for any letters. Raises Refused."""
        self.lookups += 1
        if self.lookups > MOST_LOOKUPS:
            raise Refused(f"more than {MOST_LOOKUPS:,} wildcards would be filled in", "let them not contain each other")
        if name not in self._values:
            self._values[name] = self._read(name)
        return self._values[name]

    def _read(self, name: str) -> list[str]:
        files = self._known()
        wanted = name.strip().strip("/")
        found = [file for file in files if fnmatchcase(file, wanted)]
        found = found or [file for file in files if fnmatchcase(file, f"*/{wanted}")]
        if not found:
            raise Refused(f'there is no wildcard "{shown(name)}"', self._remedy(wanted), shown(name))
        texts = {line for file in found for line in self._lines(file, files[file])}
        if not texts:
            raise Refused(f'the wildcard "{shown(name)}" is empty', f"write texts into {found[0]}.txt, one a line")
        return sorted(texts)

    def _remedy(self, wanted: str) -> str:
        if self.folder is None:
            return "name a folder of them: [prompts] wildcards_dir in config.toml"
        files = self._known()
        leaves = {file.rpartition("/")[2]: file for file in files} | {file: file for file in files}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(wanted, leaves, n=3, cutoff=0.5)]
        if near:
            return f"did you mean {' or '.join(dict.fromkeys(near))}?"
        return "there are: " + ", ".join(sorted(files)[:20]) if files else f"there are none in {self.folder}"

    def _known(self) -> dict[str, str]:
        """Name to path, for each file below the folder; links to folders are not followed."""
        if self._files is None:
            self._files = {}
            for here, folders, names in os.walk(self.folder) if self.folder is not None else ():
                folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
                for leaf in sorted(names):
                    if leaf.lower().endswith(".txt") and not leaf.startswith(".") and len(self._files) < MOST_FILES:
                        path = os.path.join(here, leaf)  # noqa: PTH118
                        self._files[os.path.relpath(path, self.folder)[: -len(".txt")]] = path
        return self._files

    def _lines(self, name: str, path: str) -> list[str]:
        """Without blank ones and comments, which begin with ``#``."""
        try:
            with open(path, encoding="utf-8-sig", errors="replace") as file:  # noqa: PTH123
                text = file.read(MOST_FILE_BYTES + 1)
        except OSError as error:
            raise Refused(f'the wildcard "{name}" cannot be read: {error.strerror}') from None
        if len(text) > MOST_FILE_BYTES:
            raise Refused(f'the wildcard "{name}" is larger than {MOST_FILE_BYTES >> 20} MiB', "cut it into several")
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]
