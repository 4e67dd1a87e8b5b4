"""Which models there are: names to places, their families, sizes and defaults. Reads small files and headers, no torch.

A model is a diffusers folder or one checkpoint file. It comes from ``[models.NAME]`` in the config (from the hub too,
once it was fetched), from ``models_dir``, or with darkroom itself: ``seedling``. A folder may carry ``darkroom.json``,
its makers' recommended defaults.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from darkroom.config import ModelDefaults, ModelEntry, Models, toml_key
from darkroom.errors import ModelUnavailable, plainly
from darkroom.models.families import DISTILLED, FLOWS, Flow
from darkroom.models.loras import Loras
from darkroom.models.weights import BadFile, Header, family_of, read_header, what_else

BUNDLED = Path(__file__).parents[1] / "seedling"

Source = Literal["bundled", "config", "models_dir", "hub"]

FLUX_SAMPLE_SIZE = 128
"""Latents along a side of the pictures that Flux was trained on; its configuration does not tell."""


@dataclass(frozen=True)
class Model:
    """A model's name, where it is, and what a job gets where it leaves a field out."""

    name: str
    folder: Path
    """The diffusers folder; of a checkpoint the folder of its family, which has the configuration and the tokenizer."""
    configured: ModelEntry
    source: Source = "config"
    checkpoint: Path | None = None
    """The file that the weights are in, where it is not the folder."""

    @property
    def place(self) -> Path:
        """The folder or file that is the model."""
        return self.checkpoint or self.folder

    @property
    def fetched(self) -> bool:
        """Whether it is there; only what comes from the hub may be known and not there."""
        return self.source != "hub" or self.folder.is_dir()

    @cached_property
    def defaults(self) -> ModelDefaults:
        """The config's defaults over the folder's own ``darkroom.json`` over the family's and the native size.

        Raises ModelUnavailable where it is not a model.
        """
        if not self.fetched:
            return self._unfetched()
        file = self.folder / "darkroom.json"
        own = self.read("darkroom.json") if self.checkpoint is None and file.is_file() else {}
        try:
            recommended = ModelDefaults(**own)
        except ValidationError as error:
            fault = error.errors()[0]
            raise ModelUnavailable(f'model "{self.name}": {file}: {fault["loc"][0]}: {fault["msg"]}') from None
        size = self._native_size()
        chosen: dict[str, Any] = {"width": size, "height": size} | self._family_defaults()
        for source in (recommended, self.configured):
            chosen.update(
                {key: value for key, value in source if key in ModelDefaults.model_fields and value is not None}
            )
        return ModelDefaults(**chosen)

    @property
    def is_base_alone(self) -> bool:
        """Whether a folder has no weights that can be read: all it is good for is to be a checkpoint's base."""
        return self.fetched and self.checkpoint is None and self.size() == 0

    @cached_property
    def family(self) -> str:
        """One of ``FAMILIES``, or what the folder calls itself. Raises ModelUnavailable."""
        return family_of_folder(self)

    @cached_property
    def flow(self) -> Flow | None:
        """Its family, if it follows a flow; None too where that is not known yet. Raises ModelUnavailable."""
        return flow_of(self.read("model_index.json")) if self.fetched else None

    def size(self) -> int:
        """Bytes of all its weights, as they are on the disk. Raises ModelUnavailable."""
        files = [self.checkpoint] if self.checkpoint else list(self.folder.glob("*/*.safetensors"))
        if self.checkpoint and self.flow:  # the rest is its base's
            files += [file for part in ("text_encoder*", "vae") for file in self.folder.glob(f"{part}/*.safetensors")]
        try:
            return sum(file.stat().st_size for file in files)
        except OSError as error:
            raise ModelUnavailable(f'model "{self.name}": {error.filename}: {error.strerror}') from None

    def _unfetched(self) -> ModelDefaults:
        """What the config says, if that is enough to decide a job before the model is there."""
        own = {key: value for key, value in self.configured if key in ModelDefaults.model_fields}
        if own["width"] is None or own["height"] is None:
            raise ModelUnavailable(
                f'The model "{self.name}" ({self.configured.hub}) has not been fetched from the hub: run '
                f"`darkroom pull {self.name}`"
            )
        return ModelDefaults(**own)

    def _family_defaults(self) -> dict[str, Any]:
        if self.flow is None:
            return {}
        defaults = {"num_inference_steps": self.flow.num_inference_steps, "guidance_scale": self.flow.guidance_scale}
        if self.flow.name == "Flux" and not self.read("transformer/config.json").get("guidance_embeds"):
            defaults = DISTILLED
        return {"sampler": "Euler", **defaults}

    def _native_size(self) -> int:
        """Side of a picture in pixels: the UNet's or transformer's sample size times the VAE's reduction."""
        index = self.read("model_index.json")
        part = "unet" if "unet" in index else "transformer"
        sample = self.read(f"{part}/config.json").get("sample_size", FLUX_SAMPLE_SIZE if self.flow else None)
        blocks = self.read("vae/config.json").get("block_out_channels", [0] * 4)
        if isinstance(sample, list):
            sample = sample[0]
        return int(sample) * 2 ** (len(blocks) - 1) if isinstance(sample, int) else 512

    def read(self, file: str) -> dict[str, Any]:
        """A JSON object in the model's folder, such as ``unet/config.json``. Raises ModelUnavailable."""
        path = self.folder / file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ModelUnavailable(
                f'model "{self.name}": {path} is missing; a model is a diffusers folder with model_index.json, or a '
                "checkpoint *.safetensors"
            ) from None
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f'model "{self.name}": {path} cannot be read: {plainly(error)}') from None
        if not isinstance(content, dict):
            raise ModelUnavailable(f'model "{self.name}": {path} is not a JSON object')
        return content


def flow_of(index: dict[str, Any]) -> Flow | None:
    """The family that follows a flow which a model_index.json is of, if it is."""
    return next((flow for flow in FLOWS.values() if flow.pipeline == index.get("_class_name")), None)


def family_of_folder(model: Model) -> str:
    """From its model_index.json and the width of its texts. Raises ModelUnavailable."""
    # a model for inpainting is one of its family, with a UNet that takes more channels
    kind = str(model.read("model_index.json").get("_class_name")).replace("InpaintPipeline", "Pipeline")
    if kind == "StableDiffusionXLPipeline":
        return "SDXL"
    if kind == "StableDiffusionPipeline":
        # the text encoder of SD 2 is OpenCLIP's, 1024 wide; that of SD 1 is CLIP's, 768 wide
        return "SD 2" if model.read("text_encoder/config.json").get("hidden_act") == "gelu" else "SD 1"
    return model.flow.name if model.flow else kind


def header_of(name: str, file: Path) -> Header:
    """A safetensors file's header. Raises ModelUnavailable, ``name`` being the model's."""
    try:
        return read_header(file)
    except BadFile as error:
        raise ModelUnavailable(f'model "{name}": {file} {error}') from None
    except OSError as error:
        raise ModelUnavailable(f'model "{name}": {file} cannot be read: {plainly(error)}') from None


BASE_ALONE = "no weights in safetensors, so only a base for checkpoints"

FRESH_S = 1.0
"""How long what was read of a model counts, so that a thousand jobs for it do not read it a thousand times."""


class Catalog:
    """The models by name. Looks at the disk only when asked, so that a model added later is found."""

    def __init__(self, models: Models, clock: Callable[[], float] = time.monotonic) -> None:
        self.models = models
        self.loras = Loras(models.loras_dir, clock)
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
        """The model of that name, as it was within the last second, or None.

        Raises ModelUnavailable for a checkpoint that is none, or that lacks a folder of its family.
        """
        now = self._clock()
        read_at, model = self._known.get(name, (float("-inf"), None))
        if model is not None and now - read_at < FRESH_S:
            return model
        self._known.clear()
        entries = self._entries()
        if name not in entries:
            return None
        model = self._model(name, entries)
        self._known[name] = (now, model)
        return model

    def _model(self, name: str, entries: dict[str, tuple[Source, ModelEntry]]) -> Model:
        source, entry = entries[name]
        if entry.hub is not None:
            return Model(name, self.models.hub_folder(entry.hub), entry, "hub")
        if entry.path.suffix == ".safetensors" or entry.path.is_file():
            return Model(name, self._base(name, entry, entries), entry, source, entry.path)
        return Model(name, entry.path, entry, source)

    def _base(self, name: str, entry: ModelEntry, entries: dict[str, tuple[Source, ModelEntry]]) -> Path:
        """The folder that a checkpoint's configuration and tokenizer are taken from."""
        if entry.path.suffix != ".safetensors":
            raise ModelUnavailable(
                f'model "{name}": {entry.path} is no safetensors file; a pickle (.ckpt, .pt, .bin) can run any code '
                "when it is read: get the model as safetensors or convert it"
            )
        header = header_of(name, entry.path)
        family = family_of(header)
        if family is None:
            raise ModelUnavailable(f'model "{name}": {entry.path} is {what_else(header)}')
        if entry.base is not None:
            base = self._named_base(name, entry.base, entries)
            if base.family != family:
                raise ModelUnavailable(
                    f'model "{name}": {entry.path} is of the family {family}, but its base {base.folder} is of '
                    f"{base.family}; set base to a folder of {family}"
                )
            return base.folder
        for other in sorted(entries):
            base_source, base_entry = entries[other]
            if base_entry.hub is None and base_entry.path.is_dir():
                with contextlib.suppress(ModelUnavailable):
                    base = Model(other, base_entry.path, base_entry, base_source)
                    if base.family == family and base.folder != BUNDLED:
                        return base.folder
        raise ModelUnavailable(
            f'model "{name}": a checkpoint alone has neither configuration nor tokenizer: set base = "…" in '
            f"[models.{toml_key(name)}] to a diffusers folder of the family {family} (its weights are not needed), or "
            "put one into models_dir"
        )

    def _named_base(self, name: str, base: str, entries: dict[str, tuple[Source, ModelEntry]]) -> Model:
        if "/" in base:
            return Model(name, Path(base), ModelEntry(path=Path(base)))
        if base not in entries:
            raise ModelUnavailable(
                f'model "{name}": its base "{base}" is no model here; there are: {", ".join(sorted(entries))}'
            )
        source, entry = entries[base]
        if entry.hub is not None:
            return Model(base, self.models.hub_folder(entry.hub), entry, "hub")
        return Model(base, entry.path, entry, source)

    def _entries(self) -> dict[str, tuple[Source, ModelEntry]]:
        entries: dict[str, tuple[Source, ModelEntry]] = {"seedling": ("bundled", ModelEntry(path=BUNDLED))}
        folder = self.models.models_dir
        if folder is not None:
            # An unmounted or unreadable folder has no models: that they are missing is said when one is asked for.
            with contextlib.suppress(OSError):
                for child in sorted(folder.iterdir()):
                    if child.suffix == ".safetensors" and child.is_file():
                        entries[child.stem] = ("models_dir", ModelEntry(path=child))
                    elif (child / "model_index.json").is_file():
                        entries[child.name] = ("models_dir", ModelEntry(path=child))
        return entries | {name: ("config", entry) for name, entry in self.models.named.items()}
