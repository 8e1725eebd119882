"""AdvGLUE (arXiv 2111.02840) as questions to a chat model: a task of GLUE, told by its columns, and its classes.

The wording is ours; published figures of AdvGLUE are of classifiers, or of models that were asked in other words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stairdata_schemas.aliases import Row


class GlueTask(NamedTuple):
    """One of the tasks."""

    name: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    """In the order of the numbers that stand for them."""
    question: str


class Classification(NamedTuple):
    """One row, as a question."""

    task: str | None
    prompt: str | None
    label: str | None


_TASKS = (
    GlueTask(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "Does the premise entail the hypothesis, contradict it, or neither (neutral)?",
    ),
    GlueTask(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "Do the two questions ask the same (duplicate) or not (not_duplicate)?",
    ),
    GlueTask(
        "qnli",
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        "Does the sentence hold the answer to the question (entailment) or not (not_entailment)?",
    ),
    GlueTask(
        "rte",
        ("sentence1", "sentence2"),
        ("entailment", "not_entailment"),
        "Does the second sentence follow from the first (entailment) or not (not_entailment)?",
    ),
    GlueTask("sst2", ("sentence",), ("negative", "positive"), "Is the sentiment of the sentence positive or negative?"),
)
"""Tasks with more columns first: sst2's one column is also in qnli."""


def classification(raw: Row) -> Classification:
    """Word a row of AdvGLUE as a question; what the row lacks is None."""
    task = next((task for task in _TASKS if all(isinstance(raw.get(column), str) for column in task.columns)), None)
    if task is None:
        return Classification(None, None, None)
    texts = [f"{column.capitalize()}: {raw[column]}" for column in task.columns]
    answers = f"Answer with one of: {', '.join(task.classes)}."
    return Classification(
        task.name, "\n".join([task.question, *texts, answers]), _class(raw.get("label"), task.classes)
    )


def _class(label: Any, classes: tuple[str, ...]) -> str | None:
    """Return the class that a label means, by its name or its number."""
    word = str(label).strip().lower()
    if word in classes:
        return word
    return classes[int(word)] if word.isascii() and word.isdigit() and int(word) < len(classes) else None
