"""Self-contained HTML pages of artifacts and trees.

Whatever models or strangers wrote is data: it stands in a JSON block in which no `<` is left, and the page's script
puts it into the document as text alone, after a click. What plotly draws (it reads labels as a small markup) is
escaped. A content security policy lets no script run but the page's own, and nothing be loaded from anywhere.
"""

from __future__ import annotations

import html
import json
import secrets
from typing import Any

import numpy as np
import polars as pl

from stairdata.generators.evaluations.judging.answer_judge import RULE
from stairdata.report.measures import Numbers, classes, figures
from stairdata.report.templating import environment, script_json
from stairdata.report.trees import NodeFacts, look, title_of, visits_of
from stairdata.search.refusal import refusal_rule_note
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError, visible
from stairdata_schemas.manifest import Manifest

BINS = 40
FEW_BARS = 12
ROWS_SHOWN = 100
_COLORS = [[0.0, "#b2182b"], [0.5, "#f7f7f7"], [1.0, "#2166ac"]]  # red to blue: told apart by colour-blind readers, too
_TEXTS = {
    "prompts": ("prompt", "reference_answer"),
    "structured_cot": ("prompt", "completion"),
    "responses": ("prompt", "text"),
    "evaluations": ("response",),
    "reviews": ("comment", "answers"),
}
_NAMES = ("task", "item_kind", "item_id", "model", "method", "verdict", "safe", "score")
"""Columns that stand in the label of a row, before the click: no text of prompts or models."""


def tree_page(artifact: Artifact, tree: Row) -> str:
    """Return the page of one tree: a zoomable icicle, what its nodes say behind a click, its distributions."""
    nodes = tree["nodes"]
    seen = look(nodes)
    facts = [
        ("nodes", len(nodes)),
        ("task", tree["task"]),
        ("actor", tree["actor"]),
        ("round", tree["round"]),
        ("iterations", tree["iterations"]),
        ("answers", sum(node["is_terminal"] for node in nodes)),
        ("safe", seen[0].safety),
    ]
    judged: dict[int, list[Row]] = {}
    for words in tree.get("judgements") or []:
        judged.setdefault(words["node_id"], []).append(words)
    plots = [_icicle(nodes, seen), *_histograms(_tree_figures(nodes, seen))]
    data = {
        "prompt": visible(tree["prompt"]),
        "nodes": [_node_data(node, seen[node["node_id"]], judged.get(node["node_id"], [])) for node in nodes],
    }
    return _page(f"tree {tree['tree_id']} of {artifact.reference}", facts, plots, {}, data)


def artifact_page(artifact: Artifact) -> str:
    """Return the page of an artifact: distributions, counts by class and by rule, and some rows behind a click."""
    manifest = artifact.manifest
    facts = [
        ("rows", manifest.rows),
        ("refused", sum(manifest.quarantine.values())),
        ("created", manifest.created_at.isoformat()),
        ("generator", f"{manifest.generator}, stairdata {manifest.stairdata_version}"),
        ("parents", ", ".join(f"{parent.kind}@{parent.version}" for parent in manifest.parents)),
        ("models", ", ".join(f"{model.role} {model.name}" for model in manifest.models)),
        ("notes", "; ".join(manifest.notes)),
    ]
    plots, counts = _histograms(dict(figures(artifact))), _counts(artifact, manifest)
    hint = f"stairdata show {artifact.reference} TREE_ID --html FILE" if artifact.kind == "trees" else ""
    return _page(
        artifact.reference, facts, plots, counts, {"rows": _some_rows(artifact)}, hint=hint, note=_rule_note(artifact)
    )


def _rule_note(artifact: Artifact) -> str:
    """Return what has to stand beside refusals that a rule counted."""
    if artifact.kind != "evaluations":
        return ""
    by_rule = artifact.scan().filter(pl.col("judge") == RULE).head(1).collect()
    return f"Where the judge is {RULE}, {refusal_rule_note()}." if len(by_rule) else ""


def _page(
    title: str,
    facts: list[tuple[str, Any]],
    plots: list[Row],
    counts: dict[str, dict[str, int]],
    data: Row,
    *,
    hint: str = "",
    note: str = "",
) -> str:
    nonce = secrets.token_urlsafe(16)
    shown = [(name, visible(str(value))) for name, value in facts if value not in (None, "")]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=visible(title),
            facts=shown,
            plots=[plot["name"] for plot in plots],
            counts={visible(name): {visible(key): n for key, n in rows.items()} for name, rows in counts.items()},
            rows_shown=ROWS_SHOWN,
            data=script_json({"plots": plots, **data}),
            plotly=_plotly().offline.get_plotlyjs(),
            nonce=nonce,
            allowed_script=f"nonce-{nonce}",
            has_tree="nodes" in data,
            rows=data.get("rows", []),
            hint=hint,
            note=note,
        )
    )


def _plotly() -> Any:
    try:
        import plotly
        import plotly.graph_objects
        import plotly.offline
    except ImportError as error:
        raise UsageError("a page needs plotly: pip install 'stairdata[report]'") from error
    return plotly


def _plot(name: str, trace: Row, layout: Row) -> Row:
    """Check a figure by plotly's own schema, and name it."""
    figure = json.loads(_plotly().graph_objects.Figure(data=[trace], layout=layout).to_json())
    figure["layout"].pop("template", None)
    return {"name": name, **figure}


def _icicle(nodes: list[Row], seen: list[NodeFacts]) -> Row:
    labels = [_label(node, seen[node["node_id"]]) for node in nodes]
    return _plot(
        "tree",
        {
            "type": "icicle",
            "ids": [str(node["node_id"]) for node in nodes],
            "parents": ["" if node["parent_id"] < 0 else str(node["parent_id"]) for node in nodes],
            "labels": labels,
            "values": _widths(nodes),
            "branchvalues": "total",
            "sort": False,
            "tiling": {"orientation": "v"},
            "pathbar": {"visible": False},  # it asks for a height while it moves, and gets none
            "root": {"color": "white"},
            "marker": {
                "colors": [seen[node["node_id"]].value for node in nodes],
                "colorscale": _COLORS,
                "cmid": 0,
                "showscale": True,
                "colorbar": {"title": {"text": "value"}},
                "line": {
                    "width": [3 if each.is_best else 0.5 for each in seen],
                    "color": ["#000000" if each.is_best else "#999999" for each in seen],
                },
            },
            "hovertemplate": "%{label}<extra></extra>",
            "textposition": "middle center",
        },
        {"height": 620, "margin": {"t": 10, "l": 10, "r": 10, "b": 10}},
    )


def _label(node: Row, seen: NodeFacts) -> str:
    value = "not visited" if seen.value is None else f"{seen.value:+.2f}"
    end = ", end" if node["is_terminal"] else ""
    return f"#{node['node_id']} {value}, {visits_of(node)}, {seen.safety}{end}{' *' if seen.is_best else ''}"


def _widths(nodes: list[Row]) -> list[int]:
    """Count the leaves below each node: the widths of the picture."""
    widths = [0] * len(nodes)
    for node in reversed(nodes):
        widths[node["node_id"]] = widths[node["node_id"]] or 1
        if node["parent_id"] >= 0:
            widths[node["parent_id"]] += widths[node["node_id"]]
    return widths


def _node_data(node: Row, seen: NodeFacts, judged: list[Row]) -> Row:
    shown = ("helpfulness", "safety", "reward")
    title = html.escape(visible(title_of(node)), quote=False)  # plotly reads labels as markup
    return {
        "titled": f"{_label(node, seen)}<br>{title}",
        "label": _label(node, seen),
        "step": visible(node["step"]) if node["parent_id"] >= 0 else "(the prompt)",
        "facts": {
            "depth": node["depth"],
            "visits": node["visits"],
            "value": seen.value,
            "evaluations": seen.safety,
            "tokens": node["tokens"],
            **{name: node[name] for name in shown},
        },
        "rollouts": [
            {"text": visible(rollout["text"]), "scores": {name: rollout[name] for name in shown}}
            for rollout in node["rollouts"] or []
        ],
        "judgements": [{"label": _judgement_label(words), "text": visible(words["text"])} for words in judged],
    }


def _judgement_label(words: Row) -> str:
    of = "" if words["rollout"] is None else f", rollout {words['rollout'] + 1}"
    return f"the judge on {words['aspect']}{of}"


def _tree_figures(nodes: list[Row], seen: list[NodeFacts]) -> dict[str, Numbers]:
    values = {node["node_id"]: each.value for node, each in zip(nodes, seen, strict=True)}
    siblings: dict[int, list[float]] = {}
    for node in nodes[1:]:
        value = values[node["node_id"]]
        if value is not None:
            siblings.setdefault(node["parent_id"], []).append(value)
    margins = [max(each) - min(each) for each in siblings.values() if len(each) > 1]
    found = {
        "value of a node": [value for value in values.values() if value is not None],
        "margin between best and worst sibling": margins,
        "depth of a node": [node["depth"] for node in nodes],
        "visits of a node": [node["visits"] for node in nodes],
        "length of a step (characters)": [len(node["step"]) for node in nodes[1:]],
    }
    return {name: np.array(numbers, dtype=np.float64) for name, numbers in found.items()}


def _histograms(found: dict[str, Numbers]) -> list[Row]:
    return [_histogram(name, numbers) for name, numbers in found.items() if len(numbers)]


def _histogram(name: str, numbers: Numbers) -> Row:
    """Draw a histogram; whole numbers of a small range get a bar each, few numbers few bars."""
    low, high = float(numbers.min()), float(numbers.max())
    is_whole = bool((numbers == np.round(numbers)).all()) and high - low < BINS
    bins = min(BINS, max(FEW_BARS, int(2 * len(numbers) ** 0.5)))
    edges = np.arange(low - 0.5, high + 1) if is_whole else np.linspace(low, high if high > low else low + 1, bins + 1)
    counts, edges = np.histogram(numbers, edges)
    middles = (edges[:-1] + edges[1:]) / 2
    trace = {
        "type": "bar",
        "x": middles.tolist(),
        "y": counts.tolist(),
        "width": np.diff(edges).tolist(),
        "marker": {"color": "#4a7fb0", "line": {"width": 1, "color": "white"}},
        "hovertemplate": "%{x:.3g}: %{y}<extra></extra>",
    }
    title = f"{name}<br>{len(numbers):,}, mean {numbers.mean():.3g}, median {np.median(numbers):.3g}"
    layout = {
        "title": {"text": title, "font": {"size": 13}},
        "height": 260,
        "margin": {"t": 46, "l": 50, "r": 10, "b": 30},
        "bargap": 0,
        "xaxis": {"dtick": 1} if is_whole and high - low <= FEW_BARS else {},
    }
    return _plot(name, trace, layout)


def _counts(artifact: Artifact, manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = {f"rows by {name}": rows for name, rows in classes(artifact).items()}
    if manifest.quarantine:
        counts["refused by rule"] = manifest.quarantine
    if manifest.outcomes:
        counts["outcomes"] = manifest.outcomes
    for name in ("funnel", "not_taken_over"):
        found = manifest.details.get(name)
        if isinstance(found, dict) and found:
            counts[name.replace("_", " ")] = {key: count for key, count in found.items() if isinstance(count, int)}
    return counts


def _some_rows(artifact: Artifact) -> list[Row]:
    rows = artifact.scan().head(ROWS_SHOWN)
    if artifact.kind == "trees":
        root = pl.col("nodes").list.first().struct
        found = rows.select(
            "tree_id",
            "prompt",
            nodes=pl.col("nodes").list.len(),
            visits=root.field("visits"),
            total=root.field("value_sum"),
        ).collect()
        return [
            {
                "label": f"{row['tree_id']}: {row['nodes']} nodes, value {row['total'] / max(row['visits'], 1):+.2f}",
                "texts": [["prompt", visible(row["prompt"])]],
            }
            for row in found.iter_rows(named=True)
        ]
    texts = _TEXTS.get(artifact.kind)
    return [_row_data(row, texts) if texts else _pair_data(row) for row in rows.collect().iter_rows(named=True)]


def _row_data(row: Row, texts: tuple[str, ...]) -> Row:
    names = [
        f"score {row[name]:.3g}" if name == "score" else str(row[name]) for name in _NAMES if row.get(name) is not None
    ]
    return {
        "label": visible(", ".join([*([row["prompt_id"]] if "prompt_id" in row else []), *names])),
        "texts": [[name.replace("_", " "), visible(row[name])] for name in texts if row[name] is not None],
    }


def _pair_data(row: Row) -> Row:
    length = row["prefix_length"]
    return {
        "label": f"{row['pair_id']}: {row['granularity']}, depth {row['depth']}, {row['chosen_value']:+.2f} against "
        f"{row['rejected_value']:+.2f}",
        "texts": [
            ["prompt", visible(row["prompt"])],
            *([["shared beginning", visible(row["chosen"][:length])]] if length else []),
            ["chosen", visible(row["chosen"][length:])],
            ["rejected", visible(row["rejected"][length:])],
        ],
    }
