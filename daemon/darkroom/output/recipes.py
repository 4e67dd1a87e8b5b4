"""The recipe out of a picture: ours, or A1111's; those of other programs are known, and never misread.

Where each program leaves its own: A1111 and darkroom in the PNG chunk ``parameters`` or EXIF's UserComment; ComfyUI
in the chunks ``prompt`` and ``workflow``, or EXIF's Make and Model; InvokeAI in ``invokeai_metadata``, once
``sd-metadata`` and ``Dream``; Fooocus as JSON in ``parameters``; NovelAI as JSON in ``Comment``.
"""

from __future__ import annotations

import io
import json
import warnings
from contextlib import AbstractContextManager
from typing import Any
from xml.etree import ElementTree

from PIL import Image, UnidentifiedImageError

from darkroom.errors import FieldError, InvalidRequest, Unfinished
from darkroom.output.encode import COMMENT_TAG, EXIF_TAG, XMP_NAMESPACE
from darkroom.output.infotext import read_infotext

_FORMATS = ("PNG", "JPEG", "WEBP")

_CHUNKS = {
    "prompt": "ComfyUI",
    "workflow": "ComfyUI",
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
}
"""PNG chunk → whose recipe it is."""

_MAKE_TAG, _MODEL_TAG = 0x010F, 0x0110


def job_in(data: bytes) -> dict[str, Any]:
    """The fields of the job inside a picture, given the bytes of its file.

    Raises Unfinished where there is none, or none yet: the file may be half written. InvalidRequest for a recipe of a
    program whose recipes darkroom cannot run, and for one that asks for what it cannot do.
    """
    try:
        with _without_pixels(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            own, texts = recipe_of(image), dict(image.info)
        tags = Image.Exif()  # not ``image.getexif``, which decodes a PNG to its end
        tags.load(texts.get("exif", b""))
        comment = tags.get_ifd(EXIF_TAG).get(COMMENT_TAG)
    except UnidentifiedImageError:
        raise _refusal(Unfinished, "This is no PNG, JPEG or WebP, or only the beginning of one") from None
    except Exception as error:  # Pillow raises whatever comes up in the depths of a broken file
        raise _refusal(
            Unfinished, f"This is no PNG, JPEG or WebP that can be read, or not all of one ({_first_words(error)})"
        ) from None
    if own is not None:
        return own
    written = texts.get("parameters") or _comment_text(comment)
    if isinstance(written, str) and not written.lstrip().startswith("{"):
        return read_infotext(written)
    program = _program_of(texts, tags) or ("another program" if written else None)
    if program is not None:
        raise _refusal(
            InvalidRequest,
            f"The recipe in this picture is one of {program}, which darkroom cannot run: write a job with its prompt",
        )
    raise _refusal(
        Unfinished,
        "This picture has no recipe of darkroom or of A1111 inside, so nothing says how to make it again",
        hint='to begin with it, drop it with a job that names it: {"prompt": "…", "init_image": "its name"}',
    )


def _refusal(kind: type[InvalidRequest], message: str, hint: str | None = None) -> InvalidRequest:
    return kind(f"{message}.", errors=(FieldError(message, hint=hint),))


def _without_pixels() -> AbstractContextManager[object]:
    """No pixel is decoded, so it does not matter how many there are."""
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def recipe(data: bytes) -> dict[str, Any] | None:
    """The job inside a picture of darkroom's; None where there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return recipe_of(image)
    except (OSError, SyntaxError):
        return None


def recipe_of(image: Image.Image) -> dict[str, Any] | None:
    """The same for a picture that is open; reads no pixels."""
    text = image.info.get("darkroom")
    if text is None and "xmp" in image.info:
        text = _from_xmp(image.info["xmp"])
    if not isinstance(text, str):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _from_xmp(packet: bytes | str) -> str | None:
    try:
        return ElementTree.fromstring(packet).findtext(f".//{{{XMP_NAMESPACE}}}recipe")
    except (ElementTree.ParseError, ValueError):
        return None


def _comment_text(comment: Any) -> str | None:
    """EXIF's UserComment: eight bytes that name the encoding, then the text."""
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes):
        return None
    head, body = comment[:8], comment[8:]
    if head.startswith(b"UNICODE"):
        # EXIF says: in the byte order of the file; most programs write the big end first, some do not
        order = "utf-16-le" if body[1::2].count(0) > body[::2].count(0) else "utf-16-be"
        return body.decode(order, "replace")
    return body.decode("utf-8", "replace") if head.startswith(b"ASCII") else None


def _program_of(texts: dict[Any, Any], tags: Any) -> str | None:
    """Another program whose recipe this picture carries."""
    for chunk, program in _CHUNKS.items():
        if chunk in texts:
            return program
    if texts.get("Software") == "NovelAI":
        return "NovelAI"
    for tag in (_MAKE_TAG, _MODEL_TAG):
        if str(tags.get(tag, "")).startswith(("workflow:", "prompt:")):
            return "ComfyUI"
    return None


def _first_words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
