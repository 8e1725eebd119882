"""YAML of strangers: what is refused before anything is made of it."""

from __future__ import annotations

import pytest

from stairdata_schemas.formats import yaml_core
from stairdata_schemas.formats.yaml_core import MOST_NODES, UnreadableYamlError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" + "a," * (MOST_NODES + 1) + "]", "more than 50,000 values"),
        ("a: &a [*a]", "an alias at line 1, column 4 stands inside"),
        ("a: &a {b: {c: *a}}", "stands inside what it stands for"),
        ("[&a [" + "x" * 999 + "], " + ", ".join(["*a"] * 40_000) + "]", "repeat more than"),
        ("!!bool x", "'x'"),
        ("!!timestamp x", "group"),
        ("!!int [1]", "expected a scalar"),
    ],
    ids=["many values", "alias", "alias further in", "large", "bool", "time", "list"],
)
def test_yaml_that_is_refused(text: str, says: str) -> None:
    with pytest.raises(UnreadableYamlError, match=says):
        yaml_core.load(text)


def test_aliases_of_a_sensible_size_are_read() -> None:
    assert yaml_core.load("a: &a {x: [1]}\nb: *a\nc: {<<: *a, y: 2}\n") == {
        "a": {"x": [1]},
        "b": {"x": [1]},
        "c": {"x": [1], "y": 2},
    }
    assert yaml_core.load("") is None
