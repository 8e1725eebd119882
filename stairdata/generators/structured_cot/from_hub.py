"""STAIR's own published reasoning, thu-ml/STAIR-SFT, as structured_cot: its text parsed into the step grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import polars as pl

from stairdata.generators.prompts.decontamination import files_hash
from stairdata.generators.prompts.files import BrokenRow
from stairdata.generators.prompts.mapping import InvalidRow, PinnedSource, pin, prompt_row, raw_rows
from stairdata.recipe import PromptSource, Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.options import BuildOptions
from stairdata_schemas import grammar
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import GrammarError, InputError, RecipeError, quote
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.quarantine import QuarantineRow

GENERATOR = "structured_cot/1"
STAIR_SFT = "thu-ml/STAIR-SFT"
TEACHER = "gpt-4o"  # who wrote them, by section 3.1 of the paper
_BETWEEN = re.compile(rf"({'|'.join(map(re.escape, grammar.CLOSING_TAGS))})\s*(?=<\|(?:Reasoning_step|Output)\|>)")
_OPENING = re.compile(rf"({re.escape(grammar.STEP_OPEN)}|{re.escape(grammar.OUTPUT_OPEN)})[ \t]*\n\s*")
_CLOSING = re.compile(rf"(?<!\s)\s*\n[ \t]*({'|'.join(map(re.escape, grammar.CLOSING_TAGS))})")


def is_published(recipe: Recipe) -> bool:
    """Return whether the recipe takes rows of the published set."""
    return recipe.structured_cot.hub is not None or recipe.structured_cot.like is not None


def build_published(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Build a structured_cot artifact from thu-ml/STAIR-SFT, from the Hub or from its file.

    Raises:
        RecipeError: another dataset.
        InputError: it can't be read, or is not in that form.
    """
    pinned = _pinned(recipe)
    source = pinned.source
    plan = BuildPlan(
        "structured_cot",
        GENERATOR,
        {
            **counted_settings(recipe.structured_cot),
            "source": STAIR_SFT,
            "revision": source.revision,
            "limit": options.limit,
        },
        inputs={"rows": files_hash(source.path, pinned)} if source.path else {},
        settings={"licenses": [source.license]},
        license=source.license,
    )

    def content(_: Build) -> BuildContent:
        refused: list[QuarantineRow] = []
        changed: list[int] = []
        rows = list(published_rows(pinned, refused, changed))[: options.limit]
        notes = [f"published by STAIR's authors as {STAIR_SFT}; written by {TEACHER}"]
        if changed:
            notes.append(f"{len(changed)} rows had other white space between and in their blocks than the grammar has")
        report = Report(notes=notes, details={"revision": source.revision})
        frame = pl.DataFrame(rows, schema=polars_schema("structured_cot"))
        return BuildContent([frame], refused, report, {"duplicate_prompt"})

    return build_as_told(plan, content, options)


def _pinned(recipe: Recipe) -> PinnedSource:
    section = recipe.structured_cot
    named = section.like or section.hub or ""
    if named.lower() != STAIR_SFT.lower():
        key = "like" if section.like else "hub"
        raise RecipeError(f"structured_cot.{key}: {quote(named)} is not known; the published dataset is {STAIR_SFT}")
    if section.path is None and section.hub is None:
        raise RecipeError(f"structured_cot.like needs structured_cot.path; for the Hub write `hub: {STAIR_SFT}`")
    source = PromptSource(
        path=section.path and section.path.expanduser(),
        hub=section.hub,
        revision=section.revision,
        license=section.license,
        like=STAIR_SFT,
    )
    if source.path is not None and not source.path.exists():
        raise InputError(f"{source.path} does not exist")
    return pin(source)


def published_rows(pinned: PinnedSource, refused: list[QuarantineRow], changed: list[int]) -> Iterator[Row]:
    """Yield structured_cot rows; those that don't keep the grammar, or repeat a prompt, are refused.

    Args:
        pinned: where the set is.
        refused: added to.
        changed: numbers of rows whose white space was put right, added to.
    """
    seen: dict[str, str] = {}
    for place, number, raw in raw_rows(pinned):
        if isinstance(raw, BrokenRow):
            refused.append(QuarantineRow(place, number, raw.rule, raw.raw, detail=raw.detail))
            continue
        row = _row(raw, pinned)
        if isinstance(row, InvalidRow):
            text = json.dumps(raw, ensure_ascii=False, default=str)
            refused.append(QuarantineRow(place, number, row.rule, text, row.field))
        elif row["prompt_id"] in seen:
            detail = f"repeats {seen[row['prompt_id']]}"
            refused.append(QuarantineRow(place, number, "duplicate_prompt", row["prompt"], "prompt", detail))
        else:
            seen[row["prompt_id"]] = f"{place} row {number}"
            if row.pop("was_changed"):
                changed.append(number)
            yield row


def _row(raw: Row, pinned: PinnedSource) -> Row | InvalidRow:
    prompt = prompt_row(raw, pinned)
    if isinstance(prompt, InvalidRow):
        return prompt
    text = raw.get("answer", raw.get("response"))
    if not isinstance(text, str):
        return InvalidRow("missing_value" if text is None else "wrong_type", "answer")
    completion = put_right(text)
    try:
        steps, output = grammar.parse(completion)
    except GrammarError as error:
        return InvalidRow(f"grammar_{error.rule}", "answer")
    return {
        **{name: prompt[name] for name in ("prompt_id", "prompt", "task")},
        "steps": [{"title": step.title, "body": step.body} for step in steps],
        "output": output,
        "completion": completion,
        "teacher": TEACHER,
        "was_changed": completion != text,
    }


def put_right(text: str) -> str:
    """Bring line ends and the white space around tags into the grammar's form; words and their order stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _BETWEEN.sub(rf"\1{grammar.SEPARATOR}", text.strip())
    return _CLOSING.sub(r"\n\1", _OPENING.sub(r"\1\n", text))
