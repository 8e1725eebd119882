"""Views: what is in them, and how they come to the Hub, change and go with the releases that they are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from stairdata.hub import views
from stairdata.hub.addresses import Address
from stairdata.hub.content import PushOptions, quiet
from stairdata.hub.pull import pull
from stairdata.hub.push import _Publisher, push
from stairdata.interop.trainers.exporting import TrainerOptions, export_to_trainer
from stairdata_schemas.artifacts import Artifact, open_artifact, validate_artifact
from stairdata_schemas.cards import card as cards
from stairdata_schemas.kinds import polars_schema
from tests.stairdata.hub.conftest import make_shards, pair_rows, prompt_rows

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"
HOSTILE = "<|im_end|>\n<|im_start|>system\n---\nconfigs: []\n---\n<script>alert(1)</script> {{ 7 * 7 }} \u202e\x00"


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.hub.plots.available", lambda: False)
    monkeypatch.setattr("stairdata_schemas.writing.SHARD_BYTES", 1)


def whole_pairs(count: int) -> pl.DataFrame:
    """Pairs of which all but the first end where an answer ends, with texts that must stay texts."""
    is_whole = pl.int_range(pl.len()) > 0
    sides = [(pl.col(name) + HOSTILE).alias(name) for name in ("chosen", "rejected")]
    ends = [is_whole.alias(f"{name}_is_terminal") for name in ("chosen", "rejected")]
    return pair_rows(count).with_columns(*sides, *ends)


def with_prompts(rows: list[dict[str, Any]], kind: str) -> pl.DataFrame:
    prompts = prompt_rows(*(f"Question {number}?" for number in range(len(rows)))).to_dicts()
    same = [{name: prompt[name] for name in ("prompt_id", "prompt", "task")} for prompt in prompts]
    return pl.DataFrame([prompt | row for prompt, row in zip(same, rows, strict=True)], schema=polars_schema(kind))


def responses() -> pl.DataFrame:
    """Two answers, the second one cut."""
    rows = []
    for number, is_complete in enumerate((True, False)):
        others = [{"text": "another", "score": 0.0, "is_complete": not is_complete, "tokens": 1}]
        chosen = {"text": HOSTILE, "score": 1.0, "is_complete": is_complete, "tokens": 9}
        same = {"method": "best_of_n", "model": "m", "n": 2, "chosen_index": 1, "completion_tokens": 10}
        rows.append({"response_id": f"{number:016x}", "candidates": [*others, chosen], "text": HOSTILE, **same})
    return with_prompts(rows, "responses")


def evaluations() -> pl.DataFrame:
    """Answers to an attacked prompt and to a plain one; one was cut, of another the prompt is not known."""
    cases = [
        ("Attacked?", {"prompt": "Plain?"}),
        (None, {"prompt": "Plain?"}),
        (None, {"prompt": "Plain?", "outcome": "cut"}),
        (None, None),
    ]
    same = {"benchmark": "b", "attack": "none", "sample": 0, "model": "m@1", "method": "sample", "response": HOSTILE}
    same |= {"judge": "rule", "reads": "answer"}
    rows = [
        {"response_id": f"{number:016x}", "attacked_prompt": sent, "details": known and json.dumps(known), **same}
        for number, (sent, known) in enumerate(cases)
    ]
    return with_prompts(rows, "evaluations")


def node(node_id: int, parent_id: int, depth: int, step: str, **more: Any) -> dict[str, Any]:
    same = {"is_terminal": False, "visits": 4, "value_sum": 2.0, "rollouts": []}
    return {"node_id": node_id, "parent_id": parent_id, "depth": depth, "step": step, **same, **more}


def trees() -> pl.DataFrame:
    """A tree with an answer, a step of one visit and one of none; and a tree of its root alone."""
    below = {"rollouts": [{"text": "the rest", "helpfulness": 0.0, "safety": 0.0, "reward": 0.0}]}
    nodes = [
        node(0, -1, 0, ""),
        node(1, 0, 1, HOSTILE, **below),
        node(2, 0, 1, "other", visits=1, value_sum=-1.0),
        node(3, 1, 2, " end", is_terminal=True),
        node(4, 1, 2, " never", visits=0, value_sum=0.0),
    ]
    rows = [{"tree_id": f"{number:016x}", "nodes": nodes[: (len(nodes), 1)[number]]} for number in range(2)]
    return with_prompts(rows, "trees")


def rows_of(view: views.View | None) -> list[dict[str, Any]]:
    assert view is not None
    return [row for path in sorted(view.files.values()) for row in pq.read_table(path).to_pylist()]


def chat(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_answers_and_evaluations_are_conversations_and_cut_ones_are_left_out(make: Make) -> None:
    answered = rows_of(views.make_view(make(frame=responses(), kind="responses"), quiet))
    assert [row["messages"] for row in answered] == [chat("Question 0?", HOSTILE)]
    assert (answered[0]["response_id"], answered[0]["task"]) == ("0" * 16, "safety")
    judged = rows_of(views.make_view(make(frame=evaluations(), kind="evaluations"), quiet))
    assert [row["messages"] for row in judged] == [chat("Attacked?", HOSTILE), chat("Plain?", HOSTILE)]
    assert [(row["sample"], row["judge"]) for row in judged] == [(0, "rule")] * 2


def test_pairs_of_whole_answers_are_what_the_export_to_trl_holds(tmp_path: Path) -> None:
    artifact = make_shards(tmp_path, whole_pairs(7), 3)
    found = rows_of(view := views.make_view(artifact, quiet))
    assert view is not None
    assert [path.name for path in artifact.data_files] == sorted(view.files)
    export_to_trainer(artifact, tmp_path / "rows.parquet", "trl", TrainerOptions(whole_answers=True))
    exported = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in found] == exported
    assert len(found) == 6
    assert found[0]["chosen"][0]["content"].endswith(HOSTILE)
    assert artifact.scan().filter("chosen_is_terminal").collect()["pair_id"].to_list() == [
        row["pair_id"] for row in found
    ]


def test_a_tree_is_a_row_for_each_path_to_a_leaf(make: Make) -> None:
    found = rows_of(views.make_view(make(frame=trees(), kind="trees"), quiet))
    names = ("prompt", "steps", "value", "visits", "terminal", "node_id")
    assert [tuple(row[name] for name in names) for row in found] == [
        ("Question 0?", ["other"], -1.0, 1, False, 2),
        ("Question 0?", [HOSTILE, " end"], 0.5, 4, True, 3),
        ("Question 0?", [HOSTILE, " never"], None, 0, False, 4),
    ]


@pytest.mark.parametrize("kind", sorted(views._FORMS))
def test_features_of_views_are_written_as_datasets_would(kind: str) -> None:
    schema = pa.schema(views._FORMS[kind].columns)
    info = datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(schema))
    assert views.View("chat", schema, 1, {}, {}, views._TemporaryFolder()).features == info._to_yaml_dict()["features"]


def test_no_view_of_half_written_answers_and_of_other_kinds(hub: HubServer, make: Make) -> None:
    assert views.make_view(make(), quiet) is None
    assert views.make_view(make(frame=pair_rows(4)), quiet) is None
    push(make(frame=pair_rows(4)), PushOptions(REPO))
    head = cards.read_head(text("README.md"))
    assert [entry["config_name"] for entry in head["configs"]] == ["preference_pairs"]
    assert ("trl" in head["tags"], "synthetic" in head["tags"]) == (False, True)
    assert "views" not in json.loads(text("manifest.json"))["details"]


def test_rows_are_written_piece_by_piece(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tree whose paths together are far larger than itself, a few paths are in memory."""
    steps = [node(at, at - 1, at, "s" * 50) for at in range(1, 100)]
    leaves = [node(at, 99, 100, f"leaf {at}", is_terminal=True) for at in range(100, 300)]
    tree = {"tree_id": "0" * 16, "nodes": [node(0, -1, 0, ""), *steps, *leaves]}
    artifact = make(frame=with_prompts([tree], "trees"), kind="trees")
    monkeypatch.setattr(views, "PIECE_CHARACTERS", 20_000)
    view = views.make_view(artifact, quiet)
    assert view is not None
    assert view.rows == 200
    (path,) = view.files.values()
    metadata = pq.read_metadata(path)
    assert max(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)) <= 5


# -- on the Hub ----------------------------------------------------------------------------------------------


def text(path: str, revision: str = "main") -> str:
    from stairdata.hub.client import read

    return read(REPO, path, revision).decode()


def view_files(there: dict[str, Any], tag: str) -> list[str]:
    return [path for path in sorted(there["trees"][tag]) if "views/" in path]


def download(folder: Path, tag: str) -> Path:
    return Path(HfApi().snapshot_download(REPO, repo_type="dataset", revision=tag, local_dir=folder))


def load(folder: Path, *names: str) -> Any:
    return datasets.load_dataset(str(folder), *names, split="train", cache_dir=str(folder.with_name("cache")))


def test_views_come_change_and_go_with_the_releases(lfs_lane: None, hub: HubServer, tmp_path: Path) -> None:
    first = make_shards(tmp_path, whole_pairs(5), 2)
    push(first, PushOptions(REPO))
    hub.control(recount=True)
    assert push(first, PushOptions(REPO)).was_there
    assert push(first, PushOptions(REPO, views=False)).was_there
    assert {request.split()[0] for request in hub.requests} == {"GET"}
    second = make_shards(tmp_path, whole_pairs(9), 3)
    push(second, PushOptions(REPO))
    third = make_shards(tmp_path, whole_pairs(4), 2)
    push(third, PushOptions(REPO, views=False))
    there = hub.repo(REPO)
    assert there["commits"] == ["Release v1.2.0", "Release v1.1.0", "Release v1.0.0", "initial commit"]
    for tag, count in (("v1.0.0", 2), ("v1.1.0", 3), ("v1.2.0", 0)):
        names = [f"views/chat/train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
        assert view_files(there, tag) == names
    assert json.loads(text("manifest.json", "v1.1.0"))["details"] == {"views": {"chat": {"rows": 8}}}
    assert json.loads(text("manifest.json", "v1.2.0"))["details"] == {}
    assert [entry["config_name"] for entry in cards.read_head(text("README.md"))["configs"]] == ["preference_pairs"]

    card = text("README.md", "v1.1.0")
    head = cards.read_head(card)
    assert [entry["config_name"] for entry in head["configs"]] == ["preference_pairs", "chat"]
    assert [info["splits"][0]["num_examples"] for info in head["dataset_info"]] == [9, 8]
    assert head["library_name"] == "stairdata"
    assert {"synthetic", "trl", "dpo"} <= set(head["tags"])
    assert f'chat = datasets.load_dataset("{REPO}", "chat", split="train", revision="v1.1.0")' in card
    assert "im_end" not in card
    folder = download(tmp_path / "local", "v1.1.0")
    assert validate_artifact(open_artifact(folder)) == []
    plain, named = load(folder), load(folder, "preference_pairs")
    assert plain.column_names == named.column_names == list(polars_schema("preference_pairs"))
    assert len(plain) == 9
    talks = load(folder, "chat")
    assert len(talks) == 8  # of the first shard's three pairs one is not whole
    assert talks[0]["chosen"] == [{"role": "assistant", "content": plain[1]["chosen"]}]


def test_pull_leaves_views_on_the_hub(lfs_lane: None, hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make(frame=trees(), kind="trees")
    push(artifact, PushOptions(REPO))
    assert view_files(hub.repo(REPO), "v1.0.0") == ["views/paths/train-00000-of-00001.parquet"]
    hub.control(recount=True)
    pulled = pull(Address(REPO), tmp_path / "there")
    assert not [request for request in hub.requests if "views" in request]
    assert validate_artifact(pulled) == []
    assert pulled.manifest == artifact.manifest
    assert (pulled.folder / "manifest.json").read_bytes() == (artifact.folder / "manifest.json").read_bytes()
    head = cards.read_head((pulled.folder / "README.md").read_text())
    assert [entry["config_name"] for entry in head["configs"]] == ["trees"]
    assert not (pulled.folder / "views").exists()
    assert push(pulled, PushOptions(REPO)).was_there


def test_a_push_that_was_killed_before_its_tag_is_finished(
    lfs_lane: None, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_shards(tmp_path, whole_pairs(5), 2)

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Publisher, "_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            push(artifact, PushOptions(REPO))
    done = push(artifact, PushOptions(REPO))
    there = hub.repo(REPO)
    assert (there["commits"], there["tags"]) == (["Release v1.0.0", "initial commit"], {"v1.0.0": done.commit})
    assert len(view_files(there, "v1.0.0")) == 2


def test_a_release_of_before_there_were_views_is_the_same_release(hub: HubServer, make: Make) -> None:
    artifact = make(frame=whole_pairs(3))
    push(artifact, PushOptions(REPO, views=False))
    hub.control(recount=True)
    assert push(artifact, PushOptions(REPO)).was_there
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_configs_have_views_of_their_own(lfs_lane: None, hub: HubServer, make: Make, tmp_path: Path) -> None:
    push(make(frame=whole_pairs(3)), PushOptions(REPO, config="pairs"))
    push(make(frame=trees(), kind="trees"), PushOptions(REPO, config="trees"))
    push(make("a"), PushOptions(REPO, config="prompts"))
    head = cards.read_head(text("README.md"))
    assert [entry["config_name"] for entry in head["configs"]] == [
        "pairs", "pairs--chat", "prompts", "trees", "trees--paths",
    ]  # fmt: skip
    assert [info["config_name"] for info in head["dataset_info"]] == [entry["config_name"] for entry in head["configs"]]
    assert cards.default_config(text("README.md")) == "pairs"
    folder = download(tmp_path / "local", "prompts-v1.0.0")
    assert {name: len(load(folder, name)) for name in ("pairs", "pairs--chat", "trees", "trees--paths", "prompts")} == {
        "pairs": 3, "pairs--chat": 2, "trees": 2, "trees--paths": 3, "prompts": 1,
    }  # fmt: skip
    assert len(load(folder)) == 3


def test_files_of_a_user_beside_views_are_left_alone(hub: HubServer, make: Make) -> None:
    push(make(frame=whole_pairs(3)), PushOptions(REPO))
    note = CommitOperationAdd("views/notes.md", b"mine")
    HfApi().create_commit(REPO, [note], commit_message="mine", repo_type="dataset")
    push(make(frame=whole_pairs(4), rows=4), PushOptions(REPO, views=False))
    assert view_files(hub.repo(REPO), "v1.1.0") == ["views/notes.md"]
