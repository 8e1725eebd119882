"""Make the pictures of the documentation: a tree's page, a page of pairs, a report, and a review round.

    python docs/pictures.py              all of them
    python docs/pictures.py review       one

They show the bundled rows on everyday questions. The search is the real one; its policy draws steps out of the rows,
those of the question or of another one, and its judge prefers those of the question. The review is one in a real
Argilla. Chromium of the system takes the pictures.
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
    from playwright.sync_api import Browser, Locator, Page

PICTURES = Path(__file__).parent / "pictures"
PAGES = {"tree": "tree.html", "pairs": "pairs.html", "report": "report/index.html"}
"""Pages of this package, by the names of their pictures."""
PATIENCE = 120_000  # milliseconds
QUESTIONS = 24
ITERATIONS = 24
RECIPE = Recipe.model_validate({"trees": {"iterations": ITERATIONS}, "preference_pairs": {"min_visits": 1}})


def main() -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("no chromium; get it with `apt-get install -y chromium` (Debian)")
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(exist_ok=True)
    wanted = sys.argv[1:] or [*PAGES, "review"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees, pairs = build(folder / "artifacts")  # before the browser, which has an event loop running
        write_pages(folder, trees, pairs)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            for title in [each for each in PAGES if each in wanted]:
                page = browser.new_page(offline=True, viewport={"width": 1000, "height": 640})
                page.set_default_timeout(PATIENCE)
                page.goto((folder / PAGES[title]).as_uri())
                _shown(page, title).screenshot(path=PICTURES / f"{title}.png", scale="css")
            if "review" in wanted:
                picture_review(browser, pairs, folder / "argilla")
            browser.close()


def build(root: Path) -> tuple[Artifact, Artifact]:
    """Return trees, and the pairs out of them."""
    from stairdata.runs.options import BuildOptions

    return _trees(root), build_preference_pairs(RECIPE, BuildOptions(root=root))


def write_pages(folder: Path, trees: Artifact, pairs: Artifact) -> None:
    """Write the pages of `PAGES`."""
    largest = max(trees.scan().collect().to_dicts(), key=lambda row: len(row["nodes"]))
    (folder / PAGES["tree"]).write_text(tree_page(trees, find_tree(trees, largest["tree_id"])), encoding="utf-8")
    (folder / PAGES["pairs"]).write_text(artifact_page(pairs), encoding="utf-8")
    write_report(find_sources(Places(folder / "artifacts")), folder / PAGES["report"], "Report")


def picture_review(browser: Browser, pairs: Artifact, folder: Path) -> None:
    """Take what a reviewer sees of an item, in a round on a server that ends with it."""
    from stairdata_review.rounds.client import Argilla, ServerAccess
    from stairdata_review.rounds.invitations import invite
    from stairdata_review.rounds.push import RoundOptions, push
    from stairdata_review.server.background import start_server, stop_server

    running = start_server(folder, port=0)
    try:
        with Argilla(ServerAccess(running.url, running.credentials().api_key)) as argilla:
            pushed = push(argilla, pairs, RoundOptions(pairs.folder.parents[1]), lambda *_: None)
            reviewer = invite(argilla, "ann", "stairdata")
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(PATIENCE)
        page.route(lambda url: not url.startswith(running.url), lambda route: route.abort())  # fonts of Google's
        page.goto(f"{running.url}/sign-in")
        page.fill("input[name=Username]", reviewer.username)
        page.fill("input[name=Password]", reviewer.password)
        page.click("button[type=submit]")
        page.get_by_text(pushed.dataset, exact=True).first.click()
        page.wait_for_selector('[aria-label^="Data entry for Field"]')
        page.locator("label[for=verdict_A]").click()
        page.screenshot(path=PICTURES / "review.png", scale="css")
    finally:
        stop_server(folder)


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
    written = [f"<|Reasoning_step|>\nTitle: {step['title']}\n{step['body']}\n<|/Reasoning_step|>" for step in kept]
    written.append(f"<|Output|>\nFinal Answer:\n{row['output']}\n<|/Output|>")
    return ("\n\n" if prefix else "") + "\n\n".join(written)


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
