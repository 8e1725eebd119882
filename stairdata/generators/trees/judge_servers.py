"""The servers of a trees' judge besides the actor's, and the judge that asks them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.evaluations.judging.wording import POLICY_VERSION, source_of
from stairdata.generators.trees.judges import TEMPLATE_VERSION, Judge
from stairdata.llm.actor import Actor
from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.session import identify, open_pool
from stairdata.recipe import JudgeSection
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import ModelIdentity


class JudgeServers(NamedTuple):
    """Servers of the models that rate, where these are not the actor."""

    judge: EndpointPool | None
    helpfulness: EndpointPool | None
    """Rates helpfulness beside a guard."""

    @property
    def pools(self) -> list[EndpointPool]:
        return [pool for pool in self if pool is not None]


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
    section: JudgeSection,
    folder: Path,
    waiting: WaitProgress,
    budget: Budget,
    endpoints: Mapping[str, tuple[str, ...]],
) -> AsyncIterator[JudgeServers]:
    """Connect to the models that rate besides the actor, starting those that are served here.

    Args:
        section: `trees.judge`.
        folder: of logs.
        waiting: told when the start of a server takes its time.
        budget: charged by all of them.
        endpoints: URLs of their servers in place of the recipe's, by role.

    Raises:
        ServerError: one of them can't be started or reached.
    """
    async with AsyncExitStack() as stack:
        pools: dict[str, EndpointPool | None] = {}
        for role, endpoint in {"judge": section.endpoint, "helpfulness": section.helpfulness}.items():
            pools[role] = None
            if endpoint is not None:
                urls, log = endpoints.get(role, ()), folder / f"{role}.log"
                opening = open_pool(endpoint, urls, log, waiting, budget, role=role)
                pools[role] = await stack.enter_async_context(opening)
        yield JudgeServers(**pools)


def make_judge(section: JudgeSection, servers: JudgeServers, actor: Actor | None) -> Judge:
    """Return the judge of a section.

    Args:
        section: `trees.judge`.
        servers: of the models that rate.
        actor: rates where the section says so (`asks_actor`).
    """
    return Judge(section, servers.judge, actor if section.asks_actor else None, servers.helpfulness)
