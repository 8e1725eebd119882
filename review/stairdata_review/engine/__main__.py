"""Start a process of Argilla's with our search engine registered: `python FOLDER prepare|serve|worker`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

NAME = "stairdata_engine"


def load() -> None:
    """Import the package from its folder, wherever that stands, without the packages beside it."""
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def main() -> None:
    parser = argparse.ArgumentParser(prog="stairdata engine")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="migrate the database; the owner is in credentials.json")
    serve = commands.add_parser("serve", help="Argilla's web server")
    serve.add_argument("--port", type=int, required=True)
    commands.add_parser("worker", help="Argilla's background jobs")
    options = parser.parse_args()
    load()
    launch = importlib.import_module(f"{NAME}.launch")
    if options.command == "prepare":
        launch.prepare()
    elif options.command == "serve":
        launch.serve(options.port)
    else:
        launch.work()


if __name__ == "__main__":
    main()
