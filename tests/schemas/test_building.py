from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata_schemas import writing
from stairdata_schemas.artifacts import Artifact, newest, open_artifact, resolve, validate_artifact, versions
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, begin_build, build_artifact
from stairdata_schemas.errors import ArtifactError, BuildError, BuildLockedError, QuarantineError, UsageError
from stairdata_schemas.files import read_journal
from stairdata_schemas.manifest import BuildUsage, ModelIdentity, Parent, sha256_of_file
from stairdata_schemas.quarantine import QuarantineRow

Make = Callable[..., Artifact]
Begin = Callable[..., Build]
Plan = Callable[..., BuildPlan]
Frame = Callable[..., pl.DataFrame]


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(f"{folder}/quarantine/*.parquet").to_dicts()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- one build


def test_a_finished_build_is_a_valid_artifact(tmp_path: Path, build: Make, prompts: Frame) -> None:
    artifact = build(tmp_path, prompts("a", "b"), prompts("c"))
    assert artifact.folder == tmp_path / "prompts" / "1.0.0"
    assert artifact.reference == "prompts@1.0.0"
    assert validate_artifact(artifact) == []
    assert artifact.scan().collect().equals(prompts("a", "b", "c"))
    assert names(artifact.folder) - {".lock"} == {"data", "README.md", "manifest.json"}
    assert names(artifact.folder / "data") == {"train-00000-of-00001.parquet"}
    assert open_artifact(artifact.folder) == artifact


def test_the_manifest_says_how_the_rows_came_about(tmp_path: Path, begin: Begin, prompts: Frame) -> None:
    plan = BuildPlan(
        "prompts",
        "tests/1",
        {"seed": 42},
        settings={"concurrency": 8},
        parents=[Parent(kind="trees", version="1.2.0", content_hash="0" * 64)],
        models=[ModelIdentity(role="actor", name="m", revision="r")],
        seeds={"sampling": 42},
    )
    report = Report({"done": 2}, BuildUsage(requests=3, prompt_tokens=5), ["a note"], {"mixture": {"a": 1}})
    with begin(tmp_path, plan) as build:
        manifest = build.finish([prompts("a", "b")], [QuarantineRow("f", 1, "not_json", "{")], report, 0.5).manifest
    assert (manifest.kind, manifest.version) == ("prompts", "1.0.0")
    assert manifest.schema_version == 1
    assert manifest.generator == "tests/1"
    assert manifest.configuration == {"seed": 42, "concurrency": 8}
    assert manifest.fingerprint == plan.fingerprint
    assert manifest.models == plan.models
    assert manifest.parents == plan.parents
    assert manifest.seeds == {"sampling": 42}
    assert manifest.rows == 2
    assert manifest.quarantine == {"not_json": 1}
    assert manifest.outcomes == {"done": 2}
    assert manifest.usage.requests == 3
    assert manifest.notes == ["a note"]
    assert manifest.details == {"mixture": {"a": 1}}
    assert manifest.actor == plan.models[0]
    assert manifest.created_at.tzinfo is not None
    entry = manifest.files[0]
    path = build.folder / entry.path
    assert (entry.rows, entry.bytes, entry.sha256) == (2, path.stat().st_size, sha256_of_file(path))


@pytest.mark.parametrize(
    ("details", "revision"),
    [
        ({}, None),
        ({"actor": {"name": "m", "revision": "0123456789abcdef"}}, "0123456789abcdef"),
        ({"actor": {"name": "m", "revision": 3}}, None),
        ({"actor": {"revision": "r"}}, None),
        ({"actor": "m"}, None),
    ],
)
def test_the_actor_is_what_details_say_of_it_or_else_a_model(
    details: dict[str, Any], revision: str | None, tmp_path: Path, begin: Begin, prompts: Frame
) -> None:
    named = ModelIdentity(role="actor", name="m", tokenizer_hash="t")
    with begin(tmp_path, BuildPlan("prompts", "tests/1", {}, models=[named])) as build:
        manifest = build.finish([prompts("a")], report=Report(details=details)).manifest
    expected = ModelIdentity(role="actor", name="m", revision=revision) if revision else named
    assert manifest.actor == expected


def test_an_actor_that_nobody_named(tmp_path: Path, begin: Begin, prompts: Frame) -> None:
    models = [ModelIdentity(role="tokenizer", name="t")]
    with begin(tmp_path, BuildPlan("prompts", "tests/1", {}, models=models)) as build:
        assert build.finish([prompts("a")]).manifest.actor is None


def test_equal_content_gives_equal_hashes(tmp_path: Path, build: Make, plan: Plan, prompts: Frame) -> None:
    one, two = (build(tmp_path / name, prompts("a", "b"), prompts("c")) for name in ("one", "two"))
    assert one.manifest.files == two.manifest.files
    assert one.manifest.content_hash == two.manifest.content_hash
    other = build(tmp_path / "other", prompts("a", "b"), prompts("d"))
    assert other.manifest.content_hash != one.manifest.content_hash


def test_pieces_become_shards(tmp_path: Path, build: Make, prompts: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    artifact = build(tmp_path, prompts("a", "b"), prompts(), prompts("c"), prompts("d", "e", "f"), prompts())
    assert [(entry.path, entry.rows) for entry in artifact.manifest.files] == [
        ("data/train-00000-of-00003.parquet", 2),
        ("data/train-00001-of-00003.parquet", 1),
        ("data/train-00002-of-00003.parquet", 3),
    ]
    assert artifact.manifest.rows == 6
    assert validate_artifact(artifact) == []
    assert artifact.scan().collect().equals(prompts("a", "b", "c", "d", "e", "f"))


def test_shards_are_zstd_with_row_groups(tmp_path: Path, build: Make, prompts: Frame) -> None:
    import pyarrow.parquet as pq

    artifact = build(tmp_path, prompts(*(f"prompt {number}" for number in range(5000))))
    metadata = pq.read_metadata(artifact.data_files[0])
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_row_groups_are_bounded_by_bytes_too_and_pages_have_an_index(
    tmp_path: Path, build: Make, prompts: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 10_000)
    long, short = [f"{number}{'x' * 4000}" for number in range(10)], [str(number) for number in range(10)]
    artifact = build(tmp_path, prompts(*long), prompts(*short), prompts("y" * 50_000))
    metadata = pq.read_metadata(artifact.data_files[0])
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [2, 2, 2, 2, 2, 10, 1], "a row is never cut"
    assert all(group.column(0).has_offset_index and group.column(0).has_column_index for group in groups)
    assert artifact.scan().collect()["prompt"].to_list() == [*long, *short, "y" * 50_000]


# --- versions that came to nothing


def test_a_build_of_nothing_leaves_its_version_free(tmp_path: Path, build: Make, prompts: Frame, plan: Plan) -> None:
    with pytest.raises(BuildError, match=r"prompts@1.0.0: the input has no rows"):
        build(tmp_path, prompts())
    assert versions(tmp_path, "prompts") == []
    assert build(tmp_path, plan=plan(seed=2)).reference == "prompts@1.0.0"


def test_a_refused_build_leaves_its_version_to_the_next(
    tmp_path: Path, build: Make, prompts: Frame, plan: Plan, begin: Begin
) -> None:
    wrong = prompts("a", "b", wrong_task=("b",))
    for _ in range(2):
        with pytest.raises(QuarantineError):
            build(tmp_path, wrong)
    assert quarantine(tmp_path / "prompts" / "1.0.0")[0]["rule"] == "task|regex", "to be looked at"
    with begin(tmp_path):  # somebody is at it: not free
        assert build(tmp_path, prompts("z"), plan=plan(seed=3)).reference == "prompts@1.1.0"
    with pytest.raises(QuarantineError):
        build(tmp_path, wrong, plan=plan(seed=4))
    assert quarantine(tmp_path / "prompts" / "1.2.0")
    corrected = build(tmp_path, plan=plan(seed=5))
    assert corrected.reference == "prompts@1.2.0"
    assert not (corrected.folder / "quarantine").exists()
    assert validate_artifact(corrected) == []
    assert build(tmp_path, wrong, max_quarantine=1.0).reference == "prompts@1.0.0", "its own goes on where it was"


def test_a_refused_build_with_a_journal_keeps_its_version(
    tmp_path: Path, build: Make, prompts: Frame, plan: Plan, begin: Begin
) -> None:
    unfinished = begin(tmp_path)
    with closing(unfinished.journal("rows.jsonl")) as journal:
        journal.append({"answer": "paid for"})
    with pytest.raises(QuarantineError), unfinished:
        unfinished.finish([prompts("a", "b", wrong_task=("b",))])
    assert build(tmp_path, plan=plan(seed=2)).reference == "prompts@1.1.0"


# --- quarantine


def test_broken_rows_go_to_quarantine_with_rule_and_raw(tmp_path: Path, build: Make, prompts: Frame) -> None:
    frames = (prompts("a", "b", "c"), prompts("d", "e", "f", wrong_task=("e",)))
    refused = QuarantineRow("in.jsonl", 17, "not_json", "{broken\n")
    artifact = build(tmp_path, *frames, refused=(refused,), max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"not_json": 1, "task|regex": 1}
    assert artifact.scan().collect()["prompt"].to_list() == ["a", "b", "c", "d", "f"]
    by_hand, by_schema = quarantine(artifact.folder)
    no_detail = {"detail": ""}
    assert by_hand == {"source": "in.jsonl", "row": 17, "rule": "not_json", "field": "", "raw": "{broken\n"} | no_detail
    assert (by_schema["source"], by_schema["rule"], by_schema["field"]) == ("prompts", "task|regex", "task")
    assert json.loads(by_schema["raw"]) == frames[1].to_dicts()[1]
    assert validate_artifact(artifact) == []


def test_a_row_of_several_faults_is_one_row_of_quarantine(tmp_path: Path, build: Make, prompts: Frame) -> None:
    broken = prompts("x", wrong_task=("x",)).with_columns(source=pl.lit(""), prompt_id=pl.lit("no id"))
    artifact = build(tmp_path, prompts("a"), broken, max_quarantine=0.5)
    assert sum(artifact.manifest.quarantine.values()) == 1
    assert len(quarantine(artifact.folder)) == 1


def test_quarantine_says_which_row_it_was(tmp_path: Path, build: Make, prompts: Frame) -> None:
    artifact = build(tmp_path, prompts("a", "b"), prompts("c", "d", "e", wrong_task=("d",)), max_quarantine=0.5)
    assert [row["row"] for row in quarantine(artifact.folder)] == [3]


def test_quarantine_holds_text_that_is_no_unicode(tmp_path: Path, build: Make, prompts: Frame) -> None:
    # what `build prompts` refuses by the rule not_unicode
    refused = QuarantineRow("in.jsonl", 1, "not_unicode", '{"prompt": "\ud800"}', "prompt")
    artifact = build(tmp_path, prompts("a"), refused=(refused,), max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"not_unicode": 1}
    assert "ud800" in quarantine(artifact.folder)[0]["raw"]


def test_too_many_refusals_leave_data_and_quarantine_without_manifest(
    tmp_path: Path, build: Make, prompts: Frame
) -> None:
    frame = prompts("a", "b", "c", "d", wrong_task=("b",))
    folder = tmp_path / "prompts" / "1.0.0"
    with pytest.raises(QuarantineError) as caught:
        build(tmp_path, frame, refused=(QuarantineRow("in.jsonl", 1, "not_json", "{"),))
    message = str(caught.value)
    for part in ("2 of 5 rows", "not_json 1", "task|regex 1", "5%", str(folder / "quarantine"), "--max-quarantine"):
        assert part in message
    assert len(pl.read_parquet(f"{folder}/data/*.parquet")) == 3
    assert len(quarantine(folder)) == 2
    assert not (folder / "manifest.json").exists()
    with pytest.raises(ArtifactError, match="incomplete"):
        open_artifact(folder)


def test_the_next_build_of_the_plan_continues_after_too_many_refusals(
    tmp_path: Path, build: Make, prompts: Frame
) -> None:
    frame = prompts("a", "b", wrong_task=("b",))
    with pytest.raises(QuarantineError):
        build(tmp_path, frame)
    artifact = build(tmp_path, frame, max_quarantine=0.5)
    assert artifact.reference == "prompts@1.0.0"
    assert validate_artifact(artifact) == []
    assert len(quarantine(artifact.folder)) == 1


def test_a_mended_input_leaves_no_quarantine_behind(tmp_path: Path, build: Make, prompts: Frame) -> None:
    with pytest.raises(QuarantineError):
        build(tmp_path, prompts("a", "b", wrong_task=("b",)))
    artifact = build(tmp_path, prompts("a", "b"))
    assert artifact.manifest.quarantine == {}
    assert not (artifact.folder / "quarantine").exists()


def test_the_allowed_share_itself_is_allowed(tmp_path: Path, build: Make, prompts: Frame) -> None:
    frame = prompts("a", "b", "c", "d", wrong_task=("b",))
    assert build(tmp_path, frame, max_quarantine=0.25).manifest.rows == 3


@pytest.mark.parametrize("frames", [0, 1])
def test_a_build_without_rows_fails(tmp_path: Path, begin: Begin, prompts: Frame, frames: int) -> None:
    with begin(tmp_path) as build, pytest.raises(BuildError, match="no rows"):
        build.finish([prompts()] * frames)
    assert not (build.folder / "manifest.json").exists()


def test_a_build_that_refused_all_rows_fails_whatever_the_allowed_share(tmp_path: Path, begin: Begin) -> None:
    with begin(tmp_path) as build, pytest.raises(BuildError):
        build.finish([], [QuarantineRow("in.jsonl", 1, "not_json", "{")], max_quarantine=1.0)
    assert not (build.folder / "manifest.json").exists()


def test_a_key_twice_in_a_frame_is_refused(tmp_path: Path, build: Make, prompts: Frame) -> None:
    artifact = build(tmp_path, prompts("a", "b", "b"), max_quarantine=0.9)
    assert artifact.manifest.quarantine["primary_key"] >= 1
    assert validate_artifact(artifact) == []


def test_a_key_twice_in_two_frames_makes_no_invalid_artifact(tmp_path: Path, build: Make, prompts: Frame) -> None:
    try:
        artifact = build(tmp_path, prompts("a", "b"), prompts("b", "c"), max_quarantine=0.9)
    except BuildError:
        return
    assert validate_artifact(artifact) == []


# --- versions


def test_the_same_plan_returns_what_is_finished(tmp_path: Path, build: Make, plan: Plan) -> None:
    first = build(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in first.folder.rglob("*"))
    again = begin_build(plan(), tmp_path)
    assert again == first
    assert begin_build(plan(), tmp_path, "1.0.0") == first
    assert sorted((path, path.stat().st_mtime_ns) for path in first.folder.rglob("*")) == before


def test_another_plan_makes_the_next_minor(tmp_path: Path, build: Make, plan: Plan) -> None:
    assert build(tmp_path).reference == "prompts@1.0.0"
    assert build(tmp_path, plan=plan(seed=1)).reference == "prompts@1.1.0"
    assert build(tmp_path, plan=plan(seed=2), version="1.7.3").reference == "prompts@1.7.3"
    assert build(tmp_path, plan=plan(seed=3)).reference == "prompts@1.8.0"
    assert build(tmp_path).reference == "prompts@1.0.0"


def test_ten_comes_after_nine(tmp_path: Path, build: Make, plan: Plan) -> None:
    build(tmp_path, version="1.9.0")
    build(tmp_path, plan=plan(seed=1), version="1.10.0")
    assert build(tmp_path, plan=plan(seed=2)).reference == "prompts@1.11.0"


def test_what_cannot_change_rows_is_not_in_the_fingerprint(plan: Plan) -> None:
    parents = [
        Parent(kind="trees", version="1.0.0", content_hash="a"),
        Parent(kind="trees", version="1.1.0", content_hash="b"),
    ]
    models = [ModelIdentity(role="actor", name="m"), ModelIdentity(role="judge", name="j", revision="1")]
    base = replace(plan(), parents=parents, models=models)
    moved = [parents[1], parents[0].model_copy(update={"version": "9.9.9", "repo": "org/x", "commit": "c"})]
    same = replace(base, settings={"concurrency": 1}, parents=moved, models=models[::-1])
    assert same.fingerprint == base.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"generator": "tests/2"},
        {"configuration": {"seed": 1}},
        {"configuration": {}},
        {"parents": [Parent(kind="trees", version="1.0.0", content_hash="a")]},
        {"models": [ModelIdentity(role="actor", name="m")]},
        {"inputs": {"in.jsonl": "0" * 64}},
    ],
)
def test_what_can_change_rows_is_in_the_fingerprint(plan: Plan, change: dict[str, Any]) -> None:
    assert replace(plan(), **change).fingerprint != plan().fingerprint


@pytest.mark.parametrize("version", ["2.0.0", "0.1.0"])
def test_another_major_is_refused(tmp_path: Path, plan: Plan, version: str) -> None:
    with pytest.raises(UsageError, match=f"{version}: MAJOR is the schema's version, 1"):
        begin_build(plan(), tmp_path, version)
    assert not (tmp_path / "prompts" / version).exists()


@pytest.mark.parametrize(
    "version", ["1", "1.0", "v1.0.0", "1.0.0.0", "1.00.0", "1.0.-1", "1.0.0\n", "1.1\u0663.0", "../1.0.0"]
)
def test_no_version_is_refused(tmp_path: Path, plan: Plan, version: str) -> None:
    with pytest.raises(UsageError, match="is not a version"):
        begin_build(plan(), tmp_path, version)


def test_a_finished_version_is_immutable(tmp_path: Path, build: Make, plan: Plan) -> None:
    build(tmp_path)
    with pytest.raises(UsageError) as caught:
        begin_build(plan(seed=7), tmp_path, "1.0.0")
    assert "prompts@1.0.0 is finished and immutable" in str(caught.value)
    assert "seed (42 then, 7 now)" in str(caught.value)


def test_a_new_version_beside_an_unfinished_one_is_told(
    tmp_path: Path, begin: Begin, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    with begin(tmp_path):
        pass
    with begin(tmp_path):
        assert not caplog.messages, "it goes on"
    with begin(tmp_path, plan(seed=7)):
        (told,) = caplog.messages
    assert "prompts@1.0.0 is an unfinished build of another recipe" in told
    assert "(it differs in seed (42 then, 7 now)); this one begins 1.1.0" in told
    with begin(tmp_path, plan(seed=7)):
        assert len(caplog.messages) == 1


def test_an_unfinished_version_of_another_plan_is_refused(tmp_path: Path, begin: Begin, plan: Plan) -> None:
    with begin(tmp_path):
        pass
    with pytest.raises(UsageError, match=r"another recipe \(it differs in seed \(42 then, 7 now\)\)"):
        begin_build(plan(seed=7), tmp_path, "1.0.0")
    with begin(tmp_path, plan(seed=7)) as other:
        assert other.reference == "prompts@1.1.0"
    with begin(tmp_path, plan(seed=7), "1.0.0", fresh=True) as fresh:
        assert fresh.reference == "prompts@1.0.0"


def test_fresh_forgets_the_journal(tmp_path: Path, begin: Begin) -> None:
    with begin(tmp_path) as build:
        build.journal("units.jsonl").append({"unit": 1})
    with begin(tmp_path) as build:
        assert list(read_journal(build.work / "units.jsonl")) == [{"unit": 1}]
    with begin(tmp_path, fresh=True) as build:
        assert build.reference == "prompts@1.0.0"
        assert list(read_journal(build.work / "units.jsonl")) == []


def test_fresh_makes_the_next_version_beside_a_finished_one(tmp_path: Path, build: Make) -> None:
    first = build(tmp_path)
    assert build(tmp_path, fresh=True).reference == "prompts@1.1.0"
    assert validate_artifact(first) == []
    assert newest(tmp_path, "prompts").reference == "prompts@1.1.0"


def test_an_empty_version_hides_no_finished_one(tmp_path: Path, build: Make, plan: Plan) -> None:
    first = build(tmp_path)
    (tmp_path / "prompts" / "1.1.0").mkdir()  # another build was killed before it wrote down its plan
    assert begin_build(plan(), tmp_path) == first


def test_an_empty_version_hides_no_unfinished_one(tmp_path: Path, begin: Begin) -> None:
    with begin(tmp_path) as build:
        build.journal("units.jsonl").append({"unit": 1})
    (tmp_path / "prompts" / "1.1.0").mkdir()
    with begin(tmp_path) as build:
        assert build.reference == "prompts@1.0.0"
        assert list(read_journal(build.work / "units.jsonl")) == [{"unit": 1}]


def test_a_version_with_rows_of_somebody_else_is_not_taken(tmp_path: Path, build: Make) -> None:
    artifact = build(tmp_path)  # such as a copy that was cut before its manifest
    (artifact.folder / "manifest.json").unlink()
    assert build(tmp_path).reference == "prompts@1.1.0"
    assert artifact.data_files[0].is_file()


def test_an_error_before_any_work_frees_the_version(tmp_path: Path, begin: Begin, plan: Plan) -> None:
    with pytest.raises(OSError, match="no server"), begin(tmp_path):
        raise OSError("no server")
    with begin(tmp_path, plan(seed=7)) as build:
        assert build.reference == "prompts@1.0.0"


def test_an_error_after_some_work_keeps_it(tmp_path: Path, begin: Begin, plan: Plan) -> None:
    interrupted = begin(tmp_path)
    interrupted.journal("units.jsonl").append({"unit": 1})
    with pytest.raises(KeyboardInterrupt), interrupted:
        raise KeyboardInterrupt
    with begin(tmp_path, plan(seed=7)) as other:
        assert other.reference == "prompts@1.1.0"
    with begin(tmp_path) as build:
        assert list(read_journal(build.work / "units.jsonl")) == [{"unit": 1}]


def test_a_damaged_version_of_another_plan_is_no_obstacle(tmp_path: Path, build: Make, plan: Plan) -> None:
    build(tmp_path).data_files[0].unlink()
    assert build(tmp_path, plan=plan(seed=7)).reference == "prompts@1.1.0"


def test_a_version_of_another_schema_is_no_obstacle(tmp_path: Path, build: Make, plan: Plan) -> None:
    artifact = build(tmp_path)
    manifest = artifact.manifest.model_copy(update={"schema_version": 2, "version": "2.0.0"})
    shutil.move(artifact.folder, tmp_path / "prompts" / "2.0.0")
    (tmp_path / "prompts" / "2.0.0" / "manifest.json").write_text(manifest.model_dump_json())
    assert build(tmp_path).reference == "prompts@1.0.0"


def test_an_error_in_the_rows_leaves_a_build_that_continues(tmp_path: Path, begin: Begin, prompts: Frame) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        yield prompts("a")
        raise OSError("the server is gone")

    with begin(tmp_path) as build, pytest.raises(OSError, match="the server is gone"):
        build.finish(frames())
    assert not (build.folder / "manifest.json").exists()
    with begin(tmp_path) as build:
        assert validate_artifact(build.finish([prompts("a", "b")])) == []


def test_an_error_in_the_rows_frees_the_version_if_nothing_else_was_done(
    tmp_path: Path, begin: Begin, prompts: Frame
) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        yield prompts("a")
        raise OSError("the input is cut")

    with pytest.raises(OSError, match="the input is cut"), begin(tmp_path) as build:
        build.finish(frames())
    assert not build.folder.exists()
    with begin(tmp_path) as build:
        build.journal("units.jsonl").append({"unit": 1})
    with pytest.raises(OSError, match="the input is cut"), begin(tmp_path) as build:
        build.finish(frames())
    assert names(build.work) == {"build.json", "units.jsonl"}


# --- from a plan to an artifact in one call


def test_a_plan_is_built_once(tmp_path: Path, plan: Plan, prompts: Frame) -> None:
    made: list[str] = []

    def content(build: Build) -> BuildContent:
        made.append(build.reference)
        return BuildContent([prompts("a", "b")])

    first = build_artifact(plan(), content, tmp_path)
    assert validate_artifact(first) == []
    assert build_artifact(plan(), content, tmp_path) == first
    assert build_artifact(plan(), content, tmp_path, "1.0.0") == first
    assert made == ["prompts@1.0.0"]
    assert build_artifact(plan(), content, tmp_path, fresh=True).reference == "prompts@1.1.0"
    assert build_artifact(plan(seed=7), content, tmp_path, "1.5.0").reference == "prompts@1.5.0"
    assert made == ["prompts@1.0.0", "prompts@1.1.0", "prompts@1.5.0"]
    with pytest.raises(UsageError, match="finished and immutable"):
        build_artifact(plan(seed=8), content, tmp_path, "1.0.0")


def test_all_that_the_content_says_is_kept(tmp_path: Path, plan: Plan, prompts: Frame) -> None:
    refused: list[QuarantineRow] = []
    report = Report()

    def frames() -> Iterator[pl.DataFrame]:
        yield prompts("a", "b")
        refused.append(QuarantineRow("in.jsonl", 3, "duplicate_prompt", "a"))
        report.details["taken"] = 2

    def content(_: Build) -> BuildContent:
        return BuildContent(frames(), refused, report, by_design={"duplicate_prompt"})

    manifest = build_artifact(plan(), content, tmp_path, max_quarantine=0.0).manifest
    assert (manifest.rows, manifest.quarantine) == (2, {"duplicate_prompt": 1})
    assert manifest.details == {"taken": 2}


def test_the_allowed_share_of_refused_rows_is_passed_on(tmp_path: Path, plan: Plan, prompts: Frame) -> None:
    def content(_: Build) -> BuildContent:
        return BuildContent([prompts("a", "b", wrong_task=("b",))])

    with pytest.raises(QuarantineError, match="1 of 2 rows"):
        build_artifact(plan(), content, tmp_path)
    assert build_artifact(plan(), content, tmp_path, max_quarantine=0.5).reference == "prompts@1.0.0"


def test_what_a_build_was_working_on_is_there_when_its_plan_is_built_again(
    tmp_path: Path, plan: Plan, prompts: Frame
) -> None:
    def content(build: Build) -> BuildContent:
        done = [record["text"] for record in read_journal(build.work / "units.jsonl")]
        if not done:
            build.journal("units.jsonl").append({"text": "a"})
            raise OSError("no server")
        return BuildContent([prompts(*done)])

    with pytest.raises(OSError, match="no server"):
        build_artifact(plan(), content, tmp_path)
    assert build_artifact(plan(), content, tmp_path).scan().collect().equals(prompts("a"))


def test_the_folder_is_locked_while_the_content_is_made(tmp_path: Path, plan: Plan, prompts: Frame) -> None:
    def content(_: Build) -> BuildContent:
        with pytest.raises(BuildLockedError):
            begin_build(plan(), tmp_path)
        return BuildContent([prompts("a")])

    build_artifact(plan(), content, tmp_path)
    with pytest.raises(OSError, match="no server"):
        build_artifact(plan(seed=7), no_server, tmp_path)
    assert not (tmp_path / "prompts" / "1.1.0").exists()


def no_server(_: Build) -> BuildContent:
    raise OSError("no server")


# --- locks and kills


def test_a_second_build_is_refused_with_the_pid_of_the_first(
    tmp_path: Path, builder: dict[str, Any], builder_script: Path, begin: Begin
) -> None:
    command = [sys.executable, str(builder_script), str(tmp_path), "hold"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        for version in (None, "1.0.0"):
            with pytest.raises(BuildLockedError, match=rf"process {holder.pid} is building .*1\.0\.0"):
                begin_build(builder["PLAN"], tmp_path, version)
        with begin(tmp_path) as other:
            assert other.reference == "prompts@1.1.0"
        holder.stdin.close()
        assert holder.wait(timeout=30) == 0
    artifact, _ = builder["run"](tmp_path)
    assert artifact.reference == "prompts@1.0.0"


def test_a_second_build_in_this_process_is_refused_too(tmp_path: Path, begin: Begin, plan: Plan) -> None:
    with begin(tmp_path), pytest.raises(BuildLockedError, match=f"process {os.getpid()} "):
        begin_build(plan(), tmp_path)
    with begin(tmp_path) as build:
        assert build.reference == "prompts@1.0.0"


def check_after_a_kill(root: Path, builder: dict[str, Any]) -> Artifact:
    """Check what a killed build left, run it again, and check that nothing is lost or doubled."""
    folder = root / "prompts" / "1.0.0"
    if (folder / "manifest.json").exists():
        assert validate_artifact(open_artifact(folder)) == []
        done = builder["UNITS"]
    else:
        with pytest.raises(ArtifactError):
            resolve("prompts", root)
        done = len(list(read_journal(folder / ".build" / "units.jsonl")))
    artifact, repeated = builder["run"](root)
    assert repeated == builder["UNITS"] - done
    assert validate_artifact(artifact) == []
    assert sorted(artifact.scan().collect()["prompt_id"]) == builder["expected_rows"]()
    assert artifact.manifest.quarantine == {"not_json": 1, "task|regex": 1}
    assert len(quarantine(artifact.folder)) == 2
    assert not (artifact.folder / ".build").exists()
    assert resolve("prompts", root) == artifact
    assert builder["run"](root)[0] == artifact
    assert isinstance(artifact, Artifact)
    return artifact


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, builder_script: Path) -> list[Path]:
    """What is left by builds that were killed by SIGKILL before their first, second, ... rename."""
    roots: list[Path] = []
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        roots.append(tmp_path_factory.mktemp("killed"))
        command = [sys.executable, str(builder_script), str(roots[-1]), "kill", str(len(roots))]
        status = subprocess.run(command, check=False, timeout=60).returncode
    assert status == 0
    return roots[:-1]


@pytest.mark.slow
def test_a_build_killed_at_any_rename_can_be_finished(
    killed: list[Path], tmp_path: Path, builder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    assert len(killed) == 7  # build.json, two shards, data/, quarantine/, README.md, manifest.json
    for number, root in enumerate(killed):
        check_after_a_kill(shutil.copytree(root, tmp_path / str(number)), builder)


def test_a_killed_build_leaves_no_temporary_file_behind(
    killed: list[Path], tmp_path: Path, builder: dict[str, Any]
) -> None:
    left = set()
    for number, root in enumerate(killed):
        artifact, _ = builder["run"](shutil.copytree(root, tmp_path / str(number)))
        left |= {path.name for path in artifact.folder.rglob("*.tmp")}
    assert left == set()


# The calls between which a process can die and leave something else behind on disk.
SYSTEM_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


def photographed(monkeypatch: pytest.MonkeyPatch, root: Path, album: Path) -> list[str]:
    """Copy `root` to `album/N` before the Nth call that changes it: what SIGKILL at that moment would leave."""
    calls: list[str] = []
    busy = False

    def watch(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal busy
            if not busy:
                busy = True
                shutil.copytree(root, album / str(len(calls)))
                busy = False
                calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in SYSTEM_CALLS:
        watch(name)
    return calls


@pytest.fixture
def album(tmp_path: Path, builder: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What a build would leave if it were killed, once for each moment at which that differs."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    root = tmp_path / "root"
    root.mkdir()
    with monkeypatch.context() as watched:
        calls = photographed(watched, root, tmp_path / "album")
        builder["run"](root)
    assert set(calls) == set(SYSTEM_CALLS)
    return [tmp_path / "album" / str(number) for number in range(len(calls))]


@pytest.mark.slow
def test_a_build_killed_between_any_two_system_calls_can_be_finished(
    album: list[Path], builder: dict[str, Any]
) -> None:
    assert len(album) > 30
    hashes = {check_after_a_kill(root, builder).manifest.content_hash for root in album}
    assert len(hashes) == 1


def test_a_killed_build_leaves_no_empty_version_behind(album: list[Path], builder: dict[str, Any]) -> None:
    references = [builder["run"](root)[0].reference for root in album]
    assert set(references) == {"prompts@1.0.0"}


def test_a_manifest_without_thoughts_has_the_keys_that_earlier_releases_know() -> None:
    assert "reasoning_tokens" not in BuildUsage(requests=1).model_dump()
    thoughtful = BuildUsage(requests=1, completion_tokens=9, reasoning_tokens=5)
    assert BuildUsage.model_validate_json(thoughtful.model_dump_json()) == thoughtful
