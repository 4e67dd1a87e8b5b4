"""Which LoRAs there are: names to files, and what each is made for. Reads headers, no torch.

A LoRA is one ``*.safetensors`` in ``[models] loras_dir``, at any depth, by the name of its file without the ending; or
it comes with darkroom. A job gives a name, never a path.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from darkroom.errors import ModelUnavailable, plainly
from darkroom.models import weights
from darkroom.models.lora_keys import Foreign, family_of, parse_keys, text_width

BUNDLED = Path(__file__).parents[1] / "seedling-loras"
FRESH_S = 1.0
"""How long what was read counts, so that a thousand jobs do not walk through the folder a thousand times."""


@dataclass(frozen=True)
class About:
    """What a LoRA's header tells."""

    family: str
    width: int | None
    """Numbers to a token of the prompt that it is made for; None where it does not touch what reads the prompt."""
    bytes: int


@dataclass(frozen=True)
class Lora:
    """A LoRA's name and its file."""

    name: str
    file: Path
    source: Literal["bundled", "loras_dir"] = "loras_dir"

    @cached_property
    def about(self) -> About:
        """Raises ModelUnavailable for what is no LoRA, not all of one, or of a kind that cannot be applied."""
        try:
            header = weights.read_header(self.file)
            keys = parse_keys(header.shapes)
        except (weights.BadFile, Foreign) as error:
            raise self.bad(str(error)) from None
        except OSError as error:
            raise self.bad(f"cannot be read: {plainly(error)}") from None
        if not keys:
            family = weights.family_of(header)
            raise self.bad(f"is no LoRA but {f'a model of {family}' if family else weights.what_else(header)}")
        width = text_width(keys, header.shapes)
        return About(family_of(keys, width), width, header.size)

    def bad(self, what: str) -> ModelUnavailable:
        """An error whose message says of the file ``what`` it is."""
        return ModelUnavailable(f'LoRA "{self.name}": {self.file} {what}')


class Loras:
    """The LoRAs by name. Looks at the disk only when asked, so that one that is added later is found."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._read_at = float("-inf")
        self._found: dict[str, list[Lora]] = {}

    def names(self) -> list[str]:
        """Every name, sorted."""
        return sorted(self._loras())

    def get(self, name: str) -> Lora | None:
        """The LoRA of that name, or None. Raises ModelUnavailable where there are two."""
        found = self._loras().get(name) or self._loras(afresh=True).get(name, [])
        if len(found) > 1:
            first, second = (lora.file for lora in found[:2])
            raise ModelUnavailable(f'Two LoRAs are called "{name}": {first} and {second}; rename one')
        return found[0] if found else None

    def _loras(self, afresh: bool = False) -> dict[str, list[Lora]]:
        now = self._clock()
        if afresh or now - self._read_at >= FRESH_S:
            self._found = {file.stem: [Lora(file.stem, file, "bundled")] for file in _files(BUNDLED)}
            own: dict[str, list[Lora]] = {}
            for file in _files(self._folder) if self._folder else ():
                own.setdefault(file.stem, []).append(Lora(file.stem, file))
            self._found |= own
            self._read_at = now
        return self._found


def _files(folder: Path) -> Iterator[Path]:
    """The safetensors in a folder and those below it, in order; links to folders are followed, each folder once.

    A folder that is not there, or cannot be read, has none.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        with contextlib.suppress(OSError):
            stat = Path(place).stat()
            if (stat.st_dev, stat.st_ino) in seen:
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        for name in sorted(names):
            if name.endswith(".safetensors") and not name.startswith("."):
                yield Path(place, name)
