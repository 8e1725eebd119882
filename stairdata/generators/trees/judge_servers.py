"""The servers of a trees' judge besides the actor's, and the judge that asks them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.evaluations.judging.wording import POLICY_VERSION, source_of
from stairdata.generators.trees.judges import TEMPLATE_VERSION, Judge
from stairdata.llm.actor import Actor
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.session import identify, open_client
from stairdata.recipe import JudgeSection
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import ModelIdentity


class JudgeServers(NamedTuple):
    """Clients of the models that rate, where these are not the actor."""

    judge: Client | None
    helpfulness: Client | None
    """Rates helpfulness beside a guard."""

    @property
    def clients(self) -> list[Client]:
        return [client for client in self if client is not None]


def identify_judges(section: JudgeSection) -> list[ModelIdentity]:
    """Say which models rate besides the actor.

    Raises:
        RecipeError, ModelError: as `identify` says.
    """
    named = {"judge": section.endpoint, "helpfulness_judge": section.helpfulness}
    return [identify(each, role, needs_tokenizer=False) for role, each in named.items() if each is not None]


def judge_settings(section: JudgeSection) -> dict[str, Any]:
    """Return what of a judge enters the fingerprint: its settings, and the versions of our words."""
    settings = counted_settings(section) | {"template": TEMPLATE_VERSION}
    if section.policy is not None:
        settings["policy"] = hashlib.sha256(source_of(section.policy, "trees.judge").encode()).hexdigest()
    elif section.guard == "policy":
        settings["policy"] = POLICY_VERSION
    return settings


@asynccontextmanager
async def open_judge_servers(
    section: JudgeSection, folder: Path, waiting: WaitProgress, budget: Budget
) -> AsyncIterator[JudgeServers]:
    """Connect to the models that rate besides the actor, starting those that are served here.

    Args:
        section: `trees.judge`.
        folder: of logs.
        waiting: told when the start of a server takes its time.
        budget: charged by all of them.

    Raises:
        ServerError: one of them can't be started or reached.
    """
    async with AsyncExitStack() as stack:
        clients: dict[str, Client | None] = {}
        for name, endpoint in {"judge": section.endpoint, "helpfulness": section.helpfulness}.items():
            clients[name] = None
            if endpoint is not None:
                opening = open_client(endpoint, folder / f"{name}.log", waiting, budget)
                clients[name] = await stack.enter_async_context(opening)
        yield JudgeServers(**clients)


def make_judge(section: JudgeSection, servers: JudgeServers, actor: Actor | None) -> Judge:
    """Return the judge of a section.

    Args:
        section: `trees.judge`.
        servers: of the models that rate.
        actor: rates where the section says so (`asks_actor`).
    """
    return Judge(section, servers.judge, actor if section.asks_actor else None, servers.helpfulness)
