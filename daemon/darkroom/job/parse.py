"""Bytes of a dropped file → ``Request``; every fault with its field, its line and a remedy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from darkroom import strict_json
from darkroom.errors import FieldError, InvalidRequest, Unfinished
from darkroom.job.a1111 import HIRES_FIELDS, SPELLED, SPELLINGS, take_several
from darkroom.job.aliases import ALIASES, DO_NOTHING, changes_nothing
from darkroom.job.entry import is_entry, named, unwrap
from darkroom.job.types import Request
from darkroom.job.variations import check_variations

Fields = Mapping[str, Any]
"""Fields of a job by our names."""

Presets = Mapping[str, Fields]

NO_FIELDS: Fields = MappingProxyType({})
NO_PRESETS: Presets = MappingProxyType({})

Others = Callable[[Request], Iterable[FieldError]]
"""What else is wrong with a job of which only what is sound is left."""


def no_others(request: Request) -> Iterable[FieldError]:
    """Where nobody looks."""
    return ()


_FIELDS = tuple(field for field in Request.model_fields if field != "source")
_WITHIN = re.compile(r"(matrix|cells)(?:\.([^\[.]+))?(?:\[(\d+)\])?(?:\.(.+))?", re.DOTALL)
_DID_YOU_MEAN = "did you mean {}?"
_INTERVAL_EXAMPLE = 'for example "guidance_interval": [0.1, 0.8]'
_LORA_EXAMPLE = 'for example "loras": [{"name": "blueprint", "weight": 0.8}]'
_LORA = re.compile(r"loras\[(\d+)\](?:\.(.+))?", re.DOTALL)
_OVERRIDES = "override_settings"
_OVERRIDABLE = ("sd_model_checkpoint", "CLIP_stop_at_last_layers")


def parse(data: bytes, presets: Presets = NO_PRESETS, preset: str | None = None, others: Others = no_others) -> Request:
    """Read a job file. A ``result.json`` of darkroom's counts as its job, to render the same again.

    What it leaves out is taken from the ``preset`` that it names, or that is given. Raises InvalidRequest with every
    fault found, in the order in which they stand in the file; Unfinished, a kind of it, where the text is not JSON and
    its writer may not be done with it.
    """
    document = read_json(data)
    if not is_entry(document.value):
        return _parse_value(document.value, document, (), {}, presets, preset, {}, others)
    source = {"list": document.value["list"]}
    try:
        entry = unwrap(document)
        given = _translate(entry.defaults)[0]
        return _parse_value(entry.value, entry.document, entry.prefix, given, presets, preset, source, others)
    except InvalidRequest as error:
        raise InvalidRequest(named(source) + error.message, errors=error.errors) from None


def _parse_value(
    value: Any,
    document: strict_json.Document,
    prefix: strict_json.Path,
    given: Fields,
    presets: Presets,
    preset: str | None,
    source: dict[str, Any],
    others: Others,
) -> Request:
    if not isinstance(value, dict):
        line, column = document.place(prefix)
        example = 'for example {"prompt": "a red circle"}'
        error = FieldError("a job is a JSON object", line=line, column=column, got=_shown(value), hint=example)
        raise InvalidRequest(f"This is not a job: {error.message} ({error.hint}).", errors=(error,))
    if "darkroom" in value and "pictures" in value and "job" in value:
        value, prefix = value["job"], (*prefix, "job")
        if not isinstance(value, dict):
            error = FieldError("this result has no job to render again: it failed before it had one", "job")
            raise InvalidRequest(f"{error.message[0].upper()}{error.message[1:]}.", errors=(error,))
        given = {**given, "dynamic": False}
    return parse_fields(
        value, document, prefix, given=given, presets=presets, preset=preset, source=source, others=others
    )


def read_json(data: bytes, lists: Container[strict_json.Path] = ()) -> strict_json.Document:
    """The JSON of a file. Raises InvalidRequest; Unfinished, a kind of it, where its writer may not be done with it."""
    try:
        return strict_json.parse(strict_json.decode(data), lists)
    except strict_json.JSONFault as fault:
        error = FieldError(fault.message, line=fault.line, column=fault.column, hint=fault.hint)
        kind = InvalidRequest if is_whole(data) else Unfinished
        raise kind(f"This is not valid JSON: {error}.", errors=(error,)) from None


def is_whole(data: bytes) -> bool:
    """Whether a lenient parser takes it: then it is all there, and only our strictness refuses it."""
    try:
        json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def parse_fields(
    fields: dict[str, Any],
    document: strict_json.Document | None = None,
    prefix: strict_json.Path = (),
    *,
    given: Fields = NO_FIELDS,
    presets: Presets = NO_PRESETS,
    preset: str | None = None,
    source: dict[str, Any] | None = None,
    others: Others = no_others,
) -> Request:
    """The same for fields that are parsed already. ``given`` are what they leave out. Raises InvalidRequest."""
    own, written, errors = _translate(fields)
    chosen = own.get("preset") or given.get("preset") or preset
    if chosen is not None and not (isinstance(chosen, str) and chosen in presets):
        errors.append(_no_preset(chosen, presets))
        chosen = None
    defaults: Fields = {} if chosen is None else {**presets[chosen], "preset": chosen}
    canonical = {**defaults, **given, **own}
    errors += check_variations(canonical, explain)
    if source:
        canonical["source"] = source
    sound = canonical
    try:
        request = Request.model_validate(canonical)
    except ValidationError as error:
        misspelled = any(error.hint == _DID_YOU_MEAN.format("prompt") for error in errors)
        errors += [
            explain(fault, written) for fault in error.errors() if not (fault["type"] == "missing" and misspelled)
        ]
        faulty = {fault["loc"][0] for fault in error.errors()}
        sound = {"prompt": "a"} | {field: value for field, value in canonical.items() if field not in faulty}
    else:
        if not errors:
            return request
    errors += others(Request.model_validate(sound))
    taken = _taken(given, chosen, defaults)
    raise _refusal([_with_origin(error, own, taken) for error in errors], document, prefix)


def check_fields(
    fields: dict[str, Any], document: strict_json.Document | None = None, prefix: strict_json.Path = ()
) -> dict[str, Any]:
    """Some of a job's fields, by our names for them. Raises InvalidRequest as ``parse_fields``."""
    canonical, written, errors = _translate(fields)
    errors += check_variations(canonical, explain)
    try:
        Request.model_validate({"prompt": "a", **canonical})
    except ValidationError as error:
        errors += [explain(fault, written) for fault in error.errors()]
    if errors:
        raise _refusal(errors, document, prefix)
    return canonical


def _refusal(
    errors: list[FieldError], document: strict_json.Document | None, prefix: strict_json.Path
) -> InvalidRequest:
    placed = [_place(error, document, prefix) for error in errors]
    placed.sort(key=lambda error: (error.line is None, error.line, error.column))
    return InvalidRequest.of("The job is not valid", placed)


def _no_preset(name: Any, presets: Presets) -> FieldError:
    near = difflib.get_close_matches(str(name), presets, n=3, cutoff=0.4)
    known = f"there are: {', '.join(presets)}" if presets else "none is set up: see [presets] in config.toml"
    hint = f"did you mean {' or '.join(near)}?" if near else known
    return FieldError("there is no such preset", "preset", got=_shown(name), hint=hint)


def _translate(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[FieldError]]:
    """Other tools' names into ours. Returns the fields, which name each was written by, and the faults."""
    canonical: dict[str, Any] = {}
    written: dict[str, str] = {}
    errors: list[FieldError] = []

    def take(name: str, value: Any, spelling: str) -> None:
        if name in canonical:
            errors.append(
                FieldError(
                    f"the same as {written[name]}, which stands here too", spelling, hint=f"keep one, best {name}"
                )
            )
            return
        canonical[name] = value
        written[name] = spelling

    overrides = fields.get(_OVERRIDES)
    for spelling, value in (overrides if isinstance(overrides, dict) else {}).items():
        if spelling in _OVERRIDABLE:
            take(ALIASES[spelling], value, f"{_OVERRIDES}.{spelling}")
        elif value is not None:
            errors.append(_dishonoured(f"{_OVERRIDES}.{spelling}", value))
    for spelling, value in fields.items():
        if spelling in SPELLED or (spelling == _OVERRIDES and isinstance(value, dict)):
            continue
        if spelling in _FIELDS:
            take(spelling, value, spelling)
        elif spelling in ALIASES:
            take(ALIASES[spelling], value, spelling)
        elif not changes_nothing(spelling, value):
            errors.append(_unknown(spelling, value))
    take_several(fields, take, errors)
    return canonical, written, errors


def _unknown(field: str, value: Any) -> FieldError:
    if field == "jobs":
        return FieldError("a list of jobs cannot stand within a job", field, hint="a list holds jobs alone")
    if field in DO_NOTHING:
        return _dishonoured(field, value)
    near = difflib.get_close_matches(field.casefold(), [*_FIELDS, *ALIASES, *SPELLED], n=1, cutoff=0.5)
    hint = _DID_YOU_MEAN.format(near[0]) if near else "the fields are: " + ", ".join(_FIELDS)
    return FieldError("unknown field", field, got=_shown(value), hint=hint)


def _dishonoured(field: str, value: Any) -> FieldError:
    return FieldError("darkroom cannot do this of A1111's API", field, got=_shown(value), hint="remove the field")


def explain(fault: Any, written: Mapping[str, str]) -> FieldError:
    """One of pydantic's errors in words for the person who wrote the file."""
    name = str(fault["loc"][0])
    field = written.get(name, name)
    if name == "hires" and len(fault["loc"]) > 1:
        part = str(fault["loc"][1])
        field = HIRES_FIELDS.get(part, part) if field == "enable_hr" else f"hires.{part}"
    if name == "loras" and len(fault["loc"]) > 1:
        index, *rest = fault["loc"][1:]
        field = ".".join([f"{field}[{index}]", *map(str, rest)])
    value, context = fault.get("input"), fault.get("ctx", {})
    hint: str | None = None
    match fault["type"]:
        case "missing" if name == "loras":
            return FieldError("a LoRA needs a name", field.rpartition(".")[0], hint=_LORA_EXAMPLE)
        case "extra_forbidden" if name == "loras":
            return FieldError("unknown field", field, got=_shown(value), hint=_LORA_EXAMPLE)
        case "tuple_type" | "model_type" if name == "loras":
            what = "a list of LoRAs" if field == "loras" else "a LoRA"
            return FieldError(f"must be {what}", field, got=_shown(value), hint=_LORA_EXAMPLE)
        case "missing":
            return FieldError("a job needs a prompt", "prompt", hint='for example "prompt": "a red circle"')
        case "int_type" | "int_from_float":
            message = "must be a whole number"
            hint = _hint_for_number(value)
        case "float_type":
            message = "must be a number"
            hint = _hint_for_number(value)
        case "string_type":
            message = "must be a text"
            hint = "put it in double quotes" if isinstance(value, int | float) else None
        case "literal_error":
            message = f"must be {context['expected'].replace(chr(39), chr(34))}"
            near = difflib.get_close_matches(str(value).casefold(), re.findall("'(.*?)'", context["expected"]), n=1)
            hint = f'write "{near[0]}"' if near else None
        case "greater_than":
            message = f"must be more than {context['gt']:g}"
        case "greater_than_equal":
            message = f"must be at least {context['ge']:g}"
        case "less_than_equal":
            limit = context["le"]
            message = f"must be at most {limit:g}" if isinstance(limit, float) else f"must be at most {limit}"
        case "string_too_short" | "too_short":
            message = "must not be empty"
        case "string_too_long" | "too_long":
            message = f"has {len(value):,} characters; at most {context['max_length']:,} are allowed"
        case _:
            message = str(fault["msg"]).removeprefix("Value error, ")
            hint = _INTERVAL_EXAMPLE if name == "guidance_interval" else None
    return FieldError(message, field, got=_shown(value), hint=hint)


def _hint_for_number(value: Any) -> str | None:
    if isinstance(value, str):
        return "remove the quotes" if value.strip().lstrip("-").replace(".", "", 1).isdigit() else None
    if isinstance(value, bool):
        return "true and false are not numbers"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}"
    return None


def _shown(value: Any) -> Any:
    """The value for the report: short, and free of what JSON cannot hold."""
    if isinstance(value, str):
        return strict_json.shown(value)
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)}"
    return value


def _place(error: FieldError, document: strict_json.Document | None, prefix: strict_json.Path) -> FieldError:
    """The same fault, its field by the name that it has in the file, and where that stands."""
    if document is None or error.field is None:
        return error
    for field in (error.field, *_spelled(error.field)):
        line, column = document.place((*prefix, *_path(field)))
        if line is not None:
            return FieldError(error.message, strict_json.shown(field), line, column, error.got, error.hint)
    return replace(error, field=strict_json.shown(error.field))


def _taken(given: Fields, preset: str | None, defaults: Fields) -> dict[str, str]:
    """Where fields come from that a job leaves out: by field, in words."""
    return dict.fromkeys(defaults, f'the preset "{preset}"') | dict.fromkeys(given, "the list's defaults")


def _with_origin(error: FieldError, own: Container[str], taken: Mapping[str, str]) -> FieldError:
    """The same fault, which says so where its field is none of the job's ``own``."""
    field = re.split(r"[.\[]", error.field or "")[0]
    if field in own or field not in taken:
        return error
    return replace(error, hint="; ".join(filter(None, (error.hint, f"it comes from {taken[field]}"))))


def _path(field: str) -> strict_json.Path:
    """``cells[3].seed``, as faults name it, to its keys."""
    if field.startswith((f"{_OVERRIDES}.", "hires.")):
        return tuple(field.split(".", 1))
    if (lora := _LORA.fullmatch(field)) is not None:
        return ("loras", int(lora[1]), *([lora[2]] if lora[2] else []))
    if (within := _WITHIN.fullmatch(field)) is not None:
        return tuple(int(part) if part.isdigit() else part for part in within.groups() if part is not None)
    return (field,)


def _spelled(field: str) -> list[str]:
    """How else a field may be written, where it stands among others or varies."""
    within = _WITHIN.fullmatch(field)
    name = field if within is None else within[2] or within[4]
    aliases = [spelling for spelling, ours in ALIASES.items() if ours == name]
    overrides = [f"{_OVERRIDES}.{spelling}" for spelling in aliases if spelling in _OVERRIDABLE and name == field]
    return [field.replace(str(name), other) for other in (*SPELLINGS.get(field, ()), *aliases, *overrides)]


def placed(
    error: InvalidRequest, data: bytes, presets: Presets = NO_PRESETS, preset: str | None = None
) -> InvalidRequest:
    """The same, each fault with its place in the job file ``data``: for what was found after the file was read.

    What is not in it comes from the ``preset``, or from the defaults of the list that it was an entry of.
    """
    try:
        document = strict_json.parse(strict_json.decode(data))
    except strict_json.JSONFault:
        return error
    prefix: strict_json.Path = ("job",) if ("job", "prompt") in document.places else ()
    of, given = "", NO_FIELDS
    if is_entry(document.value):
        entry = unwrap(document)
        document, prefix, of = entry.document, entry.prefix, named({"list": entry.source})
        given = _translate(entry.defaults)[0]
    taken = _taken(given, preset, presets.get(preset or "", NO_FIELDS))
    faults, message = [], error.message
    for fault in error.errors:
        found = _place(fault, document, prefix) if fault.line is None else fault
        found = _with_origin(found, (), taken) if found.line is None else found
        message = message.replace(str(fault), str(found))
        faults.append(found)
    return InvalidRequest(of + message.removeprefix(of), errors=tuple(faults))
