"""Configurations for `accelerate launch` that come with the package."""

from __future__ import annotations

from pathlib import Path

from stairdata_schemas.errors import UsageError, quote, suggest

_FOLDER = Path(__file__).parent


def accelerate_config(name: str) -> Path:
    """Return the file of a configuration, fsdp2 or zero3.

    Raises:
        UsageError: there is none of that name.
    """
    names = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    if name not in names:
        raise UsageError(f"there is no configuration {quote(name)} for accelerate; {suggest(name, names)}")
    return _FOLDER / f"{name}.yaml"
