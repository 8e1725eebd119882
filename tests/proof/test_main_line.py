"""The smoke run of the proof on the stub model: all stages, forecast first, and a second run that does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from proof.forecast import Rates
from proof.place import MainSettings, ProofPlace
from proof.recipes import recipe_of
from proof.running import run_line, show_forecast

from stairdata.llm import vllm_server
from tests.stairdata.pipeline.conftest import serve_stub, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> ProofPlace:
    """A finished smoke run."""
    place = ProofPlace(tmp_path_factory.mktemp("proof"))
    tiny_model(place.start_model, tokenizer_folder)
    place.write_settings(MainSettings(smoke=True))
    with pytest.MonkeyPatch.context() as patch:
        serve_stub(patch)
        run_line(recipe_of(place, place.read_settings()), place.main)
    return place


def test_a_second_run_does_nothing(
    place: ProofPlace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_server, "vllm_command", None)  # a server that is started after all ends the run
    recipe = recipe_of(place, place.read_settings())
    show_forecast(recipe, place.main, Rates())
    forecast = capsys.readouterr().out.strip().split("\n")
    assert all(line.endswith(": finished") for line in forecast[:-1])
    assert forecast[-1].startswith("in all 0 min")
    summary = run_line(recipe, place.main)
    assert [row["model"] for row in summary["rounds"]] == ["base", "sft", "dpo-1", "dpo-2"]
    assert {"evaluations (dpo-2, best of 4)", "evaluations (dpo-2, beam 2 x 2)"} <= {
        stage["stage"] for stage in summary["stages"]
    }
