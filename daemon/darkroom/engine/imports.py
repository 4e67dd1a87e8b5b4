"""What the engine uses of diffusers and transformers, imported without what they drag in and nobody uses here.

Both import torch's compiler (``torch._dynamo``: a thousand modules, as long as torch itself takes) for the sake of a
few decorators, which tell it how to compile their functions. While they are imported, a stand-in leaves the functions
as they are; afterwards whoever wants the compiler gets it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_STATISTICS = "scipy"


def import_libraries() -> None:
    """Import what every model needs, and silence the libraries: what matters is raised. About 1.5 s the first time."""
    try:
        with _without_compiler(), _without_scipy(), _alone():
            _import()
    except (ImportError, AttributeError, RuntimeError):  # another version of theirs insists on it
        _import()


def _import() -> None:
    with warnings.catch_warnings():
        # transformers speaks of image processors wherever torchvision is missing; none is used here
        warnings.filterwarnings("ignore", message=".*(torchvision|[Ii]mage processor).*")
        import diffusers.utils.logging
        import transformers.utils.logging

        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
        from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel  # noqa: F401
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401


@contextmanager
def unfilled_weights() -> Iterator[None]:
    """While it lasts, new weights are not filled with random numbers: for those that a file's are about to replace.

    It is not the numbers that take long, but that torch brings its compiler to fill what has no content yet.
    """
    fill = torch.nn.init.normal_
    setattr(torch.nn.init, "normal_", lambda tensor, *_, **__: tensor)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.nn.init, "normal_", fill)  # noqa: B010


@contextmanager
def _alone() -> Iterator[None]:
    """The libraries learn that there are no other processes to compute with, once and for all."""
    asked = torch.distributed.is_available
    setattr(torch.distributed, "is_available", lambda: False)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.distributed, "is_available", asked)  # noqa: B010


@contextmanager
def _without_scipy() -> Iterator[None]:
    """diffusers learns, once and for all, that there is none: its schedulers would import half a second of it."""
    absent = _STATISTICS not in sys.modules
    if absent:
        sys.modules[_STATISTICS] = None  # type: ignore[assignment]  # Python's way to have none
    try:
        yield
    finally:
        if absent:
            del sys.modules[_STATISTICS]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """While it lasts, the compiler is imported by nobody: a stand-in leaves functions as they are."""
    if _COMPILER in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.importing = False
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]
        vars(torch).pop(_COMPILER.rpartition(".")[2], None)


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for the compiler and for each of its modules."""

    importing = True

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname == _COMPILER or fullname.startswith(f"{_COMPILER}."):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


class _StandIn(ModuleType):
    """A module that has every name."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self.__finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name, self.__finder)


@dataclass(frozen=True)
class _Later:
    """A function of the compiler's: a decorator that changes nothing during the imports, the real one afterwards."""

    module: str
    name: str
    finder: _Finder

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.finder.importing:
            return getattr(importlib.import_module(self.module), self.name)(*arguments, **options)
        return arguments[0] if arguments and callable(arguments[0]) else self
