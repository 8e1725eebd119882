from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata_schemas import artifacts, grammar, identity, writing
from stairdata_schemas.artifacts import (
    Artifact,
    Version,
    list_folders,
    newest,
    open_artifact,
    parse_version,
    resolve,
    validate_artifact,
    versions,
)
from stairdata_schemas.building import Build, BuildPlan
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, UsageError
from stairdata_schemas.kinds import features, polars_schema
from stairdata_schemas.manifest import content_hash, sha256_of_file
from stairdata_schemas.quarantine import QuarantineRow

Make = Callable[..., Artifact]
Begin = Callable[..., Build]
Plan = Callable[..., BuildPlan]
Frame = Callable[..., pl.DataFrame]


@pytest.fixture
def shards(tmp_path: Path, build: Make, prompts: Frame, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """An artifact of three shards and six rows, with a quarantine."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    frames = (prompts("a"), prompts("b", "c"), prompts("d", "e", "f"))
    return build(tmp_path / "artifacts", *frames, refused=(QuarantineRow("f", 1, "not_json", "{"),), max_quarantine=0.5)


def edit_manifest(artifact: Artifact, change: Callable[[dict[str, Any]], object]) -> None:
    path = artifact.folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def rules(folder: Path) -> set[str]:
    return {problem.rule for problem in validate_artifact(open_artifact(folder))}


def rewrite(artifact: Artifact, frame: pl.DataFrame) -> None:
    """Put other rows into the first file, with a manifest that agrees with it."""
    path = artifact.data_files[0]
    path.write_bytes(b"")
    frame.write_parquet(path)
    entry = {"sha256": sha256_of_file(path), "bytes": path.stat().st_size, "rows": len(frame)}
    files = [file.model_dump() for file in artifact.manifest.files]
    files[0] |= entry
    known = type(artifact.manifest).model_validate(artifact.manifest.model_dump() | {"files": files})
    rows = sum(file.rows for file in known.files)
    edit_manifest(
        artifact, lambda content: content.update(files=files, rows=rows, content_hash=content_hash(known.files))
    )


# --- references


def test_a_kind_names_its_newest_complete_version(tmp_path: Path, build: Make, begin: Begin, plan: Plan) -> None:
    build(tmp_path, version="1.9.0")
    build(tmp_path, plan=plan(seed=1), version="1.10.0")
    with begin(tmp_path, plan(seed=2), "1.11.0"):
        pass
    assert resolve("prompts", tmp_path).reference == "prompts@1.10.0"
    assert newest(tmp_path, "prompts").reference == "prompts@1.10.0"
    assert resolve("prompts@1.9.0", tmp_path).reference == "prompts@1.9.0"
    assert versions(tmp_path, "prompts") == [Version(1, 9, 0), Version(1, 10, 0), Version(1, 11, 0)]
    with pytest.raises(ArtifactError, match="incomplete"):
        resolve("prompts@1.11.0", tmp_path)


def test_dash_and_underscore_are_equal_in_references(tmp_path: Path, begin: Begin) -> None:
    row = {
        "prompt_id": identity.prompt_id("p"),
        "prompt": "p",
        "task": "safety",
        "steps": [{"title": "T:", "body": "b"}],
        "output": "o",
        "completion": grammar.render([grammar.Step("T:", "b")], "o"),
    }
    with begin(tmp_path, BuildPlan("structured_cot", "tests/1", {})) as build:
        artifact = build.finish([pl.DataFrame([row], schema=polars_schema("structured_cot"))])
    for reference in ("structured_cot", "structured-cot", "structured-cot@1.0.0", "structured_cot@1.0.0"):
        assert resolve(reference, tmp_path) == artifact
    assert validate_artifact(artifact) == []


def test_a_path_is_a_reference(tmp_path: Path, build: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = build(tmp_path / "artifacts")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(artifact.folder, tmp_path / "elsewhere" / "copy")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for reference in (str(artifact.folder), "./copy", "copy", "../artifacts/prompts/1.0.0", "copy/", "./copy/."):
        assert resolve(reference, Path("nowhere")).manifest == artifact.manifest


def test_a_folder_with_a_manifest_comes_before_a_kind(
    tmp_path: Path, build: Make, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = build(tmp_path / "artifacts")
    here = build(tmp_path / "other", plan=plan(seed=7), version="1.5.0")
    shutil.copytree(here.folder, tmp_path / "cwd" / "prompts")
    monkeypatch.chdir(tmp_path / "cwd")
    assert resolve("prompts", tmp_path / "artifacts").reference == "prompts@1.5.0"
    (tmp_path / "cwd" / "prompts" / "manifest.json").unlink()
    assert resolve("prompts", tmp_path / "artifacts") == there


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("trees", "no complete trees under .*stairdata build trees"),
        ("preference-pairs", "stairdata build preference-pairs"),
        ("prompts@1.3.0", r"no prompts@1\.3\.0 under .*versions there: 1\.0\.0"),
        ("trees@1.0.0", "versions there: none"),
        ("./nothing", "no artifact folder at './nothing'"),
        ("/nothing/at/all", "no artifact folder"),
        ("org/name", "names no artifact"),
        ("chatter", "KIND one of prompts, structured_cot"),
        ("", "names no artifact"),
        ("a\x1b[2J\x00b", r"\\x1b\[2J\\x00b' names no artifact"),
    ],
)
def test_a_reference_to_nothing(tmp_path: Path, build: Make, reference: str, message: str) -> None:
    build(tmp_path)
    with pytest.raises(ArtifactNotFoundError, match=message):
        resolve(reference, tmp_path)


@pytest.mark.parametrize("version", ["1", "newest", "v1.0.0", "1.0", "../1.0.0", "1.0.0/../../x"])
def test_a_reference_with_no_version(tmp_path: Path, build: Make, version: str) -> None:
    build(tmp_path)
    with pytest.raises(UsageError, match=r"is not a version; write three numbers, such as 1\.0\.0"):
        resolve(f"prompts@{version}", tmp_path)


def test_a_folder_without_manifest_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest\.json: the artifact is incomplete; run its build again"):
        resolve(str(tmp_path), tmp_path)


def test_versions_are_compared_as_numbers() -> None:
    assert parse_version("1.10.0") > parse_version("1.9.9") > parse_version("1.9.0")
    assert str(parse_version("0.10.200")) == "0.10.200"


def test_folders_are_listed_complete_or_not(tmp_path: Path, build: Make, begin: Begin, plan: Plan) -> None:
    build(tmp_path)
    with begin(tmp_path, plan(seed=1)), begin(tmp_path, BuildPlan("trees", "tests/1", {})):
        pass
    (tmp_path / "prompts" / "notes").mkdir()
    (tmp_path / "prompts" / "1.5").mkdir()
    (tmp_path / "prompts" / "1.7.0").write_text("a file")
    (tmp_path / "chatter" / "1.0.0").mkdir(parents=True)
    assert list(list_folders(tmp_path)) == [
        ("prompts", Version(1, 0, 0), tmp_path / "prompts" / "1.0.0"),
        ("prompts", Version(1, 1, 0), tmp_path / "prompts" / "1.1.0"),
        ("trees", Version(1, 0, 0), tmp_path / "trees" / "1.0.0"),
    ]
    assert list(list_folders(tmp_path / "nowhere")) == []


def test_a_parent_is_known_by_its_content(tmp_path: Path, build: Make) -> None:
    artifact = build(tmp_path)
    parent = artifact.as_parent()
    assert (parent.kind, parent.version) == ("prompts", "1.0.0")
    assert parent.content_hash == content_hash(artifact.manifest.files)


# --- reading


@pytest.mark.slow
def test_an_artifact_loads_with_datasets_alone(shards: Artifact, tmp_path: Path) -> None:
    script = (
        "import json, sys; from datasets import load_dataset\n"
        "loaded = load_dataset(sys.argv[1])\n"
        "named = load_dataset(sys.argv[1], 'prompts', split='train')\n"
        "print(json.dumps([list(loaded), loaded['train']['prompt'][:], named.num_rows, named.column_names]))\n"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DATASETS_CACHE": str(tmp_path / "hf" / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", script, str(shards.folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [["train"], list("abcdef"), 6, list(polars_schema("prompts"))]


def test_an_artifact_loads_as_a_dataset(shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = shards.dataset()
    assert loaded["prompt"][:] == list("abcdef")
    assert loaded.features == features("prompts")


def test_a_folder_that_datasets_takes_for_an_archive_is_refused(shards: Artifact, tmp_path: Path) -> None:
    place = tmp_path / "run::1" / "prompts"
    place.mkdir(parents=True)
    shards.folder.rename(place / "1.0.0")
    with pytest.raises(ArtifactError, match="'::' in its path; rename or move it"):
        Artifact(place / "1.0.0", shards.manifest).dataset()


def test_an_artifact_loads_with_polars_alone(shards: Artifact, prompts: Frame) -> None:
    frame = pl.read_parquet(f"{shards.folder}/data/*.parquet")
    assert frame.equals(prompts(*"abcdef"))
    assert frame.schema == polars_schema("prompts")
    assert shards.scan().collect().equals(frame)


SIGNS_OF_PATTERNS = ["run[1]", "all*", "what?", "{a,b}", "~home", "[!x]"]


@pytest.mark.parametrize("name", SIGNS_OF_PATTERNS)
def test_a_folder_whose_name_looks_like_a_pattern(
    name: str, tmp_path: Path, build: Make, prompts: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    artifact = build(Path(name) / "deeper", prompts("a", "b"), prompts("c"))
    assert artifact.scan().collect()["prompt"].to_list() == ["a", "b", "c"]
    assert artifact.dataset()["prompt"][:] == ["a", "b", "c"]
    assert validate_artifact(artifact) == []


def test_a_scan_of_files_that_are_not_there_is_an_error(shards: Artifact) -> None:
    shards.data_files[1].unlink()
    with pytest.raises(ArtifactError, match=r"train-00001-of-00003.parquet is missing; build or pull"):
        shards.scan()
    with pytest.raises(ArtifactError, match="the list of data files is empty"):
        artifacts.scan_files([])


def test_pieces_of_a_file_are_of_bounded_size(tmp_path: Path, build: Make, prompts: Frame) -> None:
    frame = prompts(*(f"prompt {number}" for number in range(25)))
    pieces = list(artifacts.iterate_frames(build(tmp_path, frame).data_files[0], rows=10))
    assert [len(piece) for piece in pieces] == [10, 10, 5]
    assert pl.concat(pieces).equals(frame)


# --- tampering


def test_a_sound_artifact_has_no_problems(shards: Artifact) -> None:
    assert rules(shards.folder) == set()


def test_a_flipped_byte_is_reported(shards: Artifact) -> None:
    path = shards.data_files[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    problems = validate_artifact(open_artifact(shards.folder))
    assert [(problem.where, problem.rule) for problem in problems] == [("data/train-00001-of-00003.parquet", "sha256")]
    assert shards.manifest.files[1].sha256 in problems[0].example


def test_a_cut_file_is_refused(shards: Artifact) -> None:
    path = shards.data_files[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"train-00001-of-00003.parquet has \d+ bytes, the manifest says \d+"):
        open_artifact(shards.folder)


def test_a_deleted_file_is_refused(shards: Artifact) -> None:
    shards.data_files[2].unlink()
    with pytest.raises(ArtifactError, match=r"train-00002-of-00003.parquet is missing"):
        open_artifact(shards.folder)


@pytest.mark.parametrize("name", ["train-00003-of-00004.parquet", "notes.txt", ".hidden"])
def test_an_added_file_is_reported(shards: Artifact, name: str) -> None:
    shutil.copy(shards.data_files[0], shards.folder / "data" / name)
    problems = validate_artifact(open_artifact(shards.folder))
    assert [(problem.where, problem.rule) for problem in problems] == [(f"data/{name}", "not_in_the_manifest")]


@pytest.mark.parametrize(
    "path",
    [
        "../../x",
        "data/../../x.parquet",
        "/etc/passwd",
        "data/other.parquet",
        "data/train-00000-of-00003.parquet/../../../x",
        "quarantine/refused.parquet",
        "data/train-0-of-3.parquet",
        "",
    ],
)
def test_a_path_that_leaves_the_data_is_refused(shards: Artifact, path: str) -> None:
    edit_manifest(shards, lambda content: content["files"][0].update(path=path))
    with pytest.raises(ArtifactError, match="is not a valid path of a data file"):
        open_artifact(shards.folder)


def test_a_truncated_manifest_is_refused(shards: Artifact) -> None:
    path = shards.folder / "manifest.json"
    content = path.read_bytes()
    for end in range(0, len(content.rstrip()), 97):
        path.write_bytes(content[:end])
        with pytest.raises(ArtifactError, match="is not a manifest this release reads"):
            open_artifact(shards.folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"\xff\xfe", b'{"kind": "prompts"}'])
def test_a_manifest_of_other_content_is_refused(shards: Artifact, content: bytes) -> None:
    (shards.folder / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_artifact(shards.folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema_version": 2}, "has schema version 2; this release reads version 1"),
        ({"schema_version": 0}, "has schema version 0"),
        ({"kind": "chatter"}, "unknown kind 'chatter'"),
        ({"kind": "../prompts"}, "unknown kind"),
        ({"rows": "many"}, "rows: Input should be a valid integer"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"manifest_format": 2}, "manifest"),
    ],
)
def test_a_manifest_that_this_release_does_not_read_is_refused(
    shards: Artifact, values: dict[str, Any], message: str
) -> None:
    edit_manifest(shards, lambda content: content.update(values))
    with pytest.raises(ArtifactError, match=message):
        open_artifact(shards.folder)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda content: content.update(rows=7), "rows"),
        (lambda content: content.update(content_hash="0" * 64), "content_hash"),
        (lambda content: content["files"][0].update(rows=2), "rows"),
        (lambda content: content["files"][0].update(sha256="0" * 64), "sha256"),
        (lambda content: content["files"].pop(), "not_in_the_manifest"),
        (lambda content: content["files"].append(content["files"][0]), "primary_key"),
        (lambda content: content.update(kind="evaluations"), "columns"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_reported(
    shards: Artifact, change: Callable[[dict[str, Any]], object], rule: str
) -> None:
    edit_manifest(shards, change)
    assert rule in rules(shards.folder)


def test_a_manifest_that_lists_no_files_is_refused(shards: Artifact) -> None:
    edit_manifest(shards, lambda content: content.update(files=[], rows=0))
    shutil.rmtree(shards.folder / "data")
    with pytest.raises(ArtifactError):
        open_artifact(shards.folder)


def test_a_file_that_is_no_parquet_is_reported(shards: Artifact) -> None:
    path = shards.data_files[0]
    path.write_bytes(b"hello")
    entry = {"sha256": sha256_of_file(path), "bytes": 5}
    edit_manifest(shards, lambda content: content["files"][0].update(entry))
    assert rules(shards.folder) >= {"content_hash"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"task": pl.lit("chatter")}, "task|regex"),
        ({"source": pl.lit(None, pl.String)}, "source|nullability"),
        ({"prompt": pl.lit("another text")}, "prompt_id"),
        ({"prompt_id": pl.lit("no id")}, "prompt_id|regex"),
        ({"prompt_id": pl.lit(identity.prompt_id("d")), "prompt": pl.lit("d")}, "primary_key"),
        ({"task": pl.lit(1)}, "columns"),
        ({"surprise": pl.lit("x")}, "columns"),
    ],
)
def test_rows_that_break_the_schema_are_reported(
    shards: Artifact, prompts: Frame, change: dict[str, pl.Expr], rule: str
) -> None:
    rewrite(shards, prompts("a").with_columns(**change))
    assert rule in rules(shards.folder)


def test_sound_rows_with_a_manifest_that_agrees_are_sound(shards: Artifact, prompts: Frame) -> None:
    rewrite(shards, prompts("x", "y"))
    assert rules(shards.folder) == set()


def test_a_missing_column_is_reported(shards: Artifact, prompts: Frame) -> None:
    rewrite(shards, prompts("a").drop("source", "task"))
    assert [problem.example for problem in validate_artifact(open_artifact(shards.folder))] == ["source, task"]


@pytest.mark.parametrize(
    "change",
    [
        {"completion": "no grammar"},
        {"output": "another"},
        {"steps": [{"title": "T:", "body": "another"}]},
        {"steps": [{"title": "T:", "body": "b"}, {"title": "U:", "body": "c"}]},
        {"completion": grammar.render([grammar.Step("T:", "b")], "o") + "\n"},
    ],
)
def test_a_completion_that_is_not_its_steps_is_reported(tmp_path: Path, begin: Begin, change: dict[str, Any]) -> None:
    rows = [
        {
            "prompt_id": identity.prompt_id(name),
            "prompt": name,
            "task": "safety",
            "steps": [{"title": "T:", "body": "b"}],
            "output": "o",
            "completion": grammar.render([grammar.Step("T:", "b")], "o"),
        }
        for name in ("p", "q")
    ]
    rows[1] |= change
    with begin(tmp_path, BuildPlan("structured_cot", "tests/1", {})) as build:
        artifact = build.finish([pl.DataFrame(rows, schema=polars_schema("structured_cot"))])
    problems = validate_artifact(artifact)
    assert [(problem.rule, problem.violations) for problem in problems] == [("grammar", 1)]
    assert problems[0].example == identity.prompt_id("q")


def test_where_no_reviews_are_the_message_names_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="make one with `stairdata review pull`"):
        resolve("reviews", tmp_path)
