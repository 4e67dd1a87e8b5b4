"""The package changes the disk through one module, so that every change can be counted, refused and crashed at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import darkroom

PACKAGE = Path(darkroom.__file__).parent

CHANGES = {
    "os": {
        *("chmod", "chown", "fchmod", "fchown", "fdatasync", "fsync", "ftruncate", "lchown", "link", "makedirs"),
        *("mkdir", "mkfifo", "mknod", "posix_fallocate", "pwrite", "pwritev", "remove", "removedirs", "removexattr"),
        *("rename", "renames", "replace", "rmdir", "sendfile", "setxattr", "splice", "symlink", "sync", "truncate"),
        *("unlink", "utime", "write", "writev", "copy_file_range", "fdopen", "open"),
    },
    "shutil": {"*"},
    "tempfile": {"*"},
}
"""Functions of the library that can change a disk. ``open`` and ``fdopen`` are looked at more closely."""

METHODS = {
    *("chmod", "hardlink_to", "lchmod", "link_to", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink"),
    *("write_bytes", "write_text", "save"),
}
"""Methods of ``Path`` and of pictures that do; ``replace`` is told from that of texts by its number of arguments."""

WRITING_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"}

DISKS = {"disk", "_disk"}
"""What an instance of ``Disk`` is called."""

WRITERS = {
    "spool/disk.py": "the module",
    "bench/drop.py": "a folder of its own, which is measured in",
    "bench/engine.py": "the same",
    "bench/publish.py": "the same",
    "bench/spool.py": "the same, with the bare calls that the spool is measured against",
    "bench/start.py": "the same",
    "cli/bench.py": "those folders, and the picture of the figures",
    "engine/architectures.py": "models of random weights in them",
}

ALLOWED = {
    (
        "spool/lock.py",
        "os.open",
    ): "the lock's own descriptor, made by whoever comes first; the disk module writes to it",
    ("intake/wake.py", "os.write"): "a pipe, not a file",
    ("cli/__init__.py", "open"): "the null device, in place of an output that is closed or full",
    ("cli/__init__.py", "os.open"): "the same",
    ("logs.py", "open"): "the same",
    ("engine/cache.py", "mkdir"): "the cache of measurements of this machine, in the user's cache folder",
    ("engine/cache.py", "tempfile.NamedTemporaryFile"): "the same",
    ("engine/cache.py", "replace"): "the same",
    ("engine/cache.py", "unlink"): "the same",
    ("engine/openvino/conversions.py", "mkdir"): "converted models, in the same cache",
    ("engine/openvino/conversions.py", "tempfile.mkdtemp"): "the same",
    ("engine/openvino/conversions.py", "write_text"): "the same",
    ("engine/openvino/conversions.py", "rename"): "the same",
    ("engine/openvino/conversions.py", "os.open"): "the same",
    ("engine/openvino/conversions.py", "os.fsync"): "the same",
    ("engine/openvino/conversions.py", "os.utime"): "the same",
    ("engine/openvino/conversions.py", "shutil.rmtree"): "the same",
    ("engine/openvino/convert.py", "save"): "the same",
    ("engine/openvino/quantizing.py", "save"): "the same",
    ("engine/memory/underway.py", "mkdir"): "the same",
    ("engine/memory/underway.py", "os.open"): "the same",
    ("engine/memory/underway.py", "os.pwrite"): "the same",
    ("models/hub.py", "mkdir"): "models from the hub, in the user's cache folder",
    ("models/hub.py", "rename"): "the same",
    ("models/hub.py", "shutil.rmtree"): "the same",
    ("output/encode.py", "save"): "into memory",
    ("engine/benchmark.py", "save"): "the same",
    ("output/grid.py", "save"): "the same",
    ("output/sheet.py", "save"): "the same",
    ("output/thumbnail.py", "save"): "the same",
    ("engine/preview.py", "save"): "the same",
    ("check.py", "shutil.which"): "looks, and changes nothing",
    ("cli/run.py", "save"): "the contact sheet, where the user asked for it",
}
"""File and call, and why it may."""


def changes(path: Path) -> Iterator[tuple[str, int]]:
    """The calls in a file that can change a disk, and their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: dict[str, str] = {}
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                modules |= {alias.asname or alias.name: alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in aliases}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in modules:
                called = f"{modules[owner]}.{name}"
            case ast.Attribute(value=ast.Name(id=owner), attr="open") if names.get(owner, "").startswith("PIL."):
                continue
            case ast.Name(id=name):
                called = names.get(name, name)
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner)) if owner in DISKS:
                continue
            case ast.Attribute(attr=name):
                called = f".{name}"
            case _:
                continue
        if _can_change(called, node):
            yield called.removeprefix("."), node.lineno


def _can_change(called: str, call: ast.Call) -> bool:
    module, _, name = called.rpartition(".")
    if module in CHANGES:
        if name in ("open", "fdopen"):
            return bool(WRITING_FLAGS & _flags(call)) or _mode(call, 1) - set("rb") != set()
        return name in CHANGES[module] or "*" in CHANGES[module]
    if called in ("open", "io.open"):
        return _mode(call, 1) - set("rb") != set()
    if module:
        return False
    match called:
        case ".open":
            return _mode(call, 0) - set("rb") != set()
        case ".replace":
            return len(call.args) == 1 and not call.keywords
        case ".rename":
            return len(call.args) == 1
    return called.startswith(".") and name in METHODS


def _flags(call: ast.Call) -> set[str]:
    """Names in the second argument; where it is a variable, any flag is possible."""
    if len(call.args) < 2:
        return set()
    nodes = list(ast.walk(call.args[1]))
    if any(isinstance(node, ast.Name) and node.id != "os" for node in nodes):
        return WRITING_FLAGS
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _mode(call: ast.Call, position: int) -> set[str]:
    """The letters of a mode; a mode that is not written down could be any."""
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[position : position + 1]
    match modes:
        case []:
            return set()
        case [ast.Constant(value=str(mode))]:
            return set(mode)
        case [ast.BinOp()]:
            return set()  # flags: looked at by ``_flags``
    return {"?"}


def found() -> Iterator[tuple[str, str, int]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in WRITERS:
            yield from ((name, called, line) for called, line in changes(path))


def test_nothing_but_the_disk_module_changes_the_disk() -> None:
    strays = [f"{name}:{line}: {called}" for name, called, line in found() if (name, called) not in ALLOWED]
    assert not strays, "go through Disk, or say in ALLOWED why not:\n" + "\n".join(strays)


def test_the_list_of_exceptions_holds_no_more_than_there_are() -> None:
    assert set(ALLOWED) == {(name, called) for name, called, _ in found()}


def test_the_disk_module_itself_is_seen_to_change_the_disk() -> None:
    seen = {called for called, _ in changes(PACKAGE / "spool" / "disk.py")}
    calls = ("mkdir", "rename", "link", "unlink", "rmdir", "fsync", "write", "open")
    assert {f"os.{call}" for call in calls} <= seen


@pytest.mark.parametrize(
    "line",
    [
        "import os; os.fsync(3)",
        "import os as system; system.rename(a, b)",
        "from os import replace; replace(a, b)",
        "import os; os.open(a, os.O_RDONLY | os.O_CREAT)",
        "import os; os.open(a, flags)",
        "from shutil import rmtree; rmtree(a)",
        "open(a, 'w')",
        "open(a, mode)",
        "a.open('ab')",
        "a.open(mode='r+')",
        "(a / b).write_text(c)",
        "a.replace(b)",
        "a.mkdir(parents=True, exist_ok=True)",
        "a.hardlink_to(b)",
    ],
)
def test_a_change_behind_its_back_is_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(line)
    assert list(changes(tmp_path / "module.py"))


@pytest.mark.parametrize(
    "line",
    [
        "open(a)",
        "open(a, 'rb')",
        "a.open()",
        "a.open('rb')",
        "import os; os.open(a, os.O_RDONLY | os.O_NOFOLLOW)",
        "import os; os.fdopen(a, 'rb')",
        "a.replace('b', 'c')",
        "import dataclasses; dataclasses.replace(a)",
        "from dataclasses import replace; replace(a, b=1)",
        "self.disk.rename(a, b)",
        "disk.replace(a, b)",
    ],
)
def test_reading_and_going_through_the_disk_is_no_change(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(line)
    assert not list(changes(tmp_path / "module.py"))
