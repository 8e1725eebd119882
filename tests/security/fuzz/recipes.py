"""Recipes and words of `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from stairdata.recipe.loading import PACKAGED, load_recipe
from stairdata.stages import FullRecipe
from tests.security.fuzz.damage import VALUES, damaged, documents
from tests.security.fuzz.manifests import YAML_VALUES

_DEFAULTS: dict[str, Any] = FullRecipe().model_dump(mode="json")
_SECTIONS = st.sampled_from(
    [
        _DEFAULTS,
        *({name: section} for name, section in _DEFAULTS.items()),
        *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(PACKAGED.glob("*.yaml"))),
    ]
)
_AS_WRITTEN = st.sampled_from([path.read_bytes() for path in sorted(PACKAGED.glob("*.yaml"))])
_IN_BLOCKS = _SECTIONS.map(lambda sections: yaml.safe_dump(sections).encode())
RECIPES = damaged(documents(_SECTIONS, YAML_VALUES) | _IN_BLOCKS | _AS_WRITTEN)


def _keys(sections: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in sections.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{name}.")
    return found


_ODD = ("", ".", "a", "trees.", ".trees", "trees..c", "trees.c.d", "__class__.a", "\ud800", ".".join("a" * 5000))
_KEYS = st.sampled_from([*_keys(_DEFAULTS), *_ODD])
_SIGNS = st.sampled_from(["=", "=", "=", "", " = ", ":"])
_VALUES = documents(st.sampled_from([1, 0.5, "x", [1], {"a": 1}, None, True]), YAML_VALUES).map(
    lambda data: data.decode("utf-8", "surrogatepass")
)
_WORDS = st.builds(lambda key, sign, value: f"{key}{sign}{value}", _KEYS, _SIGNS, _VALUES)
SETTINGS = damaged(
    st.lists(_WORDS | st.sampled_from([*VALUES, *YAML_VALUES]), min_size=1, max_size=3).map(
        lambda words: "\0".join(words).encode("utf-8", "surrogatepass")
    )
)


def read_any_recipe(data: bytes, folder: Path) -> None:
    """Load a recipe file."""
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    _use(load_recipe(FullRecipe, path, []))


def read_any_settings(data: bytes, folder: Path) -> None:
    """Apply words of `--set`, which a zero byte separates; the shell hands bytes that are no UTF-8 on as surrogates."""
    _use(load_recipe(FullRecipe, None, data.decode("utf-8", "surrogateescape").split("\0")))


def _use(recipe: FullRecipe) -> None:
    recipe.model_dump(mode="json")
