"""Networks as OpenVINO runs them, compiled for the shapes of jobs.

What is on the disk knows no sizes. It is compiled for one: small models anew for each shape, which makes them a quarter
faster than one for all, and several stay; large ones for each width and height, and one stays, since each has a copy of
the weights.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from darkroom.engine.arguments import by_name, inputs_of
from darkroom.errors import DarkroomError

PACKAGE = "openvino"

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}

_KEEP_BYTES = 512 << 20
"""What the weights of all shapes that are compiled may take together, but for those of the last."""

_MOST_SHAPES = 8

Shape = tuple[int, int, int, int]
"""Pictures in the batch, tokens, and latents along height and width."""


class Unserved(Exception):
    """OpenVINO could not do it. The message says why, in a line."""


class Served(ABC):
    """A network as OpenVINO runs it."""

    def __init__(self, file: Path, precision: str) -> None:
        self._precision = precision
        self._model = core().read_model(file)
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._size = sum(weight.numel() * weight.element_size() for weight in self.parameters())
        self._several = min(_MOST_SHAPES, _KEEP_BYTES // max(1, self._size))

    def compile(self, shape: Shape) -> bool:
        """Be ready for that shape, which else the first call would have to wait for. Whether it was not yet.

        Raises Unserved.
        """
        before = set(self._compiled)
        attempt(lambda: self._request(shape))
        return self._compiled.keys() != before

    def parameters(self) -> Iterator[torch.Tensor]:
        """As many numbers as its weights have, in the formats it computes with; they take no memory."""
        for constant in self._model.get_ops():
            if constant.get_type_name() == "Constant":
                stored = constant.get_element_type().get_type_name()
                dtype = torch.int8 if stored in ("i8", "u8") else DTYPES[self._precision]
                yield torch.zeros((), dtype=dtype).expand(prod(constant.output(0).shape))

    def buffers(self) -> Iterator[torch.Tensor]:
        """None: a constant is a constant here."""
        return iter(())

    @property
    def held(self) -> int:
        """Bytes of the weights that are in memory: a copy for each shape that is compiled."""
        return self._size * len(self._compiled)

    def _request(self, shape: Shape) -> Any:
        key = shape if self._several > 1 else shape[2:]
        if key not in self._compiled:
            while len(self._compiled) >= max(1, self._several):
                self._compiled.popitem(last=False)
            model = self._model.clone()
            model.reshape(self._shapes(shape if self._several > 1 else (-1, -1, *shape[2:])))
            options = {
                "INFERENCE_PRECISION_HINT": self._precision,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # others compute here too
            }
            self._compiled[key] = core().compile_model(model, "CPU", options).create_infer_request()
        self._compiled.move_to_end(key)
        return self._compiled[key]

    @abstractmethod
    def _shapes(self, wanted: Shape) -> dict[int, list[int]]:
        """Of each input, -1 for what is left open."""


class ServedUnet(Served):
    """Called as diffusers' is."""

    def __init__(self, file: Path, config: Mapping[str, Any], precision: str) -> None:
        self.config = SimpleNamespace(**{"time_cond_proj_dim": None, **config})
        self._inputs = inputs_of(config)
        super().__init__(file, precision)

    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor, *, encoder_hidden_states: torch.Tensor, **more: Any
    ) -> tuple[torch.Tensor]:
        """What the model predicts, float32. Raises Unserved."""
        arrays = self.inputs(sample, timestep, encoder_hidden_states=encoder_hidden_states, **more)
        shape = (len(sample), encoder_hidden_states.shape[1], *sample.shape[2:])

        def infer() -> Any:
            return self._request(shape).infer(arrays, share_inputs=True)[0]

        return (torch.from_numpy(attempt(infer)),)

    def inputs(self, sample: torch.Tensor, timestep: torch.Tensor, **more: Any) -> list[Any]:
        """What a call is given, as OpenVINO takes it: arrays, one after the other."""
        given = {"timestep": timestep, **by_name(sample, **more)}
        return [given[name].float().contiguous().numpy() for name in self._inputs]

    def _shapes(self, wanted: Shape) -> dict[int, list[int]]:
        batch, tokens, height, width = wanted
        found: dict[int, list[int]] = {}
        for number, name in enumerate(self._inputs):
            shape = self._model.input(number).partial_shape
            sides = [int(side.get_length()) if side.is_static else -1 for side in shape]
            if name == "sample":
                sides = [batch, sides[1], height, width]
            elif name == "encoder_hidden_states":
                sides = [batch, tokens, sides[2]]
            elif name != "timestep":
                sides = [batch, sides[1]]
            found[number] = sides
        return found


class ServedDecoder(Served):
    """The VAE's half that makes pixels of latents."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """As the VAE's, float32, of whole pictures. Raises Unserved."""
        array = latents.float().contiguous().numpy()

        def infer() -> Any:
            return self._request((len(latents), 0, *latents.shape[2:])).infer([array], share_inputs=True)[0]

        return torch.from_numpy(attempt(infer))

    def _shapes(self, wanted: Shape) -> dict[int, list[int]]:
        batch, _, height, width = wanted
        return {0: [batch, self._model.input(0).partial_shape[1].get_length(), height, width]}


def is_installed() -> bool:
    """Whether the package is there. It is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def library() -> Any:
    """OpenVINO, without the module by which it tells its makers what it is used for."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to have none
    return importlib.import_module(PACKAGE)


@functools.cache
def core() -> Any:
    """What reads and compiles: one for the process, and never let go.

    Each lays a stack for signals, and puts back the one before it when it ends. Of two that do not end in the reverse
    order of their beginning that is one that was freed, on which the next signal with a handler ends the process.
    """
    return library().Core()


def attempt(work: Callable[[], Any]) -> Any:
    """Raises Unserved for what others raise in it, and keeps nothing of that in memory."""
    try:
        return work()
    except DarkroomError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        because = f"{type(error).__name__}: {lines[-1] if lines else '?'}"  # OpenVINO's own come with a trail before
    raise Unserved(because)  # here the exception is gone, and so is what its traceback held
