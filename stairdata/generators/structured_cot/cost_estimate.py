"""What teachers would cost, live and in batches, before anything is paid for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

from stairdata.generators.structured_cot.batches import TeacherBatches
from stairdata.generators.structured_cot.from_hub import is_published
from stairdata.generators.structured_cot.plan import (
    ASK_ONE,
    KIND,
    TeacherJob,
    TeacherOptions,
    choose_teachers,
    look_ahead,
    make_panel,
    source_of,
)
from stairdata.generators.structured_cot.requests import TeacherPrompt, TeacherTemplates, make_request, response_format
from stairdata.generators.structured_cot.retries import RetryRounds, make_prompts, read_retries
from stairdata.llm.budget import MILLION, Budget, unpriced
from stairdata.llm.tokens import token_count
from stairdata.recipe import CotJudge, Recipe, Teacher
from stairdata.runs.forecast import Forecast, ModelLoad
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BuildOptions
from stairdata.runs.unfinished import rows_in, words_on
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import WORK

ANSWER_TOKENS = 400
JUDGEMENT_TOKENS = 60
JUDGE_TEMPLATE_TOKENS = 250


def forecast_structured_cot(recipe: Recipe, options: BuildOptions, asking: TeacherOptions = ASK_ONE) -> Forecast:
    """Forecast what teachers and judge would be asked; rows from other sources ask no model.

    Prompt tokens are counted with the models' tokenizers where they can be had; the lengths of answers are assumed.
    """
    if recipe.structured_cot.path is not None or is_published(recipe):
        return Forecast(KIND)  # nothing is asked, whatever the inputs are
    inputs = Inputs(options.inputs, options.root)
    if source_of(recipe, inputs) != "teachers":
        return Forecast(KIND)
    section = recipe.structured_cot
    templates = TeacherTemplates(section.templates, section.policies)
    left = _what_is_left(recipe, inputs.of("prompts"), options, asking)
    if isinstance(left, Artifact):
        return Forecast(KIND, finished=left.reference)
    models = [
        _of_teacher(recipe, teacher, templates, prompts)
        for teacher, prompts in zip(choose_teachers(recipe, asking.teachers), left.unasked, strict=True)
    ]
    if section.judge is not None:
        models.append(_of_judge(recipe, section.judge, left.prompts, len(left.unasked)))
    head = f"structured_cot: {len(left.prompts):,} prompts{left.words}"
    return Forecast(KIND, "\n".join([head, *(words for words, _ in models)]), tuple(load for _, load in models))


class RemainingWork(NamedTuple):
    """What a build has still to do."""

    prompts: list[TeacherPrompt]
    """Prompts without a row."""
    unasked: list[list[TeacherPrompt]]
    """Of each teacher: those that it has not answered, and is not answering in a batch."""
    words: str = ""


def _what_is_left(
    recipe: Recipe, prompts: Artifact, options: BuildOptions, asking: TeacherOptions
) -> RemainingWork | Artifact:
    teachers = choose_teachers(recipe, asking.teachers)
    if all(teacher.path is None and teacher.base_url is None for teacher in teachers):  # a forecast needs none
        every = list(make_prompts(prompts, options.limit, RetryRounds(), 0).values())
        return RemainingWork(every, [every] * len(teachers))
    panel = make_panel(recipe, prompts, options, asking)
    there, wanted = look_ahead(panel, options, retry=asking.retry_quarantined)
    if isinstance(there, Artifact):
        return there
    retries = read_retries(there / WORK) if there else RetryRounds()
    job = TeacherJob(panel, make_prompts(prompts, options.limit, retries, depth=0), wanted)
    rows = rows_in(there)
    left = [job.prompts[unit.key] for unit in job.units() if unit.key not in rows]
    unasked = [left] * len(teachers)
    if there is not None and not asking.retry_quarantined:  # what is tried again is asked anew
        batches = TeacherBatches(there / WORK, job, Budget())
        unasked = [list(batches.unasked(number, left)) for number in range(len(teachers))]
    words = words_on("structured_cot", there, len(rows))
    spared = len(left) * len(teachers) - sum(map(len, unasked))
    return RemainingWork(
        left, unasked, words + (f"; {spared:,} requests are answered or in progress" if spared else "")
    )


def _of_teacher(
    recipe: Recipe, teacher: Teacher, templates: TeacherTemplates, prompts: list[TeacherPrompt]
) -> tuple[str, ModelLoad]:
    counter = token_count(teacher)
    read = sum(counter.count(make_request(prompt, teacher, templates, recipe.seed).content) for prompt in prompts)
    if teacher.format == "json":  # servers put the schema before the prompt, in a form of their own
        read += len(prompts) * counter.count(json.dumps(response_format()["json_schema"]["schema"]))
    written = min(ANSWER_TOKENS, teacher.max_tokens)
    lines = [
        f"teacher {teacher.name or '(the recipe names none)'}",
        f"  prompt tokens counted {counter.how}",
        f"  answers ASSUMED of {written} tokens; at most {teacher.max_tokens:,} (max_tokens)",
        f"  requests           {len(prompts):>14,}",
        f"  prompt tokens      {read:>14,}",
        f"  completion tokens  {written * len(prompts):>14,}",
    ]
    price = recipe.prices.get(teacher.name)
    load = ModelLoad("teacher", teacher.name, len(prompts), read, written * len(prompts))
    if price is None:
        return "\n".join([*lines, f"  {unpriced(teacher.name)}"]), load
    expected = (read * price.input + written * len(prompts) * price.output) / MILLION
    most = (read * price.input + teacher.max_tokens * len(prompts) * price.output) / MILLION
    lines += [
        f"  cost, live         {expected:>14,.2f}   at most {most:,.2f}",
        f"  cost, batched      {expected * price.batch:>14,.2f}   at most {most * price.batch:,.2f}",
    ]
    return "\n".join(lines), replace(load, cost=expected)


def _of_judge(recipe: Recipe, judge: CotJudge, prompts: list[TeacherPrompt], teachers: int) -> tuple[str, ModelLoad]:
    compared = teachers * (teachers - 1) * len(prompts)
    unsafe = sum(prompt.task == "safety" and prompt.reference_is_safe is False for prompt in prompts)
    checked = unsafe * teachers if recipe.structured_cot.gate.compliance else 0
    counter = token_count(judge)
    mean = sum(counter.count(prompt.prompt) for prompt in prompts) / max(1, len(prompts))
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
    load = ModelLoad("judge", judge.name, compared + checked, round(read), written)
    if price is None:
        return "\n".join([*lines, f"  {unpriced(judge.name)}"]), load
    cost = (read * price.input + written * price.output) / MILLION
    return "\n".join([*lines, f"  cost               {cost:>14,.2f}"]), replace(load, cost=cost)
