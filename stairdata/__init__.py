"""STAIR's data as versioned datasets: build artifacts, open them, publish them, search with a policy of your own.

The names below are the public Python API (docs/python.md); everything else may move between releases. They are imported
when they are first used, so that `import stairdata` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stairdata.api import (
        Artifact,
        best_of,
        best_of_curve,
        build,
        join,
        lineage,
        load_recipe,
        open_artifact,
        pull,
        push,
        save_trees,
        search_tree,
        validate,
    )

__all__ = [
    "Artifact",
    "best_of",
    "best_of_curve",
    "build",
    "join",
    "lineage",
    "load_recipe",
    "open_artifact",
    "pull",
    "push",
    "save_trees",
    "search_tree",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stairdata' has no attribute {name!r}")
    from stairdata import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
