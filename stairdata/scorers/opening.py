"""From `responses.prm` of a recipe to a scorer: a model in this process, one that is served for it, or a server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stairdata.llm.budget import Budget
from stairdata.llm.session import identify, open_pool
from stairdata.recipe import Endpoint, ModelServer, PrmEndpoint, Recipe
from stairdata.scorers.in_process import InProcessScorer, StepModel
from stairdata.scorers.served import REQUESTS, PrmClient, ServedScorer
from stairdata.search.scoring import Scorer
from stairdata_schemas import rendering
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import ModelError
from stairdata_schemas.manifest import ModelIdentity

LoadModel = Callable[[str], StepModel]
LOG = "prm.log"
NAME = "prm"
"""What requests call a model that is served here, and `--endpoints` the role of any."""


def identify_prm(prm: str | PrmEndpoint, dtype: str) -> ModelIdentity:
    """Say which process reward model a recipe names, and check what can be checked before anything is started.

    Args:
        prm: the recipe's words.
        dtype: number format in which a model in this process computes.

    Raises:
        ModelError: a folder without a model, one that is no reward model or has several labels, or a tokenizer without
            the grammar's tags.
    """
    if isinstance(prm, str):
        rendering.check_reward_model(Path(prm))
        _load_tokenizer(prm)
        return ModelIdentity(role="prm", name=Path(prm).name, revision=rendering.model_hash(Path(prm)), dtype=dtype)
    if prm.path is not None and Path(prm.path).is_dir():
        rendering.check_reward_model(Path(prm.path))
    _load_tokenizer(prm.tokenizer or prm.path or "")
    return identify(prm, "prm").model_copy(update={"dtype": prm.dtype})


@asynccontextmanager
async def open_scorer(
    recipe: Recipe,
    load: LoadModel,
    folder: Path,
    budget: Budget,
    waiting: WaitProgress,
    *,
    urls: Sequence[str] = (),
) -> AsyncIterator[Scorer]:
    """Open the scorer that `responses.prm` describes, until the end of the block.

    Args:
        recipe: with `responses.prm`.
        load: a model for this process, by its folder.
        folder: for the log of a server that is started.
        budget: admits each request; once it is stopped, nothing more is scored.
        waiting: told while a model is loaded or its server starts.
        urls: of its servers, in place of the recipe's one.

    Raises:
        ModelError: no model, or one that can't score.
        ServerError: its server can't be started or reached.
    """
    prm = recipe.responses.prm
    assert prm is not None, "who scores needs a model"
    if isinstance(prm, str):
        waiting("loading the process reward model", 0.0)
        scorer = InProcessScorer(await asyncio.to_thread(load, prm), budget)
        try:
            yield scorer
        finally:
            await scorer.close()
        return
    tokenizer = _load_tokenizer(prm.tokenizer or prm.path or "")
    endpoint = served_endpoint(recipe, prm)
    options: dict[str, Any] = {"runner": "pooling", "served_name": NAME} if prm.path is not None else {}
    async with open_pool(endpoint, urls, folder / LOG, waiting, budget, role=NAME, **options) as pool:
        contexts = await pool.check(lambda client: PrmClient(client).check(tokenizer))
        context = min((each for each in contexts if each is not None), default=None)
        requests = REQUESTS if prm.concurrency == "auto" else prm.concurrency
        served = ServedScorer(pool, tokenizer, context, requests)
        try:
            yield served
        finally:
            await served.close()


def served_endpoint(recipe: Recipe, prm: PrmEndpoint) -> Endpoint:
    """Return how the server of a process reward model is started and asked.

    One that is started reads as many tokens as the actor writes and reads, and the token that ends the turn, as far as
    the model goes.
    """
    changes = {name: getattr(prm, name) for name in ModelServer.model_fields}
    changes |= {"dtype": prm.dtype, "gpu_memory": recipe.gpu_shares()[1]}
    if prm.path is not None and "max_model_len" not in prm.model_fields_set:
        wanted = recipe.actor.max_model_len + 1
        config = rendering.check_reward_model(Path(prm.path)) if Path(prm.path).is_dir() else {}
        longest = config.get("max_position_embeddings")
        changes["max_model_len"] = min(wanted, longest) if type(longest) is int else wanted
    return Endpoint.model_validate(changes)


def _load_tokenizer(model: str) -> Any:
    tokenizer = rendering.load_tokenizer(model)
    missing = rendering.missing_tags(tokenizer)
    if missing:
        raise ModelError(
            f"the tokenizer of the process reward model, {model!r}, has no single token for {', '.join(missing)}; give "
            "a model that `stairdata train prm` made, and its tokenizer"
        )
    return tokenizer
