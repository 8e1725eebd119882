"""Nobody publishes by accident: visibility, gate, licence and secrets are decided before the first byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dataframely.random import Generator
from huggingface_hub import HfApi

from stairdata.hub.access import Gate
from stairdata.hub.client import read
from stairdata.hub.content import PushOptions, prepare
from stairdata.hub.push import make_plan, push
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.cards import card as cards
from stairdata_schemas.errors import HubError, PublishError, UsageError
from stairdata_schemas.manifest import Parent
from tests.stairdata.hub.conftest import pair_rows, prompt_rows

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"
LEAKED = "hf_" + "AbCd" * 9
SENDS = ("POST", "PUT", "DELETE")


def sent(hub: HubServer) -> list[str]:
    return [request for request in hub.requests if request.startswith(SENDS)]


def card() -> str:
    return read(REPO, "README.md", "main").decode()


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.hub.plots.available", lambda: False)


def test_the_gate_stands_before_the_first_byte_and_the_card_asks(hub: HubServer, make: Make) -> None:
    push(make(), PushOptions(REPO))
    changes = sent(hub)
    assert changes[:2] == ["POST /api/repos/create", "PUT /api/datasets/org/data/settings"]
    assert "preupload" in changes[2]
    head = cards.read_head(card())
    assert head["extra_gated_fields"]["I will use this dataset only to study or reduce harm"] == "checkbox"
    assert head["extra_gated_prompt"]


def test_helpfulness_alone_needs_no_gate(hub: HubServer, make: Make) -> None:
    push(make(task="helpfulness"), PushOptions(REPO))
    assert (hub.repo(REPO)["private"], hub.repo(REPO)["gated"]) == (True, False)
    assert "extra_gated_fields" not in cards.read_head(card())


@pytest.mark.parametrize("kind", ["one unknown task", "no task column"])
def test_what_is_not_known_to_be_helpfulness_is_gated(kind: str, hub: HubServer, make: Make) -> None:
    import polars as pl

    frame = pair_rows(3).with_columns(task=pl.lit("helpfulness"))
    frame = frame.with_columns(task=pl.when(pl.col("depth").cum_count() > 1).then("task"))
    if kind == "no task column":
        from stairdata_schemas.kinds import row_schema

        frame = row_schema("reviews").sample(3, generator=Generator(1))
    artifact = make(frame=frame, kind="reviews" if kind == "no task column" else "preference_pairs")
    assert make_plan(prepare(artifact, PushOptions(REPO))).access.gate == "manual"


@pytest.mark.parametrize(
    ("public", "gated", "expected"),
    [
        (True, None, (False, "manual")),
        (True, "no", (False, False)),
        (False, "no", (True, False)),
        (False, "auto", (True, "auto")),
    ],
)
def test_public_and_gate_change_only_what_they_say(
    public: bool, gated: Gate | None, expected: tuple[bool, object], hub: HubServer, make: Make
) -> None:
    push(make(), PushOptions(REPO, public=public, gated=gated))
    there = hub.repo(REPO)
    assert (there["private"], there["gated"]) == expected
    if public:
        last = [request for request in sent(hub) if "/settings" in request or "/tag/" in request][-1]
        assert "/settings" in last  # public comes last


@pytest.mark.parametrize(
    ("private", "gate", "flags", "words"),
    [
        (False, "manual", {}, "is public; pass --public"),
        (False, "manual", {"gated": "no"}, "is public; pass --public"),
        (True, False, {}, "is not gated, and prompts@1.1.0 holds rows that are not helpfulness; pass --gated no"),
        (True, False, {"public": True}, "is not gated"),
        (False, False, {"gated": "no"}, "is public"),
    ],
)
def test_an_open_repository_is_refused_before_the_first_byte(
    private: bool, gate: object, flags: dict[str, object], words: str, hub: HubServer, make: Make
) -> None:
    push(make("a"), PushOptions(REPO))
    HfApi().update_repo_settings(REPO, repo_type="dataset", gated=gate, visibility="private" if private else "public")  # type: ignore[arg-type]
    hub.control(recount=True)
    with pytest.raises(PublishError, match=words):
        push(make("b"), PushOptions(REPO, **flags))  # type: ignore[arg-type]
    assert sent(hub) == []


def test_the_same_flags_let_an_open_repository_grow(hub: HubServer, make: Make) -> None:
    push(make("a"), PushOptions(REPO, public=True, gated="no"))
    push(make("b"), PushOptions(REPO, public=True, gated="no"))
    there = hub.repo(REPO)
    assert (there["private"], there["gated"], len(there["tags"])) == (False, False, 2)


def test_an_open_repository_can_be_gated_first(hub: HubServer, make: Make) -> None:
    push(make("a"), PushOptions(REPO, gated="no"))
    hub.control(recount=True)
    push(make("b"), PushOptions(REPO, gated="manual"))
    assert sent(hub)[0] == "PUT /api/datasets/org/data/settings"
    assert hub.repo(REPO)["gated"] == "manual"


def test_a_gate_that_is_there_stays_as_it_is(hub: HubServer, make: Make) -> None:
    push(make("a"), PushOptions(REPO, gated="auto"))
    push(make("b"), PushOptions(REPO))
    assert hub.repo(REPO)["gated"] == "auto"


def test_an_empty_public_repository_is_refused(hub: HubServer, make: Make) -> None:
    HfApi().create_repo(REPO, repo_type="dataset", private=False)
    with pytest.raises(PublishError, match="is public"):
        push(make(), PushOptions(REPO))


# -- licence -------------------------------------------------------------------------------------------------


def parent(license: str | None) -> Parent:
    return Parent(kind="prompts", version="1.0.0", content_hash=str(license), license=license)


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        (["mit"], "mit"),
        (["mit", "cc-by-nc-4.0", "apache-2.0"], "cc-by-nc-4.0"),
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], "cc-by-nc-sa-4.0"),
        (["mit", None], "unknown"),
        (["llama3.1"], "llama3.1"),
        (["llama3.1", "mit"], "unknown"),
    ],
)
def test_the_strictest_licence_of_the_parents_wins(
    parents: list[str | None], expected: str, hub: HubServer, make: Make
) -> None:
    artifact = make(parents=tuple(map(parent, parents)), license=None)
    push(artifact, PushOptions(REPO))
    assert cards.read_head(card())["license"] == expected


def test_an_unknown_licence_stops_a_public_push(hub: HubServer, make: Make) -> None:
    artifact = make(parents=(parent(None),), license=None)
    with pytest.raises(PublishError, match=r"the licence of prompts@1\.0\.0 is unknown; give --license ID"):
        push(artifact, PushOptions(REPO, public=True))
    assert sent(hub) == []
    push(artifact, PushOptions(REPO))
    with pytest.raises(PublishError, match="is unknown"):
        push(artifact, PushOptions(REPO, public=True))
    assert hub.repo(REPO)["private"]
    push(artifact, PushOptions(REPO, public=True, license="cc-by-4.0"))
    assert not hub.repo(REPO)["private"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("cc-by-4", "did you mean cc-by-4.0"),
        ("apache2.0", "did you mean apache-2.0"),
        ("public", "docs/hub"),
        ("x", "Hub knows"),
    ],
)
def test_a_public_push_takes_a_licence_of_the_hub_alone(typed: str, words: str, hub: HubServer, make: Make) -> None:
    artifact = make(parents=(parent(None),), license=None)
    with pytest.raises(UsageError, match=words):
        push(artifact, PushOptions(REPO, public=True, license=typed))
    assert sent(hub) == []
    push(artifact, PushOptions(REPO, license=typed))
    assert cards.read_head(card())["license"] == typed


def test_the_licence_of_every_config_counts_where_all_become_public(hub: HubServer, make: Make) -> None:
    push(make("a", license=None), PushOptions(REPO, config="a"))
    with pytest.raises(PublishError, match=r"can't be public: the licence of prompts@1\.0\.0 is unknown"):
        push(make("b"), PushOptions(REPO, config="b", public=True))


def test_a_laxer_licence_than_the_parents_is_refused(hub: HubServer, make: Make) -> None:
    artifact = make(parents=(parent("cc-by-nc-4.0"), parent(None)), license=None)
    with pytest.raises(PublishError, match=r"--license mit is less strict than cc-by-nc-4\.0"):
        push(artifact, PushOptions(REPO, license="mit"))
    with pytest.raises(UsageError, match="is not a licence identifier"):
        push(artifact, PushOptions(REPO, license="My own!"))
    assert sent(hub) == []


# -- secrets -------------------------------------------------------------------------------------------------

EXAMPLES = {  # of all shapes: tests/security/test_secret_shapes.py
    "Hugging Face token": LEAKED,
    "GitHub token": "ghp_" + "a1B2" * 9,
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "password in a URL": "https://me:secret123@example.org",
}


@pytest.mark.parametrize("what", EXAMPLES)
def test_a_secret_in_a_row_is_named_without_being_shown(what: str, hub: HubServer, make: Make) -> None:
    artifact = make("harmless", f"my key is {EXAMPLES[what]}, don't tell")
    with pytest.raises(PublishError) as caught:
        push(artifact, PushOptions(REPO))
    key = artifact.scan().collect()["prompt_id"][1]
    said = str(caught.value)
    assert f"data/train-00000-of-00001.parquet row 1 ({key}), column prompt: {what}" in said
    assert EXAMPLES[what][6:] not in said
    assert said.endswith(f"--allow-secret {key}")
    assert hub.requests == []
    push(artifact, PushOptions(REPO, allow_secrets=(key,)))


def test_a_secret_deep_in_a_tree_or_in_the_recipe_is_found(hub: HubServer, make: Make) -> None:
    import polars as pl

    from stairdata_schemas.kinds import polars_schema

    node = {"node_id": 0, "parent_id": -1, "depth": 0, "step": "", "is_terminal": False, "visits": 0, "value_sum": 0.0}
    rollout = {"text": f"ok {LEAKED}", "helpfulness": None, "safety": None, "reward": 0.5}
    rows = prompt_rows("a").select("prompt_id", "prompt").to_dicts()[0]
    row = {**rows, "tree_id": "a" * 16, "nodes": [node | {"rollouts": [rollout], "visits": 1}]}
    artifact = make(frame=pl.DataFrame([row], schema=polars_schema("trees")), kind="trees")
    with pytest.raises(
        PublishError, match=r"row 0 \(aaaaaaaaaaaaaaaa\), column nodes\.rollouts\.text: Hugging Face token"
    ):
        push(artifact, PushOptions(REPO))
    recipe = make("b", judge={"headers": [f"Bearer {LEAKED}"]})
    with pytest.raises(PublishError, match=r"manifest\.json:configuration\.judge\.headers\.0: Hugging Face token"):
        push(recipe, PushOptions(REPO))
    push(recipe, PushOptions(REPO, allow_secrets=("manifest.json:configuration.judge.headers.0",)))


def test_a_secret_in_the_card_here_or_there_is_found(hub: HubServer, make: Make) -> None:
    artifact = make("a")
    begin, end = cards._marks("notes")
    path = artifact.folder / "README.md"
    clean = path.read_text()
    path.write_text(clean.replace(f"{begin}\n{end}", f"{begin}\n{LEAKED}\n{end}"))
    with pytest.raises(PublishError, match=r"README\.md: Hugging Face token \(hf_A…\)"):
        push(artifact, PushOptions(REPO))
    path.write_text(clean)
    push(artifact, PushOptions(REPO))
    edited = card().replace(f"{begin}\n{end}", f"{begin}\n{LEAKED}\n{end}")
    hub.control(before={"/commit/": f"{REPO}|README.md|{edited}"})
    with pytest.raises(PublishError, match="the card would hold what looks like a secret"):
        push(make("b"), PushOptions(REPO))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MY_JUDGE_KEY", "plain words that are my secret"),
        ("AWS_SECRET_ACCESS_KEY", "kq/7Rz+0pWv/Lm3Xc9Ty2Bn8Gh5Jd1Fs6Qa4Ue/Zo"),
        ("SMTP_PASS", "pa55/word"),
    ],
)
def test_a_secret_of_this_environment_is_found_whatever_it_looks_like(
    variable: str, value: str, hub: HubServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(PublishError, match=rf"secret of this environment \({variable}\)") as caught:
        push(make(f"I say: {value}."), PushOptions(REPO))
    assert value[:4] not in str(caught.value)
    assert hub.requests == []


def test_the_token_is_nowhere_but_in_the_header(hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    token = "hf_test_write"
    assert token in hub.tokens
    for path in artifact.folder.rglob("*"):
        assert path.is_dir() or token.encode() not in path.read_bytes()
    for name in ("README.md", "manifest.json", "croissant.json"):
        assert token.encode() not in read(REPO, name, "main")
    json.loads((artifact.folder / "hub.json").read_text())


@pytest.mark.parametrize("token", ["t\N{LATIN SMALL LETTER O WITH DIAERESIS}ken-of-a-friend", "two\nlines-of-it"])
def test_a_token_that_cannot_be_sent_is_one_message(
    token: str, hub: HubServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="token") as caught:
        push(make(), PushOptions(REPO))
    assert token not in str(caught.value)
