"""What is pulled is checked before it counts, and what is foreign or damaged is refused with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from stairdata.hub.addresses import Address
from stairdata.hub.content import PushOptions
from stairdata.hub.lineage import lineage
from stairdata.hub.pull import open_reference, pull
from stairdata.hub.push import push
from stairdata_schemas import migrations
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import ArtifactError, HubError

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"
DATA = "data/train-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.hub.plots.available", lambda: False)


def change(*operations: Any) -> None:
    HfApi().create_commit(REPO, list(operations), commit_message="change", repo_type="dataset")


def change_manifest(artifact: Artifact, **values: Any) -> None:
    manifest = json.loads((artifact.folder / "manifest.json").read_text()) | values
    change(CommitOperationAdd("manifest.json", json.dumps(manifest).encode()))


def test_the_highest_version_a_tag_and_a_commit(lane: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    first, second = make("a"), make("b")
    commit = push(first, PushOptions(REPO)).commit
    push(second, PushOptions(REPO))
    root = tmp_path / "there"
    assert pull(Address(REPO), root).reference == "prompts@1.1.0"
    assert pull(Address(REPO, commit), root).manifest == first.manifest
    for revision in ("v1.0.0", "1.0.0", commit[:12], "main"):
        assert pull(Address(REPO, revision), root).kind == "prompts"
    hub.control(recount=True)
    pull(Address(REPO, "v1.0.0"), root)
    assert not [request for request in hub.requests if "parquet" in request or "/cas/" in request]


@pytest.mark.parametrize("revision", ["v9.0.0", "nothing", "deadbeef00"])
def test_a_revision_that_is_not_there(revision: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    push(make(), PushOptions(REPO))
    with pytest.raises(
        HubError, match=f"no (release|such revision|revision).*{'' if revision[0] == 'd' else revision}"
    ):
        pull(Address(REPO, revision), tmp_path / "there")


def test_a_repository_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="no dataset org/none on the Hub for this token"):
        pull(Address("org/none"), tmp_path)


def test_a_plain_dataset_is_refused_with_a_hint(hub: HubServer, tmp_path: Path) -> None:
    HfApi().create_repo(REPO, repo_type="dataset")
    change(CommitOperationAdd("data/train.parquet", b"x" * 600))
    for revision in (None, "main"):
        with pytest.raises(HubError, match=r"build prompts --set 'prompts.sources=\[\{hub: org/data\}\]'"):
            pull(Address(REPO, revision), tmp_path)


def test_a_gated_dataset_says_where_to_ask(hub: HubServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    push(make(), PushOptions(REPO, public=True))
    tokens = {"hf_test_write": ["write", "tester", "org"], "hf_other": ["write", "other"]}
    hub.control(tokens=tokens)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match="org/data is gated: ask for access on its page"):
        pull(Address(REPO), Path("nowhere"))


def test_a_file_damaged_on_the_way_is_refused_and_fetched_again(
    hub: HubServer, make: Make, tmp_path: Path, lfs_lane: None
) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    hub.control(shuffle_lfs=True)
    with pytest.raises(ArtifactError, match=r"has sha256 .*, its manifest says .*; it was damaged on the way"):
        pull(Address(REPO), tmp_path / "there")
    assert not (tmp_path / "there" / "prompts").exists()
    hub.control(shuffle_lfs=False)
    assert validate_artifact(pull(Address(REPO), tmp_path / "there")) == []


@pytest.mark.parametrize(
    ("operations", "words"),
    [
        ([CommitOperationDelete(DATA)], "lacks data/train-00000-of-00001.parquet, which its manifest lists"),
        ([CommitOperationAdd(DATA, b"x" * 700)], "is not the file that its manifest lists"),
        (
            [CommitOperationAdd("data/more.parquet", b"x" * 700)],
            "holds 'data/more.parquet', which its manifest",
        ),
        (
            [CommitOperationAdd("manifest.json", b"{}")],
            "manifest.json in org/data at .* is not a manifest",
        ),
        ([CommitOperationAdd("manifest.json", b"\xff")], "manifest.json in org/data"),
    ],
    ids=["missing", "other", "more", "empty manifest", "no text"],
)
def test_a_release_that_somebody_changed(
    operations: list[Any], words: str, hub: HubServer, make: Make, tmp_path: Path
) -> None:
    push(make(), PushOptions(REPO))
    change(*operations)
    hub.control(recount=True)
    with pytest.raises(ArtifactError, match=words):
        pull(Address(REPO, "main"), tmp_path / "there")
    assert not [request for request in hub.requests if request.endswith(DATA)]
    assert not (tmp_path / "there" / "prompts").exists()


@pytest.mark.parametrize(
    "path",
    ["../../evil.parquet", "/etc/passwd", "data/../../x.parquet", "data\\x.parquet", "data/loader.py", "README.md"],
)
def test_a_path_that_leaves_the_folder_is_refused(path: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    change_manifest(artifact, files=[{"path": path, "sha256": "0" * 64, "bytes": 1, "rows": 1}])
    with pytest.raises(ArtifactError, match="which is not a valid path of a data file"):
        pull(Address(REPO, "main"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("version", ["../../evil", "1.0.0/../..", "1.0", "/elsewhere"])
def test_a_version_that_leaves_the_folder_is_refused(version: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    change_manifest(artifact, version=version)
    with pytest.raises(ArtifactError, match="its manifest's version is wrong"):
        pull(Address(REPO, "main"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_config_that_leaves_the_folder_is_none(hub: HubServer, make: Make, tmp_path: Path) -> None:
    done = push(make(), PushOptions(REPO))
    HfApi().create_tag(REPO, repo_type="dataset", tag="..-v9.0.0", revision=done.commit)
    assert pull(Address(REPO), tmp_path / "there").reference == "prompts@1.0.0"
    operation = CommitOperationAdd("a b/manifest.json", (make().folder / "manifest.json").read_bytes())
    change(operation)
    assert pull(Address(REPO, "main"), tmp_path / "main").reference == "prompts@1.0.0"


def test_rows_that_break_the_schema_are_refused(hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    rows = artifact.scan().collect().with_columns(task=pl.lit("chatter"))
    path = tmp_path / "wrong.parquet"
    rows.write_parquet(path)
    from stairdata_schemas.manifest import FileEntry, content_hash, sha256_of_file

    entry = FileEntry(path=DATA, sha256=sha256_of_file(path), bytes=path.stat().st_size, rows=3)
    change(CommitOperationAdd(DATA, str(path)))
    change_manifest(artifact, files=[entry.model_dump()], content_hash=content_hash([entry]))
    with pytest.raises(ArtifactError, match=r"breaks the schema of prompts: .*task.* \(3 times"):
        pull(Address(REPO, "main"), tmp_path / "there")
    assert not (tmp_path / "there" / "prompts").exists()


def test_code_in_a_repository_is_neither_fetched_nor_run(hub: HubServer, make: Make, tmp_path: Path) -> None:
    push(make(), PushOptions(REPO))
    change(CommitOperationAdd("data.py", b"open('owned', 'w')"), CommitOperationAdd("conftest.py", b"1/0"))
    folder = pull(Address(REPO, "main"), tmp_path / "there").folder
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "data", "hub.json", "manifest.json"]


def test_another_artifact_of_that_version_is_never_overwritten(hub: HubServer, make: Make, tmp_path: Path) -> None:
    push(make("a"), PushOptions(REPO))
    mine = make("b", root="mine")
    before = (mine.folder / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"is not the prompts@1\.0\.0 of org/data.*--root"):
        pull(Address(REPO), tmp_path / "mine")
    assert (mine.folder / "manifest.json").read_bytes() == before
    (tmp_path / "half" / "prompts" / "1.0.0" / ".build").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="holds an unfinished build"):
        pull(Address(REPO), tmp_path / "half")


# -- references and lineage ----------------------------------------------------------------------------------


def test_a_hub_reference_is_an_input_and_its_commit_is_recorded(hub: HubServer, make: Make, tmp_path: Path) -> None:
    from stairdata.runs.inputs import Inputs

    done = push(make(), PushOptions(REPO))
    root = tmp_path / "work"
    artifact = Inputs([f"{REPO}@v1.0.0"], root).of("prompts")
    assert not (root / "prompts").exists()
    parent = artifact.as_parent()
    assert (parent.repo, parent.commit, parent.license) == (REPO, done.commit, "mit")
    hub.control(recount=True)
    assert open_reference(f"{REPO}@v1.0.0", root) == artifact
    assert not [request for request in hub.requests if request.endswith(DATA)]
    assert open_reference(str(artifact.folder), root) == artifact


def test_lineage_goes_on_where_the_root_ends(hub: HubServer, make: Make, tmp_path: Path) -> None:
    prompts = make()
    push(prompts, PushOptions(REPO))
    trees = make("t", root="trees", parents=(prompts.as_parent(),), license=None)
    push(trees, PushOptions("org/trees", config="trees"))
    child = make("c", root="child", parents=(trees.as_parent(),), license=None)
    top = lineage(child, tmp_path / "child")
    middle = top.parents[0]
    assert (middle.found, middle.where[:9], middle.rows) == (True, "org/trees", 1)
    assert (middle.parents[0].found, middle.parents[0].where[:8], middle.parents[0].rows) == (True, "org/data", 3)
    assert middle.parents[0].parents == []
    local = lineage(child, tmp_path / "trees")
    assert local.parents[0].where == str(trees.folder)
    hub.control(forget="org/trees")
    lost = lineage(child, tmp_path / "child").parents[0]
    assert not lost.found
    assert "no dataset org/trees" in lost.where


# -- migrations ----------------------------------------------------------------------------------------------


def test_an_older_schema_version_is_migrated_on_request(
    hub: HubServer, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current schema plays version 2 here: version 1 is the first there is."""
    old = make()
    push(old, PushOptions(REPO))
    for module in ("stairdata_schemas.kinds", "stairdata_schemas.artifacts", "stairdata_schemas.building"):
        monkeypatch.setattr(f"{module}.SCHEMA_VERSION", 2)
    monkeypatch.setattr("stairdata_schemas.migrations.SCHEMA_VERSION", 2)
    monkeypatch.setattr("stairdata.hub.pull.SCHEMA_VERSION", 2)
    root = tmp_path / "there"
    words = "schema version 1, this release reads 2; `stairdata pull org/data"
    with pytest.raises(ArtifactError, match=words):
        pull(Address(REPO), root)
    with pytest.raises(ArtifactError, match=words):
        open_reference(REPO, root)
    with pytest.raises(ArtifactError, match="no migration of prompts from schema version 1 to 2"):
        pull(Address(REPO), root, to_current=True)
    step = {1: lambda frame: frame.with_columns(category=pl.lit("migrated"))}
    monkeypatch.setitem(migrations.MIGRATIONS, "prompts", step)
    new = pull(Address(REPO), root, to_current=True)
    assert (new.reference, new.manifest.schema_version) == ("prompts@2.0.0", 2)
    assert new.scan().collect()["category"].to_list() == ["migrated"] * 3
    assert new.manifest.parents[0].repo == REPO
    assert "migrated from schema version 1" in new.manifest.notes[-1]
    assert validate_artifact(new) == []
    assert pull(Address(REPO), root, to_current=True) == new


def test_a_newer_schema_version_asks_for_a_newer_release(hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    change_manifest(artifact, schema_version=7)
    for migrate in (False, True):
        with pytest.raises(ArtifactError, match=re.escape("upgrade stairdata")):
            pull(Address(REPO, "main"), tmp_path / "there", to_current=migrate)
