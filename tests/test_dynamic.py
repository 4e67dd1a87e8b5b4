"""Dynamic prompts: chosen by the seed, put on record, and bounded whatever is in them."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.config import Config
from darkroom.errors import InvalidRequest
from darkroom.job import Job, parse, resolve
from darkroom.models.catalog import Catalog
from darkroom.output import infotext, read_infotext, recipe


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    for name, text in {
        "colour.txt": "red\n# not this\n\nblue\n  green  \n",
        "things/shape.txt": "circle\nsquare of __colour__\n",
        "things/size.txt": "small\nlarge\n",
        "empty.txt": "# nothing\n",
        "a.txt": "x\n__b__ and more\n",
        "b.txt": "{__a__|y}\n",
        "hole.txt": "red\n__colur__\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def job(prompt: str, folder: Path | None = None, *, config: dict[str, Any] | None = None, **fields: Any) -> Job:
    settings = Config(prompts={"wildcards_dir": folder, **(config or {})})  # type: ignore[arg-type]
    data = json.dumps({"prompt": prompt, "seed": 1} | fields).encode()
    return resolve(parse(data), settings, Catalog(settings.models), "x")


def choices(prompt: str, folder: Path | None = None, number: int = 40) -> set[str]:
    varied = job(prompt, folder, count=number, dynamic=True)
    return {varied.at(cell).prompt for cell in range(max(1, len(varied.cells)))}


def refusal(prompt: str, folder: Path | None = None, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        job(prompt, folder, dynamic=True, **fields)
    (fault,) = caught.value.errors
    assert fault.field == "prompt"
    return caught.value.message


# What is chosen


def test_braces_are_plain_text_unless_somebody_asks() -> None:
    plain = job("a {red|blue} circle, 100% #1")
    assert plain.prompt == "a {red|blue} circle, 100% #1"
    assert "template" not in plain.recipe()
    assert job("a {red|blue} circle", config={"dynamic": True}).prompt in ("a red circle", "a blue circle")
    assert job("a {red|blue} circle", config={"dynamic": True}, dynamic=False).prompt == "a {red|blue} circle"


def test_one_of_several_is_chosen_and_all_come_up() -> None:
    assert choices("a {red|blue} {circle|square}") == {
        f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")
    }
    assert choices("{2$$a|b|c}") == {"a,b", "b,a", "a,c", "c,a", "b,c", "c,b"}
    assert choices("{1-2$$ and $$a|b}") == {"a", "b", "a and b", "b and a"}
    assert choices("{0::never|5::always}") == {"always"}
    assert choices("${x={a|b}}${x} {c|c}") <= {"a c", "b c"}


def test_wildcards_are_read_from_their_folder(wildcards: Path) -> None:
    assert choices("__colour__", wildcards) == {"red", "blue", "green"}
    assert choices("__things/size__ __size__", wildcards) == {
        f"{one} {other}" for one in ("small", "large") for other in ("small", "large")
    }
    assert choices("a __things/shape__", wildcards) == {
        "a circle",
        *(f"a square of {colour}" for colour in ("red", "blue", "green")),
    }
    assert choices("__things/*__", wildcards) >= {"small", "large", "circle"}
    assert choices("{2$$ $$__colour__}", wildcards, 60) == {
        f"{one} {other}" for one in ("red", "blue", "green") for other in ("red", "blue", "green") if one != other
    }


def test_the_choice_is_that_of_the_picture_s_seed() -> None:
    prompt = " ".join(["{a|b|c|d}"] * 8)
    varied = job(prompt, count=3, seed=10, dynamic=True)
    alone = [job(prompt, seed=seed, dynamic=True).prompt for seed in (10, 11, 12)]
    assert [varied.at(cell).prompt for cell in range(3)] == alone
    assert [varied.seed_of(index) for index in range(3)] == [10, 11, 12]
    assert len(set(alone)) == 3


def test_the_choice_does_not_change_with_the_version_of_anything() -> None:
    """A record of what was chosen once: else no job that tells only its template could be made again."""
    assert job("{a|b|c} {2$$d|e|f|g} {h|i|j}", seed=42, dynamic=True).prompt == CHOSEN


CHOSEN = "a d,e j"


def test_with_a_matrix_there_is_one_choice_so_that_cells_can_be_compared() -> None:
    varied = job("a {red|blue|green|grey} circle", dynamic=True, matrix={"guidance_scale": [1, 2], "seed": [1, 2, 3]})
    assert len({varied.at(cell).prompt for cell in range(6)}) == 1
    prompts = job("a", dynamic=True, matrix={"prompt": ["a {red|blue} circle", "a star"]})
    assert prompts.at(0).prompt in ("a red circle", "a blue circle")
    assert prompts.at(1).prompt == "a star"


def test_a_prompt_without_choices_is_itself_and_has_no_template() -> None:
    plain = job("a (red:1.2) [circle] <x> http", count=2, dynamic=True)
    assert plain.prompt == "a (red:1.2) [circle] <x> http"
    assert plain.cells == ()
    assert plain.template is None


def test_both_prompts_are_chosen() -> None:
    chosen = job("{a|b}", dynamic=True, negative_prompt="{c|d}")
    assert chosen.negative_prompt in ("c", "d")
    assert (chosen.template, chosen.negative_template) == ("{a|b}", "{c|d}")


# On record


def test_template_choice_and_seed_are_on_record_and_the_result_repeats_exactly(
    darkroom: Darkroom, wildcards: Path
) -> None:
    darkroom.configure(prompts={"wildcards_dir": wildcards, "dynamic": True})
    darkroom.drop("cat.json", prompt="a __colour__ {circle|square}", count=4)
    darkroom.run_once()
    result = darkroom.result("cat")
    assert result["job"]["template"] == "a __colour__ {circle|square}"
    (wildcards / "colour.txt").write_text("black")
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.drop("one.png", (darkroom.done / "cat" / "cat-2.png").read_bytes())
    darkroom.run_once()
    hashes = [picture["sha256"] for picture in result["pictures"]]
    assert [picture["sha256"] for picture in darkroom.result("again")["pictures"]] == hashes
    assert [picture["sha256"] for picture in darkroom.result("one")["pictures"]] == hashes[1:2]
    own = recipe((darkroom.done / "cat" / "cat-2.png").read_bytes())
    assert own is not None
    assert own["prompt"] == result["pictures"][1]["cell"]["prompt"]
    assert own["template"] == "a __colour__ {circle|square}"


def test_the_template_is_in_the_infotext_as_a1111_s_extension_writes_it() -> None:
    chosen = job("{a|b}, c", dynamic=True, negative_prompt="{d|e}")
    text = infotext(chosen, seed=1)
    assert ', Template: "{a|b}, c", Negative Template: {d|e}, ' in text
    assert read_infotext(text)["prompt"] == chosen.prompt


def test_a_plain_result_is_not_read_as_dynamic_where_all_prompts_are(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", prompt="a {red|blue} 100%")
    darkroom.run_once()
    darkroom.configure(prompts={"dynamic": True})
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.drop("one.png", (darkroom.done / "cat" / "cat-1.png").read_bytes())
    darkroom.run_once()
    assert {darkroom.result(name)["job"]["prompt"] for name in ("again", "one")} == {"a {red|blue} 100%"}


# Guarded


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a __colur__ circle", 'there is no wildcard "colur" (did you mean colour?)'),
        ("{a|__shap__}", 'there is no wildcard "shap" (did you mean things/shape?)'),
        ("{2$$__zzzz__}", "there are: a, b, colour, empty"),
        ("__{no|none}__", "there is no wildcard"),
        ("__empty__", 'the wildcard "empty" is empty'),
        ("__hole__", 'there is no wildcard "colur"'),
        ("__a__", "the wildcard a → b → a contains itself"),
        ("__../secret__", 'there is no wildcard "../secret"'),
        ("__/etc/passwd__", "there is no wildcard"),
        ("__../wildcards/colour__", "there is no wildcard"),
        ("__../*__", "there is no wildcard"),
        ("{!a|b}", "one choice after the other"),
        ("{@a|b}", "one choice after the other"),
        ("100% {cotton|wool}", 'it cannot be read from "% {cotton|wool}" on'),
        ("{a|b", 'it cannot be read from "{a|b" on'),
        ("$x {a|b}", "it cannot be read"),
        ("__", "it cannot be read"),
        ("${unknown} {a|b}", "it cannot be used"),
        ("${x=${y}}${y=${x}}${x}", "it"),
        ("{}", "a choice of 0 characters came of it"),
        ("{a|b}" * 201, "more than 200 braces and wildcards"),
        ("{" * 11 + "a" + "}" * 11, "nested more than 10 deep"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_when_it_arrives(prompt: str, said: str, wildcards: Path) -> None:
    (wildcards.parent / "secret.txt").write_text("secret")
    begin = time.process_time()
    assert said in refusal(prompt, wildcards)
    assert time.process_time() - begin < 5


def test_without_a_folder_a_wildcard_is_refused_saying_where_to_name_one() -> None:
    assert "[prompts] wildcards_dir" in refusal("a __colour__ circle")


def test_a_choice_that_is_too_long_for_a_prompt_is_refused(wildcards: Path) -> None:
    (wildcards / "long.txt").write_text("x" * 9000)
    assert "18,000 characters came of it" in refusal("__long____long__", wildcards)


def test_wildcards_that_fill_in_each_other_without_end_are_stopped(wildcards: Path) -> None:
    for number in range(8):
        (wildcards / f"d{number}.txt").write_text(" ".join([f"__d{number + 1}__"] * 10))
    (wildcards / "d8.txt").write_text("x")
    begin = time.process_time()
    assert "more than 1,000 wildcards" in refusal("__d0__", wildcards)
    assert time.process_time() - begin < 10


def test_a_long_wildcard_is_not_read_line_by_line_for_each_picture(wildcards: Path) -> None:
    """The library would parse each of its lines, each time."""
    (wildcards / "many.txt").write_text("".join(f"a light blue {number}\n" for number in range(20_000)))
    begin = time.process_time()
    varied = job("{2$$__many__} {a|b}", wildcards, count=50, dynamic=True)
    seconds = time.process_time() - begin
    print(f"50 choices from 20,000 lines in {seconds:.2f} s")
    assert len({varied.at(cell).prompt for cell in range(50)}) == 50
    assert seconds < 5


def test_whatever_is_written_is_chosen_from_or_refused_soon(wildcards: Path) -> None:
    pieces = [
        "{",
        "}",
        "|",
        "$$",
        "2$$",
        "__",
        "colour",
        "__colour__",
        "${x=",
        "${x}",
        "%{",
        "...",
        "::",
        "0.5",
        "a b",
        "#",
    ]
    pieces += ["!", "~", "@", "(", ")", ",", "\n", "/*", "*/", "//", "\\", "日本", "__a__", "__b__", "*", "**"]
    chance = random.Random(5)
    slowest = 0.0
    chosen = 0
    for _ in range(600):
        text = "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 25)))
        begin = time.process_time()
        try:
            job(text, wildcards, dynamic=True, count=2)
            chosen += 1
        except InvalidRequest as error:
            assert error.errors[0].field == "prompt"
            assert len(error.message) < 1000
        slowest = max(slowest, time.process_time() - begin)
    print(f"{chosen} of 600 chosen, slowest {slowest:.2f} s")
    assert chosen > 20
    assert slowest < 5


def test_the_library_is_not_loaded_where_nobody_asks_for_it() -> None:
    import subprocess
    import sys

    code = (
        "import sys, json; from darkroom.config import Config; from darkroom.models.catalog import Catalog\n"
        "from darkroom.job import parse, resolve\n"
        "c = Config(); resolve(parse(b'{\"prompt\": \"{a|b}\"}'), c, Catalog(c.models), 'x')\n"
        "print([name for name in ('dynamicprompts', 'pyparsing', 'jinja2') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
