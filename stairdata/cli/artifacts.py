"""`stairdata list`, `validate`, `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stairdata.cli.console import emit, print_table, say
from stairdata.cli.hub import print_releases
from stairdata.cli.options import JsonOption, Reference, RootOption, root_folder

KIND_HELP = "prompts, structured_cot, trees, preference_pairs, prm_pairs, responses, evaluations or reviews."


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
    rows = [list_row(kind, str(version), path) for kind, version, path in list_folders(folder)]
    if json_:
        emit(json.dumps({"root": str(folder), "artifacts": rows}))
        return
    if not rows:
        say(f"no artifacts under {folder}; build one with `stairdata build prompts`, or name another --root")
        return
    print_table(["artifact", "rows", "refused", "created", "state"], [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    return ["" if value is None else str(value) for value in row.values()]


def list_row(kind: str, version: str, folder: Path) -> dict[str, Any]:
    """Return what is shown of an artifact, complete or not."""
    from stairdata_schemas.artifacts import open_artifact
    from stairdata_schemas.errors import ArtifactError
    from stairdata_schemas.manifest import MANIFEST_NAME, SHARD

    row: dict[str, Any] = {"artifact": f"{kind}@{version}", "rows": None, "refused": None, "created": None}
    if not (folder / MANIFEST_NAME).exists():
        return row | {"state": "unfinished"}
    try:
        manifest = open_artifact(folder).manifest
    except ArtifactError:
        return row | {"state": "damaged"}
    shard = manifest.details.get(SHARD)
    return row | {
        "rows": manifest.rows,
        "refused": sum(manifest.quarantine.values()),
        "created": manifest.created_at.isoformat(),
        "state": f"shard {shard['index']} of {shard['count']}" if shard else "complete",
    }


def validate(reference: Reference, root: RootOption = None, json_: JsonOption = False) -> None:
    """Check files, hashes, columns and every rule; exit 1 if something is wrong."""
    from stairdata.hub.pull import open_reference
    from stairdata_schemas.artifacts import validate_artifact

    artifact = open_reference(reference, root_folder(root))
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
    """Print the JSON Schema of a kind's rows; docs/schema.md lists all columns."""
    from stairdata_schemas.kinds import json_schema

    emit(json.dumps(json_schema(kind), indent=2))
