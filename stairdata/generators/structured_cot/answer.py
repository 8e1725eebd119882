"""An answer in the step grammar, as a person or a teacher writes it, and the row that it becomes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata.generators.structured_cot.quality_gate import check_answer
from stairdata.llm.client import Generation
from stairdata.llm.outcomes import THINKS_TOO_LONG
from stairdata.llm.wrapping import unwrapped
from stairdata.recipe import GateSection, Teacher
from stairdata.runs.units import UnitFailedError
from stairdata_schemas import grammar, identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import GrammarError
from stairdata_schemas.formats.unique_keys import KeyTwiceError, check_keys


class WrittenStep(BaseModel):
    """One step as it is written, by a person or a teacher."""

    model_config = ConfigDict(extra="forbid")

    title: str
    body: str


class WrittenAnswer(BaseModel):
    """An answer as it is written; a teacher is held to its JSON Schema."""

    model_config = ConfigDict(extra="forbid")

    steps: list[WrittenStep]
    output: str


def make_row(prompt: str, task: str, answer: WrittenAnswer) -> Row:
    """Render an answer in the step grammar.

    Raises:
        UnitFailedError: it breaks the grammar.
    """
    steps = [grammar.Step(step.title, step.body) for step in answer.steps]
    try:
        completion = grammar.render(steps, answer.output)
    except GrammarError as error:
        raise UnitFailedError(f"grammar_{error.rule}", answer.model_dump_json()) from error
    return {
        "prompt_id": identity.prompt_id(prompt),
        "prompt": prompt,
        "task": task,
        "steps": [{"title": step.title, "body": step.body} for step in steps],
        "output": answer.output,
        "completion": completion,
    }


def parse_answer(text: str) -> WrittenAnswer:
    """Read an answer's JSON.

    Raises:
        UnitFailedError: it is not of the schema.
    """
    try:
        check_keys(text)
        return WrittenAnswer.model_validate_json(text)
    except (ValidationError, KeyTwiceError) as error:
        raise UnitFailedError("not_the_schema", text) from error


def read_row(prompt: str, task: str, generation: Generation, teacher: Teacher, gate: GateSection) -> Row:
    """Make a row of a teacher's answer.

    A code fence about it is cut off, and so is space around titles, bodies and the output. A title on several lines is
    put on one, and gets the colon that it lacks. Thoughts are in a column of their own, if they are kept.

    Raises:
        UnitFailedError: it was cut, is not in the asked form, breaks the grammar, or does not pass the gate.
    """
    said = generation.samples[0]
    if generation.is_only_thoughts:
        raise UnitFailedError("only_reasoning", THINKS_TOO_LONG)
    if said.finish == "length":
        raise UnitFailedError("cut_at_length", said.text)
    text = unwrapped(said.text)
    answer = parse_answer(text) if teacher.format == "json" else _parse_text(text)
    row = make_row(prompt, task, _tidy(answer))
    check_answer(row, gate)
    return row | {"thoughts": (said.thoughts or None) if teacher.keep_reasoning else None}


def _parse_text(text: str) -> WrittenAnswer:
    try:
        parsed = grammar.parse(text.strip())
    except GrammarError as error:
        raise UnitFailedError(f"grammar_{error.rule}", text) from error
    return WrittenAnswer(
        steps=[WrittenStep(title=step.title, body=step.body) for step in parsed.steps], output=parsed.output
    )


def _tidy(answer: WrittenAnswer) -> WrittenAnswer:
    steps = [WrittenStep(title=_title(step.title), body=step.body.strip()) for step in answer.steps]
    return WrittenAnswer(steps=steps, output=answer.output.strip())


def _title(title: str) -> str:
    words = " ".join(title.split())
    return words if not words or words.endswith(":") else f"{words}:"
