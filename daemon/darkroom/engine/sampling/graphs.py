"""CUDA graphs: a UNet's look is recorded once and replayed in one call, where its hundreds of kernels are launched one
by one otherwise, which at small sizes takes a fast GPU longer than to compute them. Written without a GPU at hand.

A recording is of shapes, of number formats, of the weights' addresses and of the hooks that LoRAs put beside them: it
serves where all of these are the same and is passed by where one is not, so that nobody has to say what changed. All
recordings share one pool of memory: they are replayed one after the other, and what one made is copied out at once.

A recording is tried before it serves: it was made on zeros, is replayed on what is given then, and has to make of that
what the UNet itself makes of it.

What would break a recording, looked for in diffusers' forward for Stable Diffusion 1, 2 and XL: a timestep that lies on
the CPU, which is copied over there (here it is a tensor of the GPU's, filled before). Nothing else leaves the GPU,
waits for it, or branches on what a tensor holds: ``tests/test_engine_graphs.py`` runs that forward on tensors without
content to see to it. Attention is torch's own kernel (tiles are for CPUs), and without dropout there is no random
number. diffusers can fuse the projections of attention, which saves launches too (docs/benchmarks.md tells why it is
left out).
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from darkroom.engine import device as devices
from darkroom.engine.arguments import by_name
from darkroom.engine.memory.need import Need
from darkroom.engine.memory.plan import MemoryPlan
from darkroom.errors import first_line
from darkroom.events import Warned

MOST = 4
"""So many recordings of a UNet are kept, the least recently used let go first."""

WORTH = 10
"""Looks of one kind, seen and still to come, for which one is recorded: that costs about four, and more of Python."""

_AHEAD = 2
"""Replays that may wait for the GPU: enough to keep it busy, and few enough that a step told is a step nearly done."""

_DIFFERENCE = 0.01
"""How far a recording's first prediction may be from the UNet's, as a part of that. The same kernels make both: this is
what half precision may do to a number, and what was recorded wrong is off by all of it."""

_cuda: Any = torch.cuda
"""Where its classes have no types."""

Look = Callable[[], torch.Tensor]
Tensors = dict[str, torch.Tensor]


class Recording(Protocol):
    """A look, replayed on whatever its inputs hold by then. What it returns is written over by the next replay."""

    def __call__(self) -> torch.Tensor:
        """The prediction."""


class Recorder(Protocol):
    """Who records."""

    @property
    def held(self) -> int:
        """Bytes that the recordings hold."""

    def record(self, look: Look) -> Recording:
        """``look``, which only touches tensors that stay where they are. Raises anything."""


class Graphs:
    """What is recorded of all UNets, as long as these are in memory."""

    def __init__(self, device: torch.device, recorder: Recorder | None = None) -> None:
        self._device = device
        self._recorder: Recorder = OnCuda(device) if recorder is None else recorder
        self._kinds: weakref.WeakKeyDictionary[Any, OrderedDict[Any, _Kind]] = weakref.WeakKeyDictionary()
        self._too_large: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()
        """Shapes that memory ran out over, by UNet."""
        self.against: str | None = None
        """Why nothing is recorded at all."""
        if recorder is None and device.type != "cuda":
            self.against = f"they are CUDA's, and the device is {device.type}"

    @property
    def held(self) -> int:
        """Bytes that are not free for anything else, until ``clear``."""
        return self._recorder.held

    def clear(self) -> None:
        """Let go of all recordings, without handing the memory back yet."""
        self._kinds.clear()

    def look(self, unet: Any, state: Any, to_come: int, time: torch.Tensor, given: Tensors) -> tuple[Any, str | None]:
        """What the UNet predicts, and why it was not asked of a recording where it should have been."""
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in given.items())
        if self.against is not None:
            return _call(unet, time, given), self.against
        if shapes in self._too_large.get(unet, ()):
            return _call(unet, time, given), "there was no memory for it at this size"
        kinds = self._kinds.setdefault(unet, OrderedDict())
        kind = kinds.setdefault((state, shapes), _Kind())
        kinds.move_to_end((state, shapes))
        while len(kinds) > MOST:
            kinds.popitem(last=False)
        kind.looks += 1
        if kind.recording is None:
            predicted = _call(unet, time, given)
            if kind.looks == 1 or kind.looks + to_come < WORTH:
                return predicted, None
            kind.prepare(given)
            failure = self._record(kind, partial(_call, unet, kind.time, kind.inputs), time, given, predicted)
            if failure is None:
                return predicted, None
            self._forget(unet, shapes, *failure)
            return predicted, failure[0]
        return kind.replay(time, given), None

    def _record(
        self, kind: _Kind, look: Look, time: torch.Tensor, given: Tensors, predicted: torch.Tensor
    ) -> tuple[str, bool] | None:
        """Why it failed, and whether for want of memory. ``predicted`` is what a replay has to make of ``given``."""
        try:
            kind.recording = self._recorder.record(look)
            if _is_near(kind.replay(time, given), predicted):
                return None
            return "what was replayed is not what the UNet predicts", False
        except Exception as error:
            return first_line(error), devices.is_out_of_memory(error)

    def _forget(self, unet: Any, shapes: Any, because: str, out_of_memory: bool) -> None:
        """All recordings; and not to try again, with these shapes or at all."""
        self.clear()
        devices.free_memory(self._device)
        if out_of_memory:
            self._too_large.setdefault(unet, set()).add(shapes)
        else:
            self.against = because


@dataclass
class _Kind:
    """Looks of the same shapes at a UNet in the same state."""

    looks: int = 0
    recording: Recording | None = None
    inputs: Tensors = field(default_factory=dict)
    """What the recording reads, by name; ``time`` too."""
    time: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    latest: Tensors = field(default_factory=dict)
    """What was last copied there. Most of it stays the same through a job."""

    def prepare(self, given: Tensors) -> None:
        """Inputs like what is given, that stay where they are. There is nothing in them yet."""
        self.inputs = {
            name: torch.zeros_like(tensor, memory_format=torch.contiguous_format) for name, tensor in given.items()
        }
        self.time = torch.zeros(1, dtype=torch.float32, device=given["sample"].device)
        self.latest = {}

    def replay(self, time: torch.Tensor, given: Tensors) -> torch.Tensor:
        """Its prediction, which nobody writes over: samplers remember, and float32 is not copied on its way to them."""
        assert self.recording is not None
        for name, tensor in given.items():
            if self.latest.get(name) is not tensor:
                self.inputs[name].copy_(tensor)
        self.latest = dict(given)
        if time.device.type == "cpu":
            self.time.fill_(float(time))  # to copy it would wait for the GPU
        else:
            self.time.copy_(time.reshape(1))
        return self.recording().clone()


class Replays:
    """The recordings as one job uses them, and what is to be said of it."""

    def __init__(self, graphs: Graphs | None) -> None:
        self._graphs = graphs
        self._because: str | None = None
        self._told = False

    def of(self, unet: Any, plan: MemoryPlan, need: Need, room: Callable[[], int | None]) -> Callable[[int], Any]:
        """For one pass: what is called in the UNet's place, made for so many looks with or without guidance.

        It is the UNet itself where it reuses features, since its steps differ, and where memory is short: what is
        recorded is let go of then. Recordings count as free in ``room``.
        """
        graphs = self._graphs
        if graphs is None or not isinstance(unet, torch.nn.Module):
            return lambda looks: unet
        if not _has_room(plan, need, room(), graphs.held):
            if graphs.held:
                graphs.clear()
                devices.free_memory(next(unet.parameters()).device)
            return lambda looks: unet
        state = _state(unet)
        return lambda looks: _StandIn(partial(self._look, graphs, unet, state), looks)

    def warnings(self) -> Iterator[Warned]:
        """That looks were not replayed, once."""
        if self._because is not None and not self._told:
            self._told = True
            message = f"The UNet's steps were not replayed from CUDA graphs: {self._because}."
            yield Warned("cuda_graphs_unused", message)

    def _look(
        self, graphs: Graphs, unet: Any, state: Any, to_come: int, time: torch.Tensor, given: Tensors
    ) -> torch.Tensor:
        predicted, because = graphs.look(unet, state, to_come, time, given)
        self._because = self._because or because
        result: torch.Tensor = predicted
        return result


class _StandIn:
    """Called as diffusers' UNet is, for so many looks of a pass."""

    def __init__(self, look: Callable[[int, torch.Tensor, Tensors], torch.Tensor], looks: int) -> None:
        self._look, self._to_come = look, looks

    @torch.inference_mode()
    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **more: Any) -> tuple[torch.Tensor]:
        self._to_come -= 1
        return (self._look(self._to_come, timestep, by_name(sample, **more)),)


def _call(unet: Any, time: torch.Tensor, given: Tensors) -> torch.Tensor:
    own = ("sample", "encoder_hidden_states", "timestep_cond")
    added = {name: tensor for name, tensor in given.items() if name not in own}
    predicted: torch.Tensor = unet(
        given["sample"],
        time,
        encoder_hidden_states=given["encoder_hidden_states"],
        timestep_cond=given.get("timestep_cond"),
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]
    return predicted


def _is_near(made: torch.Tensor, predicted: torch.Tensor) -> bool:
    """Whether they are the same but for rounding. What is no number, or out of range, is so in both."""
    made, predicted = (tensor.float().nan_to_num() for tensor in (made, predicted))
    return bool((made - predicted).abs().mean() <= _DIFFERENCE * predicted.abs().mean())


def _state(unet: torch.nn.Module) -> Any:
    """All that a recording holds of a UNet: addresses, and hooks by numbers that torch gives out once only."""
    weights = tuple((tensor.data_ptr(), tensor.dtype) for tensor in itertools.chain(unet.parameters(), unet.buffers()))
    hooks = tuple(hook for part in unet.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks))
    return weights, hooks


def _has_room(plan: MemoryPlan, need: Need, room: int | None, held: int) -> bool:
    """Whether a plan that saves nothing leaves room for recordings, which stay while the pictures are decoded."""
    own = (plan.vae, plan.attention, plan.texts, plan.weights)
    saves = plan.alone or own != ("whole", "fused", "kept", "resident")
    return not saves and (room is None or need.peak(plan) + max(held, need.look(plan)) <= room)


class OnCuda:
    """CUDA records: on a stream of its own, into a pool of memory that is given back with the last recording."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._pool: Any = None
        self._reserved = 0
        self._recordings: weakref.WeakSet[_CudaRecording] = weakref.WeakSet()
        self._ends: deque[Any] = deque()
        """Of the last replays."""

    @property
    def held(self) -> int:
        """What the pool took from the device."""
        return self._reserved if self._recordings else 0

    def record(self, look: Look) -> Recording:
        """Rehearsed first: the libraries set up what they need on that stream, and a want of memory shows where it does
        no harm.

        Not by ``torch.cuda.graph``, which stays on its stream where recording fails. Other threads may go on meanwhile
        (``thread_local``): the one that makes files touches no GPU.
        """
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = _cuda.Stream()
            if not self._recordings:
                self._pool, self._reserved = torch.cuda.graph_pool_handle(), 0
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            with torch.cuda.stream(self._stream):
                look()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            graph = _cuda.CUDAGraph()
            with torch.cuda.stream(self._stream):
                made = self._captured(graph, look)
            torch.cuda.synchronize()
            self._reserved += torch.cuda.memory_reserved() - before
        recording = _CudaRecording(self._device, graph, made, self._ends)
        self._recordings.add(recording)
        return recording

    def _captured(self, graph: Any, look: Look) -> torch.Tensor:
        """What ``look`` returned, whose kernels are in ``graph`` now. Where it fails all is as before it began."""
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            try:
                made = look()
            except Exception:
                with suppress(RuntimeError):  # what that says follows from what is raised here
                    graph.capture_end()
                raise
            graph.capture_end()
        except Exception:
            # torch before 2.12 allocates for a recording whose end failed for ever, and frees no memory from then on
            with suppress(RuntimeError):  # where it is over, which is the rule
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise
        return made


class _CudaRecording:
    """One graph, and the tensor that it writes to."""

    def __init__(self, device: torch.device, graph: Any, made: torch.Tensor, ends: deque[Any]) -> None:
        self._device, self._graph, self._made, self._ends = device, graph, made, ends

    def __call__(self) -> torch.Tensor:
        with torch.cuda.device(self._device):
            while len(self._ends) >= _AHEAD:
                self._ends.popleft().synchronize()
            self._graph.replay()
            self._ends.append(torch.cuda.current_stream().record_event(_cuda.Event(blocking=True)))
        return self._made
