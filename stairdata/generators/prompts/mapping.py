"""From a source's rows to ours: which column means what, which rows are wanted, and what is wrong with a bad one."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stairdata.generators.prompts.files import BrokenRow, ClassName, files_of, parquet_columns, read_rows
from stairdata.generators.prompts.hub_datasets import HubRows, hub_license, hub_revision, read_hub
from stairdata.generators.prompts.known_datasets import KnownSource, known_source, source_like
from stairdata.recipe import PromptSource
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import InputError
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.quarantine import QuarantineRow
from stairdata_schemas.text.visible import is_blank

_TEXTS = ("prompt", "task", "source", "category", "reference_answer")
_COLUMNS = (*_TEXTS, "reference_is_safe")
_REQUIRED = ("prompt", "task")
_BOOLEANS = dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "0", "0.0"), False
)
MISSING = object()
FIRST_USER = "first_user"
USER_ROLES = {"user", "human", "prompter"}
OTHER_ROLES = {
    "system", "developer", "assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "ai", "model", "tool",
    "function", "function_call", "function_response", "observation", "ipython",
}  # fmt: skip
CONVERSATION_KEYS = {"role", "content", "from", "value"}


class PinnedSource(NamedTuple):
    """A source whose rows can't change any more: files, or a commit."""

    source: PromptSource
    known: KnownSource | None
    """How its rows are mapped, where the recipe names no columns."""
    number: int
    """Its place in the recipe."""

    @property
    def name(self) -> str:
        return str(self.source.path) if self.source.path else str(self.source.hub)


class InvalidRow(NamedTuple):
    """Why a row can't be taken."""

    rule: str
    field: str


class SourcePrompt(NamedTuple):
    """A sound row, and where it stands."""

    row: Row
    place: str
    """File or dataset."""
    number: int
    """Row in that file or dataset, from 1."""
    position: int
    """Row in the whole source."""

    @property
    def label(self) -> str:
        return f"{self.place} row {self.number}"

    def refused(self, rule: str, detail: str = "", field: str = "prompt") -> QuarantineRow:
        """Refuse it after all."""
        return QuarantineRow(self.place, self.number, rule, self.row["prompt"], field, detail)


def pin(source: PromptSource, number: int = 0) -> PinnedSource:
    """Resolve a source: revision to a commit, a known dataset's defaults, its licence.

    Raises:
        RecipeError: `like` names no known dataset.
        InputError: the Hub can't be reached, or has no such dataset.
    """
    if source.path is not None:
        source = source.model_copy(update={"path": source.path.expanduser()})
    known = source_like(source.like) if source.like else known_source(source.hub)
    update: dict[str, Any] = {"split": source.split or (known.split if known else "train")}
    if known is not None:
        update["config"] = source.config or known.config
        update["license"] = source.license or known.license
        if not source.columns:
            update["where"] = source.where or dict(known.where)
        if source.near_duplicates is None:
            update["near_duplicates"] = known.near_duplicates
    if source.hub is not None:
        # the tested commit is one of the dataset itself, not of a copy
        tested = known.revision if known and known.hub.lower() == source.hub.lower() else None
        commit = hub_revision(source.hub, source.revision or tested, known.hub if known else None)
        update["revision"] = commit
        update["license"] = update.get("license") or source.license or hub_license(source.hub, commit)
    return PinnedSource(source.model_copy(update=update), None if source.columns else known, number)


def sound_rows(
    pinned: PinnedSource,
    refused: list[QuarantineRow],
    *,
    judged: bool = False,
    left_out: Counter[str] | None = None,
) -> Iterator[SourcePrompt]:
    """Yield the rows that can be taken, those that `where` leaves out apart; refuse the others.

    Args:
        pinned: the source.
        refused: added to.
        judged: a row without a task is sound, somebody will label it.
        left_out: how many values were left out of each optional column that nobody asked for, added to.

    Raises:
        InputError: a source that can't be read, has no rows, or lacks a column in all rows.
    """
    source, position, taken = pinned.source, 0, 0
    search = _ColumnSearch(pinned, judged=judged)
    for position, (file, number, raw) in enumerate(raw_rows(pinned, _wanted(pinned)), start=1):
        if position <= source.skip:
            continue
        if isinstance(raw, BrokenRow):
            refused.append(QuarantineRow(file, number, raw.rule, raw.raw, detail=raw.detail))
            continue
        search.look(raw)
        if not is_wanted(raw, source):
            continue
        taken += 1
        row = prompt_row(raw, pinned, judged=judged, left_out=left_out)
        if isinstance(row, InvalidRow):
            text = json.dumps(raw, ensure_ascii=False, default=str)
            refused.append(QuarantineRow(file, number, row.rule, text, row.field))
        else:
            yield SourcePrompt(row, file, number, position)
    search.finish()
    if position <= source.skip:
        raise InputError(f"{pinned.name} has no rows" + (f" after the {source.skip} skipped" if source.skip else ""))
    if not taken and source.where:
        raise InputError(f"{pinned.name} has no row where {source.where}; check the names and values of `where:`")


def raw_rows(
    pinned: PinnedSource, wanted: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, int, Row | BrokenRow]]:
    """Yield rows with the file or dataset they stand in, and their number there, from 1.

    Args:
        pinned: the source.
        wanted: says of a column's name whether it is needed, where the format lets others be left alone.

    Raises:
        InputError: a source that can't be read.
    """
    source, known = pinned.source, pinned.known
    if source.path is not None:
        for file in files_of(source.path, known.files if known else ()):
            for number, row in enumerate(read_rows(file, wanted), start=1):
                yield str(file), number, row
        return
    assert source.hub is not None
    assert source.revision is not None
    hub_rows = HubRows(
        source.hub, source.revision, source.config, source.split or "train", known.hub if known else None
    )
    for number, hub_row in enumerate(read_hub(hub_rows), start=1):
        yield source.hub, number, hub_row


class _Need(NamedTuple):
    """A column that at least one row has to have."""

    names: tuple[str, ...]
    """One of these is enough."""
    ours: str | None
    """What it is mapped to; None for one that `where` or a known layout needs."""

    def is_in(self, raw: Row) -> bool:
        return any(value_at(raw, name) is not MISSING for name in self.names)


class _ColumnSearch:
    """Looks for the needed columns in all rows, since many writers of JSON leave out keys without a value."""

    def __init__(self, pinned: PinnedSource, *, judged: bool) -> None:
        self._pinned = pinned
        self._lacking = _needs(pinned, judged=judged)
        self._names: dict[Any, None] = {}
        self._is_read = False

    def look(self, raw: Row) -> None:
        """Look into one row.

        Raises:
            InputError: the first row of a Hub dataset lacks a column; all have the same ones, and may be millions.
        """
        if self._lacking:
            self._is_read = True
            self._names |= dict.fromkeys(raw)
            self._lacking = [need for need in self._lacking if not need.is_in(raw)]
            if self._pinned.source.hub is not None:
                self.finish()

    def finish(self) -> None:
        """Say that a column is in no row.

        Raises:
            InputError: it is so.
        """
        if self._lacking and self._is_read:
            columns = [*_parquet_columns(self._pinned), *self._names]
            raise InputError(_lacks(self._lacking[0], self._pinned, columns))


def _needs(pinned: PinnedSource, *, judged: bool) -> list[_Need]:
    """Return the columns without which the source is another than the recipe means."""
    if pinned.known is not None:
        return [_Need(tuple(need.split("|")), None) for need in pinned.known.needs]
    source = pinned.source
    needs = [_Need((column,), None) for column in source.where]
    for ours, theirs in column_names(source).items():
        has_other_task = ours == "task" and (source.task or (judged and "task" not in source.columns))
        if ours in {*_REQUIRED, *source.columns} and not has_other_task:
            needs.append(_Need((theirs,), ours))
    return needs


def _lacks(need: _Need, pinned: PinnedSource, columns: list[Any]) -> str:
    found = f"(its columns: {', '.join(dict.fromkeys(map(str, columns)))})"
    if pinned.known is not None:
        return (
            f"{pinned.name} has no column {' or '.join(need.names)} {found}, so its layout is not that of "
            f"{pinned.known.hub}; name the columns: `columns: {{prompt: NAME, task: NAME}}`"
        )
    if need.ours is None:
        return f"{pinned.name} has no column {need.names[0]!r} for `where:` {found}"
    hint = "set `task:` for the whole source, or " if need.ours == "task" else ""
    return (
        f"{pinned.name} has no column {need.names[0]!r} {found}; "
        f"{hint}name the column that holds it: `columns: {{{need.ours}: NAME}}`"
    )


def _parquet_columns(pinned: PinnedSource) -> list[str]:
    """Return the columns of parquet files, of which only those that are needed are read."""
    if pinned.source.path is None:
        return []
    files = files_of(pinned.source.path, pinned.known.files if pinned.known else ())
    return [name for file in files if file.suffix.lower() == ".parquet" for name in parquet_columns(file)]


def is_wanted(raw: Row, source: PromptSource) -> bool:
    """Return whether a row has the values of `where`.

    Text, numbers and booleans compare by how they are written, but for the ways in which CSV writes a number or a
    boolean: 1 and 1.0, true and 1.
    """
    for column, wanted in source.where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        found = value_at(raw, column)
        if not any(_is_same(found, value) for value in values):
            return False
    return True


def _is_same(found: Any, wanted: bool | float | str) -> bool:
    written = str(found).lower()
    if written == str(wanted).lower():
        return True
    if isinstance(found, ClassName) and not isinstance(wanted, bool):
        return str(found.number) == str(wanted)
    if isinstance(wanted, bool):
        return isinstance(found, str) and as_bool(found) is wanted
    # a recipe's 1.10 is text, as in a column of versions; it means the number where the column holds numbers
    if isinstance(wanted, str) and isinstance(found, str):
        return False
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        return not isinstance(found, bool) and float(found) == float(wanted)
    return False


def _wanted(pinned: PinnedSource) -> Callable[[str], bool] | None:
    """Return which columns a source's rows are made of; those of a known dataset are all read."""
    if pinned.known is not None:
        return None
    names = [*column_names(pinned.source).values(), *pinned.source.where]
    return lambda column: any(name == column or name.startswith(f"{column}.") for name in names)


def column_names(source: PromptSource) -> dict[str, str]:
    """Return the source's name of each of our columns."""
    return {ours: ours for ours in _COLUMNS} | {str(ours): theirs for ours, theirs in source.columns.items()}


def value_at(raw: Row, name: str) -> Any:
    """Return a column's value; where there is no such column, dots lead into objects and, by number, into lists.

    In a list of turns, the part `first_user` leads to the text of the first turn of the user.
    """
    if name in raw:
        return raw[name]
    value: Any = raw
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, list) and part == FIRST_USER and (turns := [*filter(is_users, value)]):
            value = _text_of(turns[0])
        else:
            return MISSING
    return value


def is_users(turn: Any) -> bool:
    """Return whether a turn of a conversation is the user's."""
    return isinstance(turn, dict) and _role(turn) in USER_ROLES


def _role(turn: Row) -> str:
    return str(turn.get("role", turn.get("from", ""))).lower()


def _text_of(turn: Row) -> Any:
    """Return what was said: a text, or the one text part of a content in parts."""
    said = next((turn[key] for key in ("content", "value", "text") if key in turn), None)
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], dict) and said[0].get("type") == "text":
        return said[0].get("text")
    return said


def _turn_fault(raw: Row, source: PromptSource) -> InvalidRow | None:
    """Return what is wrong with the turn that the prompt is taken from: somebody else's, or not the first."""
    name = source.columns.get("prompt", "prompt")
    if name in raw:
        return None
    parts = name.split(".")
    for place, part in enumerate(parts[1:], start=1):
        turns = value_at(raw, ".".join(parts[:place]))
        if not isinstance(turns, list):
            continue
        if part == FIRST_USER and source.turns_before == "refuse" and turns and not is_users(turns[0]):
            return InvalidRow("turns_before_user" if any(map(is_users, turns)) else "no_user_turn", "prompt")
        if part.isascii() and part.isdigit() and int(part) < len(turns):
            turn = turns[int(part)]
            if isinstance(turn, dict) and _role(turn) in OTHER_ROLES:
                return InvalidRow("not_a_user_turn", "prompt")
    return None


def prompt_row(
    raw: Row, pinned: PinnedSource, *, judged: bool = False, left_out: Counter[str] | None = None
) -> Row | InvalidRow:
    """Make a row of ours, or say why that can't be done.

    Args:
        raw: as it stands in the source.
        pinned: the source.
        judged: a row without a task is sound.
        left_out: how many values were left out of each optional column that nobody asked for, added to.
    """
    source, names = pinned.source, column_names(pinned.source)
    if pinned.known is not None:
        mapped = pinned.known.mapped(raw)
        row: Row = {ours: mapped.get(ours) for ours in _COLUMNS}
    else:
        if fault := _turn_fault(raw, source):
            return fault
        values = {ours: value_at(raw, theirs) for ours, theirs in names.items()}
        row = {ours: None if value is MISSING else value for ours, value in values.items()}
        row |= {ours: str(value) for ours, value in row.items() if isinstance(value, ClassName)}
        for ours in _unasked(row, source):
            row[ours] = None
            if left_out is not None:
                left_out[ours] += 1
    row["task"] = source.task or row["task"]
    fallback = source.path.name if source.path else source.hub
    row["source"] = source.name or row["source"] or (source.like if pinned.known and source.path else fallback)
    fault = _first_fault(row, judged=judged)
    return fault or {"prompt_id": identity.prompt_id(row["prompt"]), **row}


def _unasked(row: Row, source: PromptSource) -> list[str]:
    """Return optional columns that only happen to be called as ours are, and hold something else."""
    optional = [ours for ours in _COLUMNS if ours not in _REQUIRED and ours not in source.columns]
    return [ours for ours in optional if not _has_its_type(ours, row[ours])]


def _has_its_type(ours: str, value: Any) -> bool:
    if ours == "reference_is_safe":
        value = as_bool(value)
        return value is None or (isinstance(value, bool | int | float) and value in (True, False))
    return isinstance(value, str | None)


def _first_fault(row: Row, *, judged: bool) -> InvalidRow | None:
    for field in _REQUIRED:
        if row[field] is None and not (judged and field == "task"):
            return InvalidRow("missing_value", field)
    if _is_conversation(row["prompt"]):
        return InvalidRow("conversation", "prompt")
    for field in _TEXTS:
        if not isinstance(row[field], str | None):
            return InvalidRow("wrong_type", field)
    if not _has_its_type("reference_is_safe", row["reference_is_safe"]):
        return InvalidRow("wrong_type", "reference_is_safe")
    row["reference_is_safe"] = as_bool(row["reference_is_safe"])
    return _text_fault(row)


def _is_conversation(value: Any) -> bool:
    """Return whether a prompt is a list of turns; a prompt is one turn, so `columns:` has to say which."""
    return isinstance(value, list) and any(isinstance(turn, dict) and turn.keys() & CONVERSATION_KEYS for turn in value)


def _text_fault(row: Row) -> InvalidRow | None:
    if is_blank(row["prompt"]):
        return InvalidRow("blank", "prompt")
    if row["task"] is not None and row["task"] not in TASKS:
        return InvalidRow("unknown_task", "task")
    for field in _TEXTS:
        if any("\ud800" <= character <= "\udfff" for character in row[field] or ""):
            return InvalidRow("not_unicode", field)  # a lone surrogate out of a JSON escape: no file can hold it
    return None


def as_bool(value: Any) -> Any:
    """Read the words and numbers that CSV has for booleans; other values stay."""
    if isinstance(value, str):
        return _BOOLEANS.get(value.strip().lower(), value)
    return value
