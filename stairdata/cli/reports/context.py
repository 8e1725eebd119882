"""`stairdata context`: what there is to know before the next command, for people and for their AI assistants."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from stairdata.cli.artifacts import list_row
from stairdata.cli.console import emit, print_table
from stairdata.cli.options import JsonOption, RootOption, root_folder

RECIPE = "--recipe RECIPE"
FOLLOWS: tuple[tuple[str, str, str, str], ...] = (
    ("prompts", "structured_cot", f"build structured-cot {RECIPE} --dry-run", "what it would cost to ask the teacher"),
    ("structured_cot", "sft", f"train sft {RECIPE} --model MODEL --output FOLDER", "train on the structured reasoning"),
    ("prompts", "trees", f"build trees {RECIPE} --limit 8 --dry-run", "what a few trees would cost"),
    ("trees", "preference_pairs", f"build preference-pairs {RECIPE}", "take step pairs from the trees"),
    ("preference_pairs", "dpo", f"train dpo {RECIPE} --model MODEL --output FOLDER", "train on the step pairs"),
    ("trees", "prm_pairs", f"build prm-pairs {RECIPE}", "take pairs for the process reward model"),
    ("prm_pairs", "prm", f"train prm {RECIPE} --model MODEL --output FOLDER", "train the process reward model"),
    ("prm_pairs", "responses", f"build responses {RECIPE} --limit 8", "answer prompts, the best of several"),
)
"""What is there, what is made from it, the command, and why; words in capitals are for the user to replace."""


def context(ctx: typer.Context, root: RootOption = None, json_: JsonOption = False) -> None:
    """Show kinds, commands, what is here, what is unfinished, and what to do next; changes nothing."""
    facts = find_context(ctx.find_root().command, root_folder(root))
    if json_:
        emit(json.dumps(facts))
    else:
        _print(facts)


def find_context(program: Any, root: Path) -> dict[str, Any]:
    """Return what `--json` prints.

    Args:
        program: the command line's root command.
        root: of the artifacts; runs, models and trainings are looked for in this folder and two levels below.
    """
    from importlib.metadata import version

    from stairdata.pipeline.unfinished import find_unfinished_work, nearby
    from stairdata.recipe.loading import PACKAGED
    from stairdata_schemas.artifacts import list_folders

    here = Path()
    runs = sorted({path.parent for name in ("started.json", "rounds.csv") for path in nearby(here, name)})
    runs = [folder for folder in runs if (folder / "artifacts").is_dir()]
    roots = list(dict.fromkeys([root, *(folder / "artifacts" for folder in runs)]))
    outputs = [path.parent for path in nearby(here, "*.partial/started.json")]
    models = [_model(path) for path in nearby(here, "training.json") if path.parent not in outputs]
    work = find_unfinished_work(roots, runs, outputs)
    artifacts = [
        {"root": str(place), **list_row(kind, str(number), folder)}
        for place in roots
        for kind, number, folder in list_folders(place)
    ]
    complete = {each["artifact"].split("@")[0] for each in artifacts if each["state"] == "complete"}
    return {
        "version": version("stairdata"),
        "kinds": _kinds(),
        "commands": list(commands(program)),
        "recipes": sorted(file.stem for file in PACKAGED.glob("*.yaml")),
        "artifacts": artifacts,
        "models": models,
        "unfinished": [each._asdict() for each in work],
        "next": [
            *_to_continue(work),
            *_to_mend(artifacts),
            *_to_make(complete, {each["method"] for each in models}),
        ],
    }


def _kinds() -> list[dict[str, Any]]:
    from stairdata.stages import BUILT_KINDS
    from stairdata_schemas.cards.card import DESCRIPTIONS
    from stairdata_schemas.kinds import KINDS

    built = {kind: f"stairdata build {kind.replace('_', '-')}" for kind in BUILT_KINDS}
    made_by = {**built, "reviews": "stairdata review pull"}
    return [{"kind": kind, "holds": DESCRIPTIONS[kind], "made_by": made_by[kind]} for kind in KINDS]


def commands(command: Any, name: str = "stairdata") -> Iterator[dict[str, Any]]:
    """Yield the commands below one, as the program itself has them: words, first line of help, what they take."""
    below: Mapping[str, Any] = getattr(command, "commands", {})
    for word, inner in below.items():
        yield from commands(inner, f"{name} {word}")
    if not below:
        options = [each for each in command.params if each.param_type_name == "option"]
        yield {
            "command": name,
            "does": (command.help or "").strip().split("\n")[0],
            "arguments": [each.metavar or each.name.upper() for each in command.params if each not in options],
            "options": [each.opts[0] for each in options],
        }


def _model(record: Path) -> dict[str, Any]:
    """Return the folder of a model that was trained here, by what, and on what."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        method, data = str(found["identity"]["trainer"]).split("/")[0], found.get("data")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        method, data = "", None
    known = data if isinstance(data, dict) else {}
    return {"folder": str(record.parent), "method": method, "trained_on": known.get("reference")}


def _to_continue(work: Iterable[Any]) -> Iterator[dict[str, str]]:
    """Say how to go on, each command once: that of a run finishes its builds and trainings, too."""
    seen = set()
    for each in work:
        if each.command is None or each.command in seen or each.state == "running":
            continue
        seen.add(each.command)
        why = {
            "refused": f"too many rows of {each.name} were refused: see {each.folder}/quarantine, mend the input first",
            "batches": f"fetch what the server has answered for {each.name}",
        }
        yield {"command": each.command, "why": why.get(each.state, f"go on with the {each.what} {each.name}")}


def _to_mend(artifacts: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    for each in artifacts:
        if each["state"] == "damaged":
            command = f"stairdata validate {each['artifact']} --root {each['root']}"
            yield {"command": command, "why": "its manifest can't be read; this says what is wrong"}


def _to_make(complete: set[str], methods: set[str]) -> Iterator[dict[str, str]]:
    if not complete:
        yield {
            "command": "stairdata quickstart",
            "why": "all stages on a small model; needs the extras training, vllm, serve",
        }
        yield {"command": f"stairdata build prompts {RECIPE}", "why": "the first artifact of your own recipe"}
    for given, made, command, why in FOLLOWS:
        if given in complete and made not in complete | methods:
            yield {"command": f"stairdata {command}", "why": why}


def _print(facts: Mapping[str, Any]) -> None:
    emit(f"stairdata {facts['version']}")
    _print_rows("kinds of artifacts", ["kind", "holds", "made by"], facts["kinds"])
    known = [{"command": each["command"], "does": each["does"]} for each in facts["commands"]]
    _print_rows("commands (--help shows what each takes)", ["command", "does"], known)
    emit(f"\nrecipes that come along: {', '.join(facts['recipes'])}")
    _print_rows("artifacts here", ["root", "artifact", "rows", "refused", "created", "state"], facts["artifacts"])
    _print_rows("models trained here", ["folder", "method", "trained on"], facts["models"])
    unfinished = [
        {**each, "done": ", ".join(f"{name} {count}" for name, count in each["done"].items()), "command": ""}
        for each in facts["unfinished"]
    ]
    _print_rows("unfinished", ["what", "name", "folder", "state", "done", ""], unfinished)
    emit("\nnext (replace words in capitals)")
    for each in facts["next"]:  # no table: a command that is cut can't be copied
        emit(f"{each['command']}\n    {each['why']}")


def _print_rows(title: str, header: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
    emit(f"\n{title}" if rows else f"\n{title}: none")
    if rows:
        print_table(header, [["" if cell is None else str(cell) for cell in row.values()] for row in rows])
