"""A checkpoint, one file with all parts in the layout of CompVis and Stability, as parts in the layout of diffusers.

diffusers does the conversion; the configuration comes from a folder of the same family, since its own way is to ask the
hub for one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from darkroom.errors import ModelUnavailable
from darkroom.models.catalog import Model
from darkroom.models.weights import Header


def part_loaders(
    model: Model, checkpoint: Path, texts: tuple[str, ...], dtype: torch.dtype, channels: int
) -> dict[str, Callable[[], Any]]:
    """A loader for each part. The file is mapped into memory anew for each, and only the part's tensors are read.

    The UNet takes so many ``channels``, whatever the base's does.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    def convert(kind: Any, part: str, **changes: int) -> Any:
        return _converted(model, checkpoint, part, kind, dtype, **changes)

    def text_encoder(part: str) -> Any:
        from diffusers.loaders import single_file_utils

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(torchvision|[Ii]mage processor).*")
            from transformers import CLIPTextModel, CLIPTextModelWithProjection
        read: Any = single_file_utils.load_single_file_checkpoint
        convert_text: Any = single_file_utils.create_diffusers_clip_model_from_ldm
        kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        loaded = convert_text(
            kind,
            read(str(checkpoint)),
            subfolder=part,
            config=str(model.folder),
            torch_dtype=dtype,
            local_files_only=True,
        )
        return _whole(model, checkpoint, part, loaded)

    loaders: dict[str, Callable[[], Any]] = {part: lambda part=part: text_encoder(part) for part in texts}  # type: ignore[misc]
    return loaders | {
        "unet": lambda: convert(UNet2DConditionModel, "unet", in_channels=channels),
        "vae": lambda: convert(AutoencoderKL, "vae"),
    }


def flow_part_loaders(
    model: Model, checkpoint: Path, header: Header, transformer: Any, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """The same for SD 3 and Flux: of a file the transformer, and the VAE if it is there; the rest is the base's."""
    from diffusers import AutoencoderKL

    loaders = {"transformer": lambda: _converted(model, checkpoint, "transformer", transformer, dtype)}
    if any(name.startswith(("first_stage_model.", "vae.")) for name in header.shapes):
        loaders["vae"] = lambda: _converted(model, checkpoint, "vae", AutoencoderKL, dtype)
    return loaders


def load_vae(model: Model, file: Path, dtype: torch.dtype) -> Any:
    """A VAE that is one file, in either layout, with the configuration of the model's own."""
    from diffusers import AutoencoderKL

    return _converted(model, file, "vae", AutoencoderKL, dtype)


def _converted(model: Model, file: Path, part: str, kind: Any, dtype: torch.dtype, **changes: int) -> Any:
    try:
        loaded = kind.from_single_file(
            str(file), config=str(model.folder), subfolder=part, dtype=dtype, local_files_only=True, **changes
        )
    except NotImplementedError as error:  # it moves what it could not fill
        if "meta tensor" not in str(error):
            raise
        raise ModelUnavailable(_LACKS.format(model.name, file, "some", part)) from None
    return _whole(model, file, part, loaded)


_LACKS = 'The model "{}" is damaged, or its base is of another kind: {} lacks {} tensors of the {}'


def _whole(model: Model, file: Path, part: str, loaded: Any) -> Any:
    """``loaded``, for evaluation only. Raises ModelUnavailable where weights are missing."""
    missing = [name for name, weight in loaded.named_parameters() if weight.is_meta]
    if missing:
        raise ModelUnavailable(_LACKS.format(model.name, file, len(missing), part))
    return loaded.eval().requires_grad_(False)
