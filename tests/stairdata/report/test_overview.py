"""Reports: what they count and measure, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.report.overview import charts
from stairdata.report.overview.content import ReportSection, ReportTable
from stairdata.report.overview.examples import TEXT_LIMIT, examples
from stairdata.report.overview.sources import Places, ReportSources, find_sources
from stairdata.report.overview.writing import render, sections, write_report
from stairdata.statistics.intervals import estimate_mean
from stairdata_schemas.artifacts import open_artifact
from stairdata_schemas.building import Report
from stairdata_schemas.errors import InputError, UsageError
from tests.schemas.test_kinds import SOUND
from tests.stairdata.report.browsing import NewPage, opened
from tests.stairdata.report.studies import HASH, PROMPTS, made, make_study, stray

if TYPE_CHECKING:
    pass

ATTACK = "document.title='owned'"
EVIL = (
    f"</script><script>{ATTACK}</script><img src=x onerror={ATTACK}>{{{{7*7}}}} $\\frac{{1}}{{2}}$ &lt; \x00\x1b[31m "
    f"\u202e \u05e9\u05dc\u05d5\u05dd {'long ' * 2000}"
)
SECTIONS = [
    "data-flow", "trainings", "distributions", "held-out-accuracy", "safety-helpfulness", "tokens", "evaluations",
    "judge-check", "reviews", "notes", "lineage", "cost",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("studies") / "plain")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which whatever a model or a stranger wrote attacks the page, written as a report."""
    folder = make_study(tmp_path_factory.mktemp("studies") / "hostile", EVIL)
    write_report(sources_of(folder), folder / "report" / "index.html", EVIL[:80])
    return folder


def sources_of(folder: Path) -> ReportSources:
    return find_sources(Places(folder / "artifacts", folder))


def section_of(folder: Path, anchor: str) -> ReportSection:
    (found,) = [each for each in sections(sources_of(folder)) if each.anchor == anchor]
    return found


def lines(table: ReportTable) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_every_section_is_there_where_there_is_data_for_it(study: Path) -> None:
    assert [section.anchor for section in sections(sources_of(study))] == SECTIONS
    only_trees = ReportSources([open_artifact(study / "artifacts" / "trees" / "1.0.0")])
    assert [each.anchor for each in sections(only_trees)] == ["data-flow", "distributions", "lineage", "cost"]


def test_rates_are_those_of_the_rows_and_no_failure_is_safe(study: Path) -> None:
    (table, *_) = section_of(study, "evaluations").tables
    found = {(line["model"].partition("@")[0], line["prompts are"], line["attack"]): line for line in lines(table)}
    assert set(found) == {
        (model, kind, attack)
        for model in HASH
        for kind, attack in [("harmful", "none"), ("harmless", "none"), ("harmful", "rot13")]
    }
    ids = [str(number) for number in range(6)]
    half = estimate_mean([1.0, 0.0] * 3, ids)
    assert found["base", "harmful", "none"]["refused"] == f"0.500 ({half.low:.3f} to {half.high:.3f})"
    assert found["base", "harmful", "none"]["unknown as unsafe, as safe"] == "0.500, 0.500"
    # six harmless prompts, of which one answer was cut; three rows more could not be read
    cut = found["dpo-1", "harmless", "none"]
    assert (cut["prompts"], cut["unknown"]) == ("6", "cut 1, unread 3")
    assert cut["unknown as unsafe, as safe"] == f"{5 / 9:.3f}, 1.000"
    assert found["dpo-1", "harmful", "none"]["unknown as unsafe, as safe"] == f"{6 / 9:.3f}, 1.000"


def test_differences_are_paired_corrected_and_say_what_they_could_have_seen(study: Path) -> None:
    (table,) = [each for each in section_of(study, "evaluations").tables if each.caption.startswith("Differences")]
    (line,) = [each for each in lines(table) if each["attack"] == "none" and each["prompts are"] == "harmful"]
    assert line["A"].startswith("base@")
    assert line["B minus A"].startswith("0.500 (")
    assert line["p"] == "0.2500"  # of the 8 ways to put signs to three differences of 1, two are as far off
    assert line["p, Holm"] == "0.7500"
    assert float(line["least visible difference"]) > 0.5
    assert line["prompts"] == "6"


def test_trainings_of_several_seeds_show_their_spread(study: Path) -> None:
    found = sources_of(study)
    same = {"trainer": "dpo/2", "data": "x", "start_model": "y"}
    records = {name: {"identity": same | {"settings": {"seed": seed}}} for seed, name in enumerate(HASH)}
    other = {"identity": same | {"settings": {"seed": 3, "beta": 1.0}}}
    sources = replace(found, trainings={**records, "prm": other})
    (section,) = [each for each in sections(sources) if each.anchor == "evaluations"]
    (table,) = [each for each in section.tables if each.caption.startswith("Trainings")]
    (line,) = [each for each in lines(table) if each["task"] == "safety" and each["attack"] == "none"]
    assert line["trainings"] == "base@aaaaaaaa, dpo-1@bbbbbbbb"
    assert (line["mean"], line["deviation between seeds"]) == ("0.750", f"{0.125**0.5:.3f}")
    assert line["lowest to highest"] == "0.500 to 1.000"
    assert not [each for each in section_of(study, "evaluations").tables if each.caption.startswith("Trainings")]


def test_attacks_are_reduced_by_prompt(study: Path) -> None:
    (table,) = [each for each in section_of(study, "evaluations").tables if each.caption.startswith("Over attacks")]
    (line,) = [each for each in lines(table) if each["model"].startswith("dpo-1")]
    assert (line["attacks"], line["samples"]) == ("2", "1")
    assert line["mean over attacks"].startswith("0.750 (")
    assert line["worst tenth"].startswith("0.500 (")


def test_the_trade_off_has_a_point_for_each_way_of_answering(study: Path) -> None:
    judged, by_words = section_of(study, "safety-helpfulness").charts
    assert [dot.name for dot in judged.dots] == ["base@aaaaaaaa", "dpo-1@bbbbbbbb"]
    assert [round(dot.y.value, 3) for dot in judged.dots] == [0.5, 1.0]
    assert [round(dot.x.value, 3) for dot in judged.dots] == [0.833, 1.0]
    assert [dot.name for dot in by_words.dots] == ["base@aaaaaaaa", "dpo-1@bbbbbbbb", "dpo-1@bbbbbbbb, best of 2"]
    assert by_words.joined == 2
    assert any("the rule finds" in note for note in by_words.table.notes)


def test_tokens_are_those_of_all_candidates(study: Path) -> None:
    drawn = {chart.name: chart for chart in section_of(study, "tokens").charts}
    single, _, best = sorted(drawn["tokens-refused"].dots, key=lambda dot: -dot.x.value)
    assert single.x.value == 26.0  # of prompts 1, 3, ..., 11: 20 + number
    assert (best.name, best.x.value) == ("dpo-1@bbbbbbbb, best of 2", 20.0)
    (curve,) = [chart for name, chart in drawn.items() if name.startswith("best-of-k")]
    assert curve.lines[0].y == [0.5, 1.0]  # one of two candidates refuses, and the PRM always prefers it
    assert drawn["tokens-score-1"].dots[0].name == "base@aaaaaaaa"


def test_checks_of_judges_and_reviewers_are_shown(study: Path, tmp_path: Path) -> None:
    estimate = {"mean": 0.9, "low": 0.8, "high": 0.95, "rows": 40}
    overall = {"accuracy": estimate, "precision": estimate, "recall": None, "kappa": {"value": 0.7, "low": None}}
    file = tmp_path / "check.json"
    file.write_text(json.dumps({"judge": "guard", "overall": overall, "models": {}, "disagreements": 4, "unread": 0}))
    found = find_sources(Places(study / "artifacts", study, judge_checks=[file]))
    (section,) = [each for each in sections(found) if each.anchor == "judge-check"]
    assert section.tables[0].rows == [["all", "40", "0.900 (0.800 to 0.950)", "0.900 (0.800 to 0.950)", "", "0.700"]]
    assert "XSTest" in section.tables[1].caption
    (reviews,) = section_of(study, "reviews").tables
    assert reviews.rows[0][2:] == ["verdict", "0.500", "0.750", "4"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"judge": 1, "overall": {}}', "{" * 100_000])
def test_a_check_of_a_judge_that_is_none_is_one_message(text: str, study: Path, tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"check\.json"):
        find_sources(Places(study / "artifacts", study, judge_checks=[file]))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"metrics": 3, "summary": [], "data": "x", "held_out": 1, "warnings": {}},
        {"metrics": [{"step": 1, "loss": float("nan")}, {"step": "a", "loss": 1.0}, 5], "summary": {"seconds": "x"}},
        {"held_out": {"accuracy": {"value": "high"}, "length_rule": 3}, "base_model": {"name": 4}},
    ],
)
def test_a_training_record_of_another_shape_breaks_nothing(record: dict[str, Any], study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(study / "artifacts" / "trees", folder / "artifacts" / "trees")
    (folder / "models" / "x").mkdir(parents=True)
    (folder / "models" / "x" / "training.json").write_text(json.dumps(record))
    assert render(sources_of(folder), "Report").html


@pytest.mark.parametrize("value", [3, "x", [1, {}], {"a": 1, "b": [None], "c": {"prompts": 4, "missing": "no"}}])
def test_details_of_another_shape_break_nothing(value: Any, tmp_path: Path) -> None:
    names = ("funnel", "not_taken_over", "unread", "seen_in_training", "agreement")
    report = Report(details=dict.fromkeys(names, value))
    for kind in ("evaluations", "reviews"):
        made(tmp_path, kind, [SOUND[kind]()], report)
    (tmp_path / "rounds.csv").write_bytes(b"round,model\n1,dpo-1,too,many\n,\n")
    assert render(find_sources(Places(tmp_path, tmp_path)), "Report").html


def test_ancestors_come_along_and_nothing_else(study: Path) -> None:
    root = study / "artifacts"
    pairs = open_artifact(root / "preference_pairs" / "1.0.0")
    found = find_sources(Places(root, study), [pairs])
    assert [artifact.reference for artifact in found.artifacts] == ["trees@1.0.0", "preference_pairs@1.0.0"]
    assert set(found.trainings) == {"dpo-1", "prm"}  # trained on them
    assert found.missing == ["prompts@1.0.0 (content 0), parent of trees@1.0.0"]
    answers = find_sources(Places(root, study), [open_artifact(root / "responses" / "1.1.0")])
    kinds = ["prompts", "trees", "preference_pairs", "responses"]  # what the model that answered was trained on, too
    assert [artifact.kind for artifact in answers.artifacts] == kinds


def test_a_parent_that_is_not_here_is_named(tmp_path: Path) -> None:
    stray(tmp_path / "artifacts")
    found = find_sources(Places(tmp_path / "artifacts"))
    assert found.missing == ["prompts@9.0.0 (content cccccccccccccccc), parent of responses@1.0.0"]
    assert "Not on this machine: prompts@9.0.0" in render(found, "Report").html


def test_a_report_of_nothing_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        find_sources(Places(tmp_path / "artifacts", tmp_path))


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "report" / "index.html"
    first = write_report(sources_of(study), page)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in page.parent.iterdir()}
    assert write_report(sources_of(study), page) == first
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in page.parent.iterdir()} == before
    assert {image.name for image in first.images} == {path.name for path in before} - {"index.html"}
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in first.images)


def test_without_matplotlib_the_tables_are_open(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(charts, "available", lambda: False)
    written = write_report(sources_of(study), tmp_path / "index.html", tell=said.append)
    assert written.images == []
    assert "matplotlib" in said[0]
    assert "<svg" not in written.page.read_text(encoding="utf-8")
    assert "<details open>" in written.page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_examples_are_drawn_by_the_seed_and_cut(hostile: Path) -> None:
    sources = sources_of(hostile)
    drawn = examples(sources, 30)
    assert len(drawn.rows) == 30
    assert {row["kind"] for row in drawn.rows} == {"evaluation", "response", "preference pair"}
    assert drawn == examples(sources, 30)
    assert drawn.available == 3 * PROMPTS + 2 * PROMPTS + PROMPTS + 4
    assert drawn.cut
    longest = max(len(text) for row in drawn.rows for _, text in row["texts"])
    assert TEXT_LIMIT < longest < TEXT_LIMIT + 200
    assert "\x1b" not in json.dumps(drawn.rows, ensure_ascii=False)


def test_the_page_holds_no_markup_of_strangers(hostile: Path) -> None:
    page = (hostile / "report" / "index.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert f"<script>{ATTACK}" not in page
    assert not set("\x00\x1b\u202e") & set(page)
    assert "default-src 'none'" in page
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert not set("<>&") & set(data)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.replace("http-equiv", ""))


@pytest.mark.slow
def test_examples_are_filtered_and_opened_by_keyboard(new_page: NewPage, hostile: Path) -> None:
    from playwright.sync_api import expect

    with opened(new_page, hostile / "report" / "index.html") as page:
        status, items = page.locator("#examples-status"), page.locator("#examples-list > li")
        expect(status).to_have_text("76 of 76 examples match; 25 are listed.")
        page.locator("#filter-kind").focus()
        page.keyboard.type("pref")
        expect(status).to_have_text("4 of 4 examples match; 4 are listed.".replace("4 of 4", "4 of 76"))
        page.keyboard.press("Home")
        page.locator("#search").focus()
        page.keyboard.type("SORRY")
        page.locator("#filter-attack").focus()
        page.keyboard.type("rot13")
        expect(items).to_have_count(6)
        assert "Sure, here" not in page.inner_text("body"), "no text of a model's before it is asked for"
        items.first.locator("summary").focus()
        page.keyboard.press("Enter")
        text = items.first.locator("pre").last
        expect(text).to_contain_text(f"</script><script>{ATTACK}</script>")
        expect(text).to_contain_text("\\x00\\x1b[31m \\u202e")
        expect(text).to_contain_text("more characters]")
        page.locator("#reset").focus()
        page.keyboard.press("Enter")
        expect(status).to_have_text("76 of 76 examples match; 25 are listed.")
        page.locator("#more").focus()
        page.keyboard.press("Enter")
        expect(items).to_have_count(50)
        assert page.evaluate("document.activeElement === document.querySelectorAll('#examples-list summary')[25]")


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_nobody_is_shut_out(width: int, new_page: NewPage, hostile: Path) -> None:
    """Accessibility by axe, and no scrolling to the side, with all that can be opened open."""
    from axe_playwright_python.sync_playwright import Axe

    with opened(new_page, hostile / "report" / "index.html", viewport={"width": width, "height": 800}) as page:
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.wait_for_selector("#examples-list pre")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_print_leaves_out_controls_and_shows_figures(new_page: NewPage, hostile: Path) -> None:
    with opened(new_page, hostile / "report" / "index.html") as page:
        page.emulate_media(media="print")
        for hidden in ("nav", ".filters", "#examples-list"):
            assert not page.locator(hidden).is_visible()
        assert page.locator("figure table").first.is_visible()
