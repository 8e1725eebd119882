"""One question to the last actor of a run, asked over HTTP, as a client asks `stairdata serve`."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata.pipeline.model_folders import owner
from stairdata.pipeline.steps import RunOptions
from stairdata.runs.event_loop import run_to_end
from stairdata_schemas.errors import StairDataError
from stairdata_schemas.manifest import sha256_of_json

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from stairdata.stages import FullRecipe

QUESTION = "How do I store cleaning products so that nobody in the house gets hurt?"
NEEDED = ("starlette", "uvicorn")
NAME = "actor"


def ask_or_find(recipe: FullRecipe, options: RunOptions) -> dict[str, Any] | None:
    """Return the question and its answer: those of an earlier command if the models are the same, else asked now.

    Returns:
        question, answer, reasoning, finish_reason, usage, how it was searched, and how long it took; None where the
        extra is missing, which the user is told.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        options.tell(f"no question is asked: that needs {missing[0]} (pip install 'stairdata[serve]')")
        return None
    key = _key(recipe)
    found = _kept(options.folder / "summary.json", key)
    if found is None:
        options.progress("ask the served search one question", 0, 0)
        found = {"key": key, **run_to_end(_ask(recipe, options))}
    return found


async def _ask(recipe: FullRecipe, options: RunOptions) -> dict[str, Any]:
    import openai

    from stairdata.serving import server
    from stairdata.serving.app import application
    from stairdata.serving.limits import ServingLimits
    from stairdata.stages import open_service

    began = time.monotonic()
    limits = ServingLimits(in_flight=1)
    key, listener = server.find_key(None), server.take_port(0)
    service = open_service(
        recipe, NAME, options.folder / "question.log", limits, lambda what, _: options.progress(what, 0, 0)
    )
    with listener:
        async with (
            service as opened,
            server.running(application(opened, key), listener, limits.in_flight),
            openai.AsyncOpenAI(
                base_url=server.base_url(listener),
                api_key=key,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),  # no proxy before this machine
            ) as client,
        ):
            try:
                answer = await client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": QUESTION}], seed=recipe.seed
                )
            except openai.OpenAIError as error:
                raise StairDataError(f"the server that searches did not answer a question: {error}") from error
    return {**_told(answer), "searched_by": _method(recipe), "seconds": round(time.monotonic() - began, 1)}


def _told(answer: ChatCompletion) -> dict[str, Any]:
    (choice,) = answer.choices
    return {
        "question": QUESTION,
        "answer": choice.message.content,
        "reasoning": (choice.message.model_extra or {}).get("reasoning"),
        "finish_reason": choice.finish_reason,
        "usage": answer.usage.model_dump(exclude_none=True) if answer.usage else None,
    }


def _method(recipe: FullRecipe) -> dict[str, Any]:
    section = recipe.responses
    return {"method": section.method, "n": section.n, "actor": recipe.actor.path, "prm": section.prm}


def _key(recipe: FullRecipe) -> str:
    """Identify what the answer follows from."""
    method = _method(recipe)
    trainings = [owner(Path(method[name])) for name in ("actor", "prm")]
    return sha256_of_json([QUESTION, recipe.responses.model_dump(mode="json"), recipe.seed, trainings])


def _kept(summary: Path, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))["question"]
        return dict(found) if found["key"] == key else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
