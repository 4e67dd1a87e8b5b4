from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import darkroom

PACKAGE = Path(darkroom.__file__).parent

TORCHLESS = [
    "engine.cache",
    "engine.host",
    "engine.memory",
    "engine.need",
    "engine.learned",
    "engine.hashes",
    "engine.underway",
    "engine.fitting",
    "engine.lane",
    "engine.fetching",
    "engine.conversions",
]
"""The engine's rules, as opposed to its arithmetic."""

LAYERS = [
    ["errors", "events", "strict_json", "systemd", "processes", "visible"],
    [
        "config",
        "sampling",
        "prompt_syntax",
        "weights",
        "families",
        "lora_keys",
        "loras",
        "catalog",
        "hub",
        "images",
        "job",
    ],
    ["spool", "output", "health", "logs", *TORCHLESS],
    [
        "dropped",
        "given",
        "collect",
        "intake",
        "page",
        "retention",
        "engine.attention",
        "engine.choosing",
        "engine.device",
        "engine.imports",
        "engine.architectures",
        "engine.lora",
        "engine.readings",
        "engine.served",
        "engine.openvino",
        "engine.pipeline",
        "engine.safety",
        "engine.prompt",
        "engine.flow",
        "engine.checkpoints",
        "engine.loading",
        "engine.models",
        "engine.schedulers",
        "engine.samplers",
        "engine.reuse",
        "engine.graphs",
        "engine.diffusion",
        "engine.beginning",
        "engine.quantizing",
        "engine.stepwise",
        "engine.preview",
        "engine.saving",
    ],
    [
        "engine.ahead",
        "engine.planned",
        "engine.rendering",
        "engine.flow_rendering",
        "engine.render",
        "engine.benchmark",
    ],
    ["executors"],
    [
        "pace",
        "sheets",
        "cells",
        "reading",
        "foresight",
        "record",
        "attempts",
        "opening",
        "publishing",
        "work",
        "audience",
        "metrics",
        "exporter",
        "telling",
        "onlookers",
        "reload",
        "trouble",
        "turns",
        "loop",
        "check",
        "bench",
    ],
    ["cli", "__main__"],
]
"""Lowest first. A module may import from lower rows, and in its own row from the left."""

RANKS = {name: (row, column) for row, names in enumerate(LAYERS) for column, name in enumerate(names)}

HEAVY = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "peft", "compel", "openvino"}


def modules() -> list[str]:
    """Every module of the package, as ``engine.render``."""
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
    return sorted(name.removesuffix(".__init__") for name in names if name != "__init__")


def imported(module: str) -> Iterator[tuple[str, int]]:
    """The full names that a module imports anywhere in it, functions included, and the lines."""
    path = PACKAGE.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                assert level == 0, f"{module}, line {node.lineno}: imports are absolute"
                yield from ((f"{source}.{alias.name}", node.lineno) for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name, node.lineno


def home(module: str) -> str | None:
    """The entry of the table that a module belongs to."""
    parts = module.split(".")
    return next((name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in RANKS), None)


def test_every_module_has_a_layer() -> None:
    homeless = [module for module in modules() if home(module) is None and module != "engine"]
    assert not homeless, f"say in tests/test_layers.py and ARCHITECTURE where these stand: {homeless}"


def test_no_module_reaches_upward_nor_to_the_right() -> None:
    wrong = []
    for module in modules():
        here = home(module)
        for name, line in imported(module):
            there = home(name.removeprefix("darkroom.")) if name.startswith("darkroom.") else None
            if here is None or there is None or there == here:
                continue
            if RANKS[there] > RANKS[here]:
                wrong.append(f"{module}, line {line}: {here} imports {there}")
    assert not wrong, "\n".join(wrong)


def test_only_the_engine_imports_what_is_heavy() -> None:
    wrong = [
        f"{module}, line {line}: {name}"
        for module in modules()
        if not module.startswith("engine.") or module in TORCHLESS
        for name, line in imported(module)
        if name.partition(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_s_package_itself_imports_nothing() -> None:
    assert not list(imported("engine")), "importing engine.memory must stay free of torch"


@pytest.mark.parametrize(
    "module", ["darkroom.cli", "darkroom.cli.submit", "darkroom.cli.status", "darkroom.loop", "darkroom.engine.memory"]
)
def test_the_command_line_and_the_daemon_start_without_the_heavy_libraries(module: str) -> None:
    heavy = sorted(HEAVY | {"numpy", "PIL"})
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert ran.stdout.split() == []
