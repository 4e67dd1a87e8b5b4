"""A UNet's weights and activations in 8 bits, by nncf, which learns their ranges from a few of its pictures.

Linear layers and convolutions, but for those that cost pictures most for the little that they compute: the first and
the last, what the time goes through, the shortcuts, what ends an attention and a feed-forward, and the last residual
block.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from darkroom.engine.memory import host
from darkroom.engine.memory.fitting import gib
from darkroom.engine.openvino.convert import QUANTIZER
from darkroom.engine.openvino.served import ServedUnet, Unserved, attempt, core, library
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.prompt import encode
from darkroom.engine.sampling.diffusion import Denoiser, encode_picture, is_guided, noise, step
from darkroom.engine.sampling.samplers import make_scheduler, step_arguments
from darkroom.job import Job

_PROMPTS = (
    "a red apple left of a blue cup on a white table",
    "a portrait of an old woman, oil painting",
    "a city street at night in the rain, neon lights, photograph",
    "a green forest and mountains in the morning, fog",
)

_FIELDS = {"negative_prompt": "", "guidance_scale": 7.5, "clip_skip": 1, "long_prompt": "chunk"}

_STEPS = 6
"""Of each, from noise alone to hardly any."""

_ROOM = 3.7
"""Bytes that it takes, to those of the UNet's weights in float32: measured for SD 1.5, 11.6 GiB to 3.2."""

_FLOAT = ("conv_in", "conv_out", "time_emb", "add_embedding", "conv_shortcut", r"to_out\.0", r"ff\.net\.2")
"""Parts of the names of layers that stay as they are, and below those of kinds of operations."""

_FLOAT_KINDS = ("ScaledDotProductAttention",)


def quantize(pipeline: Pipeline, job: Job) -> None:
    """The UNet that OpenVINO runs, in 8 bits onto the disk; of ``job`` nothing counts. Raises Unserved."""
    openvino = pipeline.openvino
    assert openvino is not None and pipeline.served

    def make(given: Path, made: Path) -> None:
        looks = _looks(pipeline, job)
        pipeline.let_go("unet")
        openvino.save(_quantized(given, looks, openvino.config), made)

    adapters = pipeline.adapters
    pipeline.adapt(None)  # a LoRA leaves no trace
    try:
        _check_room(pipeline)
        attempt(lambda: openvino.add_quantized(make))
    finally:
        pipeline.let_go("unet")
        pipeline.adapt(adapters)


def _check_room(pipeline: Pipeline) -> None:
    """Raises Unserved where the memory is not there: it would take minutes to find that out, or the engine."""
    weights = attempt(lambda: sum(weight.numel() for weight in pipeline.unet.parameters()))
    needed, free = int(_ROOM * 4 * weights), host.free_bytes()
    if free is not None and free < needed:
        raise Unserved(f"to bring it there takes about {gib(needed)} of memory, and {gib(free)} are free")


@torch.inference_mode()
def _looks(pipeline: Pipeline, job: Job) -> list[list[Any]]:
    """What the UNet is shown in the course of a few pictures, half as large as it was trained on."""
    unet: ServedUnet = pipeline.unet
    seen: list[list[Any]] = []

    def looking(*arguments: Any, **named: Any) -> tuple[torch.Tensor]:
        seen.append(unet.inputs(*arguments, **named))
        return unet(*arguments, **named)

    side = pipeline.native_side // 2 // pipeline.reduction // 8 * 8 * pipeline.reduction or pipeline.native_side
    beside = _beside(pipeline, side)
    for seed, prompt in enumerate(_PROMPTS):
        this = job.model_copy(update=_FIELDS | {"prompt": prompt})
        conditioning = encode(pipeline, this, guided=is_guided(pipeline, this))
        scheduler = make_scheduler("DPM++ 2M", "karras", pipeline.scheduler_config, _STEPS)
        generators = [torch.Generator().manual_seed(seed)]
        latents = noise(pipeline, side, side, generators) * scheduler.init_noise_sigma
        denoiser = Denoiser(pipeline, looking, this, conditioning, (side, side), 1, beside)
        for timestep in scheduler.timesteps:
            latents = step(denoiser, scheduler, timestep, latents, step_arguments(scheduler, generators))
    return seen


def _beside(pipeline: Pipeline, side: int) -> torch.Tensor | None:
    """What a model for inpainting is shown besides: that the left half of a grey picture is to be painted."""
    if not pipeline.inpaints:
        return None
    around = encode_picture(pipeline, torch.zeros(1, 3, side, side), "whole")[0].mean
    mask = torch.zeros_like(around[:, :1])
    mask[..., : mask.shape[-1] // 2] = 1
    return torch.cat([mask, around], dim=1)


def quantizer() -> Any:
    """nncf, which does not tell its makers what it is used for either."""
    library()  # takes from both what they tell it with
    nncf = importlib.import_module(QUANTIZER)
    nncf.set_log_level(logging.ERROR)
    return nncf


def _quantized(given: Path, looks: list[list[Any]], config: Mapping[str, Any]) -> Any:
    nncf = quantizer()
    ranges = importlib.import_module("nncf.quantization.range_estimator")

    def widest(which: str) -> Any:
        return ranges.StatisticsCollectorParameters(
            statistics_type=ranges.StatisticsType[which], aggregator_type=ranges.AggregatorType[which]
        )

    with contextlib.redirect_stdout(io.StringIO()):  # bars
        return nncf.quantize(
            core().read_model(given),
            nncf.Dataset(looks),
            subset_size=len(looks),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(
                patterns=[rf".*\.{name}.*" for name in (*_FLOAT, _last_block(config))],
                types=list(_FLOAT_KINDS),
                validate=False,
            ),
            # neither smoothing nor the correction of biases was seen to help, and each takes as long again
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                activations_range_estimator_params=ranges.RangeEstimatorParameters(
                    min=widest("MIN"), max=widest("MAX")
                ),
            ),
        )


def _last_block(config: Mapping[str, Any]) -> str:
    layers = config.get("layers_per_block", 2)
    return rf"up_blocks\.{len(config['block_out_channels']) - 1}\.resnets\.{layers}\."
