"""Kind `responses`: answers of a model to prompts, one or the best of n."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import polars as pl

from stairdata.fingerprints import row_settings
from stairdata.generators.inputs import open_inputs
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import (
    Done,
    Opened,
    Row,
    Unit,
    open_budget,
    run_units,
    table_of_outcomes,
    usage_of,
)
from stairdata.llm.actor import Actor, Piece
from stairdata.llm.budget import Budget
from stairdata.llm.session import identify, make_actor, open_client
from stairdata.recipe import Recipe, ResponsesSection
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, Report, begin_build
from stairdata_schemas.manifest import ModelIdentity

GENERATOR = "responses/1"
ScoreFunction = Callable[[Sequence[tuple[str, str, bool]]], list[float]]
"""From (prompt, assistant text, is complete) to the PRM's rewards."""


def build_responses(
    recipe: Recipe,
    options: BuildOptions,
    score: ScoreFunction | None = None,
    prm: ModelIdentity | None = None,
) -> Artifact:
    """Let the actor answer each prompt; with a PRM score all candidates, and keep the best.

    Args:
        recipe: sections `actor` and `responses`.
        options: where and from what.
        score: the PRM, given by the command line; without it nothing is scored.
        prm: which PRM that is.

    Raises:
        ServerError: the server can't be started or has gone; what is finished is kept.
    """
    section = recipe.responses
    parent = open_inputs(options.root, options.inputs).of_kind("prompts")
    actor = identify(recipe.actor, "actor")
    plan = BuildPlan(
        "responses",
        GENERATOR,
        {
            **row_settings(recipe.actor),
            **row_settings(section),
            "seed": recipe.seed,
            "limit": options.limit,
            "max_model_len": recipe.actor.max_model_len,  # decides which prompts leave room, whoever serves the actor
        },
        settings={"actor": recipe.actor.model_dump(mode="json")},
        parents=[parent.as_parent()],
        models=[actor, *([prm] if prm else [])],
        seeds={"sampling": recipe.seed},
    )
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        prompts = {row["prompt_id"]: row for row in options.rows(parent, ["prompt_id", "prompt", "task"])}
        units = [Unit(key, number, row["prompt"]) for number, (key, row) in enumerate(prompts.items())]
        budget = open_budget(build, recipe, options)
        work = partial(_open_work, build, recipe, prompts, options, budget)
        result = run_units(build, units, work, budget, options, section.concurrency)
        options.tell(table_of_outcomes(result))
        names = (prm.name if prm else None, section)
        frames = (_scored(rows, score, *names) for rows in result.frames())
        usage = usage_of(result, budget, [actor.name])
        report = Report(result.outcomes, usage, details={**result.counts, "requests": result.requests})
        return build.finish(frames, result.refused, report, options.max_quarantine)


@asynccontextmanager
async def _open_work(
    build: Build, recipe: Recipe, prompts: dict[str, Row], options: BuildOptions, budget: Budget
) -> AsyncIterator[Opened]:
    section = recipe.responses
    async with open_client(recipe.actor, build.work / "server.log", options.waiting, budget) as client:
        actor = make_actor(client, recipe.actor, section)

        async def work(unit: Unit) -> Done:
            seed = identity.request_seed(recipe.seed, unit.key, 0)
            pieces, usage = await actor.answers(
                actor.render(unit.text), n=section.n, max_tokens=section.max_tokens, seed=seed
            )
            row = _response_row(prompts[unit.key], build.plan.models[0].name, recipe, pieces, actor)
            cut = sum(piece.is_cut for piece in pieces)
            row["completion_tokens"] = usage.completion_tokens
            return Done(row, {"cut_answers": cut}, dict(Counter(usage.outcomes)))

        yield Opened(work, client.window.room, [client])


def _response_row(prompt: Row, model: str, recipe: Recipe, pieces: list[Piece], actor: Actor) -> Row:
    """Make the row before it is scored: the first candidate counts as chosen."""
    section = recipe.responses
    return prompt | {
        "response_id": identity.response_id(prompt["prompt_id"], model, section.method, recipe.seed),
        "method": section.method,
        "model": model,
        "prm": None,
        "n": section.n,
        "candidates": [_candidate(piece, actor.count_tokens(piece.text)) for piece in pieces],
        "chosen_index": 0,
        "text": pieces[0].text,
        "score": None,
    }


def _candidate(piece: Piece, tokens: int) -> Row:
    return {"text": piece.text, "score": None, "is_complete": not piece.is_cut, "tokens": tokens}


def _scored(
    rows: pl.DataFrame, score: ScoreFunction | None, prm: str | None, section: ResponsesSection
) -> pl.DataFrame:
    """Score all candidates in one batch and choose; without a PRM the first one stays chosen."""
    if score is None:
        return rows
    flat = rows.select("response_id", "prompt", "candidates").explode("candidates").unnest("candidates")
    scores = score(list(flat.select("prompt", "text", "is_complete").iter_rows()))
    candidates = (
        flat.with_columns(score=pl.Series(scores, dtype=pl.Float64))
        .group_by("response_id", maintain_order=True)
        .agg(candidates=pl.struct("text", "score", "is_complete", "tokens"))
    )
    best = pl.col("candidates").list.eval(pl.element().struct.field("score")).list.arg_max().cast(pl.Int32)
    index = best if section.method == "best_of_n" else pl.lit(0, pl.Int32)
    chosen = pl.col("candidates").list.get(pl.col("chosen_index")).struct
    return (
        rows.drop("candidates")
        .join(candidates, on="response_id", maintain_order="left")
        .with_columns(chosen_index=index, prm=pl.lit(prm))
        .with_columns(text=chosen.field("text"), score=chosen.field("score"))
        .select(rows.columns)
    )
