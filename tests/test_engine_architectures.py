"""The architectures of ``darkroom bench engine --arch`` are those of the real models, weight by weight counted."""

from __future__ import annotations

import pytest
import torch

from darkroom.engine.architectures import parts

WEIGHTS = {
    "sd15": {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863},
    "sd21": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863},
    "sdxl": {
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
        "vae": 83_653_863,
    },
}


@pytest.mark.parametrize("architecture", WEIGHTS)
def test_each_part_has_as_many_weights_as_the_real_one(architecture: str) -> None:
    with torch.device("meta"):
        counted = {
            name: sum(weight.numel() for weight in make().parameters()) for name, make in parts(architecture).items()
        }
    assert counted == WEIGHTS[architecture]
