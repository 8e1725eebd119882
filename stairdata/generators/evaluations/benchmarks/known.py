"""Published benchmarks that recipes name without columns: what their columns mean, and where their rows lie.

Layouts are those of the benchmarks' own files and of their datasets on the Hub. Each is also read under our column
names, so that `columns:` can rename those of a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stairdata.generators.evaluations.benchmarks.adv_glue import classification
from stairdata.generators.prompts.mapping import MISSING, value_at
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import RecipeError, quote, suggest


@dataclass(frozen=True, slots=True)
class KnownBenchmark:
    """A benchmark whose rows this release can read by its name."""

    name: str
    score: BenchmarkScore
    license: str | None
    needs: tuple[str, ...]
    """Columns without which it is something else; of a group in one string, such as `a|b`, one is enough."""
    mapped: Callable[[Row], Row]
    """From its row to prompt, task, category, label and reference_answer."""
    hub: str | None = None
    revision: str | None = None
    """The commit that this release was made for; None: the recipe has to give one."""
    config: str | None = None
    split: str = "test"
    where: tuple[tuple[str, Any], ...] = ()
    place: str = ""
    """Where its file is to be had, if it is not read from the Hub."""
    version: int = 1
    """Raised when the same file would give other prompts."""


def _first(raw: Row, *names: str) -> Any:
    """Return the value of the first column that is there."""
    found = (value_at(raw, name) for name in names)
    return next((value for value in found if value is not MISSING), None)


def _harmful(*prompts: str, category: tuple[str, ...] = ("category",)) -> Callable[[Row], Row]:
    """Return how to map a benchmark of prompts that all should be refused."""

    def mapped(raw: Row) -> Row:
        return {"prompt": _first(raw, "prompt", *prompts), "task": "safety", "category": _first(raw, *category)}

    return mapped


def _xstest(raw: Row) -> Row:
    """Map XSTest: what is safe is to be answered, what is unsafe refused."""
    label = _first(raw, "label")
    label = label.strip().lower() if isinstance(label, str) else label
    task = {"safe": "helpfulness", "unsafe": "safety"}.get(label) if isinstance(label, str) else None
    return {
        "prompt": _first(raw, "prompt"),
        "task": task,
        "category": _first(raw, "category", "type"),
        "label": label if task else None,
    }


def _harmbench(raw: Row) -> Row:
    """Map HarmBench: a behaviour that has a context is asked behind it, a line between them."""
    behaviour, context = _first(raw, "prompt", "Behavior"), _first(raw, "ContextString", "context")
    if isinstance(context, str) and context.strip() and isinstance(behaviour, str):
        behaviour = f"{context}\n\n---\n\n{behaviour}"
    return {
        "prompt": behaviour,
        "task": "safety",
        "category": _first(raw, "category", "SemanticCategory"),
    }


def _wildchat(raw: Row) -> Row:
    """Map WildChat: the first turn of the user, where that turn was flagged as toxic."""
    turns = raw.get("conversation")
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    flagged = first.get("toxic", True) is True and first.get("role", "user") == "user"
    prompt = first.get("content") if flagged else None
    return {"prompt": raw.get("prompt", prompt), "task": "safety", "category": _first(raw, "category", "language")}


def _alpaca_eval(raw: Row) -> Row:
    """Map AlpacaEval: an instruction and the answer of the model that is compared with."""
    return {
        "prompt": _first(raw, "prompt", "instruction"),
        "task": "helpfulness",
        "category": _first(raw, "category", "dataset"),
        "reference_answer": _first(raw, "reference_answer", "output"),
    }


def _gsm8k(raw: Row) -> Row:
    """Map GSM8K: the reference is the number behind the last `####`."""
    answer = _first(raw, "reference_answer", "answer")
    if isinstance(answer, str):
        answer = answer.rpartition("####")[2].strip().replace(",", "") or None
    return {"prompt": _first(raw, "prompt", "question"), "task": "helpfulness", "reference_answer": answer}


def _simpleqa(raw: Row) -> Row:
    """Map SimpleQA: a question of fact and its one right answer."""
    return {
        "prompt": _first(raw, "prompt", "problem"),
        "task": "helpfulness",
        "category": _first(raw, "category", "metadata.topic", "topic"),
        "reference_answer": _first(raw, "reference_answer", "answer"),
    }


def _advglue(raw: Row) -> Row:
    """Map AdvGLUE: a sentence or two, and the class that they belong to."""
    if "prompt" in raw:
        return {"prompt": raw["prompt"], "task": "helpfulness", "label": raw.get("label")}
    asked = classification(raw)
    return {"prompt": asked.prompt, "task": "helpfulness", "category": asked.task, "label": asked.label}


KNOWN_BENCHMARKS = {
    known.name: known
    for known in (
        KnownBenchmark(
            "strongreject",
            "strongreject",
            "mit",
            ("prompt|forbidden_prompt",),
            _harmful("forbidden_prompt"),
            hub="walledai/StrongREJECT",
            split="train",
            place="strongreject_dataset.csv or its small set, of github.com/alexandrasouly/strongreject",
        ),
        KnownBenchmark(
            "xstest",
            "xstest",
            "cc-by-4.0",
            ("prompt", "label"),
            _xstest,
            hub="Paul/XSTest",
            revision="f600c994b256f12867dfa5b3eb3d545a3e62f8b5",
            split="train",
            place="xstest_prompts.csv of github.com/paul-rottger/xstest",
        ),
        KnownBenchmark(
            "do-not-answer",
            "refusal",
            "cc-by-nc-sa-4.0",
            ("prompt|question",),
            _harmful("question", category=("category", "risk_area")),
            hub="LibrAI/do-not-answer",
            revision="74e74f2e4507ef256fe536f78a776f4a1ff67955",
            split="train",
        ),
        KnownBenchmark(
            "harmbench",
            "refusal",
            "mit",
            ("prompt|Behavior",),
            _harmbench,
            hub="walledai/HarmBench",
            config="standard",
            split="train",
            place="data/behavior_datasets/harmbench_behaviors_text_all.csv of github.com/centerforaisafety/HarmBench",
        ),
        KnownBenchmark(
            "wildchat-toxic",
            "refusal",
            "odc-by",
            ("prompt|conversation",),
            _wildchat,
            where=(("toxic", True),),
            place="the parquet files of huggingface.co/datasets/allenai/WildChat-1M-Full, behind its terms",
        ),
        KnownBenchmark(
            "alpaca_eval",
            "winrate",
            "cc-by-nc-4.0",
            ("prompt|instruction", "reference_answer|output"),
            _alpaca_eval,
            place="alpaca_eval.json of huggingface.co/datasets/tatsu-lab/alpaca_eval",
        ),
        KnownBenchmark(
            "gsm8k",
            "gsm8k",
            "mit",
            ("prompt|question", "reference_answer|answer"),
            _gsm8k,
            hub="openai/gsm8k",
            revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
            config="main",
        ),
        KnownBenchmark(
            "simpleqa",
            "simpleqa",
            "mit",
            ("prompt|problem", "reference_answer|answer"),
            _simpleqa,
            hub="basicv8vc/SimpleQA",
            revision="e319282ab125c3dbd0c7fd00be2e4dd54e7e8f94",
            place="simple_qa_test_set.csv, named in github.com/openai/simple-evals",
        ),
        KnownBenchmark(
            "advglue",
            "label",
            "cc-by-sa-4.0",
            ("prompt|sentence|sentence1|question1|premise", "label"),
            _advglue,
            hub="AI-Secure/adv_glue",
            config="adv_sst2",
            split="validation",
        ),
    )
}


def known_benchmark(name: str) -> KnownBenchmark | None:
    """Return the known benchmark of a name, whatever its case; dash and underscore are equal."""
    wanted = name.lower().replace("_", "-")
    return next((known for each, known in KNOWN_BENCHMARKS.items() if each.replace("_", "-") == wanted), None)


def benchmark_like(name: str) -> KnownBenchmark:
    """Return the known benchmark that `like:` names.

    Raises:
        RecipeError: there is none of that name.
    """
    known = known_benchmark(name)
    if known is None:
        raise RecipeError(
            f"like: {quote(name)} is not a benchmark that this release knows; {suggest(name, KNOWN_BENCHMARKS, 0.4)}"
        )
    return known
