from __future__ import annotations

import io
import json
import re
from typing import Any

import piexif
import piexif.helper
import pytest
from PIL import Image, PngImagePlugin

from darkroom import __version__
from darkroom.config import Config
from darkroom.job import Hires, Job, parse, resolve
from darkroom.job.types import MAX_SEED
from darkroom.models.catalog import Catalog
from darkroom.output import encode, extension, infotext, read_size, recipe

FORMATS = ["png", "jpeg", "webp"]


def job(**fields: Any) -> Job:
    return Job(
        **{
            "id": "id-1",
            "prompt": "a red circle",
            "negative_prompt": "",
            "num_inference_steps": 20,
            "guidance_scale": 7.0,
            "seed": 42,
            "width": 64,
            "height": 64,
            "count": 3,
            "model": "seedling",
            "sampler": "DPM++ 2M",
            "schedule": "karras",
            "clip_skip": 1,
            "long_prompt": "chunk",
            "on_oom": "degrade",
            "output_format": "png",
            "quality": 92,
        }
        | fields
    )


def picture() -> Image.Image:
    return Image.effect_noise((64, 64), 60).convert("RGB")


def encoded(**fields: Any) -> bytes:
    return encode(picture(), job(**fields), seed=fields.get("seed", 42), device="cpu, float32")


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def comment(data: bytes) -> str:
    """The UserComment, as A1111 reads it: with piexif, from what Pillow found."""
    exif = piexif.load(opened(data).info["exif"])
    return str(piexif.helper.UserComment.load(exif["Exif"][piexif.ExifIFD.UserComment]))


def facts(text: str) -> dict[str, str]:
    """The last line of an infotext, read with the expression that A1111 reads it with."""
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.split("\n")[-1])
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


# Infotext


def said(**fields: Any) -> str:
    return infotext(job(**{"width": 512, "height": 768} | fields), seed=42)


def test_the_infotext_is_a1111_s() -> None:
    text = infotext(
        job(prompt="a cat,\nsitting", negative_prompt="a dog", clip_skip=2, width=512, height=768),
        seed=43,
        model_hash="6ce0161689",
    )
    assert text == (
        "a cat,\nsitting\n"
        "Negative prompt: a dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 43, Size: 512x768, "
        f"Model hash: 6ce0161689, Model: seedling, Clip skip: 2, RNG: CPU, Version: darkroom {__version__}"
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"init_image": "init_image.png", "strength": 0.6}, {"Denoising strength": "0.6"}),
        ({"init_image": "init_image.png", "strength": 1.0}, {"Denoising strength": "1"}),
        (
            {"hires": Hires(scale=2, strength=0.45, steps=12)},
            {"Denoising strength": "0.45", "Hires upscale": "2", "Hires steps": "12", "Hires upscaler": "Lanczos"},
        ),
        ({"hires": Hires()}, {"Denoising strength": "0.6", "Hires upscale": "2", "Hires upscaler": "Lanczos"}),
        ({"upscale": 1.5}, {"Postprocess upscale by": "1.5", "Postprocess upscaler": "Lanczos"}),
    ],
)
def test_pictures_in_and_enlarging_are_told_in_a1111_s_words(fields: dict[str, Any], told: dict[str, str]) -> None:
    plain = facts(said())
    assert facts(said(**fields)) == plain | told
    assert plain["Size"] == "512x768"


def test_what_is_nothing_is_left_out() -> None:
    text = said()
    assert text.startswith("a red circle\nSteps: 20, ")
    assert not {"Negative prompt", "Model hash", "Clip skip"} & set(re.findall(r"([A-Z][\w ]+):", text))


@pytest.mark.parametrize("name", ["v1.5: the best", "one, two", 'a "quoted", name', "two\nlines"])
def test_a_value_that_readers_would_split_is_quoted_as_json(name: str) -> None:
    text = said(model=name)
    assert f"Model: {json.dumps(name)}" in text
    assert facts(text)["Model"] == name


def test_other_values_are_not_quoted() -> None:
    assert 'Model: a "quoted" näme,' in said(model='a "quoted" näme')


@pytest.mark.parametrize(("scale", "written"), [(7.0, "7"), (7.5, "7.5"), (0.0, "0"), (3.141592653, "3.141592653")])
def test_a_whole_guidance_scale_is_written_without_its_point(scale: float, written: str) -> None:
    assert facts(said(guidance_scale=scale))["CFG scale"] == written


@pytest.mark.parametrize(
    ("schedule", "name"),
    [("karras", "Karras"), ("exponential", "Exponential"), ("uniform", "Uniform"), ("sgm_uniform", "SGM Uniform")],
)
def test_schedules_have_a1111_s_names(schedule: str, name: str) -> None:
    assert facts(said(schedule=schedule))["Schedule type"] == name


# Files


@pytest.mark.parametrize(("name", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_files_end_as_is_usual(name: str, ending: str) -> None:
    assert extension(name) == ending


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_is_of_its_format_and_size(name: str) -> None:
    data = encoded(output_format=name)
    assert opened(data).format == name.upper()
    assert read_size(data) == (64, 64)


def test_png_keeps_every_pixel() -> None:
    original = picture()
    again = opened(encode(original, job(), seed=1, device="cpu"))
    assert again.mode == "RGB"
    assert again.tobytes() == original.tobytes()


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_a_lower_quality_is_a_smaller_file(name: str) -> None:
    assert len(encoded(output_format=name, quality=30)) < len(encoded(output_format=name, quality=95))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_other_modes_become_rgb(name: str, mode: str) -> None:
    data = encode(picture().convert(mode), job(output_format=name), seed=1, device="cpu")
    assert opened(data).mode == "RGB"


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_picture_is_the_same_bytes(name: str) -> None:
    image, asked = picture(), job(output_format=name)
    assert encode(image, asked, seed=1, device="cpu") == encode(image, asked, seed=1, device="cpu")


PROMPTS = [
    "a red circle",
    "two\nlines, (weighted:1.2) <lora:x:0.8>",
    "ein grüner Würfel",
    "猫が座っている 🐈",
    "tags </darkroom:recipe> & ]]> \ufffe\uffff \x01\x7f\x85 \r\n",
    "Negative prompt: none\nSteps: 1",
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_recipe_comes_out_as_it_went_in(name: str, prompt: str) -> None:
    asked = job(prompt=prompt, negative_prompt=prompt, output_format=name, count=5)
    data = encode(picture(), asked, seed=MAX_SEED, device="cpu")
    assert recipe(data) == asked.recipe() | {"seed": MAX_SEED, "count": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_the_recipe_is_a_job_that_renders_this_picture_alone(name: str) -> None:
    asked = job(output_format=name)
    found = recipe(encode(picture(), asked, seed=44, device="cpu"))
    config = Config()
    again = resolve(parse(json.dumps(found).encode()), config, Catalog(config.models), "id-1")
    assert again == asked.model_copy(update={"seed": 44, "count": 1})


@pytest.mark.parametrize("prompt", PROMPTS)
def test_png_has_the_infotext_where_other_tools_look(prompt: str) -> None:
    asked = job(prompt=prompt)
    image = opened(encode(picture(), asked, seed=43, device="cpu"))
    assert image.info["parameters"] == infotext(asked, seed=43)


def test_png_says_who_made_it_and_on_what() -> None:
    info = opened(encoded()).info
    assert info["Software"] == f"darkroom {__version__}"
    assert info["Source"] == "cpu, float32"


def test_png_text_beyond_latin_1_is_international_text() -> None:
    assert isinstance(opened(encoded(prompt="猫")).info["parameters"], PngImagePlugin.iTXt)
    assert b"tEXtparameters\0" in encoded(prompt="ein grüner Würfel")
    assert b"iTXtparameters\0" in encoded(prompt="猫")


@pytest.mark.parametrize("name", ["jpeg", "webp"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_jpeg_and_webp_have_the_infotext_in_a_comment_that_piexif_reads(name: str, prompt: str) -> None:
    asked = job(prompt=prompt, output_format=name)
    data = encode(picture(), asked, seed=43, device="cpu")
    assert comment(data) == infotext(asked, seed=43)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_exif_block_is_well_formed_for_whoever_reads_the_file(name: str) -> None:
    data = encode(picture(), job(output_format=name), seed=1, device="cpü, float32")
    tags = piexif.load(data)["0th"]
    assert tags[piexif.ImageIFD.Software] == f"darkroom {__version__}".encode()
    assert tags[piexif.ImageIFD.HostComputer] == b"cp?, float32"
    assert opened(data).getexif().get_ifd(0x8769)[0x9286].startswith(b"UNICODE\0")


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_comment_is_of_type_undefined_and_big_endian(name: str) -> None:
    exif = opened(encoded(output_format=name)).info["exif"]
    assert b"\x92\x86\x00\x07" in exif
    assert b"UNICODE\0\0a\0 \0r\0e\0d" in exif


@pytest.mark.parametrize("name", FORMATS)
def test_prompts_of_ten_thousand_chinese_characters_fit(name: str) -> None:
    asked = job(prompt="猫" * 10_000, negative_prompt="狗" * 10_000, output_format=name)
    data = encode(picture(), asked, seed=42, device="cpu")
    found = recipe(data)
    assert found is not None
    assert found["negative_prompt"] == "狗" * 10_000


def test_what_no_jpeg_can_hold_is_left_out_of_it() -> None:
    asked = job(prompt="🐈" * 10_000, negative_prompt="🐕" * 10_000, output_format="jpeg")
    data = encode(picture(), asked, seed=42, device="cpu")
    assert read_size(data) == (64, 64)
    assert recipe(data) is None
    assert piexif.ExifIFD.UserComment not in piexif.load(data)["Exif"]


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_picture_have_neither_recipe_nor_size(data: bytes) -> None:
    assert recipe(data) is None
    with pytest.raises(ValueError, match="not a picture"):
        read_size(data)


def foreign(name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture().save(file, name, **options)
    return file.getvalue()


def png_text(text: str) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("darkroom", text)
    return chunks


@pytest.mark.parametrize(
    "data",
    [
        foreign("PNG"),
        foreign("JPEG"),
        foreign("JPEG", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"),
        foreign("WEBP", xmp=b"no xml"),
        foreign("PNG", pnginfo=png_text("no json")),
        foreign("PNG", pnginfo=png_text("[1]")),
        foreign("GIF"),
    ],
)
def test_a_picture_of_somebody_else_s_has_no_recipe(data: bytes) -> None:
    assert recipe(data) is None
