"""What `stairdata show` draws: a tree, pairs side by side, a page. Text of models is shown as text, always."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stairdata.cli.console import emit, print_table, say
from stairdata.cli.hub import print_lineage
from stairdata.cli.options import JsonOption, Reference, RootOption, root_folder

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from stairdata_schemas.artifacts import Artifact

PAIR_KINDS = ("preference_pairs", "prm_pairs")
PAIRS_UNASKED = 3
TREES_UNASKED = 10
GUIDE = 4  # columns that rich draws beside each level of a tree
LABEL = 40  # columns that a node is to have at least


def show(
    reference: Reference,
    tree_id: Annotated[
        str | None, typer.Argument(metavar="[TREE_ID]", help="Draw this tree, or show only its pairs.")
    ] = None,
    root: RootOption = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Show this many rows, with long text shortened.")] = 0,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page.")] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="Draw its whole ancestry.")] = False,
    json_: JsonOption = False,
) -> None:
    """Show what an artifact is and how it was made; draw a tree, page through pairs, or write a page."""
    from stairdata.hub.pull import open_reference

    artifact = open_reference(reference, root_folder(root))
    if lineage:
        print_lineage(artifact, root_folder(root), json_=json_)
        return
    if html is not None:
        write_page(artifact, tree_id, html)
        return
    if json_:
        emit(tree_as_json(artifact, tree_id) if tree_id else artifact.manifest.model_dump_json())
        return
    if tree_id is not None and artifact.kind not in PAIR_KINDS:
        show_tree(artifact, tree_id)
        return
    if tree_id is None:
        print_table(["", artifact.reference], [[key, value] for key, value in _facts(artifact) if value])
    if artifact.kind in PAIR_KINDS:
        show_pairs(artifact, tree_id, rows)
    elif artifact.kind == "trees" and not rows:
        list_trees(artifact)
    elif rows:
        for row in artifact.scan().head(rows).collect().iter_rows(named=True):
            print_table(["column", "value"], [[key, _cell(value)] for key, value in row.items() if value is not None])


def _cell(value: object) -> str:
    """Return a value shortened, with times as ISO 8601 has them, also inside lists."""
    from stairdata_schemas.errors import quote

    return quote(_plain(value))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime | date | clock_time):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta | Decimal) else value


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


def write_page(artifact: Artifact, tree_id: str | None, path: Path) -> None:
    """Write a self-contained HTML page of an artifact, or of one tree."""
    from stairdata.report.pages import artifact_page, tree_page
    from stairdata.report.trees import find_tree
    from stairdata_schemas.errors import UsageError
    from stairdata_schemas.files import write_atomic

    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another file")
    page = tree_page(artifact, find_tree(artifact, tree_id)) if tree_id else artifact_page(artifact)
    write_atomic(path, page)
    say(f"wrote a page of {artifact.reference}; it shows text after a click")
    emit(str(path))


def show_tree(artifact: Artifact, tree_id: str) -> None:
    """Draw a tree."""
    from rich.text import Text
    from rich.tree import Tree

    from stairdata.report.trees import find_tree, look
    from stairdata_schemas.errors import quote, visible

    row = find_tree(artifact, tree_id)
    nodes = row["nodes"]
    seen = look(nodes)
    emit(visible(f"tree {row['tree_id']} of {artifact.reference}: {len(nodes)} nodes; * marks the best path"))
    emit(f"prompt: {quote(row['prompt'])}")
    drawn: dict[int, Tree] = {}
    for node in nodes:
        label = _node_label(node, seen[node["node_id"]])
        parent = drawn.get(node["parent_id"])
        drawn[node["node_id"]] = parent.add(label) if parent else Tree(label, guide_style="dim")
    console = _console()
    # what has no room beside its guides would not be drawn at all
    console.width = max(console.width, GUIDE * max(node["depth"] for node in nodes) + LABEL)
    console.print(drawn.get(0, Text("")))


def _node_label(node: dict[str, Any], seen: Any) -> Text:
    from rich.text import Text

    from stairdata.report.trees import title_of, visits_of
    from stairdata_schemas.errors import quote

    value = "not visited" if seen.value is None else f"{seen.value:+.2f}"
    end = " end" if node["is_terminal"] else ""
    label = Text("* " if seen.is_best else "  ", style="bold" if seen.is_best else "")
    label.append(value, style="" if seen.value is None else "green" if seen.value > 0 else "red")
    label.append(f"  {visits_of(node)}  {seen.safety}{end}  #{node['node_id']} ")
    label.append(quote(title_of(node)))
    return label


def tree_as_json(artifact: Artifact, tree_id: str) -> str:
    """Return a tree as one JSON object."""
    from stairdata.report.trees import find_tree

    return json.dumps(find_tree(artifact, tree_id))  # in ASCII: what a terminal could obey is escaped


def list_trees(artifact: Artifact, count: int = TREES_UNASKED) -> None:
    """List some trees, so that one can be named."""
    import polars as pl

    from stairdata_schemas.errors import quote

    root = pl.col("nodes").list.first().struct
    frame = (
        artifact.scan()
        .head(count)
        .select(
            "tree_id",
            pl.col("nodes").list.len(),
            visits=root.field("visits"),
            total=root.field("value_sum"),
            prompt="prompt",
        )
    )
    rows = [
        [tree_id, str(nodes), f"{total / visits:+.2f}" if visits else "", quote(prompt)]
        for tree_id, nodes, visits, total, prompt in frame.collect().iter_rows()
    ]
    print_table(["tree_id", "nodes", "value", "prompt"], rows)


def show_pairs(artifact: Artifact, tree_id: str | None, count: int) -> None:
    """Page through pairs on a terminal; elsewhere print some of them."""
    import click

    pairs = _pair_texts(artifact, tree_id)
    if sys.stdout.isatty() and not count:
        click.echo_via_pager(pairs, color=False)
        return
    shown = 0
    for text in pairs:
        if shown == (count or PAIRS_UNASKED):
            say(f"{artifact.manifest.rows} pairs in all; more with --rows N, or on a terminal")
            return
        sys.stdout.write(text)
        shown += 1
    if not shown:
        say(f"no pair{f' of tree {tree_id}' if tree_id else ''} in {artifact.reference}")


def _pair_texts(artifact: Artifact, tree_id: str | None) -> Iterator[str]:
    import polars as pl

    from stairdata_schemas.artifacts import iterate_frames

    console = _console(color=False)
    for path in artifact.data_files:
        for frame in iterate_frames(path, 256):
            wanted = frame if tree_id is None else frame.filter(pl.col("tree_id").str.starts_with(tree_id))
            for row in wanted.iter_rows(named=True):
                with console.capture() as captured:
                    for part in _pair(row):
                        console.print(part)
                yield captured.get()


def _pair(row: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.box import ASCII
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    from stairdata.report.trees import visits_of
    from stairdata_schemas import grammar
    from stairdata_schemas.errors import quote, visible

    yield Rule(Text(visible(f"pair {row['pair_id']} of tree {row['tree_id']}")), align="left", characters="-")
    yield Text(visible(f"{row['granularity']} pair at depth {row['depth']}, margin {row['margin']:.2f}"))
    yield Text(f"prompt: {quote(row['prompt'])}")
    length = row["prefix_length"]
    shared = [grammar.step_title(step) or step for step in grammar.split_steps(row["chosen"][:length])]
    if shared:
        yield Text(f"after: {quote(' > '.join(' '.join(step.split()) for step in shared), 160)}")
    table = Table(box=ASCII, expand=True)
    for side in ("chosen", "rejected"):
        end = ", end" if row[f"{side}_is_terminal"] else ""
        visits = visits_of({"visits": row[f"{side}_visits"]})
        heading = f"{side}: value {row[f'{side}_value']:+.2f}, {visits}{end}"
        table.add_column(Text(heading), ratio=1, overflow="fold")
    table.add_row(*(Text(visible(row[side][length:].strip("\n"))) for side in ("chosen", "rejected")))
    yield table


def _console(*, color: bool = True) -> Console:
    from rich.console import Console

    return Console(
        highlight=False, markup=False, emoji=False, no_color=not color, force_terminal=None if color else False
    )
