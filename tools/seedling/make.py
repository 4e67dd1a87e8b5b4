"""Make seedling: draw, train, export, evaluate, report. Stop it at any time; the same command goes on from there."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from . import dataset, evaluate, report, sheet, tokenizer, unet, vae
from . import judge as judges
from .export import export

_REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = _REPOSITORY / "daemon" / "darkroom" / "seedling"
REPORT = _REPOSITORY / "docs" / "seedling.md"


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
    figures = evaluate.report(painter, judges.load_or_train(run / "judge.pt"))
    report.write(options.report, figures, report.settings(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=_REPOSITORY / "build" / "seedling", help="checkpoints, pictures")
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="where the pipeline goes")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the figures go, between two marks")
    parser.add_argument("--pictures", type=int, default=dataset.PICTURES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vae", type=Path, help="a pipeline folder whose autoencoder is taken, not trained")
    parser.add_argument("--vae-minutes", type=float, help="default: 21, on a GPU 3")
    parser.add_argument("--unet-minutes", type=float, help="default: 105, on a GPU 11")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads at most; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    make(options)


if __name__ == "__main__":
    main()
