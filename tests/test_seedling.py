"""How the bundled model is made and measured: plans, prompts, pixels, and that the measuring can say no."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools.seedling import evaluate, judge, measure, prompts, report
from tools.seedling.captions import caption
from tools.seedling.dataset import sample
from tools.seedling.drawing import draw
from tools.seedling.grammar import COLORS, FRAMES, HELD_OUT, PATTERNS, SCENES, SHAPES
from tools.seedling.picture import Background, Group, Pair, Plan, Scene, Single, Thing, combinations
from tools.seedling.unet import stratified_timesteps, timestep_bounds

from darkroom.models.catalog import BUNDLED

# diffusers' DPM++ scheduler reads a tensor as NumPy 1 did.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
NATIVE = (128, 128)


def plans(number: int) -> list[Plan]:
    return [sample(seed, index)[0] for seed in (1, 2) for index in range(number)]


def single(shape: str, color: str = "red", background: str = "blue", radius: float = 0.3) -> Single:
    return Single(Background(background), Thing(shape, color, 0.5, 0.5, radius, 0.0), "medium", "center")


def picture(plan: Plan, frame: tuple[int, int] = NATIVE) -> Image.Image:
    return draw(plan, frame, random.Random(1))


def test_each_color_is_held_out_once_and_each_shape_at_most_twice() -> None:
    assert sorted(color for color, _ in HELD_OUT) == sorted(COLORS)
    shapes = [shape for _, shape in HELD_OUT]
    assert {shapes.count(shape) for shape in SHAPES} == {1, 2}


def test_no_training_picture_shows_a_combination_that_is_held_out() -> None:
    shown = frozenset().union(*(combinations(plan) for plan in plans(4000)))
    assert shown.isdisjoint(HELD_OUT)
    assert len(shown) == len(COLORS) * len(SHAPES) - len(HELD_OUT)


def test_no_training_prompt_names_a_combination_that_is_held_out_unless_two_colors_are_there() -> None:
    for plan in plans(1000):
        if isinstance(plan, Pair):
            continue
        text = caption(random.Random(1), plan)
        assert not any(f"{color} {shape}" in text for color, shape in HELD_OUT), text


def test_a_prompt_says_only_what_the_plan_shows() -> None:
    synonyms = {"grey": "gray", "violet": "purple"}
    for index, plan in enumerate(plans(1500)):
        text = caption(random.Random(index), plan).lower().replace(" with a red roof", "")
        said = {word.strip(".,") for word in text.split()}
        colors = {synonyms.get(word, word) for word in said} & set(COLORS)
        shapes = {word.removesuffix("s") for word in said} & set(SHAPES)
        shown = combinations(plan)
        here = {color for color, _ in shown} | (set() if isinstance(plan, Scene) else {plan.background.color})
        assert colors <= here, text
        assert shapes <= {shape for _, shape in shown}, text
        pattern = "plain" if isinstance(plan, Scene) else plan.background.pattern
        assert said & set(PATTERNS) <= {pattern}, text
        assert said & set(SCENES) <= ({plan.kind} if isinstance(plan, Scene) else set()), text
        assert plan.blurred or not said & {"blurry", "blurred"}, text


def test_the_order_in_a_prompt_is_the_order_in_the_picture() -> None:
    first, second = Thing("circle", "red", 0.5, 0.27, 0.18, 0.0), Thing("ring", "white", 0.5, 0.73, 0.18, 0.0)
    plan = Pair(Background("blue"), first, second, "above")
    for index in range(300):
        text = caption(random.Random(index), plan)
        places = [text.find(shape) for shape in ("circle", "ring")]
        if min(places) < 0:
            continue
        says_second_first = any(f" {word} " in text for word in ("below", "under", "beneath"))
        assert (places[0] > places[1]) == says_second_first, text


def test_pictures_of_the_same_number_are_the_same() -> None:
    assert sample(1, 77)[:2] == sample(1, 77)[:2]
    assert sample(1, 77)[:2] != sample(2, 77)[:2]


def test_sizes_are_multiples_of_eight_from_96_to_256() -> None:
    assert sum(FRAMES.values()) == pytest.approx(1.0)
    assert {side % 8 for frame in FRAMES for side in frame} == {0}
    assert (min(map(min, FRAMES)), max(map(max, FRAMES))) == (96, 256)


def test_colors_and_background_of_every_drawing_are_read_right() -> None:
    for color in COLORS:
        background = "white" if color != "white" else "green"
        seen = picture(single("square", color, background))
        assert (measure.object_color(seen), measure.background_color(seen)) == (color, background)
    assert measure.object_color(Image.new("RGB", NATIVE, COLORS["pink"])) is None


def test_objects_are_counted_and_crumbs_are_not() -> None:
    places = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
    things = tuple(Thing("star", "yellow", x, y, 0.17, 0.0) for x, y in places)
    seen = picture(Group(Background("blue"), things))
    seen.paste(COLORS["yellow"], (62, 62, 68, 68))
    assert measure.count(seen, "yellow") == 4
    assert measure.count(seen, "red") == 0


def test_a_cut_out_object_is_alone_and_in_the_middle() -> None:
    things = (Thing("circle", "red", 0.27, 0.4, 0.18, 0.0), Thing("square", "green", 0.73, 0.6, 0.18, 0.0))
    seen = picture(Pair(Background("white"), *things, "left"))
    (green,) = measure.whole_spots(seen, "green")
    cut = measure.cut_out(seen, green)
    assert cut.size == NATIVE
    (spot,) = measure.spots(cut)
    assert spot.color == "green"
    assert (spot.x, spot.y) == (pytest.approx(0.5, abs=0.03), pytest.approx(0.5, abs=0.03))


def test_only_a_circle_is_round() -> None:
    round_ones = [measure.out_of_round(picture(single("circle", radius=radius)), "red") for radius in (0.36, 0.4, 0.45)]
    assert max(round_ones) < 0.03
    others = [measure.out_of_round(picture(single(shape, radius=0.4)), "red") for shape in SHAPES if shape != "circle"]
    assert min(others) > 0.15
    assert measure.out_of_round(picture(single("circle")), "green") == 1.0


def test_a_lump_on_a_circle_is_seen() -> None:
    seen = picture(single("circle", radius=0.36))
    smooth = measure.out_of_round(seen, "red")
    seen.paste(COLORS["red"], (100, 56, 122, 72))
    assert measure.out_of_round(seen, "red") > smooth + 0.05


def test_a_third_of_the_400_prompts_were_never_seen_together() -> None:
    asked = [prompt for kind in prompts.everything() for prompt in kind]
    assert len(asked) == 400
    assert 0.32 < sum(isinstance(a, prompts.Asked) and a.unseen for a in asked) / 400 < 0.36
    assert [list(kind) for kind in prompts.everything()] == [list(kind) for kind in prompts.everything()]


@pytest.fixture(scope="module")
def young_judge() -> judge.Judge:
    """Trained for seconds, not minutes: right about many drawings."""
    return judge.train(120, 16)


def test_right_drawings_score_high_and_drawings_of_something_else_do_not(young_judge: judge.Judge) -> None:
    threes: list[evaluate.Figures] = []
    asked = prompts.singles()[::4]
    right = evaluate.drawn(asked)
    for pictures in (right, right[5:] + right[:5]):
        threes.append(evaluate.score_singles(asked, pictures, young_judge))
    assert threes[0]["background"] == threes[0]["color"] == 1.0
    assert threes[0]["shape"] > 0.5
    assert max(threes[1][name] for name in ("background", "color", "shape")) < 0.45
    assert threes[1]["all"] < 0.1


def test_drawn_pairs_and_groups_are_right_and_wrong_way_round_they_are_not(young_judge: judge.Judge) -> None:
    asked = prompts.pairs()[::6]
    right = evaluate.drawn(asked)
    turned = [seen.transpose(Image.Transpose.ROTATE_180) for seen in right]
    assert evaluate.score_pairs(asked, right, young_judge)["pair"] == 1.0
    assert evaluate.score_pairs(asked, turned, young_judge)["pair"] == 0.0
    groups = prompts.counts()[::6]
    assert evaluate.score_counts(groups, evaluate.drawn(groups), young_judge)["count"] == 1.0


def test_random_weights_score_near_chance(young_judge: judge.Judge) -> None:
    painter = evaluate.untrained(evaluate.open_painter(BUNDLED, steps=2))
    asked = prompts.singles()[::6]
    figures = evaluate.score_singles(asked, painter.paint_all(asked), young_judge)
    assert max(figures["background"], figures["color"], figures["shape"]) <= 0.35
    assert figures["all"] <= 0.1


def test_shipped_weights_do_not(young_judge: judge.Judge) -> None:
    painter = evaluate.open_painter(BUNDLED, steps=8)
    asked = prompts.singles()[::6]
    figures = evaluate.score_singles(asked, painter.paint_all(asked), young_judge)
    assert min(figures["background"], figures["color"]) >= 0.8


def test_seeds_vary_the_picture() -> None:
    painter = evaluate.open_painter(BUNDLED, steps=8)
    seen = [np.asarray(p, dtype=float) for p in painter.paint(["a green square on a white background"] * 4)]
    apart = [np.abs(a - b).mean() for index, a in enumerate(seen) for b in seen[:index]]
    assert min(apart) > 2.0


def test_the_shipped_model_is_at_most_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= 16_000_000


def test_the_report_marks_what_was_missed(tmp_path: Path) -> None:
    figures = dict.fromkeys(report.BARS, 0.5) | {"circle": 0.01, "seconds_per_picture": 9.0}
    document = tmp_path / "seedling.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(document, figures, "settings")
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "missed" in rows[report.BARS["shape"].what]
    assert "missed" not in rows[report.BARS["circle"].what]
    assert "missed" in rows[report.BARS["seconds_per_picture"].what]


def test_half_of_the_timesteps_lie_around_the_middle() -> None:
    torch.manual_seed(1)
    taken = stratified_timesteps(timestep_bounds(), 10_000)
    assert (int(taken.min()), int(taken.max())) == (0, 999)
    assert 0.53 < float(((taken > 300) & (taken < 700)).float().mean()) < 0.57
