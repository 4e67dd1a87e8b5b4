"""Attention by tiles is attention: in float32 what torch's kernel gives, in bfloat16 as near to it as rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from darkroom.config import Config
from darkroom.engine import attention, choosing
from darkroom.engine.attention import TiledAttention, attend
from darkroom.engine.loading import open_model
from darkroom.models.catalog import Catalog

CPU = torch.device("cpu")


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    split = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def tensors(positions: int, texts: int, channels: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, channels, generator=generator).to(dtype) for length in (positions, texts, texts)]


@pytest.mark.parametrize(("positions", "texts"), [(64, 64), (144, 144), (1024, 1024), (100, 77), (7, 154), (1, 1)])
@pytest.mark.parametrize("tile", [1, 10_000, 1 << 21])
def test_the_tiles_together_are_the_whole(
    positions: int, texts: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "TILE", tile if tile > 1 or positions < 200 else 5000)
    given = tensors(positions, texts, 80)
    assert torch.allclose(attend(*given, 4), fused(*given, 4), atol=2e-6)


def test_in_bfloat16_it_is_about_as_near_to_the_truth_as_torch_s_kernel() -> None:
    given = tensors(256, 256, 320, torch.bfloat16)
    truth = fused(*(tensor.float() for tensor in given), 8)
    ours, theirs = ((way(*given, 8).float() - truth).norm() / truth.norm() for way in (attend, fused))
    assert ours < 0.01
    assert ours < 3 * theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cross_attention_dim": 24},
        {"residual_connection": True},
        {"norm_num_groups": 4},
        {"rescale_output_factor": 2.0},
        {"qk_norm": "layer_norm"},
    ],
)
def test_every_kind_of_attention_comes_out_as_with_diffusers_own(options: dict[str, object]) -> None:
    torch.manual_seed(3)
    layer = Attention(query_dim=32, heads=4, dim_head=8, **options).eval()
    features = torch.randn(2, 50, 32)
    texts = torch.randn(2, 9, 24) if "cross_attention_dim" in options else None
    with torch.inference_mode():
        layer.set_processor(AttnProcessor2_0())
        expected = layer(features, texts)
        layer.set_processor(TiledAttention())
        assert torch.allclose(layer(features, texts), expected, atol=1e-6)


@pytest.mark.parametrize("way", ["tiled", "fused"])
def test_the_unet_goes_by_what_was_chosen_and_slicing_gives_it_back(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "tiled_gain", lambda *_: 2.0 if way == "tiled" else 1.0)
    config = Config(engine={"device": "cpu", "dtype": "bfloat16", "cache_dir": tmp_path})
    model = Catalog(config.models).get("seedling")
    assert model is not None
    pipeline = open_model(model, config.engine, CPU)

    def kinds() -> set[str]:
        return {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()}

    before = kinds()
    assert before == {"TiledAttention" if way == "tiled" else "AttnProcessor2_0"}
    pipeline.slice_attention(True)
    assert kinds() == {"SlicedAttnProcessor"}
    pipeline.slice_attention(False)
    assert kinds() == before
