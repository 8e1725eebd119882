"""Push and pull over both lanes, against a Hub in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from stairdata.hub.addresses import Address
from stairdata.hub.content import PushOptions, prepare
from stairdata.hub.pull import pull
from stairdata.hub.push import make_plan, publish, push
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.cards import card as cards
from stairdata_schemas.errors import HubError, PublishError, ReleaseConflictError
from stairdata_schemas.manifest import sha256_of_file
from tests.stairdata.hub.conftest import make_shards, pair_rows

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"


def test_a_release_comes_back_as_it_was(lane: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    done = push(artifact, PushOptions(REPO))
    assert (done.tag, done.was_there) == ("v1.0.0", False)
    there = hub.repo(REPO)
    assert (there["private"], there["gated"]) == (True, "manual")
    assert there["tags"] == {"v1.0.0": done.commit}
    assert there["commits"] == ["Release v1.0.0", "initial commit"]
    pulled = pull(Address(REPO, "v1.0.0"), tmp_path / "other")
    assert pulled.folder == tmp_path / "other" / "prompts" / "1.0.0"
    assert validate_artifact(pulled) == []
    assert pulled.manifest == artifact.manifest
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["prompts"]
    origin = pulled.as_parent()
    assert (origin.repo, origin.commit) == (REPO, done.commit)


def files_of(there: dict[str, Any], tag: str | None = None) -> set[str]:
    found = there["trees"][tag] if tag else there["files"]
    return set(found) - {".gitattributes"}


def test_a_tag_with_the_same_content_is_success_and_nothing_is_sent(lane: str, hub: HubServer, make: Make) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    hub.control(recount=True)
    assert push(artifact, PushOptions(REPO)).was_there
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_a_tag_with_other_content_is_an_error_that_names_the_files(hub: HubServer, make: Make) -> None:
    first = push(make("a"), PushOptions(REPO))
    hub.control(recount=True)
    with pytest.raises(
        ReleaseConflictError, match=r"v1\.0\.0 already.*data/train-00000-of-00001.parquet.*manifest.json"
    ):
        push(make("b", root="other"), PushOptions(REPO))
    assert hub.repo(REPO)["tags"] == {"v1.0.0": first.commit}
    assert {request.split()[0] for request in hub.requests} == {"GET"}


@pytest.mark.slow
def test_a_new_version_replaces_the_files_of_the_old_one_in_one_commit(
    lane: str, hub: HubServer, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stairdata_schemas.writing.SHARD_BYTES", 1)
    frames = pair_rows(6)
    monkeypatch.setattr("stairdata_schemas.writing.ROW_GROUP_ROWS", 2)
    push(make_shards(tmp_path, frames, 3), PushOptions(REPO))
    assert len([path for path in hub.repo(REPO)["files"] if path.startswith("data/")]) == 3
    push(make(frame=pair_rows(2), rows=2), PushOptions(REPO))
    there = hub.repo(REPO)
    assert [path for path in there["files"] if path.startswith("data/")] == ["data/train-00000-of-00001.parquet"]
    assert len([path for path in there["trees"]["v1.0.0"] if path.startswith("data/")]) == 3
    assert there["commits"] == ["Release v1.1.0", "Release v1.0.0", "initial commit"]


@pytest.mark.slow
def test_more_than_a_hundred_shards_are_one_commit(
    lane: str, hub: HubServer, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("stairdata_schemas.writing.SHARD_BYTES", 1)
    hub.control(page=50)
    artifact = make_shards(tmp_path, pair_rows(130), 130)
    assert len(artifact.manifest.files) == 130
    push(artifact, PushOptions(REPO))
    assert hub.repo(REPO)["commits"] == ["Release v1.0.0", "initial commit"]
    hub.control(redirect=lane == "lfs")
    pulled = pull(Address(REPO, "v1.0.0"), tmp_path / "there")
    assert validate_artifact(pulled) == []


def test_a_large_file_goes_in_parts_and_comes_back_from_another_origin(
    lfs_lane: None, hub: HubServer, make: Make, tmp_path: Path
) -> None:
    hub.control(multipart_over=1000, part_bytes=700, redirect=True)
    push(make(frame=pair_rows(40)), PushOptions(REPO))
    assert [request for request in hub.requests if request.startswith("PUT /lfs/") and request.endswith("/3")]
    assert validate_artifact(pull(Address(REPO), tmp_path / "there")) == []


def test_configs_stand_beside_each_other_with_one_card(lane: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    prompts, pairs = make(), make(frame=pair_rows(4))
    assert push(prompts, PushOptions(REPO, config="prompts")).tag == "prompts-v1.0.0"
    assert push(pairs, PushOptions(REPO, config="preference_pairs")).tag == "preference_pairs-v1.0.0"
    card = hub_text(REPO, "README.md")
    head = cards.read_head(card)
    assert [entry["config_name"] for entry in head["configs"]] == ["preference_pairs", "prompts"]
    assert cards.default_config(card) == "prompts"
    assert {entry["config_name"] for entry in head["dataset_info"]} == {"preference_pairs", "prompts"}
    assert list(cards.read_changelog(card)) == ["preference_pairs-v1.0.0", "prompts-v1.0.0"]
    again = make(frame=pair_rows(5), rows=5)
    push(again, PushOptions(REPO, config="preference_pairs", default=True))
    assert cards.default_config(hub_text(REPO, "README.md")) == "preference_pairs"
    root = tmp_path / "there"
    assert pull(Address(REPO), root).reference == "preference_pairs@1.1.0"
    assert pull(Address(REPO, "prompts-v1.0.0"), root).reference == "prompts@1.0.0"
    assert pull(Address(REPO, "v1.0.0"), root, "preference_pairs").reference == "preference_pairs@1.0.0"
    with pytest.raises(
        HubError, match=r"no release 'v1\.0\.0'.*that version is there as preference_pairs-v1\.0\.0, prompts-v1\.0\.0"
    ):
        pull(Address(REPO, "v1.0.0"), root)


def hub_text(repo: str, path: str, revision: str = "main") -> str:
    from stairdata.hub.client import read

    return read(repo, path, revision).decode()


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (None, "prompts", "holds prompts at its root, so it can't have configs"),
        ("prompts", None, "holds several configs (prompts); name one with --config"),
    ],
)
def test_root_and_configs_do_not_mix(
    first: str | None, second: str | None, words: str, hub: HubServer, make: Make
) -> None:
    push(make("a"), PushOptions(REPO, config=first))
    with pytest.raises(PublishError, match=re.escape(words)):
        push(make("b"), PushOptions(REPO, config=second))


def test_one_kind_a_repository(hub: HubServer, make: Make) -> None:
    push(make("a"), PushOptions(REPO))
    with pytest.raises(PublishError, match="holds prompts where preference_pairs would go; use another --repo"):
        push(make(frame=pair_rows(2)), PushOptions(REPO))


def test_files_of_others_are_not_replaced(hub: HubServer, make: Make) -> None:
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset", private=True)
    api.update_repo_settings(REPO, repo_type="dataset", gated="manual")
    operation = CommitOperationAdd("data/other.parquet", b"rows")
    api.create_commit(REPO, [operation], commit_message="mine", repo_type="dataset")
    with pytest.raises(PublishError, match=r"stairdata did not publish \('data/other.parquet'\)"):
        push(make(), PushOptions(REPO))


@pytest.mark.slow
def test_an_older_version_does_not_take_the_place_of_a_newer_one(lane: str, hub: HubServer, make: Make) -> None:
    old, new = make("a"), make("b")
    push(new, PushOptions(REPO))
    done = push(old, PushOptions(REPO))
    there = hub.repo(REPO)
    assert done.tag == "v1.0.0"
    assert there["branches"] == {"main": there["tags"]["v1.1.0"]}
    assert there["files"]["manifest.json"] == sha256(new.folder / "manifest.json")
    assert there["trees"]["v1.0.0"]["manifest.json"] == sha256(old.folder / "manifest.json")
    assert push(old, PushOptions(REPO)).was_there
    push(make("c"), PushOptions(REPO))
    assert list(cards.read_changelog(hub_text(REPO, "README.md"))) == ["v1.2.0", "v1.1.0", "v1.0.0"]


def sha256(path: Path) -> str:
    return sha256_of_file(path)


@pytest.mark.slow
def test_eight_pushes_at_once_all_land(lane: str, hub: HubServer, make: Make) -> None:
    """Four configs, two versions each; the server lets the first eight commits race for certain."""
    artifacts = [make(name, str(version), root=f"artifacts-{name}") for name in "abcd" for version in (0, 1)]
    hub.control(hold=8)

    def publish(artifact: Artifact) -> str:
        return push(artifact, PushOptions(REPO, config=artifact.folder.parents[1].name.removeprefix("artifacts-"))).tag

    with ThreadPoolExecutor(8) as pool:
        tags = list(pool.map(publish, artifacts))
    there = hub.repo(REPO)
    assert (
        sorted(there["tags"]) == sorted(tags) == sorted(f"{name}-v1.{minor}.0" for name in "abcd" for minor in (0, 1))
    )
    for artifact, tag in zip(artifacts, tags, strict=True):
        prefix = tag.partition("-")[0]
        assert there["trees"][tag][f"{prefix}/manifest.json"] == sha256(artifact.folder / "manifest.json")
        if artifact.manifest.version == "1.1.0":
            assert there["files"][f"{prefix}/manifest.json"] == sha256(artifact.folder / "manifest.json")
    assert list(there["branches"]) == ["main"]
    assert [entry["config_name"] for entry in cards.read_head(hub_text(REPO, "README.md"))["configs"]] == list("abcd")


def test_the_same_release_pushed_twice_at_once_is_one(lane: str, hub: HubServer, make: Make) -> None:
    artifact = make()
    hub.control(hold=2)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: push(artifact, PushOptions(REPO)), range(2)))
    assert done[0].commit == done[1].commit
    assert hub.repo(REPO)["commits"] == ["Release v1.0.0", "initial commit"]


def test_another_release_of_that_version_at_once_is_a_conflict(hub: HubServer, make: Make) -> None:
    artifacts = [make("a", root="one"), make("b", root="two")]
    hub.control(hold=2)

    def publish(artifact: Artifact) -> str:
        try:
            return push(artifact, PushOptions(REPO)).tag
        except ReleaseConflictError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(publish, artifacts))
    assert said[1] == "v1.0.0"
    assert "other content" in said[0]
    there = hub.repo(REPO)
    assert there["trees"]["v1.0.0"]["manifest.json"] in {sha256(one.folder / "manifest.json") for one in artifacts}
    assert there["files"] == there["trees"]["v1.0.0"]


def test_a_card_that_somebody_changed_meanwhile_is_merged(hub: HubServer, make: Make) -> None:
    push(make("a"), PushOptions(REPO))
    begin, end = cards._marks("notes")
    edited = hub_text(REPO, "README.md").replace(f"{begin}\n{end}", f"{begin}\nWritten on the Hub.\n{end}")
    hub.control(before={"/commit/": f"{REPO}|README.md|{edited}"})
    push(make("b"), PushOptions(REPO))
    there = hub.repo(REPO)
    assert there["commits"][:2] == ["Release v1.1.0", "stranger"]
    assert cards.user_text(hub_text(REPO, "README.md")) == {"notes": "Written on the Hub."}


@pytest.mark.parametrize("path", ["extra.py", "data/train-00000-of-00001.parquet"])
def test_anything_else_that_somebody_changed_meanwhile_stops_the_push(path: str, hub: HubServer, make: Make) -> None:
    push(make("a"), PushOptions(REPO))
    hub.control(before={"/commit/": f"{REPO}|{path}|strange"})
    with pytest.raises(ReleaseConflictError, match=f"somebody else changed '{path}' in org/data meanwhile"):
        push(make("b"), PushOptions(REPO))
    assert list(hub.repo(REPO)["tags"]) == ["v1.0.0"]
    assert hub.repo(REPO)["commits"][0] == "stranger"


def test_a_file_that_changes_while_it_is_uploaded_is_not_published(lane: str, hub: HubServer, make: Make) -> None:
    plan = make_plan(prepare(make(), PushOptions(REPO)))
    path = next(iter(plan.release.data.values()))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(PublishError, match="changed while it was uploaded"):
        publish(plan)
    assert hub.repo(REPO)["commits"] == ["initial commit"]


def test_an_invalid_or_unfinished_artifact_is_refused_before_the_first_request(hub: HubServer, make: Make) -> None:
    artifact = make()
    path = artifact.data_files[0]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(PublishError, match=r"is not valid.*sha256"):
        push(artifact, PushOptions(REPO))
    heavy = make("a", "b", "c", "d", root="heavy", refused=2)
    with pytest.raises(PublishError, match=r"2 of 6 rows refused \(broken 2\), more than 5%"):
        push(heavy, PushOptions(REPO))
    assert hub.requests == []
    push(heavy, PushOptions(REPO, max_quarantine=0.5))


def test_a_dry_run_changes_nothing_and_says_what_would_change(hub: HubServer, make: Make) -> None:
    plan = make_plan(prepare(make("a"), PushOptions(REPO)))
    assert (plan.repository, plan.access.private, plan.access.gate) == (None, True, "manual")
    changes = {change.path: change.change for change in plan.changes}
    assert set(changes.values()) == {"new"}
    assert {"README.md", "manifest.json", "croissant.json", "data/train-00000-of-00001.parquet"} <= set(changes)
    assert {request.split()[0] for request in hub.requests} == {"GET"}
    push(make("a"), PushOptions(REPO))
    plan = make_plan(prepare(make("b"), PushOptions(REPO)))
    changes = {change.path: change.change for change in plan.changes}
    assert changes["data/train-00000-of-00001.parquet"] == "changed"
    assert not hub.repo(REPO)["commits"][0].endswith("v1.1.0")


@pytest.mark.parametrize("token", ["hf_test_read", "hf_wrong_token", None])
def test_a_token_that_may_not_write_is_one_message_without_the_token(
    token: str | None, hub: HubServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.control(tokens={"hf_test_write": ["write", "tester", "org"], "hf_test_read": ["read", "tester", "org"]})
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError) as caught:
        push(make(), PushOptions(REPO))
    assert "hf_" not in str(caught.value)
    assert "token" in str(caught.value)
    assert not hub.has(REPO)
