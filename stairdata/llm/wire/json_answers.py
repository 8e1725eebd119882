"""Answers of a model server as the JSON that they are, which may be of any shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def part(of: Any, name: str) -> Any:
    """Return a member of a JSON object, or of what the openai package made of one; None where there is none."""
    if isinstance(of, dict):
        return of.get(name)
    return getattr(of, name, None) if isinstance(of, BaseModel) else None


def known_part(of: Any, name: str) -> Any:
    """Do the same with what has to be an object.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(of, dict | BaseModel):
        raise TypeError(f"{type(of).__name__} instead of an object")
    return part(of, name)
