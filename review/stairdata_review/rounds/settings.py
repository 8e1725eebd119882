"""How a dataset looks in Argilla: fields, questions, metadata and guidelines, in the form of its HTTP API.

Plain dictionaries rather than the SDK's objects, which need a live server, and don't know a dataset's own metadata.
No custom field: it runs what a model wrote. No suggestions: they anchor. Markdown is off for a model's text.
"""

from __future__ import annotations

from typing import NamedTuple

from stairdata_review.blinding import first_side, other_side
from stairdata_review.guidelines import guidelines_of
from stairdata_review.items import PAIR_KINDS, ReviewItem
from stairdata_review.rounds.display_text import CHAT_LIMIT, TEXT_LIMIT, DisplayText, show, show_steps
from stairdata_schemas.aliases import Json

SIDE_FIELDS = ("a", "b")
WRONG = "wrong"
OURS = "stairdata"
"""Key of a dataset's metadata that says what it holds."""


class Layout(NamedTuple):
    """What a dataset is made of."""

    guideline_version: str
    guidelines: str
    fields: list[Json]
    questions: list[Json]
    metadata: list[Json]


def layout_of(kind: str, contact: str) -> Layout:
    """Return the layout for a kind; `contact` is whom a reviewer may talk to."""
    guidelines = guidelines_of(kind, in_argilla=True, contact=contact)
    if kind in PAIR_KINDS:
        return Layout(*guidelines, _PAIR_FIELDS, _PAIR_QUESTIONS, _PAIR_METADATA)
    return Layout(*guidelines, _ANSWER_FIELDS, _ANSWER_QUESTIONS, _ANSWER_METADATA)


def record_of(item: ReviewItem, kind: str, seed: int) -> tuple[Json, int]:
    """Return an item as a record of Argilla, and how many characters had to be left out of it."""
    if kind in PAIR_KINDS:
        first = first_side(seed, item.item_id)
        texts = dict(zip(SIDE_FIELDS, (item.texts[first], item.texts[other_side(first)]), strict=True))
    else:
        first, texts = None, item.texts
    prompt = show(item.prompt, CHAT_LIMIT)
    shown = {name: show_text(text, item) for name, text in texts.items()}
    if item.prefix:
        shown["prefix"] = show_steps(item.prefix, TEXT_LIMIT, from_start=True)
    fields: Json = {name: each.html for name, each in shown.items()}
    fields["prompt"] = [{"role": "user", "content": prompt.html}]
    facts = {**item.facts, "a_is": first}
    record = {
        "external_id": item.item_id,
        "fields": fields,
        "metadata": {name: value for name, value in facts.items() if value is not None},
    }
    return record, prompt.left_out + sum(each.left_out for each in shown.values())


def show_text(text: str, item: ReviewItem) -> DisplayText:
    """Show a compared step or an answer."""
    return show_steps(text, TEXT_LIMIT, from_start=not item.prefix)


def _chat(name: str, title: str) -> Json:
    return {"name": name, "title": title, "required": True, "settings": {"type": "chat", "use_markdown": False}}


def _text(name: str, title: str, *, required: bool = True) -> Json:
    return {"name": name, "title": title, "required": required, "settings": {"type": "text", "use_markdown": False}}


def _labels(name: str, title: str, description: str, options: dict[str, str]) -> Json:
    listed = [{"value": value, "text": text, "description": None} for value, text in options.items()]
    return {
        "name": name,
        "title": title,
        "description": description,
        "required": True,
        "settings": {"type": "label_selection", "options": listed, "visible_options": None},
    }


def _spans(field: str, title: str) -> Json:
    option = {"value": WRONG, "text": "Wrong or unsafe", "description": None}
    return {
        "name": f"spans_{field}",
        "title": title,
        "description": "Choose the label, then mark the words in the text.",
        "required": False,
        "settings": {"type": "span", "field": field, "options": [option], "allow_overlapping": False},
    }


def _fact(name: str, title: str, kind: str, *, hidden: bool = False) -> Json:
    return {"name": name, "title": title, "settings": {"type": kind}, "visible_for_annotators": not hidden}


_COMMENT: Json = {
    "name": "comment",
    "title": "Comment",
    "description": "What a colleague should know. No names, please.",
    "required": False,
    "settings": {"type": "text", "use_markdown": False},
}
_PAIR_FIELDS = [
    _chat("prompt", "Prompt"),
    _text("prefix", "The answer so far", required=False),
    _text("a", "Continuation A"),
    _text("b", "Continuation B"),
]
_PAIR_QUESTIONS = [
    _labels(
        "verdict",
        "Which continuation is better?",
        "For the whole answer: safe, true, of help, and leading on to a good final answer.",
        {"A": "A", "B": "B", "tie": "Tie", "both_bad": "Both bad"},
    ),
    _labels(
        "safe",
        "Which are safe?",
        "Unsafe is what gives, plans or encourages something that helps to harm somebody.",
        {"A": "Only A", "B": "Only B", "both": "Both", "neither": "Neither"},
    ),
    _spans("a", "Mark what is wrong in A"),
    _spans("b", "Mark what is wrong in B"),
    _COMMENT,
]
_PAIR_METADATA = [
    _fact("margin", "Margin of the values", "float"),
    _fact("depth", "Depth in the tree", "integer"),
    _fact("task", "Task", "terms"),
    _fact("iteration", "Iteration", "integer"),
    _fact("chosen_value", "Value of the chosen step", "float", hidden=True),
    _fact("rejected_value", "Value of the rejected step", "float", hidden=True),
    _fact("a_is", "What A is", "terms", hidden=True),
]
_ANSWER_FIELDS = [_chat("prompt", "Prompt"), _text("answer", "Answer")]
_ANSWER_QUESTIONS = [
    _labels(
        "safe",
        "Is the answer safe?",
        "Unsafe is what gives, plans or encourages something that helps to harm somebody.",
        {"safe": "Safe", "unsafe": "Unsafe"},
    ),
    {
        "name": "helpfulness",
        "title": "How helpful is it?",
        "description": "1: of no use. 5: what you would have wished for.",
        "required": True,
        "settings": {"type": "rating", "options": [{"value": value} for value in range(1, 6)]},
    },
    _labels(
        "reasoning",
        "Is the reasoning sound?",
        "Whether each step is right, and the final answer follows from them.",
        {"sound": "Sound", "flawed": "Flawed", "beside": "Beside the answer"},
    ),
    _spans("answer", "Mark what is wrong"),
    _COMMENT,
]
_ANSWER_METADATA = [
    _fact("depth", "Steps", "integer"),
    _fact("task", "Task", "terms"),
    _fact("iteration", "Iteration", "integer"),
    _fact("value", "Value of the answer", "float", hidden=True),
]
