"""The memory format on a real card: measured in a moment, remembered, and the same pictures either way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.config import EngineSettings
from darkroom.engine import choosing, loading
from darkroom.engine.choosing import Part, Workload, channels_last_gain, lays_channels_last
from darkroom.engine.render import Engine
from darkroom.models.catalog import BUNDLED
from engine_models import fallbacks, make_config, make_job, pictures, render, warned
from engine_pictures import pixels
from test_engine_render import with_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
LEVELS: dict[Part, Workload] = {"unet": Workload(640, 32), "vae": Workload(128, 512)}
"""Of SD 1.5 at 512 × 512."""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_both_ways_are_measured_and_nothing_stays_behind(part: Part, dtype: torch.dtype) -> None:
    gain = channels_last_gain(CUDA, part, dtype, LEVELS[part])
    print(f"{part} in {dtype}: {gain:.2f}")
    before = torch.cuda.memory_allocated()  # what the libraries keep for themselves is in it now
    again = channels_last_gain(CUDA, part, dtype, LEVELS[part])
    assert 0.05 < gain < 20 and 0.05 < again < 20
    assert torch.cuda.memory_allocated() <= before


def test_the_choice_is_remembered_for_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(cache_dir=tmp_path)
    chosen = lays_channels_last(settings, CUDA, "unet", torch.float16, LEVELS["unet"])
    monkeypatch.setattr(choosing, "channels_last_gain", lambda *_: pytest.fail("measured again"))
    assert lays_channels_last(settings, CUDA, "unet", torch.float16, LEVELS["unet"]) is chosen


def test_on_a_card_that_is_full_it_is_the_plain_way(tmp_path: Path) -> None:
    settings = EngineSettings(cache_dir=tmp_path)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    try:
        assert not lays_channels_last(settings, CUDA, "vae", torch.float16, Workload(128, 1024))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["float16", "float32"])
def engines(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engine, Engine]]:
    """One whose parts are turned, with CUDA graphs, and a plain one."""
    made = []
    for turned in (True, False):
        monkeypatch.setattr(loading, "lays_channels_last", lambda *_, turned=turned: turned)
        config = make_config(tmp_path, {"seedling": BUNDLED}, device="cuda", dtype=request.param, cuda_graphs=turned)
        made.append(Engine(config))
        render(made[-1], job())
        unet = made[-1]._models.get("seedling").unet
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) is turned
    yield made[0], made[1]
    for engine in made:
        engine.close()


def job(**fields: Any) -> Any:
    return make_job(model="seedling", **{"width": 128, "height": 128, "num_inference_steps": 12, **fields})


def near(one: dict[int, bytes], other: dict[int, bytes]) -> None:
    assert one.keys() == other.keys()
    for index, data in other.items():
        assert np.abs(pixels(one[index]) - pixels(data)).mean() < 2


def test_turned_parts_make_the_same_pictures(engines: tuple[Engine, Engine]) -> None:
    turned, plain = engines
    for fields in ({}, {"count": 3}, {"width": 192}, {"prompt": "a red heart <lora:blueprint:1>"}):
        events = render(turned, job(**fields))
        assert warned(events) == [] and fallbacks(events) == []
        near(pictures(events), pictures(render(plain, job(**fields))))


@pytest.mark.parametrize("weights", ["parts", "layers"])
def test_turned_parts_that_wait_elsewhere_do_too(engines: tuple[Engine, Engine], weights: str, tmp_path: Path) -> None:
    turned, plain = engines
    pipeline = turned._models.get("seedling")
    made = pictures(list(with_plan(pipeline, job(), tmp_path, weights=weights, texts="dropped")))
    near(made, pictures(render(plain, job())))
    near(pictures(render(turned, job())), made)
