"""LoRAs at work: beside the layers, in every spelling, on the seedling's real pictures, and gone without a trace."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import Conv2d, Linear

from darkroom.config import Config, Models
from darkroom.engine import lora as engine_lora
from darkroom.engine.lora import Adapters, LoraCache
from darkroom.engine.lora import read as read_weights
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.errors import ModelUnavailable, RenderFailed, Stopped
from darkroom.events import Picture, Step
from darkroom.job import Job, parse, resolve
from darkroom.models.catalog import BUNDLED as SEEDLING
from darkroom.models.catalog import Catalog
from darkroom.models.lora_keys import compvis_name
from darkroom.models.loras import BUNDLED, Lora
from darkroom.output import recipe
from engine_models import fallbacks, make_job, pictures, render, save_tiny, warned
from test_engine_render import with_plan

BLUEPRINT = BUNDLED / "blueprint.safetensors"
PAPER, INK = (28, 66, 150), (236, 242, 252)
HEART = "a red heart on a white background"
COLORFUL = ["three green squares on a pink background", "a red heart on a yellow background", "a house at sunset"]

Tensors = dict[str, torch.Tensor]
Pixels = np.ndarray[Any, np.dtype[np.int16]]


def pixels(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def penned(data: bytes) -> float:
    """How much of a picture a white pen could have drawn on blue paper: pixels near a mixture of the two colours."""
    way = np.array(INK) - np.array(PAPER)
    offsets = (pixels(data) - np.array(PAPER)).astype(np.float64)
    along = (offsets @ way / (way @ way)).clip(0, 1)
    return float((np.linalg.norm(offsets - along[:, :, None] * way, axis=2) < 60).mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(config_of(folder, tmp_path_factory.mktemp("cache")))
    yield engine
    engine.close()


def config_of(folder: Path, cache: Path, **models: Any) -> Config:
    return Config(
        models={"loras_dir": folder, **models},
        engine={"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": cache},
    )


def job_of(prompt: str = HEART, *loras: tuple[str, float], **fields: Any) -> Job:
    """A job for the seedling at its recommended settings."""
    settings = {"model": "seedling", "negative_prompt": "", "num_inference_steps": 12, "width": 128, "height": 128}
    uses = tuple({"name": name, "weight": weight} for name, weight in loras)
    return make_job(
        prompt=prompt, loras=uses, **{**settings, "sampler": "DPM++ 2M", "schedule": "sgm_uniform", **fields}
    )


def picture(engine: Engine, job: Job) -> bytes:
    return pictures(render(engine, job))[0]


# ---------------------------------------------------------------- on the seedling's pictures


def test_the_bundled_lora_turns_pictures_into_blueprints_and_more_so_with_more_weight(engine: Engine) -> None:
    def share(weight: float) -> float:
        jobs = [job_of(prompt, ("blueprint", weight)) for prompt in COLORFUL]
        return sum(penned(picture(engine, job)) for job in jobs) / len(jobs)

    none, half, whole = share(0.0), share(0.5), share(1.0)
    assert none < 0.05
    assert none + 0.3 < half
    assert half + 0.1 < whole
    assert whole > 0.9


def test_with_the_bundled_lora_for_few_steps_four_without_guidance_come_near_to_the_models_own(engine: Engine) -> None:
    four = {"num_inference_steps": 4, "guidance_scale": 1.0, "sampler": "Euler", "schedule": "sgm_uniform"}

    def away(*loras: tuple[str, float]) -> float:
        few = [pixels(picture(engine, job_of(prompt, *loras, **four))) for prompt in COLORFUL]
        return float(np.mean([np.abs(one - other).mean() for one, other in zip(few, own, strict=True)]))

    own = [pixels(picture(engine, job_of(prompt, num_inference_steps=20, guidance_scale=5.0))) for prompt in COLORFUL]
    assert away(("fewstep", 1.0)) < away()


def test_the_bundled_lora_for_few_steps_says_what_it_is_for() -> None:
    with safe_open(BUNDLED / "fewstep.safetensors", "pt") as file:
        said = file.metadata()
    assert said["modelspec.title"] == "fewstep"
    assert said["modelspec.usage_hint"] == 'sampler "Euler", schedule "sgm_uniform", 4 steps, guidance 1'
    assert said["modelspec.license"]


def test_a_weight_of_nothing_is_no_lora_at_all(engine: Engine) -> None:
    without, nothing = picture(engine, job_of()), picture(engine, job_of(HEART, ("blueprint", 0.0)))
    assert np.array_equal(pixels(without), pixels(nothing))


def test_a_negative_weight_goes_the_other_way(engine: Engine) -> None:
    job = job_of("a star on a blue background", num_inference_steps=12)
    with_it = job.model_copy(update={"loras": job_of("", ("blueprint", -0.5)).loras})
    away = np.abs(pixels(picture(engine, with_it)) - np.array(PAPER)).mean()
    assert away > np.abs(pixels(picture(engine, job)) - np.array(PAPER)).mean()


def test_a_tag_in_the_prompt_is_the_same_as_the_field(engine: Engine) -> None:
    field, tag = (
        picture(engine, job_of(HEART, ("blueprint", 0.8))),
        picture(engine, job_of(f"{HEART} <lora:blueprint:0.8>")),
    )
    assert np.array_equal(pixels(field), pixels(tag))


def test_two_loras_add_up(engine: Engine, folder: Path) -> None:
    save_file(load_file(BLUEPRINT), folder / "copy.safetensors")
    one = picture(engine, job_of(HEART, ("blueprint", 0.8)))
    both = picture(engine, job_of(HEART, ("blueprint", 0.5), ("copy", 0.3)))
    same_twice = picture(engine, job_of(HEART, ("blueprint", 0.5), ("blueprint", 0.3)))
    none = picture(engine, job_of(HEART, ("blueprint", 0.5), ("copy", -0.5)))
    assert np.abs(pixels(one) - pixels(both)).max() <= 3
    assert np.abs(pixels(one) - pixels(same_twice)).max() <= 3
    assert np.abs(pixels(none) - pixels(picture(engine, job_of()))).max() <= 3


def test_kohya_s_and_diffusers_spelling_of_the_same_lora_give_the_same_picture(engine: Engine, folder: Path) -> None:
    pipeline = loaded(engine, "seedling")
    ours = load_file(BLUEPRINT)
    names = {
        "peft": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", "unet.{}.alpha"),
        "older": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", "unet.{}.alpha"),
    }
    compvis: Tensors = {}
    others: dict[str, Tensors] = {spelling: {} for spelling in names}
    for name, other in spelled(pipeline).items():
        kohya = f"lora_unet_{name.replace('.', '_')}"
        if f"{kohya}.alpha" not in ours:
            continue
        trio = [ours[f"{kohya}.{role}"] for role in ("lora_down.weight", "lora_up.weight", "alpha")]
        for spelling, forms in names.items():
            others[spelling] |= {form.format(name): tensor for form, tensor in zip(forms, trio, strict=True)}
        for role in ("lora_down.weight", "lora_up.weight", "alpha"):
            compvis[f"lora_unet_{other.replace('.', '_')}.{role}"] = ours[f"{kohya}.{role}"]
    assert {len(tensors) for tensors in (*others.values(), compvis)} == {len(ours)}
    whole = picture(engine, job_of(HEART, ("blueprint", 1.0)))
    for spelling, tensors in {**others, "compvis": compvis}.items():
        save_file(tensors, folder / f"{spelling}.safetensors")
        again = picture(engine, job_of(HEART, (spelling, 1.0)))
        assert np.array_equal(pixels(whole), pixels(again)), spelling


LCM_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
    *("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""The layers that diffusers' training script for LCM-LoRAs changes, which are those of the published ones."""


def test_an_lcm_lora_is_applied_to_every_layer_that_it_changes(engine: Engine, folder: Path) -> None:
    pipeline = loaded(engine, "seedling")
    tensors: Tensors = {}
    changed = set()
    for name, layer in pipeline.unet.named_modules():
        target = next((target for target in LCM_TARGETS if name.endswith(f".{target}")), None)
        if target is None:
            continue
        changed.add(target)
        kohya, shape = f"lora_unet_{name.replace('.', '_')}", layer.weight.shape
        tensors[f"{kohya}.lora_down.weight"] = 0.2 * random(2, *shape[1:])
        tensors[f"{kohya}.lora_up.weight"] = 0.2 * random(shape[0], 2, *(1 for _ in shape[2:]))
        tensors[f"{kohya}.alpha"] = torch.tensor(1.0)
    assert changed == set(LCM_TARGETS)
    save_file(tensors, folder / "lcm.safetensors")
    fields: dict[str, Any] = {"sampler": "LCM", "schedule": "uniform", "num_inference_steps": 4, "guidance_scale": 1.0}
    there = 0
    for event in engine.render(job_of(HEART, ("lcm", 1.0), **fields), frozenset(), lambda: False):
        if isinstance(event, Step):
            there = hooks(pipeline)
    assert there == len(tensors) // 3
    with_it, without = picture(engine, job_of(HEART, ("lcm", 1.0), **fields)), picture(engine, job_of(HEART, **fields))
    assert np.abs(pixels(with_it) - pixels(without)).mean() > 1


def spelled(pipeline: Pipeline) -> dict[str, str]:
    """Every layer that a LoRA may change, and CompVis's name of it."""
    unet = pipeline.unet
    layers = [name for name, module in unet.named_modules() if isinstance(module, Linear | Conv2d)]
    attending = {name.split(".attentions.")[0] for name in layers if ".attentions." in name}
    found = {}
    for name in layers:
        block = ".".join(name.split(".")[:2])
        other = compvis_name(name, unet.config.layers_per_block, block in attending)
        if other is not None:
            found[name] = other
    return found


def test_the_picture_carries_the_lora_s_hash_and_is_made_again_from_its_own_recipe(
    engine: Engine, folder: Path
) -> None:
    config = config_of(folder, folder)
    request = json.dumps({"prompt": f"{HEART} <lora:blueprint:0.5>", "loras": ["blueprint"], "seed": 7, "steps": 4})
    job = resolve(parse(request.encode()), config, Catalog(config.models), "id")
    data = picture(engine, job)
    content = BLUEPRINT.read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()[:12]
    with Image.open(io.BytesIO(data)) as image:
        prompt, facts = image.info["parameters"].split("\n")
    assert prompt == f"{HEART} <lora:blueprint:0.5> <lora:blueprint:1>"
    assert f'Lora hashes: "blueprint: {digest}", Version: ' in facts
    own = recipe(data)
    assert own is not None
    assert own["loras"] == [{"name": "blueprint", "weight": 1.0}]
    again = resolve(parse(json.dumps(own).encode()), config, Catalog(config.models), "id")
    assert picture(engine, again) == data
    with Image.open(io.BytesIO(picture(engine, job_of(num_inference_steps=1)))) as image:
        assert "Lora hashes" not in image.info["parameters"]


# ---------------------------------------------------------------- gone without a trace


def loaded(engine: Engine, name: str) -> Pipeline:
    pipeline = engine._models.get(name)
    pipeline.load()
    return pipeline


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(steps + 3))
    return lambda: next(calls, None) is None


def hooks(pipeline: Pipeline) -> int:
    modules = (module for part in pipeline.loaded.values() for module in part.modules())
    return sum(type(hook).__name__ == "_LowRank" for module in modules for hook in module._forward_hooks.values())


def trip(unet: Any, error: Exception, call: int) -> Any:
    """Have a UNet raise ``error`` from one of its calls on. Returns what undoes it."""
    calls = iter(range(1, 1_000_000))

    def hook(module: Any, given: Any) -> None:
        if next(calls) >= call:
            raise error

    return unet.register_forward_pre_hook(hook)


def no_memory() -> Exception:
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")


def end_normally(engine: Engine, job: Job) -> None:
    render(engine, job)


def end_by_stopping(engine: Engine, job: Job) -> None:
    with pytest.raises(Stopped):
        list(engine.render(job, frozenset(), stop_after(2)))


def end_by_closing(engine: Engine, job: Job) -> None:
    events = engine.render(job, frozenset(), lambda: False)
    assert any(isinstance(event, Step) for event in events)
    events.close()  # type: ignore[attr-defined]


def end_by_an_error(engine: Engine, job: Job) -> None:
    tripping = trip(loaded(engine, job.model).unet, ValueError("the shutter is stuck"), call=3)
    with pytest.raises(RenderFailed, match="the shutter is stuck"):
        render(engine, job)
    tripping.remove()


@pytest.mark.parametrize("end", [end_normally, end_by_stopping, end_by_closing, end_by_an_error])
def test_the_next_job_s_picture_is_to_the_bit_the_one_before(
    engine: Engine, end: Callable[[Engine, Job], None]
) -> None:
    before = picture(engine, job_of(num_inference_steps=4))
    end(engine, job_of(HEART, ("blueprint", 1.0), num_inference_steps=4))
    assert hooks(loaded(engine, "seedling")) == 0
    assert picture(engine, job_of(num_inference_steps=4)) == before


def test_parts_that_are_read_again_when_memory_runs_out_have_it_still_and_then_no_more(
    folder: Path, tmp_path: Path
) -> None:
    """Read again from the disk: the parts that the first rungs leave in memory and those that they drop."""
    engine = Engine(config_of(folder, tmp_path))
    plain, styled = job_of(num_inference_steps=4), job_of(HEART, ("blueprint", 1.0), num_inference_steps=4)
    before, whole = picture(engine, plain), picture(engine, styled)
    pipeline = loaded(engine, "seedling")
    read = pipeline.loaders["unet"]
    made: list[Any] = []

    def read_failing() -> Any:
        made.append(read())
        if len(made) == 1:
            trip(made[-1], no_memory(), call=3)
        return made[-1]

    pipeline.loaders["unet"] = read_failing
    pipeline.let_go()
    events = render(engine, styled)
    assert [fallback.rung for fallback in fallbacks(events)] == [
        "freed_memory",
        "dropped_text_encoders",
        "model_offload",
    ]
    assert len(made) == 2
    assert np.array_equal(pixels(pictures(events)[0]), pixels(whole))
    pipeline.loaders["unet"] = read
    pipeline.let_go()
    assert picture(engine, plain) == before
    engine.close()


@pytest.mark.parametrize("weights", ["parts", "layers"])
def test_parts_and_layers_that_come_one_by_one_have_it_too(engine: Engine, tmp_path: Path, weights: str) -> None:
    job, plain = job_of(HEART, ("blueprint", 1.0), num_inference_steps=4), job_of(num_inference_steps=4)
    whole, before = picture(engine, job), picture(engine, plain)
    pipeline = loaded(engine, "seedling")
    pipeline.adapt(adapters((Lora("blueprint", BLUEPRINT), 1.0)))
    made = pictures(list(with_plan(pipeline, job, tmp_path, texts="dropped", weights=weights)))
    pipeline.adapt(None)
    assert np.array_equal(pixels(made[0]), pixels(whole))
    assert picture(engine, plain) == before


def test_what_a_part_takes_in_memory_counts_the_lora_while_it_is_at_work(engine: Engine) -> None:
    pipeline = loaded(engine, "seedling")
    before = dict(pipeline.sizes)
    there = {}
    for event in engine.render(job_of(HEART, ("blueprint", 1.0), num_inference_steps=1), frozenset(), lambda: False):
        if isinstance(event, Step):
            there = dict(pipeline.sizes)
            assert hooks(pipeline) > 50
    numbers = sum(tensor.numel() for name, tensor in load_file(BLUEPRINT).items() if not name.endswith("alpha"))
    assert there == before | {"unet": before["unet"] + 4 * numbers}
    assert pipeline.sizes == before


# ---------------------------------------------------------------- the arithmetic, by hand


def lora_of(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Lora:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return Lora(file.stem, file)


class Layers(torch.nn.Module):
    """A part with one layer of each kind, named as a text encoder's are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = Linear(6, 5)
        self.conv = Conv2d(6, 5, 3, stride=2, padding=1)
        self.point = Conv2d(6, 5, 1)


def adapters(*chosen: tuple[Lora, float], dtype: torch.dtype = torch.float32) -> Adapters:
    weights = [(read_weights(lora), weight) for lora, weight in chosen]
    return Adapters(weights, "sd", torch.device("cpu"), dtype)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("layer", ["linear", "conv", "point"])
def test_a_layer_with_a_lora_is_one_whose_weights_are_w_and_s_times_b_a(
    tmp_path: Path, layer: str, alpha: float | None
) -> None:
    part = Layers()
    module = getattr(part, layer)
    side = module.weight.shape[2:]
    down, up = random(4, 6, *side), random(5, 4, *(1 for _ in side))
    tensors = {f"lora_te_{layer}.lora_down.weight": down, f"lora_te_{layer}.lora_up.weight": up}
    if alpha is not None:
        tensors[f"lora_te_{layer}.alpha"] = torch.tensor(alpha)
    given = random(2, 6) if layer == "linear" else random(2, 6, 8, 8)
    with torch.no_grad():
        before = module(given)
        chosen = adapters((lora_of(tmp_path / "a.safetensors", tensors), 0.7))
        chosen.attach("text_encoder", part)
        changed = module(given)
        chosen.detach()
        after = module(given)
        merged = module.weight + 0.7 * ((alpha or 4.0) / 4) * (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
        module.weight.copy_(merged)
        expected = module(given)
    assert torch.allclose(changed, expected, atol=1e-5)
    assert not torch.allclose(changed, before, atol=1e-2)
    assert torch.equal(after, before)


def test_a_convolution_in_three_is_applied_as_what_it_multiplies_to(tmp_path: Path) -> None:
    part = Layers()
    down, mid, up = random(3, 6, 1, 1), random(3, 3, 3, 3), random(5, 3, 1, 1)
    names = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    lora = lora_of(tmp_path / "a.safetensors", {f"lora_te_conv.{name}.weight": value for name, value in names.items()})
    given = random(1, 6, 8, 8)
    with torch.no_grad():
        before = part.conv(given)
        adapters((lora, 1.0)).attach("text_encoder", part)
        through = torch.nn.functional.conv2d(torch.nn.functional.conv2d(given, down), mid, stride=2, padding=1)
        expected = before + torch.nn.functional.conv2d(through, up)
        assert torch.allclose(part.conv(given), expected, atol=1e-4)


def test_matrices_in_the_form_of_a_convolution_fit_a_linear_layer_and_the_other_way_round(tmp_path: Path) -> None:
    part = Layers()
    tensors = {
        "lora_te_linear.lora_down.weight": random(2, 6, 1, 1),
        "lora_te_linear.lora_up.weight": random(5, 2, 1, 1),
        "lora_te_point.lora_down.weight": random(2, 6),
        "lora_te_point.lora_up.weight": random(5, 2),
    }
    with torch.no_grad():
        flat, square = part.linear(random(1, 6)), part.point(random(1, 6, 2, 2))
        adapters((lora_of(tmp_path / "a.safetensors", tensors), 1.0)).attach("text_encoder", part)
        product = (random(5, 2) @ random(2, 6)).unsqueeze(0)
        added = part.linear(random(1, 6)) - flat
        expected = random(1, 6) @ (random(5, 2, 1, 1).flatten(1) @ random(2, 6, 1, 1).flatten(1)).T
        assert torch.allclose(added, expected, atol=1e-4)
        added = part.point(random(1, 6, 2, 2)) - square
        assert torch.allclose(added, torch.einsum("boi,bihw->bohw", product, random(1, 6, 2, 2)), atol=1e-4)


def test_several_on_one_layer_add_up(tmp_path: Path) -> None:
    part = Layers()
    pairs = [(random(rank, 6), random(5, rank)) for rank in (2, 3)]
    loras = [
        lora_of(
            tmp_path / f"{number}.safetensors",
            {"lora_te_linear.lora_down.weight": down, "lora_te_linear.lora_up.weight": up},
        )
        for number, (down, up) in enumerate(pairs)
    ]
    given = random(2, 6)
    with torch.no_grad():
        before = part.linear(given)
        adapters((loras[0], 0.5), (loras[1], -2.0)).attach("text_encoder", part)
        (down, up), (other_down, other_up) = pairs
        expected = before + given @ (0.5 * up @ down - 2.0 * other_up @ other_down).T
        assert torch.allclose(part.linear(given), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"text_encoder.lora_alpha": 8, "text_encoder.r": 4}, 2.0),
        ({"text_encoder.lora_alpha": 8, "text_encoder.alpha_pattern": {"linear": 2}}, 0.5),
        ({"text_encoder.lora_alpha": 8, "text_encoder.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_is_read_where_diffusers_notes_it(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    tensors = {"text_encoder.linear.lora_A.weight": random(4, 6), "text_encoder.linear.lora_B.weight": random(5, 4)}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    read = read_weights(lora_of(tmp_path / "a.safetensors", tensors, metadata))
    assert read.parts["text_encoder"]["linear"].scale == scale


def test_half_precision_is_multiplied_out_in_float32(tmp_path: Path) -> None:
    """Alpha and weight are in it before anything is rounded: one rounding, not three."""
    part = Layers().to(torch.bfloat16)
    down, up = random(4, 6), random(5, 4)
    tensors = {
        "lora_te_linear.lora_down.weight": down,
        "lora_te_linear.lora_up.weight": up,
        "lora_te_linear.alpha": torch.tensor(3.0),
    }
    chosen = adapters((lora_of(tmp_path / "a.safetensors", tensors), 0.37), dtype=torch.bfloat16)
    chosen.attach("text_encoder", part)
    given = random(2, 6).bfloat16()
    with torch.no_grad():
        low = torch.nn.functional.linear(given, down.bfloat16())
        added = torch.nn.functional.linear(low, (up * (0.37 * 3 / 4)).bfloat16())
        plain = torch.nn.functional.linear(given, part.linear.weight, part.linear.bias)
        assert torch.equal(part.linear(given), plain + added)


# ---------------------------------------------------------------- SD 2 and SDXL


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {family: save_tiny(base / name, family) for family, name in (("SD 2", "sd2"), ("SDXL", "sdxl"))}


def parts_of(folder: Path) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    return {name: kind.from_pretrained(folder / name) for name, kind in kinds.items() if (folder / name).is_dir()}


def everywhere(folder: Path) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A LoRA for every layer of every part: its matrices by diffusers' name of the layer."""
    generator = torch.Generator().manual_seed(5)
    found: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
    for part, module in parts_of(folder).items():
        for name, layer in module.named_modules():
            if isinstance(layer, Linear | Conv2d):
                wide, *side = layer.weight.shape[1:]
                down = torch.randn(2, wide, *side, generator=generator) * 0.3
                up = torch.randn(layer.weight.shape[0], 2, *(1 for _ in side), generator=generator) * 0.3
                found.setdefault(part, {})[name] = (down, up)
    return found


PREFIXES = {
    "SD 2": {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
    "SDXL": {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"},
}


@pytest.mark.parametrize("family", ["SD 2", "SDXL"])
def test_every_layer_is_found_by_kohya_s_by_compvis_s_and_by_diffusers_name(
    tmp_path: Path, tiny: dict[str, Path], family: str
) -> None:
    matrices = everywhere(tiny[family])
    spellings: dict[str, Tensors] = {"kohya": {}, "compvis": {}, "diffusers": {}}
    unet = parts_of(tiny[family])["unet"]
    attending = {name.split(".attentions.")[0] for name in matrices["unet"] if ".attentions." in name}
    for part, layers in matrices.items():
        for name, (down, up) in layers.items():
            front = PREFIXES[family][part]
            short = name.removeprefix("text_model.").replace(".", "_")
            if short == "text_projection":
                front = front.removesuffix("text_model_")
            other = short
            if part == "unet":
                found = compvis_name(name, unet.config.layers_per_block, ".".join(name.split(".")[:2]) in attending)
                assert found is not None, name
                other = found.replace(".", "_")
            for spelling, key in (("kohya", f"{front}{short}"), ("compvis", f"{front}{other}")):
                spellings[spelling] |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            spellings["diffusers"] |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    made = {}
    for spelling, tensors in spellings.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / f"{spelling}.safetensors")
    engine = Engine(config_of(tmp_path, tmp_path, default="tiny", tiny={"path": tiny[family]}))
    plain = picture(engine, make_job(model="tiny"))
    for spelling in spellings:
        made[spelling] = pixels(picture(engine, make_job(model="tiny", loras=({"name": spelling, "weight": 0.5},))))
    merged = merge(tiny[family], tmp_path / "merged", matrices, 0.5)
    engine_of_merged = Engine(config_of(tmp_path, tmp_path, default="tiny", tiny={"path": merged}))
    expected = pixels(picture(engine_of_merged, make_job(model="tiny")))
    assert np.abs(expected - pixels(plain)).max() > 10
    for spelling, found in made.items():
        assert np.abs(found - expected).max() <= 1, spelling
    assert picture(engine, make_job(model="tiny")) == plain


def merge(folder: Path, target: Path, matrices: Mapping[str, Mapping[str, Any]], weight: float) -> Path:
    """The model with W + weight · B · A in its files: what the same picture is made by without any LoRA."""
    import shutil

    shutil.copytree(folder, target)
    with torch.no_grad():
        for part, module in parts_of(folder).items():
            for name, (down, up) in matrices[part].items():
                layer = module.get_submodule(name)
                layer.weight += weight * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
            module.save_pretrained(target / part)
    return target


def test_a_lora_for_a_second_text_encoder_does_not_fit_a_model_with_one(engine: Engine, folder: Path) -> None:
    key = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    save_file(
        {f"{key}.lora_down.weight": random(2, 96), f"{key}.lora_up.weight": random(384, 2)}, folder / "te2.safetensors"
    )
    with pytest.raises(ModelUnavailable, match=r'"te2" is made for another model than "seedling".*text_encoder_2'):
        render(engine, job_of(HEART, ("te2", 1.0)))


@pytest.mark.parametrize(
    ("layer", "wide", "said"),
    [
        ("down_blocks_3_attentions_0_proj_in", 96, "it changes the layer down_blocks_3_attentions_0_proj_in"),
        ("mid_block_attentions_0_proj_in", 320, r"its mid_block_attentions_0_proj_in takes \(320, 1, 1\) numbers"),
    ],
)
def test_a_lora_whose_layers_are_others_is_refused_and_leaves_no_trace(
    engine: Engine, folder: Path, layer: str, wide: int, said: str
) -> None:
    before = picture(engine, job_of(num_inference_steps=2))
    tensors = {
        f"lora_unet_{layer}.lora_down.weight": random(2, wide, 1, 1),
        f"lora_unet_{layer}.lora_up.weight": random(96, 2, 1, 1),
    }
    save_file({**load_file(BLUEPRINT), **tensors}, folder / "other.safetensors")
    with pytest.raises(ModelUnavailable, match=said):
        render(engine, job_of(HEART, ("other", 1.0)))
    assert hooks(loaded(engine, "seedling")) == 0
    assert picture(engine, job_of(num_inference_steps=2)) == before


# ---------------------------------------------------------------- files


def test_one_that_is_gone_when_its_job_s_turn_comes_fails_it_or_is_a_warning(tmp_path: Path) -> None:
    job = job_of(HEART, ("gone", 1.0), num_inference_steps=2)
    engine = Engine(config_of(tmp_path, tmp_path))
    with pytest.raises(ModelUnavailable, match='There is no LoRA "gone"'):
        render(engine, job)
    lenient = Engine(config_of(tmp_path, tmp_path, missing_lora="warn"))
    events = render(lenient, job)
    assert [(event.code, event.detail) for event in warned(events)] == [("lora_missing", "gone")]
    (made,) = (event for event in events if isinstance(event, Picture))
    assert np.array_equal(pixels(made.data), pixels(picture(engine, job_of(num_inference_steps=2))))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-100], "is no safetensors file, or not all of one"),
        (lambda data: b"x" * 100, "is no safetensors file, or not all of one"),
        (lambda data: data[:-8] + b"\xff\x7f\xff\x7f\xff\x7f\xff\x7f", "holds what is no number"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    file = tmp_path / "fur.safetensors"
    file.write_bytes(damage(BLUEPRINT.read_bytes()))
    with pytest.raises(ModelUnavailable, match=said) as raised:
        read_weights(Lora("fur", file))
    assert str(file) in raised.value.message


@pytest.mark.parametrize(
    ("role", "tensor"),
    [
        ("lora_down.weight", torch.zeros(4)),
        ("lora_down.weight", torch.zeros(0, 6)),
        ("lora_up.weight", torch.zeros(5, 4, 1)),
        ("alpha", torch.zeros(2)),
    ],
)
def test_tensors_of_a_form_that_no_lora_has_are_an_error(tmp_path: Path, role: str, tensor: torch.Tensor) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": random(4, 6), f"{key}.lora_up.weight": random(5, 4), f"{key}.{role}": tensor}
    lora = lora_of(tmp_path / "a.safetensors", tensors)
    assert lora.about.family == "SD 1"
    with pytest.raises(ModelUnavailable, match=r"is damaged: .* has the shape"):
        read_weights(lora)


def test_a_file_is_read_once_and_again_when_it_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(lora: Lora) -> Any:
        read.append(lora.name)
        return read_weights(lora)

    monkeypatch.setattr(engine_lora, "read", counted)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").write_bytes(BLUEPRINT.read_bytes())
    size = BLUEPRINT.stat().st_size
    cache = LoraCache(Models(loras_dir=tmp_path), keep_bytes=2 * size)

    def use(name: str) -> None:
        chosen, warnings = cache.for_job(job_of(HEART, (name, 1.0)))
        assert [weights.lora.name for weights, _ in chosen] == [name]
        assert not warnings

    for name in ("a", "a", "b", "a"):
        use(name)
    assert read == ["a", "b"]
    use("c")  # lets b go, which was used before a
    use("a")
    use("b")
    assert read == ["a", "b", "c", "b"]
    tensors = load_file(BLUEPRINT)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    use("b")
    assert read == ["a", "b", "c", "b", "b"]
    cache.clear()
    use("b")
    assert read == ["a", "b", "c", "b", "b", "b"]


def test_one_that_is_larger_than_what_is_kept_is_used_all_the_same(tmp_path: Path) -> None:
    cache = LoraCache(Models(), keep_bytes=10)
    chosen, _ = cache.for_job(job_of(HEART, ("blueprint", 1.0)))
    assert [weights.size for weights, _ in chosen] == [BLUEPRINT.stat().st_size]


def test_the_seedling_s_own_folder_holds_no_lora() -> None:
    """Its files are the model's: whoever makes it anew removes what does not belong to it."""
    assert not [path for path in SEEDLING.rglob("*.safetensors") if "lora" in path.name or "blueprint" in path.name]
