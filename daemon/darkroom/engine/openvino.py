"""UNets and decoders through OpenVINO, on a CPU: converted once, kept on the disk, compiled for the shapes of jobs.

What is kept knows no sizes. It is compiled for one: small models anew for each shape, which makes them a quarter faster
than one for all, and several stay; large ones for each width and height, and one stays, since each has a copy of the
weights. Everything but the UNet and the VAE's decoder stays with torch.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from darkroom.catalog import Model
from darkroom.config import EngineSettings
from darkroom.engine.cache import cache_dir
from darkroom.engine.conversions import Conversions
from darkroom.errors import DarkroomError, first_line

PACKAGE = "openvino"
FILE = "unet.xml"
DECODER_FILE = "decoder.xml"

_LAYOUT = 1
"""Of what is kept: to be raised where the conversion changes, so that the old ones are made anew."""

_KEEP_BYTES = 512 << 20
"""What the weights of all shapes that are compiled may take together, but for those of the last."""

_MOST_SHAPES = 8

_TRACED_SIDE = 9
"""Latents a side of the example that is converted: odd, so that what is made for odd sides is in it."""

Shape = tuple[int, int, int, int]
"""Pictures in the batch, tokens, and latents along height and width."""


class Unserved(Exception):
    """OpenVINO could not do it. The message says why, in a line."""


class Served(ABC):
    """A network as OpenVINO runs it."""

    def __init__(self, file: Path, precision: str) -> None:
        library = _library()
        self._precision = precision
        self._core = library.Core()
        self._model = self._core.read_model(file)
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        itemsize = torch.empty((), dtype=_DTYPES[precision]).element_size()
        self._size = itemsize * sum(weight.numel() for weight in self.parameters())
        self._several = min(_MOST_SHAPES, _KEEP_BYTES // max(1, self._size))

    def compile(self, shape: Shape) -> bool:
        """Be ready for that shape, which else the first call would have to wait for. Whether it was not yet.

        Raises Unserved.
        """
        before = set(self._compiled)
        _attempt(lambda: self._request(shape))
        return self._compiled.keys() != before

    def parameters(self) -> Iterator[torch.Tensor]:
        """As many numbers as its weights have, in the number format it computes with; they take no memory."""
        for constant in self._model.get_ops():
            if constant.get_type_name() == "Constant":
                yield torch.zeros((), dtype=_DTYPES[self._precision]).expand(prod(constant.output(0).shape))

    def buffers(self) -> Iterator[torch.Tensor]:
        """None: a constant is a constant here."""
        return iter(())

    @property
    def held(self) -> int:
        """Bytes of the weights that are in memory: a copy for each shape that is compiled."""
        return self._size * len(self._compiled)

    def _request(self, shape: Shape) -> Any:
        key = shape if self._several > 1 else shape[2:]
        if key not in self._compiled:
            while len(self._compiled) >= max(1, self._several):
                self._compiled.popitem(last=False)
            model = self._model.clone()
            model.reshape(self._shapes(shape if self._several > 1 else (-1, -1, *shape[2:])))
            options = {
                "INFERENCE_PRECISION_HINT": self._precision,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # others compute here too
            }
            self._compiled[key] = self._core.compile_model(model, "CPU", options).create_infer_request()
        self._compiled.move_to_end(key)
        return self._compiled[key]

    @abstractmethod
    def _shapes(self, wanted: Shape) -> dict[int, list[int]]:
        """Of each input, -1 for what is left open."""


class ServedUnet(Served):
    """Called as diffusers' is."""

    def __init__(self, file: Path, config: Mapping[str, Any], precision: str) -> None:
        self.config = SimpleNamespace(**{"time_cond_proj_dim": None, **config})
        self._inputs = _inputs(config)
        super().__init__(file, precision)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """What the model predicts, float32. Raises Unserved."""
        given = {"sample": sample, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states}
        given |= dict(added_cond_kwargs or {}) | ({} if timestep_cond is None else {"timestep_cond": timestep_cond})
        arrays = [given[name].float().contiguous().numpy() for name in self._inputs]
        shape = (len(sample), encoder_hidden_states.shape[1], *sample.shape[2:])

        def infer() -> Any:
            return self._request(shape).infer(arrays, share_inputs=True)[0]

        return (torch.from_numpy(_attempt(infer)),)

    def _shapes(self, wanted: Shape) -> dict[int, list[int]]:
        batch, tokens, height, width = wanted
        found: dict[int, list[int]] = {}
        for number, name in enumerate(self._inputs):
            shape = self._model.input(number).partial_shape
            sides = [int(side.get_length()) if side.is_static else -1 for side in shape]
            if name == "sample":
                sides = [batch, sides[1], height, width]
            elif name == "encoder_hidden_states":
                sides = [batch, tokens, sides[2]]
            elif name != "timestep":
                sides = [batch, sides[1]]
            found[number] = sides
        return found


class ServedDecoder(Served):
    """The VAE's half that makes pixels of latents."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """As the VAE's, float32, of whole pictures. Raises Unserved."""
        array = latents.float().contiguous().numpy()

        def infer() -> Any:
            return self._request((len(latents), 0, *latents.shape[2:])).infer([array], share_inputs=True)[0]

        return torch.from_numpy(_attempt(infer))

    def _shapes(self, wanted: Shape) -> dict[int, list[int]]:
        batch, _, height, width = wanted
        return {0: [batch, self._model.input(0).partial_shape[1].get_length(), height, width]}


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
    conversions: Conversions
    refused: str | None = None

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
        return self.conversions.has(self.key) and self.conversions.has(self.decoder_key)

    def open(self) -> ServedUnet:
        """From the disk, converted if it is not there. Raises Unserved."""

        def read() -> ServedUnet:
            return ServedUnet(self._folder(self.key, self._convert) / FILE, self.config, self.precision)

        served: ServedUnet = _attempt(read)
        return served

    def open_decoder(self) -> ServedDecoder:
        """The same of the VAE's."""

        def read() -> ServedDecoder:
            return ServedDecoder(self._folder(self.decoder_key, self._convert_decoder) / DECODER_FILE, self.precision)

        served: ServedDecoder = _attempt(read)
        return served

    def describe(self) -> str:
        """What is added to the device's description."""
        return f"openvino {str(_DTYPES[self.precision]).removeprefix('torch.')}"

    @staticmethod
    def version() -> str:
        """Of the package. Raises PackageNotFoundError."""
        return importlib.metadata.version(PACKAGE)

    def _folder(self, key: str, convert: Callable[[Path], None]) -> Path:
        return self.conversions.find(key) or self.conversions.add(key, convert)

    def _convert(self, folder: Path) -> None:
        self._save(_Traced(self.load(), _inputs(self.config)), tuple(_example(self.config)), folder / FILE)

    def _convert_decoder(self, folder: Path) -> None:
        channels = self.vae_config.get("latent_channels", 4)
        example = torch.ones(1, channels, _TRACED_SIDE, _TRACED_SIDE)
        self._save(_TracedDecoder(self.load_vae()), (example,), folder / DECODER_FILE)

    def _save(self, traced: torch.nn.Module, example: tuple[torch.Tensor, ...], file: Path) -> None:
        library = _library()
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what the tracer takes for constant, which is so here
            model = library.convert_model(traced, example_input=example)
        # weights of half size where half of their digits is all that is computed with
        library.save_model(model, file, compress_to_fp16=self.precision != "f32")


class _Traced(torch.nn.Module):
    """The UNet with its inputs one after the other, in the order of their names."""

    def __init__(self, unet: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.unet = unet
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self._names, inputs, strict=True))
        sample, timestep, texts = (given.pop(name) for name in _ALWAYS)
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


_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_ALWAYS = ("sample", "timestep", "encoder_hidden_states")


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
    made_by = [precision, torch.__version__, "" if refused else OpenVino.version()]
    key = _digest([_LAYOUT, _files(model, "unet"), config, *made_by])
    decoder_key = _digest(["decoder", _LAYOUT, _files(model, "vae"), vae_config, *made_by])
    conversions = Conversions(cache_dir(settings) / PACKAGE)
    return OpenVino(load, load_vae, config, vae_config, precision, key, decoder_key, conversions, refused)


def is_installed() -> bool:
    """Whether the package is there. It is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def _refusal(model: Model, settings: EngineSettings, device: torch.device) -> str | None:
    if not is_installed():
        return "it is not installed: pip install 'darkroom-daemon[openvino]'"
    if device.type != "cpu":
        return f"it is used on a CPU only, and the device is {device.type}"
    if model.flow is not None:
        return f"it is used for Stable Diffusion 1, 2 and XL only, and this is {model.flow.name}"
    return 'it is not used with [engine] dtype = "float16"' if settings.dtype == "float16" else None


def _precision(settings: EngineSettings) -> str:
    """bfloat16 where the processor multiplies in it and nothing else is wanted; OpenVINO gains by it in all models."""
    if settings.dtype == "float32":
        return "f32"
    return "bf16" if "BF16" in _library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _library() -> Any:
    """OpenVINO, without the module by which it tells its makers what it is used for."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to have none
    return importlib.import_module(PACKAGE)


def _inputs(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a UNet is given, by the names of its arguments."""
    names = list(_ALWAYS)
    if config.get("addition_embed_type") == "text_time":
        names += ["text_embeds", "time_ids"]
    if config.get("time_cond_proj_dim") is not None:
        names.append("timestep_cond")
    return tuple(names)


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
    return (torch.ones(sizes[name]) for name in _inputs(config))


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


def _attempt(work: Callable[[], Any]) -> Any:
    """Raises Unserved for what others raise in it, and keeps nothing of that in memory."""
    try:
        return work()
    except DarkroomError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        because = f"{type(error).__name__}: {lines[-1] if lines else '?'}"  # OpenVINO's own come with a trail before
    raise Unserved(because)  # here the exception is gone, and so is what its traceback held
