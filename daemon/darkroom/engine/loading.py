"""A model of the catalog to a pipeline whose parts can be loaded, everything checked that can be checked beforehand.

Safetensors only: a pickle can run code. Only from the disk, never from the hub, and no code that lies beside a model.
The parts are loaded one by one, not through ``DiffusionPipeline``, whose import alone takes seconds and which would
load a safety checker too.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from darkroom.catalog import FAMILIES, Model, header_of
from darkroom.config import EngineSettings
from darkroom.engine.checkpoints import load_vae, part_loaders
from darkroom.engine.device import TYPICAL, Workload, choose_dtype, is_out_of_memory
from darkroom.engine.pipeline import TEXT_ENCODERS, Pipeline
from darkroom.errors import DarkroomError, ModelUnavailable, first_line
from darkroom.weights import channels_of

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")

Load = Callable[[], Any]


def open_model(model: Model, settings: EngineSettings, device: torch.device) -> Pipeline:
    """The pipeline, no part of it in memory yet. Raises ModelUnavailable."""
    family = model.family
    if family not in FAMILIES:
        raise ModelUnavailable(
            f'The model "{model.name}" is of the family {family}, which darkroom cannot run; it can run '
            f"{', '.join(FAMILIES)}"
        )
    index = model.read("model_index.json")
    xl = family == "SDXL"
    texts = TEXT_ENCODERS if xl else TEXT_ENCODERS[:1]
    configs = {part: model.read(f"{part}/config.json") for part in (*texts, "unet", "vae")}
    vae_config = configs["vae"]
    if model.configured.vae is not None and (model.configured.vae / "config.json").is_file():
        vae_config = Model(model.name, model.configured.vae, model.configured).read("config.json")
    if model.checkpoint is not None:
        configs["unet"]["in_channels"] = channels_of(header_of(model.name, model.checkpoint))
    _check_task(model, configs["unet"], vae_config)
    dtype = choose_dtype(settings, device, _workload(configs["unet"]))
    if model.checkpoint is not None:
        loaders = part_loaders(model, model.checkpoint, texts, dtype, configs["unet"]["in_channels"])
    else:
        loaders = _folder_loaders(model, texts, dtype)
    if model.configured.vae is not None:
        loaders["vae"] = _other_vae(model, model.configured.vae, dtype)
    return Pipeline(
        name=model.name,
        device=device,
        dtype=dtype,
        tokenizers=tuple(_load_tokenizer(model, part.replace("text_encoder", "tokenizer")) for part in texts),
        loaders={part: _explained(model, load) for part, load in loaders.items()},
        unet_config=configs["unet"],
        vae_config=vae_config,
        scheduler_config=model.read("scheduler/scheduler_config.json"),
        penultimate=xl,
        zero_empty_negative=xl and bool(index.get("force_zeros_for_empty_prompt", True)),
        vae_upcast=xl and dtype == torch.float16 and bool(vae_config.get("force_upcast", True)),
    )


def _explained(model: Model, load: Load) -> Load:
    """``load``, with whatever the libraries raise turned into one sentence; a want of memory stays what it is."""

    def explained() -> Any:
        try:
            return load()
        except DarkroomError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelUnavailable(
                f'The model "{model.name}" in {model.place} cannot be loaded: {first_line(error)}',
                trace=traceback.format_exc(),
            ) from None

    return explained


def _check_task(model: Model, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels not in (latents, 2 * latents + 1):  # the second is an inpainting model's: mask and surroundings too
        raise ModelUnavailable(
            f'The model "{model.name}" takes {channels} channels where its VAE has {latents}: it is made for a task '
            "that darkroom does not do, or its VAE is that of another family"
        )


def _folder_loaders(model: Model, texts: tuple[str, ...], dtype: torch.dtype) -> dict[str, Load]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with warnings.catch_warnings():
        # transformers speaks of image processors wherever torchvision is missing; none is used here
        warnings.filterwarnings("ignore", message=".*(torchvision|[Ii]mage processor).*")
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds: dict[str, Any] = dict(zip(texts, (CLIPTextModel, CLIPTextModelWithProjection), strict=False))
    kinds |= {"unet": UNet2DConditionModel, "vae": AutoencoderKL}

    def loader(part: str, kind: Any) -> Load:
        return lambda: _load_part(model, model.folder / part, kind.from_pretrained, dtype)

    return {part: loader(part, kind) for part, kind in kinds.items()}


def _other_vae(model: Model, place: Path, dtype: torch.dtype) -> Load:
    """The VAE that the config names instead of the model's own. Raises ModelUnavailable where it is not there."""
    from diffusers import AutoencoderKL

    if place.is_file() and place.suffix == ".safetensors":
        header_of(model.name, place)
        return lambda: load_vae(model, place, dtype)
    if (place / "config.json").is_file():
        return lambda: _load_part(model, place, AutoencoderKL.from_pretrained, dtype)
    raise ModelUnavailable(
        f'The model "{model.name}" is to use the VAE {place}, which is neither a safetensors file nor a folder with a '
        "config.json; mend vae in its section of config.toml"
    )


def _load_part(model: Model, folder: Path, load: Callable[..., Any], dtype: torch.dtype) -> Any:
    """A part with weights, on the CPU for now; evaluation only."""
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

    Raises ModelUnavailable for pickles, and for files that are not whole.
    """
    names = [path.name for path in folder.iterdir()]
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        if pickles:
            raise ModelUnavailable(
                f'The model "{model.name}" has its weights as a pickle ({folder / pickles[0]}), which can run any code '
                "when it is read: darkroom takes safetensors only. Get the model as safetensors or convert it"
            )
        raise ModelUnavailable(f'The model "{model.name}" is incomplete: there is no safetensors file in {folder}')
    half = [name for name in weights if ".fp16" in name]
    full = [name for name in weights if ".fp16" not in name and "non_ema" not in name]
    chosen, variant = (half, "fp16") if half and (not full or dtype == torch.float16) else (full or weights, None)
    for name in chosen:
        header_of(model.name, folder / name)
    return variant


def _load_tokenizer(model: Model, part: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(torchvision|[Ii]mage processor).*")
        from transformers import CLIPTokenizer

    folder = model.folder / part
    complete = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not complete:
        raise ModelUnavailable(
            f'The model "{model.name}" is incomplete: {folder} has neither tokenizer.json nor vocab.json and merges.txt'
        )
    return _explained(model, lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True))()


def _workload(unet_config: dict[str, Any]) -> Workload:
    """The second level of the UNet: its features, at half its native resolution."""
    widths, size = unet_config.get("block_out_channels"), unet_config.get("sample_size")
    if not isinstance(widths, list) or len(widths) < 2 or not isinstance(size, int):
        return TYPICAL
    return Workload(channels=int(widths[1]), side=max(size // 2, 4))
