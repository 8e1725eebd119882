"""`stairdata quickstart`: every stage of STAIR on a small real model, on one machine, with one command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import JsonOption, check_url
from stairdata.cli.run import print_summary

EXTRAS = {
    "training": ("accelerate", "gguf", "peft", "torch", "trl"),
    "vllm": ("vllm",),
    "serve": ("starlette", "uvicorn"),
}
"""What the quickstart runs on, by the extra that brings it."""


def quickstart(
    folder: Annotated[Path, typer.Option("--folder", help="Where everything goes.")] = Path("quickstart"),
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Fewer rows, trees and answers, for a quick check that everything runs.")
    ] = False,
    prompts: Annotated[int | None, typer.Option("--prompts", min=2, max=48, help="Prompts to grow trees from.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=2, help="Iterations per tree.")] = None,
    pairs: Annotated[int | None, typer.Option("--pairs", min=2, help="Pairs for DPO, and for the PRM.")] = None,
    teacher_url: Annotated[
        str | None, typer.Option("--teacher-url", help="OpenAI-compatible server that writes the reasoning.")
    ] = None,
    teacher_model: Annotated[str, typer.Option("--teacher-model", help="The teacher's model name.")] = "gpt-4o",
    json_: JsonOption = False,
) -> None:
    """Run every stage of STAIR on SmolLM2-135M and show what changed."""
    check_extras()
    from stairdata.pipeline.quickstart import SMALL, SMOKE, quickstart_pipeline, run_quickstart
    from stairdata.pipeline.run import locked

    chosen = {"tree_prompts": prompts, "iterations": iterations, "pairs": pairs}
    sizes = (SMOKE if smoke else SMALL)._replace(**{key: value for key, value in chosen.items() if value is not None})
    teacher = find_teacher(teacher_url, teacher_model)
    with locked(folder), show_progress() as progress:
        summary = run_quickstart(quickstart_pipeline(folder, sizes, teacher, progress), sizes)
    if json_:
        emit(json.dumps(summary))
        return
    print_summary(summary, folder)
    print_question(summary["question"])
    say("a model of 135M parameters learns the form here, not safety; see the README for what the figures mean")


def check_extras() -> None:
    """Refuse to begin what can't be finished, with all that is missing in one message.

    Raises:
        UsageError: a package of an extra is not installed.
    """
    from importlib.util import find_spec

    from stairdata_schemas.errors import UsageError

    absent = {extra: [name for name in names if find_spec(name) is None] for extra, names in EXTRAS.items()}
    missing = {extra: names for extra, names in absent.items() if names}
    if missing:
        packages = "; ".join(f"{extra}: {', '.join(names)}" for extra, names in missing.items())
        raise UsageError(
            f"quickstart needs packages that are not installed ({packages}): with a GPU, "
            f"pip install 'stairdata[{','.join(missing)}]'; without one, `make quickstart` in a checkout of stairdata, "
            "which installs the CPU build of vLLM"
        )


def print_question(asked: dict[str, Any] | None) -> None:
    """Print the question that the server was asked, and what it said."""
    if asked is None:
        return
    how, usage = asked["searched_by"], asked["usage"]
    emit(f"\nasked of the best of {how['n']}, as `stairdata serve` answers: {asked['question']}")
    if asked["reasoning"]:
        emit(f"\n{asked['reasoning']}")
    emit(f"\n{asked['answer']}\n\n({usage['completion_tokens']} tokens in all candidates, {asked['seconds']:g} s)")


def find_teacher(url: str | None, model: str) -> dict[str, str] | None:
    """Return the teacher to ask, if one is named or a key for OpenAI is set."""
    named = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if url is None and not os.environ.get("OPENAI_API_KEY"):
        return None
    check_url(url or named, "OPENAI_BASE_URL" if url is None else "--teacher-url", "set the key as OPENAI_API_KEY")
    return {"base_url": url or named, "model": model}
