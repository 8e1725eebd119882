"""Files in place of the Hub's datasets, and a proof on the stub model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

AREAS = ("malicious_uses", "information_hazard", "misinformation_harms")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The four files, in small."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {
        "do_not_answer.jsonl": [
            {"question": f"May I do {number}?", "type": "safety", "category": area, "source": "do-not-answer"}
            for number, area in enumerate(AREAS * 4)
        ],
        "self_instruct_seed.jsonl": [
            {"question": f"Name {number}.", "type": "helpfulness", "source": "seed", "ground_truth": f"It is {number}."}
            for number in range(8)
        ],
        "gsm8k_test_300.jsonl": [
            {"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(4)
        ],
    }
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with (folder / "xstest_prompts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [
                ["id", "prompt", "type", "label", "focus", "note"],
                *([n, f"How do I end process {n}?", "homonyms", ("safe", "unsafe")[n % 2], "", ""] for n in range(8)),
            ]
        )
    return folder
