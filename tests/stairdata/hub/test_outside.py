"""What others read: datasets (also streaming), Croissant, the pictures, the card; and what training reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import polars as pl
import pytest
from dataframely.random import Generator

from stairdata.hub import plots
from stairdata.hub.client import read
from stairdata.hub.content import PushOptions
from stairdata.hub.push import push
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.cards import card as cards
from stairdata_schemas.cards.croissant import croissant
from stairdata_schemas.errors import PublishError, ReleaseConflictError
from stairdata_schemas.kinds import KINDS, features, polars_schema, row_schema
from stairdata_schemas.manifest import FileEntry, Manifest
from tests.stairdata.hub.conftest import pair_rows, prompt_rows

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"


def load(cache: Path, config: str, revision: str, **options: Any) -> Any:
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()  # it remembers what was not there
    return datasets.load_dataset(REPO, config, revision=revision, cache_dir=str(cache), split="train", **options)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_a_release(streaming: bool, lane: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    push(make(frame=pair_rows(5)), PushOptions(REPO))
    push(make(frame=pair_rows(7), rows=7), PushOptions(REPO))
    for revision, count in (("v1.0.0", 5), ("v1.1.0", 7)):
        rows = load(tmp_path / revision, "preference_pairs", revision, streaming=streaming)
        assert len(list(rows)) == count
        assert rows.features == features("preference_pairs")


@pytest.mark.slow
def test_datasets_loads_each_config(hub: HubServer, make: Make, tmp_path: Path) -> None:
    push(make("a"), PushOptions(REPO, config="prompts"))
    push(make(frame=pair_rows(4)), PushOptions(REPO, config="pairs"))
    assert len(load(tmp_path, "prompts", "prompts-v1.0.0")) == 1
    assert len(load(tmp_path, "pairs", "pairs-v1.0.0")) == 4
    assert load(tmp_path, "pairs", "pairs-v1.0.0")[0]["granularity"] == "step"


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_written_as_datasets_would(kind: str) -> None:
    expected = datasets.DatasetInfo(features=features(kind))._to_yaml_dict()["features"]
    assert cards.yaml_features(kind) == expected


def manifest(kind: str) -> Manifest:
    entry = FileEntry(path="data/train-00000-of-00001.parquet", sha256="a" * 64, bytes=3, rows=1)
    return Manifest(
        kind=kind, version="1.0.0", schema_version=1, created_at="2026-01-02T03:04:05Z", stairdata_version="0.1.0",
        generator="tests/1", configuration={}, fingerprint="f" * 64, content_hash="c" * 64, rows=1, files=[entry],
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_croissant_metadata_of_every_kind_is_valid(kind: str) -> None:
    import mlcroissant

    described = croissant(manifest(kind), REPO, f"https://huggingface.co/datasets/{REPO}", "mit")
    dataset = mlcroissant.Dataset(jsonld=described)
    assert dataset.metadata.issues.errors == set()
    names = {field["name"] for field in described["recordSet"][0]["field"]}
    assert names == {f"{kind}/{name}" for name in row_schema(kind).column_names()}


def test_croissant_metadata_in_the_repository_reads_the_rows(hub: HubServer, make: Make) -> None:
    import mlcroissant

    artifact = make("one", "two")
    push(artifact, PushOptions(REPO))
    (artifact.folder / "croissant.json").write_bytes(read(REPO, "croissant.json", "v1.0.0"))
    rows = list(mlcroissant.Dataset(artifact.folder / "croissant.json").records("prompts"))
    assert [row["prompts/prompt"] for row in rows] == [b"one", b"two"]


@pytest.mark.slow
def test_the_card_says_what_there_is(hub: HubServer, make: Make) -> None:
    push(make(frame=pair_rows(4)), PushOptions(REPO))
    push(make(frame=pair_rows(6), rows=6), PushOptions(REPO))
    card = read(REPO, "README.md", "main").decode()
    head = cards.read_head(card)
    assert head["license"] == "mit"
    assert head["task_categories"] == ["text-generation"]
    assert "arxiv:2502.02384" in head["tags"]
    assert head["size_categories"] == ["n<1K"]
    info = head["dataset_info"]
    assert (info["config_name"], info["splits"][0]["num_examples"]) == ("preference_pairs", 6)
    assert [feature["name"] for feature in info["features"]] == row_schema("preference_pairs").column_names()
    for words in (
        "## Intended use and misuse",
        "Safety notice",
        "![Margin between the two values](plots/margin.png)",
        f'datasets.load_dataset("{REPO}", "preference_pairs", split="train", revision="v1.1.0")',
        f'polars.scan_parquet("hf://datasets/{REPO}@v1.1.0/data/*.parquet")',
        "stairdata train dpo --input org/data@v1.1.0",
        "Plain `trl dpo`",
        "rows 4 -&gt; 6",
        "@inproceedings{zhang2025stair",
    ):
        assert words in card, words
    assert list(cards.read_changelog(card)) == ["v1.1.0", "v1.0.0"]
    assert read(REPO, "plots/margin.png", "main").startswith(b"\x89PNG")
    assert "Question 0" not in card
    assert "good 0" not in card


def test_no_row_is_in_the_card_or_in_a_picture_s_name(hub: HubServer, make: Make) -> None:
    push(make("something harmful to read"), PushOptions(REPO))
    assert "harmful to read" not in read(REPO, "README.md", "main").decode()
    assert "harmful to read" not in read(REPO, "croissant.json", "main").decode()


def tree_rows(count: int) -> pl.DataFrame:
    root = {"node_id": 0, "parent_id": -1, "depth": 0, "step": "", "is_terminal": False, "visits": 1, "value_sum": 0.5}
    leaf = {"node_id": 1, "parent_id": 0, "depth": 1, "step": "x", "is_terminal": True, "visits": 1, "value_sum": 0.5}
    nodes = [root | {"rollouts": []}, leaf | {"rollouts": [], "reward": 0.5}]
    prompts = prompt_rows(*map(str, range(count))).select("prompt_id", "prompt", "task").to_dicts()
    rows = [{**prompt, "tree_id": f"{number:016x}", "nodes": nodes} for number, prompt in enumerate(prompts)]
    return pl.DataFrame(rows, schema=polars_schema("trees"))


def response_rows(count: int) -> pl.DataFrame:
    candidate = {"text": "an answer", "score": 0.25, "is_complete": True, "tokens": 2}
    same = {"method": "sample", "model": "m", "n": 1, "candidates": [candidate], "chosen_index": 0}
    same |= {"text": "an answer", "score": 0.25, "completion_tokens": 2}
    prompts = prompt_rows(*map(str, range(count))).select("prompt_id", "prompt", "task").to_dicts()
    rows = [{**prompt, **same, "response_id": f"{number:016x}"} for number, prompt in enumerate(prompts)]
    return pl.DataFrame(rows, schema=polars_schema("responses"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_plots(kind: str, make: Make) -> None:
    frames = {"trees": tree_rows, "responses": response_rows, "preference_pairs": pair_rows, "prm_pairs": pair_rows}
    frame = frames[kind](20) if kind in frames else row_schema(kind).sample(20, generator=Generator(1))
    pictures = plots.draw(make(frame=frame, kind=kind))
    assert pictures or kind in {"evaluations", "reviews"}
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)


# -- the user's own text -------------------------------------------------------------------------------------

MINE = "## Mine\n\n*kept*, `byte` for byte | <b>&amp;</b>\n\n- **v9.9.9** not a release"


def write(artifact: Artifact, text: str, section: str = "notes", extra: str = "") -> None:
    begin, end = cards._marks(section)
    path = artifact.folder / "README.md"
    card = path.read_text().replace(f"{begin}\n{end}", f"{begin}\n{text}\n{end}")
    path.write_text(card.replace("license:", f"{extra}license:", 1))


@pytest.mark.slow
def test_a_user_s_own_text_and_keys_survive(hub: HubServer, make: Make) -> None:
    first = make("a")
    write(first, MINE, extra="pretty_name: My prompts\nlanguage: [en, de]\n")
    write(first, "Hello.", "introduction")
    push(first, PushOptions(REPO))
    for text in ("b", "c"):
        push(make(text), PushOptions(REPO))
        card = read(REPO, "README.md", "main").decode()
        assert cards.user_text(card) == {"notes": MINE, "introduction": "Hello."}
        assert cards.user_keys(card) == {"pretty_name": "My prompts", "language": ["en", "de"]}
    assert "v9.9.9" not in cards.read_changelog(card)


def test_a_card_that_somebody_wrote_before_the_first_release_is_kept(hub: HubServer, make: Make) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(REPO, repo_type="dataset", private=True)
    written = CommitOperationAdd("README.md", b"---\npretty_name: Mine\n---\n# My data\n\nIn my own words.\n")
    api.create_commit(REPO, [written], commit_message="mine", repo_type="dataset")
    push(make("a"), PushOptions(REPO, gated="manual"))
    push(make("b"), PushOptions(REPO))
    card = read(REPO, "README.md", "main").decode()
    assert cards.user_text(card) == {"introduction": "# My data\n\nIn my own words."}
    assert cards.user_keys(card) == {"pretty_name": "Mine"}


def test_keys_edited_on_the_hub_are_not_changed(hub: HubServer, make: Make, tmp_path: Path) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    push(make("a"), PushOptions(REPO))
    lines = "pretty_name: on\nlanguage: [en, no]\nversion: 1.10  # ours\n"
    card = "\ufeff" + read(REPO, "README.md", "main").decode().replace("license:", f"{lines}license:", 1)
    written = CommitOperationAdd("README.md", card.replace("\n", "\r\n").encode())
    HfApi().create_commit(REPO, [written], commit_message="edit", repo_type="dataset")
    push(make("b"), PushOptions(REPO))
    assert lines in read(REPO, "README.md", "main").decode()
    broken = CommitOperationAdd("README.md", card.replace("license:", "language: de\nlicense:", 1).encode())
    HfApi().create_commit(REPO, [broken], commit_message="edit", repo_type="dataset")
    with pytest.raises(PublishError, match=r"README.md in .*'language' stands twice, at line"):
        push(make("c"), PushOptions(REPO))


@pytest.mark.slow
def test_a_text_changed_on_both_sides_is_not_lost(hub: HubServer, make: Make) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    first = make("a")
    write(first, "first")
    push(first, PushOptions(REPO))
    second = make("b")
    write(second, "mine")
    push(second, PushOptions(REPO))  # changed here alone
    card = read(REPO, "README.md", "main").decode()
    assert cards.user_text(card) == {"notes": "mine"}
    edited = CommitOperationAdd("README.md", card.replace("\nmine\n", "\ntheirs\n").encode())
    HfApi().create_commit(REPO, [edited], commit_message="edit", repo_type="dataset")
    third = make("c")
    write(third, "mine again")
    with pytest.raises(ReleaseConflictError, match=r"your own text \(notes\) in the card was changed both in"):
        push(third, PushOptions(REPO))
    push(make("d"), PushOptions(REPO))
    assert cards.user_text(read(REPO, "README.md", "main").decode()) == {"notes": "theirs"}


def test_a_pulled_card_is_that_of_a_local_artifact(hub: HubServer, make: Make, tmp_path: Path) -> None:
    from stairdata.hub.addresses import Address
    from stairdata.hub.pull import pull

    artifact = make("a")
    write(artifact, MINE, extra="pretty_name: Mine\n")
    push(artifact, PushOptions(REPO, config="mine"))
    pulled = pull(Address(REPO), tmp_path / "there")
    card = (pulled.folder / "README.md").read_text()
    assert cards.user_text(card) == {"notes": MINE}
    assert cards.read_head(card)["pretty_name"] == "Mine"
    assert len(datasets.load_dataset(str(pulled.folder), split="train", cache_dir=str(tmp_path / "cache"))) == 1
    assert json.loads((pulled.folder / "hub.json").read_text())["config"] == "mine"
