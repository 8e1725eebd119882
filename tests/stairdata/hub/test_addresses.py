from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.hub.addresses import Address, ConfigPath, parse_address, parse_config, parse_repo, parse_tag
from stairdata_schemas.artifacts import Version
from stairdata_schemas.errors import UsageError

configs = st.from_regex(r"[A-Za-z0-9_]{1,8}([.-][A-Za-z0-9_]{1,8}){0,2}", fullmatch=True).filter(
    lambda name: name not in {"data", "plots", "quarantine", "default"}
)
versions = st.builds(Version, *[st.integers(0, 99)] * 3)


@given(configs | st.none(), versions)
def test_a_tag_says_its_place_and_version(config: str | None, version: Version) -> None:
    place = ConfigPath(None if config is None else parse_config(config))
    assert parse_tag(place.tag(version)) == (place, version)


@given(st.text(max_size=20))
def test_any_text_is_a_tag_or_is_not(text: str) -> None:
    parsed = parse_tag(text)
    assert parsed is None or parsed.place.tag(parsed.version) == text


@pytest.mark.parametrize("tag", ["1.0.0", "v1.0", "v01.0.0", "release", "v1.0.0-rc1", "-v1.0.0", "v1.0.0\n", ""])
def test_what_is_no_release(tag: str) -> None:
    assert parse_tag(tag) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Address("org/name")),
        ("org/name@v1.0.0", Address("org/name", "v1.0.0")),
        ("org/na.me-x@trees-v1.0.0", Address("org/na.me-x", "trees-v1.0.0")),
        ("prompts", None),
        ("prompts@1.0.0", None),
        ("a/b/c", None),
        ("org/../x", None),
        ("org/a--b", None),
        ("./org/name", None),
        ("org/name@", None),
    ],
)
def test_addresses(text: str, expected: Address | None) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["name", "org/name@v1.0.0", "https://huggingface.co/org/name", "-/x"])
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(UsageError, match="is not a repository name; write --repo org/name"):
        parse_repo(text)


@pytest.mark.parametrize("text", ["data", "../x", "a/b", "", ".hidden", "a b", "x" * 70, "ä"])
def test_what_is_no_config(text: str) -> None:
    with pytest.raises(UsageError, match="can't be a config"):
        parse_config(text)


def test_what_a_place_holds() -> None:
    root, trees = ConfigPath(), ConfigPath("trees")
    assert all(root.holds(path) for path in ("data/x.parquet", "manifest.json", "croissant.json", "plots/a.png"))
    assert not any(root.holds(path) for path in ("README.md", "trees/manifest.json", ".gitattributes", "x.py"))
    assert trees.holds("trees/manifest.json")
    assert not trees.holds("manifest.json")
