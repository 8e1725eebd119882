"""`python -m benchmarks.proof COMMAND`, from the root of a clone; docs/proof.md says what each command does."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: see stairdata/cli/main.py

from stairdata.cli.console import say
from stairdata.pipeline.run import BASE
from stairdata_schemas.errors import ModelError, StairDataError
from stairdata_schemas.rendering import check_model_folder

from .forecast import Rates
from .place import MainSettings, ProofPlace
from .recipes import recipe_of
from .running import run_line, show_forecast


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
    run.add_argument("--smoke", action="store_true", help="tiny sizes on bundled prompts: shows that it works")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key of the recipe")
    run.add_argument("--forecast", action="store_true", help="forecast alone")
    _add_rates(run)
    run.set_defaults(command=_run)
    return parser


def _add_rates(parser: argparse.ArgumentParser) -> None:
    for field in fields(Rates):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=field.default, metavar="X", help=f"default {field.default}")


def _rates(options: argparse.Namespace) -> Rates:
    return Rates(**{field.name: getattr(options, field.name) for field in fields(Rates)})


def _run(options: argparse.Namespace, place: ProofPlace) -> None:
    data = None if options.data is None else str(options.data.absolute())
    settings = MainSettings(data, options.smoke, tuple(options.set))
    recipe = recipe_of(place, settings)
    _fetch(place.start_model)
    show_forecast(recipe, place.main, _rates(options))
    if options.forecast:
        return
    place.write_settings(settings)
    run_line(recipe, place.main)


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
