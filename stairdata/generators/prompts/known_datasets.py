"""Published datasets that recipes name without columns: what their columns mean, and where their files lie.

Layouts are those of the datasets' cards and files on the Hub, at the commits named here. STAIR's own sets are read in
the form on the Hub (`prompt`, `answer`, `source`) and in that of the code's prompt files (`question`, `type`,
`ground_truth`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import RecipeError, quote, suggest


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A dataset whose rows this release can read by its name."""

    hub: str
    license: str
    needs: tuple[str, ...]
    """Columns without which it is another dataset; of a group in one string, such as `a|b`, one is enough."""
    mapped: Callable[[Row], Row]
    """From its row to prompt, task, category, reference_answer and reference_is_safe, as far as it has them."""
    files: tuple[str, ...]
    """Where its rows lie in the repository, as patterns."""
    revision: str | None = None
    """The commit that the mapping was made for; None: the head."""
    config: str | None = None
    split: str = "train"
    where: Mapping[str, Any] = field(default_factory=dict)
    near_duplicates: bool = True
    """Whether rows that resemble each other are worth refusing."""


def _saferlhf(raw: Row) -> Row:
    """Map PKU-SafeRLHF: the safer of two responses is the reference."""
    safer = _whole(raw.get("safer_response_id"))
    known = safer in (0, 1)
    return {
        "prompt": raw.get("prompt"),
        "task": "safety",
        "category": _harms(raw),
        "reference_answer": raw.get(f"response_{safer}") if known else None,
        "reference_is_safe": raw.get(f"is_response_{safer}_safe") if known else None,
    }


def _whole(value: Any) -> int | None:
    """Read a whole number, also as CSV has it: 1, 1.0, "1", "1.0"."""
    number = None if isinstance(value, bool) else _number(value)
    return int(number) if number is not None and math.isfinite(number) and number.is_integer() else None


def _harms(raw: Row) -> str | None:
    """Join the harm categories that either response falls under."""
    labels = [raw.get(f"response_{number}_harm_category") for number in (0, 1)]
    found = {name for label in labels if isinstance(label, dict) for name, value in label.items() if value}
    return ", ".join(sorted(found)) or None


def _ultrafeedback(raw: Row) -> Row:
    """Map UltraFeedback: the completion of the best overall score is the reference, ties by the fine-grained one."""
    completions = [each for each in _completions(raw.get("completions")) if each.get("response")]
    best = max(completions, key=_score, default={})
    return {
        "prompt": raw.get("instruction"),
        "task": "helpfulness",
        "category": raw.get("source"),
        "reference_answer": best.get("response"),
    }


def _completions(value: Any) -> list[Row]:
    """Return completions, also out of a dict of lists, as `datasets` writes a sequence of dicts."""
    if isinstance(value, dict):
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        length = max(map(len, columns.values()), default=0)
        value = [
            {name: column[place] for name, column in columns.items() if place < len(column)} for place in range(length)
        ]
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _score(completion: Row) -> tuple[float, float]:
    return _number(completion.get("overall_score")), _number(completion.get("fine-grained_score"))


def _number(value: Any) -> float:
    """Read a number; what is none, such as N/A or NaN, is below all others."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return -math.inf
    return -math.inf if math.isnan(number) else number


def _jailbreakv(raw: Row) -> Row:
    """Map JailBreakV-28k: the attack is the prompt, the policy it goes against the category."""
    return {"prompt": raw.get("jailbreak_query"), "task": "safety", "category": raw.get("policy")}


def published_prompt(raw: Row) -> Row:
    """Map a prompt of STAIR's own files, in either form."""
    return {
        "prompt": raw.get("question", raw.get("prompt")),
        "task": raw.get("type") or task_of(raw.get("source")),
        "category": raw.get("source"),
        "reference_answer": raw.get("ground_truth"),
    }


def task_of(source: Any) -> str | None:
    """Return which task a prompt of STAIR's is by the dataset it was taken from; None where it can't be told."""
    name = source.lower() if isinstance(source, str) else ""
    if "saferlhf" in name or "jailbreak" in name:
        return "safety"
    return "helpfulness" if "ultrafeedback" in name else None


def _published_sft(raw: Row) -> Row:
    return published_prompt(raw) | {"reference_answer": None}


_STAIR_NEEDS = ("prompt|question", "source|type")
KNOWN = {
    known.hub: known
    for known in (
        KnownSource(
            "PKU-Alignment/PKU-SafeRLHF",
            "cc-by-nc-4.0",
            ("prompt", "response_0", "response_1", "safer_response_id", "is_response_0_safe", "is_response_1_safe"),
            _saferlhf,
            ("data/*/train.jsonl",),
            revision="d79b19b2043c4b168d8d64c61ef4ba4ed1ffe2c0",
        ),
        KnownSource(
            "openbmb/UltraFeedback",
            "mit",
            ("instruction", "completions"),
            _ultrafeedback,
            ("*.jsonl",),
            revision="40b436560ca83a8dba36114c22ab3c66e43f6d5e",
        ),
        KnownSource(
            "JailbreakV-28K/JailBreakV-28k",
            "mit",
            ("jailbreak_query", "policy", "transfer_from_llm"),
            _jailbreakv,
            ("JailBreakV_28K/JailBreakV_28K.csv",),
            revision="8b490aad74832261dd1a2b191e0ea3555424f483",
            config="JailBreakV_28K",
            split="JailBreakV_28K",
            where={"transfer_from_llm": True},  # the others are half a picture and say little without it
            near_duplicates=False,  # many questions in few templates
        ),
        KnownSource(
            "thu-ml/STAIR-Prompts",
            "cc-by-nc-sa-4.0",
            _STAIR_NEEDS,
            published_prompt,
            ("STAIR-Prompts.json",),
            near_duplicates=False,  # a mixture of the three above
        ),
        KnownSource(
            "thu-ml/STAIR-SFT",
            "cc-by-nc-sa-4.0",
            (*_STAIR_NEEDS, "answer|response"),
            _published_sft,
            ("STAIR-SFT.json",),
            near_duplicates=False,
        ),
    )
}


def known_source(name: str | None) -> KnownSource | None:
    """Return the known dataset of a Hub id, in whatever case it is written."""
    return next((known for hub, known in KNOWN.items() if name is not None and hub.lower() == name.lower()), None)


def source_like(name: str) -> KnownSource:
    """Return the known dataset that `like:` names.

    Raises:
        RecipeError: there is none of that name.
    """
    known = known_source(name)
    if known is None:
        raise RecipeError(f"like: {quote(name)} is not a dataset that this release knows; {suggest(name, KNOWN, 0.3)}")
    return known
