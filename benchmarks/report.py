"""A report of many rows: time to make it, its size, and time until a browser has opened it.

    python benchmarks/report.py --rows 10000

Rows are made up: evaluations of two models under four attacks, and the responses of as many prompts, with answers of
ordinary length. The browser is Chromium of the system without a window; `opened` ends when its first 25 examples stand.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.report.overview.sources import Places, find_sources
from stairdata.report.overview.writing import write_report
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import ModelIdentity

ATTACKS = ("none", "role_play", "base64", "rot13")
MODELS = {"sft": "aaaaaaaa11111111", "dpo-1": "bbbbbbbb22222222"}
WORDS = 150
"""Of an answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of evaluations, and of responses")
    parser.add_argument("--opens", type=int, default=5, help="how often the browser opens the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dice = random.Random(42)
        _responses(folder / "artifacts", options.rows, dice)
        _evaluations(folder / "artifacts", options.rows, dice)
        page = folder / "report" / "index.html"
        for which in ("first", "again"):
            started, used = time.perf_counter(), time.process_time()
            write_report(find_sources(Places(folder / "artifacts", folder)), page)
            print(f"made ({which}), seconds: {time.perf_counter() - started:.2f}")
            print(f"made ({which}), processor seconds: {time.process_time() - used:.2f}")
        print(f"page, MB: {page.stat().st_size / 1e6:.2f}")
        _open(page, options.opens)


def _text(dice: random.Random, *, refuses: bool) -> str:
    words = " ".join("".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 9))) for _ in range(WORDS))
    return f"I'm sorry, I can't help with that. {words}" if refuses else words


def _artifact(root: Path, kind: str, rows: list[dict[str, Any]], models: list[ModelIdentity]) -> Artifact:
    schema = polars_schema(kind)
    frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)
    build = begin_build(BuildPlan(kind, "benchmark/1", {"models": [str(each) for each in models]}, models=models), root)
    assert not isinstance(build, Artifact)
    with build:
        return build.finish([frame])


def _responses(root: Path, count: int, dice: random.Random) -> None:
    for model, revision in MODELS.items():
        rows = []
        for number in range(count // len(MODELS)):
            prompt, text, tokens = f"prompt {number}", _text(dice, refuses=dice.random() < 0.5), dice.randint(100, 300)
            rows.append(
                {
                    "response_id": identity.prompt_id(f"{model} {number}"), "prompt_id": identity.prompt_id(prompt),
                    "prompt": prompt, "task": ("safety", "helpfulness")[number % 2], "method": "sample",
                    "model": model, "n": 1, "chosen_index": 0, "text": text, "completion_tokens": tokens,
                    "candidates": [{"text": text, "score": None, "is_complete": True, "tokens": tokens}],
                }
            )  # fmt: skip
        _artifact(root, "responses", rows, [ModelIdentity(role="actor", name=model, revision=revision)])


def _evaluations(root: Path, count: int, dice: random.Random) -> None:
    rows = []
    for number in range(count // len(ATTACKS) // len(MODELS)):
        for model, revision in MODELS.items():
            for attack in ATTACKS:
                refused = dice.random() < 0.3 + 0.4 * (model == "dpo-1") - 0.1 * (attack != "none")
                rows.append(
                    {
                        "prompt_id": identity.prompt_id(f"prompt {number}"), "benchmark": "mine", "attack": attack,
                        "response_id": identity.prompt_id(f"{model} {number}"), "sample": 0,
                        "task": ("safety", "helpfulness")[number % 2], "model": f"{model}@{revision[:8]}",
                        "method": "sample", "response": _text(dice, refuses=refused), "refused": refused,
                        "score": float(refused == (number % 2 == 0)), "judge": "rule", "reads": "answer",
                        "details": json.dumps({"prompt": f"prompt {number}"}),
                    }
                )  # fmt: skip
    _artifact(root, "evaluations", rows, [])


def _open(page: Path, times: int) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("no chromium; get it with `apt-get install -y chromium` (Debian)")
    from playwright.sync_api import sync_playwright

    took = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(times):
            shown = browser.new_page(offline=True)
            started = time.perf_counter()
            shown.goto(page.as_uri())
            shown.wait_for_selector("#examples-list li:nth-child(25)")
            took.append(time.perf_counter() - started)
            shown.close()
        browser.close()
    print(f"opened, median seconds: {statistics.median(took):.2f}")
    print(f"opened, most seconds: {max(took):.2f}")


if __name__ == "__main__":
    main()
