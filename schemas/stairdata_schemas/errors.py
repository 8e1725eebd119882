"""The errors that a user can meet, each with a message that says what, where and what to do next.

StairDataError
├── UsageError             the command was called wrongly (exit status 2)
├── RecipeError            a recipe can't be read, or a key or value in it is wrong
├── InputError             a file of the user's: missing, unreadable, empty, a wrong column or type
├── GrammarError           a completion that breaks the step grammar (rule and position)
├── ArtifactError          an artifact that is incomplete, damaged or of another schema version
│   └── ArtifactNotFoundError  no artifact under that reference
├── BuildError             a build that can't go on
│   ├── QuarantineError    more rows refused than the allowed share
│   ├── BuildLockedError   another process builds into the same folder
│   └── BudgetError        a limit on tokens, cost or time is reached; the build can go on later
├── ModelError             a folder that isn't a model, or a tokenizer without what is needed
├── HubError               the Hub can't be reached, refuses, or holds something other than expected
│   └── ReleaseConflictError  a version that exists there with other content, or somebody else's change
├── PublishError           an artifact that must not be published as it is
├── ServerError            an LLM server that can't be started or reached, or that died
├── TrainingError          training data or settings that would train something other than meant
└── ReviewError            Argilla can't be started or reached, or holds something other than expected
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

TEXT_LIMIT = 80


class StairDataError(Exception):
    """Root of all errors that are a user's business; the command line prints them without traceback."""

    exit_status = 1


class UsageError(StairDataError):
    """The command was called wrongly."""

    exit_status = 2


class RecipeError(StairDataError):
    """A recipe can't be read, or a key or value in it is wrong."""


class InputError(StairDataError):
    """A file that the user gave can't be used."""


class ArtifactError(StairDataError):
    """An artifact is incomplete, damaged, or of a schema version that this release does not read."""


class ArtifactNotFoundError(ArtifactError):
    """A reference names no artifact that is there."""


class BuildError(StairDataError):
    """A build can't go on."""


class QuarantineError(BuildError):
    """More rows were refused than the allowed share."""


class BuildLockedError(BuildError):
    """Another process is building into the same folder."""


class BudgetError(BuildError):
    """A limit on tokens, cost or time is reached; the build can go on later."""


class ModelError(StairDataError):
    """A model or tokenizer folder lacks what is needed."""


class HubError(StairDataError):
    """The Hub can't be reached, refuses, or holds something other than expected."""


class ReleaseConflictError(HubError):
    """A version exists on the Hub with other content, or somebody else changed what a release would replace."""


class PublishError(StairDataError):
    """An artifact must not be published as it is: incomplete, a secret in it, no licence, or public by accident."""


class ServerError(StairDataError):
    """An LLM server can't be started or reached, or died."""


class TrainingError(StairDataError):
    """Training data or settings would train something other than was meant."""


class ReviewError(StairDataError):
    """Argilla can't be started or reached, refuses, or holds something other than expected."""


class GrammarError(StairDataError):
    """A completion breaks the step grammar.

    Attributes:
        rule: the name of the broken rule, one of `stairdata_schemas.grammar.RULES`.
        position: offset of the offence in Unicode code points.
    """

    def __init__(self, rule: str, position: int, text: str) -> None:
        self.rule = rule
        self.position = position
        super().__init__(f"the completion breaks the rule {rule!r} at character {position}: {quote(text[position:])}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that was probably meant, if one is similar enough (`cutoff`: 0 to 1)."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), None)


def suggest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Say which known name was probably meant, else all of them."""
    close = nearest(name, known, cutoff)
    return f"did you mean {close!r}?" if close else f"use one of {', '.join(known)}"


def quote(text: object, limit: int = TEXT_LIMIT) -> str:
    """Show a value in a message: at most `limit` characters, control and format characters escaped."""
    raw = text if isinstance(text, str) else repr(text)
    shown = "".join(_visible(character) for character in raw[:limit])
    return f"'{shown}…'" if len(raw) > limit else f"'{shown}'"


def visible(text: str) -> str:
    """Show a text on a terminal: as `quote` does, in full length and with its line breaks."""
    return "".join(character if character == "\n" else _visible(character) for character in text)


def _visible(character: str) -> str:
    # Cc, Cf, Cs, Co, Cn: terminal escapes, bidirectional overrides, lone surrogates; Zl, Zp: line breaks
    category = unicodedata.category(character)
    if category.startswith("C") or category in {"Zl", "Zp"}:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character
