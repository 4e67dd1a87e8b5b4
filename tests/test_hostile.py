"""Nothing that stands in a job reaches a path, a shell, the network or a pickle, but by the ways that are documented.

Python tells of each such act (PEP 578); every hostile text carries a mark, and no act may have it in its arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.job import Request
from engine_models import make_job, pictures, render

pytest_plugins = ("engine_fixtures",)

MARK = "zqxmark"

HOSTILE = [
    f"../../../../{MARK}",
    f"/etc/{MARK}",
    f"~root/{MARK}",
    f"file:///etc/{MARK}",
    f"https://{MARK}.example/model.safetensors",
    f"hub:{MARK}/model",
    f"{MARK}/model",
    f"\\\\{MARK}\\share\\model",
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"; touch {MARK} #",
    f"| touch {MARK}",
    f"cos\nsystem\n(S'touch {MARK}'\ntR.",
    f"__import__('os').system('touch {MARK}')",
    f"{{0.__class__.__init__.__globals__}}{MARK}",
    f"%(asctime)s%n{MARK}",
    f"<lora:../{MARK}:1>",
    f"<lora:/etc/{MARK}:1>",
    f"__../../{MARK}__",
    f"{{{MARK}|../{MARK}}}",
    f"[{MARK}:../{MARK}:0.5]",
    f"embedding:../{MARK}",
    f"{MARK}.safetensors",
    f"{MARK}.ckpt",
    f"<script>alert('{MARK}')</script>",
    f"\u202e{MARK}\x1b[2J",
]

FIELDS = sorted(Request.model_fields)

LOOKED_FOR_ON_PURPOSE = {"init_image", "mask_image"}
"""Paths by their nature: where they may lead is tested in test_pictures_in.py."""

_acts: list[tuple[str, str]] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _acts is None:
        return
    kinds = ("open", "os.", "shutil.", "subprocess.", "socket.", "pickle.", "import", "exec", "ctypes.dlopen", "glob.")
    if event.startswith(kinds):
        text = repr([argument for argument in arguments if isinstance(argument, str | bytes | list | tuple)])
        if MARK in text:
            _acts.append((event, text))


sys.addaudithook(_watch)


@pytest.fixture
def acts() -> Iterator[list[tuple[str, str]]]:
    """What was done with a hostile text in its arguments."""
    global _acts
    _acts = []
    yield _acts
    _acts = None


def test_the_watch_sees_what_it_should(acts: list[tuple[str, str]]) -> None:
    with pytest.raises(FileNotFoundError):
        Path(f"/nowhere/{MARK}").read_bytes()
    assert [event for event, _ in acts] == ["open"]


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_leads_out_of_the_spool(darkroom: Darkroom, acts: list[tuple[str, str]], field: str) -> None:
    plain = {"prompt": "a red circle", "num_inference_steps": 1, "width": 64, "height": 64, "seed": 1}
    values: list[Any] = [*HOSTILE]
    for text in HOSTILE[:2]:
        values += [[text], {"name": text}, [{"name": text, "weight": 1}], {text: [1]}, {"seed": [text]}]
    for number, value in enumerate(values):
        darkroom.drop(f"job-{number}.json", json.dumps(plain | {field: value}))
    darkroom.configure(intake={"settle_s": 0.1})
    darkroom.run_once()
    done, failed = (len(list(folder.iterdir())) for folder in (darkroom.done, darkroom.failed))
    assert done + failed >= len(values), "each has its verdict"
    led = [act for act in acts if field not in LOOKED_FOR_ON_PURPOSE or not act[0].startswith(("open", "os."))]
    assert not led, led[:5]
    assert not list(darkroom.root.parent.rglob(f"*{MARK}*")), "nothing was made"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_no_prompt_leads_the_engine_anywhere(config: Config, acts: list[tuple[str, str]], field: str) -> None:
    engine = Engine(config)
    made = 0
    for text in HOSTILE:
        if text.startswith("<lora:"):
            continue  # refused before: see above
        made += len(pictures(render(engine, make_job(num_inference_steps=1, **{field: text}))))
    engine.close()
    assert made == sum(not text.startswith("<lora:") for text in HOSTILE)
    assert not acts, acts[:5]
