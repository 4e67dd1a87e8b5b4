"""A picture to the bytes of its file, its recipe inside; ``recipes`` reads it back.

Where the recipe is:

- PNG: text chunks ``parameters`` (A1111's infotext) and ``darkroom`` (ours, JSON), besides ``Software`` and ``Source``.
- JPEG, WebP: EXIF ``UserComment`` (infotext) and the XMP property ``darkroom:recipe`` (ours, JSON), besides EXIF's
  ``Software`` and ``HostComputer``.

Ours is a job file: dropped into an inbox it renders this one picture again. A JPEG holds 64 KiB of each kind: what is
longer (two prompts of ten thousand emoji) stays out of it, and is in result.json.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from xml.sax import saxutils

from PIL import Image

from darkroom import __version__
from darkroom.job import Job
from darkroom.output.infotext import NO_HASHES, infotext

_EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_SOFTWARE = f"darkroom {__version__}"
XMP_NAMESPACE = "urn:darkroom:1.0/"
_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes one each time
_JPEG_SEGMENT = 65_533 - len("http://ns.adobe.com/xap/1.0/\0")


def extension(output_format: str) -> str:
    """How names of files in this format end: ``png``, ``jpg`` or ``webp``."""
    return _EXTENSIONS[output_format]


def encode(
    image: Image.Image,
    job: Job,
    *,
    seed: int,
    device: str,
    model_hash: str | None = None,
    lora_hashes: Mapping[str, str] = NO_HASHES,
) -> bytes:
    """The file's bytes, in the job's format; PNG keeps every pixel. The same arguments give the same bytes."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    text = infotext(job, seed=seed, model_hash=model_hash, lora_hashes=lora_hashes)
    own = _json(job.recipe() | {"seed": seed, "count": 1})
    if job.output_format == "png":
        from darkroom.output.png import png  # brings numpy, which whoever reads recipes can do without

        return png(image, {"parameters": text, "darkroom": own, "Software": _SOFTWARE, "Source": device})
    file = io.BytesIO()
    if job.output_format == "webp":
        image.save(file, "WEBP", quality=job.quality, exif=_exif(text, device), xmp=_xmp(own))
    else:
        exif, xmp = _exif(text, device), _xmp(own)
        if len(exif) > _JPEG_SEGMENT:
            exif = _exif(None, device)
        if len(xmp) > _JPEG_SEGMENT:
            xmp = b""
        image.save(file, "JPEG", quality=job.quality, subsampling="4:4:4", optimize=True, exif=exif, xmp=xmp)
    return file.getvalue()


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels. Raises ValueError where the bytes are no picture, or not all of one."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.size
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a picture, or not all of one: {error}") from None


def _xmp(own: str) -> bytes:
    """An XMP packet with one property. XML has no U+FFFE and U+FFFF: they are written as JSON escapes."""
    own = saxutils.escape(own.replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff"))
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:darkroom="{XMP_NAMESPACE}">'
        f"<darkroom:recipe>{own}</darkroom:recipe></rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="r"?>'
    ).encode()


_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_SOFTWARE_TAG, _HOST_TAG = 0x0131, 0x013C
EXIF_TAG, COMMENT_TAG = 0x8769, 0x9286


def _exif(comment: str | None, device: str) -> bytes:
    """An EXIF block with the comment as UserComment.

    Written here because Pillow stores the comment as a list of numbers, on which A1111 and piexif's helper fail; it
    must be type 7, ``UNICODE``, NUL, then UTF-16 with the big end first.
    """
    facts = [
        (_SOFTWARE_TAG, _ASCII, _SOFTWARE.encode() + b"\0"),
        (_HOST_TAG, _ASCII, device.encode("ascii", "replace") + b"\0"),
    ]
    if comment is None:
        return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + _directory(facts, 8)
    pointer = (EXIF_TAG, _LONG, bytes(4))
    inner_at = 8 + len(_directory([*facts, pointer], 8))
    pointer = (EXIF_TAG, _LONG, struct.pack(">I", inner_at))
    inner = _directory([(COMMENT_TAG, _UNDEFINED, b"UNICODE\0" + comment.encode("utf-16-be"))], inner_at)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + _directory([*facts, pointer], 8) + inner


def _directory(entries: list[tuple[int, int, bytes]], at: int) -> bytes:
    """A TIFF directory that begins at offset ``at``: tag, type and value of each entry, tags ascending."""
    values_at = at + 2 + 12 * len(entries) + 4
    head, values = struct.pack(">H", len(entries)), b""
    for tag, kind, value in entries:
        count = 1 if kind == _LONG else len(value)
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", values_at + len(values))
        head += struct.pack(">HHI", tag, kind, count) + field
        if len(value) > 4:
            values += value + b"\0" * (len(value) % 2)
    return head + bytes(4) + values
