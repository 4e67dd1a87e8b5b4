"""Memory on a real card: its own limits, offloading, and a share that another program takes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.engine.render import Engine
from darkroom.errors import OutOfMemory
from darkroom.models.catalog import BUNDLED
from engine_models import fallbacks, make_config, make_job, pictures, render
from test_engine_render import with_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(make_config(tmp_path, {"seedling": BUNDLED}, device="cuda", dtype="float16"))
    yield engine
    engine.close()
    torch.cuda.set_per_process_memory_fraction(1.0)


def job(**fields: Any) -> Any:
    return make_job(model="seedling", **{"width": 128, "height": 128, "num_inference_steps": 2, **fields})


def limit(mib: int) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((mib << 20) / torch.cuda.get_device_properties(0).total_memory)


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


@pytest.mark.parametrize(
    "changes", [{"texts": "dropped"}, {"weights": "parts"}, {"weights": "layers"}, {"vae": "sliced"}]
)
def test_parts_that_wait_elsewhere_make_the_same_picture(
    engine: Engine, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = pictures(render(engine, job(count=3)))
    pipeline = engine._models.get("seedling")
    made = pictures(list(with_plan(pipeline, job(count=3), tmp_path, **changes)))
    for index, data in whole.items():
        assert np.abs(pixels(made[index]) - pixels(data)).max() <= 2
    again = pictures(render(engine, job(count=3)))
    assert all(np.abs(pixels(again[index]) - pixels(data)).max() <= 2 for index, data in whole.items())


def test_layers_that_are_streamed_do_not_stay_on_the_card(engine: Engine, tmp_path: Path) -> None:
    render(engine, job())
    pipeline = engine._models.get("seedling")
    pipeline.let_go()
    without = torch.cuda.memory_allocated()  # the libraries keep some for themselves
    list(with_plan(pipeline, job(), tmp_path, weights="layers", texts="dropped"))
    assert sum(pipeline.held().values()) == 0
    assert torch.cuda.memory_allocated() < without + pipeline.size / 4


def test_in_a_small_share_of_the_card_the_job_steps_down_and_the_next_runs_in_full(engine: Engine) -> None:
    render(engine, job())
    limit(400)
    events = render(engine, job(width=1024, height=1024, count=8))
    assert sorted(pictures(events)) == list(range(8))
    assert fallbacks(render(engine, job())) == []


def test_memory_that_another_program_takes_and_gives_back(engine: Engine) -> None:
    render(engine, job())
    limit(1200)
    taken = torch.empty(700 << 20, dtype=torch.uint8, device="cuda")
    events = render(engine, job(width=1536, height=1536))
    assert len(pictures(events)) == 1
    del taken
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert fallbacks(render(engine, job(width=1536, height=1536))) == []


def test_after_twenty_times_out_of_memory_it_is_all_there_again(engine: Engine) -> None:
    render(engine, job())
    limit(64)
    seen = []
    for _ in range(21):
        with pytest.raises(OutOfMemory):
            render(engine, job(width=2048, height=2048, on_oom="fail"))
        seen.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    for first, last in zip(seen[0], seen[-1], strict=True):
        assert last <= first * 1.05
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert fallbacks(render(engine, job())) == []
