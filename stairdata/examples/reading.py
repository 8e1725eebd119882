"""What is read out of an artifact's rows: answers, pairs, and whether an end token belongs behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import polars as pl

from stairdata_schemas.artifacts import Artifact, iterate_frames


class AnswerExample(NamedTuple):
    """A prompt and the whole text that answers it."""

    prompt: str
    text: str
    is_whole: bool
    """It ended by itself, not at a limit of tokens."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


class PairExample(NamedTuple):
    """Two texts of the assistant from its start, the better one first."""

    prompt: str
    chosen: str
    rejected: str
    prefix_length: int
    """Code points that both share: whole steps, those before the two that are compared."""
    chosen_is_whole: bool
    rejected_is_whole: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return self.chosen, self.rejected


class LabelledSteps(NamedTuple):
    """An answer in pieces, each with a label of all that is said up to its end."""

    prompt: str
    pieces: list[str]
    labels: list[bool]

    @property
    def texts(self) -> tuple[str, ...]:
        return ("".join(self.pieces),)


Example = AnswerExample | PairExample | LabelledSteps

_PAIR_COLUMNS = ("prompt", "chosen", "rejected", "prefix_length", "chosen_is_terminal", "rejected_is_terminal")
_BOTH_END = pl.col("chosen_is_terminal") & pl.col("rejected_is_terminal")
_IS_COMPLETE = pl.col("candidates").list.get(pl.col("chosen_index")).struct.field("is_complete")
_DETAIL = pl.col("details").str.json_path_match
_ASKED = pl.coalesce("attacked_prompt", _DETAIL("$.prompt"))
_IS_WHOLE: dict[str, pl.Expr] = {
    "structured_cot": pl.col("completion").is_not_null(),  # the grammar ends each
    "responses": _IS_COMPLETE,
    "evaluations": _ASKED.is_not_null() & _DETAIL("$.outcome").is_null(),  # not cut, empty or declined
    "preference_pairs": _BOTH_END,
    "prm_pairs": _BOTH_END,
}
_FIELDS: dict[str, list[pl.Expr]] = {
    "structured_cot": [pl.col("prompt"), pl.col("completion"), pl.lit(value=True)],
    "responses": [pl.col("prompt"), pl.col("text"), _IS_COMPLETE],
    "evaluations": [_ASKED, pl.col("response"), pl.lit(value=True)],
    "preference_pairs": [pl.col(name) for name in _PAIR_COLUMNS],
    "prm_pairs": [pl.col(name) for name in _PAIR_COLUMNS],
}


def count_whole(artifact: Artifact) -> int:
    """Return how many rows end, on every side, where an answer ends."""
    return int(artifact.scan().select(_IS_WHOLE[artifact.kind].sum()).collect().item())


def read_examples(artifact: Artifact, *, whole_only: bool) -> Iterator[AnswerExample | PairExample]:
    """Yield answers or pairs in the order of the artifact.

    Args:
        artifact: of kind structured_cot, responses, evaluations, preference_pairs or prm_pairs.
        whole_only: leave out rows of which a side does not end where an answer ends.
    """
    for path in artifact.data_files:
        for frame in iterate_frames(path, 1024):
            rows = whole_rows(frame, artifact.kind) if whole_only else frame
            yield from examples_of(rows, artifact.kind)


def whole_rows(frame: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return the rows that end, on every side, where an answer ends."""
    return frame.filter(_IS_WHOLE[kind])


def examples_of(frame: pl.DataFrame, kind: str) -> Iterator[AnswerExample | PairExample]:
    """Yield an answer or a pair for each row."""
    make: Any = PairExample if kind in {"preference_pairs", "prm_pairs"} else AnswerExample
    fields = [field.alias(str(number)) for number, field in enumerate(_FIELDS[kind])]
    yield from (make(*values) for values in frame.select(fields).iter_rows())
