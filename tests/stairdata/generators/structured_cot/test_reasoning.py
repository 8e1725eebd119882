"""Teachers and judges that think: no thought is in a completion or read as a judgement."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from stairdata_schemas.artifacts import Artifact, validate_artifact, with_later_columns

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import StubServer

Teach = Callable[..., Artifact | None]
KEEPS = {"teacher": {"keep_reasoning": True}, "concurrency": 1}
THOUGHT = "Better: A? Complies:"


def rows_of(artifact: Artifact | None) -> list[dict[str, Any]]:
    assert artifact is not None
    assert validate_artifact(artifact) == []
    return artifact.scan().collect().to_dicts()


@pytest.mark.parametrize("place", ["reasoning_content", "text"])
def test_thoughts_are_in_their_column_alone(place: str, teach: Teach, stub_llm: StubServer, tmp_path: Path) -> None:
    plain = rows_of(teach(3))
    stub_llm.control(thinks=9, thinks_in=place)
    prices = {"actor": {"input": 1.0, "output": 1000.0}}
    kept, dropped = teach(3, section=KEEPS, prices=prices), teach(3, root=tmp_path / "others")
    for before, row, other in zip(plain, rows_of(kept), rows_of(dropped), strict=True):
        assert (before["thoughts"], row["thoughts"], other["thoughts"]) == (None, THOUGHT, None)
        assert before["completion"] == row["completion"] == other["completion"]
        assert row["completion_tokens"] == before["completion_tokens"] + 9
    assert kept is not None
    usage = kept.manifest.usage
    assert (usage.requests, usage.reasoning_tokens) == (3, 27)
    assert usage.completion_tokens == sum(row["completion_tokens"] for row in rows_of(kept))
    assert usage.cost == pytest.approx((usage.prompt_tokens + 1000 * usage.completion_tokens) / 1e6, abs=1e-6)
    assert dropped is not None
    assert dropped.manifest.configuration["teachers"][0].get("keep_reasoning") is None


@pytest.mark.parametrize("batch", [None, "submit"])
def test_thoughts_that_take_all_tokens_are_told_and_not_called_cut(
    batch: str | None, teach: Teach, stub_llm: StubServer
) -> None:
    said: list[str] = []
    stub_llm.control(thinks=9, script=[{}, {"fault": "cut"}])
    artifact = teach(3, section=KEEPS, batch=batch, tell=said.append)
    if batch:
        artifact = teach(3, section=KEEPS, batch="collect", tell=said.append)
    assert [row["thoughts"] for row in rows_of(artifact)] == [THOUGHT] * 2
    assert artifact is not None
    assert artifact.manifest.outcomes == {"ok": 2, "only_reasoning": 1}
    assert artifact.manifest.usage.reasoning_tokens == 18
    assert any("raise max_tokens, or lower reasoning_effort" in words for words in said)
    stub_llm.reset()
    again = teach(3, section=KEEPS, retry_quarantined=True)
    assert len(rows_of(again)) == 3
    assert "thoughts before the answer took up" in json.dumps(stub_llm.last()["body"]["messages"])


def test_a_judge_is_read_without_its_thoughts(teach: Teach, stub_llm: StubServer, tmp_path: Path) -> None:
    server = {"base_url": stub_llm.base_url, "model": "actor"}
    section = {"teachers": {"a": server, "b": server | {"format": "text"}}, "judge": {}}
    judged = rows_of(teach(3, section=section, teachers=("a", "b")))
    stub_llm.control(thinks=9, thinks_in="text")
    thoughtful = teach(3, section=section, teachers=("a", "b"), root=tmp_path / "others")
    kept = [(row["teacher"], row["completion"], row["alternatives"]) for row in judged]
    assert kept == [(row["teacher"], row["completion"], row["alternatives"]) for row in rows_of(thoughtful)]
    assert thoughtful is not None
    assert thoughtful.manifest.usage.reasoning_tokens == 9 * thoughtful.manifest.usage.requests


def test_a_judge_that_only_thinks_is_counted_so(teach: Teach, stub_llm: StubServer) -> None:
    server = {"base_url": stub_llm.base_url, "model": "actor"}
    section = {
        "teachers": {"a": server, "b": server | {"format": "text"}},
        "judge": {"max_tokens": 5, "reasks": 1},
    }
    stub_llm.control(thinks=9, script=[{"fault": "cut"}])
    artifact = teach(2, section=section | {"concurrency": 1}, teachers=("a", "b"))
    assert artifact is not None
    assert artifact.manifest.outcomes == {"ok": 1, "judge_failure": 1}, "one candidate needs no judge"
    assert artifact.manifest.details["requests"]["only_reasoning"] == 1 + 2


def test_rows_of_an_earlier_release_have_no_thoughts(teach: Teach) -> None:
    artifact = teach(2)
    assert artifact is not None
    frame = artifact.scan().collect()
    assert with_later_columns("structured_cot", frame.drop("thoughts")).equals(frame)
    assert with_later_columns("structured_cot", frame) is frame
