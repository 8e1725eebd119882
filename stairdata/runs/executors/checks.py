"""What is looked at before a build is begun whose units several servers or a Ray cluster are to work on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from stairdata.llm.session import endpoints_of, open_client
from stairdata.recipe import Endpoint, ModelServer, Recipe
from stairdata.runs.event_loop import run_to_end
from stairdata.runs.executors.executor import Execution
from stairdata.runs.executors.roles import ROLES, model_of, option_of, with_model
from stairdata_schemas.errors import ServerError, UsageError, quote
from stairdata_schemas.grammar import OUTPUT_CLOSE, STEP_OPEN

EndpointT = TypeVar("EndpointT", bound=Endpoint)
ServerT = TypeVar("ServerT", bound=ModelServer)

PROBE = f"{STEP_OPEN}\nTitle: Naïve café 東京 1234567:\n\n  <b>don't</b> 👩🏽‍🚀\n{OUTPUT_CLOSE}"
"""Tokenizers that cut this alike are taken for one."""


class _Served(NamedTuple):
    """What a server says about the model; None where it doesn't."""

    made_of: str | None
    tokens: list[int] | None


def at_endpoints(endpoint: EndpointT, execution: Execution, role: str, *, needs_tokenizer: bool = True) -> EndpointT:
    """Return a model as it is, or at the first of the execution's endpoints where it has some.

    Args:
        endpoint: the recipe's words on the model.
        execution: where its servers are.
        role: the key that names the model in the recipe.
        needs_tokenizer: prompts are rendered here.

    Raises:
        UsageError: the recipe has the model served here, or does not name it.
    """
    if not execution.endpoints:
        return endpoint
    needed = ["model", "tokenizer"] if needs_tokenizer else ["model"]
    return _at(endpoint, execution.endpoints[0], "--endpoints", role, needed)


def roles_at_endpoints(recipe: Recipe, kind: str, execution: Execution, asked: Collection[str] | None = None) -> Recipe:
    """Return a recipe with each of the other models that has endpoints at the first of them.

    Args:
        recipe: of the build.
        kind: of the build.
        execution: where its servers are.
        asked: the roles of the models that it asks; default: of all that the recipe has.

    Raises:
        UsageError: endpoints of a model that the build does not ask, or that the recipe has served here, or does not
            name.
    """
    for role, urls in execution.role_endpoints.items():
        key, option = ROLES[kind][role], option_of(role)
        model = model_of(recipe, key)
        if model is None or (asked is not None and role not in asked):
            raise UsageError(f"{option}: this build asks no {key}; leave these endpoints out")
        if isinstance(model, str):
            raise UsageError(f"{option}: {key} runs in this process; leave these endpoints out, or give {key}.base_url")
        recipe = with_model(recipe, key, _at(model, urls[0], option, key, ["model"]))
    return recipe


def _at(model: ServerT, url: str, option: str, key: str, needed: Sequence[str]) -> ServerT:
    if model.path or any(getattr(model, name) is None for name in needed):
        keys = " and ".join(f"{key}.{name}" for name in needed)
        raise UsageError(f"{option} needs {keys} in the recipe, and no {key}.path")
    return model.model_copy(update={"base_url": url})


def check_execution(models: Sequence[Endpoint], execution: Execution, recipe: Recipe, kind: str) -> None:
    """Check that all endpoints are there and serve one model, and that the Ray cluster can work; nothing is asked.

    Args:
        models: that are asked at each of the endpoints that have no role.
        execution: servers and cluster.
        recipe: names the models of those that have one.
        kind: of the build.

    Raises:
        UsageError: Ray isn't installed, here or on the cluster, or the cluster has another release of this package.
        ServerError: an endpoint or the cluster does not answer, or an endpoint has another model or tokenizer.
    """
    if execution.executor == "ray":
        from stairdata.runs.executors.ray_cluster import check_cluster

        check_cluster(execution.address)
    for model in models if execution.endpoints else ():
        run_to_end(_check_servers(model, execution.endpoints, option_of("")))
    for role, urls in execution.role_endpoints.items():
        named = model_of(recipe, ROLES[kind][role])
        assert isinstance(named, ModelServer), "what has endpoints is a server"
        shared = {name: getattr(named, name) for name in ModelServer.model_fields}
        run_to_end(_check_servers(Endpoint.model_validate(shared), urls, option_of(role)))


async def _check_servers(model: Endpoint, urls: Sequence[str], option: str) -> None:
    found = await asyncio.gather(*(_ask_about(each) for each in endpoints_of(model, urls)), return_exceptions=True)
    served = []
    for each in found:  # all have ended: the first message is the one of the first URL
        if isinstance(each, BaseException):
            raise each
        served.append(each)
    first = served[0]
    for url, other in zip(urls, served, strict=True):
        if first.made_of and other.made_of and _last_part(first.made_of) != _last_part(other.made_of):
            raise ServerError(
                f"{option}: the model {quote(model.name)} is {quote(other.made_of)} at {url} and "
                f"{quote(first.made_of)} at {urls[0]}; all have to serve one model: leave one of the two out"
            )
        if first.tokens and other.tokens and first.tokens != other.tokens:
            raise ServerError(
                f"{option}: {url} cuts a text into {len(other.tokens)} tokens, {quote(other.tokens)}, and {urls[0]} "
                f"into {len(first.tokens)}, {quote(first.tokens)}; all have to have one tokenizer: leave one of the "
                "two out"
            )


async def _ask_about(endpoint: Endpoint) -> _Served:
    async with open_client(endpoint, Path(), is_checked=False) as client:
        made_of = await client.check_model()
        said = await client.tokens_of(PROBE)
        return _Served(made_of, said["tokens"] if said else None)


def _last_part(made_of: str) -> str:
    """Return what folders of one model on different machines have in common, and a Hub id with its copy on a disk."""
    path = made_of.rstrip("/")
    if cached := re.search(r"/models--[^/]+?--([^/]+)/snapshots/[^/]+$", path):  # the Hub's cache
        return cached[1]
    return path.rpartition("/")[-1]
