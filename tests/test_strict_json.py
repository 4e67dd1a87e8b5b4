from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.strict_json import MAX_DEPTH, MAX_DIGITS, JSONFault, decode, parse, position

quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=30
)


def fault(text: str) -> JSONFault:
    with pytest.raises(JSONFault) as raised:
        parse(text)
    return raised.value


@quick
@given(documents, st.sampled_from([None, 0, 2]), st.booleans())
def test_it_agrees_with_the_standard_library_on_valid_documents(value: Any, indent: int | None, ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    parsed = parse(text).value
    assert parsed == json.loads(text)
    assert json.dumps(parsed) == json.dumps(value), "1, 1.0 and true stay apart"


@quick
@given(st.text(alphabet='{}[]":,0123456789.eE+-truefalsn \n\\u', max_size=30))
def test_it_accepts_nothing_that_the_standard_library_refuses(text: str) -> None:
    try:
        value = parse(text).value
    except JSONFault as error:
        assert error.line >= 1
        assert error.column >= 1
        return
    assert value == json.loads(text)


@quick
@given(documents, st.floats(0, 1, exclude_max=True))
def test_nothing_that_is_cut_off_passes_for_whole(value: Any, part: float) -> None:
    text = json.dumps({"job": value})
    fault(text[: int(part * len(text))])


def test_every_value_has_its_place() -> None:
    document = parse('{"prompt": "a",\n  "sizes": [1,\n 22]}')
    assert document.place(()) == (1, 1)
    assert document.place(("prompt",)) == (1, 12)
    assert document.place(("sizes",)) == (2, 12)
    assert document.place(("sizes", 1)) == (3, 2)
    assert document.place(("nothing",)) == (None, None)


def test_lines_count_from_one_also_with_carriage_returns() -> None:
    document = parse('{\r\n"a": 1,\r\n"b": 2}')
    assert document.place(("b",)) == (3, 6)


def test_a_position_is_that_of_the_character() -> None:
    text = "ab\ncd"
    assert [position(text, at) for at in range(5)] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("", (1, 1), "the file ends where a value should stand", None),
        (" \n ", (2, 2), "the file ends where a value should stand", None),
        ('{"a": 1, "a": 2}', (1, 10), '"a" stands here twice', "keep one of them"),
        ('{"a": NaN}', (1, 7), "NaN is not a JSON value", "leave the field out instead"),
        ('{"a": Infinity}', (1, 7), "Infinity is not a JSON value", "leave the field out instead"),
        ('{"a": -Infinity}', (1, 7), "-Infinity is not a JSON value", "leave the field out instead"),
        ('{"a": None}', (1, 7), "None is not a JSON value", "leave the field out instead"),
        ('{"a": True}', (1, 7), "True is not a JSON value", "write true"),
        ('{"a": cat}', (1, 7), "cat is not a JSON value", "texts stand in double quotes"),
        ('{"a": 1e999}', (1, 7), "1e999 is too large a number", None),
        ('{"a": 01}', (1, 7), "01 is not a number in JSON", "write 1"),
        ('{"a": +1}', (1, 7), "+1 is not a number in JSON", "write 1"),
        ('{"a": .5}', (1, 7), ".5 is not a number in JSON", "write 0.5"),
        ('{"a": 5.}', (1, 7), "5. is not a number in JSON", "write 5.0"),
        ('{"a": 1-2}', (1, 7), "1-2 is not a number in JSON", None),
        ('{"a": 1 "b": 2}', (1, 9), "a comma or } is missing", None),
        ("[1 2]", (1, 4), "a comma or ] is missing", None),
        ('{"a": 1,}', (1, 9), "a field's name should stand here", "remove the comma before it"),
        ("[1,]", (1, 4), "a value is missing before ]", "remove the comma before it, if there is one"),
        ('{"a": }', (1, 7), "a value is missing before }", "remove the comma before it, if there is one"),
        ("{a: 1}", (1, 2), "a field's name should stand here", "names stand in double quotes"),
        ("{'a': 1}", (1, 2), "a field's name should stand here", "names stand in double quotes"),
        ("{\"a\": 'b'}", (1, 7), "texts stand in double quotes in JSON", 'straight ones: "'),
        ('{"a": “b”}', (1, 7), "texts stand in double quotes in JSON", 'straight ones: "'),
        ('{"a" 1}', (1, 6), 'a colon is missing after "a"', None),
        (
            '{"a": "b\nc"}',
            (1, 9),
            "a line break or control character stands inside a text",
            r"write \n for a line break",
        ),
        ('{"a": "C:\\models"}', (1, 10), "invalid \\escape", r"a backslash itself is written \\"),
        ('{"a": 1} // cat', (1, 10), "JSON has no comments", "remove it"),
        ('{"a": 1}{"a": 2}', (1, 9), "there is more text after the end of the JSON value", "one file holds one job"),
        ('{"a": 1, // cat\n"b": 2}', (1, 10), "JSON has no comments", "remove it"),
        ('{"a": /* cat */ 1}', (1, 7), "JSON has no comments", "remove it"),
        ('{"a": 1', (1, 8), "the file ends before the closing }", None),
        ("[1", (1, 3), "the file ends before the closing ]", None),
        ('{"a": "b', (1, 9), "a text is not closed with a quote", None),
        ("{", (1, 2), "the file ends before the closing }", None),
    ],
)
def test_each_fault_has_its_place_and_its_words(
    text: str, place: tuple[int, int], message: str, hint: str | None
) -> None:
    error = fault(text)
    assert (error.line, error.column) == place
    assert error.message == message
    assert error.hint == hint


@pytest.mark.parametrize("text", ["1" * (MAX_DIGITS + 1), "0." + "1" * MAX_DIGITS, "1" * 5000, "-" + "9" * 5000])
def test_a_number_of_too_many_digits_is_refused(text: str) -> None:
    assert "a number of" in fault(text).message


def test_the_largest_seed_is_a_number() -> None:
    assert parse(str(2**64 - 1)).value == 2**64 - 1


@pytest.mark.parametrize("character", ["[", '{"a":'])
def test_nesting_is_bounded(character: str) -> None:
    assert f"nested more than {MAX_DEPTH} deep" in fault(character * 100_000).message
    depth = MAX_DEPTH
    assert parse("[" * depth + "]" * depth).value is not None


def test_numbers_keep_their_kind() -> None:
    values = parse("[1, 1.0, 1e0, -0.0, true]").value
    assert [type(value) for value in values] == [int, float, float, float, bool]
    assert math.copysign(1, values[3]) == -1


def test_a_byte_order_mark_is_dropped() -> None:
    assert parse(decode(b'\xef\xbb\xbf{"a": 1}')).value == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_and_utf_32_are_called_by_their_name(encoding: str) -> None:
    with pytest.raises(JSONFault, match="UTF-16 or UTF-32") as raised:
        decode('{"prompt": "a cat"}'.encode(encoding))
    assert raised.value.hint == "save it as UTF-8"


def test_other_encodings_are_refused_with_the_place_of_the_first_wrong_byte() -> None:
    with pytest.raises(JSONFault) as raised:
        decode('{"a": 1,\n "b": "é"}'.encode("latin-1"))
    assert (raised.value.line, raised.value.column) == (2, 8)
    assert raised.value.message == "the file is not UTF-8 text: byte 0xe9"


@quick
@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_a_fault(data: bytes) -> None:
    try:
        text = decode(data)
    except JSONFault:
        return
    assert text == data.decode("utf-8-sig")
