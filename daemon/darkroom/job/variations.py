"""``matrix`` and ``cells``: one job, many pictures, each made a little otherwise.

``{"seed": [1, 2], "guidance_scale": [4, 7]}`` is every combination, a cell each: the values of the last field change
first. ``cells`` lists them one by one instead, ``[{"seed": 1, "guidance_scale": 4}, …]``, as results do, and need not
be all combinations; with both, the cells count, and the matrix says how they are arranged.
"""

from __future__ import annotations

import difflib
import itertools
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from darkroom import strict_json
from darkroom.errors import FieldError
from darkroom.job.aliases import ALIASES
from darkroom.job.types import Job, Request

VARIED = (
    *("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_interval", "reuse_features"),
    *("seed", "width", "height", "model", "sampler", "schedule", "loras", "clip_skip", "strength", "hires", "upscale"),
    *("long_prompt", "decoder"),
)
"""The fields that may vary: all that make the picture, but what it begins with."""

_OR_NOT = frozenset({"guidance_interval", "reuse_features", "hires", "upscale", "decoder"})
"""Those that a cell may be without where others have them: null."""

MOST_PICTURES = 1000

Explain = Callable[[Any, dict[str, str]], FieldError]


def check_variations(fields: dict[str, Any], explain: Explain) -> list[FieldError]:
    """What is wrong with ``matrix`` and ``cells``. Aliases in them become our names, and a prompt may come of them.

    Of what is wrong nothing is left: None stands in its place.
    """
    errors: list[FieldError] = []
    if fields.get("matrix") is not None:
        fields["matrix"] = _check_matrix(fields["matrix"], errors, explain)
    if fields.get("cells") is not None:
        fields["cells"] = _check_cells(fields["cells"], errors, explain)
    matrix, cells = fields.get("matrix"), fields.get("cells")
    if "prompt" not in fields and ("prompt" in (matrix or {}) or any("prompt" in cell for cell in cells or ())):
        first = (cells[0] if cells else {}).get("prompt") or (matrix or {}).get("prompt", [None])[0]
        if first is not None or errors:
            fields["prompt"] = first or "a"
    if errors:
        return errors
    combined = math.prod(len(values) for values in matrix.values()) if matrix else 0
    if matrix and cells and combined != len(cells):
        message = f"the matrix has {combined:,} combinations, and there are {len(cells):,} cells"
        errors.append(FieldError(message, "matrix", hint="leave one of them out"))
    number, count = len(cells) if cells else combined, fields.get("count")
    if number and isinstance(count, int | None) and number * (count or 1) > MOST_PICTURES:
        pictures = f"{number:,} × {count} = {number * count:,}" if count else f"{number:,}"
        message = f"is {pictures} pictures; at most {MOST_PICTURES:,} are allowed"
        errors.append(FieldError(message, "matrix" if matrix else "cells"))
    return errors


def _check_matrix(matrix: Any, errors: list[FieldError], explain: Explain) -> dict[str, list[Any]]:
    checked: dict[str, list[Any]] = {}
    if not isinstance(matrix, dict) or not matrix:
        hint = 'for example {"seed": [1, 2], "guidance_scale": [4, 7]}'
        errors.append(FieldError("must be an object with a list for each field that varies", "matrix", hint=hint))
        return checked
    for spelling, values in matrix.items():
        field = ALIASES.get(str(spelling)) or str(spelling)
        name = f"matrix.{spelling}"
        if (fault := _cannot_vary(field, name)) is not None:
            errors.append(fault)
        elif field in checked:
            errors.append(FieldError(f"the same as {field}, which stands here too", name, hint="keep one"))
        elif not isinstance(values, list) or not values:
            errors.append(FieldError("must be a list of values", name, hint=f'for example "{spelling}": [1, 2]'))
            checked[field] = [None]
        elif len(values) > MOST_PICTURES:
            errors.append(FieldError(f"has {len(values):,} values; at most {MOST_PICTURES:,} are allowed", name))
        else:
            checked[field] = [*values]
            seen: list[Any] = []
            for index, value in enumerate(values):
                fault = _fault(field, value, f"{name}[{index}]", explain)
                if fault is None and value in seen and not (field == "seed" and value == -1):
                    fault = FieldError("stands here twice", f"{name}[{index}]", got=value, hint="keep one")
                if fault is not None:
                    errors.append(fault)
                    checked[field][index] = None
                seen.append(value)
    return checked


def _check_cells(cells: Any, errors: list[FieldError], explain: Explain) -> list[dict[str, Any]]:
    checked: list[dict[str, Any]] = []
    if not isinstance(cells, list) or not cells or len(cells) > MOST_PICTURES:
        hint = 'for example [{"seed": 1, "guidance_scale": 4}, {"seed": 2, "guidance_scale": 7}]'
        errors.append(FieldError(f"must be a list of 1 to {MOST_PICTURES:,} objects", "cells", hint=hint))
        return checked
    for index, cell in enumerate(cells):
        if not isinstance(cell, dict) or not cell:
            errors.append(FieldError("must be an object of the fields that vary", f"cells[{index}]"))
            checked.append({})
            continue
        ours: dict[str, Any] = {}
        for spelling, value in cell.items():
            field = ALIASES.get(str(spelling)) or str(spelling)
            name = f"cells[{index}].{spelling}"
            fault = _cannot_vary(field, name) or _fault(field, value, name, explain)
            if fault is not None:
                errors.append(fault)
            ours[field] = value if fault is None else None
        checked.append(ours)
    return checked


def _cannot_vary(field: str, name: str) -> FieldError | None:
    if field in VARIED:
        return None
    if field in Request.model_fields:
        return FieldError("cannot vary within a job", name, hint="these can: " + ", ".join(VARIED))
    near = difflib.get_close_matches(field.casefold(), [*VARIED, *ALIASES], n=1, cutoff=0.5)
    return FieldError(
        "unknown field", name, hint=f"did you mean {near[0]}?" if near else "these vary: " + ", ".join(VARIED)
    )


def _fault(field: str, value: Any, name: str, explain: Explain) -> FieldError | None:
    try:
        Request.model_validate({"prompt": "a", field: value})
    except ValidationError as error:
        return explain(error.errors()[0], {field: name})
    return FieldError("must not be null here", name) if value is None and field not in _OR_NOT else None


def with_seeds(request: Request) -> Request:
    """The request with a seed chosen (32 bits) wherever none was asked for."""
    update: dict[str, Any] = {"seed": _seed(request.seed)}
    if request.matrix is not None and "seed" in request.matrix:
        update["matrix"] = {**request.matrix, "seed": [_seed(seed) for seed in request.matrix["seed"]]}
    if request.cells is not None:
        update["cells"] = [
            {**cell, **({"seed": _seed(cell["seed"])} if "seed" in cell else {})} for cell in request.cells
        ]
    return request.model_copy(update=update)


def _seed(seed: int | None) -> int:
    return secrets.randbits(32) if seed is None or seed < 0 else seed


def cells_of(request: Request) -> list[dict[str, Any]]:
    """What each cell changes, in order; none for a job that does not vary."""
    if request.cells is not None:
        return request.cells
    if request.matrix is None:
        return []
    return [dict(zip(request.matrix, values, strict=True)) for values in itertools.product(*request.matrix.values())]


def values_of(cell: Mapping[str, Any]) -> str:
    """What is a cell's own, for messages: ``seed 1, guidance_scale 4``."""
    return strict_json.shown(", ".join(f"{field} {value}" for field, value in cell.items()))


def one_of(request: Request, cell: dict[str, Any]) -> Request:
    """The request of one cell by itself."""
    return Request.model_validate({**dict(request), **cell, "matrix": None, "cells": None})


def gather(request: Request, varied: list[dict[str, Any]], jobs: list[Job]) -> Job:
    """One job out of those of its cells: the first one's fields, and for each cell what differs."""
    whole = [job.model_dump(mode="json") for job in jobs]
    differing = [field for field in VARIED if any(fields[field] != whole[0][field] for fields in whole)]
    fields = dict.fromkeys((*(field for cell in varied for field in cell), *differing))
    cells = tuple({field: job[field] for field in fields} for job in whole)
    return jobs[0].model_copy(update={"matrix": request.matrix, "cells": cells})


def running_order(job: Job) -> list[int]:
    """The numbers of the cells, those of one model together: to change models costs more than a picture."""
    if not job.cells:
        return [0]
    models = [cell.get("model", job.model) for cell in job.cells]
    return sorted(range(len(models)), key=lambda number: models.index(models[number]))
