"""A1111's syntax of prompts: what is documented, and what holds for any text."""

from __future__ import annotations

import itertools
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.prompt_syntax import BadTag, edits, escape, parse, take_loras

SYNTAX = st.lists(st.sampled_from([*"ab ()[]\\:.12,\n-é🐈", "BREAK"]), max_size=60).map("".join)
"""Texts made of what has a meaning."""

TAGS = st.lists(st.sampled_from([*"<>:1.a ", "<lora:", "<hypernet:"]), max_size=40).map("".join)

PLAIN = st.text(max_size=60).filter(lambda text: not re.search(r"[()\[\]\\]|BREAK", text))


def read(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(fragment.text, fragment.weight) for fragment in section] for section in parse(prompt)]


def about(*fragments: tuple[str, float]) -> list[tuple[str, object]]:
    return [(text, pytest.approx(weight, rel=1e-12)) for text, weight in fragments]


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        # the table of the wiki
        ("a (word)", [("a ", 1.0), ("word", 1.1)]),
        ("a ((word))", [("a ", 1.0), ("word", 1.21)]),
        ("a [word]", [("a ", 1.0), ("word", 1 / 1.1)]),
        ("a (word:1.5)", [("a ", 1.0), ("word", 1.5)]),
        ("a (word:0.25)", [("a ", 1.0), ("word", 0.25)]),
        (r"a \(word\)", [("a (word)", 1.0)]),
    ],
)
def test_the_examples_that_a1111_documents_mean_what_they_say(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert read(prompt) == [about(*fragments)]


def test_the_table_in_the_documentation_is_true() -> None:
    text = (Path(__file__).parent.parent / "docs/jobs.md").read_text()
    table = re.findall(r"^\| `(\S+)` \| (1|a quarter|[0-9.]+)(?: times| of it)", text, re.MULTILINE)
    assert len(table) == 6
    for written, factor in table:
        ((fragment,),) = parse(written)
        assert fragment.text.strip("()") == "word"
        assert fragment.weight == pytest.approx(0.25 if factor == "a quarter" else float(factor), abs=1e-3)


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("", []),
        ("()", []),
        ("x)", [("x)", 1.0)]),
        ("x]", [("x]", 1.0)]),
        ("x:1.2)", [("x:1.2)", 1.0)]),
        ("[x:1.2]", [("x:1.2", 1 / 1.1)]),
        ("(x:1.2", [("x:1.2", 1.1)]),
        ("[x", [("x", 1 / 1.1)]),
        ("((x)", [("x", 1.21)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("(x: 1.2 )", [("x", 1.2)]),
        ("(x:.5)", [("x", 0.5)]),
        ("(x:2.)", [("x", 2.0)]),
        ("(x:-1)", [("x", -1.0)]),
        ("(x:+1)", [("x", 1.0)]),
        ("(x:)", [("x:", 1.1)]),
        ("(x:much)", [("x:much", 1.1)]),
        ("(x:1.2.3)", [("x:1.2.3", 1.1)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("12:30, (16:9)", [("12:30, ", 1.0), ("16", 9.0)]),
        (r"(\(x\):1.3)", [("(x)", 1.3)]),
        (r"a\\b", [("a\\b", 1.0)]),
        (r"a\b", [("ab", 1.0)]),
        ("a\\", [("a", 1.0)]),
        (r"\:(x\:1.2)", [(":", 1.0), ("x", 1.2)]),
        ("([x])", [("x", 1.0)]),
    ],
)
def test_brackets_that_do_not_fit_are_read_as_a1111_reads_them(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert read(prompt) == [about(*fragments)]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a red car BREAK a tree", [[("a red car", 1.0)], [("a tree", 1.0)]]),
        ("a,\n\tBREAK\n b", [[("a,", 1.0)], [("b", 1.0)]]),
        ("BREAK a", [[], [("a", 1.0)]]),
        ("a BREAK", [[("a", 1.0)], []]),
        ("a BREAK BREAK b", [[("a", 1.0)], [], [("b", 1.0)]]),
        ("BREAK", [[], []]),
        ("break Break BREAKING OUTBREAK", [[("break Break BREAKING OUTBREAK", 1.0)]]),
        ("a,BREAK,b", [[("a,", 1.0)], [(",b", 1.0)]]),
        ("(a BREAK b:1.2)", [[("a", 1.2)], [("b", 1.2)]]),
        ("(a)BREAK(a)", [[("a", 1.1)], [("a", 1.1)]]),
    ],
)
def test_break_in_capitals_and_by_itself_begins_a_section(prompt: str, sections: list[list[tuple[str, float]]]) -> None:
    assert read(prompt) == [about(*section) for section in sections]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a [cat:dog:0.5] on [red|blue|green] ground", ["[cat:dog:0.5]", "[red|blue|green]"]),
        ("[fur::8] [fur: 8 ] [:fur:0.2]", ["[fur::8]", "[fur: 8 ]", "[:fur:0.2]"]),
        ("[a cat] [at 12:30 in the night] (red:1.2) [(red:1.2)] a|b", []),
        (r"\[a|b] \[a:b:0.5\]", []),
    ],
)
def test_prompt_editing_of_a1111_is_noticed(prompt: str, found: list[str]) -> None:
    assert edits(prompt) == found


@given(st.text() | SYNTAX)
def test_any_text_is_read(prompt: str) -> None:
    sections = parse(prompt)
    assert sections
    for section in sections:
        assert all(fragment.text for fragment in section)
        assert all(one.weight != other.weight for one, other in itertools.pairwise(section))


@given(st.text() | SYNTAX)
def test_each_character_is_found_again_at_its_place(prompt: str) -> None:
    places: list[int] = []
    for section in parse(prompt):
        for fragment in section:
            assert fragment.text == "".join(prompt[place] for place in fragment.places)
            places += fragment.places
    assert places == sorted(set(places))


@given(PLAIN.filter(bool))
def test_plain_text_is_one_fragment_of_weight_1(text: str) -> None:
    assert read(text) == [[(text, 1.0)]]


@given(st.text(max_size=60).filter(lambda text: text and "BREAK" not in text))
def test_what_is_escaped_is_read_as_it_stands(text: str) -> None:
    assert read(escape(text)) == [[(text, 1.0)]]


@given(st.lists(st.sampled_from([("(", ")", 1.1), ("[", "]", 1 / 1.1), ("(", ":0.5)", 0.5), ("(", ":3)", 3.0)])), PLAIN)
def test_the_weights_of_nested_brackets_multiply(around: list[tuple[str, str, float]], text: str) -> None:
    prompt = "x" + text
    for left, right, _ in around:
        prompt = left + prompt + right
    assert read(prompt) == [about(("x" + text, math.prod(weight for _, _, weight in around)))]


@given(SYNTAX)
def test_one_more_pair_of_brackets_multiplies_each_weight(prompt: str) -> None:
    """Where no bracket of the text reaches out of it."""
    closed = escape(prompt.replace("BREAK", "")) or "x"
    before, after = parse(f"{closed} (b:0.5) [c]"), parse(f"({closed} (b:0.5) [c]:3)")
    assert [fragment.text for fragment in before[0]] == [fragment.text for fragment in after[0]]
    for one, other in zip(before[0], after[0], strict=True):
        assert math.isclose(3 * one.weight, other.weight)


@pytest.mark.parametrize(
    "prompt",
    ["(a" * 5_000, "[a(b" * 2_500, " " * 10_000, "\\(" * 5_000, "(" * 10_000, ":1)" * 3_300, "[:" + "1" * 9_990],
)
def test_the_longest_prompts_are_read_in_a_moment(prompt: str) -> None:
    begin = time.process_time()
    parse(prompt)
    edits(prompt)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("prompt", "clean", "loras"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:fur:0.8>", "a cat ", [("fur", 0.8)]),
        ("<lora:one:1>a <lora:two:-.5>cat", "a cat", [("one", 1.0), ("two", -0.5)]),
        ("<lora:one:1><lora:one:2>", "", [("one", 1.0), ("one", 2.0)]),
        ("<lora:fur>", "", [("fur", 1.0)]),
        ("<LoRA: my style v1.5 : 0.7 >", "", [("my style v1.5", 0.7)]),
        ("<lyco:fur:0.8>", "", [("fur", 0.8)]),
        ("a < b > c <3 <lora>", "a < b > c <3 <lora>", []),
        ("(<lora:fur:0.8> cat:1.2)", "( cat:1.2)", [("fur", 0.8)]),
    ],
)
def test_lora_tags_are_taken_out_and_counted(prompt: str, clean: str, loras: list[tuple[str, float]]) -> None:
    assert take_loras(prompt) == (clean, loras)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora::1>", '"<lora::1>" names no LoRA'),
        ("a <lora:>", '"<lora:>" names no LoRA'),
        ("a <lora:fur:strong>", "no single number"),
        ("a <lora:fur:1e3>", "no single number"),
        ("a <lora:fur:nan>", "no single number"),
        ("a <lora:fur:0.8:0.5>", "no single number"),
        ("a <hypernet:old:1>", "a hypernetwork, which darkroom has not"),
    ],
)
def test_a_tag_that_is_none_is_refused_with_the_way_to_write_it(prompt: str, message: str) -> None:
    with pytest.raises(BadTag, match=message) as raised:
        take_loras(prompt)
    assert raised.value.hint


@given(st.text() | TAGS)
def test_no_tag_is_left_and_nothing_else_is_lost(prompt: str) -> None:
    try:
        clean, loras = take_loras(prompt)
    except BadTag:
        return
    assert (clean == prompt) == (not loras)
    assert all(name and math.isfinite(weight) for name, weight in loras)
