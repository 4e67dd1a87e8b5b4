"""Tiny SD 3 and Flux folders with random weights, made on the spot, each true to its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine_models import WORDS, clip_config, make_tokenizer

T5_WIDTH = 48


def save_tiny_flow(folder: Path, family: str = "SD 3", *, t5: bool = True, guidance_embeds: bool = True) -> Path:
    """Write a pipeline folder as diffusers does: ``SD 3``, with or without T5, or ``Flux``, dev or schnell."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(0)
    flux = family == "Flux"
    clip, sentences = make_tokenizer(), make_t5_tokenizer()

    t5_config = T5Config(
        vocab_size=len(sentences),
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.3611 if flux else 1.5305,
        shift_factor=0.1159 if flux else 0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    parts: dict[str, Any] = {"vae": vae, "tokenizer": clip}
    if flux:
        parts |= {
            "text_encoder": CLIPTextModel(clip_config(clip, 16, "quick_gelu")),
            "text_encoder_2": T5EncoderModel(t5_config),
            "tokenizer_2": sentences,
            "transformer": FluxTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=16,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 4, 8),
            ),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        }
    else:
        parts |= {
            "text_encoder": CLIPTextModelWithProjection(clip_config(clip, 16, "quick_gelu")),
            "text_encoder_2": CLIPTextModelWithProjection(clip_config(clip, 24, "gelu")),
            "tokenizer_2": clip,
            "transformer": SD3Transformer2DModel(
                sample_size=8,
                in_channels=16,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=16,
                pooled_projection_dim=16 + 24,
                out_channels=16,
                pos_embed_max_size=16,
            ),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }
        if t5:
            parts |= {"text_encoder_3": T5EncoderModel(t5_config), "tokenizer_3": sentences}
    index: dict[str, Any] = {
        name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()
    }
    if not flux and not t5:
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    kind = "FluxPipeline" if flux else "StableDiffusion3Pipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1", **index}))
    return folder


def make_t5_tokenizer() -> Any:
    """T5's unigrams: a few words, and every letter that they are made of."""
    from transformers import T5TokenizerFast

    letters = sorted({letter for word in WORDS for letter in word} | set("().,:0123456789"))
    pieces = [("▁" + word, -2.0) for word in WORDS] + [(letter, -5.0) for letter in ["▁", *letters]]
    return T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *pieces], extra_ids=0)
