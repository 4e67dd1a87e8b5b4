"""The guard measures again before it complains, and complains of what stays under its floor."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parent.parent / "tools" / "speed_guard.py"


@pytest.fixture(scope="module")
def guard() -> Any:
    spec = importlib.util.spec_from_file_location("speed_guard", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed_guard"] = module
    spec.loader.exec_module(module)
    return module


def part(guard: Any, values: list[float], **fields: Any) -> Any:
    left = iter(values)
    return guard.Part("it", lambda: {"ratio": next(left)}, [guard.Floor("ratio", bar=1, limit=0.5, **fields)])


def test_a_figure_over_its_floor_is_measured_once(guard: Any) -> None:
    assert guard.hold(part(guard, [0.6]))


def test_one_that_was_slow_once_is_measured_again(guard: Any) -> None:
    assert guard.hold(part(guard, [0.1, 0.4, 0.9]))


def test_one_that_stays_slow_fails(guard: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert not guard.hold(part(guard, [0.1, 0.4, 0.2]))
    assert "0.40" in capsys.readouterr().out


def test_what_may_not_pass_a_limit_fails_above_it(guard: Any) -> None:
    assert guard.hold(part(guard, [0.9, 0.4], most=True))
    assert not guard.hold(part(guard, [0.9, 0.6, 0.7], most=True))


def test_the_pictures_that_png_is_measured_on_are_encoded_fast_and_small(guard: Any) -> None:
    from darkroom.bench.publish import encoding

    figures = encoding(guard._pictures())
    assert figures["png_ratio"] > 2
    assert figures["png_bytes_ratio"] < 1.07
