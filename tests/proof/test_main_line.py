"""The smoke run of the proof on the stub model: all stages, a second run that does nothing, items, and the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from proof import hand_check
from proof.forecast import Rates
from proof.items import ITEMS, item_of
from proof.lines import line_of_item, main_line
from proof.place import MainSettings, ProofPlace
from proof.recipes import recipe_of
from proof.results import write_page, write_results
from proof.running import run_item, run_line, run_options, show_forecast

from stairdata.llm import vllm_server
from stairdata_review.tables.cells import read_rows, write_rows
from stairdata_schemas.artifacts import list_folders
from stairdata_schemas.errors import InputError
from tests.stairdata.pipeline.conftest import serve_stub, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test waits for the whole run

SETTINGS = MainSettings(smoke=True, overrides=("rounds.sft_rows=16", "sft.epochs=1"))
RUN_ITEMS = ("direct-refusal", "dpo-rate-x4", "best-of-rules", "prm-rate-x4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> ProofPlace:
    """A finished smoke run with some items; copy the folder before something is changed."""
    place = ProofPlace(tmp_path_factory.mktemp("proof"))
    tiny_model(place.start_model, tokenizer_folder)
    place.write_settings(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        serve_stub(patch)
        run_line(recipe_of(place, SETTINGS), place.main)
        before = versions(place)
        for name in RUN_ITEMS:
            run_item(place, SETTINGS, item_of(name), Rates())
        assert versions(place) > before, "items share the folder of the main line"
    return place


def versions(place: ProofPlace) -> set[tuple[str, str]]:
    return {(kind, str(version)) for kind, version, _ in list_folders(place.main / "artifacts")}


@pytest.fixture(scope="module")
def results(place: ProofPlace) -> Any:
    return write_results(place)


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is started after all ends the run."""
    monkeypatch.setattr(vllm_server, "vllm_command", None)


def test_a_second_run_does_nothing(place: ProofPlace, no_server: None, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, before = recipe_of(place, SETTINGS), versions(place)
    show_forecast(recipe, run_options(place.main), Rates())
    forecast = capsys.readouterr().out.strip().split("\n")
    assert all(line.endswith(": finished") for line in forecast[:-1])
    assert forecast[-1].startswith("in all 0 min")
    summary = run_line(recipe, place.main)
    assert [row["model"] for row in summary["rounds"]] == ["base", "sft", "dpo-1", "dpo-2"]
    for name in RUN_ITEMS:
        run_item(place, SETTINGS, item_of(name), Rates())
    assert versions(place) == before


def test_figures_are_those_of_the_artifacts(place: ProofPlace, results: Any) -> None:
    assert results == json.loads((place.root / "results.json").read_text())
    models = results["lines"]["42"]["models"]
    assert list(models) == ["base", "sft", "dpo-1", "dpo-2", "dpo-2, best of 4", "dpo-2, beam 2 x 2"]
    rows = main_line(place, SETTINGS).artifact("evaluations (sft)").scan().collect()  # type: ignore[union-attr]
    halves: dict[str, Any] = {}
    for label in ("safe", "unsafe"):
        half = rows.filter((rows["benchmark"] == "xstest") & rows["details"].str.contains(f'"label": "{label}"'))
        halves[label] = half["refused"].mean()
        assert models["sft"][f"refused_{label}"]["mean"] == pytest.approx(halves[label])
    assert models["sft"]["primary"]["value"] == pytest.approx(halves["unsafe"] - halves["safe"])
    assert [pair["model"] for pair in results["lines"]["42"]["pairs"]] == ["dpo-1", "dpo-2", "prm"]
    assert [(gain["b"], gain["a"]) for gain in results["gains"]["42"]][-3:] == [
        ("dpo-2, best of 4", "dpo-2"),
        ("dpo-2, beam 2 x 2", "dpo-2"),
        ("dpo-2, beam 2 x 2", "dpo-2, best of 4"),
    ]


def test_items_are_measured_beside_the_main_line(place: ProofPlace, results: Any) -> None:
    assert set(results["items"]) == set(RUN_ITEMS)
    assert results["items"]["dpo-rate-x4"]["against"] == "dpo-1"
    assert results["items"]["direct-refusal"]["gain"]["a"] == "sft"
    choices = [choice["name"] for choice in results["items"]["best-of-rules"]["choices"]]
    assert choices == ["random", "process reward model", "longest", "shortest", "the judge itself (ceiling)"]
    (faster,), ours = results["items"]["prm-rate-x4"]["pairs"], results["lines"]["42"]["pairs"][-1]
    assert faster["length_rule"] == ours["length_rule"], "both are measured on the same pairs"
    assert results["items"]["prm-rate-x4"]["learning_rates"]["prm"] == pytest.approx(2e-4)
    assert results["items"]["best-of-rules"]["pairs"] == [], "its model is the main line's"
    assert {each["name"] for each in results["not_run"]} == {item.name for item in ITEMS} - set(RUN_ITEMS)


def test_the_page_has_no_text_of_prompts_and_answers(place: ProofPlace, results: Any) -> None:
    page = (place.root / "results.md").read_text()
    assert "A smoke run" in page
    assert "| dpo-2 - sft |" in page
    assert "- `seed-43`: the main line with seed 43" in page
    rows = main_line(place, SETTINGS).artifact("evaluations (sft)").scan().collect()  # type: ignore[union-attr]
    for text in (page, json.dumps(results)):
        assert not any(json.loads(each)["prompt"] in text for each in rows["details"])
        assert not any(each in text for each in rows["response"])
    assert (place.root / "trade-off.png").read_bytes().startswith(b"\x89PNG")
    assert (place.root / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_an_item_of_another_recipe_has_not_run(place: ProofPlace) -> None:
    item = item_of("direct-refusal")
    assert line_of_item(place, SETTINGS, item) is not None
    other = MainSettings(smoke=True, overrides=(*SETTINGS.overrides, "sft.learning_rate=1e-5"))
    assert line_of_item(place, other, item) is None


def test_a_record_may_lack_keys_that_are_newer_than_it(place: ProofPlace, tmp_path: Path) -> None:
    copied = ProofPlace(Path(shutil.copytree(place.root, tmp_path / "proof")))
    item = item_of("direct-refusal")
    file = copied.record(item) / "stages.json"
    record = json.loads(file.read_text())
    for section in ("prm_pairs", "preference_pairs"):
        del record["recipe"][section]["rollouts"]
    file.write_text(json.dumps(record))
    assert line_of_item(copied, SETTINGS, item) is not None
    del record["recipe"]["sft"]["reasoning"]  # the item's own choice, which is no default
    file.write_text(json.dumps(record))
    assert line_of_item(copied, SETTINGS, item) is None


def test_a_line_that_is_not_finished_shows_what_is_there(place: ProofPlace) -> None:
    other = MainSettings(smoke=True, overrides=(*SETTINGS.overrides, "dpo.learning_rate=7e-5"))
    line = main_line(place, other)
    assert line.models == ["base", "sft"]
    assert line.model("train dpo", 1) is None


def test_labels_by_hand_say_how_good_the_rule_is(place: ProofPlace, tmp_path: Path) -> None:
    copied = ProofPlace(Path(shutil.copytree(place.root, tmp_path / "proof")))
    assert line_of_item(copied, SETTINGS, item_of("direct-refusal")) is not None, "a folder can be moved"
    with pytest.raises(InputError, match="has no export; begin with `hand-check export FILE`"):
        hand_check.read(copied, tmp_path / "labels.csv")
    file = tmp_path / "labels.csv"
    number = hand_check.export(copied, main_line(copied, SETTINGS), file)
    rows = read_rows(file)
    assert number == len(rows) > 0
    assert set(rows[0]) == {"item", "prompt", "answer", "refused"}
    assert hand_check.rates(copied) is None, "there are no labels yet"
    key = json.loads((copied.root / "hand-check" / "key.json").read_text())
    for row in rows:
        row["refused"] = "Yes" if key[row["item"]]["rule"] else "no"
    rows[0]["refused"] = ""
    write_rows(file, list(rows[0]), rows, {}, "")
    assert hand_check.read(copied, file) == number - 1
    found = write_results(copied)["hand_check"]
    assert set(found) == {"readers"}, "one reader agrees with nobody"
    first = found["readers"]["first"]
    assert first["all"]["labelled"] == number - 1
    assert first["all"]["recall"]["mean"] == first["all"]["precision"]["mean"] == 1.0
    assert set(first) == {"base", "sft", "dpo-1", "dpo-2", "all"}
    text = write_page(copied, tmp_path / "docs").read_text()
    assert "## The refusal rule against labels by hand" in text
    pictures = re.findall(r"\]\((pictures/[^)]*)\)", text)
    assert pictures
    assert all((tmp_path / "docs" / name).is_file() for name in pictures)
    for row in rows:
        row["refused"] = "yes"
    write_rows(file, list(rows[0]), rows, {}, "")
    assert hand_check.read(copied, file, "a-second") == number
    found = write_results(copied)["hand_check"]
    assert found["readers"]["first"] == first
    assert list(found["readers"]) == ["first", "a-second"]
    assert found["readers"]["a-second"]["all"]["precision"]["mean"] == 1.0
    assert found["agreement"]["all"]["pairs"] == number - 1
    shared = sum(each["rule"] for item, each in key.items() if item != rows[0]["item"])
    assert found["agreement"]["all"]["pairwise"] == pytest.approx(shared / (number - 1), abs=1e-4)
    assert "How far readers agree" in (copied.root / "results.md").read_text()
    with pytest.raises(InputError, match=r"--reader is '\.\./up'; use up to 40 letters"):
        hand_check.read(copied, file, "../up")
    rows[0]["refused"] = "perhaps"
    write_rows(file, list(rows[0]), rows, {}, "")
    with pytest.raises(InputError, match="row 1: refused is 'perhaps'; write yes or no"):
        hand_check.read(copied, file)
    rows[0]["item"] = "another"
    write_rows(file, list(rows[0]), rows, {}, "")
    with pytest.raises(InputError, match="row 1: 'another' is not an item of the export"):
        hand_check.read(copied, file)
