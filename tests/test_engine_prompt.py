"""Prompts to embeddings: equal to diffusers' where diffusers can, and beyond 77 tokens."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from darkroom.config import Config
from darkroom.engine.models import Models
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.prompt import emphasise, encode, split
from darkroom.engine.render import Engine
from darkroom.errors import RenderFailed
from darkroom.models.catalog import BUNDLED
from engine_models import make_config, make_job, make_tokenizer, pictures, render

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


def positive(pipeline: Pipeline, prompt: str, **fields: Any) -> torch.Tensor:
    return encode(pipeline, make_job(prompt=prompt, **fields), guided=False).positive.tokens


@pytest.mark.parametrize(
    "prompt", ["(a red circle:1)", "a (red:1.0) circle", "a ([red]) circle", "a [(red)] circle", "(a red (circle:1):1)"]
)
def test_weights_of_1_change_no_bit(prompt: str, sd: Pipeline, sdxl: Pipeline) -> None:
    for pipeline in (sd, sdxl):
        assert torch.equal(positive(pipeline, prompt), positive(pipeline, "a red circle"))


def test_an_escaped_bracket_is_a_bracket_of_the_text(sd: Pipeline) -> None:
    bracket = sd.tokenizers[0]("(", add_special_tokens=False).input_ids
    assert len(bracket) == 1
    plain, escaped = positive(sd, "red"), positive(sd, r"\( red")
    assert not torch.equal(plain, escaped)
    assert torch.equal(escaped, positive(sd, r"(\(:1)red"))


def off_centre(pipeline: Pipeline) -> None:
    """Give the embeddings a mean away from 0, as those of real models have; the tiny ones' is 0 by construction."""
    for encoder in pipeline.text_encoders:
        encoder.requires_grad_(False)
        getattr(encoder, "text_model", encoder).final_layer_norm.bias += 0.5


def test_each_token_is_multiplied_by_its_weight_and_the_mean_of_the_chunk_restored(sd: Pipeline) -> None:
    off_centre(sd)
    plain, weighed = positive(sd, "a red circle on the sky"), positive(sd, "a (red circle:1.5) [on] the sky")
    factors = torch.ones(77)
    factors[2:4], factors[4] = 1.5, 1 / 1.1  # begin, a, red, circle, on, …
    expected = plain * factors[:, None]
    expected = expected * (plain.mean() / expected.mean())
    torch.testing.assert_close(weighed, expected)
    assert not torch.allclose(weighed, plain, atol=0.05)


def test_each_chunk_has_a_mean_of_its_own(sd: Pipeline) -> None:
    off_centre(sd)
    both = positive(sd, "(a red circle:2) BREAK (the sky:0.5)")
    apart = [positive(sd, "(a red circle:2)"), positive(sd, "(the sky:0.5)")]
    torch.testing.assert_close(both, torch.cat(apart, dim=1))
    beside_a_plain_one = positive(sd, "a red circle BREAK (the sky:0.5)")[:, :77]
    assert torch.equal(beside_a_plain_one, positive(sd, "a red circle BREAK the sky")[:, :77])


def test_a_mean_of_nothing_is_not_restored() -> None:
    embeddings = torch.tensor([[[1.0, -1.0], [2.0, -2.0], [0.5, -0.4999]]])
    weights = torch.tensor([[1.0, 1.0, -1.5]])
    assert torch.equal(emphasise(embeddings, weights), embeddings * weights[:, :, None])
    assert torch.equal(emphasise(embeddings * 0, weights), embeddings * 0)


@given(st.lists(st.sampled_from([1.0, 1.0, 1.1, 0.5, 0.0, -0.5, 3.0]), min_size=77, max_size=77), st.integers(0, 99))
def test_no_weights_make_more_of_an_embedding_than_they_say(weights: list[float], seed: int) -> None:
    embeddings = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(seed))
    found = emphasise(embeddings, torch.tensor([weights]))
    assert torch.isfinite(found).all()
    lightest, heaviest = max(min(weights), 0.1), max(map(abs, weights))
    assert (found.abs() <= embeddings.abs() * max(heaviest, heaviest / lightest) * 1.01 + 1e-6).all()


def test_half_precision_stays_half_precision() -> None:
    embeddings = torch.randn(1, 77, 8).half() + 1
    found = emphasise(embeddings, torch.full((1, 77), 1.5))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, embeddings)


def test_both_encoders_of_sdxl_are_weighed_and_the_pooled_embedding_is_not(sdxl: Pipeline) -> None:
    job, plain = make_job(prompt="a (red:1.5) circle"), make_job(prompt="a red circle")
    weighed, before = (encode(sdxl, each, guided=False).positive for each in (job, plain))
    assert weighed.pooled is not None
    assert before.pooled is not None
    assert torch.equal(weighed.pooled, before.pooled)
    for encoder in (slice(0, 16), slice(16, 40)):
        ratio = weighed.tokens[0, :, encoder] / before.tokens[0, :, encoder]
        torch.testing.assert_close(ratio[2] / ratio[0], torch.full_like(ratio[0], 1.5))
        torch.testing.assert_close(ratio[1] / ratio[0], torch.ones_like(ratio[0]))


def test_break_begins_a_new_chunk(sd: Pipeline) -> None:
    apart = [positive(sd, text) for text in ("a red circle", "the blue sky", " ")]
    for prompt, chunks in {
        "a red circle BREAK the blue sky": (0, 1),
        "a red circle BREAK BREAK the blue sky": (0, 2, 1),
        "BREAK the blue sky": (2, 1),
        "a red circle BREAK": (0,),
    }.items():
        torch.testing.assert_close(positive(sd, prompt), torch.cat([apart[chunk] for chunk in chunks], dim=1))


def test_the_other_text_is_filled_up_to_as_many_chunks_as_break_makes(sdxl: Pipeline) -> None:
    ours = encode(sdxl, make_job(prompt="red BREAK blue BREAK sky", negative_prompt="house"), guided=True)
    assert ours.negative is not None
    assert ours.positive.tokens.shape == ours.negative.tokens.shape == (1, 3 * 77, 40)


def test_two_tokenizers_that_count_differently_give_as_many_chunks(sdxl: Pipeline) -> None:
    from transformers import CLIPTokenizer

    known = make_tokenizer()
    bytewise = CLIPTokenizer(
        vocab=known.get_vocab(), merges=[], bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="!"
    )
    prompt = "circle " * 20  # 20 tokens, or 120 letters
    for tokenizers in ((known, bytewise), (bytewise, known)):
        pipeline = dataclasses.replace(sdxl, tokenizers=tokenizers)
        assert positive(pipeline, prompt).shape == (1, 154, 40)


def test_a_weight_reaches_over_the_border_of_chunks(sd: Pipeline) -> None:
    long = positive(sd, "(" + "red " * 100 + ":2)")
    ratio = (long / positive(sd, "red " * 100))[0, :, 0]
    heavy = [index for index in range(154) if abs(ratio[index] / ratio[0] - 2) < 1e-3]
    assert heavy == [*range(1, 76), *range(78, 103)]


@pytest.mark.parametrize(
    ("prompt", "cut"),
    [
        ("red " * 74 + "(big:1.3) (Circle, blue:1.2) [on] sky", "ig:1.3) (Circle, blue:1.2) [on] sky"),
        ("(" + "red " * 75 + "Circle:1.2) on", "Circle:1.2) on"),
        ("red " * 73 + r"\(\) Circle", "Circle"),
        ("red " * 40 + "BREAK " + "red " * 35 + "blue sky", "blue sky"),
    ],
)
def test_what_was_cut_is_told_as_it_was_written_brackets_and_all(prompt: str, cut: str, sd: Pipeline) -> None:
    (warning,) = encode(sd, make_job(prompt=prompt, long_prompt="truncate"), guided=False).warnings
    assert warning.detail == cut


def test_truncating_knows_one_chunk_and_no_break(sd: Pipeline) -> None:
    ours = encode(sd, make_job(prompt="a red BREAK circle", long_prompt="truncate"), guided=False)
    assert torch.equal(ours.positive.tokens, positive(sd, "a red circle"))
    assert ours.warnings == ()


@pytest.mark.parametrize(
    "prompt", ["a (red:101) circle", "a (red:-1e9:101) circle", "(" * 50 + "red", "(red:" + "9" * 400 + ")"]
)
def test_a_weight_beyond_reason_is_refused(prompt: str, sd: Pipeline) -> None:
    with pytest.raises(RenderFailed, match=r'"red.* has the weight .*; weights may be up to 100'):
        encode(sd, make_job(prompt=prompt), guided=False)


def test_prompt_editing_is_read_as_brackets_and_said(sd: Pipeline) -> None:
    job = make_job(prompt="a [red|blue] circle", negative_prompt="[house:sky:0.5]")
    ours = encode(sd, job, guided=True)
    assert [(warning.code, warning.detail) for warning in ours.warnings] == [
        ("prompt_editing_ignored", "[red|blue]"),
        ("prompt_editing_ignored", "[house:sky:0.5]"),
    ]
    assert "The negative prompt has A1111's prompt editing" in ours.warnings[1].message


def test_a_lora_tag_is_no_part_of_the_text_and_does_not_move_what_is_cut(sd: Pipeline) -> None:
    tagged = encode(sd, make_job(prompt="a <lora:fur:0.8> circle"), guided=False)
    plain = encode(sd, make_job(prompt="a  circle"), guided=False)
    assert torch.equal(tagged.positive.tokens, plain.positive.tokens)
    words = "red " * 75
    cut = encode(sd, make_job(prompt=f"<lora:fur>{words}circle", long_prompt="truncate"), guided=False)
    assert [warning.detail for warning in cut.warnings] == ["circle"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.text(max_size=200).filter(lambda text: "<" not in text), st.sampled_from(["chunk", "truncate"]))
def test_any_text_is_read_by_the_model(sd: Pipeline, text: str, long_prompt: str) -> None:
    ours = encode(sd, make_job(prompt=text, long_prompt=long_prompt), guided=False)
    assert ours.positive.tokens.shape[1] % 77 == 0
    assert torch.isfinite(ours.positive.tokens).all()
    assert all(text.endswith(warning.detail or "") for warning in ours.warnings)


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


Pixels = npt.NDArray[np.float64]


def share_that_is_drawn_on(pictures: Pixels) -> float:
    """Of pictures on white ground."""
    return float((pictures.min(axis=-1) < 200).mean())


def blueness(pictures: Pixels) -> float:
    return float((pictures[..., 2] - pictures[..., :2].mean(axis=-1)).mean())


@pytest.mark.parametrize(
    ("prompt", "measure", "least"),
    [
        ("a (large:{}) red circle on a white background", share_that_is_drawn_on, 0.01),
        ("a red circle on a (blue:{}) background", blueness, 0.4),
    ],
)
def test_on_pictures_of_the_bundled_model_more_weight_is_more_of_it(
    prompt: str, measure: Callable[[Pixels], float], least: float, tmp_path: Path
) -> None:
    """The mean over four seeds grows with the weight: "large" by hundredths of the picture, "blue" by steps of 255."""
    engine = Engine(make_config(tmp_path, {"seedling": BUNDLED}))
    fields = {"width": 128, "height": 128, "count": 4, "num_inference_steps": 8, "guidance_scale": 3.0}
    fields |= {"model": "seedling", "negative_prompt": "", "sampler": "DPM++ 2M", "schedule": "sgm_uniform", "seed": 1}
    found = []
    for weight in (0.4, 1, 1.6):
        made = pictures(render(engine, make_job(prompt=prompt.format(weight), **fields)))
        pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64) for data in made.values()]
        found.append(measure(np.stack(pixels)))
    engine.close()
    light, plain, heavy = found
    assert light + least < plain < heavy - least, found
