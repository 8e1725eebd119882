"""Kind `structured_cot` out of trees: the actor's own good answers, by the rules of design section 6.

The published code writes partial answers, too, as plain text. Rows of this kind parse in the step grammar, so only
whole answers that do are taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import polars as pl

from stairdata.generators.pairs.forest import Forest, Indices, lacks_tokens, path_texts, sound_frames, unfold
from stairdata.generators.pairs.length_limit import LengthLimit, tokenizer_identity, tokenizer_of
from stairdata.recipe import FromTreesSection, Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BuildOptions
from stairdata.runs.row_spool import RowSpool
from stairdata_schemas import grammar
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import BuildError, GrammarError
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.quarantine import QuarantineRow

GENERATOR = "structured_cot_from_trees/2"
OPTION = "structured_cot.from_trees"
NOTES = [
    "taken out of search trees, the actor as teacher; only whole answers that parse in the step grammar (the published "
    "code takes partial answers, too)",
]


def takes_trees(recipe: Recipe, inputs: Inputs) -> bool:
    """Return whether rows are to come out of trees: the recipe says so, or `--input` names some."""
    return recipe.structured_cot.from_trees is not None or inputs.names("trees")


def build_from_trees(recipe: Recipe, trees: Artifact, options: BuildOptions) -> Artifact:
    """Take SFT rows out of trees.

    Raises:
        BuildError: not one row (says how many answers each rule removed), or an answer that only a tokenizer can
            measure.
    """
    section = recipe.structured_cot.from_trees or FromTreesSection()
    has_no_tokens = section.rollouts or lacks_tokens(trees)
    tokenizer = tokenizer_of(section.tokenizer, recipe) if has_no_tokens else None
    plan = BuildPlan(
        "structured_cot",
        GENERATOR,
        {
            **counted_settings(recipe.structured_cot),
            **counted_settings(section),
            "seed": recipe.seed,
            "limit": options.limit,
        },
        settings={"tokenizer": tokenizer},
        parents=[trees.as_parent()],
        models=[tokenizer_identity(tokenizer)] if tokenizer else [],
        seeds={"sampling": recipe.seed},
    )

    def content(build: Build) -> BuildContent:
        spool = build.enter(RowSpool(build.work / "spool"))
        length_limit = LengthLimit(section.max_tokens, tokenizer, f"{OPTION}.tokenizer")
        funnel: Counter[str] = Counter()
        refused: list[QuarantineRow] = []
        sound = sound_frames(trees, "structured_cot", options, refused, rollouts=section.rollouts)
        forests = (unfold(frame, rollouts=section.rollouts) for frame in sound)
        answers = (answers_of(forest, section, recipe.seed, funnel, length_limit) for forest in forests)
        if not spool.fill(frame for frame in answers if not frame.is_empty()):
            raise BuildError(_no_rows(trees, section, funnel))
        rows = spool.rows(_sampled(spool, section, funnel))
        frames = (frame.drop("key") for frame in rows)
        report = Report(notes=NOTES, details={"funnel": funnel})
        return BuildContent(frames, refused, report)

    return build_as_told(plan, content, options)


def answers_of(
    forest: Forest, section: FromTreesSection, seed: int, funnel: Counter[str], length_limit: LengthLimit
) -> pl.DataFrame:
    """Return the good answers of some trees as rows of structured_cot, each with the `key` it is sampled by."""
    answers = _good_answers(forest, section, funnel, length_limit)
    texts = path_texts(forest, answers).to_list() if len(answers) else []
    numbers = forest.nodes["tree"].to_numpy()[answers]
    trees = forest.trees[numbers].iter_rows(named=True)
    rows = []
    for tree, text in zip(trees, texts, strict=True):
        task = tree["task"] or section.task
        if task is None:
            raise BuildError(
                f"tree {tree['tree_id']} has no task, and rows of structured_cot need one; set it with "
                f"`--set {OPTION}.task=safety` (or helpfulness)"
            )
        row = _row(tree, task, text, seed)
        funnel["removed_not_in_the_grammar"] += row is None
        rows += [row] if row else []
    return pl.DataFrame(rows, schema=pl.Schema([*polars_schema("structured_cot").items(), ("key", pl.UInt64())]))


def _good_answers(
    forest: Forest, section: FromTreesSection, funnel: Counter[str], length_limit: LengthLimit
) -> Indices:
    has_children = np.bincount(forest.parents[forest.depths > 0], minlength=len(forest.nodes)) > 0
    leaves = np.flatnonzero((forest.depths > 0) & ~has_children)
    funnel["candidates"] += len(leaves)
    value = forest.nodes["value"].fill_null(float("-inf")).to_numpy()
    for name, rule in (
        ("removed_value_too_low", value >= section.min_value),
        ("removed_not_a_whole_answer", forest.nodes["is_terminal"].to_numpy()),
    ):
        kept = leaves[rule[leaves]]
        funnel[name] += len(leaves) - len(kept)
        leaves = kept
    fits = length_limit.fits(forest, leaves)
    funnel["removed_too_long"] += int((~fits).sum())
    return leaves[fits]


def _row(tree: Row, task: str, text: str, seed: int) -> Row | None:
    try:
        parsed = grammar.parse(text)
    except GrammarError:
        return None
    digest = hashlib.sha256(f"{seed}/{tree['prompt_id']}/{text}".encode()).digest()
    return {
        "prompt_id": tree["prompt_id"],
        "prompt": tree["prompt"],
        "task": task,
        "steps": [{"title": step.title, "body": step.body} for step in parsed.steps],
        "output": parsed.output,
        "completion": text,
        "teacher": tree["actor"],
        "key": int.from_bytes(digest[:8], "big"),
    }


def _sampled(spool: RowSpool, section: FromTreesSection, funnel: Counter[str]) -> pl.Series:
    """Choose at most some answers of each prompt, over all its trees; an answer found twice counts once."""
    rows = spool.columns("prompt_id", "key")
    unique = rows.unique(["prompt_id", "key"], keep="first", maintain_order=True)
    kept = unique.filter(pl.col("key").rank("ordinal").over("prompt_id") <= section.max_per_prompt)
    funnel["removed_found_before"] += len(rows) - len(unique)
    funnel["removed_over_cap_of_prompt"] += len(unique) - len(kept)
    funnel["rows"] += len(kept)
    return kept["row"]


def _no_rows(trees: Artifact, section: FromTreesSection, funnel: Counter[str]) -> str:
    removed = {name.removeprefix("removed_"): count for name, count in funnel.items() if name.startswith("removed_")}
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in removed.items()) or "none"
    return (
        f"not one answer for structured_cot in {trees.reference} ({trees.manifest.rows} trees, {funnel['candidates']} "
        f"leaves). Removed: {counts}. Lower {OPTION}.min_value ({section.min_value}) or raise {OPTION}.max_tokens "
        f"({section.max_tokens})"
    )
