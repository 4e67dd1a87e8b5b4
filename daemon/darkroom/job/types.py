"""The types of a job's life: request, job, result, error."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from darkroom.prompt_syntax import take_loras

MAX_SEED = 2**64 - 1
MAX_TEXT = 10_000


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character; remove it")
    try:
        value.encode()  # much quicker than to look at each character, where the text is a picture
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character; remove it") from None
    return value


def _multiple_of_8(value: int) -> int:
    if value % 8:
        below = value // 8 * 8
        raise ValueError(f"must be a multiple of 8; the nearest are {below} and {below + 8}")
    return value


def _interval(value: Any) -> Any:
    match value:
        case [int() | float() as start, int() | float() as end] if 0 <= start < end <= 1:
            if not isinstance(start, bool) and not isinstance(end, bool):
                return value
    raise ValueError("must be two fractions of the steps, first where guidance begins, then where it ends, 0 to 1")


Text = Annotated[str, AfterValidator(_text)]
Side = Annotated[int, Field(ge=64, le=65_536), AfterValidator(_multiple_of_8)]

Interval = Annotated[tuple[float, float], Field(strict=False), BeforeValidator(_interval)]

LongPrompt = Literal["chunk", "truncate"]
OnOom = Literal["degrade", "fail"]
OutputFormat = Literal["png", "jpeg", "webp"]
Decoder = Literal["full", "tiny"]


Images = Mapping[str, bytes]
"""What a job begins with, by its field (``init_image``, ``mask_image``): files of pictures, as they are."""

NO_IMAGES: Images = MappingProxyType({})


class Given(NamedTuple):
    """A picture that a job begins with: its file's name in the job's folder, its size as it is seen."""

    file: str
    width: int
    height: int


IMAGE_FIELDS = ("init_image", "mask_image")

NO_PICTURES: Mapping[str, Given] = MappingProxyType({})


class LoraUse(BaseModel):
    """One LoRA in a job: its name in ``loras_dir``, and how strongly it is applied (1 is as it was trained)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    name: Annotated[Text, Field(min_length=1, max_length=200)]
    weight: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0


def _named(value: Any) -> Any:
    """A LoRA by its name alone."""
    return {"name": value} if isinstance(value, str) else value


class Hires(BaseModel):
    """A picture made small first, then enlarged ``scale`` times and worked over at that size with ``strength``.

    ``steps`` are those of the second pass; None is as many as of the first.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    scale: Annotated[float, Field(gt=1, le=4, allow_inf_nan=False)] = 2.0
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.6
    steps: Annotated[int, Field(ge=1, le=150)] | None = None


class Request(BaseModel):
    """A job as it was asked: every field but the prompt may be left out. See docs/jobs.md for each."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), defer_build=True)

    prompt: Annotated[Text, Field(min_length=1, max_length=MAX_TEXT)]
    negative_prompt: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=150)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)] | None = None
    guidance_interval: Interval | None = None
    reuse_features: Annotated[int, Field(ge=1, le=10)] | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
    width: Side | None = None
    height: Side | None = None
    count: Annotated[int, Field(ge=1, le=1000)] | None = None
    model: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    sampler: Annotated[Text, Field(min_length=1, max_length=100)] | None = None
    schedule: Annotated[Text, Field(min_length=1, max_length=100)] | None = None
    loras: Annotated[tuple[Annotated[LoraUse, BeforeValidator(_named)], ...], Field(strict=False)] | None = None
    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    init_image: Annotated[Text, Field(min_length=1)] | None = None
    mask_image: Annotated[Text, Field(min_length=1)] | None = None
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    hires: Hires | None = None
    upscale: Annotated[float, Field(gt=1, le=4, allow_inf_nan=False)] | None = None
    decoder: Decoder | None = None
    long_prompt: LongPrompt | None = None
    on_oom: OnOom | None = None
    output_format: OutputFormat | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    matrix: dict[str, list[Any]] | None = None
    cells: list[dict[str, Any]] | None = None
    dynamic: bool | None = None
    template: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    negative_template: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    preset: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    source: dict[str, Any] | None = None
    """Where the job comes from, for the record; nobody writes this field into a job file."""


class Job(BaseModel):
    """A job with nothing left open: the same fields as ``Request``, each decided, and the job's ``id``.

    Picture ``i`` (from 0) has seed ``seed + i`` (modulo 2⁶⁴). With ``cells`` each of them has ``count`` pictures, one
    cell's after the other's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)

    id: str
    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: Interval | None = None
    """Which part of the steps has guidance; None is all of them."""
    reuse_features: int | None = None
    """The UNet's deep layers are computed in every so many looks alone; None and 1 are all of them."""
    seed: int
    width: int
    height: int
    count: int
    model: str
    sampler: str
    schedule: str
    loras: tuple[LoraUse, ...] = ()
    clip_skip: int
    init_image: str | None = None
    """The name of a picture in the job's folder; the engine gets its bytes as ``images["init_image"]``."""
    mask_image: str | None = None
    """The same for the mask: white is painted."""
    strength: float | None = None
    """How much of the picture's own is given up, 0 to 1; None without ``init_image``."""
    hires: Hires | None = None
    upscale: float | None = None
    """The finished picture is enlarged so many times."""
    decoder: Decoder | None = None
    """Whether the model's tiny VAE makes the pixels; None and ``full`` are its own."""
    long_prompt: LongPrompt
    on_oom: OnOom
    output_format: OutputFormat
    quality: int
    template: str | None = None
    """What ``prompt`` was chosen from."""
    negative_template: str | None = None
    matrix: dict[str, list[Any]] | None = None
    """What varies, by field, as it is arranged: ``cells`` are all combinations, the last field changing first."""
    cells: tuple[dict[str, Any], ...] = ()
    """What each cell changes of the fields above. The engine sees none of them, but one job for each."""
    source: dict[str, Any] = Field(default_factory=dict)
    """``preset``, and of which ``list`` it was an entry: for the record alone."""

    def recipe(self) -> dict[str, Any]:
        """The fields that make the picture: a valid request, which renders the same again."""
        fields = self.model_dump(exclude={"id", "source"}, exclude_none=True)
        return {key: value for key, value in fields.items() if value != ()}

    @property
    def total(self) -> int:
        """How many pictures there are, of all cells."""
        return self.count * max(1, len(self.cells))

    def cell_of(self, index: int) -> dict[str, Any] | None:
        """What the cell of picture ``index`` changes."""
        return self.cells[index // self.count] if self.cells else None

    def at(self, cell: int) -> Job:
        """The job of one cell, from 0, as the engine gets it."""
        if not self.cells:
            return self
        fields = self.model_dump(exclude={"matrix", "cells"})
        return Job.model_validate(fields | self.cells[cell])

    def all_loras(self) -> tuple[LoraUse, ...]:
        """Those of the field, then those of the prompt's tags. Raises BadTag."""
        _, tags = take_loras(self.prompt)
        return (*self.loras, *(LoraUse(name=name, weight=weight) for name, weight in tags))

    def seed_of(self, index: int) -> int:
        """The seed of picture ``index``, counted from 0 through all cells."""
        cell = self.cell_of(index) or {}
        place = index % self.count if self.cells else index
        return int(cell.get("seed", self.seed) + place) % (MAX_SEED + 1)


class PictureRecord(BaseModel):
    """One picture in result.json."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    file: str
    sha256: str
    bytes: int
    width: int
    height: int
    seed: int
    cell: dict[str, Any] | None = None
    """What its cell of the matrix changes."""


class Result(BaseModel):
    """result.json: what was asked, what was done, every picture, every fallback."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    darkroom: str
    id: str
    name: str
    original_name: str
    original_name_base64: str | None = None
    """The name's bytes, only where they are not UTF-8."""
    status: Literal["done", "failed", "partial"]
    request_sha256: str | None = None
    received_at: str
    started_at: str | None
    finished_at: str
    attempts: int
    seconds: dict[str, float]
    pictures: list[PictureRecord]
    grid: str | None = None
    """The picture of all pictures of a matrix."""
    shared_batch: int | None = None
    """Pictures were made in passes with another job's, of so many pictures at most."""
    entries: int | None = None
    """Of a list: how many jobs it became."""
    source: dict[str, Any] | None = None
    """The ``preset`` of the job, and the ``list`` that it was an entry of."""
    job: dict[str, Any] | None
    requested: dict[str, Any]
    fallbacks: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    device: str | None
    versions: dict[str, str]


class ErrorReport(BaseModel):
    """error.json: why a job failed, for a person."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    status: Literal["failed", "partial"]
    reason: str
    message: str
    errors: list[dict[str, Any]]
    attempts: int
    traceback: str | None
