"""Prompts from files: the same rows from every format, and each bad input told by file, row and field."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stairdata
from stairdata.generators.prompts.build import build_prompts
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, list_folders, validate_artifact
from stairdata_schemas.building import Build
from stairdata_schemas.errors import BuildError, InputError, QuarantineError, RecipeError

ROWS: list[dict[str, Any]] = [
    {"prompt": "How do I boil water?", "task": "helpfulness", "source": "mine", "category": "home",
     "reference_answer": "Heat it,\nplease.", "reference_is_safe": True},
    {"prompt": 'He said "no", naïve 👩🏽‍🚀\nsecond line', "task": "safety", "source": None, "category": None,
     "reference_answer": None, "reference_is_safe": False},
    {"prompt": "  spaces stay  ", "task": "safety", "source": None, "category": None, "reference_answer": None,
     "reference_is_safe": None},
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows in the format of the file's ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pl.DataFrame(rows).write_parquet(path)
    return path


def build(root: Path, *sources: dict[str, Any], seed: int = 42, **options: Any) -> Artifact:
    recipe = Recipe.model_validate({"seed": seed, "prompts": {"sources": list(sources)}})
    return build_prompts(recipe, BuildOptions(root=root / "artifacts", **options))


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return artifact.scan().collect().to_dicts()


def refused_of(folder: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(folder / "quarantine" / "*.parquet").to_dicts()


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {index}", "task": "safety"} for index in range(count)]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet", ".JSONL"])
def test_every_format_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{ending.lower()}"
    write(path, ROWS)
    artifact = build(tmp_path, {"path": str(path.rename(tmp_path / f"prompts{ending}")), "name": "given"})
    expected = [
        {"prompt_id": identity.prompt_id(row["prompt"]), **row, "source": "given", "twin_of": None} for row in ROWS
    ]
    assert rows_of(artifact) == expected
    assert validate_artifact(artifact) == []
    assert artifact.manifest.quarantine == {}


def test_the_source_is_the_rows_own_else_the_files_name(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", ROWS)
    assert [row["source"] for row in rows_of(build(tmp_path, {"path": str(path)}))] == ["mine", path.name, path.name]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_columns_are_mapped(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"q{ending}", [{"question": "Why?", "type": "safety", "prompt": "not this"}])
    source = {"path": str(path), "columns": {"prompt": "question", "task": "type"}}
    assert rows_of(build(tmp_path, source))[0]["prompt"] == "Why?"


def test_one_task_for_a_whole_source(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"prompt": "Why?"}, {"prompt": "How?", "task": "safety"}])
    assert {row["task"] for row in rows_of(build(tmp_path, {"path": str(path), "task": "helpfulness"}))} == {
        "helpfulness"
    }


def test_a_column_mapping_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"prompt": "Why?", "task": "safety"}])
    with pytest.raises(InputError, match="no column 'answr'"):
        build(tmp_path, {"path": str(path), "columns": {"reference_answer": "answr"}})
    with pytest.raises((RecipeError, InputError, ValueError), match="refrence_answer"):
        build(tmp_path, {"path": str(path), "columns": {"refrence_answer": "prompt"}})


def test_count_samples_with_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", numbered(50))

    def sampled(seed: int) -> list[str]:
        return [row["prompt"] for row in rows_of(build(tmp_path, {"path": str(path), "count": 10}, seed=seed))]

    first = sampled(1)
    assert sampled(1) == first
    assert sampled(2) != first
    assert len(set(first)) == 10
    assert first == sorted(first, key=lambda prompt: int(prompt.split()[1]))


def test_a_count_above_the_rows_takes_all_and_skip_leaves_out_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", numbered(5))
    artifact = build(tmp_path, {"path": str(path), "skip": 2, "count": 99})
    assert [row["prompt"] for row in rows_of(artifact)] == ["Question 2", "Question 3", "Question 4"]


def test_skip_and_rest_are_disjoint_and_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", numbered(6))
    rest = rows_of(build(tmp_path, {"path": str(path), "skip": 4}))
    assert {row["prompt"] for row in rest} == {"Question 4", "Question 5"}
    with pytest.raises(InputError, match="no rows after the 6 skipped"):
        build(tmp_path, {"path": str(path), "skip": 6})


def test_limit_stops_after_that_many_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", numbered(6))
    assert len(rows_of(build(tmp_path, {"path": str(path)}, limit=2))) == 2


def test_duplicates_across_sources_go_to_quarantine(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [*numbered(3), {"prompt": "cafe\u0301", "task": "safety"}])
    second = write(tmp_path / "b.csv", [*numbered(4)[2:], {"prompt": "caf\u00e9", "task": "helpfulness"}])
    artifact = build(tmp_path, {"path": str(first)}, {"path": str(second)}, max_quarantine=0.5)
    assert [row["prompt"] for row in rows_of(artifact)] == [
        "Question 0", "Question 1", "Question 2", "cafe\u0301", "Question 3",
    ]  # fmt: skip
    assert [(row["source"], row["row"], row["rule"], row["field"]) for row in refused_of(artifact.folder)] == [
        (str(second), 1, "duplicate_prompt", "prompt"),
        (str(second), 3, "duplicate_prompt", "prompt"),
    ]


BAD_ROWS = [
    ("missing_value", "prompt", {"task": "safety"}),
    ("missing_value", "prompt", {"prompt": None, "task": "safety"}),
    ("missing_value", "task", {"prompt": "x"}),
    ("wrong_type", "prompt", {"prompt": 5, "task": "safety"}),
    ("wrong_type", "prompt", {"prompt": ["x"], "task": "safety"}),
    ("wrong_type", "prompt", {"prompt": float("nan"), "task": "safety"}),
    ("wrong_type", "task", {"prompt": "x", "task": 1}),
    ("wrong_type", "category", {"prompt": "x", "task": "safety", "category": float("nan")}),
    ("wrong_type", "reference_answer", {"prompt": "x", "task": "safety", "reference_answer": {"a": 1}}),
    ("wrong_type", "reference_is_safe", {"prompt": "x", "task": "safety", "reference_is_safe": "maybe"}),
    ("wrong_type", "reference_is_safe", {"prompt": "x", "task": "safety", "reference_is_safe": float("nan")}),
    ("wrong_type", "reference_is_safe", {"prompt": "x", "task": "safety", "reference_is_safe": [True]}),
    ("blank", "prompt", {"prompt": " \n\t\u2003", "task": "safety"}),
    ("blank", "prompt", {"prompt": "", "task": "safety"}),
    ("unknown_task", "task", {"prompt": "x", "task": "saftey"}),
    ("not_unicode", "prompt", {"prompt": "half \ud83d", "task": "safety"}),
    ("not_unicode", "reference_answer", {"prompt": "x", "task": "safety", "reference_answer": "\udc00"}),
]


@pytest.mark.parametrize(("rule", "field", "bad"), BAD_ROWS, ids=lambda value: str(ascii(value))[:40])
def test_a_bad_row_is_refused_with_its_rule_and_field(
    rule: str, field: str, bad: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "q.jsonl", [*numbered(2), bad, {"prompt": "last", "task": "safety"}])
    source = {"path": str(path), "columns": {name: name for name in bad}}  # asked for
    artifact = build(tmp_path, source, max_quarantine=0.5)
    assert [row["prompt"] for row in rows_of(artifact)] == ["Question 0", "Question 1", "last"]
    (refused,) = refused_of(artifact.folder)
    assert (refused["source"], refused["row"], refused["rule"], refused["field"]) == (str(path), 3, rule, field)
    assert artifact.manifest.quarantine == {rule: 1}
    assert validate_artifact(artifact) == []


@pytest.mark.parametrize(("value", "kept"), [(1, True), (0, False), (1.0, True), ("TRUE", True), ("", None)])
def test_words_and_numbers_for_booleans_are_read_or_refused(value: object, kept: object, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [*numbered(1), {"prompt": "x", "task": "safety", "reference_is_safe": value}])
    artifact = build(tmp_path, {"path": str(path)}, max_quarantine=0.5)
    rows = [row["reference_is_safe"] for row in rows_of(artifact) if row["prompt"] == "x"]
    assert rows == [kept] or artifact.manifest.quarantine == {"wrong_type": 1}


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"prompt": "x", "task": ', "not_json"),
        ("plain text", "not_json"),
        ("[1, 2]", "not_an_object"),
        ("null", "not_an_object"),
        ('{"prompt": "x"} {"prompt": "y"}', "not_json"),
        ('{"prompt": ' + "1" * 5000 + "}", "not_json"),
        ("[" * 100_000, "not_json"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_broken_line_of_jsonl_is_refused_with_its_text(line: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('\ufeff{"prompt": "first", "task": "safety"}\n\n' + line + "\n", encoding="utf-8")
    artifact = build(tmp_path, {"path": str(path)}, max_quarantine=0.5)
    (refused,) = refused_of(artifact.folder)
    assert (refused["source"], refused["rule"], refused["raw"].strip()) == (str(path), rule, line.strip())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b"x", "unknown file extension '.txt'; use one of .json, .jsonl, .ndjson, .csv, .tsv, .parquet"),
        ("q", b"x", "unknown file extension ''"),
        ("q.json", b"", "is empty"),
        ("q.jsonl", b"", "is empty"),
        ("q.csv", b"", "is empty"),
        ("q.parquet", b"", "is empty"),
        ("q.jsonl", b"\n\n", "has no rows"),
        ("q.json", b"[]", "has no rows"),
        ("q.csv", b"prompt,task\n", "has no rows"),
        ("q.json", b'[{"prompt": "x"', "is not JSON: .* at line 1, column 16"),
        ("q.json", b'{"prompt": "x"}', "has to be a list of objects, found"),
        ("q.json", b'[{"prompt": ' + b"1" * 5000 + b"}]", "q.json"),
        ("q.json", b"[" * 100_000, "q.json"),
        ("q.jsonl", b'{"prompt": "\xff"}\n', "can't be read: .*utf-8"),
        ("q.csv", b"prompt,task\n\xff,safety\n", "can't be read: .*utf-8"),
        ("q.json", b"\xff\xfe", "can't be read: .*utf-8"),
        ("q.parquet", b"PAR1 no, not really PAR1", "is not a parquet file"),
        ("q.parquet", b"x", "is not a parquet file"),
        ("q.jsonl", b'{"prompt": "x"}\n', r"no column 'task' \(its columns: prompt\); set `task:` for the whole"),
        ("q.csv", b"question,task\nx,safety\n", r"no column 'prompt' \(its columns: question, task\); .*prompt: NAME"),
        ("q.csv", b"prompt;task\nx;safety\n", "no column 'prompt'"),
        ("q.json", b'[{"a": 1}]', "no column 'prompt'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_can_not_be_used(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, {"path": str(path)})
    assert str(path) in str(caught.value)
    nothing_is_half_written(tmp_path)


def nothing_is_half_written(root: Path) -> None:
    """No manifest, no data, and no version number used up by a build that never began."""
    assert not list(root.rglob("manifest.json"))
    assert not list(root.rglob("*.parquet.tmp"))
    assert not list((root / "artifacts").rglob("data/*"))


@pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "missing/deeper.csv", "missing.txt"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"can't be read: (No such file|it is a folder without)"):
        build(tmp_path, {"path": str(tmp_path / name)})
    nothing_is_half_written(tmp_path)


def test_the_version_of_a_failed_build_is_used_by_the_next(tmp_path: Path) -> None:
    """A first try with a wrong file does not leave an unfinished 1.0.0 behind for ever."""
    path = tmp_path / "q.csv"
    path.write_text("question,task\nx,safety\n")
    with pytest.raises(InputError):
        build(tmp_path, {"path": str(path)})
    path.write_text("prompt,task\nx,safety\n")
    assert build(tmp_path, {"path": str(path)}).reference == "prompts@1.0.0"
    assert len(list(list_folders(tmp_path / "artifacts"))) == 1


def test_a_long_field_of_a_csv_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", [{"prompt": "long " * 40_000, "task": "safety"}])
    assert len(rows_of(build(tmp_path, {"path": str(path)}))[0]["prompt"]) == 200_000


def test_more_refused_than_allowed_says_which_rules(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [*numbered(2), {"prompt": "", "task": "safety"}])
    with pytest.raises(QuarantineError, match=r"1 of 3 rows were refused \(blank 1\), more than 5%") as caught:
        build(tmp_path, {"path": str(path)})
    assert "quarantine" in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))
    artifact = build(tmp_path, {"path": str(path)}, max_quarantine=1.0)
    assert (artifact.reference, artifact.manifest.rows) == ("prompts@1.0.0", 2)


def test_not_one_sound_row(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"prompt": "", "task": "safety"}])
    with pytest.raises(BuildError, match="refused"):
        build(tmp_path, {"path": str(path)})


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prompts\.sources is empty"):
        build(tmp_path)


def test_the_same_build_is_returned_and_a_changed_file_is_a_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "q.jsonl", numbered(2))
    first = build(tmp_path, {"path": str(path)})
    with monkeypatch.context() as patch:
        patch.setattr(Build, "finish", None)
        assert build(tmp_path, {"path": str(path)}) == first
    write(path, numbered(3))
    assert build(tmp_path, {"path": str(path)}).reference == "prompts@1.1.0"


def test_rows_are_the_same_wherever_the_file_lies(tmp_path: Path) -> None:
    here = write(tmp_path / "q.jsonl", numbered(2))
    (tmp_path / "there").mkdir()
    there = write(tmp_path / "there" / "q.jsonl", numbered(2))
    assert build(tmp_path, {"path": str(here)}) == build(tmp_path, {"path": str(there)})


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.xz", ".csv.gz", ".json.xz"])
def test_compressed_files(ending: str, tmp_path: Path) -> None:
    plain = write(tmp_path / f"q{ending.rpartition('.')[0]}", ROWS)
    pack = gzip.compress if ending.endswith("gz") else lzma.compress
    path = tmp_path / f"q{ending}"
    path.write_bytes(pack(plain.read_bytes()))
    assert [row["prompt"] for row in rows_of(build(tmp_path, {"path": str(path)}))] == [row["prompt"] for row in ROWS]
    path.write_bytes(pack(plain.read_bytes())[:-20])
    with pytest.raises(InputError, match="can't be read"):
        build(tmp_path, {"path": str(path)})


def test_a_folder_is_all_its_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deeper").mkdir(parents=True)
    write(folder / "b.csv", [{"prompt": "third", "task": "safety"}])
    write(folder / "a.jsonl", [{"prompt": "first", "task": "safety"}, {"prompt": "", "task": "safety"}])
    write(folder / "a.parquet", [{"prompt": "second", "task": "safety"}])
    write(folder / "deeper" / "c.json", [{"prompt": "last", "task": "safety"}, {"prompt": "first", "task": "safety"}])
    (folder / "README.md").write_text("not data")
    artifact = build(tmp_path, {"path": str(folder)}, max_quarantine=0.5)
    assert [row["prompt"] for row in rows_of(artifact)] == ["first", "second", "third", "last"]
    assert [(row["source"], row["row"], row["detail"]) for row in refused_of(artifact.folder)] == [
        (str(folder / "a.jsonl"), 2, ""),
        (str(folder / "deeper" / "c.json"), 2, f"repeats {folder / 'a.jsonl'} row 1"),
    ]
    write(folder / "b.csv", [{"prompt": "other", "task": "safety"}])
    assert build(tmp_path, {"path": str(folder)}, max_quarantine=0.5).reference == "prompts@1.1.0"


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b'{"data": [{"prompt": "x", "task": "safety"}], "version": 2, "authors": ["me"]}', ["x"]),
        (b'\xef\xbb\xbf[{"prompt": "x", "task": "safety"}]', ["x"]),
    ],
)
def test_json_in_its_usual_forms(content: bytes, prompts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(content)
    assert [row["prompt"] for row in rows_of(build(tmp_path, {"path": str(path)}))] == prompts
    path.write_bytes(b'{"train": [{"prompt": "x"}], "test": [{"prompt": "y"}]}')
    with pytest.raises(InputError, match="it holds 2 lists; leave one"):
        build(tmp_path, {"path": str(path)})


def test_lines_that_end_as_on_windows_and_quotes_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"prompt": "x\\r\\ny", "task": "safety"}\r\n{"prompt": "z", "task": "safety"}\r\n')
    assert [row["prompt"] for row in rows_of(build(tmp_path, {"path": str(path)}))] == ["x\r\ny", "z"]
    path = tmp_path / "q.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,task\r\n"a ""b"",\nc",safety\r\n')
    assert [row["prompt"] for row in rows_of(build(tmp_path, {"path": str(path)}))] == ['a "b",\nc']


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ("Dogs, cats and birds?,safety", "line 4 has 3 fields, the head has 2"),
        ('Is "a, b" one,safety', "line 4 has 3 fields, the head has 2"),
        ("Only a prompt", "line 4 has 1 fields, the head has 2"),
        ('"two\nlines",safety,"more"', "line 4 has 3 fields, the head has 2"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_row_of_csv_with_other_fields_than_the_head_is_refused_with_its_line(
    ending: str, row: str, detail: str, tmp_path: Path
) -> None:
    path = tmp_path / f"q{ending}"
    content = f'prompt,task\n"on two\nlines",safety\n{row}\nlast,safety\n'.encode()
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    artifact = build(tmp_path, {"path": str(path)}, max_quarantine=0.5)
    assert [row["prompt"] for row in rows_of(artifact)] == ["on two\nlines", "last"]
    (refused,) = refused_of(artifact.folder)
    assert (refused["row"], refused["rule"], refused["raw"]) == (2, "wrong_number_of_fields", row)
    assert refused["detail"] == detail


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('prompt,task\na,safety\n"b,safety\nc,safety\n', "line 3: a quoted field .* does not end .*line 4"),
        ('prompt,task\n"b,safety\nc,safety\n"d",safety\n', "line 2: a quoted field .* does not end .*line 4"),
        ('prompt,task\n\n"He said "no"",safety\n', "line 3: a quoted field .* does not end"),
        ('prompt,task\na,"safety\nb,"safety"\n', "line 2: a quoted field .* does not end .*line 3"),
        ("prompt,task,prompt\na,safety,b\n", "'prompt' stands twice in the head, as columns 1 and 3"),
    ],
)
def test_csv_in_which_nobody_knows_where_a_row_or_column_is(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        build(tmp_path, {"path": str(path)})
    sound = write(tmp_path / "sound.jsonl", numbered(1))
    recipe = {"prompts": {"sources": [{"path": str(sound)}], "decontaminate": [str(path)]}}
    with pytest.raises(InputError, match=message):
        build_prompts(Recipe.model_validate(recipe), BuildOptions(root=tmp_path))


def test_an_evaluation_file_with_a_row_cut_by_a_comma_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.csv"
    path.write_text("prompt\nDogs, cats and birds?\n")
    sound = write(tmp_path / "sound.jsonl", numbered(1))
    recipe = {"prompts": {"sources": [{"path": str(sound)}], "decontaminate": [str(path)]}}
    with pytest.raises(InputError, match=r"row 1 can't be read .line 2 has 2 fields, the head has 1"):
        build_prompts(Recipe.model_validate(recipe), BuildOptions(root=tmp_path))


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ({"columns": {"category": "topic"}}, {}),
        ({"columns": {"reference_answer": "meta.answer"}}, {}),
        ({"where": {"language": "en"}}, {}),
        ({}, {"prompt": None}),
    ],
)
def test_a_column_may_be_missing_in_the_first_row_but_not_in_all(
    source: dict[str, Any], missing: dict[str, Any], tmp_path: Path
) -> None:
    first = {"prompt": "first", "task": "safety"}
    last = {"prompt": "last", "task": "safety", "topic": "t", "language": "en", "meta": {"answer": "So."}}
    first = {name: value for name, value in first.items() if name not in missing}
    path = write(tmp_path / "q.jsonl", [first, last])
    rows = rows_of(build(tmp_path, {"path": str(path), **source}, max_quarantine=0.5))
    assert "last" in [row["prompt"] for row in rows]
    write(path, [first, first])
    with pytest.raises(InputError, match="has no column"):
        build(tmp_path, {"path": str(path), **source}, max_quarantine=1.0)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("category", {"violence": True}),
        ("category", 3),
        ("source", ["a", "b"]),
        ("reference_answer", [{"role": "assistant"}]),
        ("reference_is_safe", "unclear"),
    ],
)
def test_an_optional_column_of_another_type_is_left_out_with_a_count(
    column: str, value: object, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Question {n}", "task": "safety", column: value} for n in range(3)]
    artifact = build(tmp_path, {"path": str(write(tmp_path / "q.jsonl", rows))})
    assert artifact.manifest.rows == 3
    assert [row[column] for row in rows_of(artifact)] == ["q.jsonl" if column == "source" else None] * 3
    assert any(f"column {column} was left out of 3 rows" in note for note in artifact.manifest.notes)


@pytest.mark.parametrize(
    ("written", "wanted", "is_taken"),
    [("1.0", 1, True), ("1", True, True), ("TRUE", True, True), ("2", 1, False), ("no", False, True), ("x", 1, False)],
)
def test_booleans_and_integers_as_csv_writes_them(written: str, wanted: object, is_taken: bool, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(f"prompt,task,label,reference_is_safe\nx,safety,{written},1\ny,safety,Z,0.0\n")
    rows = rows_of(build(tmp_path, {"path": str(path), "where": {"label": [wanted, "Z"]}}))
    kept = [(row["prompt"], row["reference_is_safe"]) for row in rows]
    assert kept == [("x", True), ("y", False)][not is_taken :]


def odd_columns() -> dict[str, pa.Array]:
    """Columns that polars, or Python, has no type for."""
    return {
        "offset": pa.array([0, 1], pa.timestamp("us", tz="+05:30")),
        "zone": pa.array([0, 1], pa.timestamp("ns", tz="No/Where")),
        "decimal": pa.array([1, 2], pa.decimal256(60, 2)),
        "far": pa.array([2**40, 2**40], pa.timestamp("s")),
        "bytes": pa.array([b"\xff", b"\xfe"]),
        "picture": pa.array([{"bytes": b"\x89PNG", "path": None}] * 2),
    }


@pytest.mark.parametrize("name", list(odd_columns()))
def test_a_parquet_column_that_nobody_asked_for_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    texts = {"prompt": pa.array(["Why?", "How?"]), "task": pa.array(["safety"] * 2)}
    pq.write_table(pa.table(texts | {name: odd_columns()[name]}), path)
    assert [row["prompt"] for row in rows_of(build(tmp_path, {"path": str(path)}))] == ["Why?", "How?"]
    with pytest.raises(BuildError, match="wrong_type, field category"):
        build(tmp_path, {"path": str(path), "columns": {"category": name}})
    evaluation = {"prompts": {"sources": [{"path": str(path)}], "decontaminate": [str(path)]}}
    with pytest.raises(BuildError, match="contaminated"):
        build_prompts(Recipe.model_validate(evaluation), BuildOptions(root=tmp_path / "other"))


def test_a_parquet_column_that_is_there_twice_matters_only_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    columns = [pa.array(["Why?"]), pa.array(["safety"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["prompt", "task", "note", "note"]), path)
    assert build(tmp_path, {"path": str(path)}).manifest.rows == 1
    with pytest.raises(InputError, match="two columns called 'note'"):
        build(tmp_path, {"path": str(path), "columns": {"category": "note"}})
    with pytest.raises(InputError, match=r"no column 'question' .its columns: prompt, task, note"):
        build(tmp_path, {"path": str(path), "columns": {"prompt": "question"}})


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".jsonl.gz", gzip.compress(b"x" * 5000, mtime=0)[:12] + b"\xff" * 40),
        (".csv.gz", b"no gzip at all"),
        (".json.xz", lzma.compress(b"[]" * 5000)[:30] + b"\x00" * 40),
    ],
)
def test_a_damaged_compressed_file(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"q{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="can't be read"):
        build(tmp_path, {"path": str(path)})


USER, SYSTEM = {"role": "user", "content": "Why?"}, {"role": "system", "content": "You are a pirate."}
TALKS = [
    ([USER, {"role": "assistant", "content": "So."}], None),
    ([SYSTEM, USER], "turns_before_user"),
    ([{"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "Why?"}], "turns_before_user"),
    ([SYSTEM], "no_user_turn"),
    ([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], None),
    ([{"from": "Human", "value": "Why?"}], None),
]


@pytest.mark.parametrize(("turns", "rule"), TALKS)
def test_the_first_user_turn(turns: list[Any], rule: str | None, tmp_path: Path) -> None:
    talks: list[list[Any]] = [turns, [{"role": "user", "content": "z"}]]
    path = write(tmp_path / "q.jsonl", [{"talk": {"messages": talk}, "task": "safety"} for talk in talks])
    source = {"path": str(path), "columns": {"prompt": "talk.messages.first_user"}}
    artifact = build(tmp_path, source, max_quarantine=0.5)
    assert artifact.manifest.quarantine == ({rule: 1} if rule else {})
    assert [row["prompt"] for row in rows_of(artifact)] == ["z"] if rule else ["Why?", "z"]
    dropped = build(tmp_path, source | {"turns_before": "drop"}, max_quarantine=0.5)
    assert [row["prompt"] for row in rows_of(dropped)] == (["z"] if rule == "no_user_turn" else ["Why?", "z"])


@pytest.mark.parametrize("turn", [SYSTEM, {"from": "gpt", "value": "Hi"}, {"role": "Assistant", "content": "Hi"}])
def test_a_turn_by_number_that_is_not_the_user_s_is_refused(turn: dict[str, str], tmp_path: Path) -> None:
    rows = [{"messages": [turn, USER], "task": "safety"}, {"messages": [USER], "task": "safety"}]
    path = write(tmp_path / "q.jsonl", rows)
    key = "value" if "value" in turn else "content"
    source = {"path": str(path), "columns": {"prompt": f"messages.0.{key}"}}
    if key == "value":
        with pytest.raises(BuildError, match="not_a_user_turn"):
            build(tmp_path, source, max_quarantine=1.0)
        return
    artifact = build(tmp_path, source, max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"not_a_user_turn": 1}
    assert [row["prompt"] for row in rows_of(artifact)] == ["Why?"]


@pytest.mark.parametrize("ending", [".ndjson", ".tsv", ".jsonl.zst", ".csv.zst", ".tsv.gz", ".JSON.ZST"])
def test_files_that_people_have(ending: str, tmp_path: Path) -> None:
    name = ending.lower().removesuffix(".zst").removesuffix(".gz")
    path = write(tmp_path / f"q{ {'.ndjson': '.jsonl', '.tsv': '.csv'}.get(name, name) }", ROWS)
    content = path.read_bytes()
    path.unlink()
    if name == ".tsv":
        text = io.StringIO(newline="")
        csv.writer(text, dialect="excel-tab").writerows([list(ROWS[0]), *(row.values() for row in ROWS)])
        content = text.getvalue().encode()
    packed = {".gz": gzip.compress, ".zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True)}
    pack = next((pack for end, pack in packed.items() if ending.lower().endswith(end)), bytes)
    (tmp_path / f"q{ending}").write_bytes(pack(content))
    rows = rows_of(build(tmp_path, {"path": str(tmp_path)}))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]


def test_a_folder_takes_linked_folders_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    elsewhere.mkdir()
    write(folder / "a.jsonl", [{"prompt": "taken", "task": "safety"}])
    write(elsewhere / "b.jsonl", [{"prompt": "linked", "task": "safety"}])
    (folder / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    hidden = [{"prompt": "hidden", "task": "safety"}]
    for name in (".c.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "#d#.jsonl", "~$e.csv"):
        write(folder / name, hidden)
    for name in ("a.jsonl~", "f.xlsx", "g.arrow", "h.jsonl.bz2"):
        (folder / name).write_text("not data")
    artifact = build(tmp_path, {"path": str(folder)})
    assert [row["prompt"] for row in rows_of(artifact)] == ["taken", "linked"]
    (note,) = artifact.manifest.notes
    for name in (".c.jsonl (hidden", "#d#.jsonl (an editor", "~$e.csv (an editor", "a.jsonl~ (an editor"):
        assert name in note
    for name in ("f.xlsx", "g.arrow", "h.jsonl.bz2"):
        assert f"{name} (unknown extension" in note


@pytest.mark.parametrize("names", [["dataset_info.json", "state.json", "data-0.arrow"], ["dataset_dict.json"]])
def test_a_folder_of_save_to_disk_says_the_way_out(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"save_to_disk.*load_from_disk.*to_parquet"):
        build(tmp_path, {"path": str(tmp_path)})


@pytest.mark.parametrize("pattern", ["*.jsonl", "q?.csv", "[ab].json"])
def test_a_pattern_says_the_way_out(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a pattern; name a folder"):
        build(tmp_path, {"path": str(tmp_path / pattern)})


def test_home_and_names_that_only_look_like_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "q[1].jsonl", numbered(1))
    assert build(tmp_path, {"path": "~/q[1].jsonl"}).manifest.rows == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b'\xef\xbb\xbf{"prompt": "\xc3\xa9"}\n{"prompt": "\xe9"}\n', "line 2, byte 32 .0xe9"),
        ("q.csv", b"prompt,task\r\n\xc3\xa9,safety\r\n\xff,safety\r\n", "line 3, byte 24 .0xff"),
        ("q.json", b'[{"prompt":\n"\xc3"}]', "line 2, byte 13 .0xc3"),
        ("q.json", '[{"prompt": "x"}]'.encode("utf-16"), "UTF-16"),
        ("q.json", b'{"prompt": "x"}\n{"prompt": "y"}\n', "is JSON Lines.*[.]jsonl"),
        ("q.json", b'\n{"prompt": "x"}\r\n\r\n{"prompt": "y"}', "is JSON Lines.*[.]jsonl"),
        ("q.jsonl", b'[{"prompt": "x"}]', "is a JSON list.*[.]json"),
        ("q.jsonl", b'[\n  {"prompt": "x"}\n]\n', "is a JSON list.*[.]json"),
        ("q.ndjson", b'\n[ {"prompt": "x"},\n  {"prompt": "y"}]\n', "is a JSON list.*[.]json"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_file_that_is_of_another_form_than_its_name_says(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        build(tmp_path, {"path": str(path)})


def test_a_conversation_is_refused_by_a_rule_of_its_own(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    path = write(tmp_path / "q.jsonl", [{"prompt": turns, "task": "safety"}, {"prompt": "x", "task": "safety"}])
    artifact = build(tmp_path, {"path": str(path)}, max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"conversation": 1}
    mapped = build(tmp_path, {"path": str(path), "columns": {"prompt": "prompt.0.content"}}, max_quarantine=0.5)
    assert [row["prompt"] for row in rows_of(mapped)] == ["Why?"]
    assert mapped.manifest.quarantine == {"missing_value": 1}


def test_bundled_prompts_are_all_kept_and_in_equal_parts(tmp_path: Path) -> None:
    data = Path(stairdata.__file__).parent / "data"
    sources = [{"path": str(data / name)} for name in ("prompts.jsonl", "contrast_prompts.jsonl")]
    rows = rows_of(build(tmp_path, *sources))
    assert Counter(row["task"] for row in rows) == {"safety": 96, "helpfulness": 96}
    assert all(row["reference_answer"] for row in rows if row["task"] == "helpfulness")
