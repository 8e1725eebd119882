"""A round without Argilla: tables out, filled in by people and their spreadsheets, and in again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from stairdata_review.blinding import first_side, other_side
from stairdata_review.reviewers import hash_of
from stairdata_review.reviews import Source, build_reviews
from stairdata_review.selection import select
from stairdata_review.tables.answers import RULES, import_reviews
from stairdata_review.tables.cells import FORMATS, TextRow, read_rows, write_rows
from stairdata_review.tables.export import export_items
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import InputError, QuarantineError, ReviewError
from tests.review.samples import pairs_of, review

EVIL = "=HYPERLINK(\"http://127.0.0.1:1\") <b>\r\n\t+1 'quoted' 😀"


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    return pairs_of(tmp_path / "artifacts", 3, ["=1+1", "@SUM(A1)", f"-{EVIL}"], EVIL)


def exported(pairs: Artifact, path: Path, limit: int | None = None) -> list[TextRow]:
    export_items(pairs, path, select(pairs, "all", limit, 42, path.parent), 42, reviewer="ann")
    return read_rows(path)


def filled(pairs: Artifact, path: Path, change: Callable[[int, TextRow], None]) -> Path:
    """Export, and write back what a person made of it."""
    rows = exported(pairs, path)
    for number, row in enumerate(rows):
        row |= {"verdict": "A", "safe": "both"}
        change(number, row)
    columns = list(rows[0])
    write_rows(path, columns, [{name: row.get(name, "") for name in columns} for row in rows], {}, "")
    return path


def imported(pairs: Artifact, *paths: Path, max_quarantine: float = 1.0, reviewer: str | None = None) -> Artifact:
    root = pairs.folder.parent.parent
    return import_reviews(list(paths), pairs, "salt", root, reviewer=reviewer, max_quarantine=max_quarantine)


@pytest.mark.parametrize("suffix", FORMATS)
def test_answers_come_back_as_they_were_given(suffix: str, pairs: Artifact, tmp_path: Path) -> None:
    said = [("A", "B"), ("B", "A"), ("tie", "both"), ("both bad", "neither"), ("", ""), ("TIE", "Both")]

    def change(number: int, row: TextRow) -> None:
        row |= {"verdict": said[number][0], "safe": said[number][1], "comment": f"=comment {number}" if number else ""}

    reviews = imported(pairs, filled(pairs, tmp_path / f"t{suffix}", change), max_quarantine=0.0)
    assert validate_artifact(reviews) == []
    rows = {row["item_id"]: row for row in reviews.scan().collect().to_dicts()}
    ids = pairs.scan().select("pair_id").collect()["pair_id"].to_list()
    assert list(rows) == sorted(ids[:4] + ids[5:])
    for item_id, (verdict, safe) in zip(ids[:2], said[:2], strict=True):
        first = first_side(42, item_id)
        sides = {"A": first, "B": other_side(first)}
        assert (rows[item_id]["verdict"], rows[item_id]["safe"]) == (sides[verdict], sides[safe])
        assert rows[item_id]["shown_first"] == first
        assert rows[item_id]["reviewer"] == hash_of("salt", "ann")
    assert [rows[item_id]["verdict"] for item_id in (ids[2], ids[3], ids[5])] == ["tie", "both_bad", "tie"]
    assert [rows[item_id]["comment"] for item_id in ids[:2]] == [None, "=comment 1"]
    assert reviews.manifest.outcomes == {"submitted": 5, "unanswered": 1}
    assert reviews.manifest.parents == [pairs.as_parent()]
    assert reviews.manifest.details["agreement"]["answers"] == 5


def test_the_order_is_argillas_and_no_column_tells_it(pairs: Artifact, tmp_path: Path) -> None:
    rows = exported(pairs, tmp_path / "t.jsonl")
    chosen = dict(pairs.scan().select("pair_id", "chosen").collect().iter_rows())
    shown = {row["item_id"]: chosen[row["item_id"]].endswith(row["a"]) for row in rows}
    assert shown == {item_id: first_side(42, item_id) == "chosen" for item_id in shown}
    assert set(rows[0]) == {
        "item_id", "prompt", "answer_so_far", "a", "b", "verdict", "safe", "comment", "reviewer", "guideline_version",
    }  # fmt: skip
    guidelines = (tmp_path / "t.guidelines.md").read_text(encoding="utf-8")
    assert guidelines.startswith("## Before you begin")
    assert "leave its cells empty" in guidelines


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("unknown_item", {"item_id": "0123456789abcdef"}),
        ("no_reviewer", {"reviewer": " "}),
        ("text_changed", {"a": "something else"}),
        ("text_changed", {"prompt": "something else"}),
        ("unknown_answer", {"verdict": "C"}),
        ("incomplete", {"safe": ""}),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(rule: str, change: TextRow, pairs: Artifact, tmp_path: Path) -> None:
    path = filled(pairs, tmp_path / "t.csv", lambda number, row: row.update(change if number == 1 else {}))
    with pytest.raises(QuarantineError, match=rule):
        imported(pairs, path, max_quarantine=0.05)
    reviews = imported(pairs, path)
    assert reviews.reference == "reviews@1.0.0"
    assert reviews.manifest.quarantine == {rule: 1}
    assert reviews.manifest.rows == 5
    refused = pl.read_parquet(reviews.folder / "quarantine" / "*.parquet").row(0, named=True)
    assert (refused["source"], refused["row"], refused["rule"]) == ("t.csv", 2, rule)
    assert rule in RULES


def test_swapped_texts_are_seen_and_a_second_answer_is_refused(pairs: Artifact, tmp_path: Path) -> None:
    def swap(_: int, row: TextRow) -> None:
        row["a"], row["b"] = row["b"], row["a"]

    there = imported(pairs, filled(pairs, tmp_path / "a.csv", lambda *_: None))
    swapped = imported(pairs, filled(pairs, tmp_path / "b.csv", swap))
    for one, other in zip(*(each.scan().collect()["verdict"] for each in (there, swapped)), strict=True):
        assert other == other_side(one), "A is what its text says"
    twice = imported(pairs, tmp_path / "a.csv", tmp_path / "b.csv")
    assert twice.manifest.quarantine == {"answered_twice": 6}
    assert there.reference == imported(pairs, tmp_path / "a.csv").reference, "the same answers make nothing new"


def test_spreadsheets_may_change_line_breaks(pairs: Artifact, tmp_path: Path) -> None:
    def change(_: int, row: TextRow) -> None:
        for name in ("prompt", "a", "b", "answer_so_far"):
            row[name] = row[name].replace("\r\n", "\n")

    assert imported(pairs, filled(pairs, tmp_path / "t.csv", change), max_quarantine=0.0).manifest.rows == 6


def test_a_refused_table_takes_no_version_from_the_corrected_one(pairs: Artifact, tmp_path: Path) -> None:
    wrong = filled(pairs, tmp_path / "a.csv", lambda number, row: row.update(verdict="C" if number else "A"))
    with pytest.raises(QuarantineError):
        imported(pairs, wrong, max_quarantine=0.05)
    assert imported(pairs, filled(pairs, tmp_path / "b.csv", lambda *_: None)).reference == "reviews@1.0.0"


def test_several_reviewers_in_several_files(pairs: Artifact, tmp_path: Path) -> None:
    paths = [
        filled(pairs, tmp_path / f"{name}.xlsx", lambda _, row, name=name: row.update(reviewer=name))  # type: ignore[misc]
        for name in ("ann", "bob")
    ]
    reviews = imported(pairs, *paths)
    assert reviews.manifest.rows == 12
    assert reviews.manifest.details["agreement"]["verdict"]["pairwise"] == 1.0
    blank = filled(pairs, tmp_path / "c.csv", lambda _, row: row.update(reviewer=""))
    assert imported(pairs, blank, reviewer="carol").scan().collect()["reviewer"][0] == hash_of("salt", "carol")


def test_answers_about_trees(pairs: Artifact, tmp_path: Path) -> None:
    from stairdata_schemas.artifacts import resolve

    trees = resolve("trees", pairs.folder.parent.parent)
    export_items(trees, tmp_path / "t.csv", select(trees, "all", None, 42, tmp_path), 42)
    rows = read_rows(tmp_path / "t.csv")
    assert rows[0]["answer"].startswith("<|Reasoning_step|>\nTitle: Facts:")
    for row in rows:
        row |= {"safe": "Safe", "helpfulness": "4.0", "reasoning": "sound", "reviewer": "ann"}
    write_rows(tmp_path / "t.csv", list(rows[0]), rows, {}, "")
    reviews = imported(trees, tmp_path / "t.csv")
    row = reviews.scan().collect().row(0, named=True)
    assert json.loads(row["answers"]) == {"helpfulness": 4, "reasoning": "sound", "safe": "safe"}
    assert row["item_kind"] == "trees"
    assert row["verdict"] is row["safe"] is row["shown_first"] is None


def test_a_table_of_something_else(pairs: Artifact, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,verdict\n1,A\n", encoding="utf-8")
    with pytest.raises(InputError, match="lacks the column 'prompt'"):
        imported(pairs, tmp_path / "t.csv")
    exported(pairs, tmp_path / "u.csv")
    with pytest.raises(ReviewError, match=r"no submitted answer yet .left out: unanswered 6"):
        imported(pairs, tmp_path / "u.csv")


def test_a_later_line_that_lacks_a_column_is_named(pairs: Artifact, tmp_path: Path) -> None:
    path = filled(pairs, tmp_path / "t.jsonl", lambda _number, _row: None)
    lines = path.read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    del last["safe"]
    path.write_text("\n".join([*lines[:-1], "", json.dumps(last), ""]), encoding="utf-8")
    with pytest.raises(InputError, match=f"row {len(lines)} lacks the column 'safe'"):
        imported(pairs, path)


def test_answers_as_they_were_before_somebody_withdrew_are_the_newest_again(pairs: Artifact, tmp_path: Path) -> None:
    """Otherwise the withdrawn answer would decide which pairs train."""
    ids = pairs.scan().select("pair_id").collect()["pair_id"]
    root = pairs.folder.parent.parent
    ann, bob = review(ids[0], "ann", "chosen"), review(ids[0], "bob", "rejected")
    pulls = [
        build_reviews(rows, pairs, Source("dataset", "pairs", "pairs/1", last_activity_at=f"at {number}"), root)
        for number, rows in enumerate(([ann], [ann, bob], [ann], [ann]))
    ]
    assert [pull.reference for pull in pulls] == ["reviews@1.0.0", "reviews@1.1.0", "reviews@1.2.0", "reviews@1.2.0"]
    assert pulls[2].manifest.details["since"] == {
        "reviews": "reviews@1.1.0", "new": 0, "changed": 0, "withdrawn": 1,
    }  # fmt: skip
