"""Which models there are: names to folders, their families and defaults. Reads a few small JSON files, no torch.

A model is a diffusers folder. It comes from ``[models.NAME]`` in the config, from ``models_dir``, or with darkroom
itself: ``seedling``. A folder may carry ``darkroom.json``, its makers' recommended defaults.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darkroom.config import ModelDefaults, ModelEntry, Models
from darkroom.errors import ModelUnavailable

BUNDLED = Path(__file__).parent / "seedling"


@dataclass(frozen=True)
class Model:
    """A model's name, its folder, and what a job gets where it leaves a field out."""

    name: str
    folder: Path
    configured: ModelDefaults

    @cached_property
    def defaults(self) -> ModelDefaults:
        """The config's defaults over the folder's own ``darkroom.json`` over the model's native size.

        Raises ModelUnavailable where the folder is not a model.
        """
        own = self.read("darkroom.json") if (self.folder / "darkroom.json").is_file() else {}
        try:
            recommended = ModelDefaults(**own)
        except ValidationError as error:
            fault = error.errors()[0]
            file, field = self.folder / "darkroom.json", fault["loc"][0]
            raise ModelUnavailable(f'model "{self.name}": {file}: {field}: {fault["msg"]}') from None
        size = self._native_size()
        chosen: dict[str, Any] = {"width": size, "height": size}
        for source in (recommended, self.configured):
            chosen.update(
                {key: value for key, value in source if key in ModelDefaults.model_fields and value is not None}
            )
        return ModelDefaults(**chosen)

    def _native_size(self) -> int:
        """Side of a picture in pixels: the UNet's or transformer's sample size times the VAE's reduction."""
        index = self.read("model_index.json")
        part = "unet" if "unet" in index else "transformer"
        sample = self.read(f"{part}/config.json").get("sample_size")
        blocks = self.read("vae/config.json").get("block_out_channels", [0] * 4)
        if isinstance(sample, list):
            sample = sample[0]
        return int(sample) * 2 ** (len(blocks) - 1) if isinstance(sample, int) else 512

    def read(self, file: str) -> dict[str, Any]:
        """A JSON object in the model's folder, such as ``unet/config.json``. Raises ModelUnavailable."""
        path = self.folder / file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelUnavailable(
                f'model "{self.name}": {path} is missing; a model is a diffusers folder with model_index.json'
            ) from None
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f'model "{self.name}": {path} cannot be read: {error}') from None
        if not isinstance(content, dict):
            raise ModelUnavailable(f'model "{self.name}": {path} is not a JSON object')
        return content


FRESH_S = 1.0
"""How long what was read of a model counts, so that a thousand jobs for it do not read it a thousand times."""


class Catalog:
    """The models by name. Looks at the disk only when asked, so that a model added later is found."""

    def __init__(self, models: Models, clock: Callable[[], float] = time.monotonic) -> None:
        self.models = models
        self._clock = clock
        self._known: dict[str, tuple[float, Model]] = {}

    @property
    def default(self) -> str:
        """The name a job gets where it names no model."""
        return self.models.default

    def names(self) -> list[str]:
        """Every name, sorted."""
        return sorted(self._entries())

    def get(self, name: str) -> Model | None:
        """The model of that name, as it was within the last second, or None."""
        now = self._clock()
        read_at, model = self._known.get(name, (float("-inf"), None))
        if model is not None and now - read_at < FRESH_S:
            return model
        self._known.clear()
        entry = self._entries().get(name)
        if entry is None:
            return None
        model = Model(name, entry.path, entry)
        self._known[name] = (now, model)
        return model

    def _entries(self) -> dict[str, ModelEntry]:
        entries = {"seedling": ModelEntry(path=BUNDLED)}
        folder = self.models.models_dir
        if folder is not None:
            # An unmounted or unreadable folder has no models: that they are missing is said when one is asked for.
            with contextlib.suppress(OSError):
                for child in folder.iterdir():
                    if (child / "model_index.json").is_file():
                        entries[child.name] = ModelEntry(path=child)
        return entries | self.models.named
