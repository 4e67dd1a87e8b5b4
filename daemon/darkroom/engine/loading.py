"""A model of the catalog to a pipeline whose parts can be loaded, everything checked that can be checked beforehand.

Safetensors only: a pickle can run code. Only from the disk, never from the hub, and no code that lies beside a model.
The parts are loaded one by one, not through ``DiffusionPipeline``, whose import alone takes seconds and which would
load a safety checker too.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from darkroom.config import EngineSettings, Safety
from darkroom.engine.checkpoints import flow_part_loaders, load_vae, part_loaders
from darkroom.engine.choosing import TYPICAL, Part, Workload, choose_dtype, lays_channels_last, tiles_attention
from darkroom.engine.device import is_out_of_memory
from darkroom.engine.flow import FlowPipeline
from darkroom.engine.imports import unfilled_weights
from darkroom.engine.openvino.convert import set_up
from darkroom.engine.pipeline import TEXT_ENCODERS, Pipeline
from darkroom.engine.safety import FAKE, ClipChecker, FakeChecker
from darkroom.errors import DarkroomError, ModelUnavailable, first_line
from darkroom.models.catalog import Model, header_of
from darkroom.models.families import FAMILIES, Flow
from darkroom.models.weights import channels_of

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")

Load = Callable[[], Any]


def open_model(model: Model, settings: EngineSettings, device: torch.device, safety: Safety = "off") -> Pipeline:
    """The pipeline, no part of it in memory yet. Raises ModelUnavailable.

    ``safety`` is what happens to pictures that should not be seen, where the model's own section does not say.
    """
    safety = model.configured.safety or safety
    family = model.family
    if family not in FAMILIES:
        raise ModelUnavailable(
            f'The model "{model.name}" is of the family {family}, which darkroom cannot run; it can run '
            f"{', '.join(FAMILIES)}"
        )
    if model.flow is not None:
        return _open_flow(model, model.flow, settings, device, safety)
    index = model.read("model_index.json")
    xl = family == "SDXL"
    texts = TEXT_ENCODERS[:2] if xl else TEXT_ENCODERS[:1]
    configs = {part: model.read(f"{part}/config.json") for part in (*texts, "unet")}
    vae_config = _vae_config(model)
    if model.checkpoint is not None:
        configs["unet"]["in_channels"] = channels_of(header_of(model.name, model.checkpoint))
    _check_task(model, configs["unet"].get("in_channels", 4), vae_config)
    workload = _workload(configs["unet"])
    dtype = choose_dtype(settings, device, workload)

    def of_dtype(dtype: torch.dtype) -> dict[str, Load]:
        if model.checkpoint is not None:
            return part_loaders(model, model.checkpoint, texts, dtype, configs["unet"]["in_channels"])
        return _folder_loaders(model, texts, dtype)

    loaders = of_dtype(dtype)
    vae_upcast = xl and dtype == torch.float16 and bool(vae_config.get("force_upcast", True))
    vae_dtype = torch.float32 if vae_upcast else dtype
    if model.configured.vae is not None:
        loaders["vae"] = _other_vae(model, model.configured.vae, dtype)
    if model.configured.tiny_vae is not None:
        loaders["tiny_vae"] = _tiny_vae(model, model.configured.tiny_vae, vae_config, dtype)
    if safety != "off":
        loaders["safety_checker"] = _checker(model, dtype)
    if tiles_attention(settings, device, dtype, workload):
        loaders["unet"] = _tiled(loaders["unet"])
    openvino = None
    if settings.backend == "openvino":
        plain = of_dtype(torch.float32)
        if model.configured.vae is not None:
            plain["vae"] = _other_vae(model, model.configured.vae, torch.float32)
        unet, vae = (_explained(model, plain[part]) for part in ("unet", "vae"))
        openvino = set_up(model, settings, device, configs["unet"], unet, vae_config, vae)
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
        safety=safety,
        vae_upcast=vae_upcast,
        channels_last=_channels_last(
            settings, device, {"unet": (dtype, workload), "vae": (vae_dtype, _full(vae_config))}
        ),
        openvino=openvino,
    )


def _explained(model: Model, load: Load) -> Load:
    """``load``, with whatever the libraries raise turned into one sentence; a want of memory stays what it is."""

    def explained() -> Any:
        try:
            with unfilled_weights():
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


def _open_flow(
    model: Model, flow: Flow, settings: EngineSettings, device: torch.device, safety: Safety
) -> FlowPipeline:
    """The same for a family that follows a flow."""
    import diffusers

    index = model.read("model_index.json")
    flux = flow.name == "Flux"
    texts: tuple[str, ...] = TEXT_ENCODERS[:2] if flux else TEXT_ENCODERS
    if not flux and (index.get(texts[2]) or [None])[0] is None:
        texts = texts[:2]  # SD 3 can do without T5, where its index says so
    for part in texts:
        model.read(f"{part}/config.json")
    config, vae_config = model.read("transformer/config.json"), _vae_config(model)
    _check_task(model, config.get("in_channels", 0) // (4 if flux else 1), vae_config)
    dtype = choose_dtype(settings, device)
    if settings.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        dtype = torch.bfloat16  # what they were trained in: some run out of float16's range
    kinds = _flow_kinds(flux)
    loaders = _part_loaders(model, {part: kinds[part] for part in (*texts, "transformer", "vae")}, dtype)
    if model.checkpoint is not None:
        header = header_of(model.name, model.checkpoint)
        loaders |= flow_part_loaders(model, model.checkpoint, header, kinds["transformer"], dtype)
    if model.configured.vae is not None:
        loaders["vae"] = _other_vae(model, model.configured.vae, dtype)
    if safety != "off":
        loaders["safety_checker"] = _checker(model, dtype)
    t5 = texts[-1] if flux or len(texts) == len(TEXT_ENCODERS) else None
    return FlowPipeline(
        name=model.name,
        device=device,
        dtype=dtype,
        tokenizers=tuple(
            _load_tokenizer(model, part.replace("text_encoder", "tokenizer"), t5=part == t5) for part in texts
        ),
        loaders={part: _explained(model, load) for part, load in loaders.items()},
        unet_config=config,
        vae_config=vae_config,
        scheduler_config=model.read("scheduler/scheduler_config.json"),
        penultimate=not flux,
        zero_empty_negative=False,
        vae_upcast=False,
        channels_last=_channels_last(settings, device, {"vae": (dtype, _full(vae_config))}),
        safety=safety,
        flow=flow,
        kind=getattr(diffusers, flow.pipeline),
        openvino=None
        if settings.backend == "torch"
        else set_up(model, settings, device, {}, loaders["transformer"], vae_config, loaders["vae"]),
    )


def _flow_kinds(flux: bool) -> dict[str, Any]:
    """The class of each part."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel

    with _image_processors_unsaid():
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel
    if flux:
        return {
            "text_encoder": CLIPTextModel,
            "text_encoder_2": T5EncoderModel,
            "transformer": FluxTransformer2DModel,
            "vae": AutoencoderKL,
        }
    return {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
    }


def _vae_config(model: Model) -> dict[str, Any]:
    """Of the VAE that is used, the model's own or another."""
    if model.configured.vae is not None and (model.configured.vae / "config.json").is_file():
        return Model(model.name, model.configured.vae, model.configured).read("config.json")
    return model.read("vae/config.json")


def _channels_last(
    settings: EngineSettings, device: torch.device, parts: Mapping[Part, tuple[torch.dtype, Workload]]
) -> frozenset[str]:
    """Those of them that are to work in that memory format."""
    return frozenset(part for part, what in parts.items() if lays_channels_last(settings, device, part, *what))


def _check_task(model: Model, channels: int, vae: dict[str, Any]) -> None:
    latents = vae.get("latent_channels", 4)
    if channels not in (latents, 2 * latents + 1):  # the second is an inpainting model's: mask and surroundings too
        raise ModelUnavailable(
            f'The model "{model.name}" takes {channels} channels where its VAE has {latents}: it is made for a task '
            "that darkroom does not do, or its VAE is that of another family"
        )


def _folder_loaders(model: Model, texts: tuple[str, ...], dtype: torch.dtype) -> dict[str, Load]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with _image_processors_unsaid():
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds: dict[str, Any] = dict(zip(texts, (CLIPTextModel, CLIPTextModelWithProjection), strict=False))
    return _part_loaders(model, kinds | {"unet": UNet2DConditionModel, "vae": AutoencoderKL}, dtype)


def _part_loaders(model: Model, kinds: dict[str, Any], dtype: torch.dtype) -> dict[str, Load]:
    """A loader for each of these parts of the folder."""

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


def _tiny_vae(model: Model, folder: Path, vae_config: dict[str, Any], dtype: torch.dtype) -> Load:
    """Raises ModelUnavailable where it is none, or of other latents than the model's."""
    from diffusers import AutoencoderTiny

    mend = "mend tiny_vae in its section of config.toml"
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f'The model "{model.name}" has no tiny VAE in {folder}: {mend}')
    config = Model(model.name, folder, model.configured).read("config.json")
    if config.get("_class_name") != "AutoencoderTiny":
        raise ModelUnavailable(f'What {folder} holds is no AutoencoderTiny, for the model "{model.name}": {mend}')
    channels = config.get("latent_channels", 4), vae_config.get("latent_channels", 4)
    if channels[0] != channels[1] or len(config["decoder_block_out_channels"]) != len(vae_config["block_out_channels"]):
        raise ModelUnavailable(
            f'The tiny VAE in {folder} is for other latents than those of the model "{model.name}": {mend}'
        )
    return lambda: _load_part(model, folder, AutoencoderTiny.from_pretrained, dtype)


def _checker(model: Model, dtype: torch.dtype) -> Load:
    """The model's safety checker, or the one that its section names. Raises ModelUnavailable where there is none."""
    named = model.configured.safety_checker
    if named == FAKE:
        return FakeChecker
    folder = Path(named) if named else model.folder / "safety_checker"
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(
            f'The model "{model.name}" has no safety checker in {folder}: set safety_checker in its section of '
            'config.toml to a diffusers folder of one, or safety = "off"'
        )

    def load() -> ClipChecker:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        return ClipChecker(_load_part(model, folder, StableDiffusionSafetyChecker.from_pretrained, dtype))

    return load


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


def _tiled(load: Load) -> Load:
    """The UNet, its attention computed tile by tile."""

    def tiled() -> Any:
        from darkroom.engine import attention

        kind: Any = attention.TiledAttention  # whose base has no types
        unet = load()
        unet.set_attn_processor(kind())
        return unet

    return tiled


def _load_tokenizer(model: Model, part: str, *, t5: bool = False) -> Any:
    with _image_processors_unsaid():
        from transformers import CLIPTokenizer, T5Tokenizer

    folder = model.folder / part
    lacking = None
    if not (folder / "tokenizer.json").is_file():
        if t5:
            lacking = "no tokenizer.json"
        elif not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            lacking = "neither tokenizer.json nor vocab.json and merges.txt"
    if lacking is not None:
        raise ModelUnavailable(f'The model "{model.name}" is incomplete: {folder} has {lacking}')
    kind: Any = T5Tokenizer if t5 else CLIPTokenizer
    return _explained(model, lambda: kind.from_pretrained(folder, local_files_only=True))()


@contextmanager
def _image_processors_unsaid() -> Iterator[None]:
    """transformers speaks of image processors wherever torchvision is missing; none is used here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(torchvision|[Ii]mage processor).*")
        yield


def _workload(unet_config: dict[str, Any]) -> Workload:
    """The second level of the UNet: its features, at half its native resolution."""
    widths, size = unet_config.get("block_out_channels"), unet_config.get("sample_size")
    if not isinstance(widths, list) or len(widths) < 2 or not isinstance(size, int):
        return TYPICAL
    return Workload(channels=int(widths[1]), side=max(size // 2, 4))


def _full(vae_config: dict[str, Any]) -> Workload:
    """The VAE's first level, where a picture has its full size."""
    return Workload(channels=int(vae_config["block_out_channels"][0]), side=512)
