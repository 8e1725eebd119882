"""Kind `responses`: answers of a model to prompts, one or the best of n."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import polars as pl

from stairdata.llm.actor import Actor, Continuation
from stairdata.llm.budget import Budget
from stairdata.llm.session import identify, make_actor, open_client
from stairdata.recipe import Recipe, ResponsesSection
from stairdata.runs.build import build_as_told
from stairdata.runs.executors.executor import make_executor
from stairdata.runs.inputs import Inputs, input_rows
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.runner import open_budget, run_units, table_of_outcomes, usage_of
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row, WaitProgress
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import ModelIdentity

GENERATOR = "responses/2"
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
    parent = Inputs(options.inputs, options.root).of("prompts")
    actor = identify(recipe.actor, "actor")
    plan = BuildPlan(
        "responses",
        GENERATOR,
        {
            **counted_settings(recipe.actor),
            **counted_settings(section),
            "max_model_len": recipe.actor.max_model_len,  # decides which prompts leave room, whoever serves the actor
            "seed": recipe.seed,
            "limit": options.limit,
        },
        settings={"actor": recipe.actor.model_dump(mode="json")},
        parents=[parent.as_parent()],
        models=[actor, *([prm] if prm else [])],
        seeds={"sampling": recipe.seed},
    )

    def content(build: Build) -> BuildContent:
        prompts = {row["prompt_id"]: row for row in input_rows(parent, ["prompt_id", "prompt", "task"], options.limit)}
        units = [Unit(key, number, row["prompt"], row) for number, (key, row) in enumerate(prompts.items())]
        budget = open_budget(build, recipe, options)
        workload = ResponseWorkload(recipe, build.work, actor.name)
        executor = make_executor(workload, budget, section.concurrency, report_waiting(options.progress))
        result = run_units(build, units, executor, budget, options.progress)
        options.tell(table_of_outcomes(result))
        names = (prm.name if prm else None, section)
        frames = (_scored(rows, score, *names) for rows in result.frames())
        usage = usage_of(result, budget, [actor.name])
        report = Report(result.outcomes, usage, details={**result.counts, "requests": result.requests})
        return BuildContent(frames, result.refused, report)

    return build_as_told(plan, content, options)


@dataclass(frozen=True)
class ResponseWorkload(Workload):
    """Answers the prompt of each unit."""

    name: str
    """The actor's, in the rows."""

    @property
    def urls(self) -> tuple[str, ...]:
        url = self.recipe.actor.base_url
        return (url,) if url else ()

    def at(self, urls: tuple[str, ...]) -> ResponseWorkload:
        actor = self.recipe.actor.model_copy(update={"base_url": urls[0]})
        return replace(self, recipe=self.recipe.model_copy(update={"actor": actor}))

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        section = self.recipe.responses
        async with open_client(self.recipe.actor, self.folder / "server.log", waiting, budget) as client:
            actor = make_actor(client, self.recipe.actor, section)

            async def work(unit: Unit) -> UnitResult:
                seed = identity.request_seed(self.recipe.seed, unit.key, 0)
                pieces, usage = await actor.answers(
                    actor.render(unit.text), n=section.n, max_tokens=section.max_tokens, seed=seed
                )
                row = _response_row(unit.payload, self.name, self.recipe, pieces, actor)
                cut = sum(piece.is_cut for piece in pieces)
                row["completion_tokens"] = usage.completion_tokens
                used = {name: getattr(usage, name) for name in ("requests", "prompt_tokens", "completion_tokens")}
                return UnitResult(row, {"cut_answers": cut}, dict(Counter(usage.outcomes)), usage=used)

            yield WorkContext(work, client.window.room, [client])


def _response_row(prompt: Row, model: str, recipe: Recipe, pieces: list[Continuation], actor: Actor) -> Row:
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


def _candidate(piece: Continuation, tokens: int) -> Row:
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
