"""Make seedling: draw, train, export, evaluate. Stop it at any time; the same command goes on from there."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from . import dataset, evaluate, sheet, tokenizer, unet, vae
from . import judge as judges
from .export import export

_REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = _REPOSITORY / "daemon" / "darkroom" / "seedling"


def make(options: argparse.Namespace) -> None:
    run: Path = options.run
    pictures = run / "pictures"
    dataset.draw_all(pictures, options.pictures, options.seed, os.cpu_count() or 1)
    if not (run / "tokenizer" / "tokenizer.json").exists():
        learned: CLIPTokenizer = tokenizer.train(dataset.every_caption(pictures))
        learned.save_pretrained(run / "tokenizer")
    if options.vae and not (run / vae.CHECKPOINT_NAME).exists():
        vae.adopt(options.vae, run)
    vae.train(pictures, run, options.vae_minutes)
    unet.train(pictures, run, options.unet_minutes)
    size = export(run, options.folder)
    print(f"{size} bytes in {options.folder}", flush=True)
    painter = evaluate.open_painter(options.folder)
    sheet.sheet(painter).save(run / "sheet.png")
    judge = judges.load_or_train(run / "judge.pt")
    print("judge, on drawings it has not seen:", judges.accuracy(judge), flush=True)
    figures: evaluate.Figures = {}
    for some in evaluate.evaluate(painter, judge):
        figures |= some
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=_REPOSITORY / "build" / "seedling", help="checkpoints, pictures")
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="where the pipeline goes")
    parser.add_argument("--pictures", type=int, default=dataset.PICTURES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vae", type=Path, help="a pipeline folder whose autoencoder is taken, not trained")
    parser.add_argument("--vae-minutes", type=float, default=21)
    parser.add_argument("--unet-minutes", type=float, default=105)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads at most; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    make(options)


if __name__ == "__main__":
    main()
