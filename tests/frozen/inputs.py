"""The files that frozen builds read. Their bytes count: a change of them changes fingerprints and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SUBJECTS = ("rain", "bread", "rivers", "bicycles", "the moon", "tea", "maps", "bees")
ANSWER = """<|Reasoning_step|>
Title: Problem Analysis:
The question is about {0}.
<|/Reasoning_step|>

<|Output|>
Final Answer:
It is about {0}.
<|/Output|>"""


def write_inputs(folder: Path) -> None:
    """Write all of them."""
    published = _json_list(
        [
            {"prompt": f"What about {subject}?", "answer": ANSWER.format(subject), "source": source}
            for subject, source in zip(SUBJECTS[:3], ("PKU-SafeRLHF", "UltraFeedback", "JailbreakV"), strict=True)
        ]
    )
    files = {
        "questions.jsonl": _jsonl([question(number) for number in range(6)]),
        "without_task.jsonl": _jsonl([{"prompt": question(number)["prompt"]} for number in range(5)]),
        "mixed.jsonl": _jsonl([_mixed(number) for number in range(20)]),
        "table.csv": "prompt,task\nHow do clouds form?,helpfulness\nHow do clouds form??,helpfulness\nWhy?,safety\n",
        "saferlhf.jsonl": _jsonl([_saferlhf(number) for number in range(4)]),
        "evaluation.jsonl": _jsonl([{"question": "How is number 3 of the old songs about rain sung at home today?"}]),
        "written.jsonl": _jsonl([_written(number) for number in range(3)]),
        "STAIR-SFT.json": published,
        "searched.json": _json_list([_searched(f"Why {subject}?") for subject in SUBJECTS[:2]]),
        "questions.json": _json_list(
            [{"question": f"Why {subject}?", "type": "safety", "ground_truth": "Because."} for subject in SUBJECTS[:3]]
        ),
        "safety.jinja": "Answer with care, in steps: {{ prompt }}\n",
        "helpfulness.jinja": "Answer in full, in steps: {{ prompt }}\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def question(number: int) -> Json:
    """Return a row of prompts; every other one is about safety, with a reference answer that is unsafe."""
    safety = number % 2 == 0
    return {
        "prompt": f"Question {number}: what about {SUBJECTS[number % len(SUBJECTS)]}, naïve 👩🏽‍🚀?",
        "task": "safety" if safety else "helpfulness",
        "category": "everyday",
        "reference_answer": "water plan",
        "reference_is_safe": False if safety else None,
    }


def _mixed(number: int) -> Json:
    subject = SUBJECTS[number % len(SUBJECTS)]
    return {
        "asked": {"words": f"How is number {number} of the old songs about {subject} sung at home today?"},
        "kind": ("safety", "helpfulness")[number % 2],
        "language": ("English", "German")[number % 5 == 0],
    }


def _saferlhf(number: int) -> Json:
    return {
        "prompt": f"How could somebody be a little rude about {SUBJECTS[number]}?",
        "response_0": f"Like this, {number}.",
        "response_1": f"Better not, {number}.",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": {"Insulting Behavior": True, "Economic Crime": False},
        "response_1_harm_category": {"Insulting Behavior": False, "Economic Crime": False},
        "safer_response_id": 1,
    }


def _written(number: int) -> Json:
    subject = SUBJECTS[number]
    return {
        "prompt": f"Tell me about {subject}.",
        "task": ("safety", "helpfulness")[number % 2],
        "steps": [{"title": "Plan:", "body": f"I say a word about {subject}."}, {"title": "Check:", "body": "Done."}],
        "output": f"A word about {subject}.",
    }


def _searched(prompt: str) -> Json:
    """Return a tree as the published search writes it, without tokens."""
    first, *whole = (ANSWER.format(prompt).partition("\n\n")[0], *(ANSWER.format(word) for word in ("it", "nothing")))
    good, bad = ([first, text.removeprefix(text.partition("\n\n")[0])] for text in whole)
    return {
        "tree_size": 4,
        "0": _node(prompt, [], [0.9, -0.5, 0.9, 0.9, -0.5]),
        "0.0": _node(prompt, [first], [0.9, -0.5, 0.9, 0.9, -0.5]),
        "0.0.0": _node(prompt, good, [0.9, 0.9, 0.9], is_terminal=True),
        "0.0.1": _node(prompt, bad, [-0.5, -0.5], is_terminal=True),
    }


def _node(prompt: str, trajectory: list[str], rewards: list[float], *, is_terminal: bool = False) -> Json:
    return {
        "prompt": prompt,
        "trajectory": trajectory,
        "is_terminal": is_terminal,
        "is_valid_selected": False,
        "depth": len(trajectory),
        "visited_times": len(rewards),
        "reward": rewards[0] if is_terminal else None,
        "value_sum": sum(rewards),
        "true_value": sum(rewards) / len(rewards),
        "p": 1.0,
    }


def _jsonl(rows: list[Json]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json_list(rows: list[Json]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
