"""Features that are reused: what a look on kept ones computes, which are whole, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Conv2d, Linear, Module

from darkroom.config import Config
from darkroom.engine.prompt import encode
from darkroom.engine.render import Engine
from darkroom.engine.sampling.diffusion import Denoiser
from darkroom.engine.sampling.reuse import FeatureReuse
from darkroom.errors import Stopped
from darkroom.events import Step
from darkroom.job import Hires
from darkroom.output import recipe
from engine_models import make_job, pictures, render, warned
from engine_pictures import make_kind, out_of_memory, pixels, with_plan

pytest_plugins = ("engine_fixtures",)


def shown(seed: int, batch: int) -> torch.Tensor:
    return torch.randn((batch, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


@contextmanager
def hooked(unet: Any) -> Iterator[None]:
    """Every layer makes something else than its weights say, as with a LoRA."""

    def more(layer: Module, given: Any, made: torch.Tensor) -> torch.Tensor:
        return made + 0.1 * made.roll(1, 1)

    handles = [layer.register_forward_hook(more) for layer in unet.modules() if isinstance(layer, Linear | Conv2d)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole_with(unet: Any, outermost: int, kept: list[torch.Tensor], look: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The whole UNet's look, in which what comes from the deep layers is thrown away for ``kept``, or is kept there."""

    def swap(layer: Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        deep = given[0].shape[1] - unet.config.block_out_channels[0]
        if not kept:
            kept.append(given[0][:, :deep].clone())
            return None
        return (torch.cat([kept[0], given[0][:, deep:]], dim=1), *given[1:])

    handle = unet.up_blocks[-1].resnets[-outermost].register_forward_pre_hook(swap)
    try:
        return look()
    finally:
        handle.remove()


@pytest.mark.parametrize("outermost", [1, 2])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model", ["sd", "sdxl", "inpaint", "inpaint-xl"])
def test_a_look_on_kept_features_is_the_whole_look_with_those_in_the_place_of_its_own(
    model: str, lora: bool, outermost: int, with_inpainting: Config
) -> None:
    pipeline = Engine(with_inpainting)._models.get(model)
    pipeline.load()
    unet, job = pipeline.unet, make_job(model=model)
    beside = torch.randn((2, 5, 8, 8), generator=torch.Generator().manual_seed(9)) if pipeline.inpaints else None
    early, late = torch.tensor(801), torch.tensor(761)
    with torch.inference_mode():
        texts = encode(pipeline, job, guided=True)
        reusing = FeatureReuse(unet, 2, outermost)
        ours = Denoiser(pipeline, reusing, job, texts, (64, 64), 2, beside)
        plain = Denoiser(pipeline, unet, job, texts, (64, 64), 2, beside)
        first, second = shown(1, 2), shown(2, 2)
        with hooked(unet) if lora else nullcontext():
            kept: list[torch.Tensor] = []
            whole = whole_with(unet, outermost, kept, lambda: plain(first, early))
            expected = whole_with(unet, outermost, kept, lambda: plain(second, late))
            assert torch.equal(ours(first, early), whole)
            assert torch.equal(ours(second, late), expected)
            third = plain(second, late)
            assert torch.equal(ours(second, late), third), "then all of it again"
        assert (expected - third).abs().max() > 1e-4, "and that is not the same"


# ---------------------------------------------------------------- which looks are whole


@contextmanager
def watched(unet: Any) -> Iterator[list[str]]:
    """A letter for each look: ``W``hole with guidance, ``w``hole without; ``O`` and ``o`` of the outermost layers."""
    looks: list[str] = []

    def begun(layer: Module, given: tuple[torch.Tensor, ...]) -> None:
        looks.append("O" if len(given[0]) == 2 else "o")

    def deep(layer: Module, given: Any) -> None:
        looks[-1] = {"O": "W", "o": "w"}[looks[-1]]

    handles = [unet.conv_in.register_forward_pre_hook(begun), unet.mid_block.register_forward_pre_hook(deep)]
    try:
        yield looks
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("fields", "looks"),
    [
        ({}, "WOWOWOWO"),
        ({"reuse_features": None}, "WWWWWWWW"),
        ({"reuse_features": 1}, "WWWWWWWW"),
        ({"reuse_features": 3}, "WOOWOOWO"),
        ({"reuse_features": 10}, "WOOOOOOO"),
        ({"guidance_scale": 1.0}, "wowowowo"),
        ({"guidance_interval": (0.2, 0.6)}, "woWOWwow"),
        ({"guidance_interval": (0.2, 0.3), "reuse_features": 10}, "woWwoooo"),
        ({"sampler": "Heun", "num_inference_steps": 4}, "WOWOWOW"),
        ({"sampler": "PLMS", "num_inference_steps": 4}, "WOWOW"),
        ({"init_image": "init_image.png", "strength": 0.5}, "WOWO"),
        ({"num_inference_steps": 3, "hires": Hires(scale=1.5, strength=0.5)}, "WOWWOW"),
    ],
)
def test_every_nth_look_is_whole_and_the_first_after_a_change(
    fields: dict[str, Any], looks: str, with_inpainting: Config
) -> None:
    engine = Engine(with_inpainting)
    pipeline = engine._models.get("sd")
    pipeline.load()
    with watched(pipeline.unet) as seen:
        make_kind(engine, make_job(**{"num_inference_steps": 8, "reuse_features": 2, "count": 2, **fields}))
    assert "".join(seen) == looks * 2


# ---------------------------------------------------------------- nothing stays behind


def test_a_job_that_reuses_leaves_nothing_to_the_next_also_when_it_is_stopped(engine: Engine) -> None:
    plain, reusing = make_job(num_inference_steps=6), make_job(num_inference_steps=6, reuse_features=3)
    before = pictures(render(engine, plain))
    unet = engine._models.get("sd").unet
    children, hooks = dict(unet.named_modules()), _hooks(unet)
    made = pictures(render(engine, reusing))
    assert made != before
    for stop in (1, 2, 3):
        seen = 0
        events = engine.render(reusing, frozenset(), lambda: seen >= stop)  # noqa: B023 - used before it changes
        with pytest.raises(Stopped):
            for event in events:
                seen += isinstance(event, Step)
        assert pictures(render(engine, plain)) == before
    assert dict(unet.named_modules()) == children
    assert _hooks(unet) == hooks
    assert pictures(render(engine, reusing)) == made


def _hooks(unet: Any) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in unet.modules())


def test_one_is_none_to_the_bit_but_for_what_the_recipe_says(engine: Engine) -> None:
    whole, one, two = (
        pixels(pictures(render(engine, make_job(num_inference_steps=4, reuse_features=every)))[0])
        for every in (None, 1, 2)
    )
    assert np.array_equal(one, whole)
    assert not np.array_equal(two, whole)


@pytest.mark.parametrize("changes", [{"weights": "parts"}, {"weights": "layers"}, {"attention": "sliced"}])
def test_on_a_smaller_plan_it_is_the_same_picture(changes: dict[str, str], engine: Engine, tmp_path: Path) -> None:
    job = make_job(num_inference_steps=5, reuse_features=2)
    with watched(engine._models.get("sd").unet) as seen:
        whole = pictures(render(engine, job))
    assert "".join(seen) == "WOWOW"
    again = pictures(list(with_plan(engine, job, tmp_path, **changes)))
    assert np.abs(pixels(again[0]) - pixels(whole[0])).max() <= 1


# ---------------------------------------------------------------- who cannot


def test_a_denoiser_of_another_kind_computes_all_and_says_so_once(engine: Engine) -> None:
    plain = pictures(render(engine, make_job(count=2)))
    out_of_memory(engine._models.get("sd"), times=0)  # something that is called like a UNet
    events = render(engine, make_job(count=2, reuse_features=2))
    assert [warning.code for warning in warned(events)] == ["features_not_reused"]
    assert pictures(events) == plain
    own = recipe(plain[0])
    assert own is not None and "reuse_features" not in own


def test_a_unet_of_one_block_and_one_of_many_layers_can(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    for blocks, layers in ((1, 1), (3, 3)):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 24)[:blocks],
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D",) * blocks,
            up_block_types=("CrossAttnUpBlock2D",) * blocks,
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=2,
        )
        reusing = FeatureReuse(unet, 2)
        with torch.inference_mode():
            given = {"encoder_hidden_states": torch.randn(1, 5, 8)}
            latents, time = torch.randn(1, 4, 9, 12), torch.tensor(5)  # no multiple of what the blocks halve
            assert torch.equal(reusing(latents, time, **given).sample, reusing(latents, time, **given).sample)
