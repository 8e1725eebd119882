"""Where the rows come from: the data flow with counts, lineage, notes of the builds, and cost."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from stairdata.report.overview.content import ReportSection, ReportTable, counted, joined, number, sentence, short
from stairdata.report.overview.sources import ReportSources, is_number
from stairdata.search.refusal import refusal_rule_note
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.kinds import KINDS, row_schema

DIGITS = 12
_REMOVED = "removed_"


class FlowStage(NamedTuple):
    """All artifacts of a kind."""

    kind: str
    made_from: str
    """Kinds of the parents."""
    artifacts: int
    kept: int
    different: int | None
    """Rows with a key of their own, where several artifacts hold the same ones; else None."""
    quarantined: int
    dropped: int


def stages(sources: ReportSources) -> list[FlowStage]:
    """Return the kinds that there are, from prompts to reviews."""
    found = []
    for kind in KINDS:
        artifacts = sources.of_kind(kind)
        if artifacts:
            rows, refused = (sum(each) for each in zip(*map(_kept, artifacts), strict=True))
            dropped = sum(sum(_dropped(artifact).values()) for artifact in artifacts)
            parents = dict.fromkeys(parent.kind for each in artifacts for parent in each.manifest.parents)
            others = ", ".join(name.replace("_", " ") for name in parents if name != kind)
            found.append(
                FlowStage(kind.replace("_", " "), others, len(artifacts), rows, _different(artifacts), refused, dropped)
            )
    return found


def _different(artifacts: list[Artifact]) -> int | None:
    """Count the keys of several artifacts together, if that is fewer than their rows."""
    if len(artifacts) == 1:
        return None
    keys = row_schema(artifacts[0].kind).primary_key()
    every = pl.concat([artifact.scan().select(keys) for artifact in artifacts])
    different = int(every.unique().select(pl.len()).collect(engine="streaming").item())
    return different if different < sum(artifact.manifest.rows for artifact in artifacts) else None


def _kept(artifact: Artifact) -> tuple[int, int]:
    manifest = artifact.manifest
    return manifest.rows, sum(manifest.quarantine.values())


def _dropped(artifact: Artifact) -> dict[str, int]:
    """Return what a build left out by design, by reason: candidates of pairs, rows that were not taken over."""
    details = artifact.manifest.details
    funnel, others = (details.get(name) for name in ("funnel", "not_taken_over"))
    removed = {
        name.removeprefix(_REMOVED): count for name, count in _figures(funnel).items() if name.startswith(_REMOVED)
    }
    return removed | _figures(others)


def _figures(value: object) -> dict[str, int]:
    counts = value.items() if isinstance(value, dict) else ()
    return {str(name): count for name, count in counts if isinstance(count, int) and not isinstance(count, bool)}


def flow_section(sources: ReportSources) -> ReportSection | None:
    """Return the counts of every artifact."""
    if not sources.artifacts:
        return None
    names = stage_names(sources)
    rows = [
        [
            artifact.reference,
            names.get(artifact.reference, ""),
            _made_from(artifact),
            number(artifact.manifest.rows),
            counted(artifact.manifest.quarantine) or "none",
            counted(_dropped(artifact)) or "none",
        ]
        for artifact in sources.artifacts
    ]
    table = ReportTable(
        "Rows of every artifact",
        ["artifact", "stage", "made from", "rows kept", "quarantined, by rule", "left out by design"],
        rows,
        [
            "Quarantined rows broke a rule or could not be answered; they lie beside the artifact. What is left out by "
            "design are candidates that no row is made of, such as pairs of too small a margin."
        ],
    )
    return ReportSection("data-flow", "Data flow", tables=[table])


def stage_names(sources: ReportSources) -> dict[str, str]:
    """Return what the run calls an artifact's stage, by reference."""
    found = {}
    for stage in sources.stages:
        reference, name, in_round = stage.get("artifact"), stage.get("stage"), stage.get("round")
        if isinstance(reference, str) and isinstance(name, str):
            found[reference] = f"round {in_round}: {name}" if isinstance(in_round, int) else name
    return found


def _made_from(artifact: Artifact) -> str:
    return ", ".join(f"{parent.kind}@{parent.version}" for parent in artifact.manifest.parents)


def lineage_section(sources: ReportSources) -> ReportSection | None:
    """Return what each artifact and each model was made from, by hash."""
    if not sources.artifacts:
        return None
    rows = []
    for artifact in sources.artifacts:
        manifest = artifact.manifest
        parents = [f"{each.kind}@{each.version} ({each.content_hash[:DIGITS]})" for each in manifest.parents]
        models = [
            f"{each.role} {short(each.name)} ({(each.revision or 'no hash')[:DIGITS]})" for each in manifest.models
        ]
        rows.append(
            [
                artifact.reference,
                manifest.content_hash[:DIGITS],
                joined(parents),
                joined(models),
                manifest.generator,
                f"{manifest.stairdata_version} ({(manifest.git_commit or 'no commit')[:DIGITS]})",
                manifest.license or "unknown",
                manifest.created_at.strftime("%Y-%m-%d %H:%M"),
            ]
        )
    header = [
        "artifact",
        "content",
        "made from",
        "models",
        "generator",
        "stairdata (commit)",
        "licence",
        "created (UTC)",
    ]
    notes = [f"Not on this machine: {each}" for each in sources.missing]
    tables = [ReportTable("Artifacts and what they were made from", header, rows, notes)]
    if sources.trainings:
        trained = [[short(name), *_training(record)] for name, record in sources.trainings.items()]
        tables.append(
            ReportTable("Models and what they were trained on", ["model", "training", "from", "data"], trained)
        )
    return ReportSection(
        "lineage",
        "Lineage",
        ["Content hashes are shown by their first digits; manifests have all of them."],
        tables=tables,
    )


def _training(record: Json) -> list[str]:
    identity, base, data = (_part(record, name) for name in ("identity", "base_model", "data"))
    start = base.get("hash") or base.get("revision") or "no hash"
    reference = "@".join(str(data[name]) for name in ("kind", "version") if name in data)
    content = str(data.get("content_hash") or "no hash")[:DIGITS]
    return [
        short(str(identity.get("trainer") or "unknown")),
        f"{short(str(base.get('name') or 'unknown'))} ({str(start)[:DIGITS]})",
        f"{short(reference)} ({content})" if reference else "unknown",
    ]


def _part(record: Json, name: str) -> Json:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def notes_section(sources: ReportSources) -> ReportSection | None:
    """Return deviations from the paper and warnings, as the builds and trainings noted them."""
    said: dict[str, list[str]] = {}
    for artifact in sources.artifacts:
        for note in artifact.manifest.notes:
            if note == refusal_rule_note():
                continue  # stands beside the figures, and in the section on judges
            said.setdefault(note, []).append(artifact.reference)
    for name, record in sources.trainings.items():
        warnings = record.get("warnings")
        for note in warnings if isinstance(warnings, list) else []:
            said.setdefault(str(note), []).append(f"training of {short(name)}")
    if not said:
        return None
    rows = [[sentence(note), ", ".join(where)] for note, where in said.items()]
    return ReportSection(
        "notes", "Deviations and warnings", tables=[ReportTable("Notes of builds and trainings", ["note", "of"], rows)]
    )


def cost_section(sources: ReportSources) -> ReportSection | None:
    """Return tokens, time and money of each build and training."""
    rows, totals, costs, seconds = [], [0, 0, 0], [], 0.0
    for artifact in sources.artifacts:
        usage, took = artifact.manifest.usage, artifact.manifest.seconds
        counts = [usage.requests, usage.prompt_tokens, usage.completion_tokens]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        seconds += took or 0.0
        costs += [] if usage.cost is None else [usage.cost]
        money = "" if usage.cost is None else f"{usage.cost:.4f}"
        rows.append([artifact.reference, *_counts(counts), "", money, _seconds(took)])
    trained = 0
    for name, record in sources.trainings.items():
        summary = _part(record, "summary")
        tokens, took = (summary[each] if is_number(summary.get(each)) else None for each in ("tokens", "seconds"))
        trained, seconds = trained + int(tokens or 0), seconds + (took or 0.0)
        rows.append([f"training of {short(name)}", "", "", "", number(tokens), "", _seconds(took)])
    if not rows:
        return None
    rows.append(["all", *_counts(totals), number(trained), f"{sum(costs):.4f}" if costs else "", _seconds(seconds)])
    header = [
        "build or training",
        "requests",
        "prompt tokens",
        "completion tokens",
        "tokens trained on",
        "cost",
        "seconds",
    ]
    notes = [
        "Seconds are those of the run that finished a build, a server's start included; of a training, those of "
        "its steps.",
        "Cost is in the currency of the recipe's prices." if costs else "No prices were given, so no cost is known.",
    ]
    return ReportSection("cost", "Cost", tables=[ReportTable("Requests, tokens, time and money", header, rows, notes)])


def _counts(counts: list[int]) -> list[str]:
    return [number(count) if count else "" for count in counts]


def _seconds(took: float | None) -> str:
    return "" if took is None else f"{took:,.1f}"
