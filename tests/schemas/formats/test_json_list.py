"""A JSON list, read in windows: the same as the standard library reads, and where it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas.errors import InputError
from stairdata_schemas.formats.json_list import Duplicates, read_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True, params=[1, 7, 4096])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata_schemas.formats.json_list.WINDOW_BYTES", request.param)


@given(
    elements=st.lists(VALUES, max_size=6),
    indent=st.none() | st.just(4),
    ascii_=st.booleans(),
    around=st.sampled_from(["", "\n", " \t\r\n"]),
)
@settings(max_examples=40)
def test_elements_are_those_that_json_reads(
    elements: list[Any], indent: int | None, ascii_: bool, around: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.json"
    text = around + json.dumps(elements, indent=indent, ensure_ascii=ascii_) + around
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert list(read_list(path)) == elements


@given(elements=st.lists(st.dictionaries(st.text(), VALUES), min_size=1, max_size=4), data=st.data())
@settings(max_examples=40)
def test_a_file_cut_anywhere_is_refused_with_the_byte_it_ends_at(
    elements: list[Any], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "cut.json"
    whole = json.dumps(elements, ensure_ascii=True, indent=data.draw(st.none() | st.just(4))).encode()
    size = data.draw(st.integers(1, len(whole) - 1))
    path.write_bytes(whole[:size])
    with pytest.raises(InputError, match=rf"ends in the middle of the list, at byte {size}: .*nothing was written"):
        list(read_list(path))


def read(tmp_path: Path, content: bytes) -> list[Any]:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    return list(read_list(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"{}", "has to be a JSON list; it begins with '{"),
        (b"  ", "has to be a JSON list"),
        (b"[1 2]", "is not JSON at byte 3 of 5: a comma or the end of the list was expected"),
        ('["é", x, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]'.encode(), "is not JSON at byte 7 of 40: expecting value"),
        (b"[1] 2", "is not JSON at byte 4 of 5: text after the end of the list"),
        (b'["a", "\xff"]', "is not UTF-8 at byte 7"),
        (b"[" + b"1" * 5000 + b"]", "is not JSON at byte 1 of 5002: a number is too long"),
        (b"[[" + b"[" * 100_000 + b"]" * 100_002, "nested too deeply"),
    ],
)
def test_what_is_no_json_list(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert words in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(read_list(tmp_path / "no.json"))


def test_what_python_writes_is_read(tmp_path: Path) -> None:
    assert str(read(tmp_path, b"[NaN, Infinity, -Infinity]")) == "[nan, inf, -inf]"
    assert read(tmp_path, b"\xef\xbb\xbf[1]") == [1]
    assert read(tmp_path, b'["\\ud83d\\ude00"]') == ["😀"]


def test_a_key_twice_is_told(tmp_path: Path) -> None:
    assert read(tmp_path, b'[{"a": 1, "b": 2, "a": 3}]') == [Duplicates("a")]


def test_an_element_beyond_all_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata_schemas.formats.json_list.ROW_BYTES", 100)
    with pytest.raises(
        InputError, match=r"element of the list, from byte [0-9]+ on: [0-9.]+ \w+, over the limit of 100 bytes"
    ):
        read(tmp_path, b'["' + b"x" * 20_000 + b'"]')
