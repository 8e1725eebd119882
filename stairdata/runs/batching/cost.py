"""What batches spare, for a forecast: their lower price, and what they have answered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from stairdata.llm.batches.ledger import Ledger
from stairdata.recipe import Price
from stairdata.runs.batching.options import BATCHES
from stairdata.runs.forecast import Forecast, ModelLoad
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import WORK


def in_batches(
    forecast: Forecast, roles: Collection[str], prices: Mapping[str, Price], there: Artifact | Path | None
) -> Forecast:
    """Return the forecast of a build that asks in batches.

    Args:
        forecast: of the live build.
        roles: those that are asked in batches; the others keep the price of live requests.
        prices: by model.
        there: what is built already; requests that its batches have answered, or are answering, cost nothing more.
    """
    models = tuple(_batched(each, prices) if each.role in roles else each for each in forecast.models)
    words = [forecast.words]
    if models and all(each.cost is not None for each in models):
        words.append(f"  cost, batched: {sum(each.cost or 0.0 for each in models):,.2f}")
    if isinstance(there, Path) and (count := _asked(there)):
        words.append(f"  {count:,} requests are answered or in progress in batches and not asked, or paid for, again")
    return replace(forecast, words="\n".join(words), models=models)


def _batched(load: ModelLoad, prices: Mapping[str, Price]) -> ModelLoad:
    return load if load.cost is None else replace(load, cost=load.cost * prices[load.name].batch)


def _asked(folder: Path) -> int:
    batches = folder / WORK / BATCHES
    if not batches.is_dir():
        return 0
    return sum(job.requests if job.is_open else job.completed for job in Ledger(batches).jobs)
