"""Show what fewstep does to seedling's pictures, by darkroom's own engine: twenty steps, four with it, four without."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from . import lora_effect
from .make import REPORT
from .shortcuts import FEW, Painter

SHEET = REPORT.with_name("fewstep.png")
ROWS = ({}, {**FEW, "num_inference_steps": 4, "loras": ["fewstep"]}, {**FEW, "num_inference_steps": 4})
SHOWN = (
    *lora_effect.SHOWN,
    "a purple ring next to an orange diamond on a gray background",
    "a forest in winter",
    "two black hearts on a yellow background",
    "a city by day",
)
FIRST_SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, default=SHEET, help="where the sheet goes")
    options = parser.parse_args()
    side = 128 + lora_effect.GAP
    sheet = Image.new("RGB", (len(SHOWN) * side - lora_effect.GAP, len(ROWS) * side - lora_effect.GAP), "white")
    for row, fields in enumerate(ROWS):
        painter = Painter(fields, {})
        for column, prompt in enumerate(SHOWN):
            sheet.paste(painter.paint(prompt, FIRST_SEED + column), (column * side, row * side))
    sheet.save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
