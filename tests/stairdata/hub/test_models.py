"""Publishing a model folder, against a Hub in a process of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from stairdata.hub.models import ModelPushOptions, is_model_folder, plan_model, prepare_model, push_model
from stairdata_schemas.cards import card as cards
from stairdata_schemas.errors import ModelError, PublishError, ReleaseConflictError, UsageError

if TYPE_CHECKING:
    from tests.conftest import HubServer

REPO = "org/actor-1"
MakeModel = Callable[..., Path]
INTRODUCTION, NOTES = (cards.marked(name) for name in cards.SECTIONS)
CARD = f"""---
license: unknown
library_name: transformers
tags:
- stair
---

# STAIR actor after step-level DPO

{INTRODUCTION}

Licence: unknown; ask the publisher before you pass anything on.

{NOTES}
"""


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a folder as a training does; the weights are what a number says."""

    def made(number: int = 1, name: str = "model", shards: int = 0, **files: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        record = {"fingerprint": f"{number:x}" * 64, "config": {"model": "runs/sft"}, "summary": {"rows": 3}}
        texts = {
            "config.json": "{}",
            "tokenizer.json": json.dumps({"model": {"vocab": {"a": 0}}}),
            "chat_template.jinja": "{{ messages }}",
            "training.json": json.dumps(record),
            "README.md": CARD,
        }
        for file, text in (texts | files).items():
            (folder / file).write_text(text, encoding="utf-8")
        weights = {f"model-{part}.safetensors": part for part in range(shards)} or {"model.safetensors": 0}
        for file, part in weights.items():
            (folder / file).write_bytes(bytes([number, part]) * 1000)
        if shards:
            index = {"weight_map": {f"layer.{part}": file for file, part in weights.items()}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        (folder / "loss.png").write_bytes(b"\x89PNG" + bytes([number]))
        return folder

    return made


def tag(number: int) -> str:
    return f"training-{number:x}{number:x}{number:x}{number:x}" + f"{number:x}" * 8


def options(**changes: Any) -> ModelPushOptions:
    return ModelPushOptions(**({"repo": REPO} | changes))


def files_of(there: dict[str, Any]) -> set[str]:
    return set(there["files"]) - {".gitattributes"}


def card_on_hub() -> str:
    return Path(hf_hub_download(REPO, "README.md")).read_text(encoding="utf-8")


def edit_on_hub(**files: str) -> None:
    adds = [CommitOperationAdd(path.replace("__", "."), text.encode()) for path, text in files.items()]
    HfApi().create_commit(REPO, adds, commit_message="by hand")


def test_a_model_is_one_commit_in_a_private_repository_with_a_tag(
    lane: str, hub: HubServer, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = make_model(shards=2)
    done = push_model(folder, options())
    assert (done.tag, done.was_there) == (tag(1), False)
    there = hub.repo(REPO)
    assert (there["private"], there["gated"]) == (True, False)
    assert there["tags"] == {tag(1): done.commit}
    assert there["commits"] == [f"Model {tag(1)}", "initial commit"]
    assert files_of(there) == {path.name for path in folder.iterdir()}
    fetched = hf_hub_download(REPO, "model-1.safetensors", revision=tag(1), cache_dir=tmp_path / "cache")
    assert Path(fetched).read_bytes() == (folder / "model-1.safetensors").read_bytes()
    assert any("/api/models/" in request for request in hub.requests)


def test_pushing_again_sends_nothing(lane: str, hub: HubServer, make_model: MakeModel) -> None:
    push_model(make_model(), options())
    hub.control(recount=True)
    assert push_model(make_model(), options()).was_there
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_the_same_training_with_other_weights_moves_no_tag(
    lfs_lane: None, hub: HubServer, make_model: MakeModel
) -> None:
    folder = make_model()
    push_model(folder, options())
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ReleaseConflictError, match=r"has training-1+ already, with other .* 'model\.safetensors'"):
        push_model(folder, options())
    assert len(hub.repo(REPO)["commits"]) == 2


def test_the_next_training_takes_the_place_of_the_one_before(
    lfs_lane: None, hub: HubServer, make_model: MakeModel
) -> None:
    push_model(make_model(1, "first", shards=3), options())
    edit_on_hub(evaluation__md="mine")
    push_model(make_model(2, "second"), options())
    there = hub.repo(REPO)
    assert there["tags"].keys() == {tag(1), tag(2)}
    assert "evaluation.md" in there["files"]
    assert {path for path in there["files"] if path.endswith((".safetensors", "index.json"))} == {"model.safetensors"}
    assert "model-2.safetensors" in there["trees"][tag(1)]


def test_a_dry_plan_says_what_would_change(lfs_lane: None, hub: HubServer, make_model: MakeModel) -> None:
    plan = plan_model(prepare_model(make_model(1, "first", shards=2), options()))
    assert not hub.has(REPO)
    assert {change.change for change in plan.changes} == {"new"}
    push_model(make_model(1, "first", shards=2), options())
    later = plan_model(prepare_model(make_model(2, "second"), options()))
    changes = {change.path: change.change for change in later.changes}
    assert changes["model-0.safetensors"] == "deleted"
    assert (changes["config.json"], changes["training.json"], changes["model.safetensors"]) == (
        "same",
        "changed",
        "new",
    )


@pytest.mark.parametrize("fault", ["lost", "late_error", "error", "drop"])
@pytest.mark.parametrize("request_of", ["/commit/main", "/tag/"])
def test_answers_that_get_lost_change_nothing(
    lfs_lane: None, hub: HubServer, make_model: MakeModel, fault: str, request_of: str
) -> None:
    push_model(make_model(1, "first"), options(repo="org/count"))
    number = next(index for index, request in enumerate(hub.requests) if request_of in request)
    hub.control(recount=True)
    hub.control(faults={str(number): fault})
    done = push_model(make_model(1, "first"), options())
    there = hub.repo(REPO)
    assert there["tags"] == {tag(1): done.commit}
    assert there["commits"] == [f"Model {tag(1)}", "initial commit"]


def test_a_model_of_somebody_else_is_left_alone(lfs_lane: None, hub: HubServer, make_model: MakeModel) -> None:
    HfApi().create_repo(REPO, private=True)
    edit_on_hub(config__json="{}", modeling__py="print()")
    with pytest.raises(ReleaseConflictError, match=r"`stairdata push` did not put there, such as 'config"):
        push_model(make_model(), options())
    assert not hub.repo(REPO)["tags"]


def test_what_people_wrote_on_the_hub_stays(lfs_lane: None, hub: HubServer, make_model: MakeModel) -> None:
    push_model(make_model(1, "first"), options())
    card = cards.with_user_text(card_on_hub(), {"notes": "Ask Ada."}).replace(
        "license: unknown\n", "license: llama3.1\nlanguage: de  # mostly\n"
    )
    edit_on_hub(README__md=card)
    push_model(make_model(2, "second"), options())
    now = card_on_hub()
    assert cards.user_text(now) == {"notes": "Ask Ada."}
    assert "language: de  # mostly\n" in now
    assert cards.read_head(now)["license"] == "llama3.1"
    mine = make_model(3, "third", **{"README.md": cards.with_user_text(CARD, {"notes": "Ask Bob."})})
    with pytest.raises(ReleaseConflictError, match=r"your own text \(notes\)"):
        push_model(mine, options())


def test_a_licence_that_is_typed_is_in_head_and_text(lfs_lane: None, hub: HubServer, make_model: MakeModel) -> None:
    push_model(make_model(), options(license="Apache-2.0"))
    assert cards.read_head(card_on_hub())["license"] == "apache-2.0"
    assert "\nLicence: apache-2.0.\n" in card_on_hub()
    with pytest.raises(UsageError, match="not a licence identifier"):
        push_model(make_model(), options(license="My own"))


def test_a_public_model_is_typed_and_licensed(lfs_lane: None, hub: HubServer, make_model: MakeModel) -> None:
    with pytest.raises(PublishError, match=r"unknown licence can't be public; give --license"):
        push_model(make_model(), options(public=True))
    assert not hub.has(REPO)
    push_model(make_model(), options(public=True, license="mit", gated="manual"))
    there = hub.repo(REPO)
    assert (there["private"], there["gated"]) == (False, "manual")
    with pytest.raises(PublishError, match="is public; pass --public"):
        push_model(make_model(2), options())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", CARD + "\nhf_" + "aB3" * 12),
        ("tokenizer.json", json.dumps({"added_tokens": [{"content": "hf_" + "aB3" * 12}]})),
        ("training.json", json.dumps({"fingerprint": "1" * 64, "config": {"model": "https://u:Pa55w0rdPa55@x.org"}})),
        ("chat_template.jinja", "{{ 'hf_" + "aB3" * 12 + "' }}"),
    ],
)
def test_secrets_are_found_in_every_text(hub: HubServer, make_model: MakeModel, file: str, text: str) -> None:
    folder = make_model(**{file: text})
    with pytest.raises(PublishError, match="holds what looks like a secret in") as caught:
        push_model(folder, options())
    assert "aB3aB3" not in str(caught.value)
    assert "Pa55w0rd" not in str(caught.value)
    assert hub.requests == []
    named = re.search(r"--allow-secret (.*)$", str(caught.value))
    assert named is not None
    assert prepare_model(folder, options(allow_secrets=(named[1],))).tag == tag(1)


def test_the_secrets_of_this_machine_are_found(
    hub: HubServer, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKER_API_KEY", "q8Zs-7dKe-22Lm-x1")
    record = {"fingerprint": "1" * 64, "config": {"model": "m"}, "note": "key q8Zs-7dKe-22Lm-x1"}
    with pytest.raises(PublishError, match=r"training\.json:note.*TRACKER_API_KEY"):
        push_model(make_model(**{"training.json": json.dumps(record)}), options())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda folder: (folder / "training.json").unlink(), PublishError, "`stairdata train` did not write it"),
        (lambda folder: (folder / "training.json").write_text("{"), PublishError, "is not JSON"),
        (lambda folder: (folder / "training.json").write_text("[]"), PublishError, "has no fingerprint"),
        (lambda folder: (folder / "model.safetensors").unlink(), ModelError, "no weights"),
        (lambda folder: (folder / "README.md").unlink(), PublishError, r"holds no README\.md"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), PublishError, "can't be read"),
        (
            lambda folder: (folder / "optimizer.pt").write_bytes(b"x"),
            PublishError,
            r"'optimizer\.pt', which no training",
        ),
        (lambda folder: (folder / "model.py").write_text("x"), PublishError, r"'model\.py', which no training"),
        (lambda folder: (folder / "checkpoints").mkdir(), PublishError, "'checkpoints', which no training"),
        (lambda folder: (folder / "notes.txt").symlink_to("/etc/hostname"), PublishError, r"'notes\.txt', which no"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), PublishError, r"config\.json can't be read"),
    ],
)
def test_a_folder_that_no_training_wrote_is_refused(
    hub: HubServer, make_model: MakeModel, change: Any, error: type[Exception], words: str
) -> None:
    folder = make_model()
    change(folder)
    with pytest.raises(error, match=words):
        push_model(folder, options())
    assert hub.requests == []


def test_weights_that_are_missing_are_named(make_model: MakeModel) -> None:
    folder = make_model(shards=2)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(PublishError, match=r"lacks 'model-1\.safetensors'"):
        prepare_model(folder, options())


def test_a_folder_with_a_manifest_is_no_model(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    assert is_model_folder(str(folder))
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    assert not is_model_folder(str(folder))
    assert not is_model_folder("prompts@1.0.0")
