"""YAML as version 1.2 has it (https://yaml.org/spec/1.2.2/#103-core-schema), in which words stay words.

PyYAML reads YAML 1.1, in which `no` is false, `12:30` is 750 and `2024-08-06` is a date. Here `true`, `false` and
`null` are the only words with a meaning. One deviation from 1.2: a number counts as one only if it is written as Python
writes it. `1.10` and `007` stay text, since they may be names; pydantic makes numbers of them where numbers belong.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from stairdata_schemas.errors import quote

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_MERGE = re.compile(r"<<")
_INT = re.compile(r"0|-?[1-9][0-9]*")
_FLOAT = re.compile(r"-?[0-9]+\.[0-9]+")


_OF_TAGS = (ValueError, LookupError, TypeError, AttributeError)
"""What PyYAML raises over an explicit tag that its value does not fit, such as `!!bool x` or `!!timestamp x`."""


class UnreadableYamlError(Exception):
    """A text that is no YAML; the message says why and where, on one line."""


class YamlKeyTwiceError(UnreadableYamlError):
    """A mapping that has a key twice; the message says which and where."""


MOST_NODES = 50_000
"""Scalars, lists and mappings of a document: PyYAML takes a second for 20,000; the longest cards have some 10,000."""
MOST_REPEATED = 32 * 2**20
"""Characters of a document in which each alias is replaced by what it stands for."""
NODE_CHARACTERS = 16
"""That a node counts as, beside its text."""
NESTED_TOO_DEEP = "its lists and mappings are nested too deep"


class CoreLoader(yaml.SafeLoader):
    """Reads YAML 1.2; a key that a mapping has twice is an error that names both places."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - as PyYAML declares it

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise UnreadableYamlError(f"it has more than {MOST_NODES:,} values; write less")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        check_keys(node)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        check_keys(node)  # before a merge, whose keys may repeat: what stands in the mapping itself overrides them
        super().flatten_mapping(node)

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if tag == "tag:yaml.org,2002:float" and repr(float(value)) != value:
            return "tag:yaml.org,2002:str"
        return tag


for _name, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", _MERGE, "<"),
    ("int", _INT, "-0123456789"),
    ("float", _FLOAT, "-0123456789"),
):
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, list(_first))


def check_keys(node: yaml.MappingNode) -> None:
    """Refuse a mapping that has a key twice.

    Keys count as equal if they are written alike, since where text is expected `1` and `"1"` are one key.

    Raises:
        YamlKeyTwiceError: with line and column of both.
    """
    seen: dict[str, yaml.Mark] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        mark: Any = key.start_mark
        first = seen.setdefault(key.value, mark)
        if first is not mark:
            raise YamlKeyTwiceError(
                f"the key {quote(key.value)} stands twice, at {_place(first)} and at {_place(mark)}; remove one"
            )


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def load(text: str) -> Any:
    """Read one document.

    Raises:
        UnreadableYamlError: it is no YAML, a mapping has a key twice, or aliases make it endless or very large.
    """
    try:
        loader = CoreLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_aliases(root, {})
        return loader.construct_document(root)
    except RecursionError as error:
        raise UnreadableYamlError(NESTED_TOO_DEEP) from error
    except (yaml.YAMLError, *_OF_TAGS) as error:
        raise UnreadableYamlError(" ".join(str(error).split())) from error


def _check_aliases(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Refuse what is inside itself, or becomes very large where it is written out: nine lines can repeat to gigabytes.

    Args:
        node: the root of a document.
        sizes: of the nodes that were seen, by their id; None while a node is open.

    Returns:
        The characters that the node takes up without aliases.

    Raises:
        UnreadableYamlError: it is no tree of a sensible size.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise UnreadableYamlError(f"an alias at {_place(node.start_mark)} stands inside what it stands for")
        return known
    sizes[id(node)] = None
    if isinstance(node, yaml.ScalarNode):
        size = len(node.value)
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        size = sum(_check_aliases(part, sizes) for part in parts)
    if size > MOST_REPEATED:
        raise UnreadableYamlError(f"its aliases repeat more than {MOST_REPEATED:,} characters; write less of them")
    sizes[id(node)] = size + NODE_CHARACTERS
    return size + NODE_CHARACTERS


def top_level(text: str) -> dict[str, str]:
    """Return the lines of each key of a document that is a mapping, in order; {} where keys do not begin lines.

    Raises:
        UnreadableYamlError: it is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=CoreLoader)
    except RecursionError as error:
        raise UnreadableYamlError(NESTED_TOO_DEEP) from error
    except yaml.YAMLError as error:
        raise UnreadableYamlError(" ".join(str(error).split())) from error
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return {}
    lines = text.split("\n")
    keys = [(key.value, key.start_mark) for key, _ in root.value]
    if any(not isinstance(key, str) or mark.column for key, mark in keys):
        return {}
    ends = [mark.line for _, mark in keys[1:]] + [len(lines)]
    return {key: "\n".join(lines[mark.line : end]).rstrip() + "\n" for (key, mark), end in zip(keys, ends, strict=True)}
