"""Which keys of a recipe decide rows: a mark at each field that does not enter as it stands, and what follows from it.

A build that was finished before is found by its fingerprint. A key that decides rows and is missing there gives back
rows of another recipe, without a word; a key too many costs a build that was not needed. So a field without a mark
enters, and each mark says why it may stay out, or how else it comes in.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

from pydantic import BaseModel


class Mark(Enum):
    """How a field of a recipe's section enters the fingerprint, where not by its value: `Annotated[int, Mark.NAME]`."""

    CANNOT_CHANGE_ROWS = auto()
    """It stays out. May be marked so: concurrency, URLs, ports, time-outs, retries, names of keys, prices, licences,
    how requests are packed into batches. A time-out can cost a row, but never makes another one of it."""
    COUNTS_AS_MODEL = auto()
    """It says which model or tokenizer. The generator adds that as a `ModelIdentity`, or as the tokenizer's hash, so
    that a folder counts by its content and not by where it lies."""
    COUNTS_AS_INPUT = auto()
    """It says where something is read. The generator adds the hash of the content, or a dataset's name and commit."""
    COUNTS_WHERE_USED = auto()
    """A section for some builds of its kind alone: for one source of rows, or for an option of the command line. Their
    generator adds `row_settings` of it."""
    COUNTS_UNLESS_DEFAULT = auto()
    """It enters where it differs from its default. That is the mark for a key that is added later, with the default
    under which older rows were made: fingerprints of recipes without the key stay what they are."""
    COUNTS_WHERE_SERVED = auto()
    """A setting of the server of a model that is served for the build, so without effect on a model behind a URL. It
    enters where the section has a `path`, unless it is the default: fingerprints lacked it at first."""


def row_settings(section: BaseModel) -> dict[str, Any]:
    """Return what of a section enters the fingerprint of a build that uses it, as JSON.

    Sections inside it, also in lists and dicts, are looked at in the same way; one that has nothing to say is left out.
    """
    settings = {}
    dumped = section.model_dump(mode="json")  # by the types of the fields: 0 in a field of floats is 0.0
    for name, value in section:
        if _enters(section, name, value):
            entering = _as_json(value, dumped[name])
            if not (isinstance(value, BaseModel) and not entering):
                settings[name] = entering
    return settings


def mark_of(section: type[BaseModel], name: str) -> Mark | None:
    """Return the mark of a field."""
    return next((each for each in section.model_fields[name].metadata if isinstance(each, Mark)), None)


def _enters(section: BaseModel, name: str, value: Any) -> bool:
    differs = bool(value != type(section).model_fields[name].default)
    match mark_of(type(section), name):
        case None:
            return True
        case Mark.COUNTS_UNLESS_DEFAULT:
            return differs
        case Mark.COUNTS_WHERE_SERVED:
            return differs and getattr(section, "path", None) is not None
        case _:
            return False


def _as_json(value: Any, dumped: Any) -> Any:
    """Return a value as it was dumped, but for sections in it."""
    if isinstance(value, BaseModel):
        return row_settings(value)
    if isinstance(value, dict):
        return {key: _as_json(inner, dumped[key]) for inner, key in zip(value.values(), dumped, strict=True)}
    if isinstance(value, list):
        return [_as_json(*both) for both in zip(value, dumped, strict=True)]
    return dumped
