"""What is measured once for a machine and a model: number format, way of attention, memory format of the VAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.catalog import Catalog
from darkroom.config import Config, EngineSettings
from darkroom.engine import choosing
from darkroom.engine.choosing import Workload, choose_dtype, lays_channels_last, tiles_attention
from darkroom.engine.diffusion import decode, encode_picture
from darkroom.engine.loading import open_model
from darkroom.engine.pipeline import Pipeline

CPU = torch.device("cpu")
SMALL = Workload(channels=8, side=4)


def settings(folder: Path, **fields: Any) -> EngineSettings:
    return EngineSettings(cache_dir=folder / "cache", **fields)


def remembered(folder: Path) -> dict[str, str]:
    content: dict[str, str] = json.loads((folder / "cache/dtype.json").read_text())
    return content


def test_the_dtype_that_is_configured_is_taken_unmeasured(tmp_path: Path) -> None:
    assert choose_dtype(settings(tmp_path, dtype="bfloat16"), CPU) is torch.bfloat16
    assert not (tmp_path / "cache").exists()


def test_a_gpu_gets_float16(tmp_path: Path) -> None:
    assert choose_dtype(settings(tmp_path), torch.device("cuda")) is torch.float16


def test_the_choice_for_a_cpu_is_measured_once_and_kept(tmp_path: Path) -> None:
    first = choose_dtype(settings(tmp_path), CPU, SMALL)
    (key, chosen) = next(iter(remembered(tmp_path).items()))
    assert getattr(torch, chosen) is first
    other = "float32" if chosen == "bfloat16" else "bfloat16"
    (tmp_path / "cache/dtype.json").write_text(json.dumps({key: other}))
    assert choose_dtype(settings(tmp_path), CPU, SMALL) is getattr(torch, other)


def test_models_of_another_size_are_measured_by_themselves(tmp_path: Path) -> None:
    choose_dtype(settings(tmp_path), CPU, SMALL)
    choose_dtype(settings(tmp_path), CPU, Workload(channels=16, side=4))
    assert len(remembered(tmp_path)) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"x": 1}'])
def test_a_damaged_memory_is_measured_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/dtype.json").write_bytes(damage)
    choose_dtype(settings(tmp_path), CPU, SMALL)
    assert set(remembered(tmp_path).values()) <= {"float32", "bfloat16", 1}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["dtype.json"]


def test_what_cannot_be_remembered_is_not_chosen(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert choose_dtype(settings(tmp_path), CPU, Workload(channels=640, side=16)) is torch.float32


ASKED: dict[str, Callable[[EngineSettings, torch.device, torch.dtype], bool]] = {
    "tiled_gain": tiles_attention,
    "channels_last_gain": lambda *of: lays_channels_last(*of, 64),
}


@pytest.mark.parametrize(("gain", "chosen"), [("tiled_gain", "tiled"), ("channels_last_gain", "channels_last")])
def test_the_choice_is_made_for_bfloat16_on_a_cpu_only_and_remembered(
    gain: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def faster(*_: object) -> float:
        measured.append(2.0)
        return measured[-1]

    monkeypatch.setattr(choosing, gain, faster)
    ask, settings = ASKED[gain], EngineSettings(cache_dir=tmp_path)
    assert not ask(settings, CPU, torch.float32)
    assert not ask(settings, torch.device("cuda"), torch.bfloat16)
    assert not measured
    assert ask(settings, CPU, torch.bfloat16)
    assert ask(settings, CPU, torch.bfloat16)
    assert len(measured) == 1
    assert list(json.loads((tmp_path / "dtype.json").read_text()).values()) == [chosen]


def test_what_is_not_faster_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for gain, ask in ASKED.items():
        monkeypatch.setattr(choosing, gain, lambda *_: 1.0)
        assert not ask(EngineSettings(cache_dir=tmp_path), CPU, torch.bfloat16)
    assert sorted(json.loads((tmp_path / "dtype.json").read_text()).values()) == ["contiguous", "fused"]


def test_the_measurements_tell_how_many_times_faster() -> None:
    assert 0.05 < choosing.tiled_gain(torch.bfloat16, 64, 8) < 20
    assert 0.05 < choosing.channels_last_gain(torch.bfloat16, Workload(16, 8)) < 20


def test_the_vae_sees_the_chosen_memory_format_and_makes_the_same_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(gain: float) -> tuple[Pipeline, list[bool]]:
        monkeypatch.setattr(choosing, "channels_last_gain", lambda *_: gain)
        config = Config(engine={"device": "cpu", "dtype": "bfloat16", "cache_dir": tmp_path / str(gain)})
        model = Catalog(config.models).get("seedling")
        assert model is not None
        pipeline, turned = open_model(model, config.engine, CPU), []

        def look(layer: Any, inputs: tuple[torch.Tensor]) -> None:
            turned.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

        for half in (pipeline.vae.encoder, pipeline.vae.decoder):
            half.conv_in.register_forward_pre_hook(look)
            half.conv_out.register_forward_pre_hook(look)
        return pipeline, turned

    generator = torch.Generator().manual_seed(5)
    latents, picture = torch.randn(2, 4, 12, 16, generator=generator), torch.rand(1, 3, 96, 128, generator=generator)
    made = []
    for gain in (1.0, 2.0):
        pipeline, turned = opened(gain)
        pixels, _ = decode(pipeline, latents, "whole", may_be_black=False)
        posterior, _ = encode_picture(pipeline, picture * 2 - 1, "whole")
        assert turned == 4 * [gain == 2.0]
        made.append((pixels.numpy().astype(int), posterior.mean.numpy()))
    (plain, mean), (other, other_mean) = made
    assert np.abs(plain - other).mean() < 1
    assert np.abs(mean - other_mean).mean() < 0.02 * np.abs(mean).mean() + 0.01
