"""The UNet through OpenVINO: torch's pictures but for their last bits, the same ones each time, and torch where not."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Darkroom
from darkroom.check import preflight
from darkroom.config import Config
from darkroom.engine import render as rendered
from darkroom.engine.openvino import served
from darkroom.engine.openvino.served import Served, ServedDecoder
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.engine.sampling.diffusion import decode
from darkroom.events import Event, Fallback, Loaded
from darkroom.job import Hires
from darkroom.models.catalog import BUNDLED as SEEDLING
from engine_flows import save_tiny_flow
from engine_models import make_config, make_job, pictures, render, save_tiny, warned

pytest.importorskip("openvino")
pytest_plugins = ("engine_fixtures",)

HEART = {"model": "seedling", "prompt": "a red heart on a white background", "negative_prompt": ""}
HEART |= {"width": 128, "height": 128, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was converted once is converted for all."""
    return tmp_path_factory.mktemp("openvino")


def make_engine(cache: Path, dtype: str = "float32", models: dict[str, Path] | None = None) -> Engine:
    return Engine(make_config(cache, models or {"seedling": SEEDLING}, backend="openvino", dtype=dtype))


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[Engine]:
    engine = make_engine(cache)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def torch_engine(cache: Path) -> Iterator[Engine]:
    engine = Engine(make_config(cache, {"seedling": SEEDLING}))
    yield engine
    engine.close()


def codes(events: list[Event]) -> list[str]:
    return [warning.code for warning in warned(events)]


def loaded(events: list[Event]) -> Loaded:
    return [event for event in events if isinstance(event, Loaded)][-1]


def difference(one: dict[int, bytes], other: dict[int, bytes]) -> int:
    """The largest of a pixel, of 255."""
    assert one.keys() == other.keys() and one
    return max(int(np.abs(_pixels(one[index]) - _pixels(other[index])).max()) for index in one)


def _pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def pipeline_of(engine: Engine, name: str = "seedling") -> Pipeline:
    return engine._models.get(name)


def _torch_unets() -> int:
    """How many are in memory."""
    from diffusers import UNet2DConditionModel

    gc.collect()
    return sum(type(found) is UNet2DConditionModel for found in gc.get_objects())


JOBS: dict[str, dict[str, Any]] = {
    "its native size": {},
    "a size whose latents are odd": {"width": 136, "height": 72},
    "no guidance": {"guidance_scale": 1.0},
    "a long prompt": {"prompt": ", ".join(["a red heart on a white background"] * 14)},
    "two passes": {"width": 64, "height": 64, "hires": Hires(scale=2.0, steps=2)},
    "guidance in an interval": {"guidance_interval": (0.3, 0.8)},
}


@pytest.mark.parametrize("fields", JOBS.values(), ids=JOBS)
def test_in_float32_pictures_are_torch_s(engine: Engine, torch_engine: Engine, fields: dict[str, Any]) -> None:
    job = make_job(**{**HEART, **fields})
    events = render(engine, job)
    assert not set(codes(events)) - {"openvino_converted"}
    assert loaded(events).device.endswith(", float32, openvino float32")
    assert difference(pictures(events), pictures(render(torch_engine, job))) <= 2


def test_the_same_job_has_the_same_bits_whatever_was_made_between(engine: Engine, cache: Path) -> None:
    job, other = make_job(**HEART), make_job(**{**HEART, "width": 192, "guidance_scale": 1.0, "seed": 3})
    first = pictures(render(engine, job))
    render(engine, other)
    assert pictures(render(engine, job)) == first
    again = make_engine(cache)
    render(again, other)
    assert pictures(render(again, job)) == first
    again.close()


@pytest.mark.parametrize(("family", "told"), [("SDXL", False), ("SD 1", True)], ids=["SDXL", "inpainting, distilled"])
def test_every_kind_of_unet_predicts_what_torch_s_does(tmp_path: Path, family: str, told: bool) -> None:
    folder = save_tiny(tmp_path / "tiny", family, inpaints=told)
    if told:  # the guidance scale
        from diffusers import UNet2DConditionModel

        kind: Any = UNet2DConditionModel
        config = json.loads((folder / "unet/config.json").read_text()) | {"time_cond_proj_dim": 16}
        kind.from_config(config).save_pretrained(folder / "unet")
    job = make_job(model="tiny")
    engine, before = make_engine(tmp_path, models={"tiny": folder}), _torch_unets()
    events = render(engine, job)
    assert codes(events) == ["openvino_converted"]
    assert isinstance(pipeline_of(engine, "tiny").loaded["unet"], Served)
    assert _torch_unets() == before, "torch's weights are in memory beside OpenVINO's"
    plain = Engine(make_config(tmp_path, {"tiny": folder}))
    assert difference(pictures(events), pictures(render(plain, job))) <= 2


def test_it_decodes_too_and_torch_s_vae_does_not(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    job = make_job(**HEART)
    expected = pictures(render(engine, job))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch decodes")

    monkeypatch.setattr(AutoencoderKL, "decode", refuse)
    assert pictures(render(engine, job)) == expected


def test_what_is_compiled_for_a_job_counts_as_loading(cache: Path) -> None:
    engine = make_engine(cache)
    events = engine.render(make_job(**{**HEART, "num_inference_steps": 1}), frozenset(), lambda: False)
    assert any(isinstance(event, Loaded) for event in events)  # and no further
    compiled = {name: list(pipeline_of(engine).loaded[name]._compiled) for name in ("unet", "decoder")}
    assert {name: len(shapes) for name, shapes in compiled.items()} == {"unet": 1, "decoder": 1}
    list(events)
    assert {name: list(pipeline_of(engine).loaded[name]._compiled) for name in compiled} == compiled


def test_tiles_are_decoded_by_torch(engine: Engine, torch_engine: Engine) -> None:
    render(engine, make_job(**HEART))  # so that it is OpenVINO's turn
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        decode(pipeline_of(each), latents, "tiled", may_be_black=False)[0] for each in (engine, torch_engine)
    )
    assert torch.equal(ours, theirs)


def test_what_openvino_decodes_to_nothing_torch_decodes_in_float32(
    engine: Engine, torch_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ServedDecoder.decode
    monkeypatch.setattr(ServedDecoder, "decode", lambda network, latents: real(network, latents) * float("nan"))
    events = render(engine, make_job(**HEART))
    assert codes(events) == ["vae_float32"] and "openvino float32" in warned(events)[0].message
    assert difference(pictures(events), pictures(render(torch_engine, make_job(**HEART)))) <= 2


def test_the_decoder_leaves_memory_with_the_vae(cache: Path) -> None:
    engine = make_engine(cache)
    render(engine, make_job(**HEART))
    pipeline = pipeline_of(engine)
    assert isinstance(pipeline.loaded["decoder"], ServedDecoder)
    pipeline.let_go("vae")
    assert not {"vae", "decoder"} & pipeline.loaded.keys()


def test_torch_s_vae_is_in_memory_only_where_it_is_asked(cache: Path) -> None:
    engine = make_engine(cache)
    pipeline = pipeline_of(engine)
    render(engine, make_job(**HEART))
    assert "decoder" in pipeline.loaded
    assert "vae" not in pipeline.loaded
    render(engine, make_job(**HEART, hires=Hires(scale=1.5)))
    assert {"decoder", "vae"} <= pipeline.loaded.keys()
    engine.close()


def test_what_torch_or_openvino_does_without_for_a_job_waits_where_there_is_room_for_both(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(cache)
    pipeline = pipeline_of(engine)
    adapted = make_job(**{**HEART, "prompt": "a red heart <lora:blueprint:1>"})

    def unets() -> list[Any]:
        found = []
        for job in (make_job(**HEART), adapted, make_job(**HEART), adapted):
            render(engine, job)
            found.append((pipeline.loaded["unet"], pipeline.sizes["unet"]))
        return found

    served, of_torch, served_again, of_torch_again = unets()
    assert served == served_again
    assert of_torch == of_torch_again
    assert served[0] is not of_torch[0]
    engine.close()
    pipeline = pipeline_of(engine)
    monkeypatch.setattr(rendered, "DOUBT", 1e12)
    served, of_torch, served_again, of_torch_again = unets()
    assert served[0] is not served_again[0]
    assert of_torch[0] is not of_torch_again[0]
    assert pipeline._aside == {}
    engine.close()


def test_what_waits_aside_is_let_go_before_anything_else_when_memory_runs_out(engine: Engine) -> None:
    adapted = make_job(**{**HEART, "prompt": "a red heart <lora:blueprint:1>"})
    pipeline = pipeline_of(engine)
    render(engine, make_job(**HEART))
    seen: list[Any] = []
    for event in engine.render(adapted, frozenset(), lambda: False):
        if isinstance(event, Loaded):
            assert pipeline._aside
            monkey = pipeline.loaded["unet"].register_forward_pre_hook(no_room)
        if isinstance(event, Fallback):
            seen.append((event.rung, dict(pipeline._aside)))
            monkey.remove()
    assert seen == [("freed_memory", {})]


def no_room(*_: Any) -> None:
    raise MemoryError


def test_what_made_the_picture_is_on_record(darkroom: Darkroom, cache: Path) -> None:
    from darkroom.executors import LocalExecutor

    darkroom.configure(
        engine={"device": "cpu", "dtype": "float32", "threads": 1, "backend": "openvino", "cache_dir": cache / "cache"}
    )
    darkroom.drop("heart.json", width=128, height=128)
    darkroom.run_once(LocalExecutor(darkroom.config))
    result = darkroom.result("heart")
    assert ", openvino " in result["device"]
    assert result["versions"]["openvino"] == version("openvino")


def test_auto_takes_bfloat16_where_the_processor_has_it(cache: Path, torch_engine: Engine) -> None:
    import openvino as library

    has = "BF16" in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # type: ignore[attr-defined]
    engine = make_engine(cache, "auto")
    events = render(engine, make_job(**HEART))
    assert loaded(events).device.endswith("openvino bfloat16" if has else "openvino float32")
    # other pixels, but the same picture
    one, other = (_pixels(pictures(made)[0]) for made in (events, render(torch_engine, make_job(**HEART))))
    assert np.abs(one - other).mean() < 8
    engine.close()


def test_a_lora_on_the_unet_is_torch_s_work_and_the_next_job_is_not(engine: Engine, torch_engine: Engine) -> None:
    plain = make_job(**HEART)
    before = pictures(render(engine, plain))
    job = make_job(**{**HEART, "prompt": "a red heart <lora:blueprint:1>"})
    events = render(engine, job)
    assert codes(events) == ["openvino_unused"] and "LoRA" in warned(events)[0].message
    assert loaded(events).device.endswith(", float32")
    assert pictures(events) == pictures(render(torch_engine, job))
    after = render(engine, plain)
    assert codes(after) == []
    assert pictures(after) == before


def test_features_are_reused_by_torch(engine: Engine, torch_engine: Engine) -> None:
    job = make_job(**{**HEART, "reuse_features": 2})
    events = render(engine, job)
    assert codes(events) == ["openvino_unused"] and "reuse_features" in warned(events)[0].message
    assert pictures(events) == pictures(render(torch_engine, job))


def test_a_model_of_another_family_is_torch_s_work(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, models={"flow": save_tiny_flow(tmp_path / "flow")})
    events = render(engine, make_job(model="flow"))
    assert codes(events) == ["openvino_unused"] and "SD 3" in warned(events)[0].message
    assert pictures(events)


def test_without_the_package_torch_works_and_says_why(
    tmp_path: Path, torch_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "PACKAGE", "openvino_that_is_not_installed")
    engine = make_engine(tmp_path)
    events = render(engine, make_job(**HEART))
    assert codes(events) == ["openvino_unused"]
    assert "pip install 'darkroom-daemon[openvino]'" in warned(events)[0].message
    assert pictures(events) == pictures(render(torch_engine, make_job(**HEART)))


def test_the_check_says_whether_it_is_there(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    import darkroom.check as check

    darkroom.configure(executor={"kind": "fake"}, engine={"backend": "openvino"})
    (found,) = (finding for finding in preflight(darkroom.config) if finding.what == "OpenVINO")
    assert found.ok and found.message.startswith(version("openvino"))

    def missing(name: str) -> str:
        raise check.PackageNotFoundError(name)

    monkeypatch.setattr(check, "version", missing)
    (found,) = (finding for finding in preflight(darkroom.config) if finding.what == "OpenVINO")
    assert not found.ok and "pip install" in found.message


def test_what_fails_in_the_middle_is_finished_by_torch(
    cache: Path, torch_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, job = make_engine(cache), make_job(**{**HEART, "count": 2})
    first = pictures(render(engine, job))[0]
    calls = iter(range(100))
    real = Served._request

    def failing(network: Served, shape: served.Shape) -> Any:
        if next(calls) > HEART["num_inference_steps"] + 2:  # those, the picture, and both made ready before
            raise MemoryError("std::bad_alloc")
        return real(network, shape)

    monkeypatch.setattr(Served, "_request", failing)
    events = render(engine, job)
    assert codes(events) == ["openvino_failed"] and "bad_alloc" in warned(events)[0].message
    made = pictures(events)
    assert made[0] == first
    assert made[1] == pictures(render(torch_engine, job))[1]
    assert loaded(events).device.endswith(", float32")
    monkeypatch.undo()
    assert codes(render(engine, job)) == []


def test_a_job_that_ended_the_process_is_tried_again_with_torch(cache: Path) -> None:
    engine = make_engine(cache)
    engine._under_way.begin("test")  # and never ended
    events = render(make_engine(cache), make_job(**HEART))
    assert codes(events) == ["openvino_unused"] and "attempt before" in warned(events)[0].message


def test_each_model_and_each_state_of_its_weights_is_kept_by_itself(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    engine = make_engine(tmp_path, models={"tiny": folder})
    keys = {pipeline_of(engine, "tiny").openvino.key}  # type: ignore[union-attr]
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    os.utime(weights, (1000, 1000))
    keys.add(pipeline_of(engine, "tiny").openvino.key)  # type: ignore[union-attr]
    assert len(keys) == 2
    before = pipeline_of(engine, "tiny").openvino
    os.utime(folder / "vae/diffusion_pytorch_model.safetensors", (1000, 1000))
    after = pipeline_of(engine, "tiny").openvino
    assert before is not None and after is not None
    assert after.key == before.key and after.decoder_key != before.decoder_key


def test_large_models_keep_one_shape_for_all_batches(
    cache: Path, torch_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_KEEP_BYTES", 1)
    engine = make_engine(cache)
    for fields in ({}, {"guidance_interval": (0.3, 0.8)}, JOBS["a long prompt"], {"width": 192}):
        job = make_job(**{**HEART, **fields})
        assert difference(pictures(render(engine, job)), pictures(render(torch_engine, job))) <= 2
        assert len(pipeline_of(engine).loaded["unet"]._compiled) == 1


def test_several_shapes_of_a_small_model_stay_but_not_any_number(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_MOST_SHAPES", 2)
    engine = make_engine(cache)
    for width in (64, 72, 80):
        render(engine, make_job(**{**HEART, "width": width, "height": 64, "num_inference_steps": 1}))
    pipeline = pipeline_of(engine)
    assert [key[-1] for key in pipeline.loaded["unet"]._compiled] == [9, 10]
    assert pipeline.held()["anonymous"] >= 2 * pipeline.sizes["unet"]


def test_a_model_that_is_converted_is_preloaded_and_one_that_is_not_is_left_to_its_first_job(
    cache: Path, tmp_path: Path
) -> None:
    for folder, there in ((cache, True), (tmp_path, False)):
        engine = make_engine(folder)
        engine.prepare(lambda: False)
        assert ("unet" in pipeline_of(engine).loaded) is there
        assert ("vae" in pipeline_of(engine).loaded) is not there
        assert ("decoder" in pipeline_of(engine).loaded) is there


def test_its_makers_are_not_told(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from darkroom.engine.openvino.quantizing import quantizer\n"
        "from darkroom.engine.openvino.served import library\n"
        f"{'quantizer' if find_spec('nncf') else 'library'}()\n"
        "print([name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module])"
    )
    home = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=home)
    assert ran.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a_process_still_handles_signals_when_two_networks_were_let_go_in_any_order(cache: Path) -> None:
    render(made := make_engine(cache), make_job(**HEART))
    own = pipeline_of(made).openvino
    assert own is not None
    unet, decoder = own.conversions.find(own.key), own.conversions.find(own.decoder_key)
    made.close()
    code = f"""
import os, signal
from pathlib import Path
from darkroom.engine.openvino.served import ServedDecoder, ServedUnet
config = {{"in_channels": 4}}
for kinds in ((ServedUnet, ServedDecoder), (ServedDecoder, ServedUnet)):
    files = {{ServedUnet: Path({str(unet)!r}, "unet.xml"), ServedDecoder: Path({str(decoder)!r}, "decoder.xml")}}
    first, second = (
        kind(files[kind], config, "f32") if kind is ServedUnet else kind(files[kind], "f32") for kind in kinds
    )
    first.compile((1, 77, 8, 8)), second.compile((1, 77, 8, 8))
    del first, second
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
os.kill(os.getpid(), signal.SIGUSR1)
assert handled
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 0, (ran.returncode, ran.stderr)


def test_the_config_knows_no_other() -> None:
    assert Config().engine.backend == "torch"
