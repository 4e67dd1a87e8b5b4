"""Looks that are recorded and replayed: eager's numbers, whatever changes between them, and eager where that fails.

There is no CUDA here: what records is ``Tape``, which notes torch's operations with the tensors they were given, and
does only them again, hooks and weights as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from darkroom.config import Config, EngineSettings
from darkroom.engine import device as devices
from darkroom.engine.memory.plan import MemoryPlan
from darkroom.engine.render import Engine
from darkroom.engine.sampling import graphs as engine_graphs
from darkroom.engine.sampling.graphs import Graphs, OnCuda, Replays
from darkroom.errors import EngineDied
from darkroom.events import Event
from darkroom.job import Hires
from darkroom.models.catalog import BUNDLED
from engine_models import fallbacks, make_config, make_job, pictures, render, warned

pytest_plugins = ("engine_fixtures",)

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """A recording: each operation, what it was given and what it made."""

    def __init__(self, look: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any, Any, list[Any]]] = []
        self.replays = 0
        with self:
            self._made = look()
        self.made = self._made.clone()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        self._done.append((operation, args, kwargs or {}, pytree.tree_leaves(made)))
        return made

    def __call__(self) -> torch.Tensor:
        self.replays += 1
        now: dict[int, Any] = {}

        def present(thing: Any) -> Any:
            return now.get(id(thing), thing) if isinstance(thing, torch.Tensor) else thing

        for operation, args, kwargs, made in self._done:
            again = operation(*pytree.tree_map(present, args), **pytree.tree_map(present, kwargs))
            now |= {id(old): new for old, new in zip(made, pytree.tree_leaves(again), strict=True)}
        self._made.copy_(now[id(self._made)])  # a graph writes over what it made before
        return self._made


class Tapes:
    """Records on tapes; ``failure`` is raised where there is one."""

    held = 0

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.failure: Exception | None = None
        self.tried = 0

    def record(self, look: Callable[[], torch.Tensor]) -> Tape:
        self.tried += 1
        if self.failure is not None:
            raise self.failure
        self.tapes.append(Tape(look))
        return self.tapes[-1]

    @property
    def replays(self) -> list[int]:
        return [tape.replays for tape in self.tapes]


@pytest.fixture
def tapes() -> Tapes:
    return Tapes()


@pytest.fixture
def recorded(with_inpainting: Config, tapes: Tapes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine whose looks are recorded from the second of two of a kind on."""
    monkeypatch.setattr(engine_graphs, "WORTH", 2)
    engine = Engine(with_inpainting)
    engine._graphs = Graphs(CPU, tapes)
    yield engine
    engine.close()


def codes(events: list[Event]) -> list[str]:
    return [warning.code for warning in warned(events)]


JOBS: dict[str, dict[str, Any]] = {
    "one text encoder": {},
    "two": {"model": "sdxl"},
    "no guidance, float32 all the way, a sampler that remembers": {"guidance_scale": 1.0, "sampler": "DPM++ 2M"},
    "a sampler that looks twice": {"sampler": "Heun"},
    "timesteps that are no integers": {"sampler": "DPM++ SDE", "schedule": "karras"},
    "a long prompt": {"prompt": ", ".join(["a red circle on the blue sky"] * 20)},
    "guidance in an interval": {"guidance_interval": (0.3, 0.7), "num_inference_steps": 8},
    "two passes": {"hires": Hires(scale=1.5, strength=0.5)},
    "a model for inpainting": {"model": "inpaint"},
    "several pictures": {"count": 3},
}


@pytest.mark.parametrize("fields", JOBS.values(), ids=JOBS)
def test_pictures_are_to_the_bit_those_that_are_not_replayed(
    recorded: Engine, tapes: Tapes, with_inpainting: Config, fields: dict[str, Any]
) -> None:
    job = make_job(**{"num_inference_steps": 5, **fields})
    events = render(recorded, job)
    assert pictures(events) == pictures(render(Engine(with_inpainting), job))
    assert sum(tapes.replays) >= 3
    assert codes(events) == []
    assert pictures(render(recorded, job)) == pictures(events)


def test_the_first_look_of_a_kind_is_not_recorded_nor_one_that_is_hardly_used(
    config: Config, tapes: Tapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_graphs, "WORTH", 6)
    engine = Engine(config)
    engine._graphs = Graphs(CPU, tapes)
    render(engine, make_job(num_inference_steps=5))
    assert tapes.replays == []
    render(engine, make_job(num_inference_steps=1))
    assert tapes.replays == [1], "the sixth look is"
    render(engine, make_job(num_inference_steps=8, width=72))
    assert tapes.replays == [1, 7]


def test_another_prompt_and_another_seed_serve_themselves_of_the_same_recording(
    recorded: Engine, tapes: Tapes, config: Config
) -> None:
    plain = Engine(config)
    for fields in ({}, {"prompt": "a house", "seed": 3}, {"guidance_scale": 2.0}, {"negative_prompt": ""}):
        job = make_job(num_inference_steps=3, **fields)
        assert pictures(render(recorded, job)) == pictures(render(plain, job))
    assert len(tapes.tapes) == 1
    render(recorded, make_job(num_inference_steps=3, width=72))
    render(recorded, make_job(num_inference_steps=3, guidance_scale=1.0))
    assert len(tapes.tapes) == 3


def test_no_more_than_a_few_recordings_are_kept(recorded: Engine, tapes: Tapes) -> None:
    for width in (64, 72, 80, 88, 96, 104):
        render(recorded, make_job(num_inference_steps=3, width=width))
    kinds = recorded._graphs._kinds[recorded._models.get("sd").unet]  # type: ignore[union-attr]
    assert len(kinds) == engine_graphs.MOST
    render(recorded, make_job(num_inference_steps=3, width=104))
    assert len(tapes.tapes) == 6
    render(recorded, make_job(num_inference_steps=3, width=64))
    assert len(tapes.tapes) == 7


def test_constants_of_a_job_are_copied_once(recorded: Engine, tapes: Tapes, monkeypatch: pytest.MonkeyPatch) -> None:
    render(recorded, make_job(model="sdxl", num_inference_steps=4))
    (kind,) = recorded._graphs._kinds[recorded._models.get("sdxl").unet].values()  # type: ignore[union-attr]
    assert set(kind.inputs) == {"sample", "encoder_hidden_states", "text_embeds", "time_ids"}
    copied: list[int] = []
    monkeypatch.setattr(torch.Tensor, "copy_", _counted(torch.Tensor.copy_, kind.inputs, copied))
    render(recorded, make_job(model="sdxl", num_inference_steps=4, prompt="a house"))
    assert [copied.count(id(kind.inputs[name])) for name in kind.inputs] == [4, 1, 1, 1]


def _counted(copy: Any, inputs: dict[str, torch.Tensor], copied: list[int]) -> Any:
    own = {id(tensor) for tensor in inputs.values()}

    def counted(tensor: torch.Tensor, *given: Any, **options: Any) -> Any:
        if id(tensor) in own:
            copied.append(id(tensor))
        return copy(tensor, *given, **options)

    return counted


# ---------------------------------------------------------------- what changes


@pytest.fixture
def seedling(tmp_path: Path, tapes: Tapes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engine_graphs, "WORTH", 2)
    engine = Engine(make_config(tmp_path, {"seedling": BUNDLED}))
    engine._graphs = Graphs(CPU, tapes)
    yield engine
    engine.close()


def test_a_lora_is_recorded_by_itself_and_not_replayed_after_it_is_gone(
    seedling: Engine, tapes: Tapes, tmp_path: Path
) -> None:
    job = make_job(model="seedling", num_inference_steps=3)
    jobs = [job] + [
        job.model_copy(update={"prompt": f"{job.prompt} <lora:blueprint:{weight}>"}) for weight in (1.0, 0.5)
    ]
    plain = Engine(make_config(tmp_path, {"seedling": BUNDLED}))
    expected = [pictures(render(plain, each)) for each in jobs]
    assert len({made[0] for made in expected}) == 3
    for number in (0, 1, 2, 1, 0):
        assert pictures(render(seedling, jobs[number])) == expected[number]
    assert len(tapes.tapes) == 4, "what was recorded without any serves again"


def test_weights_that_are_elsewhere_or_others_are_recorded_anew(recorded: Engine, tapes: Tapes) -> None:
    job = make_job(num_inference_steps=3)
    first = pictures(render(recorded, job))
    unet = recorded._models.get("sd").unet
    weight = unet.conv_in.weight
    weight.data = weight.data.clone() * 2
    second = pictures(render(recorded, job))
    assert second != first
    weight.data = weight.data / 2
    assert pictures(render(recorded, job)) == first
    assert len(tapes.tapes) == 3


def test_a_unet_that_is_let_go_takes_its_recordings_along(recorded: Engine, tapes: Tapes) -> None:
    job = make_job(num_inference_steps=3)
    first = pictures(render(recorded, job))
    render(recorded, make_job(model="sdxl", num_inference_steps=3))
    graphs = recorded._graphs
    assert graphs is not None
    assert len(graphs._kinds) == 2
    tapes.tapes.clear()
    recorded._models.get("sd").let_go("unet")
    assert len(graphs._kinds) == 1
    assert pictures(render(recorded, job)) == first
    recorded.close()
    assert len(graphs._kinds) == 0


@pytest.mark.parametrize(
    "changes",
    [{"weights": "parts"}, {"weights": "layers"}, {"attention": "sliced"}, {"texts": "dropped"}, {"alone": True}],
)
def test_a_plan_that_saves_memory_has_none(recorded: Engine, changes: dict[str, Any]) -> None:
    graphs, pipeline = recorded._graphs, recorded._models.get("sd")
    assert graphs is not None
    need, plan = pipeline.need(guided=True, slices_attention=False), MemoryPlan(1, 64, 64, 3)
    replays = Replays(graphs)
    assert replays.of(pipeline.unet, plan, need, lambda: None)(3) is not pipeline.unet
    assert replays.of(pipeline.unet, replace(plan, **changes), need, lambda: None)(3) is pipeline.unet


def test_where_room_is_short_recordings_are_let_go_and_none_are_made(recorded: Engine, tapes: Tapes) -> None:
    graphs, pipeline = recorded._graphs, recorded._models.get("sd")
    assert graphs is not None
    render(recorded, make_job(num_inference_steps=3))
    plan, need = MemoryPlan(1, 64, 64, 3), pipeline.need(guided=True, slices_attention=False)
    enough = need.peak(plan) + need.look(plan)
    replays = Replays(graphs)
    assert replays.of(pipeline.unet, plan, need, lambda: enough)(3) is not pipeline.unet
    assert replays.of(pipeline.unet, plan, need, lambda: enough - 1)(3) is pipeline.unet
    tapes.held = need.look(plan) + 1
    assert len(graphs._kinds) == 1
    assert replays.of(pipeline.unet, plan, need, lambda: enough)(3) is pipeline.unet
    assert len(graphs._kinds) == 0


def test_features_that_are_reused_are_not_recorded(recorded: Engine, tapes: Tapes) -> None:
    render(recorded, make_job(num_inference_steps=4, reuse_features=2))
    assert tapes.tried == 0


# ---------------------------------------------------------------- what fails


def test_out_of_memory_while_recording_lets_go_of_all_and_is_not_tried_again(
    recorded: Engine, tapes: Tapes, config: Config
) -> None:
    job, other = make_job(num_inference_steps=4), make_job(num_inference_steps=4, width=72)
    render(recorded, other)
    tapes.failure = torch.OutOfMemoryError("CUDA out of memory")
    events = render(recorded, job)
    assert codes(events) == ["cuda_graphs_unused"]
    assert "out of memory" in warned(events)[0].message
    assert fallbacks(events) == []
    assert pictures(events) == pictures(render(Engine(config), job))
    assert not any(kind.recording for kinds in recorded._graphs._kinds.values() for kind in kinds.values())  # type: ignore[union-attr]
    tapes.failure = None
    tried = tapes.tried
    assert codes(render(recorded, job)) == ["cuda_graphs_unused"]
    assert tapes.tried == tried
    assert codes(render(recorded, other)) == []
    assert tapes.tried == tried + 1


def test_any_other_failure_ends_recording_for_good_with_one_warning_a_job(
    recorded: Engine, tapes: Tapes, config: Config
) -> None:
    tapes.failure = RuntimeError("operation not permitted when stream is capturing")
    job = make_job(num_inference_steps=6, count=2, guidance_interval=(0.3, 0.7))
    for _ in range(2):
        events = render(recorded, job)
        assert codes(events) == ["cuda_graphs_unused"]
        assert "not permitted" in warned(events)[0].message
        assert pictures(events) == pictures(render(Engine(config), job))
    assert tapes.tried == 1


class Wrong:
    """Recordings that are replayed without an error, and wrongly."""

    def __init__(self, tape: Tape, change: Callable[[torch.Tensor, Tape], torch.Tensor]) -> None:
        self._tape, self._change = tape, change

    def __call__(self) -> torch.Tensor:
        return self._change(self._tape(), self._tape)


def noisy(part: float) -> Callable[[torch.Tensor, Tape], torch.Tensor]:
    def change(made: torch.Tensor, tape: Tape) -> torch.Tensor:
        noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
        return made + (part * noise * made.float().abs().mean()).to(made.dtype)

    return change


REPLAYED: dict[str, tuple[Callable[[torch.Tensor, Tape], torch.Tensor], bool]] = {
    "what was recorded, whatever is given": (lambda made, tape: tape.made, True),
    "nothing": (lambda made, tape: torch.zeros_like(made), True),
    "no numbers": (lambda made, tape: made / 0, True),
    "a tenth of noise": (noisy(0.1), True),
    "rounded otherwise": (noisy(0.001), False),
}


@pytest.mark.parametrize(("change", "caught"), REPLAYED.values(), ids=REPLAYED)
def test_what_is_replayed_wrongly_is_found_out_before_it_serves(
    change: Callable[[torch.Tensor, Tape], torch.Tensor],
    caught: bool,
    recorded: Engine,
    tapes: Tapes,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Tapes.record
    monkeypatch.setattr(Tapes, "record", lambda tapes, look: Wrong(record(tapes, look), change))
    job = make_job(num_inference_steps=4)
    events = render(recorded, job)
    assert codes(events) == ["cuda_graphs_unused"] * caught
    if caught:
        assert "not what the UNet predicts" in warned(events)[0].message
        assert pictures(events) == pictures(render(Engine(config), job))
        assert len(recorded._graphs._kinds) == 0  # type: ignore[union-attr]
        assert codes(render(recorded, make_job(num_inference_steps=4, width=72))) == ["cuda_graphs_unused"]
    assert tapes.tried == 1


def test_a_job_that_an_engine_died_of_is_made_by_the_next_one_without(
    recorded: Engine, tapes: Tapes, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(tape: Tape) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patches:
        patches.setattr(Tape, "__call__", poisoned)
        # the recording's own trial takes it for a failure of the recording, and a card that is poisoned fails on
        patches.setattr(devices, "free_memory", lambda device: poisoned(tapes.tapes[0]))
        job = make_job(num_inference_steps=4)
        with pytest.raises(EngineDied):
            render(recorded, job)
    following = Engine(config)
    following._graphs = Graphs(CPU, tapes)
    events = render(following, job)
    assert pictures(events) == pictures(render(Engine(config), make_job(num_inference_steps=4)))
    assert tapes.tried == 1
    render(following, make_job(id="another", num_inference_steps=4))
    assert tapes.tried == 2


class Unrecordable:
    """A CUDA graph that cannot be ended once something was wrong."""

    begun = 0

    def capture_begin(self, **_: Any) -> None:
        self.begun += 1

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_what_was_wrong_first_is_what_is_told_and_no_recording_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *of: ended.append(of), raising=False)
    recorder = OnCuda(CPU)
    recorder._pool = (0, 1)

    def look() -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder._captured(Unrecordable(), look)
    with pytest.raises(RuntimeError, match="previous error"):
        recorder._captured(Unrecordable(), lambda: torch.zeros(1))
    assert ended == [(0, (0, 1))] * 2


def test_a_step_down_lets_go_of_what_is_recorded(
    recorded: Engine, tapes: Tapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(num_inference_steps=6)
    expected = pictures(render(recorded, job))
    replay = Tape.__call__

    def once(tape: Tape) -> torch.Tensor:
        monkeypatch.setattr(Tape, "__call__", replay)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tape, "__call__", once)
    seen = len(tapes.tapes)
    events = render(recorded, job)
    assert [fallback.rung for fallback in fallbacks(events)] == ["freed_memory"]
    assert pictures(events) == expected
    assert len(tapes.tapes) == seen
    assert len(recorded._graphs._kinds) == 0  # type: ignore[union-attr]


def test_without_cuda_it_says_so_and_without_being_asked_nothing_is_recorded(config: Config) -> None:
    wanted = config.model_copy(update={"engine": config.engine.model_copy(update={"cuda_graphs": True})})
    events = render(Engine(wanted), make_job())
    assert codes(events) == ["cuda_graphs_unused"]
    assert "cpu" in warned(events)[0].message
    assert codes(render(Engine(config), make_job())) == []
    assert EngineSettings().cuda_graphs is False


# ---------------------------------------------------------------- what would break a recording on a GPU


class Elsewhere(TorchDispatchMode):
    """Notes operations on tensors that are not on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type != "meta" for tensor in tensors):
            self.seen.append(str(operation))
        return made


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_the_forward_stays_on_the_gpu_and_looks_into_no_tensor(
    family: str, there: bool, request: pytest.FixtureRequest
) -> None:
    """On tensors without content, whose operations raise where the content would matter; they stand for the GPU's."""
    from diffusers import UNet2DConditionModel

    kind: Any = UNet2DConditionModel  # whose class has no types
    config = kind.load_config(request.getfixturevalue(f"tiny_{family}") / "unet")
    watch = Elsewhere()
    with torch.device("meta"), torch.inference_mode():
        unet = kind.from_config(config).half().eval()
        given = {"sample": torch.empty(2, 4, 9, 8), "encoder_hidden_states": torch.empty(2, 77, unet_width(config))}
        if family == "sdxl":
            given |= {"text_embeds": torch.empty(2, 24), "time_ids": torch.empty(2, 6)}
        given = {name: tensor.half() for name, tensor in given.items()}
        time = torch.empty(1) if there else torch.tensor(1.0, device="cpu")
        with watch:
            made = engine_graphs._call(unet, time, given)
    assert made.shape == (2, 4, 9, 8)
    assert bool(watch.seen) is not there, watch.seen


def unet_width(config: Any) -> int:
    """Of the texts that it takes."""
    return int(config["cross_attention_dim"])
