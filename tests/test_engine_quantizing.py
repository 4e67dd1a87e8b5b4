"""The UNet in 8 bits through OpenVINO: made once, on record, close to the model's own, and bfloat16 where it fails."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.check import preflight
from darkroom.engine.memory import host
from darkroom.engine.openvino import convert as openvino
from darkroom.engine.openvino import quantizing
from darkroom.engine.render import Engine
from darkroom.events import Alive, Event, Loaded
from darkroom.models.catalog import BUNDLED as SEEDLING
from engine_models import make_config, make_job, pictures, render, save_tiny, warned

for package in ("openvino", "nncf"):  # which brings a thousand modules: not imported before a test wants it
    if find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)
pytest_plugins = ("engine_fixtures",)

HEART = {"model": "seedling", "prompt": "a red heart on a white background", "negative_prompt": ""}
HEART |= {"width": 128, "height": 128, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was made once is made for all."""
    return tmp_path_factory.mktemp("int8")


def make_engine(cache: Path, precision: str = "int8", models: dict[str, Path] | None = None) -> Engine:
    settings = {"backend": "openvino", "openvino_precision": precision}
    return Engine(make_config(cache, models or {"seedling": SEEDLING}, **settings))


@pytest.fixture(scope="module")
def plain(cache: Path) -> Iterator[dict[int, bytes]]:
    """The picture that OpenVINO makes in float32."""
    engine = make_engine(cache, "auto")
    yield pictures(render(engine, make_job(**HEART)))
    engine.close()


@pytest.fixture(scope="module")
def first(cache: Path, plain: dict[int, bytes]) -> tuple[list[Event], Engine]:
    """The job in which the UNet is quantized, and the engine that did it."""
    engine = make_engine(cache)
    return render(engine, make_job(**HEART)), engine


def codes(events: list[Event]) -> list[str]:
    return [warning.code for warning in warned(events)]


def loaded(events: list[Event]) -> Loaded:
    return [event for event in events if isinstance(event, Loaded)][-1]


def _pixels(made: dict[int, bytes]) -> Any:
    return np.asarray(Image.open(io.BytesIO(made[0])).convert("RGB")).astype(float)


def test_the_first_job_says_that_it_is_quantized_and_the_others_have_it(
    first: tuple[list[Event], Engine], plain: dict[int, bytes], cache: Path
) -> None:
    events, engine = first
    assert codes(events) == ["openvino_quantized"]
    assert any(isinstance(event, Alive) for event in events), "its silence is taken for a stall"
    assert loaded(events).device.endswith(", openvino int8 and float32")
    assert {"openvino", "nncf"} <= loaded(events).versions.keys()
    made = pictures(events)
    assert made != plain
    assert np.abs(_pixels(made) - _pixels(plain)).mean() < 8, "it is another picture"
    for other in (engine, make_engine(cache)):
        again = render(other, make_job(**HEART))
        assert codes(again) == [] and pictures(again) == made


def test_most_weights_take_a_byte(first: tuple[list[Event], Engine], cache: Path) -> None:
    small = first[1]._models.get("seedling")
    large = make_engine(cache, "auto")._models.get("seedling")
    large.serve(True)
    large.part("unet")
    assert small.sizes["unet"] < large.sizes["unet"] / 2  # which has four bytes for each


def test_so_can_one_of_sdxl_and_for_inpainting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "_STEPS", 1)
    engine = make_engine(tmp_path, models={"tiny": save_tiny(tmp_path / "tiny", "SDXL", inpaints=True)})
    events = render(engine, make_job(model="tiny"))
    assert codes(events) == ["openvino_converted", "openvino_quantized"]
    assert loaded(events).device.endswith(", openvino int8 and float32") and pictures(events)


def test_what_cannot_be_quantized_runs_as_it_is_and_is_not_tried_in_each_job(
    cache: Path, plain: dict[int, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []

    def fail(*_: Any) -> Any:
        tried.append(True)
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(quantizing, "_quantized", fail)
    monkeypatch.setattr(openvino, "_QUANTIZED_LAYOUT", 0)  # which nothing was made for
    engine = make_engine(cache)
    events = render(engine, make_job(**HEART))
    assert codes(events) == ["openvino_quantized", "openvino_unquantized"] and "bad_alloc" in warned(events)[1].message
    assert pictures(events) == plain and loaded(events).device.endswith(", openvino float32")
    assert codes(render(engine, make_job(**HEART))) == ["openvino_unquantized"] and len(tried) == 1
    assert not [path for path in (cache / "cache/openvino").iterdir() if path.name.startswith(".")]


def test_where_it_would_not_fit_into_memory_it_is_not_begun(
    cache: Path, plain: dict[int, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    monkeypatch.setattr(host, "free_bytes", lambda **_: 1)
    monkeypatch.setattr(quantizing, "_quantized", lambda *_: pytest.fail("it was begun"))
    events = render(engine, make_job(**HEART))
    assert codes(events)[-1] == "openvino_unquantized"
    said = warned(events)[-1].message
    assert re.search(r"not run in 8 bits: to bring it there takes about \d+ MiB of memory, and 0 MiB are free", said)
    assert pictures(events).keys() == plain.keys()
    engine.close()


def test_without_nncf_it_runs_as_it_is_and_says_what_to_install(
    cache: Path, plain: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "QUANTIZER", "nncf_that_is_not_installed")
    events = render(make_engine(cache), make_job(**HEART))
    assert codes(events) == ["openvino_unquantized"]
    assert "pip install 'darkroom-daemon[openvino-int8]'" in warned(events)[0].message
    assert pictures(events) == plain


def test_a_lora_is_torch_s_work_and_the_next_job_has_8_bits_again(first: tuple[list[Event], Engine]) -> None:
    made, engine = first
    events = render(engine, make_job(**{**HEART, "prompt": "a red heart <lora:blueprint:1>"}))
    assert codes(events) == ["openvino_unused"] and loaded(events).device.endswith(", float32")
    assert pictures(render(engine, make_job(**HEART))) == pictures(made)


def test_it_is_preloaded_where_it_is_quantized(first: tuple[list[Event], Engine], cache: Path) -> None:
    engine = make_engine(cache)
    engine.prepare(lambda: False)
    assert {"unet", "decoder"} <= engine._models.get("seedling").loaded.keys()


def test_one_that_is_converted_and_not_quantized_is_left_to_its_first_job(
    cache: Path, plain: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_QUANTIZED_LAYOUT", 0)
    engine = make_engine(cache)
    engine.prepare(lambda: False)
    assert "unet" not in engine._models.get("seedling").loaded


def test_the_check_says_whether_it_can_be(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    import darkroom.check as check

    darkroom.configure(executor={"kind": "fake"}, engine={"backend": "openvino", "openvino_precision": "int8"})
    (found,) = (finding for finding in preflight(darkroom.config) if finding.what == "OpenVINO")
    assert found.ok and "in 8 bits by nncf" in found.message
    known = check.version

    def missing(name: str) -> str:
        if name == "nncf":
            raise check.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(check, "version", missing)
    (found,) = (finding for finding in preflight(darkroom.config) if finding.what == "OpenVINO")
    assert not found.ok and "pip install 'darkroom-daemon[openvino-int8]'" in found.message
