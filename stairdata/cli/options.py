"""Options that several commands share, and the recipe that joins all sections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stairdata.stages import FullRecipe

RECIPE_HELP = "Recipe in YAML: a file, or one of stair-50k, stair-20k, sft, dpo, prm; docs/recipe.md lists all keys."
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help=RECIPE_HELP,
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe, such as trees.c=2; can be repeated."),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="REF", help="Input artifact; default: the newest of the kind needed."),
]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Folder of the artifacts; default: STAIRDATA_ROOT, else artifacts.")
]
VersionOption = Annotated[
    str | None, typer.Option("--version", metavar="X.Y.Z", help="Version to build; default: the next one.")
]
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="KIND, KIND@X.Y.Z, a folder, or org/name@TAG on the Hub.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Take at most this many input rows.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def root_folder(root: Path | None) -> Path:
    """Return --root, else $STAIRDATA_ROOT, else artifacts/."""
    return root or Path(os.environ.get("STAIRDATA_ROOT") or "artifacts")


def read_recipe(path: Path | None, overrides: list[str] | None) -> FullRecipe:
    """Read the recipe with all its sections."""
    from stairdata.stages import read_full_recipe

    return read_full_recipe(path, overrides or [])


def check_url(url: str, option: str, remedy: str) -> None:
    """Refuse a URL with a password or key in it, which a manifest, a message or the list of processes would show.

    Args:
        url: as it was typed.
        option: the option or variable that it was given by.
        remedy: where the secret belongs.

    Raises:
        UsageError: without the URL in its message.
    """
    from stairdata_schemas.errors import UsageError
    from stairdata_schemas.secrets.urls import url_credentials

    held = url_credentials(url)
    if held is not None:
        raise UsageError(f"the URL of {option} holds {held}; leave it out and {remedy}")
