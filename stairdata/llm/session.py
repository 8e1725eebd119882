"""From an endpoint in a recipe to a client that answers: at its URL, or on a server started for it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata.llm.actor import Actor
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.kept_servers import running_server
from stairdata.recipe import Endpoint, ModelServer, Sampling
from stairdata_schemas import rendering
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import ModelError, RecipeError, quote
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.templating.control_tokens import control_tokens

if TYPE_CHECKING:
    from stairdata.llm.vllm_server import ServerOptions

MakeClient = Callable[..., Client]
"""What has the arguments of `Client`."""
Connect = Callable[[Endpoint, str], AbstractAsyncContextManager[Client]]
"""From an endpoint and the name of its part in a build to its client."""
NOWHERE = "http://127.0.0.1:9/v1"
_log = logging.getLogger("stairdata")


def identify(endpoint: ModelServer, role: str, *, needs_tokenizer: bool = True) -> ModelIdentity:
    """Say which model an endpoint names, before anything is started.

    A folder counts by the hash of its files, a Hub id by its name, a URL by model name and tokenizer hash.

    Raises:
        RecipeError: no model, or no tokenizer where one is needed.
        ModelError: a folder that isn't a model.
    """
    if endpoint.path is None and endpoint.base_url is None:
        raise RecipeError(f"the recipe names no {role}: give {role}.path (a model) or {role}.base_url (a server)")
    tokenizer = endpoint.tokenizer or endpoint.path
    if needs_tokenizer and tokenizer is None:
        raise RecipeError(
            f"{role}.base_url needs {role}.tokenizer: the folder or Hub id of the tokenizer of the served model"
        )
    digest = rendering.tokenizer_hash(rendering.load_tokenizer(tokenizer)) if tokenizer else None
    if endpoint.path is None:
        if endpoint.model is None:
            raise RecipeError(f"{role}.base_url needs {role}.model: the server's name for the model")
        return ModelIdentity(role=role, name=endpoint.model, tokenizer_hash=digest)
    folder = Path(endpoint.path)
    is_local = folder.is_dir() or endpoint.path.startswith(("/", "."))
    revision = rendering.model_hash(folder) if is_local else None
    return ModelIdentity(
        role=role, name=folder.name if is_local else endpoint.path, revision=revision, tokenizer_hash=digest
    )


def served_model(endpoint: Endpoint, identity: ModelIdentity) -> ModelIdentity:
    """Return an endpoint's identity with the hash of its model's folder, where the recipe names one.

    A server's model is known by its name alone; but who names a model folder as `tokenizer` means the model served.
    """
    if identity.revision is not None or endpoint.tokenizer is None:
        return identity
    try:
        revision = rendering.model_hash(Path(endpoint.tokenizer))
    except (ModelError, OSError):  # a tokenizer alone, or a Hub id
        return identity
    return identity.model_copy(update={"revision": revision})


@asynccontextmanager
async def open_client(
    endpoint: Endpoint,
    log: Path,
    on_progress: WaitProgress | None = None,
    budget: Budget | None = None,
    make_client: MakeClient = Client,
    *,
    is_checked: bool = True,
    **options: Any,
) -> AsyncIterator[Client]:
    """Connect to an endpoint, starting its server if it names a model.

    Args:
        endpoint: the recipe's words on the server.
        log: of a server that is started.
        on_progress: told while it starts.
        budget: admits each request.
        make_client: makes the client.
        is_checked: False connects to a URL without asking whether the model is there.
        options: more fields of `ServerOptions`.

    Raises:
        ServerError: the server can't be started or reached, or does not serve the model.
    """
    if endpoint.base_url is not None:
        key = os.environ.get(endpoint.api_key_env, "none")
        tokens = partial(_control_tokens, endpoint.tokenizer)
        model = endpoint.model or ""
        client = make_client(endpoint, endpoint.base_url, model, key, budget=budget, control_tokens=tokens)
        try:
            if is_checked:
                await client.check_model()
            yield client
        finally:
            await client.close()
        return
    async with running_server(server_options(endpoint, log, **options), on_progress) as server:
        tokens = partial(_control_tokens, endpoint.tokenizer or endpoint.path)
        client = make_client(
            endpoint, server.base_url, server.served_name, server.api_key, server.check, budget, control_tokens=tokens
        )
        try:
            yield client
        finally:
            await client.close()


def server_options(endpoint: Endpoint, log: Path, **options: Any) -> ServerOptions:
    """Return what is started for an endpoint that names a model.

    Args:
        endpoint: with a path.
        log: of the server.
        options: more fields.
    """
    from stairdata.llm.vllm_server import ServerOptions

    return ServerOptions(
        endpoint.path or "",
        port=endpoint.port,
        max_model_len=endpoint.max_model_len,
        dtype=endpoint.dtype,
        log=log,
        gpu_memory=endpoint.gpu_memory,
        enforce_eager=endpoint.enforce_eager,
        **options,
    )


@asynccontextmanager
async def open_unconnected(endpoint: Endpoint, make_client: MakeClient, budget: Budget) -> AsyncIterator[Client]:
    """Make the client of an endpoint without looking for its server: of one that answers from what is known."""
    key = os.environ.get(endpoint.api_key_env, "none")
    tokens = partial(_control_tokens, endpoint.tokenizer or endpoint.path)
    url = endpoint.base_url or NOWHERE
    client = make_client(endpoint, url, endpoint.name, key, budget=budget, control_tokens=tokens)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def open_pool(
    endpoint: Endpoint,
    urls: Sequence[str],
    log: Path,
    on_progress: WaitProgress | None = None,
    budget: Budget | None = None,
    *,
    role: str = "",
    is_spread: bool = True,
    **options: Any,
) -> AsyncIterator[EndpointPool]:
    """Connect to all servers of a model, or start the one that the recipe has served here.

    Args:
        endpoint: the recipe's words on the model and its servers.
        urls: of the servers, in place of the recipe's one; those that don't answer are looked at again later.
        log: of a server that is started.
        on_progress: told while it starts.
        budget: admits each request.
        role: as for `EndpointPool`.
        is_spread: as for `EndpointPool`.
        options: more fields of `ServerOptions`.

    Raises:
        ServerError: no server can be started or reached, or serves the model.
    """
    async with AsyncExitStack() as stack:
        clients = []
        for each in endpoints_of(endpoint, urls):
            opening = open_client(each, log, on_progress, budget, is_checked=not urls, **options)
            clients.append(await stack.enter_async_context(opening))
        pool = EndpointPool(clients, role=role, is_spread=is_spread)
        stack.callback(pool.close)
        if urls:
            await pool.look()
        yield pool


def endpoints_of(endpoint: Endpoint, urls: Sequence[str]) -> list[Endpoint]:
    """Return an endpoint once for each URL, or as it is."""
    return [endpoint.model_copy(update={"base_url": url}) for url in urls] or [endpoint]


def make_actor(client: Client | EndpointPool, endpoint: Endpoint, sampling: Sampling) -> Actor:
    """Make the actor of an endpoint, with the tokenizer that its prompts are rendered with."""
    tokenizer = rendering.load_tokenizer(endpoint.tokenizer or endpoint.path or "")
    missing = rendering.missing_tags(tokenizer)
    if missing:
        _log.warning(
            "warning: the tokenizer of %s has no single token for %s; steps will cost more tokens, and a model that "
            "was not trained on the step grammar won't keep it",
            quote(endpoint.model or Path(endpoint.path or "").name),
            ", ".join(missing),
        )
    return Actor(client, tokenizer, sampling, endpoint.max_model_len, endpoint.control_tokens)


@lru_cache
def _control_tokens(tokenizer: str | None) -> tuple[str, ...]:
    return control_tokens(rendering.load_tokenizer(tokenizer)) if tokenizer is not None else ()
