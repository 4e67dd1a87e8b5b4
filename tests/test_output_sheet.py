from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from darkroom.output import contact_sheet, encode
from test_output import job

PAPER = (18, 18, 20)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def put(folder: Path, name: str, size: tuple[int, int] = (128, 128), prompt: str = "a red circle") -> Path:
    path = folder / name
    path.write_bytes(encode(Image.new("RGB", size, RED), job(prompt=prompt), seed=42, device="cpu"))
    return path


def box_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what has exactly this colour."""
    distance = [
        channel.point(lambda value, wanted=wanted: 255 if value == wanted else 0)
        for channel, wanted in zip(sheet.split(), colour, strict=True)
    ]
    both = Image.composite(distance[0], Image.new("L", sheet.size), distance[1])
    box = Image.composite(both, Image.new("L", sheet.size), distance[2]).getbbox()
    assert box is not None
    return box


def written_below(sheet: Image.Image, top: int) -> bool:
    return len(sheet.crop((0, top, sheet.width, sheet.height)).getcolors(1 << 16) or []) > 1


def test_one_picture_makes_a_sheet_with_even_margins_and_its_words(tmp_path: Path) -> None:
    sheet = contact_sheet([put(tmp_path, "cat-1.png")])
    left, top, right, bottom = box_of(sheet, RED)
    assert (right - left, bottom - top) == (256, 256), "128 pixels are doubled"
    assert left == top == sheet.width - right
    assert sheet.getpixel((0, 0)) == PAPER
    assert written_below(sheet, bottom)


def test_enlarging_makes_no_colours_that_were_not_there(tmp_path: Path) -> None:
    image = Image.new("RGB", (128, 128), RED)
    image.paste(BLUE, (0, 0, 64, 64))
    path = tmp_path / "cat.png"
    path.write_bytes(encode(image, job(), seed=42, device="cpu"))
    sheet = contact_sheet([path])
    box = box_of(sheet, RED)
    colours = sheet.crop(box).getcolors()
    assert colours is not None
    assert {colour for _, colour in colours} == {RED, BLUE}


@pytest.mark.parametrize(
    ("size", "shown"),
    [((512, 512), (256, 256)), ((64, 64), (256, 256)), ((128, 64), (256, 128)), ((64, 1024), (16, 256))],
)
def test_every_size_and_shape_fills_the_cell_and_keeps_its_shape(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    left, top, right, bottom = box_of(contact_sheet([put(tmp_path, "cat.png", size)]), RED)
    assert (right - left, bottom - top) == shown


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (6, 3), (7, 4), (8, 4), (12, 4), (20, 5)])
def test_the_grid_is_a_little_wider_than_high(tmp_path: Path, count: int, columns: int) -> None:
    sheet = contact_sheet([put(tmp_path, "cat.png", (64, 64))] * count, cell=64)
    margin = 8
    assert sheet.width == margin + columns * (64 + margin)


def test_a_thousand_pictures_are_a_sheet_too(tmp_path: Path) -> None:
    sheet = contact_sheet([put(tmp_path, "cat.png", (64, 64))] * 1000, cell=32)
    assert 0.5 < sheet.width / sheet.height < 2


def test_a_long_prompt_is_cut_and_does_not_leave_its_column(tmp_path: Path) -> None:
    short = contact_sheet([put(tmp_path, "a.png", prompt="a cat")])
    long = contact_sheet([put(tmp_path, "b.png", prompt="a cat on a mat " * 600)])
    endless = contact_sheet([put(tmp_path, "c.png", prompt="x" * 10_000)])
    assert short.height == endless.height < long.height < short.height + 80
    for sheet in (long, endless):
        margin = sheet.crop((sheet.width - 24, 0, sheet.width, sheet.height))
        assert margin.getcolors() == [(margin.width * margin.height, PAPER)]


def test_scripts_that_the_font_lacks_are_no_rows_of_boxes(tmp_path: Path) -> None:
    nameless = contact_sheet([put(tmp_path, "cat.png", prompt="猫が座っている")])
    named = contact_sheet([put(tmp_path, "cat.png", prompt="a cat")])
    assert nameless.height < named.height


def test_accents_that_the_font_lacks_are_dropped_from_their_letters(tmp_path: Path) -> None:
    accented = contact_sheet([put(tmp_path, "cat.png", prompt="ein grüner Würfel — größer")])
    plain = contact_sheet([put(tmp_path, "cat.png", prompt="ein gruner Wurfel - größer")])
    assert accented.tobytes() == plain.tobytes()


def test_a_file_that_is_no_picture_leaves_an_empty_frame(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(put(tmp_path, "whole.png").read_bytes()[:-60])
    sheet = contact_sheet([put(tmp_path, "cat.png"), broken, truncated, tmp_path / "missing.png"])
    assert box_of(sheet, RED)
    assert box_of(sheet, (34, 34, 38))


def test_a_picture_without_a_recipe_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    Image.new("RGB", (100, 50), RED).save(path)
    sheet = contact_sheet([path])
    assert written_below(sheet, 170)


def test_no_pictures_are_no_sheet() -> None:
    with pytest.raises(ValueError, match="needs a picture"):
        contact_sheet([])
