"""`stairdata import` and `stairdata export`: files of the published code, of other trainers and of other harnesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import JsonOption, RootOption, VersionOption, root_folder
from stairdata.cli.results import print_artifact

if TYPE_CHECKING:
    from stairdata.recipe import Task

FORMATS = ("thu-ml",)
CONVERSATIONS = ("trl", "messages")
HARNESSES = ("inspect", "lm-eval")


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Files of the published code, conversations, or sample logs."),
    ],
    from_: Annotated[
        str, typer.Option("--from", help="Format of the files: thu-ml, trl, messages, inspect or lm-eval.")
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="What the files contain: trees or prompts; of trl: prompts, structured-cot, preference-pairs or "
            "prm-pairs; of messages: prompts or structured-cot; of a harness: evaluations.",
        ),
    ],
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="REF", help="Prompts of the trees, for the tasks that the files lack."),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", metavar="NAME", help="Of a harness's log: the benchmark's name.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Of a harness's log: the model's name.")
    ] = None,
    attack: Annotated[
        str, typer.Option("--attack", metavar="NAME", help="Of a harness's log: the attack that its solvers made.")
    ] = "none",
    task: Annotated[
        str | None,
        typer.Option("--task", help="Of conversations and logs: safety or helpfulness, where they don't say."),
    ] = None,
    root: RootOption = None,
    version: VersionOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    max_quarantine: Annotated[
        float, typer.Option("--max-quarantine", min=0, max=1, help="Fail if a larger share is refused.")
    ] = 0.05,
    json_: JsonOption = False,
) -> None:
    """Import files into an artifact; print what could not be taken over."""
    from stairdata.interop.harnesses.importing import HarnessNames, import_harness
    from stairdata.interop.importing import import_thu_ml
    from stairdata.interop.trainers.importing import import_conversations
    from stairdata.runs.options import BuildOptions

    _check_format(from_, (*FORMATS, *CONVERSATIONS, *HARNESSES))
    checked_task = _checked_task(task)
    with show_progress() as progress:
        options = BuildOptions(
            root_folder(root), version, fresh=fresh, max_quarantine=max_quarantine, progress=progress
        )
        if from_ in HARNESSES:
            names = HarnessNames(benchmark, model, attack, checked_task)
            artifact = import_harness(from_, kind.replace("-", "_"), files, options, names)
        elif from_ in CONVERSATIONS:
            artifact = import_conversations(from_, kind.replace("-", "_"), files, options, checked_task)
        else:
            artifact = import_thu_ml(kind.replace("-", "_"), files, options, prompts)
    lost = artifact.manifest.details.get("not_taken_over", {})
    for what, count in lost.items():
        say(f"not taken over: {what}: {count}")
    if not lost and not artifact.manifest.quarantine:
        say("everything was taken over")
    print_artifact(artifact, json_=json_)


def export(
    reference: Annotated[str, typer.Argument(metavar="REF", help="KIND, KIND@X.Y.Z, a folder, or org/name@TAG.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER", help="The file to write; for a trainer, a new folder, or a file of rows alone."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="thu-ml or alpaca_eval; for a trainer: trl, llama-factory, openrlhf, verl, axolotl or stepwise.",
        ),
    ],
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", metavar="NAME", help="Of evaluations: answers to this benchmark.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="For alpaca_eval: answers of this model.")
    ] = None,
    whole_answers: Annotated[
        bool, typer.Option("--whole-answers", help="For a trainer: leave out rows with half-written answers.")
    ] = False,
    allow_eos: Annotated[
        bool,
        typer.Option(
            "--allow-eos", help="For a trainer: write half-written answers although it ends them with an end token."
        ),
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            help="For trl, llama-factory and stepwise: render prompts for this model, so that half-written answers "
            "need no end token; a model folder or Hub id.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="For stepwise: a step's label is true from this value on; default: 0."),
    ] = None,
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Export an artifact: as the published code writes it, answers for AlpacaEval, or rows for another trainer."""
    from stairdata.hub.pull import open_reference
    from stairdata.interop.alpaca_eval import export_alpaca_eval
    from stairdata.interop.exporting import export_thu_ml
    from stairdata.interop.trainers.exporting import NO_OPTIONS, TARGETS, TrainerOptions, export_to_trainer
    from stairdata_schemas.errors import UsageError

    _check_format(to, (*FORMATS, "alpaca_eval", *TARGETS))
    options = TrainerOptions(whole_answers, allow_eos, tokenizer, threshold)
    if to not in TARGETS and options != NO_OPTIONS:
        raise UsageError(f"--whole-answers, --allow-eos, --tokenizer and --threshold are not for {to}; leave them out")
    artifact = open_reference(reference, root_folder(root))
    with show_progress() as progress:
        if to in TARGETS:
            written = export_to_trainer(artifact, file, to, options, progress)
            count = written.rows
            for why, left_out in written.left_out().items():
                say(f"left out: {why}: {left_out}")
        elif to == "alpaca_eval":
            count = export_alpaca_eval(artifact, file, benchmark, model)
        else:
            count = export_thu_ml(artifact, file, progress)
    say(f"{artifact.reference}: {count} written")
    emit(json.dumps({"file": str(file), "artifact": artifact.reference, "rows": count}) if json_ else str(file))


def _check_format(name: str, known: tuple[str, ...]) -> None:
    from stairdata_schemas.errors import UsageError, nearest, quote

    if name not in known:
        close = nearest(name, known)
        meant = f"did you mean {close}? Formats are" if close else "use"
        raise UsageError(f"unknown format {quote(name)}; {meant} {', '.join(known)}")


def _checked_task(name: str | None) -> Task | None:
    from stairdata_schemas.errors import UsageError, quote
    from stairdata_schemas.kinds import TASKS

    if name is not None and name not in TASKS:
        raise UsageError(f"unknown task {quote(name)}; use {' or '.join(TASKS)}")
    return cast("Task | None", name)
