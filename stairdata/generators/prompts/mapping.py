"""From a source's rows to ours: which column means what, which rows are wanted, and what is wrong with a bad one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from stairdata.generators.prompts.files import BrokenRow, files_of, read_rows
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
MISSING = object()
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


def sound_rows(pinned: PinnedSource, refused: list[QuarantineRow], *, judged: bool = False) -> Iterator[SourcePrompt]:
    """Yield the rows that can be taken, those that `where` leaves out apart; refuse the others.

    Args:
        pinned: the source.
        refused: added to.
        judged: a row without a task is sound, somebody will label it.

    Raises:
        InputError: a source that can't be read, has no rows, or lacks a column.
    """
    source, position, taken = pinned.source, 0, 0
    for position, (file, number, raw) in enumerate(raw_rows(pinned), start=1):
        if position <= source.skip:
            continue
        if isinstance(raw, BrokenRow):
            refused.append(QuarantineRow(file, number, raw.rule, raw.raw, detail=raw.detail))
            continue
        if position == source.skip + 1:
            _check_columns(raw, pinned, judged=judged)
        if not is_wanted(raw, source):
            continue
        taken += 1
        row = prompt_row(raw, pinned, judged=judged)
        if isinstance(row, InvalidRow):
            text = json.dumps(raw, ensure_ascii=False, default=str)
            refused.append(QuarantineRow(file, number, row.rule, text, row.field))
        else:
            yield SourcePrompt(row, file, number, position)
    if position <= source.skip:
        raise InputError(f"{pinned.name} has no rows" + (f" after the {source.skip} skipped" if source.skip else ""))
    if not taken and source.where:
        raise InputError(f"{pinned.name} has no row where {source.where}; check the names and values of `where:`")


def raw_rows(pinned: PinnedSource) -> Iterator[tuple[str, int, Row | BrokenRow]]:
    """Yield rows with the file or dataset they stand in, and their number there, from 1.

    Raises:
        InputError: a source that can't be read.
    """
    source, known = pinned.source, pinned.known
    if source.path is not None:
        for file in files_of(source.path, known.files if known else ()):
            for number, row in enumerate(read_rows(file), start=1):
                yield str(file), number, row
        return
    assert source.hub is not None
    assert source.revision is not None
    hub_rows = HubRows(
        source.hub, source.revision, source.config, source.split or "train", known.hub if known else None
    )
    for number, hub_row in enumerate(read_hub(hub_rows), start=1):
        yield source.hub, number, hub_row


def _check_columns(raw: Row, pinned: PinnedSource, *, judged: bool) -> None:
    """Check on the first row that the columns are there; later rows may lack a value."""
    if pinned.known is not None:
        _check_layout(raw, pinned, pinned.known)
        return
    source = pinned.source
    for column in source.where:
        if value_at(raw, column) is MISSING:
            raise InputError(f"{pinned.name} has no column {column!r} for `where:` (its columns: {_names(raw)})")
    for ours, theirs in column_names(source).items():
        if ours not in {*_REQUIRED, *source.columns} or value_at(raw, theirs) is not MISSING:
            continue
        if ours == "task" and (source.task or (judged and "task" not in source.columns)):
            continue
        hint = "set `task:` for the whole source, or " if ours == "task" else ""
        raise InputError(
            f"{pinned.name} has no column {theirs!r} (its columns: {_names(raw)}); "
            f"{hint}name the column that holds it: `columns: {{{ours}: NAME}}`"
        )


def _check_layout(raw: Row, pinned: PinnedSource, known: KnownSource) -> None:
    missing = [need for need in known.needs if not any(name in raw for name in need.split("|"))]
    if missing:
        names = " or ".join(missing[0].split("|"))
        raise InputError(
            f"{pinned.name} has no column {names} (its columns: {_names(raw)}), so its layout is not that of "
            f"{known.hub}; name the columns: `columns: {{prompt: NAME, task: NAME}}`"
        )


def _names(raw: Row) -> str:
    return ", ".join(map(str, raw))


def is_wanted(raw: Row, source: PromptSource) -> bool:
    """Return whether a row has the values of `where`; text and booleans compare by how they are written."""
    for column, wanted in source.where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if not any(_is_same(value_at(raw, column), value) for value in values):
            return False
    return True


def _is_same(found: Any, wanted: Any) -> bool:
    if str(found).lower() == str(wanted).lower():
        return True
    # a recipe's 1.10 is text, as in a column of versions; it means the number where the column holds numbers
    if isinstance(wanted, str) and isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(wanted) == found
        except ValueError:
            return False
    return False


def column_names(source: PromptSource) -> dict[str, str]:
    """Return the source's name of each of our columns."""
    return {ours: ours for ours in _COLUMNS} | {str(ours): theirs for ours, theirs in source.columns.items()}


def value_at(raw: Row, name: str) -> Any:
    """Return a column's value; where there is no such column, dots lead into objects and, by number, into lists."""
    if name in raw:
        return raw[name]
    value: Any = raw
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def prompt_row(raw: Row, pinned: PinnedSource, *, judged: bool = False) -> Row | InvalidRow:
    """Make a row of ours, or say why that can't be done."""
    source, names = pinned.source, column_names(pinned.source)
    if pinned.known is not None:
        mapped = pinned.known.mapped(raw)
        row: Row = {ours: mapped.get(ours) for ours in _COLUMNS}
    else:
        values = {ours: value_at(raw, theirs) for ours, theirs in names.items()}
        row = {ours: None if value is MISSING else value for ours, value in values.items()}
    row["task"] = source.task or row["task"]
    fallback = source.path.name if source.path else source.hub
    row["source"] = source.name or row["source"] or (source.like if pinned.known and source.path else fallback)
    fault = _first_fault(row, judged=judged)
    return fault or {"prompt_id": identity.prompt_id(row["prompt"]), **row}


def _first_fault(row: Row, *, judged: bool) -> InvalidRow | None:
    for field in _REQUIRED:
        if row[field] is None and not (judged and field == "task"):
            return InvalidRow("missing_value", field)
    if _is_conversation(row["prompt"]):
        return InvalidRow("conversation", "prompt")
    for field in _TEXTS:
        if not isinstance(row[field], str | None):
            return InvalidRow("wrong_type", field)
    row["reference_is_safe"] = _as_bool(row["reference_is_safe"])
    if row["reference_is_safe"] not in (True, False, None):
        return InvalidRow("wrong_type", "reference_is_safe")
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


def _as_bool(value: Any) -> Any:
    """Read the words that CSV has for booleans."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
