r"""The step grammar: how structured reasoning is written as text.

    <|Reasoning_step|>
    Title: Problem Analysis:
    free text
    <|/Reasoning_step|>

    <|Output|>
    Final Answer:
    free text
    <|/Output|>

One or more reasoning blocks and one output block, with exactly one empty line between blocks and nothing
before or after. The four tags are special tokens. A *step* is the text from the end of the last step up to
and including the next closing tag, so the empty line before a block belongs to that block's step, and the
steps of a completion joined are the completion, byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from stairdata_schemas.errors import GrammarError
from stairdata_schemas.text.visible import is_blank

STEP_OPEN = "<|Reasoning_step|>"
STEP_CLOSE = "<|/Reasoning_step|>"
OUTPUT_OPEN = "<|Output|>"
OUTPUT_CLOSE = "<|/Output|>"
TAGS = (STEP_OPEN, STEP_CLOSE, OUTPUT_OPEN, OUTPUT_CLOSE)
CLOSING_TAGS = (STEP_CLOSE, OUTPUT_CLOSE)
SEPARATOR = "\n\n"

RULES = {
    "empty": "the completion is empty",
    "no_reasoning": "the completion has no reasoning block before its output",
    "expected_block": "a block has to begin here with <|Reasoning_step|> or <|Output|> on a line of its own",
    "missing_title": "a reasoning block begins with a line 'Title: ...'",
    "empty_title": "the title has no visible character",
    "empty_body": "the body has no visible character",
    "missing_final_answer": "the output block begins with the line 'Final Answer:'",
    "empty_output": "the final answer has no visible character",
    "nested_tag": "a tag stands inside a block",
    "unclosed_block": "a block is not closed by its tag on a line of its own",
    "bad_separator": "exactly one empty line stands between two blocks",
    "missing_output": "the completion ends without an output block",
    "trailing_text": "nothing may follow the output block",
}

_TITLE_LEAD = "Title: "
_ANSWER_LEAD = "Final Answer:\n"
_ANY_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
_CLOSING = re.compile("|".join(re.escape(tag) for tag in CLOSING_TAGS))


@dataclass(frozen=True, slots=True)
class Step:
    """One reasoning block: a title (its colon included) and a body."""

    title: str
    body: str


class Completion(NamedTuple):
    """A parsed completion."""

    steps: tuple[Step, ...]
    output: str


def render(steps: tuple[Step, ...] | list[Step], output: str) -> str:
    """Write steps and a final answer in the grammar.

    Raises:
        GrammarError: the result would not parse back to the same steps and output.
    """
    for part in (*(part for step in steps for part in (step.title, step.body)), output):
        tag = _ANY_TAG.search(part)
        if tag is not None:  # a body that closes its block and opens another would parse, to other steps
            raise GrammarError("nested_tag", tag.start(), part)
    blocks = [f"{STEP_OPEN}\n{_TITLE_LEAD}{step.title}\n{step.body}\n{STEP_CLOSE}" for step in steps]
    text = SEPARATOR.join([*blocks, f"{OUTPUT_OPEN}\n{_ANSWER_LEAD}{output}\n{OUTPUT_CLOSE}"])
    parsed = parse(text)
    if parsed != (tuple(steps), output):  # a line break in a title moves the rest of it into the body
        raise GrammarError("missing_title", 0, text)
    return text


def parse(text: str) -> Completion:
    """Parse a completion strictly; `render` of the result is `text` again.

    Raises:
        GrammarError: with the broken rule and its position.
    """
    if not text:
        raise GrammarError("empty", 0, text)
    steps: list[Step] = []
    position = 0
    while not text.startswith(OUTPUT_OPEN + "\n", position):
        step, position = _parse_reasoning(text, position)
        steps.append(step)
        position = _parse_separator(text, position)
    if not steps:
        raise GrammarError("no_reasoning", position, text)
    output, position = _parse_output(text, position)
    if position != len(text):
        raise GrammarError("trailing_text", position, text)
    return Completion(tuple(steps), output)


def is_grammatical(text: str) -> bool:
    try:
        parse(text)
    except GrammarError:
        return False
    return True


def is_block(step: str, *, is_first: bool) -> bool:
    """Tell whether a step is one whole block, behind one empty line unless it is the first.

    An output can't be the first.
    """
    try:
        start = 0 if is_first else _parse_separator(step, 0)
        is_output = step.startswith(OUTPUT_OPEN + "\n", start)
        _, end = _parse_output(step, start) if is_output else _parse_reasoning(step, start)
    except GrammarError:
        return False
    return end == len(step) and not (is_output and is_first)


def split_steps(text: str) -> list[str]:
    """Cut text after each closing tag; the pieces joined are the text. Nothing is checked or trimmed."""
    ends = [match.end() for match in _CLOSING.finditer(text)]
    starts = [0, *ends]
    pieces = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def closes_output(step: str) -> bool:
    """Tell whether a step ends the answer by itself."""
    return step.endswith(OUTPUT_CLOSE)


def final_answer(text: str) -> str:
    """Return what a reader of the answer sees, also where the grammar is broken.

    That is the text after the last `<|/Reasoning_step|>` or `<|Output|>`, up to `<|/Output|>`, stripped and
    without the line `Final Answer:`.
    """
    start = max(text.rfind(tag) + len(tag) if tag in text else 0 for tag in (STEP_CLOSE, OUTPUT_OPEN))
    answer = text[start:].split(OUTPUT_CLOSE, 1)[0].strip()
    return answer.removeprefix(_ANSWER_LEAD.strip()).strip()


def step_title(step: str) -> str:
    """Return a step's title for display, or an empty string."""
    match = re.search(r"^Title: (.*)$", step, re.MULTILINE)
    return match.group(1) if match else ""


def _parse_reasoning(text: str, position: int) -> tuple[Step, int]:
    if not text.startswith(STEP_OPEN + "\n", position):
        rule = "missing_output" if position == len(text) else "expected_block"
        raise GrammarError(rule, position, text)
    start = position + len(STEP_OPEN) + 1
    content, end = _block_content(text, start, STEP_CLOSE)
    if not content.startswith(_TITLE_LEAD):
        raise GrammarError("missing_title", start, text)
    title, line_break, body = content.removeprefix(_TITLE_LEAD).partition("\n")
    if is_blank(title):
        raise GrammarError("empty_title", start + len(_TITLE_LEAD), text)
    if not line_break or is_blank(body):
        raise GrammarError("empty_body", start + len(_TITLE_LEAD) + len(title), text)
    return Step(title, body), end


def _parse_output(text: str, position: int) -> tuple[str, int]:
    start = position + len(OUTPUT_OPEN) + 1
    content, end = _block_content(text, start, OUTPUT_CLOSE)
    if not content.startswith(_ANSWER_LEAD) and content != _ANSWER_LEAD.rstrip():
        raise GrammarError("missing_final_answer", start, text)
    output = content.removeprefix(_ANSWER_LEAD)
    if content == _ANSWER_LEAD.rstrip() or is_blank(output):
        raise GrammarError("empty_output", start + len(_ANSWER_LEAD) - 1, text)
    return output, end


def _block_content(text: str, start: int, closing: str) -> tuple[str, int]:
    """Return the lines between an opening tag and its closing tag, and where the block ends."""
    match = _ANY_TAG.search(text, start)
    if match is None:
        raise GrammarError("unclosed_block", len(text), text)
    if match.group() != closing:
        raise GrammarError("nested_tag", match.start(), text)
    if match.start() == start:
        return "", match.end()
    if text[match.start() - 1] != "\n":
        raise GrammarError("unclosed_block", match.start(), text)
    return text[start : match.start() - 1], match.end()


def _parse_separator(text: str, position: int) -> int:
    end = position + len(SEPARATOR)
    if position == len(text):
        raise GrammarError("missing_output", position, text)
    if text[position:end] != SEPARATOR or text[end : end + 1].isspace():
        raise GrammarError("bad_separator", position, text)
    return end
