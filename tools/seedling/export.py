"""Checkpoints -> a diffusers pipeline folder in fp16, put in place file by file, each at once."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTokenizer

from .architecture import new_scheduler, new_vae
from .pace import load_checkpoint
from .unet import CHECKPOINT_NAME as UNET_CHECKPOINT
from .unet import Networks
from .vae import CHECKPOINT_NAME as VAE_CHECKPOINT
from .vae import initialize

LARGEST = 16 * 1000 * 1000
DEFAULTS = {
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "sampler": "DPM++ 2M",
    "schedule": "sgm_uniform",
}


def build(run: Path, averaged: bool = False) -> StableDiffusionPipeline:
    """The pipeline of a run, from whatever is trained so far; untrained where there is no checkpoint.

    ``averaged`` takes the running average of the weights: better in the middle of a training. After a short one,
    whose rate has gone down to nothing, the last weights are better: the average still remembers worse ones.
    """
    torch.manual_seed(3)
    cpu = torch.device("cpu")
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    networks, vae = Networks(tokenizer), new_vae()
    networks.unet.set_attn_processor(AttnProcessor2_0())
    networks.text_encoder.set_attn_implementation("sdpa")
    initialize(vae)
    if (state := load_checkpoint(run / UNET_CHECKPOINT, cpu)) is not None:
        networks.load_state_dict(state["average" if averaged else "networks"])
    if (state := load_checkpoint(run / VAE_CHECKPOINT, cpu)) is not None:
        vae.load_state_dict(state["vae"])
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=networks.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=networks.unet.eval(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(run: Path, folder: Path, averaged: bool = False) -> int:
    """Write the run's pipeline to ``folder``; gives its size in bytes. Readers never see half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run) as made:
        build(run, averaged).to(dtype=torch.float16).save_pretrained(made)
        (Path(made) / "darkroom.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
        new = sorted(path.relative_to(made) for path in Path(made).rglob("*") if path.is_file())
        size = sum((Path(made) / path).stat().st_size for path in new)
        if size > LARGEST:
            raise SystemExit(f"the pipeline has {size} bytes; at most {LARGEST} may be shipped")
        for path in new:
            _put(Path(made) / path, folder / path)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder) not in new:
            path.unlink()
    return size


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, hidden)
    hidden.chmod(0o644)
    os.replace(hidden, target)  # noqa: PTH105 - the point is the atomic replace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--averaged", action="store_true", help="the running average, not the last weights")
    options = parser.parse_args()
    print(f"{export(options.run, options.folder, options.averaged)} bytes in {options.folder}")


if __name__ == "__main__":
    main()
