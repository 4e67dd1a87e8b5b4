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
    "engine.memory.host",
    "engine.memory.plan",
    "engine.memory.need",
    "engine.memory.learned",
    "engine.hashes",
    "engine.memory.underway",
    "engine.memory.fitting",
    "engine.lane",
    "engine.fetching",
    "engine.openvino.conversions",
]
"""The engine's rules, as opposed to its arithmetic."""

LAYERS = [
    ["errors", "events", "strict_json", "systemd", "processes", "visible"],
    [
        "config",
        "sampling",
        "prompt_syntax",
        "models.weights",
        "models.families",
        "models.lora_keys",
        "models.loras",
        "models.catalog",
        "models.hub",
        "inputs.images",
        "job",
    ],
    ["spool", "output", "health", "logs", *TORCHLESS],
    [
        "dropped",
        "inputs.sources",
        "inputs.collect",
        "intake",
        "page",
        "retention",
        "engine.arguments",
        "engine.attention",
        "engine.choosing",
        "engine.device",
        "engine.imports",
        "engine.architectures",
        "engine.lora",
        "engine.readings",
        "engine.openvino.served",
        "engine.openvino.convert",
        "engine.pipeline",
        "engine.safety",
        "engine.prompt",
        "engine.flow",
        "engine.checkpoints",
        "engine.loading",
        "engine.models",
        "engine.sampling.schedulers",
        "engine.sampling.samplers",
        "engine.sampling.reuse",
        "engine.sampling.graphs",
        "engine.sampling.diffusion",
        "engine.sampling.beginning",
        "engine.openvino.quantizing",
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
        "work.pace",
        "work.sheets",
        "work.cells",
        "reading",
        "foresight",
        "work.record",
        "work.attempts",
        "work.opening",
        "work.publishing",
        "work.work",
        "viewers.audience",
        "viewers.metrics",
        "viewers.exporter",
        "viewers.notify",
        "viewers.onlookers",
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
    homeless = [module for module in modules() if home(module) is None and any(imported(module))]
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


def test_packages_of_more_than_one_layer_import_nothing_themselves() -> None:
    importing = [module for module in modules() if any(name.startswith(f"{module}.") for name in RANKS)]
    assert {"engine", "engine.memory"} <= set(importing)
    assert not [module for module in importing if any(imported(module))], "what is in them stays free of torch"


@pytest.mark.parametrize(
    "module",
    ["darkroom.cli", "darkroom.cli.submit", "darkroom.cli.status", "darkroom.loop", "darkroom.engine.memory.plan"],
)
def test_the_command_line_and_the_daemon_start_without_the_heavy_libraries(module: str) -> None:
    heavy = sorted(HEAVY | {"numpy", "PIL"})
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert ran.stdout.split() == []
