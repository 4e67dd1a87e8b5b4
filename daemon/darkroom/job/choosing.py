"""The border to the dynamicprompts library: texts to its commands, commands to a choice. Imported only when needed."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, TypeVar

import pyparsing
from dynamicprompts.commands import Command, LiteralCommand, SamplingMethod, VariantCommand, WildcardCommand
from dynamicprompts.parser.parse import parse
from dynamicprompts.samplers.random import RandomSampler
from dynamicprompts.sampling_context import SamplingContext
from dynamicprompts.sampling_result import SamplingResult
from dynamicprompts.types import ResultGen
from dynamicprompts.wildcards import WildcardManager
from dynamicprompts.wildcards.values import WildcardValues

from darkroom.job.types import MAX_TEXT
from darkroom.job.wildcards import Refused, Wildcards
from darkroom.strict_json import shown

T = TypeVar("T")

MOST_MARKS = 200
"""So many braces and wildcards in one text: the library takes some milliseconds to read each."""
MOST_DEPTH = 10
LONGEST_S = 3.0
"""For all choices of a job."""


class Chooser:
    """Chooses for one job, from templates that are read once."""

    def __init__(self, wildcards: Wildcards) -> None:
        self._wildcards = wildcards
        self._commands: dict[str, Command] = {}
        self._checked: set[str] = set()
        self._until = time.monotonic() + LONGEST_S

    def choose(self, template: str, seed: int) -> str:
        """What the template becomes with that seed; the same each time. Raises Refused."""
        command = self._commands.get(template)
        if command is None:
            command = self._commands[template] = self._read(template)
            self._check(command, ())
        self._in_time()
        self._wildcards.lookups = 0
        manager = _Manager(self._wildcards)
        sampler = _Sampler()
        context = SamplingContext(
            default_sampling_method=SamplingMethod.RANDOM,
            wildcard_manager=manager,
            samplers=dict.fromkeys(SamplingMethod, sampler),
            rand=Random(seed),
        )
        chosen = self._of_the_library(template, lambda: str(next(iter(context.sample_prompts(command, 1)))))
        if not 1 <= len(chosen) <= MAX_TEXT:
            raise Refused(f"a choice of {len(chosen):,} characters came of it; 1 to {MAX_TEXT:,} are allowed")
        return chosen

    def _in_time(self) -> None:
        if time.monotonic() > self._until:
            raise Refused(f"to choose takes longer than {LONGEST_S:g} s", "ask for fewer choices, or fewer pictures")

    def _read(self, text: str) -> Command:
        if sum(text.count(mark) for mark in ("{", "__")) > MOST_MARKS:
            raise Refused(f"there are more than {MOST_MARKS} braces and wildcards in it", "make wildcards of some")
        if _depth(text) > MOST_DEPTH:
            raise Refused(f"braces are nested more than {MOST_DEPTH} deep", "make wildcards of the inner ones")
        return self._of_the_library(text, lambda: parse(text))

    def _of_the_library(self, text: str, do: Callable[[], T]) -> T:
        """What it does, its complaints translated."""
        try:
            with warnings.catch_warnings(action="ignore"):
                return do()
        except Refused:
            raise
        except pyparsing.ParseBaseException as error:
            hint = 'in a dynamic prompt { } | $ % # and __ have a meaning; without "dynamic" they are plain text'
            raise Refused(f'it cannot be read from "{shown(text[error.loc :][:20])}" on', hint) from None
        except RecursionError:
            raise Refused("it contains itself, or is nested too deeply") from None
        except Exception as error:  # whatever comes up in the depths of the library
            raise Refused(f"it cannot be used: {shown(str(error))}") from None

    def _check(self, command: Command, within: tuple[str, ...]) -> None:
        """Each wildcard that may come up is there, and none contains itself. Raises Refused."""
        self._in_time()
        for part in _parts(command):
            if part.sampling_method in (SamplingMethod.COMBINATORIAL, SamplingMethod.CYCLICAL) and not within:
                hint = 'for every combination, give the choices to "matrix": {"prompt": […]}'
                raise Refused("{!…} and {@…} ask for one choice after the other, and a picture has one", hint)
            if isinstance(part, WildcardCommand) and (name := _plain_name(part)) is not None:
                self._check_wildcard(name, within)

    def _check_wildcard(self, name: str, within: tuple[str, ...]) -> None:
        if name in within:
            raise Refused(f"the wildcard {' → '.join((*within, name))} contains itself", "break the circle", name)
        if name in self._checked:
            return
        self._wildcards.lookups = 0
        for value in self._wildcards.values(name):
            if "__" in value:
                self._check(self._read(value), (*within, name))
        self._checked.add(name)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "{}":
            depth = max(0, depth + (1 if character == "{" else -1))
            deepest = max(deepest, depth)
    return deepest


def _parts(value: Any) -> Iterator[Command]:
    """A command, and all that are in it."""
    if isinstance(value, Command):
        yield value
    if isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))


def _plain_name(command: WildcardCommand) -> str | None:
    """Its name, where that is not itself to be chosen."""
    wildcard = command.wildcard
    if isinstance(wildcard, LiteralCommand):
        return wildcard.literal
    return wildcard if isinstance(wildcard, str) else None


class _Manager(WildcardManager):
    """Ours in the place of the library's, which reads files by itself and lets missing ones pass."""

    def __init__(self, wildcards: Wildcards) -> None:
        super().__init__()
        self._wildcards = wildcards

    def get_values(self, wildcard: str) -> WildcardValues:
        """The texts of a wildcard. Raises Refused."""
        return WildcardValues.from_items(self._wildcards.values(wildcard))


class _Sampler(RandomSampler):
    """``{2$$__colour__}`` without reading each text of the wildcard, of which there may be thousands."""

    def _get_variant(self, command: VariantCommand, context: SamplingContext) -> ResultGen:
        only = command.values[0] if len(command.values) == 1 else None
        if not isinstance(only, WildcardCommand):
            yield from super()._get_variant(command, context)
            return
        name = str(next(iter(context.sample_prompts(only.wildcard, 1))))
        values = context.wildcard_manager.get_values(name).string_values
        inner = context.with_variables(only.variables)
        while True:
            wanted = context.rand.randint(min(command.min_bound, len(values)), min(command.max_bound, len(values)))
            chosen = context.rand.sample(values, wanted)
            texts = [str(next(iter(inner.sample_prompts(value, 1)))) for value in chosen]
            yield SamplingResult(command.separator.join(texts))
