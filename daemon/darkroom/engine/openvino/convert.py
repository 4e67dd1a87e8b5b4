"""UNets and decoders through OpenVINO, on a CPU: converted once and kept on the disk.

Everything but the UNet and the VAE's decoder stays with torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from darkroom.config import EngineSettings
from darkroom.engine.arguments import ALWAYS, inputs_of
from darkroom.engine.cache import cache_dir
from darkroom.engine.openvino.conversions import Conversions
from darkroom.engine.openvino.served import (
    DTYPES,
    PACKAGE,
    ServedDecoder,
    ServedUnet,
    attempt,
    core,
    is_installed,
    library,
)
from darkroom.errors import first_line
from darkroom.models.catalog import Model

FILE = "unet.xml"
DECODER_FILE = "decoder.xml"

QUANTIZER = "nncf"

_LAYOUT = 1
"""Of what is kept: to be raised where the conversion changes, so that the old ones are made anew."""

_QUANTIZED_LAYOUT = 1
"""The same of UNets in 8 bits."""

_TRACED_SIDE = 9
"""Latents a side of the example that is converted: odd, so that what is made for odd sides is in it."""


@dataclass
class OpenVino:
    """How one model's UNet and decoder come to be run by OpenVINO; ``refused`` says why they never do."""

    load: Callable[[], Any]
    """The UNet in torch, float32."""
    load_vae: Callable[[], Any]
    """The VAE, the same."""
    config: Mapping[str, Any]
    """The UNet's."""
    vae_config: Mapping[str, Any]
    precision: str
    key: str
    decoder_key: str
    quantized_key: str
    conversions: Conversions
    refused: str | None = None
    unquantized: str | None = None
    """Why the UNet is not run in 8 bits; None where it is, or will be as soon as it is quantized."""
    in_int8: bool = False
    """Whether the UNet that was opened last is."""

    def against(self, *, adapted: bool, reuses: bool, died: bool) -> str | None:
        """Why a job is not for OpenVINO; None where it is."""
        if self.refused is not None:
            return self.refused
        if adapted:
            return "a LoRA changes its UNet"
        if reuses:
            return "reuse_features computes parts of it alone"
        return "the attempt before ended the engine's process" if died else None

    @property
    def converted(self) -> bool:
        """Whether that is done, as far as can be seen at a glance."""
        return (self.conversions.has(self.key) or self.quantized) and self.conversions.has(self.decoder_key)

    @property
    def ready(self) -> bool:
        """Whether nothing is left to do once and for all."""
        return self.converted and (self.unquantized is not None or self.quantized)

    @property
    def quantized(self) -> bool:
        """The same of the UNet in 8 bits; not where it is not wanted so."""
        return self.unquantized is None and self.conversions.has(self.quantized_key)

    def open(self) -> ServedUnet:
        """From the disk, converted if it is not there, in 8 bits if that is. Raises Unserved."""

        def read() -> ServedUnet:
            quantized = self.conversions.find(self.quantized_key) if self.quantized else None
            self.in_int8 = quantized is not None
            folder = quantized or self._folder(self.key, self._convert)
            return ServedUnet(folder / FILE, self.config, self.precision)

        served: ServedUnet = attempt(read)
        return served

    def open_decoder(self) -> ServedDecoder:
        """The same of the VAE's."""

        def read() -> ServedDecoder:
            return ServedDecoder(self._folder(self.decoder_key, self._convert_decoder) / DECODER_FILE, self.precision)

        served: ServedDecoder = attempt(read)
        return served

    @property
    def dtype(self) -> torch.dtype:
        """What it computes with, but for a UNet in 8 bits."""
        return DTYPES[self.precision]

    def describe(self) -> str:
        """What is added to the device's description."""
        plain = str(self.dtype).removeprefix("torch.")
        return f"openvino int8 and {plain}" if self.in_int8 else f"openvino {plain}"

    def versions(self) -> dict[str, str]:
        """Of the packages that have a part in its pictures. Raises PackageNotFoundError."""
        return {name: version(name) for name in ((PACKAGE, QUANTIZER) if self.in_int8 else (PACKAGE,))}

    def add_quantized(self, make: Callable[[Path, Path], None]) -> None:
        """``make`` is given the file of the UNet that there is, and the one to be written. Raises what it raises."""
        given = self._folder(self.key, self._convert) / FILE
        self.conversions.add(self.quantized_key, lambda folder: make(given, folder / FILE))

    def save(self, model: Any, file: Path) -> None:
        """Weights of half size where half of their digits is all that is computed with."""
        library().save_model(model, file, compress_to_fp16=self.precision != "f32")

    def _folder(self, key: str, convert: Callable[[Path], None]) -> Path:
        return self.conversions.find(key) or self.conversions.add(key, convert)

    def _convert(self, folder: Path) -> None:
        self._convert_to(_Traced(self.load(), inputs_of(self.config)), tuple(_example(self.config)), folder / FILE)

    def _convert_decoder(self, folder: Path) -> None:
        channels = self.vae_config.get("latent_channels", 4)
        example = torch.ones(1, channels, _TRACED_SIDE, _TRACED_SIDE)
        self._convert_to(_TracedDecoder(self.load_vae()), (example,), folder / DECODER_FILE)

    def _convert_to(self, traced: torch.nn.Module, example: tuple[torch.Tensor, ...], file: Path) -> None:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what the tracer takes for constant, which is so here
            model = library().convert_model(traced, example_input=example)
        self.save(model, file)


class _Traced(torch.nn.Module):
    """The UNet with its inputs one after the other, in the order of their names."""

    def __init__(self, unet: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.unet = unet
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self._names, inputs, strict=True))
        sample, timestep, texts = (given.pop(name) for name in ALWAYS)
        condition = given.pop("timestep_cond", None)
        predicted: torch.Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=texts,
            timestep_cond=condition,
            added_cond_kwargs=given or None,
            return_dict=False,
        )[0]
        return predicted


class _TracedDecoder(torch.nn.Module):
    """The VAE, decoding whole pictures."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pixels


def set_up(
    model: Model,
    settings: EngineSettings,
    device: torch.device,
    config: Mapping[str, Any],
    load: Callable[[], Any],
    vae_config: Mapping[str, Any],
    load_vae: Callable[[], Any],
) -> OpenVino:
    """For a model with these configs of its UNet and its VAE, which in torch and in float32 the two others read."""
    refused, precision = _refusal(model, settings, device), "f32"
    if refused is None:
        try:
            precision = _precision(settings)
        except Exception as error:
            refused = f"it cannot be used here ({first_line(error)})"
    made_by = [precision, torch.__version__, "" if refused else version(PACKAGE)]
    key = _digest([_LAYOUT, _files(model, "unet"), config, *made_by])
    decoder_key = _digest(["decoder", _LAYOUT, _files(model, "vae"), vae_config, *made_by])
    unquantized = _unquantized(settings)
    quantized_key = _digest(["int8", _QUANTIZED_LAYOUT, key, "" if unquantized is not None else version(QUANTIZER)])
    conversions = Conversions(cache_dir(settings) / PACKAGE)
    keys = (key, decoder_key, quantized_key)
    return OpenVino(load, load_vae, config, vae_config, precision, *keys, conversions, refused, unquantized)


def _refusal(model: Model, settings: EngineSettings, device: torch.device) -> str | None:
    if not is_installed():
        return "it is not installed: pip install 'darkroom-daemon[openvino]'"
    if device.type != "cpu":
        return f"it is used on a CPU only, and the device is {device.type}"
    if model.flow is not None:
        return f"it is used for Stable Diffusion 1, 2 and XL only, and this is {model.flow.name}"
    return 'it is not used with [engine] dtype = "float16"' if settings.dtype == "float16" else None


def _unquantized(settings: EngineSettings) -> str | None:
    """Why not in 8 bits; no words where nobody wants that."""
    if settings.openvino_precision != "int8":
        return ""
    if importlib.util.find_spec(QUANTIZER) is None:
        return f"{QUANTIZER} is not installed: pip install 'darkroom-daemon[openvino-int8]'"
    return None


def _precision(settings: EngineSettings) -> str:
    """bfloat16 where the processor multiplies in it and nothing else is wanted; OpenVINO gains by it in all models."""
    if settings.dtype == "float32":
        return "f32"
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _example(config: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The smallest that shows all that it can be given."""
    sizes: dict[str, tuple[int, ...]] = {
        "sample": (2, config.get("in_channels", 4), _TRACED_SIDE, _TRACED_SIDE),
        "timestep": (),
        "encoder_hidden_states": (2, 77, config["cross_attention_dim"]),
        "time_ids": (2, 6),
        "timestep_cond": (2, config.get("time_cond_proj_dim") or 0),
    }
    if config.get("addition_time_embed_dim"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        sizes["text_embeds"] = (2, pooled)
    return (torch.ones(sizes[name]) for name in inputs_of(config))


def _files(model: Model, part: str) -> list[tuple[str, int, int]]:
    """Those that the part's weights are in: path, size, time of change."""
    other = model.configured.vae if part == "vae" else None
    if other is not None:
        files = [other] if other.is_file() else sorted(other.glob("*.safetensors"))
    else:
        files = [model.checkpoint] if model.checkpoint else sorted((model.folder / part).glob("*.safetensors"))
    return [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]
