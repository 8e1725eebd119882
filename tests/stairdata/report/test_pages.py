"""Pages, as files and in a real browser: what models wrote is text, behind a click, and nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.report.pages import artifact_page, tree_page
from stairdata.report.trees import find_tree
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from tests.schemas.test_kinds import SOUND
from tests.stairdata.forests import Shape, artifact_of, tree_of
from tests.stairdata.report import browsing
from tests.stairdata.report.browsing import NewPage

if TYPE_CHECKING:
    from playwright.sync_api import Page


ATTACK = "document.title='owned'"
EVIL = f"</script><script>{ATTACK}</script><img src=x onerror={ATTACK}><b>bold</b> [red]x[/red] \x1b[31m \u202e &lt;"
SHOWN = EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
SHAPE: Shape = [
    (1, 0, f"<|Reasoning_step|>\nTitle: {EVIL}\nbody {EVIL}\n<|/Reasoning_step|>", False, 2.0, 4),
    (2, 0, "worse", False, -1.0, 4),
    (3, 1, f"\n\n<|Output|>\nFinal Answer:\n{EVIL}\n<|/Output|>", True, 3.0, 2),
]


@pytest.fixture
def trees(tmp_path: Path) -> Artifact:
    tree = tree_of(SHAPE)
    tree["nodes"][1]["rollouts"] = [{"text": f"rollout {EVIL}", "helpfulness": 0.25, "safety": 1.0, "reward": 2.25}]
    tree["nodes"][3] |= {"helpfulness": 1.0, "safety": 1.0}
    words = {"node_id": 1, "rollout": 0, "aspect": "safety", "text": f"judged {EVIL}"}
    return artifact_of(tmp_path / "artifacts", [tree | {"actor": EVIL, "judgements": [words]}])


def page_of_tree(trees: Artifact) -> str:
    return tree_page(trees, find_tree(trees, trees.scan().collect()["tree_id"][0]))


def page_of_pairs(trees: Artifact) -> str:
    return artifact_page(build_preference_pairs(Recipe(), BuildOptions(root=trees.folder.parent.parent)))


PAGES = [page_of_tree, artifact_page, page_of_pairs]


@pytest.mark.parametrize("make", PAGES)
def test_a_page_names_no_other_place_and_holds_no_markup_of_strangers(
    make: Callable[[Artifact], str], trees: Artifact
) -> None:
    page = make(trees)
    ours = re.sub(r"<script nonce=\"[^\"]+\">.*?</script>", "", page, count=1, flags=re.DOTALL)  # plotly's own text
    assert "https://" not in ours
    assert "<img" not in ours
    assert f"<script>{ATTACK}" not in page
    assert "\x1b" not in page
    assert "default-src 'none'" in page
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert not set("<>&") & set(data)
    assert json.loads(data)["plots"]


@contextmanager
def opened(new_page: NewPage, path: Path, page_text: str) -> Iterator[Page]:
    """Write a page and open it, until its picture is drawn."""
    path.write_text(page_text, encoding="utf-8")
    with browsing.opened(new_page, path, viewport={"width": 1200, "height": 1400}) as page:
        page.wait_for_selector(".main-svg")
        yield page


def test_a_tree_in_a_browser(new_page: NewPage, trees: Artifact, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    with opened(new_page, tmp_path / "tree.html", page_of_tree(trees)) as page:
        assert "body" not in page.inner_text("body"), "no text of the model's before a click"
        slices = page.locator("#plot-0 .slice")
        expect(slices).to_have_count(4)
        slices.nth(1).click()
        page.wait_for_selector("#node pre")
        node = page.inner_text("#node")
        assert f"Title: {SHOWN}" in node
        assert f"body {SHOWN}" in node
        assert "rollout 1: helpfulness 0.25, safety 1, reward 2.25" in node
        assert "rollout </script>" not in node
        for place, text in enumerate((f"rollout {SHOWN}", f"judged {SHOWN}")):
            page.locator("#node details summary").nth(place).click()
            expect(page.locator("#node details").nth(place).locator("pre")).to_have_text(text)
        assert "the judge on safety, rollout 1" in page.inner_text("#node")
        expect(slices).to_have_count(2)  # zoomed
        slices.first.click()
        expect(slices).to_have_count(4)  # and back


@pytest.mark.slow
def test_titles_in_the_picture_are_text(new_page: NewPage, trees: Artifact, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    with opened(new_page, tmp_path / "tree.html", page_of_tree(trees)) as page:
        plot = page.locator("#plot-0")
        expect(plot).not_to_contain_text("owned")
        page.check("#titles")
        expect(plot).to_contain_text(f"</script><script>{ATTACK}</script>")
        page.locator("#prompt summary").click()
        page.wait_for_selector("#prompt pre")
        assert page.inner_text("#prompt pre") == "p0"


@pytest.mark.slow
def test_pairs_in_a_browser(new_page: NewPage, trees: Artifact, tmp_path: Path) -> None:
    with opened(new_page, tmp_path / "pairs.html", page_of_pairs(trees)) as page:
        assert "worse" not in page.inner_text("body")
        assert "removed_margin_too_small" in page.inner_text("body")
        page.locator("#rows summary").first.click()
        page.wait_for_selector("#rows .sides pre")
        sides = page.locator("#rows .sides pre").all_inner_texts()
        assert SHOWN in sides[0]
        assert sides[1] == "worse"


@pytest.mark.parametrize("kind", ["prompts", "structured_cot", "responses", "evaluations", "reviews"])
def test_every_kind_shows_its_rows(kind: str, tmp_path: Path) -> None:
    frame = pl.DataFrame([SOUND[kind]()], schema=polars_schema(kind))
    build = begin_build(BuildPlan(kind, "test/1", {}), tmp_path / "artifacts")
    assert isinstance(build, Build)
    with build:
        page = artifact_page(build.finish([frame]))
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    (row,) = json.loads(data)["rows"]
    assert ("the rule finds" in page) == (kind == "evaluations"), "SOUND's evaluation is by the rule"
    assert row["label"]
    assert row["texts"]


@pytest.mark.slow
def test_trees_in_a_browser(new_page: NewPage, trees: Artifact, tmp_path: Path) -> None:
    with opened(new_page, tmp_path / "trees.html", artifact_page(trees)) as page:
        words = page.inner_text("body")
        assert "rows by task" in words
        assert SHOWN in words, "the actor's name is shown, as text"
        assert page.locator(".plots .main-svg").count() > 5


@pytest.mark.slow
@pytest.mark.parametrize("visits", [0, 1])
def test_a_tree_of_its_root_alone(visits: int, new_page: NewPage, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    tree = tree_of([])
    tree["nodes"][0] |= {"visits": visits, "value_sum": float(visits)}
    trees = artifact_of(tmp_path / "artifacts", [tree])
    with opened(new_page, tmp_path / "tree.html", page_of_tree(trees)) as page:
        expect(page.locator("#plot-0 .slice")).to_have_count(1)
    with opened(new_page, tmp_path / "trees.html", artifact_page(trees)) as page:
        expect(page.locator("#rows details")).to_have_count(1)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-300, 1e300], [-3.0, 2.5, 7.1] * 50, list(range(500))])
def test_histograms_count_everything(values: list[Any]) -> None:
    import numpy as np

    from stairdata.report.pages import _histogram

    plot = _histogram("x", np.array(values, dtype=np.float64))
    assert sum(plot["data"][0]["y"]) == len(values)
