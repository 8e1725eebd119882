"""`python -m benchmarks.proof COMMAND`, from the root of a clone; docs/proof.md says what each command does."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: see stairdata/cli/main.py

from stairdata.cli.console import emit, print_table, say
from stairdata.pipeline.run import BASE
from stairdata_schemas.errors import ModelError, StairDataError
from stairdata_schemas.rendering import check_model_folder

from . import hand_check
from .forecast import Rates
from .items import ITEMS, Group, item_of, items_of
from .lines import main_line
from .place import MainSettings, ProofPlace
from .recipes import larger_overrides, recipe_of
from .results import write_page, write_results
from .running import finished_record, item_recipe, run_item, run_line, run_options, show_forecast


def main() -> None:
    """Run one command; a mistake of the user's is one message."""
    options = _parser().parse_args()
    try:
        options.command(options, ProofPlace(options.folder))
    except StairDataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        say("interrupted; finished work is kept: run the same command again to continue")
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("proof"), help="of the proof")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="the main line: forecast, run or go on, write the results")
    run.add_argument("--data", type=Path, help="folder of files in place of the Hub's datasets")
    words = "on one GPU: a model of 0.5 to 2 billion parameters, by folder or Hub id, and a guard model as judge"
    size = run.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="tiny sizes on bundled prompts: shows that it works")
    size.add_argument("--larger", nargs="?", const="", metavar="MODEL", help=words)
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key of the recipe")
    run.add_argument("--forecast", action="store_true", help="forecast alone")
    _add_limits(run)
    run.set_defaults(command=_run)
    results = commands.add_parser("results", help="write results.md, results.json and the plots again")
    results.add_argument("--pages", type=Path, metavar="FOLDER", help="write them as a page of a documentation, too")
    results.set_defaults(command=_write_results)
    items = commands.add_parser("items", help="what else can be run, and what has")
    items.set_defaults(command=_list_items)
    for group in get_args(Group):
        several = commands.add_parser(group, help=f"run the {group}, one after the other, and write the results")
        several.add_argument("--only", action="append", metavar="NAME", help="this item; can be repeated")
        _add_limits(several)
        several.set_defaults(command=_run_items, group=group)
    check = commands.add_parser("hand-check", help="answers to label by hand, and the rule against the labels")
    check.add_argument("what", choices=["export", "read"])
    check.add_argument("file", type=Path, help="a table: .csv, .jsonl or .xlsx")
    words = "whose labels these are; several readers' labels are kept and compared (default %(default)s)"
    check.add_argument("--reader", default=hand_check.FIRST_READER, metavar="NAME", help=words)
    check.set_defaults(command=_hand_check)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    words = "stop a run after this time, to go on later; a training that has begun is finished"
    parser.add_argument("--max-minutes", type=float, metavar="X", help=words)
    for field in fields(Rates):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=field.default, metavar="X", help=f"default {field.default}")


def _rates(options: argparse.Namespace) -> Rates:
    return Rates(**{field.name: getattr(options, field.name) for field in fields(Rates)})


def _run(options: argparse.Namespace, place: ProofPlace) -> None:
    data = None if options.data is None else str(options.data.absolute())
    larger = [] if options.larger is None else larger_overrides(options.larger or None)
    settings = MainSettings(data, options.smoke, (*larger, *options.set))
    recipe = recipe_of(place, settings)
    if recipe.sft is not None and recipe.sft.model == str(place.start_model.absolute()):
        _fetch(place.start_model)
    show_forecast(recipe, run_options(place.main), _rates(options))
    if options.forecast:
        return
    place.write_settings(settings)
    run_line(recipe, place.main, options.max_minutes)
    _show_results(place)


def _write_results(options: argparse.Namespace, place: ProofPlace) -> None:
    if options.pages is not None:
        emit(f"page: {write_page(place, options.pages)}")
    _show_results(place)


def _show_results(place: ProofPlace) -> None:
    write_results(place)
    emit(f"results: {place.root / 'results.md'} and results.json")


def _list_items(_: argparse.Namespace, place: ProofPlace) -> None:
    settings = place.read_settings()
    rows = []
    for item in ITEMS:
        is_done = finished_record(place.record(item), item_recipe(place, settings, item)) is not None
        rows.append([item.name, item.group, "done" if is_done else "not run", item.words])
    print_table(["item", "group", "state", "what it is"], rows)


def _run_items(options: argparse.Namespace, place: ProofPlace) -> None:
    """Run items one after the other; one that fails keeps no other from being run."""
    settings = place.read_settings()
    failed = []
    for item in [item_of(name) for name in options.only] if options.only else items_of(options.group):
        say(f"{item.name}: {item.words}")
        try:
            run_item(place, settings, item, _rates(options), options.max_minutes)
        except StairDataError as error:
            say(f"error: {item.name}: {error}")
            failed.append(item.name)
    _show_results(place)
    if failed:
        sys.exit(f"error: not finished: {', '.join(failed)}")


def _hand_check(options: argparse.Namespace, place: ProofPlace) -> None:
    if options.what == "export":
        number = hand_check.export(place, main_line(place, place.read_settings()), options.file)
        emit(f"{number} answers in {options.file}; fill in its column `refused`, then `hand-check read {options.file}`")
        return
    emit(f"{hand_check.read(place, options.file, options.reader)} labels read")
    _show_results(place)


def _fetch(folder: Path) -> None:
    """Fetch SmolLM2 unless it is there."""
    try:
        check_model_folder(folder)
    except ModelError:
        say(f"fetching SmolLM2-135M-Instruct, the model that is called {BASE}")
        from stairdata_training.smollm2 import prepare_smollm2

        prepare_smollm2(folder)


if __name__ == "__main__":
    main()
