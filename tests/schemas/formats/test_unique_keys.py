"""A name that stands twice is an error that names both places, in every text that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stairdata.generators.prompts.files import read_rows
from stairdata.generators.structured_cot.answer import parse_answer
from stairdata.llm.batches.ledger import Ledger
from stairdata.runs.units import UnitFailedError
from stairdata_review.tables.cells import read_rows as read_table
from stairdata_schemas.errors import ArtifactError, InputError
from stairdata_schemas.formats.unique_keys import KeyTwiceError, loads
from stairdata_schemas.manifest import read_manifest


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice, at line 1, column 2 and at line 1, column 10"),
        ('[{"a": 1},\n {"b": {"c": "{,", "c": []}}]', "'c' stands twice, at line 2, column 9 and at line 2, column 20"),
        ('{"a": {"a": 1},\r\n"\\u0061": 2}', "'a' stands twice, at line 1, column 2 and at line 2, column 1"),
        ('{"": "\\"", "": 1}', "'' stands twice"),
    ],
)
def test_a_key_twice_in_json(text: str, places: str) -> None:
    with pytest.raises(KeyTwiceError, match=places):
        loads(text)


def test_equal_keys_of_different_objects_are_fine() -> None:
    assert loads('{"a": {"a": [{"a": 1}, {"a": 2}]}, "b": "a"}') == {"a": {"a": [{"a": 1}, {"a": 2}]}, "b": "a"}


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("p.jsonl", '{"task": "x"}\n\n{"prompt": "B", "prompt": "C"}\n', "line 3, column 2 and at line 3, column 17"),
        ("p.json", '[{"prompt": "A?",\n "prompt": "C?"}]', "line 1, column 3 and at line 2, column 2"),
        ("p.csv", "prompt,task,prompt\nA?,safety,B?\n", "'prompt' stands twice in the head, as columns 1 and 3"),
    ],
)  # fmt: skip
def test_a_name_twice_in_a_file_of_rows(name: str, text: str, places: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=places) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("t.csv", "pair_id;verdict;verdict\n1;a;b\n", "'verdict' stands twice in the head, as columns 2 and 3"),
        ("t.jsonl", '{"verdict": "a", "verdict": "b"}\n', "line 1, column 2 and at line 1, column 18"),
    ],
)
def test_a_name_twice_in_a_table_of_reviews(name: str, text: str, places: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=places):
        read_table(tmp_path / name)


def test_a_key_twice_in_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "trees",\n "kind": "pairs"}')
    with pytest.raises(ArtifactError, match=r"manifest.json.*'kind' stands twice, at line 1, column 2 and at line 2"):
        read_manifest(tmp_path)


def test_a_key_twice_in_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text('{"token": "x", "jobs": [], "jobs": []}')
    with pytest.raises(ArtifactError, match="'jobs' stands twice"):
        Ledger(tmp_path)


def test_a_key_twice_in_an_answer_of_a_teacher() -> None:
    with pytest.raises(UnitFailedError, match="not_the_schema"):
        parse_answer('{"steps": [], "steps": [], "output": "x"}')
