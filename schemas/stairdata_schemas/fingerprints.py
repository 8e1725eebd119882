"""What decides a result is said at the fields of the settings, and a fingerprint counts these alone."""

from __future__ import annotations

from pydantic import BaseModel


class NotInFingerprint:
    """Marks a field whose value can't change the result: `Annotated[int, NotInFingerprint]`."""


def uncounted_fields(settings: type[BaseModel]) -> set[str]:
    """Return the names of the marked fields of a class of settings, without those of nested classes."""
    return {name for name, field in settings.model_fields.items() if NotInFingerprint in field.metadata}
