from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Darkroom
from darkroom.config import Config, Limits, Models
from darkroom.errors import FieldError, InvalidRequest, Unfinished
from darkroom.job import Given, Job, Request, Result, lone_faults, parse, parse_fields, placed, resolve
from darkroom.job.aliases import ALIASES, DO_NOTHING
from darkroom.models.catalog import Catalog

A1111 = Path(__file__).parent / "data" / "a1111-txt2img.json"

# Reading


def faults(document: Any) -> tuple[FieldError, ...]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InvalidRequest) as raised:
        parse(data)
    error = raised.value
    assert error.message
    assert "\n" not in error.message
    assert error.errors
    assert str(error.errors[0]) in error.message or error.errors[0].message.lower() in error.message.lower()
    json.dumps([fault.got for fault in error.errors])
    return error.errors


def fault(**fields: Any) -> FieldError:
    """The one fault of a job with a prompt and these fields."""
    (error,) = faults({"prompt": "a cat", **fields})
    return error


def read(**fields: Any) -> dict[str, Any]:
    return parse(json.dumps({"prompt": "a cat", **fields}).encode()).model_dump(exclude_none=True, exclude={"prompt"})


def test_a_prompt_alone_is_a_job() -> None:
    assert parse(b'{"prompt": "a cat"}') == Request(prompt="a cat")


def test_every_field_can_be_said() -> None:
    fields = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "num_inference_steps": 20,
        "guidance_scale": 7,
        "guidance_interval": [0.1, 0.8],
        "reuse_features": 3,
        "seed": 2**64 - 1,
        "width": 512,
        "height": 64,
        "count": 1000,
        "model": "seedling",
        "sampler": "Euler",
        "schedule": "karras",
        "loras": [{"name": "blueprint", "weight": 0.8}],
        "clip_skip": 2,
        "init_image": "cat.png",
        "mask_image": "mask.png",
        "strength": 0.5,
        "hires": {"scale": 1.5, "strength": 0.4, "steps": 10},
        "upscale": 2.0,
        "decoder": "tiny",
        "long_prompt": "truncate",
        "on_oom": "fail",
        "output_format": "webp",
        "quality": 80,
        "cells": [{"seed": 1}],
        "dynamic": True,
        "template": "a {cat|dog}",
        "negative_template": "a {dog|cat}",
        "preset": "portrait",
    }
    by_itself = {"matrix", "source"}  # with cells, a matrix must have as many combinations; the source nobody writes
    assert set(fields) | by_itself == set(Request.model_fields)
    written = parse(json.dumps(fields).encode(), presets={"portrait": {}}).model_dump(mode="json", exclude=by_itself)
    assert written == fields


@pytest.mark.parametrize(("other", "ours"), ALIASES.items())
def test_every_name_of_other_tools_is_understood(other: str, ours: str) -> None:
    value = "Euler" if ours in ("sampler", "schedule", "model") else 7
    assert read(**{other: value}) == {ours: value}


def test_batches_are_multiplied() -> None:
    assert read(batch_size=4, n_iter=3) == {"count": 12}
    assert read(n_iter=3) == {"count": 3}
    assert read(batch_size=None) == {"count": 1}


A1111_DEFAULTS = {
    "prompt": "a cat",
    "negative_prompt": "",
    "seed": -1,
    "sampler": "Euler a",
    "schedule": "Automatic",
    "count": 1,
    "num_inference_steps": 50,
    "guidance_scale": 7.0,
    "width": 512,
    "height": 512,
}


def test_a_payload_of_a1111_with_everything_at_its_default_is_a_job() -> None:
    request = parse(A1111.read_bytes())
    assert request.model_dump(exclude_none=True) == A1111_DEFAULTS


@pytest.mark.parametrize("field", sorted(DO_NOTHING))
def test_a_field_of_a1111_is_dropped_where_it_does_nothing_and_refused_elsewhere(field: str) -> None:
    for neutral in DO_NOTHING[field]:
        assert read(**{field: neutral}) == {}
    error = fault(**{field: "something"})
    assert error.field == field
    assert error.hint == "remove the field"


# A1111's pictures and passes


def test_a_payload_of_a1111_s_img2img_with_everything_at_its_default_is_a_job() -> None:
    payload = json.loads(A1111.with_name("a1111-img2img.json").read_bytes())
    request = parse(json.dumps(payload).encode())
    assert request.init_image == payload["init_images"][0]
    assert request.model_dump(exclude_none=True, exclude={"init_image"}) == A1111_DEFAULTS | {"strength": 0.75}


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"init_images": []}, {}),
        ({"init_images": None, "mask": "", "init_image": "", "mask_image": None}, {}),
        ({"init_images": ["a.png"], "mask": "b.png"}, {"init_image": "a.png", "mask_image": "b.png"}),
        ({"init_images": ["a.png"], "denoising_strength": 0.3}, {"init_image": "a.png", "strength": 0.3}),
        ({"init_images": ["a.png"], "denoising_strength": 0}, {"init_image": "a.png", "strength": 0.0}),
        ({"init_image": "a.png", "denoising_strength": None}, {"init_image": "a.png"}),
        ({"denoising_strength": 0.75}, {}),
        ({"denoising_strength": 0.5}, {"strength": 0.5}),
        ({"enable_hr": False, "hr_scale": 3, "hr_upscaler": "R-ESRGAN 4x+", "hr_second_pass_steps": 7}, {}),
        ({"enable_hr": True}, {"hires": {"scale": 2.0, "strength": 0.75}}),
        (
            {
                "enable_hr": True,
                "hr_scale": 1.5,
                "denoising_strength": 0.4,
                "hr_second_pass_steps": 8,
                "hr_upscaler": "Lanczos",
            },
            {"hires": {"scale": 1.5, "strength": 0.4, "steps": 8}},
        ),
    ],
)
def test_pictures_and_passes_of_a1111_become_ours(fields: dict[str, Any], ours: dict[str, Any]) -> None:
    assert read(**fields) == ours


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"init_images": ["a.png", "b.png"]}, "init_images", "holds 2 pictures; a job begins with one"),
        ({"init_images": "a.png"}, "init_images", "must be a list of one picture"),
        ({"init_images": [7]}, "init_images", "must be a text"),
        ({"init_images": ["a.png"], "init_image": "b.png"}, "init_images", "the same as init_image"),
        ({"init_images": ["a.png"], "enable_hr": True}, "enable_hr", "begin from nothing"),
        ({"init_images": ["a.png"], "denoising_strength": 1.5}, "denoising_strength", "must be at most 1"),
        ({"init_images": ["a.png"], "denoising_strength": "0.5"}, "denoising_strength", "must be a number"),
        ({"denoising_strength": False}, "denoising_strength", "must be a number"),
        ({"enable_hr": "yes"}, "enable_hr", "must be true or false"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler", "Lanczos' filter alone"),
        ({"enable_hr": True, "hr_upscaler": "Latent"}, "hr_upscaler", "Lanczos' filter alone"),
        ({"enable_hr": True, "hr_scale": 9}, "hr_scale", "must be at most 4"),
        ({"enable_hr": True, "hr_scale": 1}, "hr_scale", "must be more than 1"),
        ({"enable_hr": True, "denoising_strength": 2}, "denoising_strength", "must be at most 1"),
        ({"enable_hr": True, "hr_resize_x": 1024}, "hr_resize_x", "cannot do this"),
        ({"resize_mode": 1}, "resize_mode", "cannot do this"),
        ({"inpainting_mask_invert": 1}, "inpainting_mask_invert", "cannot do this"),
        ({"inpainting_fill": 2}, "inpainting_fill", "cannot do this"),
        ({"hires": {"scale": 9}}, "hires.scale", "must be at most 4"),
        ({"hires": {"size": 2}}, "hires.size", "not permitted"),
        ({"init_image": "a\0.png"}, "init_image", "holds a NUL character"),
    ],
)
def test_what_of_it_cannot_be_done_is_named_where_it_stands(fields: dict[str, Any], field: str, said: str) -> None:
    error = fault(**fields)
    assert error.field == field
    assert said in error.message
    assert error.line == 1


def test_true_is_not_taken_for_a_neutral_one_nor_false_for_a_zero() -> None:
    assert fault(hr_cfg=True).field == "hr_cfg"
    assert fault(eta=False).field == "eta"


def test_the_model_in_override_settings_is_the_job_s() -> None:
    overrides = {"sd_model_checkpoint": "seedling", "CLIP_stop_at_last_layers": 2, "sd_vae": None}
    assert read(override_settings=overrides) == {"model": "seedling", "clip_skip": 2}


def test_other_override_settings_are_refused_where_they_stand() -> None:
    (error,) = faults(b'{"prompt": "x",\n "override_settings":\n  {"eta_ddim": 0.5}}')
    assert (error.field, error.line, error.column) == ("override_settings.eta_ddim", 3, 16)


def test_where_a_job_comes_from_is_nothing_that_a_job_file_can_say() -> None:
    assert fault(source={"preset": "portrait"}).message == "unknown field"


@pytest.mark.parametrize(
    "interval",
    [
        *([0.8, 0.1], [0.5, 0.5], [-0.1, 0.5], [0.1, 1.1], [0.1], [0, 0.5, 1], [], [0, True], [False, 1], [0, None]),
        *(["0.1", "0.8"], "01", 0.5, {"start": 0.1, "end": 0.8}, True),
    ],
)
def test_an_interval_is_two_fractions_in_order(interval: Any) -> None:
    error = fault(guidance_interval=interval)
    assert (error.field, error.line) == ("guidance_interval", 1)
    assert error.message.startswith("must be two fractions of the steps")
    assert error.hint == 'for example "guidance_interval": [0.1, 0.8]'
    (varied,) = faults({"prompt": "a cat", "matrix": {"guidance_interval": [[0, 1], interval]}})
    assert (varied.field, varied.message) == ("matrix.guidance_interval[1]", error.message)


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        # 28: out of range
        ({"steps": 0}, "must be at least 1", None),
        ({"steps": 151}, "must be at most 150", None),
        ({"seed": 2**64}, "must be at most 18446744073709551615", None),
        ({"seed": -2}, "must be at least -1", None),
        ({"cfg_scale": 30.5}, "must be at most 30", None),
        ({"guidance_scale": -1}, "must be at least 0", None),
        ({"width": 56}, "must be at least 64", None),
        ({"height": 500}, "must be a multiple of 8; the nearest are 496 and 504", None),
        ({"count": 0}, "must be at least 1", None),
        ({"count": 1001}, "must be at most 1000", None),
        ({"n_iter": 0}, "must be a whole number from 1 to 1000", None),
        ({"batch_size": 8, "n_iter": 1000}, "batch_size × n_iter is 8,000 pictures; at most 1,000 are allowed", None),
        ({"clip_skip": 13}, "must be at most 12", None),
        ({"quality": 101}, "must be at most 100", None),
        ({"negative_prompt": "x" * 10_001}, "has 10,001 characters; at most 10,000 are allowed", None),
        ({"model": ""}, "must not be empty", None),
        # 29: the wrong kind
        ({"steps": "20"}, "must be a whole number", "remove the quotes"),
        ({"steps": "many"}, "must be a whole number", None),
        ({"steps": True}, "must be a whole number", "true and false are not numbers"),
        ({"steps": 20.0}, "must be a whole number", "write 20"),
        ({"steps": 20.5}, "must be a whole number", None),
        ({"width": 1e300}, "must be a whole number", None),
        ({"steps": [20]}, "must be a whole number", None),
        ({"cfg_scale": "7.5"}, "must be a number", "remove the quotes"),
        ({"cfg_scale": False}, "must be a number", "true and false are not numbers"),
        ({"batch_size": "2"}, "must be a whole number from 1 to 1000", None),
        ({"model": 15}, "must be a text", "put it in double quotes"),
        ({"negative_prompt": ["a dog"]}, "must be a text", None),
        ({"output_format": "jpg"}, 'must be "png", "jpeg" or "webp"', 'write "jpeg"'),
        ({"output_format": "PNG"}, 'must be "png", "jpeg" or "webp"', 'write "png"'),
        ({"on_oom": "retry"}, 'must be "degrade" or "fail"', None),
        # 30: what is no text
        ({"negative_prompt": "a\0b"}, "holds a NUL character; remove it", None),
        ({"negative_prompt": "\ud83d"}, "holds half of a surrogate pair, which is no character; remove it", None),
        # twice, and unknown
        ({"steps": 5, "num_inference_steps": 6}, "the same as steps, which stands here too", None),
        ({"count": 2, "batch_size": 2}, "the same as count, which stands here too", None),
        ({"widht": 512}, "unknown field", "did you mean width?"),
        ({"Sampler_Name": "Euler"}, "unknown field", "did you mean sampler_name?"),
        ({"zzz": 512}, "unknown field", None),
    ],
)
def test_a_wrong_field_is_refused_with_what_is_allowed(fields: dict[str, Any], message: str, hint: str | None) -> None:
    error = fault(**fields)
    assert error.field in fields
    assert error.message == message
    assert error.line == 1
    assert error.column is not None
    if hint is not None:
        assert error.hint == hint


def test_a_name_nothing_like_ours_lists_ours() -> None:
    hint = fault(zzz=1).hint
    assert hint is not None
    assert hint.startswith("the fields are: prompt, negative_prompt, ")


def test_a_job_without_a_prompt_is_told_so() -> None:
    (error,) = faults({"steps": 20})
    assert str(error) == 'prompt: a job needs a prompt (for example "prompt": "a red circle")'


def test_a_misspelled_prompt_is_one_fault_and_not_two() -> None:
    (error,) = faults({"promt": "a cat"})
    assert str(error) == "line 1, column 11: promt: unknown field (did you mean prompt?)"


@pytest.mark.parametrize("prompt", ["", 5, None, ["a cat"], "a\0cat", "\ud83d\ude00\ud83d", "x" * 10_001])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    (error,) = faults({"prompt": prompt})
    assert error.field == "prompt"
    assert len(str(error.got)) <= 81


def test_every_fault_is_named_in_the_order_of_the_file() -> None:
    errors = faults(b'{"widht": 1,\n "prompt": "x",\n "steps": 0,\n "cfg_scale": "7"}')
    assert [(error.field, error.line, error.column) for error in errors] == [
        ("widht", 1, 11),
        ("steps", 3, 11),
        ("cfg_scale", 4, 15),
    ]


def test_the_message_names_the_first_fault_and_counts_the_others() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(b'{"prompt": "x", "steps": 0, "seed": "1"}')
    assert raised.value.message == "The job is not valid: line 1, column 26: steps: must be at least 1 (and 1 more)."


@pytest.mark.parametrize("text", [b"[]", b'"a cat"', b"5", b"null", b'[{"prompt": "a cat"}]'])
def test_json_that_is_no_object_is_no_job(text: bytes) -> None:
    (error,) = faults(text)
    assert error.message == "a job is a JSON object"
    assert error.hint == 'for example {"prompt": "a red circle"}'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b'{"prompt": "a", "prompt": "b"}', '"prompt" stands here twice'),  # 27
        (b'{"prompt": "a", "steps": NaN}', "NaN is not a JSON value"),  # 26
        (b'{"prompt": "a", "cfg_scale": 1e999}', "1e999 is too large a number"),  # 26
        (b'{"prompt": "a", "seed": ' + b"9" * 4000 + b"}", "a number of 4,000 characters"),  # 28
    ],
)
def test_json_that_is_whole_but_not_strict_is_refused_at_once(text: bytes, part: str) -> None:
    (error,) = faults(text)
    assert part in error.message
    with pytest.raises(InvalidRequest) as raised:
        parse(text)
    assert not isinstance(raised.value, Unfinished)


@pytest.mark.parametrize(
    "text",
    [
        b"",  # 31
        b"\0" * 4096,  # 3
        b'{"prompt": "a ca',  # 1
        b'{"prompt": "a cat"',
        b"[" * 100_000,  # 23
        '{"prompt": "a cat"}'.encode("utf-16"),  # 24
        b"a cat",
        b'{"prompt": "a cat"',
        b"\xff\xd8\xff\xe0 a photograph",
    ],
)
def test_what_is_not_json_may_still_be_being_written(text: bytes) -> None:
    with pytest.raises(Unfinished) as raised:
        parse(text)
    assert raised.value.message.startswith("This is not valid JSON: line 1, column ")


def test_a_byte_order_mark_and_carriage_returns_are_fine() -> None:
    assert parse(b'\xef\xbb\xbf{\r\n"prompt": "a cat"\r\n}\r\n').prompt == "a cat"


def test_the_value_that_was_got_is_shown_short() -> None:
    assert fault(model="x" * 500).got == "x" * 80 + "…"
    assert fault(width=list(range(500))).got == "a list of 500"
    assert fault(steps={"a": 1}).got == "an object of 1"


def test_a_name_that_is_no_text_can_be_reported() -> None:
    (error,) = faults(b'{"prompt": "x", "\\ud800": 1}')
    assert error.field == "\\ud800"


def test_fields_that_are_parsed_already_have_no_places() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_fields({"prompt": "x", "steps": 0})
    assert raised.value.message == "The job is not valid: steps: must be at least 1."


# Resolving


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    folder = tmp_path / "models" / "tiny"
    for file, content in {
        "model_index.json": {"unet": ["diffusers", "UNet2DConditionModel"]},
        "unet/config.json": {"sample_size": 32},
        "vae/config.json": {"block_out_channels": [1, 2, 3, 4]},
        "darkroom.json": {"num_inference_steps": 12, "sampler": "Euler", "schedule": "karras"},
    }.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return Catalog(Models(default="tiny", models_dir=tmp_path / "models"))


def resolved(catalog: Catalog, config: Config | None = None, **fields: Any) -> Job:
    request = parse_fields({"prompt": "a cat", **fields})
    return resolve(request, config or Config(), catalog, "id-1")


def refused(catalog: Catalog, config: Config | None = None, **fields: Any) -> tuple[FieldError, ...]:
    with pytest.raises(InvalidRequest) as raised:
        resolved(catalog, config, **fields)
    assert str(raised.value.errors[0].message) in raised.value.message
    return raised.value.errors


def test_every_gap_is_filled(catalog: Catalog) -> None:
    job = resolved(catalog)
    assert job.recipe() == {
        "prompt": "a cat",
        "negative_prompt": "",
        "num_inference_steps": 12,
        "guidance_scale": 7.5,
        "seed": job.seed,
        "width": 256,
        "height": 256,
        "count": 1,
        "model": "tiny",
        "sampler": "Euler",
        "schedule": "karras",
        "clip_skip": 1,
        "long_prompt": "chunk",
        "on_oom": "degrade",
        "output_format": "png",
        "quality": 92,
    }
    assert job.id == "id-1"


def test_what_was_asked_outranks_the_defaults(catalog: Catalog) -> None:
    job = resolved(catalog, steps=3, cfg_scale=0, width=64, sampler_name="ddim", negative_prompt="", seed=0)
    assert (job.num_inference_steps, job.guidance_scale, job.width, job.height) == (3, 0.0, 64, 256)
    assert (job.sampler, job.schedule, job.seed) == ("DDIM", "uniform", 0)


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_is_chosen_of_32_bits_where_none_was_asked(catalog: Catalog, seed: int | None) -> None:
    seeds = {resolved(catalog, seed=seed).seed for _ in range(20)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_resolved_job_is_a_job_and_resolves_to_itself(catalog: Catalog) -> None:
    job = resolved(catalog, count=3)
    again = resolve(parse(json.dumps(job.recipe()).encode()), Config(), catalog, "id-1")
    assert again == job


def test_a_result_dropped_back_is_its_job(catalog: Catalog) -> None:
    job = resolved(catalog)
    result = Result(
        darkroom="0.1.0",
        id="id-1",
        name="cat",
        original_name="cat.json",
        status="done",
        received_at="2026-11-24T00:00:00Z",
        started_at=None,
        finished_at="2026-11-24T00:00:01Z",
        attempts=1,
        seconds={},
        pictures=[],
        job=job.recipe(),
        requested={},
        fallbacks=[],
        warnings=[],
        device=None,
        versions={},
    )
    request = parse(result.model_dump_json(indent=1).encode())
    assert resolve(request, Config(), catalog, "id-1") == job


def test_a_fault_in_a_result_is_shown_where_it_stands() -> None:
    (error,) = faults(b'{"darkroom": "0.1.0", "pictures": [],\n "job": {"prompt": "x", "steps": 0}}')
    assert (error.field, error.line, error.column) == ("steps", 2, 34)


def test_the_result_of_a_job_that_never_was_one_is_told_apart() -> None:
    (error,) = faults({"darkroom": "0.1.0", "pictures": [], "job": None})
    assert "no job to render again" in error.message


@pytest.mark.parametrize(
    ("sampler", "schedule", "chosen"),
    [
        (None, None, ("Euler", "karras")),
        ("DPM++ 2M", None, ("DPM++ 2M", "karras")),
        ("DPM++ 2M SDE", "automatic", ("DPM++ 2M SDE", "exponential")),
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "karras")),
        ("DPM++ 2M Karras", "Exponential", ("DPM++ 2M", "exponential")),
        ("Euler", None, ("Euler", "uniform")),
        (None, "SGM Uniform", ("Euler", "sgm_uniform")),
    ],
)
def test_sampler_and_schedule_are_chosen_together(
    catalog: Catalog, sampler: str | None, schedule: str | None, chosen: tuple[str, str]
) -> None:
    job = resolved(catalog, sampler=sampler, schedule=schedule)
    assert (job.sampler, job.schedule) == chosen


def test_an_unknown_model_is_refused_with_near_names(catalog: Catalog) -> None:
    (error,) = refused(catalog, model="tinny")
    assert (error.field, error.got) == ("model", "tinny")
    assert error.hint == "did you mean tiny?"
    (error,) = refused(catalog, model="runwayml/stable-diffusion-v1-5")
    assert error.hint is not None
    assert "seedling, tiny" in error.hint


@pytest.mark.parametrize("name", ["../models/tiny", "/etc", ".", ".."])
def test_a_model_is_never_a_path(catalog: Catalog, name: str) -> None:
    assert refused(catalog, model=name)[0].field == "model"


def test_an_unknown_sampler_is_refused_with_near_names(catalog: Catalog) -> None:
    (error,) = refused(catalog, sampler="DPM++ 2N")
    assert (error.field, error.got) == ("sampler", "DPM++ 2N")
    assert error.hint is not None
    assert "DPM++ 2M" in error.hint


def test_an_unknown_or_unfit_schedule_is_refused_with_those_there_are(catalog: Catalog) -> None:
    (error,) = refused(catalog, schedule="kerras")
    assert error.field == "schedule"
    assert "karras" in str(error.hint)
    (error,) = refused(catalog, sampler="DDIM", schedule="karras")
    assert error.message == 'the sampler "DDIM" cannot follow the schedule "karras"'
    assert error.hint == "it can follow: automatic, uniform"


def test_a_bad_default_of_the_model_is_not_blamed_on_the_job(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny" / "darkroom.json").write_text('{"sampler": "Oiler"}')
    (error,) = refused(catalog)
    assert error.got is None
    assert str(error.hint).endswith("it is a default of the model")


def test_the_limits_of_the_config_are_kept(catalog: Catalog) -> None:
    config = Config(limits=Limits(max_width=512, max_height=256, max_pixels=512 * 200, max_count=4, max_steps=20))
    assert resolved(catalog, config, width=320, height=256, count=4, steps=20)
    errors = refused(catalog, config, width=520, height=264, count=5, steps=21)
    assert [(error.field, error.message) for error in errors] == [
        ("width", "must be at most 512 here"),
        ("height", "must be at most 256 here"),
        ("count", "must be at most 4 here"),
        ("num_inference_steps", "must be at most 20 here"),
    ]
    (error,) = refused(catalog, config, width=512, height=256)
    assert error.message == "512 × 256 is too many pixels"


def test_a_picture_too_large_for_its_format_is_refused(catalog: Catalog) -> None:
    config = Config(limits=Limits(max_width=20_000))
    assert resolved(catalog, config, width=16_384, height=64, output_format="png")
    (error,) = refused(catalog, config, width=16_384, height=64, output_format="webp")
    assert (error.field, error.message) == ("width", "must be at most 16,383 for webp")


def test_what_a_picture_is_enlarged_to_is_limited_too(catalog: Catalog) -> None:
    config = Config(limits=Limits(max_width=512, max_height=512, max_pixels=512 * 400, max_steps=20))
    assert resolved(catalog, config, width=256, height=200, hires={"scale": 2}, steps=20)
    (error,) = refused(catalog, config, width=256, height=208, hires={"scale": 2})
    assert (error.field, error.got) == ("hires.scale", 2)
    assert error.message == "makes it 512 × 416, which is too large here"
    assert error.hint == "512 × 512 and 204,800 pixels are allowed, see [limits]"
    assert resolved(catalog, config, width=256, height=128, upscale=2)
    (error,) = refused(catalog, config, width=256, height=128, hires={"scale": 1.5}, upscale=2)
    assert (error.field, error.message) == ("upscale", "makes it 768 × 384, which is too large here")
    (error,) = refused(catalog, config, width=256, height=128, hires={"steps": 21})
    assert (error.field, error.message) == ("hires.steps", "must be at most 20 here")
    wide = Config(limits=Limits(max_width=40_000))
    assert resolved(catalog, wide, width=8_192, height=64, upscale=2.1)
    (error,) = refused(catalog, wide, width=8_192, height=64, upscale=2.1, output_format="webp")
    assert (error.field, error.hint) == ("upscale", "16,383 × 2,048 and 4,194,304 pixels are allowed, see [limits]")


def test_seeds_count_up_and_wrap(catalog: Catalog) -> None:
    job = resolved(catalog, seed=2**64 - 1, count=2)
    assert [job.seed_of(index) for index in range(2)] == [2**64 - 1, 0]


# With pictures


PHOTO = {"init_image": Given("init_image.jpg", 4032, 3024)}


def pictured(pictures: dict[str, Given] = PHOTO, limits: Limits | None = None, **fields: Any) -> Job:
    request = Request(prompt="x", **{"init_image": "photo.jpg"} | fields)
    config = Config(limits=limits or Limits())
    return resolve(request, config, Catalog(config.models), "id", pictures)


def test_a_job_with_a_picture_names_its_copy_and_has_a_strength() -> None:
    job = pictured(mask_image="m.png", pictures=PHOTO | {"mask_image": Given("mask_image.png", 5, 5)})
    assert (job.init_image, job.mask_image, job.strength) == ("init_image.jpg", "mask_image.png", 0.75)
    assert pictured(strength=0.0).strength == 0


@pytest.mark.parametrize(
    ("original", "asked", "limits", "size"),
    [
        ((512, 768), {}, {}, (512, 768)),
        ((500, 771), {}, {}, (496, 768)),
        ((4032, 3024), {}, {}, (2048, 1536)),
        ((3024, 4032), {}, {}, (1536, 2048)),
        ((4000, 4000), {}, {"max_pixels": 1_000_000}, (1000, 1000)),
        ((3000, 1000), {}, {"max_width": 1000}, (1000, 336)),
        ((20, 10), {}, {}, (64, 64)),
        ((20_000, 10), {}, {}, (2048, 64)),
        ((4032, 3024), {"width": 512}, {}, (512, 384)),
        ((4032, 3024), {"height": 512}, {}, (680, 512)),
        ((4032, 3024), {"width": 256, "height": 512}, {}, (256, 512)),
    ],
)
def test_its_size_is_the_picture_s_in_multiples_of_8_within_the_limits(
    original: tuple[int, int], asked: dict[str, int], limits: dict[str, int], size: tuple[int, int]
) -> None:
    job = pictured({"init_image": Given("init_image.png", *original)}, Limits(**limits), **asked)
    assert (job.width, job.height) == size


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.integers(64, 3000), st.integers(64, 3000), st.integers(0, 9))
def test_whatever_the_picture_its_size_is_allowed(
    width: int, height: int, widest: int, highest: int, much: int
) -> None:
    limits = Limits(max_width=widest, max_height=highest, max_pixels=64 * 64 * (1 + much * much))
    job = pictured({"init_image": Given("init_image.png", width, height)}, limits)
    assert job.width % 8 == job.height % 8 == 0


@pytest.mark.parametrize("fields", [{"strength": 0.5}, {"mask_image": "m.png"}])
def test_strength_and_mask_mean_nothing_without_a_picture(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="means nothing without init_image") as raised:
        pictured({}, init_image=None, **fields)
    assert [error.field for error in raised.value.errors] == list(fields)


def test_what_is_found_after_the_reading_has_its_place_too() -> None:
    data = b'{"prompt": "x",\n "denoising_strength": 0.5,\n "width": 4096}'
    with pytest.raises(InvalidRequest) as raised:
        resolve(parse(data), Config(), Catalog(Config().models), "id")
    error = placed(raised.value, data)
    assert [(fault.field, fault.line, fault.column) for fault in error.errors] == [
        ("denoising_strength", 2, 24),
        ("width", 3, 11),
    ]
    assert "line 2, column 24: denoising_strength" in error.message
    assert placed(raised.value, b"no JSON").errors == raised.value.errors


# All faults at once


LONE = {
    "sampler_name": "Eulr",
    "scheduler": "karas",
    "model": "seedlin",
    "loras": ["blueprint", "bluprint"],
    "width": 4096,
    "matrix": {"steps": [20, 2], "prompt": ["a <lora:fewsteps:1>"]},
}
SAID = [
    'sampler_name: there is no sampler "Eulr" (one of: Euler, Euler a)',
    'scheduler: there is no schedule "karas" (one of: automatic, karras, exponential, beta, uniform, sgm_uniform)',
    'model: there is no model "seedlin" (did you mean seedling?)',
    'loras[1]: there is no LoRA "bluprint" (did you mean blueprint?)',
    "width: must be at most 2048 here (a limit of config.toml)",
    'matrix.prompt[0]: there is no LoRA "fewsteps" (did you mean fewstep?)',
]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"guidance": "7"}, "guidance: unknown field (did you mean guidance_scale?)"),
        ({"clip_skip": "2"}, "clip_skip: must be a whole number (remove the quotes)"),
        ({"preset": "none"}, "preset: there is no such preset (none is set up: see [presets] in config.toml)"),
        (
            {"init_image": "../cat.png"},
            'init_image: leads upward ("..") (put the picture beside the job file, or in a folder below it)',
        ),
        ({}, None),
    ],
)
def test_whatever_else_is_wrong_unknown_names_and_what_is_over_a_limit_are_said_with_it(
    darkroom: Darkroom, other: dict[str, Any], said: str | None
) -> None:
    darkroom.drop("cat.json", LONE | other)
    darkroom.run_once()
    error = darkroom.error("cat")
    text = (darkroom.failed / "cat" / "request.json").read_text()
    found = {str(FieldError(**{**fault, "line": None, "column": None})) for fault in error["errors"]}
    assert found == {*SAID, *([said] if said else [])}
    assert error["message"].endswith(f"(and {len(found) - 1} more).")
    assert all(text[fault["column"] - 1] in '"4' for fault in error["errors"])
    assert error["attempts"] == 0


def test_what_a_fault_leads_to_is_no_fault(catalog: Catalog) -> None:
    """The strength needs the picture, the schedule the sampler, and the LoRA a model of its kind."""
    fields = {"prompt": "a", "init_imag": "cat.png", "strength": 0.5, "sampler": 7, "schedule": "karras", "modle": "x"}

    def others(request: Request) -> list[FieldError]:
        return lone_faults(request, Config(), catalog)

    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps(fields).encode(), others=others)
    assert [error.field for error in caught.value.errors] == ["init_imag", "sampler", "modle"]


@pytest.mark.parametrize(
    ("varies", "places"),
    [
        (
            {"matrix": {"prompt": ["a", 7], "steps": ["x", 20], "model": [True, "seedlin"]}},
            ["matrix.prompt[1]", "matrix.steps[0]", "matrix.model[0]", "matrix.model[1]"],
        ),
        (
            {"cells": [{"prompt": "", "model": "seedlin"}, 5, {"prompt": "a", "sampler": "Eulr", "seed": -2}]},
            ["cells[0].prompt", "cells[0].model", "cells[1]", "cells[2].sampler", "cells[2].seed"],
        ),
        ({"matrix": {"prompt": "a"}, "model": "seedlin"}, ["matrix.prompt", "model"]),
    ],
)
def test_in_a_matrix_too_and_a_prompt_that_varies_is_one(
    catalog: Catalog, varies: dict[str, Any], places: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps(varies).encode(), others=lambda request: lone_faults(request, Config(), catalog))
    assert [error.field for error in caught.value.errors] == places


def test_a_dynamic_prompt_that_cannot_be_read_does_not_hide_what_else_is_wrong(catalog: Catalog) -> None:
    fields = {"prompt": "a {b| <lora:{c|d}:1>", "dynamic": True, "model": "seedlin"}
    with pytest.raises(InvalidRequest) as caught:
        resolve(parse(json.dumps(fields).encode()), Config(), catalog, "x")
    assert [error.field for error in caught.value.errors] == ["prompt", "model"]
