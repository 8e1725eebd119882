"""The searcher that `stairdata serve` runs: prompts are answered as `build responses` answers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from stairdata.generators.responses.answering import Answerer
from stairdata.llm.actor import Actor
from stairdata.llm.budget import Budget
from stairdata.llm.session import identify, make_actor, open_client
from stairdata.recipe import Recipe, ResponsesSection
from stairdata.scorers.opening import LoadModel, identify_prm, open_scorer
from stairdata.scorers.served import ServedScorer
from stairdata.search.scoring import Scorer
from stairdata.serving.app import Service
from stairdata.serving.limits import ServingLimits
from stairdata.serving.protocol import ChatQuestion, ChosenAnswer
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.rendering import Conversation

BETWEEN_LOOKS = 1.0
"""Seconds until it is noticed that a server has ended while nobody asked it anything."""


class ResponseSearcher:
    """Answers questions by the method of a recipe's section `responses`.

    One user turn with a seed gets the answer that a build with that seed of the recipe has for the prompt, as far as
    the servers repeat themselves.

    Args:
        actor: samples.
        section: method and its settings.
        scorer: the process reward model, where the method needs one.
        checks: raise ServerError once a server that was started here has ended.
    """

    def __init__(
        self, actor: Actor, section: ResponsesSection, scorer: Scorer | None, checks: list[Callable[[], None]]
    ) -> None:
        self._actor, self._section, self._scorer = actor, section, scorer
        self._checks = checks

    def check(self, question: ChatQuestion) -> None:
        """Refuse what can't be rendered, or leaves no room for an answer."""
        self._actor.render(_prompt(question.conversation))

    async def answer(self, question: ChatQuestion) -> ChosenAnswer:
        """Search for an answer."""
        section = self._asked_for(question)
        actor = self._actor.with_sampling(section)
        prompt = _prompt(question.conversation)
        found = await Answerer(actor, section, self._scorer).answer(prompt, question.seed)
        chosen, usage = found.chosen, found.usage.actor
        return ChosenAnswer(chosen.text, chosen.is_complete, usage.prompt_tokens, usage.completion_tokens)

    async def watch(self) -> None:
        """Look every second whether the servers are there."""
        while True:
            for check in self._checks:
                await asyncio.to_thread(check)
            await asyncio.sleep(BETWEEN_LOOKS)

    def _asked_for(self, question: ChatQuestion) -> ResponsesSection:
        section = self._section
        changes = {
            "max_tokens": min(section.max_tokens, question.max_tokens or section.max_tokens),
            "temperature": question.temperature,
            "top_p": question.top_p,
        }
        return section.model_copy(update={name: value for name, value in changes.items() if value is not None})


@asynccontextmanager
async def open_service(
    recipe: Recipe,
    name: str,
    load_prm: LoadModel,
    log: Path,
    limits: ServingLimits,
    waiting: WaitProgress,
    *,
    hides_reasoning: bool = False,
) -> AsyncIterator[Service]:
    """Open what answers questions: the actor's client and the reward model, and the servers that they need.

    Args:
        recipe: sections `actor` and `responses`.
        name: what clients call the model.
        load_prm: loads a process reward model for this process.
        log: for the output of the actor's server; that of the reward model lies beside it.
        limits: of requests.
        waiting: told while models are loaded and servers start.
        hides_reasoning: leave steps out of answers.

    Raises:
        RecipeError: no actor.
        ModelError: a model that can't be used.
        ServerError: a server can't be started or reached.
    """
    section, budget = recipe.responses, Budget()
    if section.prm is not None:
        identify_prm(section.prm, "")  # what is wrong shows before a server is started
    if recipe.actor.base_url is not None:
        identify(recipe.actor, "actor")
    endpoint = recipe.beside_prm(recipe.actor)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(endpoint, log, waiting, budget))
        actor = make_actor(client, endpoint, section)
        scorer, checks = None, [client.check_server]
        if section.prm is not None:
            opened = open_scorer(recipe, load_prm, log.parent, budget, waiting)
            scorer = await stack.enter_async_context(opened)
        if isinstance(scorer, ServedScorer):
            checks.append(scorer.check_server)
        searcher = ResponseSearcher(actor, section, scorer, checks)
        yield Service(searcher, name, limits, hides_reasoning)


def _prompt(conversation: Conversation) -> str | Conversation:
    """Return one user turn as builds know it: a text."""
    is_prompt = len(conversation) == 1 and conversation[0].role == "user"
    return conversation[0].content if is_prompt else conversation
