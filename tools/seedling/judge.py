"""A small classifier of what is drawn: the shape, the scene, the time of day. Trained on fresh drawings only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional

from .drawing import draw
from .grammar import NATIVE_SIZE, SCENES, SHAPES, TIMES
from .picture import Scene, Single, random_scene, random_single

STEPS, BATCH = 600, 40
_SEED = 4242
_MEASURED = 400
_UNKNOWN = -100  # cross entropy's index to leave out


class Judge(nn.Module):
    """Three answers from one picture of native size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.Linear(2 * widths[-1], len(SHAPES) + len(SCENES) + len(TIMES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        small = functional.avg_pool2d(pictures, 2)  # enough, at a quarter of the cost
        features = self.body(torch.cat([small, _away_from_background(small)], 1))
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        shape, scene, time = self.heads(pooled).split([len(SHAPES), len(SCENES), len(TIMES)], 1)
        return shape, scene, time

    @torch.no_grad()
    def name(self, pictures: Sequence[Image.Image]) -> list[tuple[str, str, str]]:
        """(shape, scene, time) of each picture, each the likeliest."""
        tensors = torch.stack([_tensor(picture) for picture in pictures])
        answers = [answer.argmax(1).tolist() for answer in self(tensors)]
        return [(SHAPES[a], SCENES[b], TIMES[c]) for a, b, c in zip(*answers, strict=True)]


def _away_from_background(pictures: Tensor) -> Tensor:
    """How far each pixel is from the border's colour: a shape whatever its colours, so that it is learnt sooner."""
    border = torch.cat([pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1]], 2)
    background = border.median(2).values[:, :, None, None]
    return 2 * (pictures - background).norm(dim=1, keepdim=True) - 1


def _tensor(picture: Image.Image) -> Tensor:
    if picture.size != (NATIVE_SIZE, NATIVE_SIZE):
        picture = _squared(picture)
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


def _squared(picture: Image.Image) -> Image.Image:
    """The middle square, at native size, so that no shape is stretched."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.crop(box).resize((NATIVE_SIZE, NATIVE_SIZE), Image.Resampling.LANCZOS)


def _example(rng: random.Random) -> tuple[Tensor, tuple[int, int, int]]:
    plan: Single | Scene = random_single(rng) if rng.random() < 0.75 else random_scene(rng)
    if isinstance(plan, Single) and plan.thing is not None:  # every colour in every shape, held out or not
        plan = replace(plan, thing=replace(plan.thing, shape=rng.choice(SHAPES)))
    picture = draw(plan, (NATIVE_SIZE, NATIVE_SIZE), rng)
    if rng.random() < 0.5:  # what comes out of an autoencoder is a little soft
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    tensor = _tensor(picture)
    tensor += torch.randn_like(tensor) * rng.uniform(0.0, 0.06)
    if isinstance(plan, Scene):
        return tensor, (_UNKNOWN, SCENES.index(plan.kind), TIMES.index(plan.time))
    assert plan.thing is not None
    return tensor, (SHAPES.index(plan.thing.shape), _UNKNOWN, _UNKNOWN)


def _examples(rng: random.Random, number: int) -> tuple[Tensor, Tensor]:
    pictures, labels = zip(*(_example(rng) for _ in range(number)), strict=True)
    return torch.stack(pictures), torch.tensor(labels)


def accuracy(judge: Judge) -> dict[str, float]:
    """On drawings it has not seen: {"shape": …, "scene": …, "time": …}."""
    pictures, labels = _examples(random.Random(_SEED + 1), _MEASURED)
    with torch.no_grad():
        answers = judge(pictures)
    figures = {}
    for name, answer, label in zip(("shape", "scene", "time"), answers, labels.T, strict=True):
        known = label != _UNKNOWN
        figures[name] = round(float((answer.argmax(1) == label)[known].float().mean()), 4)
    return figures


def train(steps: int = STEPS, batch: int = BATCH) -> Judge:
    torch.manual_seed(_SEED)
    rng = random.Random(_SEED)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        pictures, labels = _examples(rng, batch)
        answers = judge(pictures)
        losses = [
            functional.cross_entropy(answer, label, ignore_index=_UNKNOWN, reduction="sum")
            for answer, label in zip(answers, labels.T, strict=True)
        ]
        optimizer.zero_grad()
        (torch.stack(losses).sum() / batch).backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def load_or_train(path: Path) -> Judge:
    """The judge at ``path``; trained and put there if it is not yet."""
    if path.exists():
        judge = Judge()
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    judge = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge
