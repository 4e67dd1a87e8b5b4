"""What diffusers' UNet is called with, by the names of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

ALWAYS = ("sample", "timestep", "encoder_hidden_states")


def inputs_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a UNet is given, by the names of its arguments."""
    names = list(ALWAYS)
    if config.get("addition_embed_type") == "text_time":
        names += ["text_embeds", "time_ids"]
    if config.get("time_cond_proj_dim") is not None:
        names.append("timestep_cond")
    return tuple(names)


def by_name(
    sample: torch.Tensor,
    *,
    encoder_hidden_states: torch.Tensor,
    timestep_cond: torch.Tensor | None = None,
    added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
    return_dict: bool = False,
) -> dict[str, torch.Tensor]:
    """What diffusers' UNet is called with besides the time, by these names."""
    given = {"sample": sample, "encoder_hidden_states": encoder_hidden_states, **(added_cond_kwargs or {})}
    return given if timestep_cond is None else given | {"timestep_cond": timestep_cond}
