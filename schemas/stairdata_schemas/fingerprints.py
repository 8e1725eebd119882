"""What decides a result is said at the fields of the settings; a fingerprint counts these alone.

A field counts unless it is marked. So a key that somebody adds makes new artifacts new, and can't return an old one by
being forgotten on a list.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class NotInFingerprint:
    """Marks a field whose value can't change the result, or that counts in another way.

    The first are concurrency, URLs, ports, time-outs, retries, names of environment variables, licences; the second are
    models (by name, revision and tokenizer hash) and files (by their content): `Annotated[int, NotInFingerprint]`.
    """


class InFingerprintIfSet:
    """Marks a field that counts only where it differs from its default.

    For a field that came when fingerprints without it were in use: theirs stay as they are.
    """


def counted(settings: BaseModel, *, with_defaults: bool = False) -> dict[str, Any]:
    """Return the part of some settings that decides the result, as JSON values.

    Args:
        settings: of a stage; nested ones are counted by their own marks.
        with_defaults: count fields marked `InFingerprintIfSet` also where they have their default.
    """
    found = {}
    for name, field in type(settings).model_fields.items():
        if NotInFingerprint in field.metadata:
            continue
        value = _plain(settings, name)
        if InFingerprintIfSet in field.metadata and not with_defaults:
            default = field.get_default(call_default_factory=True)
            if value in ({}, counted(default) if isinstance(default, BaseModel) else default):
                continue
        found[name] = value
    return found


def uncounted_fields(settings: type[BaseModel]) -> set[str]:
    """Return the names of the fields of a class of settings that never count, without those of nested classes."""
    return {name for name, field in settings.model_fields.items() if NotInFingerprint in field.metadata}


def _plain(settings: BaseModel, name: str) -> Any:
    value = getattr(settings, name)
    if isinstance(value, BaseModel):
        return counted(value)
    if isinstance(value, list) and any(isinstance(each, BaseModel) for each in value):
        return [counted(each) if isinstance(each, BaseModel) else each for each in value]
    if isinstance(value, dict) and any(isinstance(each, BaseModel) for each in value.values()):
        return {key: counted(each) if isinstance(each, BaseModel) else each for key, each in value.items()}
    return settings.model_dump(mode="json", include={name})[name]
