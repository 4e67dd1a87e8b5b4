"""Train fewstep, the LoRA with which seedling draws in four steps without guidance what takes it twenty with guidance.

Distillation of the path from noise to picture (https://arxiv.org/abs/2202.00512, with guidance as in
https://arxiv.org/abs/2210.03142): the path is cut in four; the model itself, with guidance, goes each part in small
steps, and the LoRA learns to come to the same place in one. First from where the model's own path leads; then, round
by round, from where the LoRA's pictures have gone so far, so that it learns to set its own faults right
(https://arxiv.org/abs/1011.0686). The same noise then gives nearly the same picture as without it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from darkroom.engine.sampling.samplers import advance, begin_at, make_scheduler

from .architecture import LATENT_CHANNELS, LATENT_FACTOR, new_scheduler
from .captions import NEUTRAL_PROMPTS, caption
from .grammar import NATIVE_SIZE
from .lowrank import beside, descend, open_unet, optimizer_of, read, save
from .make import SHIPPED
from .picture import random_plan

TARGET = SHIPPED.with_name("seedling-loras") / "fewstep.safetensors"
RANK = 12
PARTS, SMALL_STEPS, GUIDANCE = 4, 4, 5.0  # the path's; small steps in each part
SAMPLER, SCHEDULE = "DPM++ 2M", "sgm_uniform"  # the small steps'
ROUNDS, WALKS_FIRST, WALKS = 4, 512, 192
STEPS, BATCH, RATE = 150, 24, 2e-3  # steps in each round
NEUTRAL_SHARE = 0.05
BEND = 0.05  # errors above it count by their size, those below by their square
METADATA = {
    "ss_v2": "False",  # not SD 2; kohya's own key
    "modelspec.title": "fewstep",
    "modelspec.usage_hint": 'sampler "Euler", schedule "sgm_uniform", 4 steps, guidance 1',
    "modelspec.license": "MIT",
}
_AT_ONCE = 32
TRAINED: dict[str, Any] = dict(new_scheduler().config)


class Leaps:
    """Euler's steps over whole parts, in latents of unit deviation: a turn by an angle between picture and noise.

    https://arxiv.org/abs/2202.00512, appendix D; ``part`` counts from the noise.
    """

    def __init__(self) -> None:
        scheduler = make_scheduler("Euler", SCHEDULE, TRAINED, PARTS)
        self.timesteps: Tensor = scheduler.timesteps
        angles = torch.atan(scheduler.sigmas)
        self.turns = (angles[:-1] - angles[1:]).view(-1, 1, 1, 1)

    def place(self, begin: Tensor, velocity: Tensor, part: Tensor) -> Tensor:
        """Where one comes to."""
        return self.turns[part].cos() * begin - self.turns[part].sin() * velocity

    def velocity(self, begin: Tensor, place: Tensor, part: Tensor) -> Tensor:
        """What the UNet would have to say for one to come to ``place``."""
        return (self.turns[part].cos() * begin - place) / self.turns[part].sin()


def prompts(seed: str, number: int) -> list[str]:
    """As the model was taught them, no combination of colour and shape among them that it was not."""
    rng = random.Random(f"fewstep {seed}")
    return [
        rng.choice(("", *NEUTRAL_PROMPTS)) if rng.random() < NEUTRAL_SHARE else caption(rng, random_plan(rng))
        for _ in range(number)
    ]


def small_steps(teacher: UNet2DConditionModel, begin: Tensor, part: int, texts: Tensor, empty: Tensor) -> Tensor:
    """Where the model itself comes to at the end of a part, with guidance."""
    scheduler = make_scheduler(SAMPLER, SCHEDULE, TRAINED, PARTS * SMALL_STEPS)
    latents, both = begin, torch.cat([empty.expand_as(texts), texts])
    for timestep in begin_at(scheduler, part * SMALL_STEPS)[:SMALL_STEPS]:
        with torch.autocast("cpu", torch.bfloat16):
            said = teacher(latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=both).sample.float()
        without, asked = said.chunk(2)
        latents = advance(scheduler, without + GUIDANCE * (asked - without), timestep, latents, {})
    return latents


@torch.no_grad()
def walk(
    teacher: UNet2DConditionModel, student: UNet2DConditionModel | None, texts: Tensor, empty: Tensor
) -> tuple[Tensor, Tensor]:
    """From noise to picture, by the student or else the teacher; and where the teacher goes from each place.

    (number, parts, channels, height, width) both.
    """
    leaps, side = Leaps(), NATIVE_SIZE // LATENT_FACTOR
    here = torch.randn(len(texts), LATENT_CHANNELS, side, side)
    begins, ends = [], []
    for part in range(PARTS):
        begins.append(here)
        ends.append(small_steps(teacher, here, part, texts, empty))
        if student is None:
            here = ends[-1]
            continue
        with torch.autocast("cpu", torch.bfloat16):
            said = student(here, leaps.timesteps[part], encoder_hidden_states=texts).sample.float()
        here = leaps.place(here, said, torch.tensor([part]))
    return torch.stack(begins, 1), torch.stack(ends, 1)


def train(folder: Path, target: Path, rounds: int, seed: int) -> None:
    """The same seed gives the same LoRA, as far as the machine's arithmetic is the same.

    The file is written after every round: it may be stopped when it is good enough.
    """
    torch.manual_seed(seed)
    teacher, student = open_unet(folder), open_unet(folder)
    learned: nn.ModuleDict = beside(student, RANK)
    optimizer = optimizer_of(learned, RATE)
    leaps, (empty,) = Leaps(), read(folder, [""])
    begins, ends, texts = [], [], []
    for number in range(rounds):
        for text in read(folder, prompts(f"{seed} {number}", WALKS if number else WALKS_FIRST)).split(_AT_ONCE):
            begin, end = walk(teacher, student if number else None, text, empty)
            begins.append(begin)
            ends.append(end)
            texts.append(text)
        pool = [torch.cat(parts) for parts in (begins, ends, texts)]
        print(f"fewstep: round {number + 1} of {rounds}, {len(pool[0])} walks", flush=True)

        def loss(pool: list[Tensor] = pool) -> Tensor:
            walks, part = torch.randint(len(pool[0]), (BATCH,)), torch.arange(BATCH) % PARTS
            begin, end = pool[0][walks, part], pool[1][walks, part]
            with torch.autocast("cpu", torch.bfloat16):
                said = student(begin, leaps.timesteps[part], encoder_hidden_states=pool[2][walks]).sample
            return functional.smooth_l1_loss(said.float(), leaps.velocity(begin, end, part), beta=BEND)

        descend(optimizer, RATE, range(number * STEPS, (number + 1) * STEPS), rounds * STEPS, loss)
        save(learned, target, METADATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="the model that it is for")
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.folder, options.target, options.rounds, options.seed)


if __name__ == "__main__":
    main()
