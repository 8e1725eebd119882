"""Make the pictures of the documentation: a tree's page, a page of pairs, and a report.

    python docs/pictures.py

They show the bundled rows on everyday questions. The search is the real one; its policy draws steps out of the rows,
those of the question or of another one, and its judge prefers those of the question. Chromium of the system takes the
pictures.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.generators.trees.rows import Prompt, tree_row
from stairdata.pipeline.quickstart import DATA
from stairdata.recipe import Recipe
from stairdata.report.overview.sources import Places, find_sources
from stairdata.report.overview.writing import write_report
from stairdata.report.pages import artifact_page, tree_page
from stairdata.report.trees import find_tree
from stairdata.search.custom_policy import search_tree
from stairdata.search.mcts import SearchConfig
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PICTURES = Path(__file__).parent / "pictures"
QUESTIONS = 24
ITERATIONS = 24
RECIPE = Recipe.model_validate({"trees": {"iterations": ITERATIONS}, "preference_pairs": {"min_visits": 1}})


def main() -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("no chromium; get it with `apt-get install -y chromium` (Debian)")
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        pages = write_pages(Path(name))  # before the browser, which has an event loop running
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            for title, path in pages.items():
                page = browser.new_page(offline=True, viewport={"width": 1000, "height": 640})
                page.set_default_timeout(120_000)
                page.goto(path.as_uri())
                _shown(page, title).screenshot(path=PICTURES / f"{title}.png", scale="css")
            browser.close()


def write_pages(folder: Path) -> dict[str, Path]:
    """Write the pages, and return where they are by the names of their pictures."""
    trees = _trees(folder / "artifacts")
    from stairdata.runs.options import BuildOptions

    pairs = build_preference_pairs(RECIPE, BuildOptions(root=folder / "artifacts"))
    pages = {name: folder / f"{name}.html" for name in ("tree", "pairs")} | {"report": folder / "report" / "index.html"}
    largest = max(trees.scan().collect().to_dicts(), key=lambda row: len(row["nodes"]))
    pages["tree"].write_text(tree_page(trees, find_tree(trees, largest["tree_id"])), encoding="utf-8")
    pages["pairs"].write_text(artifact_page(pairs), encoding="utf-8")
    write_report(find_sources(Places(folder / "artifacts")), pages["report"], "Report")
    return pages


def _trees(root: Path) -> Artifact:
    rows = [
        json.loads(line) for line in (DATA / "structured_cot.jsonl").read_text(encoding="utf-8").split("\n") if line
    ]
    rows = [row for row in rows if row["task"] == "helpfulness"][:QUESTIONS]
    grown = [_tree(row, rows, number) for number, row in enumerate(rows)]
    schema = polars_schema("trees")
    frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in grown], schema=schema)
    build = begin_build(BuildPlan("trees", "pictures/1", {"iterations": ITERATIONS}), root)
    assert isinstance(build, Build)
    with build:
        return build.finish([frame])


def _tree(row: dict[str, Any], rows: list[dict[str, Any]], number: int) -> dict[str, Any]:
    dice = random.Random(number)  # noqa: S311

    async def complete(prefix: str, n: int) -> list[str]:
        return [_answer(row if dice.random() < 0.6 else dice.choice(rows), prefix, dice) for _ in range(n)]

    async def judge(answer: str) -> tuple[float, float]:
        own = [row["output"] in answer, *(step["body"] in answer for step in row["steps"])]
        return 2 * sum(own) / len(own) - 1, 1.0

    tree = asyncio.run(search_tree(complete, judge, config=SearchConfig(iterations=ITERATIONS), seed=number))
    prompt = Prompt(identity.prompt_id(row["prompt"]), row["prompt"], row["task"], None)
    return tree_row(identity.prompt_id(f"tree {number}"), prompt, tree, RECIPE, "bundled rows")


def _answer(row: dict[str, Any], prefix: str, dice: random.Random) -> str:
    """Return the steps of a row that are not there yet, perhaps not all of them, and its output."""
    steps = [step for step in row["steps"] if step["body"] not in prefix]
    kept = steps[: dice.randint(0, len(steps))]
    written = [f"<|Reasoning_step|>\nTitle: {step['title']}\n{step['body']}\n<|/Reasoning_step|>\n\n" for step in kept]
    return "".join(written) + f"<|Output|>\nFinal Answer:\n{row['output']}\n<|/Output|>"


def _shown(page: Page, title: str) -> Page | Locator:
    """Return the part of a page to take, after the clicks that show texts: these are harmless."""
    if title == "tree":
        page.locator("#titles").check()
        page.mouse.move(0, 0)  # off the chart, which would say what is below
        return page.locator("#plot-0")
    if title == "pairs":
        page.locator("details summary").first.click()
    else:
        page.get_by_role("link", name="Values of trees and pairs").click()
    return page


if __name__ == "__main__":
    main()
