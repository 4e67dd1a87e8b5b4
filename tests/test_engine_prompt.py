"""Prompts to embeddings: equal to diffusers' where diffusers can, and beyond 77 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom.config import Config
from darkroom.engine.models import Models
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.prompt import encode, split
from darkroom.errors import RenderFailed
from engine_models import make_job

pytest_plugins = ("engine_fixtures",)

COMMA = 1000


@pytest.fixture
def sd(config: Config) -> Pipeline:
    return Models(config, torch.device("cpu")).get("sd")


@pytest.fixture
def sdxl(config: Config) -> Pipeline:
    return Models(config, torch.device("cpu")).get("sdxl")


def diffusers_pipeline(folder: Path, kind: str) -> Any:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    return getattr(diffusers, kind).from_pretrained(folder, dtype=torch.float32, local_files_only=True)


@pytest.mark.parametrize("prompt", ["a red circle", "", "red " * 75, "ein Häuschen, größer! 😀"])
def test_a_prompt_of_at_most_77_tokens_is_what_diffusers_makes_of_it(prompt: str, sd: Pipeline, tiny_sd: Path) -> None:
    theirs = diffusers_pipeline(tiny_sd, "StableDiffusionPipeline")
    wanted, unwanted = theirs.encode_prompt(prompt, "cpu", 1, True, "blue house")
    ours = encode(sd, make_job(prompt=prompt, negative_prompt="blue house"), guided=True)
    assert ours.negative is not None
    torch.testing.assert_close(ours.positive.tokens, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.negative.tokens, unwanted, atol=1e-5, rtol=0)
    assert ours.warnings == ()


@pytest.mark.parametrize("negative", ["blue house", ""])
def test_both_encoders_of_sdxl_are_read_as_diffusers_does(negative: str, sdxl: Pipeline, tiny_sdxl: Path) -> None:
    theirs = diffusers_pipeline(tiny_sdxl, "StableDiffusionXLPipeline")
    expected = theirs.encode_prompt("a red circle", device="cpu", negative_prompt=negative or None)
    ours = encode(sdxl, make_job(prompt="a red circle", negative_prompt=negative), guided=True)
    assert ours.negative is not None
    found = (ours.positive.tokens, ours.negative.tokens, ours.positive.pooled, ours.negative.pooled)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_clip_skip_reads_an_earlier_layer_and_normalises_it(sd: Pipeline) -> None:
    encoder = sd.text_encoders[0]
    last, earlier = (encode(sd, make_job(clip_skip=skip), guided=False).positive.tokens for skip in (1, 2))
    tokens = sd.tokenizers[0](make_job().prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        layers = encoder(tokens, output_hidden_states=True).hidden_states
        torch.testing.assert_close(earlier, encoder.final_layer_norm(layers[-2]))
    assert not torch.allclose(earlier, last, atol=1e-3)


def test_clip_skip_of_sdxl_counts_from_the_last_layer_though_it_reads_the_one_before(sdxl: Pipeline) -> None:
    one, two, three = (encode(sdxl, make_job(clip_skip=skip), guided=False).positive.tokens for skip in (1, 2, 3))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three, atol=1e-3)


def test_clip_skip_beyond_the_first_layer_is_refused_with_the_range(sd: Pipeline) -> None:
    with pytest.raises(RenderFailed, match="only 3 layers; use 1 to 3"):
        encode(sd, make_job(clip_skip=4), guided=False)


def test_a_long_prompt_is_read_in_chunks_and_the_other_is_filled_up(sd: Pipeline) -> None:
    ours = encode(sd, make_job(prompt="red " * 80 + "circle", negative_prompt="house"), guided=True)
    assert ours.negative is not None
    assert ours.positive.tokens.shape == ours.negative.tokens.shape == (1, 154, 16)
    first = encode(sd, make_job(prompt="red " * 75), guided=False).positive.tokens
    second = encode(sd, make_job(prompt="red " * 5 + "circle"), guided=False).positive.tokens
    empty = encode(sd, make_job(prompt=" "), guided=False).positive.tokens
    torch.testing.assert_close(ours.positive.tokens, torch.cat([first, second], dim=1))
    torch.testing.assert_close(ours.negative.tokens[:, 77:], empty)
    assert ours.warnings == ()


def test_a_long_negative_prompt_makes_the_positive_one_longer(sdxl: Pipeline) -> None:
    ours = encode(sdxl, make_job(negative_prompt="house, " * 100), guided=True)
    assert ours.negative is not None
    assert ours.positive.tokens.shape == ours.negative.tokens.shape == (1, 3 * 77, 40)
    assert ours.positive.pooled is not None
    assert ours.positive.pooled.shape == (1, 24)


def test_truncating_says_which_words_were_cut(sd: Pipeline) -> None:
    prompt = "red " * 75 + "Circle ON the sky"
    ours = encode(sd, make_job(prompt=prompt, long_prompt="truncate", negative_prompt="house"), guided=True)
    assert ours.positive.tokens.shape == (1, 77, 16)
    (warning,) = ours.warnings
    assert (warning.code, warning.detail) == ("prompt_truncated", "Circle ON the sky")
    assert "prompt is longer than 75 tokens" in warning.message
    kept = encode(sd, make_job(prompt="red " * 75), guided=False).positive.tokens
    torch.testing.assert_close(ours.positive.tokens, kept)


def test_each_truncated_text_is_told_once_though_two_encoders_cut_it(sdxl: Pipeline) -> None:
    job = make_job(prompt="red " * 80, negative_prompt="blue " * 76, long_prompt="truncate")
    warnings = encode(sdxl, job, guided=True).warnings
    assert [(warning.message.split(" is ")[0], warning.detail) for warning in warnings] == [
        ("The prompt", "red " * 5),
        ("The negative prompt", "blue "),
    ]


def test_a_chunk_ends_after_a_comma_among_its_last_twenty() -> None:
    tokens = [*range(60), COMMA, *range(61, 100)]
    assert [len(chunk) for chunk in split(tokens, COMMA)] == [61, 39]


def test_a_comma_further_back_does_not_end_a_chunk() -> None:
    tokens = [*range(54), COMMA, *range(55, 100)]
    assert [len(chunk) for chunk in split(tokens, COMMA)] == [75, 25]


def test_a_phrase_that_ends_with_the_chunk_is_not_moved() -> None:
    tokens = [*range(60), COMMA, *range(61, 75), COMMA, *range(20)]
    assert [len(chunk) for chunk in split(tokens, COMMA)] == [75, 21]


@given(st.lists(st.sampled_from([1, 2, 3, COMMA]), max_size=400), st.sampled_from([COMMA, None]))
def test_splitting_loses_nothing_and_fits(tokens: list[int], comma: int | None) -> None:
    chunks = split(tokens, comma)
    assert [token for chunk in chunks for token in chunk] == tokens
    assert all(len(chunk) <= 75 for chunk in chunks)
    assert len(chunks) >= 1
    assert all(chunk for chunk in chunks[1:])
