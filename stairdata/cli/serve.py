"""`stairdata serve MODEL`: a local vLLM server, or one that searches; either ends with this command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import JsonOption, RecipeOption, SetOption, read_recipe

if TYPE_CHECKING:
    from stairdata.stages import FullRecipe

SEARCH = "Test-time search"  # heading of the help
CONTEXT = 4096
BEST_OF = 8
"""Answers of best_of_n where nobody says how many."""


class ModelType(StrEnum):
    """What `--dtype` takes: vLLM's number formats."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class SearchMethod(StrEnum):
    """What `--method` takes: `responses.method` of a recipe."""

    SAMPLE = "sample"
    BEST_OF_N = "best_of_n"
    BEAM = "beam"


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder or Hub id.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[str, typer.Option("--name", help="The name clients ask for.")] = "actor",
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=64, help="Context length in tokens; default: 4096.")
    ] = None,
    dtype: Annotated[
        ModelType | None,
        typer.Option("--dtype", help="Number format of weights and arithmetic; default: auto, the model's own."),
    ] = None,
    log: Annotated[Path, typer.Option("--log", help="File for the server's output.")] = Path("stairdata-serve.log"),
    method: Annotated[
        SearchMethod | None,
        typer.Option("--method", help="Search for each answer in this way.", rich_help_panel=SEARCH),
    ] = None,
    prm: Annotated[
        str | None,
        typer.Option("--prm", help="Folder of the process reward model that scores.", rich_help_panel=SEARCH),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Answers of which the best is given; default: 8.", rich_help_panel=SEARCH),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=1, help="Beams that go on at each level.", rich_help_panel=SEARCH)
    ] = None,
    expansions: Annotated[
        int | None, typer.Option("--expansions", min=1, help="Next steps asked of a beam.", rich_help_panel=SEARCH)
    ] = None,
    max_depth: Annotated[
        int | None, typer.Option("--max-depth", min=1, help="Steps that are searched.", rich_help_panel=SEARCH)
    ] = None,
    diverse: Annotated[
        bool | None,
        typer.Option("--diverse/--no-diverse", help="Beams of separate subtrees.", rich_help_panel=SEARCH),
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    hide_reasoning: Annotated[
        bool, typer.Option("--hide-reasoning", help="Leave the steps out of answers.", rich_help_panel=SEARCH)
    ] = False,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env",
            metavar="NAME",
            help="Environment variable with the key; default: one is made and printed.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=1, help="Searches at a time.", rich_help_panel=SEARCH)
    ] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that a search may take.", rich_help_panel=SEARCH)
    ] = 600,
    json_: JsonOption = False,
) -> None:
    """Serve a model on 127.0.0.1 until Ctrl-C; prints the URL and a generated key.

    With --method each answer is the outcome of a search; without it vLLM answers.
    """
    own = {"n": n, "width": width, "expansions": expansions, "max_depth": max_depth, "diverse": diverse, "prm": prm}
    of_search = [value for value in (*own.values(), recipe, set_, api_key_env) if value is not None]
    if method is None and not hide_reasoning and not of_search:
        _serve_plainly(model, port, name, max_model_len or CONTEXT, dtype or ModelType.AUTO, log, json_=json_)
        return
    options = {
        **{f"responses.{key}": value for key, value in own.items()},
        "responses.method": method and method.value,
        "actor.max_model_len": max_model_len,
        "actor.dtype": dtype and dtype.value,
    }
    settings = _settings(recipe, set_ or [], options, model)
    _serve_search(
        settings,
        name,
        port=port,
        log=log,
        hides_reasoning=hide_reasoning,
        api_key_env=api_key_env,
        max_requests=max_requests,
        timeout=timeout,
        json_=json_,
    )


def _settings(recipe: Path | None, given: list[str], options: Mapping[str, object], model: str) -> FullRecipe:
    """Return the recipe with what the options say, and the model as its actor.

    Where the recipe's actor is a server, the model is what that serves: the folder with its tokenizer.
    """
    from stairdata_schemas.errors import UsageError

    overrides = [*given, *(f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None)]
    says_how_many = recipe is not None or any(each.startswith("responses.n=") for each in overrides)
    if options["responses.method"] == SearchMethod.BEST_OF_N and not says_how_many:
        overrides.append(f"responses.n={BEST_OF}")
    settings = read_recipe(recipe, overrides)
    if settings.responses.method == "sample" and options["responses.method"] is None:
        raise UsageError(
            "these options are for a server that searches: give --method best_of_n or --method beam with --prm PRM, or "
            "--method sample; without any of them vLLM answers"
        )
    place = "path" if settings.actor.base_url is None else "tokenizer"
    return settings.model_copy(update={"actor": settings.actor.model_copy(update={place: model})})


def _serve_search(
    settings: FullRecipe,
    name: str,
    *,
    port: int,
    log: Path,
    hides_reasoning: bool,
    api_key_env: str | None,
    max_requests: int,
    timeout: float,
    json_: bool,
) -> None:
    from stairdata_schemas.errors import UsageError

    try:
        from stairdata.serving import server
    except ImportError as error:
        raise UsageError(f"a server that searches needs {error.name}: pip install 'stairdata[serve]'") from error
    from stairdata.serving.limits import ServingLimits
    from stairdata.stages import open_service

    key = server.find_key(api_key_env)
    listener = server.take_port(port)
    limits = ServingLimits(in_flight=max_requests, seconds=timeout)
    with ExitStack() as shown:
        progress = shown.enter_context(show_progress())

        def ready() -> None:
            shown.close()
            facts = {"base_url": server.base_url(listener), "model": name, "api_key": None if api_key_env else key}
            known = {name: fact for name, fact in facts.items() if fact is not None}
            emit(json.dumps(facts) if json_ else "\n".join(f"{key}: {value}" for key, value in known.items()))
            whose = f"the key is that in {api_key_env}" if api_key_env else "give clients the key as OPENAI_API_KEY"
            say(f"{whose}; Ctrl-C stops the server")

        service = open_service(
            settings,
            name,
            log,
            limits,
            lambda message, seconds: progress(f"{message} ({seconds:.0f} s)", 0, 0),
            hides_reasoning=hides_reasoning,
        )
        asyncio.run(server.serve_until_ended(service, key, listener, ready))


def _serve_plainly(
    model: str, port: int, name: str, max_model_len: int, dtype: ModelType, log: Path, *, json_: bool
) -> None:
    from stairdata.llm.vllm_server import ManagedServer, ServerOptions

    server = ManagedServer(
        ServerOptions(model, served_name=name, port=port, max_model_len=max_model_len, dtype=dtype.value, log=log)
    )
    try:
        with show_progress() as progress:
            server.start(lambda message, seconds: progress(f"{message} ({seconds:.0f} s)", 0, 0))
        facts = {"base_url": server.base_url, "model": name, "api_key": server.api_key}
        emit(json.dumps(facts) if json_ else "\n".join(f"{key}: {value}" for key, value in facts.items()))
        say("give clients the key as OPENAI_API_KEY; Ctrl-C stops the server")
        server.wait()
    finally:
        server.stop()
