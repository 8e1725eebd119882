"""What teachers would cost, at once and in batches, before anything is paid for."""

from __future__ import annotations

import json
from typing import NamedTuple

from stairdata.generators.inputs import Inputs
from stairdata.generators.lesson_plan import (
    Tries,
    choose_teachers,
    gather_class,
    look_ahead,
    make_lessons,
    read_tries,
)
from stairdata.generators.options import BuildOptions
from stairdata.generators.teacher import Lesson, Templates, make_request, response_format
from stairdata.generators.teacher_batches import Desk
from stairdata.generators.unfinished import rows_in, words_on
from stairdata.llm.budget import MILLION, Budget, unpriced
from stairdata.llm.tokens import token_count
from stairdata.recipe import CotJudge, Recipe, Teacher
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import WORK

ANSWER_TOKENS = 400
JUDGEMENT_TOKENS = 60
JUDGE_TEMPLATE_TOKENS = 250


def forecast_teachers(recipe: Recipe, options: BuildOptions, inputs: Inputs) -> str:
    """Count what teachers and judge would be asked, and say what that costs.

    Prompt tokens are counted with the models' tokenizers where they can be had; the lengths of answers are assumed.
    """
    section, templates = recipe.structured_cot, Templates(recipe.structured_cot.templates)
    left = _what_is_left(recipe, options, inputs)
    if isinstance(left, Artifact):
        return f"{left.reference} is finished; there is nothing left to ask"
    blocks = [f"structured_cot: {len(left.lessons):,} prompts{left.words}"]
    for teacher, lessons in zip(choose_teachers(recipe, options.teachers), left.unasked, strict=True):
        blocks.append(_of_teacher(recipe, teacher, templates, lessons))
    if section.judge is not None:
        blocks.append(_of_judge(recipe, section.judge, left.lessons, len(left.unasked)))
    return "\n".join(blocks)


class Left(NamedTuple):
    """What a build has still to do."""

    lessons: list[Lesson]
    """Prompts without a row."""
    unasked: list[list[Lesson]]
    """Of each teacher: those that it has not answered, and is not answering in a batch."""
    words: str = ""


def _what_is_left(recipe: Recipe, options: BuildOptions, inputs: Inputs) -> Left | Artifact:
    teachers = choose_teachers(recipe, options.teachers)
    prompts = inputs.of_kind("prompts")
    if all(teacher.path is None and teacher.base_url is None for teacher in teachers):  # a forecast needs none
        lessons = list(make_lessons(prompts, options, Tries(), 0).values())
        return Left(lessons, [lessons] * len(teachers))
    pupils = gather_class(recipe, options, inputs)
    there, pupils.wanted = look_ahead(pupils, options)
    if isinstance(there, Artifact):
        return there
    tries = read_tries(there / WORK) if there else Tries()
    pupils.lessons = make_lessons(prompts, options, tries, depth=0)
    rows = rows_in(there)
    lessons = [pupils.lessons[unit.key] for unit in pupils.units() if unit.key not in rows]
    unasked = [lessons] * len(teachers)
    if there is not None and not options.retry_quarantined:  # what is tried again is asked anew
        desk = Desk(there / WORK, pupils, Budget())
        unasked = [list(desk.unasked(number, lessons)) for number in range(len(teachers))]
    words = words_on("structured_cot", there, len(rows))
    spared = len(lessons) * len(teachers) - sum(map(len, unasked))
    return Left(lessons, unasked, words + (f"; {spared:,} requests are answered or under way" if spared else ""))


def _of_teacher(recipe: Recipe, teacher: Teacher, templates: Templates, lessons: list[Lesson]) -> str:
    counter = token_count(teacher)
    read = sum(counter.count(make_request(lesson, teacher, templates, recipe.seed).content) for lesson in lessons)
    if teacher.format == "json":  # servers put the schema before the prompt, in a form of their own
        read += len(lessons) * counter.count(json.dumps(response_format()["json_schema"]["schema"]))
    written = min(ANSWER_TOKENS, teacher.max_tokens)
    lines = [
        f"teacher {teacher.name or '(the recipe names none)'}",
        f"  prompt tokens counted {counter.how}",
        f"  answers ASSUMED of {written} tokens; at most {teacher.max_tokens:,} (max_tokens)",
        f"  requests           {len(lessons):>14,}",
        f"  prompt tokens      {read:>14,}",
        f"  completion tokens  {written * len(lessons):>14,}",
    ]
    price = recipe.prices.get(teacher.name)
    if price is None:
        return "\n".join([*lines, f"  {unpriced(teacher.name)}"])
    expected = (read * price.input + written * len(lessons) * price.output) / MILLION
    most = (read * price.input + teacher.max_tokens * len(lessons) * price.output) / MILLION
    return "\n".join(
        [
            *lines,
            f"  cost, live         {expected:>14,.2f}   at most {most:,.2f}",
            f"  cost, batched      {expected * price.batch:>14,.2f}   at most {most * price.batch:,.2f}",
        ]
    )


def _of_judge(recipe: Recipe, judge: CotJudge, lessons: list[Lesson], teachers: int) -> str:
    compared = teachers * (teachers - 1) * len(lessons)
    unsafe = sum(lesson.task == "safety" and lesson.reference_is_safe is False for lesson in lessons)
    checked = unsafe * teachers if recipe.structured_cot.gate.compliance else 0
    counter = token_count(judge)
    mean = sum(counter.count(lesson.prompt) for lesson in lessons) / max(1, len(lessons))
    read = compared * (JUDGE_TEMPLATE_TOKENS + mean + 2 * ANSWER_TOKENS)
    read += checked * (JUDGE_TEMPLATE_TOKENS + mean + ANSWER_TOKENS)
    written = (compared + checked) * JUDGEMENT_TOKENS
    lines = [
        f"judge {judge.name}, asked live; all ASSUMED: answers of {ANSWER_TOKENS} tokens, judgements of "
        f"{JUDGEMENT_TOKENS}",
        f"  requests           {compared + checked:>14,}",
        f"  prompt tokens      {read:>14,.0f}",
        f"  completion tokens  {written:>14,}",
    ]
    price = recipe.prices.get(judge.name)
    if price is None:
        return "\n".join([*lines, f"  {unpriced(judge.name)}"])
    cost = (read * price.input + written * price.output) / MILLION
    return "\n".join([*lines, f"  cost               {cost:>14,.2f}"])
