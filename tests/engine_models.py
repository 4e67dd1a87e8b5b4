"""Tiny Stable Diffusion folders with random weights, made on the spot, and what tests of the engine share."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Ending, Event, Fallback, Picture, Step, Warned
from darkroom.job import NO_IMAGES, Images, Job

WORDS = ["red", "blue", "green", "circle", "square", "house", "on", "a", "the", "sky"]


def make_config(cache: Path, models: dict[str, Path], **settings: Any) -> Config:
    engine = {"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": cache / "cache", **settings}
    named = {name: {"path": path} for name, path in models.items()}
    return Config(models={"default": next(iter(models)), **named}, engine=engine)


def make_job(**fields: Any) -> Job:
    return Job(
        **{
            "id": "test",
            "prompt": "a red circle on the blue sky",
            "negative_prompt": "house",
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "seed": 7,
            "width": 64,
            "height": 64,
            "count": 1,
            "model": "sd",
            "sampler": "Euler",
            "schedule": "uniform",
            "clip_skip": 1,
            "long_prompt": "chunk",
            "on_oom": "degrade",
            "output_format": "png",
            "quality": 90,
            **fields,
        }
    )


def render(engine: Engine, job: Job, skip: set[int] | None = None, images: Images = NO_IMAGES) -> list[Event]:
    return list(engine.render(job, frozenset(skip or ()), lambda: False, images))


def kinds(events: list[Event]) -> list[type[Event]]:
    """What they are. When it is said that the job ends is the clock's to decide, and left out."""
    return [type(event) for event in events if not isinstance(event, Ending)]


def pictures(events: list[Event]) -> dict[int, bytes]:
    return {event.index: event.data for event in events if isinstance(event, Picture)}


def steps(events: list[Event]) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def fallbacks(events: list[Event]) -> list[Fallback]:
    return [event for event in events if isinstance(event, Fallback)]


def warned(events: list[Event]) -> list[Warned]:
    return [event for event in events if isinstance(event, Warned)]


def clip_config(tokenizer: Any, width: int, activation: str) -> Any:
    """Of a tiny text encoder in CLIP's kind."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_tiny(folder: Path, family: str = "SD 1", *, inpaints: bool = False) -> Path:
    """Write a pipeline folder as diffusers does: ``SD 1``, ``SD 2`` (velocity) or ``SDXL``, each true to its kind.

    One that ``inpaints`` has a UNet of nine channels.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text_config = partial(clip_config, tokenizer)
    xl = family == "SDXL"
    # CLIP's own text encoder, OpenCLIP's, and both of them
    text = text_config(24, "gelu") if family == "SD 2" else text_config(16, "quick_gelu")
    extra: dict[str, Any] = {"attention_head_dim": 2}
    if family != "SD 1":
        extra = {"attention_head_dim": [2, 4], "use_linear_projection": True}
    if xl:
        # 6 numbers of the size, embedded in 8 each, and the pooled embedding of 24
        extra |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
            "transformer_layers_per_block": [1, 2],
        }
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9 if inpaints else 4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim={"SD 1": 16, "SD 2": 24, "SDXL": 16 + 24}[family],
        norm_num_groups=8,
        **extra,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    parts = {
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if xl:
        CLIPTextModelWithProjection(text_config(24, "gelu")).save_pretrained(folder / "text_encoder_2")
        save_old_tokenizer(tokenizer, folder / "tokenizer_2")
        parts["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        parts["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        parts |= {"safety_checker": [None, None], "feature_extractor": [None, None]}  # type: ignore[dict-item]
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if family == "SD 2" else "epsilon",
        "skip_prk_steps": True,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    kind = f"StableDiffusion{'XL' * xl}{'Inpaint' * inpaints}Pipeline"
    index = {"_class_name": kind, "_diffusers_version": "0.42.1", **parts}
    if xl:
        index["force_zeros_for_empty_prompt"] = True
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_tokenizer() -> Any:
    """CLIP's byte-level BPE: every byte, and a merge for each way into a few words."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    characters = sorted(ByteLevel.alphabet())
    vocabulary = [*characters, *(character + "</w>" for character in characters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
            if parts[0] not in vocabulary:
                vocabulary.append(parts[0])
    begin, end = "<|startoftext|>", "<|endoftext|>"
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate([*vocabulary, begin, end])},
        merges=merges,
        unk_token=end,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        model_max_length=77,
    )


def save_old_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The two files of older models, and a pad token of its own, as SDXL's second tokenizer has it."""
    folder.mkdir()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
