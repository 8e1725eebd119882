"""The work of a build of responses: an answer for each prompt, from its journal as far as that goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from stairdata.generators.responses.answering import Answer, Answerer, resolved_settings
from stairdata.generators.responses.journal import SearchJournal
from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.session import Connect, make_actor, open_pool
from stairdata.recipe import Endpoint, Recipe
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload
from stairdata.scorers.served import pools_of
from stairdata.search.scoring import Scorer
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row, WaitProgress
from stairdata_schemas.manifest import ModelIdentity

ACTOR = "server"
"""Name of the actor's part in a build, and of its server's log."""
OpenScorer = Callable[[Path, Budget, WaitProgress], AbstractAsyncContextManager[Scorer]]
"""Opens a process reward model. Its arguments are the folder of logs, what may be spent, and who is told when a start
takes its time. It can be pickled, as the workload that holds it."""


@dataclass(frozen=True)
class ResponseWorkload(Workload):
    """Answers the prompt of each unit."""

    actor: ModelIdentity
    prm: ModelIdentity | None = None
    open_scorer: OpenScorer | None = None
    """Given where there is a PRM."""
    connect: Connect | None = None
    """Connects to the actor in place of `open_pool`."""

    @property
    def asked(self) -> Endpoint:
        return self.recipe.beside_prm(self.recipe.actor)

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(self._pool(budget, waiting))
            scorer = None
            if self.open_scorer is not None:
                scorer = await stack.enter_async_context(self.open_scorer(self.folder, budget, waiting))
            section = self.recipe.responses
            answerer = Answerer(make_actor(pool, self.recipe.actor, section), section, scorer)

            async def work(unit: Unit) -> UnitResult:
                # Without a scorer an answer is one request, and its row all that is to be kept.
                with self._journal(unit) if scorer else nullcontext() as journal:
                    answer = await answerer.answer(unit.text, self.recipe.seed, owner=unit.key, replies=journal)
                row = response_row(unit.payload, answer, self.recipe, self.actor, self.prm)
                return UnitResult(row, answer.counts, answer.usage.outcomes(), journal.path if journal else None)

            yield WorkContext(pool.keeping(work), pool.room, pool.clients, pools=[pool, *pools_of(scorer)])

    @asynccontextmanager
    async def _pool(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[EndpointPool]:
        if self.connect is not None:
            async with self.connect(self.asked, ACTOR) as client:
                yield EndpointPool([client])
            return
        log = self.folder / f"{ACTOR}.log"
        opening = open_pool(self.asked, self.endpoints, log, waiting, budget, is_spread=self.is_spread)
        async with opening as pool:
            yield pool

    def _journal(self, unit: Unit) -> closing[SearchJournal]:
        return closing(SearchJournal(self.folder / "running" / f"{unit.key}.jsonl"))


def response_row(prompt: Row, answer: Answer, recipe: Recipe, actor: ModelIdentity, prm: ModelIdentity | None) -> Row:
    """Make the row of an answer.

    Args:
        prompt: prompt_id, prompt and task.
        answer: what came of it.
        recipe: sections `responses` and `seed`.
        actor: who answered.
        prm: who scored; None where nobody did.
    """
    section, used = recipe.responses, answer.usage
    made_by = {
        "models": [model.model_dump(exclude={"role"}) for model in (actor, prm) if model],
        "responses": resolved_settings(section),
    }
    return prompt | {
        "response_id": identity.response_id(prompt["prompt_id"], made_by, recipe.seed),
        "method": section.method,
        "model": actor.name,
        "prm": prm.name if prm else None,
        "n": section.width if section.method == "beam" else section.n,
        "candidates": [
            {"text": each.text, "score": each.score, "is_complete": each.is_complete, "tokens": each.tokens}
            for each in answer.candidates
        ],
        "chosen_index": answer.chosen_index,
        "text": answer.chosen.text,
        "score": answer.chosen.score,
        "completion_tokens": used.actor.completion_tokens,
        "step_scores": [each.step_scores for each in answer.candidates] if prm else None,
        "requests": used.actor.requests,
        "prompt_tokens": used.actor.prompt_tokens,
        "prm_calls": used.prm_calls if prm else None,
        "prm_tokens": used.prm_tokens if prm else None,
        "seconds": round(answer.seconds, 3),
    }
