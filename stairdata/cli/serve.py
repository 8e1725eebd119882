"""`stairdata serve MODEL`: a local vLLM server, ended with this command."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import JsonOption


class ModelType(StrEnum):
    """What `--dtype` takes: vLLM's number formats."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder or Hub id.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[str, typer.Option("--name", help="The name clients ask for.")] = "actor",
    max_model_len: Annotated[int, typer.Option("--max-model-len", min=64, help="Context length in tokens.")] = 4096,
    dtype: Annotated[
        ModelType, typer.Option("--dtype", help="Number format of weights and arithmetic; auto: the model's own.")
    ] = ModelType.AUTO,
    log: Annotated[Path, typer.Option("--log", help="File for the server's output.")] = Path("stairdata-serve.log"),
    json_: JsonOption = False,
) -> None:
    """Serve a model with vLLM on 127.0.0.1 until Ctrl-C; prints its URL and a generated key."""
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
