"""Recipes out of pictures: ours and A1111's; other programs' are known by name and never misread."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from typing import Any

import piexif
import piexif.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from darkroom.errors import InvalidRequest, Unfinished
from darkroom.job import Hires, Job, parse_fields
from darkroom.output import encode, infotext, job_in, read_infotext

JOB = Job(
    id="id-1",
    prompt="a red circle,\n(on) a blue background",
    negative_prompt="blurry, Steps: 3",
    num_inference_steps=20,
    guidance_scale=7.5,
    seed=42,
    width=512,
    height=768,
    count=1,
    model="seedling",
    sampler="DPM++ 2M",
    schedule="karras",
    clip_skip=2,
    long_prompt="chunk",
    on_oom="degrade",
    output_format="png",
    quality=92,
)

A1111 = """a cat, (masterpiece:1.2)
sitting on a mat
Negative prompt: lowres, bad anatomy,
ugly
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 3148763492, Size: 512x704, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Clip skip: 2, ENSD_: 1, Version: v1.10.1"""


def png(**chunks: str) -> bytes:
    info = PngInfo()
    for key, value in chunks.items():
        info.add_text(key.replace("_", "-") if key.startswith("sd_") else key, value)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_comment(kind: str, comment: bytes) -> bytes:
    """A picture with a UserComment, written by piexif as A1111 does."""
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file.getvalue()


# A1111's


def test_an_infotext_of_ours_is_read_back_as_the_fields_that_it_tells() -> None:
    fields = read_infotext(infotext(JOB, seed=43, model_hash="6ce0161689"))
    assert fields == {
        "prompt": JOB.prompt,
        "negative_prompt": JOB.negative_prompt,
        "num_inference_steps": 20,
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
        "guidance_scale": 7.5,
        "seed": 43,
        "width": 512,
        "height": 768,
        "model": "seedling",
        "clip_skip": 2,
    }
    assert parse_fields(fields).schedule == "Karras"


@pytest.mark.parametrize(
    "fields",
    [
        {"hires": Hires(scale=1.5, strength=0.45, steps=12)},
        {"hires": Hires()},
        {"upscale": 2.0},
        {"hires": Hires(), "upscale": 1.25},
    ],
)
def test_two_passes_and_enlarging_are_read_back(fields: dict[str, Any]) -> None:
    request = parse_fields(read_infotext(infotext(JOB.model_copy(update=fields), seed=43)))
    assert (request.hires, request.upscale) == (fields.get("hires"), fields.get("upscale"))
    assert (request.width, request.height) == (512, 768)


def test_two_passes_of_a1111_s_are_ours_where_it_enlarged_as_we_do() -> None:
    text = A1111.replace("ENSD_: 1", "Denoising strength: 0.55, Hires upscale: 1.75, Hires upscaler: None")
    assert parse_fields(read_infotext(text)).hires == Hires(scale=1.75, strength=0.55)
    with pytest.raises(InvalidRequest, match='darkroom enlarges by "Lanczos" only') as raised:
        read_infotext(text.replace("Hires upscaler: None", "Hires steps: 5, Hires upscaler: Latent"))
    assert [error.field for error in raised.value.errors] == ["Hires upscaler"]


_LINES = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" \n"), max_size=200)


@given(_LINES.filter(str.strip), _LINES, st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=40))
def test_what_is_written_is_read_back(prompt: str, negative: str, model: str) -> None:
    prompt, negative, model = prompt.strip(), negative.strip(), model.strip() or "m"
    if any(line.strip().startswith("Negative prompt:") for line in prompt.split("\n")):
        return  # A1111's grammar has no escape for it
    job = JOB.model_copy(update={"prompt": prompt, "negative_prompt": negative, "model": model})
    fields = read_infotext(infotext(job, seed=1))
    assert (fields["prompt"], fields.get("negative_prompt", ""), fields["model"]) == (prompt, negative, model)


def test_a_picture_of_a1111_s_is_a_job() -> None:
    fields = job_in(png(parameters=A1111.replace("ENSD_: 1, ", "")))
    assert fields["prompt"] == "a cat, (masterpiece:1.2)\nsitting on a mat"
    assert fields["negative_prompt"] == "lowres, bad anatomy,\nugly"
    request = parse_fields(fields)
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (28, 6.5, 3148763492)
    assert (request.width, request.height, request.model) == (512, 704, "v1-5-pruned-emaonly")
    assert (request.sampler, request.clip_skip) == ("DPM++ 2M Karras", 2)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        lambda text: piexif.helper.UserComment.dump(text, encoding="unicode"),
        lambda text: b"UNICODE\0" + text.encode("utf-16-le"),
        lambda text: piexif.helper.UserComment.dump(text, encoding="ascii"),
    ],
    ids=["as A1111", "little end first", "ASCII"],
)
def test_jpeg_and_webp_of_a1111_s_are_jobs(kind: str, comment: Callable[[str], bytes]) -> None:
    fields = job_in(with_comment(kind, comment(A1111.replace("ENSD_: 1, ", ""))))
    assert fields["prompt"].startswith("a cat, (masterpiece:1.2)")
    assert fields["num_inference_steps"] == 28


@pytest.mark.parametrize(
    ("fact", "field"),
    [
        ("Denoising strength: 0.7", "Denoising strength"),
        ("Hires upscale: 2, Hires upscaler: Latent", "Hires upscaler"),
        ("Face restoration: CodeFormer", "Face restoration"),
        ("Variation seed: 3, Variation seed strength: 0.2", "Variation seed"),
        ('ControlNet 0: "Module: canny, Weight: 1"', "ControlNet 0"),
    ],
)
def test_what_cannot_be_honoured_is_named(fact: str, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        job_in(png(parameters=A1111.replace("ENSD_: 1", fact)))
    assert caught.value.errors[0].field == field
    assert not isinstance(caught.value, Unfinished)


@pytest.mark.parametrize("text", ["", "just words", "Steps: 20", "Steps: 20, Sampler: Euler", "{}"])
def test_other_text_is_no_recipe(text: str) -> None:
    with pytest.raises(InvalidRequest):
        job_in(png(parameters=text))


def test_numbers_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="seed"):
        parse_fields(read_infotext("a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: many, Size: 64x64"))


@given(st.text(max_size=400))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    for candidate in (text, f"a\nSteps: 2, Sampler: Euler, Seed: 1, {text}"):
        try:
            parse_fields(read_infotext(candidate))
        except InvalidRequest as error:
            assert error.errors
            assert len(error.message) < 1000


# Other programs'


@pytest.mark.parametrize(
    ("data", "program"),
    [
        (png(prompt=json.dumps({"3": {"class_type": "KSampler"}}), workflow="{}"), "ComfyUI"),
        (png(invokeai_metadata=json.dumps({"positive_prompt": "a cat"})), "InvokeAI"),
        (png(sd_metadata=json.dumps({"image": {}})), "InvokeAI"),
        (png(Dream='"a cat" -s 20 -S 3 -W 512 -H 512 -C 7 -A k_lms'), "InvokeAI"),
        (png(fooocus_scheme="fooocus", parameters=json.dumps({"prompt": "a cat"})), "Fooocus"),
        (png(parameters=json.dumps({"prompt": "a cat", "steps": 3})), "another program"),
        (png(Software="NovelAI", Comment=json.dumps({"prompt": "a cat"})), "NovelAI"),
    ],
)
def test_recipes_of_other_programs_are_known_and_refused_at_once(data: bytes, program: str) -> None:
    with pytest.raises(InvalidRequest, match=program) as caught:
        job_in(data)
    assert not isinstance(caught.value, Unfinished)


def test_comfyui_s_jpeg_and_webp_are_known_too() -> None:
    exif = piexif.dump({"0th": {piexif.ImageIFD.Make: b'workflow:{"nodes": []}'}})
    for kind in ("JPEG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
        with pytest.raises(InvalidRequest, match="ComfyUI"):
            job_in(file.getvalue())


def test_a_comfyui_picture_that_also_has_an_infotext_is_a_job() -> None:
    data = png(prompt="{}", workflow="{}", parameters=A1111.replace("ENSD_: 1, ", ""))
    assert job_in(data)["num_inference_steps"] == 28


# Ours, and none


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_our_own_recipe_is_whole_and_goes_before_the_infotext(kind: Any) -> None:
    job = JOB.model_copy(update={"output_format": kind})
    data = encode(Image.new("RGB", (64, 64)), job, seed=43, device="cpu")
    assert job_in(data) == job.recipe() | {"seed": 43, "count": 1}


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"no picture", png()[:40], png()])
def test_a_picture_without_a_recipe_may_be_half_written_and_is_given_time(data: bytes) -> None:
    with pytest.raises(Unfinished):
        job_in(data)


def test_a_picture_of_too_many_pixels_is_not_decoded() -> None:
    """A decompression bomb: its recipe is read, its pixels are not."""
    head = encode(Image.new("RGB", (64, 64)), JOB, seed=1, device="cpu")
    width = head.index(b"IHDR") + 4
    bomb = bytearray(head)
    bomb[width : width + 8] = (12_000).to_bytes(4, "big") * 2
    bomb[width + 13 : width + 17] = zlib.crc32(bomb[width - 4 : width + 13]).to_bytes(4, "big")
    assert job_in(bytes(bomb))["seed"] == 1


@given(st.data())
def test_a_damaged_picture_is_a_job_or_refused(data: st.DataObject) -> None:
    whole = bytearray(encode(Image.new("RGB", (16, 16)), JOB, seed=1, device="cpu"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    try:
        parse_fields(job_in(bytes(whole)))
    except InvalidRequest as error:
        assert error.errors


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG"])
def test_what_is_no_picture_is_called_so_in_plain_words(data: bytes) -> None:
    with pytest.raises(Unfinished) as caught:
        job_in(data)
    assert caught.value.message == "This is no PNG, JPEG or WebP, or only the beginning of one."
