"""`stairdata list`, `show`, `validate`, `schema`: looking at artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stairdata.cli.console import emit, say
from stairdata.cli.hub import print_lineage, print_releases
from stairdata.cli.options import JsonOption, RootOption, root_folder

if TYPE_CHECKING:
    from stairdata_schemas.artifacts import Artifact

KIND_HELP = "prompts, structured_cot, trees, preference_pairs, prm_pairs, responses, evaluations or reviews."
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="KIND, KIND@X.Y.Z, a folder, or org/name@TAG on the Hub.")
]


def list_(
    root: RootOption = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="ORG/NAME", help="List its releases on the Hub.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the artifacts under the root, complete or not, or the releases of a repository on the Hub."""
    from stairdata_schemas.artifacts import list_folders

    if repo is not None:
        print_releases(repo, json_=json_)
        return
    folder = root_folder(root)
    rows = [_list_row(kind, str(version), path) for kind, version, path in list_folders(folder)]
    if json_:
        emit(json.dumps({"root": str(folder), "artifacts": rows}))
        return
    if not rows:
        say(f"no artifacts under {folder}; make one with `stairdata build prompts`, or name another --root")
        return
    print_table(["artifact", "rows", "refused", "created", "state"], [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    return ["" if value is None else str(value) for value in row.values()]


def _list_row(kind: str, version: str, folder: Path) -> dict[str, Any]:
    from stairdata_schemas.artifacts import open_artifact
    from stairdata_schemas.errors import ArtifactError
    from stairdata_schemas.manifest import MANIFEST_NAME

    row: dict[str, Any] = {"artifact": f"{kind}@{version}", "rows": None, "refused": None, "created": None}
    if not (folder / MANIFEST_NAME).exists():
        return row | {"state": "unfinished"}
    try:
        manifest = open_artifact(folder).manifest
    except ArtifactError:
        return row | {"state": "damaged"}
    return row | {
        "rows": manifest.rows,
        "refused": sum(manifest.quarantine.values()),
        "created": manifest.created_at.isoformat(),
        "state": "complete",
    }


def show(
    reference: Reference,
    tree_id: Annotated[
        str | None, typer.Argument(metavar="[TREE_ID]", help="Draw this tree, or show the pairs of it alone.")
    ] = None,
    root: RootOption = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Show that many rows, text cut short.")] = 0,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to look at.")] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="Draw its whole ancestry.")] = False,
    json_: JsonOption = False,
) -> None:
    """Show what an artifact is and how it was made; draw a tree, page through pairs, or write a page."""
    from stairdata.cli import show as looking

    artifact = open_artifact_of(reference, root_folder(root))
    if lineage:
        print_lineage(artifact, root_folder(root), json_=json_)
        return
    if html is not None:
        looking.write_page(artifact, tree_id, html)
        return
    if json_:
        emit(looking.tree_as_json(artifact, tree_id) if tree_id else artifact.manifest.model_dump_json())
        return
    if tree_id is not None and artifact.kind not in looking.PAIR_KINDS:
        looking.show_tree(artifact, tree_id)
        return
    if tree_id is None:
        print_table(["", artifact.reference], [[key, value] for key, value in _facts(artifact) if value])
    if artifact.kind in looking.PAIR_KINDS:
        looking.show_pairs(artifact, tree_id, rows)
    elif artifact.kind == "trees" and not rows:
        looking.list_trees(artifact)
    elif rows:
        from stairdata_schemas.errors import quote

        for row in artifact.scan().head(rows).collect().iter_rows(named=True):
            print_table(["column", "value"], [[key, quote(value)] for key, value in row.items() if value is not None])


def open_artifact_of(reference: str, root: Path) -> Artifact:
    """Open what a reference names: a folder, a local artifact, or one on the Hub."""
    from stairdata.hub.pull import open_reference

    return open_reference(reference, root)


def _facts(artifact: Artifact) -> list[tuple[str, str]]:
    manifest = artifact.manifest
    parents = ", ".join(f"{parent.kind}@{parent.version}" for parent in manifest.parents)
    models = ", ".join(f"{model.role} {model.name}" for model in manifest.models)
    usage = manifest.usage
    return [
        ("folder", str(artifact.folder)),
        ("rows", str(manifest.rows)),
        ("columns", ", ".join(artifact.scan().collect_schema().names())),
        ("created", manifest.created_at.isoformat()),
        ("generator", f"{manifest.generator}, stairdata {manifest.stairdata_version}"),
        ("parents", parents),
        ("models", models),
        ("outcomes", _counts(manifest.outcomes)),
        ("refused", _counts(manifest.quarantine)),
        ("details", json.dumps(manifest.details) if manifest.details else ""),
        ("usage", f"{usage.requests} requests, {usage.completion_tokens} tokens" if usage.requests else ""),
        ("seconds", str(manifest.seconds or "")),
        ("notes", "; ".join(manifest.notes)),
        ("fingerprint", manifest.fingerprint),
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def validate(reference: Reference, root: RootOption = None, json_: JsonOption = False) -> None:
    """Check files, hashes, columns and every rule; exit 1 if something is wrong."""
    from stairdata_schemas.artifacts import validate_artifact

    artifact = open_artifact_of(reference, root_folder(root))
    problems = validate_artifact(artifact)
    if json_:
        found = [problem._asdict() for problem in problems]
        emit(json.dumps({"artifact": artifact.reference, "valid": not problems, "problems": found}))
    elif problems:
        print_table(["where", "rule", "violations", "example"], [list(map(str, problem)) for problem in problems])
    else:
        emit(f"{artifact.reference} is valid: {artifact.manifest.rows} rows")
    if problems:
        raise typer.Exit(1)


def schema(kind: Annotated[str, typer.Argument(metavar="KIND", help=KIND_HELP)]) -> None:
    """Print the JSON Schema of a kind's rows; docs/schema.md has all columns to read."""
    from stairdata_schemas.kinds import json_schema

    emit(json.dumps(json_schema(kind), indent=2))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stairdata_schemas.errors import visible

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console(highlight=False, markup=False, emoji=False).print(table)
