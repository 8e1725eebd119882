"""Documents as no honest writer makes them: values replaced by what readers stumble over, then bytes damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

LONGEST = 2**20
"""Bytes of a document: enough for a reader of quadratic time to show itself."""
DEPTHS = (50, 700, 10_000)


class Raw(NamedTuple):
    """What stands in a document as it is."""

    text: str


class Pairs(NamedTuple):
    """A mapping that may have a key twice."""

    items: list[tuple[str, Any]]


VALUES: tuple[str, ...] = (
    "null", "true", "-1", "0", "1.5", '""', '"a"', "{}", "[]", "[[]]", '[{}, null, 1, "a"]',
    "NaN", "-Infinity", "1e999", "-0", "1e-400", str(2**31), str(2**63), str(2**64), str(-(2**63) - 1),
    "9" * 400, "9" * 5000, '"' + "9" * 5000 + '"', '"1e999"', '"\u0663"',
    r'"\ud800"', r'"\u0000"', r'"\u202e\u009b31m"', '"\u2028\x85"', '"' + "a" * 100_000 + '"',
    '{"a": 1, "a": 2}', '{"": {"": {}}}', '{"__class__": 1, "self": 2, "model_config": 3}',
    "[" + "0, " * 20_000 + "0]", "{" + ", ".join(f'"{number}": {{}}' for number in range(3_000)) + "}",
    '"../../x"', '"/etc/passwd"', '"data/\\u0000.parquet"', '"0001-01-01T00:00:00Z"', '"9999-12-31T23:59:60-23:59"',
    *("[" * depth + "]" * depth for depth in DEPTHS),
    *('{"a":' * depth + "1" + "}" * depth for depth in DEPTHS),
    *("[" * depth for depth in DEPTHS),
)  # fmt: skip
"""Of JSON, and of YAML too."""
TOKENS: tuple[bytes, ...] = (
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", "\u202e".encode(), b"\x85", b"\r", b"\n",
    b'"', b"'", b"\\", b"\\u", b"\\ud83d", b"{", b"}", b"[", b"]", b",", b":", b"-", b"#", b"&a ", b"*a", b"<<: ",
    b"!!", b"%YAML 9.9\n", b"---\n", b"...\n", b"\t", b"/*", b"9" * 5000, b"[" * 10_000, b'{"a":' * 10_000,
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x0f", b"\x80" * 12, b"PAR1",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-be", "utf-32", "utf-7", "utf-8-sig", "latin-1", "cp500")


def written(value: Any) -> str:
    """Write a value as JSON, with what stands in it raw."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        value = Pairs(list(value.items()))
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {written(inner)}" for key, inner in value.items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, default=str)


@st.composite
def documents(draw: st.DrawFn, values: st.SearchStrategy[Any], more: Sequence[str] = ()) -> bytes:
    """Make JSON of values, some of which are replaced by others, left out, nested or given twice.

    Args:
        draw: of hypothesis.
        values: sound documents, as Python has them.
        more: what may also stand in the place of a value, as the format writes it.
    """
    value = draw(values)
    odd = st.sampled_from((*VALUES, *more)).map(Raw)
    for _ in range(draw(st.integers(0, 3))):
        value = _changed(draw, value, odd)
    return written(value).encode("utf-8", "surrogatepass")


def _changed(draw: st.DrawFn, value: Any, odd: st.SearchStrategy[Raw]) -> Any:
    """Change one place of a value."""
    places = len(value) if isinstance(value, dict | list) else 0
    if not places or draw(st.integers(0, 5)) == 0:
        return draw(st.one_of(odd, st.just([value]), st.just({"a": value})))
    place = draw(st.integers(0, places - 1))
    if isinstance(value, list):
        return [*value[:place], _changed(draw, value[place], odd), *value[place + 1 :]]
    items = list(value.items())
    key, inner = items[place]
    action = draw(st.sampled_from(["in", "in", "in", "in", "out", "twice", "renamed"]))
    if action == "in":
        return {**value, key: _changed(draw, inner, odd)}
    if action == "out":
        return dict(items[:place] + items[place + 1 :])
    if action == "twice":
        return Pairs([*items, (key, draw(odd))])
    return dict([*items[:place], (draw(st.sampled_from(["", "a", "self", "\ud800", "__class__"])), inner)])


@st.composite
def damaged(draw: st.DrawFn, sound: st.SearchStrategy[bytes]) -> bytes:
    """Damage the bytes of a document, or leave them as they are."""
    data = draw(sound)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        data = _damaged_once(draw, data)[:LONGEST]
    return data


def _damaged_once(draw: st.DrawFn, data: bytes) -> bytes:  # noqa: PLR0911 - a way, a return
    begin = draw(st.integers(0, len(data)))
    end = min(len(data), begin + draw(st.sampled_from([1, 2, 4, 16, 100, 1000])))
    action = draw(st.sampled_from(["flip", "cut", "end", "insert", "repeat", "overwrite", "move", "encode"]))
    if action == "flip":
        bit = 1 << draw(st.integers(0, 7))
        return data[:begin] + bytes([data[begin] ^ bit]) + data[begin + 1 :] if begin < len(data) else data
    if action == "cut":
        return data[:begin] + data[end:]
    if action == "end":
        return data[:begin]
    if action == "insert":
        return data[:begin] + draw(st.sampled_from(TOKENS)) + data[begin:]
    if action == "repeat":
        times = draw(st.sampled_from([2, 2, 3, 3, 30, 30, 300, 3_000, 100_000]))
        return data[:begin] + data[begin:end] * min(times, LONGEST // max(1, end - begin)) + data[end:]
    if action == "overwrite":
        return data[:begin] + draw(st.binary(max_size=end - begin)) + data[end:]
    if action == "move":
        return data[end:] + data[begin:end] + data[:begin]
    return data.decode("utf-8", "replace").encode(draw(st.sampled_from(ENCODINGS)), "replace")
