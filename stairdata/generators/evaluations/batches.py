"""Which models of an evaluation are asked in batches."""

from __future__ import annotations

from stairdata.generators.evaluations.executor import JUDGE, server_name
from stairdata.generators.evaluations.plan import EvaluationJob
from stairdata.recipe import Endpoint
from stairdata.runs.batching.options import check_batch, check_places
from stairdata.runs.batching.rounds import BatchedParts
from stairdata.runs.options import BuildOptions
from stairdata_schemas.errors import RecipeError


def batched_parts(job: EvaluationJob) -> BatchedParts:
    """Return whom an evaluation asks: the judge in batches, and the tested models where the recipe says so."""
    section = job.recipe.evaluations
    tested: dict[str, Endpoint] = {server_name(number): model.endpoint for number, model in enumerate(job.models)}
    asks_judge = any(job.words.asks(unit.score) for unit in job.units)
    batched = {*([JUDGE] if asks_judge else []), *(tested if section.batch.answers else [])}
    return BatchedParts("evaluations.batch", section.batch, {JUDGE: section.judge, **tested}, batched)


def check_batched(job: EvaluationJob, parts: BatchedParts, options: BuildOptions) -> None:
    """Check that an evaluation can be made in batches.

    Raises:
        UsageError: options that make no sense.
        RecipeError: nobody to be asked in batches, or somebody who can't be.
    """
    check_batch(options)
    if not parts.batched:
        raise RecipeError(
            "--batch asks the judge in batches, and evaluations.judge asks no model here; give a judge of kind rubric "
            "or guard with base_url, set evaluations.batch.answers to true, or leave --batch out"
        )
    if job.models and job.recipe.responses.prm is not None:
        raise RecipeError(
            "--batch goes with answers that no process reward model scores; leave responses.prm out, or give a "
            "responses artifact as --input"
        )
    check_places([parts.endpoints[part] for part in parts.batched], options)
