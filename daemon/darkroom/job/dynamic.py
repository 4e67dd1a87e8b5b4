"""Dynamic prompts: ``{a|b}`` and ``__name__``, chosen by the picture's seed before anything is rendered.

The syntax and the choosing are those of the dynamicprompts library, known from A1111's extension. What may hang or
recurse there is caught before: see ``choosing`` and ``wildcards``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from darkroom.config import Prompts
from darkroom.errors import FieldError, InvalidRequest
from darkroom.job.types import MAX_SEED, Request
from darkroom.job.wildcards import Refused, Wildcards

NOT_DYNAMIC = "The dynamic prompt cannot be used"

_TEMPLATES = {"prompt": "template", "negative_prompt": "negative_template"}
_MARKS = ("{", "__", "$", "%", "#", "//", "/*")
"""What may begin anything but plain text."""

Choose = Callable[[str, str, int], str]
"""Field, template and seed to the text chosen."""


def choose_words(request: Request, settings: Prompts) -> Request:
    """The request with its dynamic prompts chosen, the templates kept beside; as it is where nobody asked for that.

    Each picture has a choice of its own, by its seed. With a matrix there is one, by the job's seed, so that its cells
    can be compared. A request that tells its ``template`` was chosen before. Raises InvalidRequest.
    """
    seed = request.seed
    asked = request.dynamic if request.dynamic is not None else settings.dynamic and request.template is None
    if not asked or seed is None or not _is_dynamic(request):
        return request
    choose = _chooser(settings)
    chosen = _choice(request, seed, choose)
    update: dict[str, Any] = dict(chosen)
    for field, template in _TEMPLATES.items():
        if field in chosen and chosen[field] != getattr(request, field):
            update[template] = getattr(request, field)
    count = request.count or 1
    if request.matrix is not None:
        update["matrix"] = {
            field: [choose(field, value, seed) for value in values] if field in _TEMPLATES else values
            for field, values in request.matrix.items()
        }
    if request.cells is not None:
        update["cells"] = [
            {field: choose(field, value, seed) if field in _TEMPLATES else value for field, value in cell.items()}
            for cell in request.cells
        ]
    if request.matrix is None and request.cells is None and count > 1:
        seeds = [(seed + index) % (MAX_SEED + 1) for index in range(count)]
        cells = [_choice(request, picture, choose) | {"seed": picture} for picture in seeds]
        update |= {"cells": cells, "count": 1}
    return request.model_copy(update=update)


def _is_dynamic(request: Request) -> bool:
    cells = [
        *(request.cells or ()),
        *({field: value} for field, values in (request.matrix or {}).items() for value in values),
    ]
    texts = [getattr(request, field) or "" for field in _TEMPLATES]
    texts += [cell[field] for cell in cells for field in _TEMPLATES if field in cell]
    return any(mark in text for text in texts for mark in _MARKS)


def _choice(request: Request, seed: int, choose: Choose) -> dict[str, Any]:
    texts = {field: getattr(request, field) for field in _TEMPLATES}
    return {field: choose(field, text, seed) for field, text in texts.items() if text}


def _chooser(settings: Prompts) -> Choose:
    from darkroom.job.choosing import Chooser  # brings the library

    chooser = Chooser(Wildcards(settings.wildcards_dir))

    def choose(field: str, text: str, seed: int) -> str:
        if not any(mark in text for mark in _MARKS):
            return text
        try:
            return chooser.choose(text, seed)
        except Refused as refused:
            fault = FieldError(str(refused), field, got=refused.got, hint=refused.hint)
            raise InvalidRequest.of(NOT_DYNAMIC, [fault]) from None

    return choose
