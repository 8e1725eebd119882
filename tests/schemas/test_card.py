from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas.cards import card
from stairdata_schemas.cards.card import render_card
from stairdata_schemas.errors import PublishError
from stairdata_schemas.kinds import KINDS, row_schema
from stairdata_schemas.manifest import Manifest, ModelIdentity, Parent

HOSTILE = "x\n---\nconfigs: []\n---\n# <script>alert(1)</script> | `a` **b** {{ 7 * 7 }} {% raw %} \u202e"


def manifest(kind: str = "prompts", **other: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": kind,
        "version": "1.2.3",
        "schema_version": 1,
        "created_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "stairdata_version": "0.1.0",
        "generator": "tests/1",
        "configuration": {},
        "fingerprint": "f" * 64,
        "content_hash": "c" * 64,
        "rows": 12,
        "files": [],
    }
    return Manifest(**values | other)


def head(card: str) -> Any:
    """Read the YAML as the Hub does: up to the first line of three dashes after the opening one."""
    match = re.match(r"\A---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match.group(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_names_config_and_files(kind: str) -> None:
    metadata = head(render_card(manifest(kind)))
    assert metadata["configs"] == [
        {"config_name": kind, "default": True, "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]
    assert "stairdata" in metadata["tags"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_a_line_for_each_column(kind: str) -> None:
    card = render_card(manifest(kind))
    lines = [line for line in card.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = row_schema(kind).columns()
    assert [row[0] for row in cells] == [f"`{name}`" for name in columns]
    assert [row[2] for row in cells] == ["yes" if column.nullable else "no" for column in columns.values()]
    assert all(len(row) == 4 and row[3] for row in cells)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_alone_warn_of_plain_training(kind: str) -> None:
    assert ("end-of-sequence token after partial steps" in render_card(manifest(kind))) == kind.endswith("pairs")


def test_the_card_says_what_the_manifest_says() -> None:
    card = render_card(
        manifest(
            parents=[Parent(kind="trees", version="1.4.0", content_hash="ab" * 32)],
            models=[ModelIdentity(role="actor", name="smollm", revision="rev1")],
            outcomes={"done": 7},
            quarantine={"not_json": 3},
            notes=["written by hand"],
            git_commit="abc123",
        )
    )
    for part in (
        "# prompts 1.2.3",
        "12 rows",
        "may be harmful",
        "tests/1, stairdata 0.1.0 at abc123",
        "2026-01-02T03:04:05+00:00",
        "f" * 64,
        "parent: trees@1.4.0 (`abababababababab`)",
        "actor: smollm (rev1)",
        "outcome done: 7",
        "refused by not_json: 3",
        "note: written by hand",
        'datasets.load_dataset("PATH", "prompts", split="train")',
    ):
        assert part in card


def test_names_and_notes_cannot_change_the_head() -> None:
    clean = head(render_card(manifest()))
    models = [ModelIdentity(role=HOSTILE, name=HOSTILE, revision=HOSTILE)]
    parents = [Parent(kind=HOSTILE, version=HOSTILE, content_hash=HOSTILE)]
    hostile = manifest(
        models=models,
        parents=parents,
        notes=[HOSTILE],
        outcomes={HOSTILE: 1},
        quarantine={HOSTILE: 1},
        generator=HOSTILE,
        fingerprint=HOSTILE,
        git_commit=HOSTILE,
        stairdata_version=HOSTILE,
    )
    assert head(render_card(hostile)) == clean


@given(st.text())
@settings(max_examples=50)
def test_no_note_changes_the_head(note: str) -> None:
    models = [ModelIdentity(role="actor", name=note)]
    assert head(render_card(manifest(notes=[note], models=models))) == head(render_card(manifest()))


@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\n"], ids=ascii
)
def test_a_user_s_key_comes_back_as_it_was(separator: str) -> None:
    keys = {"pretty_name": f"a{separator}b{separator}", f"my{separator}key": [f"{separator}c"]}
    written = {key: yaml.dump({key: value}, Dumper=card._HeadDumper, allow_unicode=True) for key, value in keys.items()}
    text = card.render(card.Card([card.CardConfig(manifest(), "prompts")], "prompts", extra=written))
    assert card.user_keys(text) == keys


def test_a_name_is_no_template() -> None:
    assert "49" not in render_card(manifest(notes=["{{ 7 * 7 }}"])).split("## How it was made")[1]


def test_a_name_of_several_lines_stays_in_its_item() -> None:
    models = [ModelIdentity(role="actor", name="model\n\n# A heading of its own\n\n<script>alert(1)</script>")]
    card = render_card(manifest(models=models, notes=["a\n## Another\n"]))
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# prompts 1.2.3",
        "## Columns",
        "## How it was made",
        "## Intended use and misuse",
        "## How to load it",
        "## Citation",
    ]
    assert "<script>" not in card


def test_the_template_is_in_the_package() -> None:
    import stairdata_schemas

    assert (Path(stairdata_schemas.__file__).parent / "cards" / "templates" / "card.md.jinja").is_file()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])), st.sampled_from(card.SECTIONS))
@settings(max_examples=50)
def test_a_user_s_text_survives_any_number_of_times(text: str, section: str) -> None:
    begin, end = card._marks(section)
    rendered = render_card(manifest()).replace(f"{begin}\n{end}", f"{begin}\n{text}\n{end}")
    kept = card.user_text(rendered)
    again = card.render(card.Card([card.CardConfig(manifest(), "prompts")], "prompts", kept=kept))
    assert card.user_text(again) == kept == ({section: text} if text.strip() else {})


def test_paths_addresses_and_words_of_a_configuration_are_not_in_the_card() -> None:
    configuration = {
        "actor": {"base_url": "http://10.0.0.7:8000", "path": "/home/me", "concurrency": 64},
        "judge": {"kind": "rule", "prompt": "secret words"},
        "fused": True,
    }
    rendered = render_card(manifest(configuration=configuration))
    for words in ("actor.concurrency: 64", "judge.kind: rule", "fused: true"):
        assert f"- setting {words}" in rendered
    for words in ("10.0.0.7", "/home/me", "secret words"):
        assert words not in rendered


MINE = "language:\n- en\n- no  # Norwegian\nversion: 1.10\nreleased: 2024-08-06\non: yes\ntext: |\n  007\n"


def test_lines_of_the_users_own_stay_as_they_are() -> None:
    text = card.render_card(manifest("prompts")).replace("license:", MINE + "license:", 1)
    again = card.render(
        card.Card([card.CardConfig(manifest("prompts"), "prompts")], "prompts", extra=card.user_lines(text))
    )
    assert MINE in again.partition("\n---\n")[0] + "\n"
    assert card.user_keys(again) == {
        "language": ["en", "no"], "version": "1.10", "released": "2024-08-06", "on": "yes", "text": "007\n",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("begin", "end"),
    [("\ufeff---\n", "---\n"), ("\ufeff---\r\n", "---\r\n"), ("\n---  \n", "---"), ("---\n# mine\n", "---\n\n# Text")],
)
def test_the_head_of_a_card_from_any_editor(begin: str, end: str) -> None:
    newline = "\r\n" if "\r" in begin else "\n"
    text = begin + "pretty_name: Mine\nlanguage: no\n".replace("\n", newline) + end
    assert card.user_lines(text) == {"pretty_name": "pretty_name: Mine\n", "language": "language: no\n"}
    assert card.foreign_text(text) in {"", "# Text"}


@pytest.mark.parametrize("head", ["{a: 1.10, license: mit}", "license: &x '1.10'\na: *x", "? a\n: '1.10'\n"])
def test_a_key_in_another_form_is_written_anew(head: str) -> None:
    assert card.user_lines(f"---\n{head}\n---\n") == {"a": "a: '1.10'\n"}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands twice, at line 1, column 1 and at line 3, column 1"),
        ("a: b: c", "can't be read"),
        ("- a", "has to be a mapping"),
    ],
)
def test_a_head_that_can_not_be_read_is_not_thrown_away(head: str, message: str) -> None:
    with pytest.raises(PublishError, match=message):
        card.check_head(f"---\n{head}\n---\n", "README.md")


def test_a_card_of_many_beginnings_is_read_in_linear_time() -> None:
    text = render_card(manifest())
    begin = next(line for line in text.split("\n") if "your notes: begin" in line)
    began = time.process_time()
    assert card.user_text(f"{begin}\n" * 3000 + "\n" * 500_000) == {}
    assert time.process_time() - began < 5  # it took half a minute


def test_text_of_a_users_own_is_put_into_another_card() -> None:
    empty = f"# A\n\n{card.marked('introduction')}\n\nbetween\n\n{card.marked('notes')}\n"
    filled = card.with_user_text(empty, {"introduction": "Hello\nyou", "notes": "bye"})
    assert card.user_text(filled) == {"introduction": "Hello\nyou", "notes": "bye"}
    assert "\nbetween\n" in filled
    assert card.with_user_text(filled, {"notes": "later"}).endswith(card.marked("notes", "later") + "\n")
    assert card.with_user_text("# no marks\n", {"notes": "x"}) == "# no marks\n"
