"""The servers of a trees' judge besides the actor's, and the judge that asks them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.evaluations.judging.wording import POLICY_VERSION
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

    @property
    def clients(self) -> list[Client]:
        return [client for client in self if client is not None]


def identify_judges(section: JudgeSection) -> list[ModelIdentity]:
    """Say which models rate besides the actor.

    Raises:
        RecipeError, ModelError: as `identify` says.
    """
    return [identify(section.endpoint, "judge", needs_tokenizer=False)] if section.endpoint is not None else []


def judge_settings(section: JudgeSection) -> dict[str, Any]:
    """Return what of a judge enters the fingerprint: its settings, and the versions of our words."""
    settings = counted_settings(section) | {"template": TEMPLATE_VERSION}
    return settings | ({"policy": POLICY_VERSION} if section.guard == "policy" else {})


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
    if section.endpoint is None:
        yield JudgeServers(None)
        return
    async with open_client(section.endpoint, folder / "judge.log", waiting, budget) as client:
        yield JudgeServers(client)


def make_judge(section: JudgeSection, servers: JudgeServers, actor: Actor | None) -> Judge:
    """Return the judge of a section.

    Args:
        section: `trees.judge`.
        servers: of the models that rate.
        actor: rates where the section says so (`asks_actor`).
    """
    return Judge(section, servers.judge, actor if section.asks_actor else None)
