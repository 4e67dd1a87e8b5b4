"""Model folders to loaded pipelines, a bounded number of them kept.

Safetensors only: a pickle can run code. Only from the disk, never from the hub, and no code that lies beside a model.
The parts are loaded one by one, not through ``DiffusionPipeline``, whose import alone takes seconds and which would
load a safety checker too.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from darkroom.catalog import Catalog, Model
from darkroom.config import Config
from darkroom.engine.device import TYPICAL, Workload, choose_dtype, free_memory, is_out_of_memory
from darkroom.errors import DarkroomError, ModelUnavailable, first_line

_FAMILIES = {"StableDiffusionPipeline": 1, "StableDiffusionXLPipeline": 2}
"""Pipeline class in model_index.json → number of text encoders."""

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass
class Pipeline:
    """A model in memory: its parts, and what must be known to use them."""

    name: str
    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    penultimate: bool
    """The UNet was trained on the text encoders' last layer but one (SDXL)."""
    zero_empty_negative: bool
    """No negative prompt means zeros, not the embedding of an empty text (SDXL)."""
    vae_upcast: bool
    """The VAE overflows in float16 (SDXL) and is used in float32."""

    @property
    def reduction(self) -> int:
        """Pixels of a picture to one position of its latents, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def native_side(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else min(size)) * self.reduction if size else 512

    def parts(self) -> tuple[Any, ...]:
        """Everything that has weights."""
        return (*self.text_encoders, self.unet, self.vae)


class Models:
    """The catalog's models, loaded when asked for; the least recently used is let go."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._catalog = Catalog(config.models)
        self._settings = config.engine
        self._cached = config.models.cached
        self._device = device
        self._loaded: OrderedDict[tuple[str, str], Pipeline] = OrderedDict()
        _quieten()  # imports them too, seconds before the first job rather than in it

    def get(self, name: str) -> tuple[Pipeline, float]:
        """The model, and the seconds it took to load it (0.0 where it was there). Raises ModelUnavailable."""
        model = self._catalog.get(name)
        if model is None:
            raise ModelUnavailable(f'There is no model "{name}"; there are: {", ".join(self._catalog.names())}')
        key = (name, _fingerprint(model.folder))
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key], 0.0
        while len(self._loaded) >= self._cached:
            self._loaded.popitem(last=False)
            free_memory(self._device)
        begin = time.monotonic()
        pipeline = self._load(model)
        self._loaded[key] = pipeline
        return pipeline, time.monotonic() - begin

    def clear(self) -> None:
        """Let go of all of them."""
        self._loaded.clear()
        free_memory(self._device)

    def _load(self, model: Model) -> Pipeline:
        index = model.read("model_index.json")
        encoders = _family(model, index)
        unet_config = model.read("unet/config.json")
        dtype = choose_dtype(self._settings, self._device, _workload(unet_config))
        try:
            return _load_parts(model, index, encoders, self._device, dtype)
        except DarkroomError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelUnavailable(
                f'The model "{model.name}" in {model.folder} cannot be loaded: {first_line(error)}',
                trace=traceback.format_exc(),
            ) from None


def _family(model: Model, index: dict[str, Any]) -> int:
    """How many text encoders it has. Raises ModelUnavailable for a family that is not known here."""
    kind = index.get("_class_name")
    if kind not in _FAMILIES:
        raise ModelUnavailable(
            f'The model "{model.name}" is a {kind}, which darkroom cannot run; it can run {" and ".join(_FAMILIES)}'
        )
    return _FAMILIES[kind]


def _load_parts(
    model: Model, index: dict[str, Any], encoders: int, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with warnings.catch_warnings():
        # transformers speaks of image processors wherever torchvision is missing; none is used here
        warnings.filterwarnings("ignore", message=".*(torchvision|[Ii]mage processor).*")
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        kinds: list[tuple[str, Callable[..., Any]]] = [("text_encoder", CLIPTextModel.from_pretrained)]
        if encoders == 2:
            kinds.append(("text_encoder_2", CLIPTextModelWithProjection.from_pretrained))
        text_encoders = tuple(_load_part(model, part, load, dtype) for part, load in kinds)
        tokenizers = tuple(
            _load_tokenizer(model, part.replace("text_encoder", "tokenizer"), CLIPTokenizer.from_pretrained)
            for part, _ in kinds
        )
    unet = _load_part(model, "unet", UNet2DConditionModel.from_pretrained, dtype)
    vae = _load_part(model, "vae", AutoencoderKL.from_pretrained, dtype)
    if unet.config.in_channels != vae.config.latent_channels:
        raise ModelUnavailable(
            f'The model "{model.name}" takes {unet.config.in_channels} channels where text-to-image has '
            f"{vae.config.latent_channels}: it is made for inpainting or another task, which darkroom does not do yet"
        )
    return Pipeline(
        name=model.name,
        tokenizers=tokenizers,
        text_encoders=text_encoders,
        unet=unet,
        vae=vae,
        scheduler_config=model.read("scheduler/scheduler_config.json"),
        device=device,
        dtype=dtype,
        penultimate=encoders == 2,
        zero_empty_negative=encoders == 2 and bool(index.get("force_zeros_for_empty_prompt", True)),
        vae_upcast=encoders == 2 and dtype == torch.float16 and bool(vae.config.force_upcast),
    )


def _load_part(model: Model, part: str, load: Callable[..., Any], dtype: torch.dtype) -> Any:
    """A part with weights, on the CPU for now; evaluation only."""
    model.read(f"{part}/config.json")
    folder = model.folder / part
    variant = _variant(model, folder, dtype)
    loaded, report = load(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        variant=variant,
        output_loading_info=True,
    )
    if report["missing_keys"]:  # the libraries would fill them with random numbers
        raise ModelUnavailable(
            f'The model "{model.name}" is damaged: the weights in {folder} lack {len(report["missing_keys"])} tensors '
            f"that its config.json asks for, among them {sorted(report['missing_keys'])[0]}"
        )
    return loaded.eval().requires_grad_(False)


def _variant(model: Model, folder: Path, dtype: torch.dtype) -> str | None:
    """``fp16`` where the files of half size are all there is, or all that is wanted.

    Raises ModelUnavailable for pickles.
    """
    names = [path.name for path in folder.iterdir()]
    weights = [name for name in names if ".safetensors" in name]
    if not weights:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        if pickles:
            raise ModelUnavailable(
                f'The model "{model.name}" has its weights as a pickle ({folder / pickles[0]}), which can run any code '
                "when it is read: darkroom takes safetensors only. Get the model as safetensors or convert it"
            )
        raise ModelUnavailable(f'The model "{model.name}" is incomplete: there is no safetensors file in {folder}')
    half = [name for name in weights if ".fp16." in name]
    full = [name for name in weights if ".fp16." not in name and "non_ema" not in name]
    return "fp16" if half and (not full or dtype == torch.float16) else None


def _load_tokenizer(model: Model, part: str, load: Callable[..., Any]) -> Any:
    folder = model.folder / part
    complete = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not complete:
        raise ModelUnavailable(
            f'The model "{model.name}" is incomplete: {folder} has neither tokenizer.json nor vocab.json and merges.txt'
        )
    return load(folder, local_files_only=True)


def _workload(unet_config: dict[str, Any]) -> Workload:
    """The second level of the UNet: its features, at half its native resolution."""
    widths, size = unet_config.get("block_out_channels"), unet_config.get("sample_size")
    if not isinstance(widths, list) or len(widths) < 2 or not isinstance(size, int):
        return TYPICAL
    return Workload(channels=int(widths[1]), side=max(size // 2, 4))


def _fingerprint(folder: Path) -> str:
    """Changes when a file of the model does, so that a model replaced on the disk is loaded anew."""
    files = sorted(path for pattern in ("*.json", "*/*") for path in folder.glob(pattern))
    return repr([(str(path), stat.st_mtime_ns, stat.st_size) for path in files if (stat := path.stat())])


def _quieten() -> None:
    """No progress bars and no advice from the libraries: what matters is raised."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
