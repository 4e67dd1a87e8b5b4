"""CUDA graphs on a real card: the pictures without them, whatever changes, and no memory that stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.engine.render import Engine
from darkroom.engine.sampling.graphs import Graphs, Look, OnCuda, Recording
from darkroom.models.catalog import BUNDLED
from engine_models import fallbacks, make_config, make_job, pictures, render, warned
from engine_pictures import pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Counted(OnCuda):
    """How often it recorded; ``fails`` does so in the middle of it."""

    recorded, fails = 0, False

    def record(self, look: Look) -> Recording:
        self.recorded += 1
        looks = 0

        def failing() -> torch.Tensor:
            nonlocal looks
            looks += 1
            if self.fails and looks == 2:  # the first is the rehearsal
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
            return look()

        return super().record(failing)


@pytest.fixture(params=["float16", "float32"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Engine, Counted]]:
    """One with graphs, and one without."""
    config = make_config(tmp_path, {"seedling": BUNDLED}, device="cuda", dtype=request.param)
    ours, plain, recorder = Engine(config), Engine(config), Counted(torch.device("cuda"))
    ours._graphs = Graphs(torch.device("cuda"), recorder)
    yield ours, plain, recorder
    ours.close()
    plain.close()


def job(**fields: Any) -> Any:
    return make_job(model="seedling", **{"width": 128, "height": 128, "num_inference_steps": 20, **fields})


def same(engines: tuple[Engine, Engine, Counted], **fields: Any) -> None:
    ours, plain, _ = engines
    events = render(ours, job(**fields))
    assert warned(events) == [] and fallbacks(events) == []
    made, expected = pictures(events), pictures(render(plain, job(**fields)))
    assert made.keys() == expected.keys()
    for index, data in expected.items():
        assert np.abs(pixels(made[index]) - pixels(data)).mean() < 1


def test_sizes_batches_samplers_and_loras_come_out_as_without(engines: tuple[Engine, Engine, Counted]) -> None:
    prompt = "a red heart on a white background"
    changes: list[dict[str, Any]] = [
        {},
        {"width": 192},
        {"count": 3},
        {"sampler": "DPM++ 2M", "guidance_scale": 1.0},
        {"prompt": f"{prompt} <lora:blueprint:1>"},
        {"prompt": f"{prompt} <lora:blueprint:0.5>"},
        {"prompt": prompt},
        {"guidance_interval": (0.3, 0.7)},
    ]
    for fields in changes:
        same(engines, **fields)
    assert engines[2].recorded >= 5
    assert engines[2].held > 0


def test_want_of_memory_while_it_records_is_a_warning_and_recording_goes_on_at_other_sizes(
    engines: tuple[Engine, Engine, Counted],
) -> None:
    ours, plain, recorder = engines
    same(engines)
    recorder.fails = True
    events = render(ours, job(width=192))
    assert [warning.code for warning in warned(events)] == ["cuda_graphs_unused"]
    expected = pictures(render(plain, job(width=192)))
    assert np.abs(pixels(pictures(events)[0]) - pixels(expected[0])).mean() < 1
    recorder.fails = False
    same(engines)
    same(engines, width=160)


def test_closing_gives_the_recordings_memory_back(engines: tuple[Engine, Engine, Counted]) -> None:
    ours, _, recorder = engines
    render(ours, job())
    assert recorder.held > 0
    ours.close()
    assert recorder.held == 0
