"""The figures against their bars, as tables between two marks in ``docs/seedling.md``."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from . import dataset, unet, vae
from .evaluate import Figures
from .export import DEFAULTS
from .pace import best_device, load_checkpoint

BEGIN, END = "<!-- figures: written by make seedling -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Bar:
    """What a figure is of, and what it should reach: at least, or where ``most`` is true at most."""

    what: str
    bar: float | None = None
    most: bool = False
    unit: str = "%"

    def shown(self, figure: float) -> str:
        return f"{100 * figure:.1f} %" if self.unit == "%" else f"{figure:.2f} {self.unit}"

    def missed(self, figure: float) -> bool:
        return self.bar is not None and (figure > self.bar if self.most else figure < self.bar)


BARS = {
    "background": Bar("background colour (126 single objects)", 0.98),
    "color": Bar("object colour (the same)", 0.95),
    "shape": Bar("shape (the same)", 0.93),
    "all": Bar("all three (the same)"),
    "unseen": Bar("all three, colour and shape never seen together (66 of them)", 0.85),
    "pair": Bar("two objects, colours in the right order (60)", 0.90),
    "pair_and_shapes": Bar("… and both shapes right"),
    "pair_and_shapes_unseen": Bar("… where one combination was never seen (24 of them)"),
    "count": Bar("two, three or four of a kind (48)", 0.90),
    "count_and_shapes": Bar("… and every shape right"),
    "scene": Bar("scene (40)", 0.95),
    "time": Bar("time of day (40)", 0.98),
    "words": Bar("single words, dropped attributes, “a photo of” (36)"),
    "negative_color": Bar("a colour in the negative prompt goes, the shape stays (27)", 0.90),
    "negative_word": Bar("a shape or a time in the negative prompt goes, the rest stays (13)"),
    "at_192": Bar("192×192: all three, and one object only (25)", 0.80),
    "sizes": Bar("192×192 and 96×96, 104×136, 168×120, 200×200, 256×256: the same (50)"),
    "circle": Bar("how far the median of 20 large red circles is from a disc", 0.06, most=True),
    "seconds_per_picture": Bar("a picture of 128×128 on one core", 0.5, most=True, unit="s"),
}


def table(figures: Figures) -> str:
    """Figure and bar of everything, with what the same measuring says of right drawings."""
    lines = ["| what | seedling | bar | drawings | drawings through the VAE |", "| --- | --- | --- | --- | --- |"]
    for name, bar in BARS.items():
        if name not in figures:
            continue
        figure = bar.shown(figures[name]) + (" (missed)" if bar.missed(figures[name]) else "")
        limit = "" if bar.bar is None else f"{'≤' if bar.most else '≥'} {bar.shown(bar.bar)}"
        drawn, back = (
            bar.shown(figures[f"{of}_{name}"]) if f"{of}_{name}" in figures else "" for of in ("drawn", "vae")
        )
        lines.append(f"| {bar.what} | {figure} | {limit} | {drawn} | {back} |")
    return "\n".join(lines)


def settings(run: Path, averaged: bool = False) -> str:
    """How a run was made, from its checkpoints and the code's constants."""
    cpu = torch.device("cpu")
    painted, seen = load_checkpoint(run / unet.CHECKPOINT_NAME, cpu), load_checkpoint(run / vae.CHECKPOINT_NAME, cpu)
    assert painted is not None
    assert seen is not None
    autoencoder = f"{seen['steps']:,} steps in {seen['spent'] / 60:.0f} minutes" if "steps" in seen else "taken over"
    batch = unet.BATCH_CPU if best_device().type == "cpu" else unet.BATCH_GPU
    where = "GPU" if best_device().type == "cuda" else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    return "\n".join(
        (
            f"Made {datetime.datetime.now(datetime.UTC):%Y-%m-%d} on {where}; torch {torch.__version__}.",
            f"Pictures: {dataset.PICTURES:,}, {dataset.CAPTIONS_PER_PICTURE} prompts each. VAE: {autoencoder}.",
            f"UNet and text encoder: {painted['steps']:,} steps, {painted['samples']:,} samples of batch {batch}, "
            f"{painted['spent'] / 60:.0f} minutes; Muon {unet.MUON_RATE}, AdamW {unet.ADAM_RATE}, decay "
            f"{unet.WEIGHT_DECAY}, rate held for {unet.RATE_HOLD:.0%} of the time.",
            f"Shipped: {'the running average' if averaged else 'the last weights'}. Measured with "
            f"{DEFAULTS['num_inference_steps']} steps, guidance {DEFAULTS['guidance_scale']}, {DEFAULTS['sampler']}, "
            f"{DEFAULTS['schedule']}.",
        )
    )


def write(document: Path, figures: Figures, how: str) -> None:
    """Put the figures between the marks of a document; the rest of it is a person's."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{table(figures)}\n\n{how}\n\n{END}{after}", encoding="utf-8")
