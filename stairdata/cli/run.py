"""`stairdata run`: every stage of STAIR in K rounds, out of one recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stairdata.cli.console import emit, print_table, say, show_progress
from stairdata.cli.options import JsonOption, SetOption, read_recipe

if TYPE_CHECKING:
    from stairdata.pipeline.steps import RunOptions
    from stairdata.runs.progress import Progress

COSTS = "Costs and limits"  # heading of the help


def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe in YAML: a file, or the name of an included one.")
    ],
    folder: Annotated[Path, typer.Option("--folder", help="Where everything goes.")] = Path("run"),
    set_: SetOption = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Build each artifact anew; finished models of the same rows and settings stay."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what each stage would do, and do nothing.", rich_help_panel=COSTS),
    ] = False,
    max_total_tokens: Annotated[
        int | None,
        typer.Option("--max-total-tokens", min=1, help="Stop before the run uses more tokens.", rich_help_panel=COSTS),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost", min=0, help="Stop before the run costs more, at the recipe's prices.", rich_help_panel=COSTS
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds",
            min=0,
            help="Stop this command after this time; a training that has begun is finished.",
            rich_help_panel=COSTS,
        ),
    ] = None,
    max_quarantine: Annotated[
        float,
        typer.Option("--max-quarantine", min=0, max=1, help="Fail if a larger share of a stage's rows is refused."),
    ] = 0.05,
    json_: JsonOption = False,
) -> None:
    """Run every stage of STAIR: SFT, rounds of trees, pairs and DPO, and the process reward model."""
    from stairdata.llm.budget import BudgetLimits
    from stairdata.pipeline.run import Pipeline, locked
    from stairdata.pipeline.steps import RunOptions

    settings = read_recipe(recipe, set_)

    def options(progress: Progress) -> RunOptions:
        return RunOptions(
            folder,
            progress,
            tell=lambda words: say(words) if words else None,
            limits=BudgetLimits(max_total_tokens, max_cost, max_seconds),
            max_quarantine=max_quarantine,
            fresh=fresh,
        )

    with show_progress() as progress:
        if dry_run:
            from stairdata.pipeline.dry_run import preview, shown

            stages = preview(settings, options(progress))
            emit(json.dumps(stages) if json_ else shown(stages))
            return
        pipeline = Pipeline(settings, options(progress))
        with locked(folder):
            summary = pipeline.run()
    if json_:
        emit(json.dumps(summary))
        return
    print_summary(summary, folder)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print stages, rounds and the table of a run, and where its files are."""
    rows = [
        [
            _title(stage, summary["stages"]),
            stage.get("artifact") or stage["model"],
            *(_shown(stage.get(name)) for name in ("rows", "tokens", "seconds")),
        ]
        for stage in summary["stages"]
    ]
    print_table(["stage", "made", "rows", "tokens", "seconds"], rows)
    print_server_times(summary)
    table = summary["table"]
    if table:
        emit("")
        measures = list(next(iter(table.values())))
        print_table(["", *table], [[name, *(_shown(column[name]) for column in table.values())] for name in measures])
        say(summary["refusal_rule"])
    places = {"artifacts": "artifacts", "models": "models", "rounds": "rounds.csv", "summary": "summary.json"}
    if summary.get("report"):
        places["report"] = str(Path(summary["report"]).relative_to(folder))
    emit("\n" + "\n".join(f"{name + ':':<10} {folder / file}" for name, file in places.items()))


def print_server_times(summary: dict[str, Any]) -> None:
    """Print what the servers did in the stages that took this command a second or more, and in all."""
    from stairdata.llm.server_times import ServerTimes

    columns = list(ServerTimes._fields)
    every = ServerTimes()
    rows = []
    for stage in summary["servers"]:
        times = ServerTimes(**{name: stage[name] for name in columns})
        every = every.plus(times)
        if sum(times) >= 1:
            rows.append([_title(stage, summary["servers"]), *(f"{each:.1f}" for each in (sum(times), *times))])
    if not rows:
        return
    emit("\nseconds of this command, by what the model servers did:")
    print_table(["stage", "seconds", *columns], [*rows, ["all", *(f"{each:.1f}" for each in (sum(every), *every))]])


def _title(stage: dict[str, Any], stages: list[dict[str, Any]]) -> str:
    """Name a stage by its round, too, where there are several."""
    several = any(each.get("round", 1) > 1 for each in stages)
    return f"round {stage['round']}: {stage['stage']}" if several and "round" in stage else str(stage["stage"])


def _shown(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
