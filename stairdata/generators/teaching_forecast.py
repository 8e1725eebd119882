"""What teachers would cost, at once and in batches, before anything is paid for."""

from __future__ import annotations

import json

from stairdata.generators.lesson_plan import choose_teachers, gather_class, refused_before
from stairdata.generators.options import BuildOptions
from stairdata.generators.teacher import LESSON_COLUMNS, Lesson, Templates, make_request, response_format
from stairdata.llm.budget import MILLION, unpriced
from stairdata.llm.tokens import token_count
from stairdata.recipe import CotJudge, Recipe, Teacher

ANSWER_TOKENS = 400
JUDGEMENT_TOKENS = 60
JUDGE_TEMPLATE_TOKENS = 250


def forecast_teachers(recipe: Recipe, options: BuildOptions) -> str:
    """Count what teachers and judge would be asked, and say what that costs.

    Prompt tokens are counted with the models' tokenizers where they can be had; the lengths of answers are assumed.
    """
    section, templates = recipe.structured_cot, Templates(recipe.structured_cot.templates)
    teachers = choose_teachers(recipe, options.teachers)
    lessons = [Lesson(**row) for row in options.rows(options.parent("prompts"), LESSON_COLUMNS)]
    again = refused_before(gather_class(recipe, options), options) if options.retry_quarantined else None
    lessons = [lesson for number, lesson in enumerate(lessons) if again is None or number in again]
    blocks = [f"structured_cot: {len(lessons):,} prompts"]
    blocks += [_of_teacher(recipe, teacher, templates, lessons) for teacher in teachers]
    if section.judge is not None:
        blocks.append(_of_judge(recipe, section.judge, lessons, len(teachers)))
    return "\n".join(blocks)


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
