"""What is measured once for a machine and a model: number format, way of attention, memory formats.

There is no GPU here: ``Card`` keeps time as one does that is told what to do and does it later.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.config import Config, EngineSettings
from darkroom.engine import choosing, loading
from darkroom.engine import pipeline as engine_pipeline
from darkroom.engine.choosing import Workload, choose_dtype, lays_channels_last, tiles_attention
from darkroom.engine.loading import open_model
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.engine.sampling.diffusion import decode, encode_picture
from darkroom.models.catalog import BUNDLED, Catalog
from engine_models import make_config, make_job, pictures, render
from engine_pictures import pixels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
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
    assert choose_dtype(settings(tmp_path), CUDA) is torch.float16


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


def vae_lies(settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> bool:
    return lays_channels_last(settings, device, "vae", dtype, Workload(64, 512))


def unet_lies(settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> bool:
    return lays_channels_last(settings, device, "unet", dtype, Workload(64, 32))


Ask = Callable[[EngineSettings, torch.device, torch.dtype], bool]
ASKED: dict[str, Ask] = {"tiled_gain": tiles_attention, "channels_last_gain": vae_lies}


@pytest.mark.parametrize(("gain", "chosen"), [("tiled_gain", "tiled"), ("channels_last_gain", "channels_last")])
def test_on_a_cpu_the_choice_is_made_for_bfloat16_only_and_remembered(
    gain: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def faster(*_: object) -> float:
        measured.append(2.0)
        return measured[-1]

    monkeypatch.setattr(choosing, gain, faster)
    ask, settings = ASKED[gain], EngineSettings(cache_dir=tmp_path)
    assert not ask(settings, CPU, torch.float32)
    assert not ask(settings, torch.device("mps"), torch.bfloat16)
    assert not unet_lies(settings, CPU, torch.bfloat16)
    assert not tiles_attention(settings, CUDA, torch.bfloat16)
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
    assert 0.05 < choosing.channels_last_gain(CPU, "vae", torch.bfloat16, Workload(16, 8)) < 20


# ---------------------------------------------------------------- on a GPU


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of cards, the first of which is the one at hand."""
    names = ["NVIDIA H200"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[0])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    return names


def test_unet_and_vae_are_measured_for_each_card_format_and_size_and_remembered(
    card: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Any, ...]] = []

    def gain(device: torch.device, part: str, dtype: torch.dtype, workload: Workload) -> float:
        measured.append((device, part, dtype, workload))
        return 1.2 if part == "unet" else 1.0

    monkeypatch.setattr(choosing, "channels_last_gain", gain)
    settings = EngineSettings(cache_dir=tmp_path)
    for _ in range(2):
        assert unet_lies(settings, CUDA, torch.float16)
        assert not vae_lies(settings, CUDA, torch.float16)
        assert not vae_lies(settings, CUDA, torch.float32)
    half, single = torch.float16, torch.float32
    vae, unet = Workload(64, 512), Workload(64, 32)
    assert measured == [(CUDA, "unet", half, unet), (CUDA, "vae", half, vae), (CUDA, "vae", single, vae)]
    card[0] = "NVIDIA GeForce RTX 3060"
    assert unet_lies(settings, CUDA, torch.float16)
    assert lays_channels_last(settings, CUDA, "unet", torch.float16, Workload(320, 32))
    assert len(measured) == 5


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        MemoryError(),
    ],
    ids=["memory", "a kernel", "the machine's memory"],
)
def test_where_the_measurement_fails_it_is_the_plain_way_until_the_next_time(
    failure: Exception, card: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> float:
        raise failure

    monkeypatch.setattr(choosing, "channels_last_gain", fails)
    settings = EngineSettings(cache_dir=tmp_path)
    assert not unet_lies(settings, CUDA, torch.float16)
    assert not (tmp_path / "dtype.json").exists()
    monkeypatch.setattr(choosing, "channels_last_gain", lambda *_: 2.0)
    assert unet_lies(settings, CUDA, torch.float16)


class Card:
    """What it is told takes no time; to have it done takes all of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[float] = []

    def tell(self, seconds: float) -> Callable[[], None]:
        return lambda: self.told.append(seconds)

    def clock(self) -> float:
        self.now += sum(self.told)
        self.told.clear()
        return self.now


def test_what_a_card_does_later_is_counted_where_it_was_told() -> None:
    card = Card()
    assert choosing.times_faster(card.tell(0.03), card.tell(0.01), card.clock) == pytest.approx(3)
    assert choosing.MEASURED_S < card.now < 2 * choosing.MEASURED_S
    slow = Card()
    assert choosing.times_faster(slow.tell(1), slow.tell(2), slow.clock) == pytest.approx(0.5)
    assert slow.now == 4 * 3, "a warm-up and three rounds of what takes long"


def test_a_card_s_clock_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    first, second = (choosing.clock_of(torch.device("cuda:1"))() for _ in range(2))
    assert first <= second
    assert waited == [torch.device("cuda:1")] * 2
    choosing.clock_of(CPU)()
    assert len(waited) == 2


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_layers_and_what_they_are_given_are_turned_for_a_card(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose tensors have no content."""
    weights, features = set(), set()

    def look(layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
            weights.add((layer.weight.is_contiguous(memory_format=torch.channels_last), layer.weight.dtype))
        if isinstance(layer, choosing._Level | torch.nn.Sequential) and given[0].ndim == 4:
            features.add((given[0].is_contiguous(memory_format=torch.channels_last), given[0].dtype))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    card = Card()

    def clock() -> float:
        card.told.append(1)
        return card.clock()

    try:
        gain = choosing.channels_last_gain(torch.device("meta"), part, torch.float16, Workload(96, 8), clock)
    finally:
        hook.remove()
    assert gain == 1
    assert weights == features == {(False, torch.float16), (True, torch.float16)}


TOLERATED = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""How far a UNet's prediction with weights laid out otherwise may be from its own, on average and as a part of it."""


@pytest.mark.parametrize("dtype", TOLERATED, ids=str)
def test_a_unet_whose_weights_are_turned_predicts_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    config = Config(engine={"device": "cpu", "cache_dir": tmp_path, "dtype": str(dtype).removeprefix("torch.")})
    model = Catalog(config.models).get("seedling")
    assert model is not None
    unet = open_model(model, config.engine, CPU).unet
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    texts = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator).to(dtype)

    def predicted() -> torch.Tensor:
        with torch.inference_mode():
            made: torch.Tensor = unet(latents, torch.tensor(500.0), encoder_hidden_states=texts, return_dict=False)[0]
        return made.float()

    plain = predicted()
    unet.to(memory_format=torch.channels_last)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (predicted() - plain).abs().mean() <= TOLERATED[dtype] * plain.abs().mean()


def test_parts_are_turned_as_they_come_to_the_device_and_make_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than half of a channel's smallest step, on average."""
    job = make_job(model="seedling", num_inference_steps=4, width=128, height=128)
    made = []
    for turns in (False, True):
        monkeypatch.setattr(loading, "lays_channels_last", lambda *_, turns=turns: turns)
        monkeypatch.setattr(engine_pipeline.Pipeline, "_is_here", lambda self, part: False)
        engine = Engine(make_config(tmp_path, {"seedling": BUNDLED}))
        (picture,) = pictures(render(engine, job)).values()
        made.append(pixels(picture).astype(float))
        pipeline = engine._models.get("seedling")
        for layer in (pipeline.unet.conv_in, pipeline.unet.conv_out, pipeline.vae.decoder.conv_in):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last) is turns
        engine.close()
    assert np.abs(made[0] - made[1]).mean() < 0.5


# ---------------------------------------------------------------- what a VAE is given


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
