"""A plugin of pytest: a module that names it in ``pytest_plugins`` may ask for tiny models and an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.config import Config, ModelEntry
from darkroom.engine.render import Engine
from engine_models import make_config, save_tiny


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1: one text encoder, epsilon prediction, 8 pixels to a latent, 64 × 64 natively."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 2: OpenCLIP's text encoder, velocity prediction, linear projections."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-sd2", "SD 2")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL: two text encoders, pooled embedding, sizes as a condition."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-sdxl", "SDXL")


@pytest.fixture(scope="session")
def tiny_inpaint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-inpaint", inpaints=True)


@pytest.fixture(scope="session")
def tiny_inpaint_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-inpaint-xl", "SDXL", inpaints=True)


@pytest.fixture
def config(tmp_path: Path, tiny_sd: Path, tiny_sdxl: Path) -> Config:
    """Two of them, float32 on the CPU, one thread."""
    return make_config(tmp_path, {"sd": tiny_sd, "sdxl": tiny_sdxl})


@pytest.fixture
def with_inpainting(config: Config, tiny_inpaint: Path, tiny_inpaint_xl: Path) -> Config:
    """And those made for inpainting."""
    more = {"inpaint": ModelEntry(path=tiny_inpaint), "inpaint-xl": ModelEntry(path=tiny_inpaint_xl)}
    models = config.models.model_copy(update={"named": config.models.named | more})
    return config.model_copy(update={"models": models})


@pytest.fixture
def engine(config: Config) -> Iterator[Engine]:
    engine = Engine(config)
    yield engine
    engine.close()
