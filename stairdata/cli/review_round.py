"""`stairdata review push`, `status`, `pull`, `export`, `import`: a review round, from the items to the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stairdata.cli.console import emit, print_table, say, show_progress
from stairdata.cli.options import JsonOption, RootOption, VersionOption, root_folder
from stairdata.cli.results import print_artifact

if TYPE_CHECKING:
    from stairdata_review.rounds.client import Argilla
    from stairdata_review.rounds.datasets import Round
    from stairdata_schemas.artifacts import Artifact

FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="Folder of the server's data; default: STAIRDATA_HOME, else the user's data folder."),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="Another Argilla server; its API key is in ARGILLA_API_KEY.")
]
RemoteOption = Annotated[
    bool, typer.Option("--remote", help="Allow another machine as the server: texts and answers are sent there.")
]
WorkspaceOption = Annotated[str, typer.Option("--workspace", help="Argilla's workspace.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Argilla's dataset; default: kind and version of the artifact.")
]
SelectOption = Annotated[
    str,
    typer.Option(
        "--select", help="all, random, margin (smallest first), disagreement (of judge and value), stratified."
    ),
]
ItemLimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Take at most this many items, in the order of --select.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random orders, also of A and B.")]
ContactOption = Annotated[str, typer.Option("--contact", help="Person the guidelines tell reviewers to talk to.")]
EXTRA = ("httpx", "krippendorff", "fastexcel", "xlsxwriter")
AGREEMENT = ["agreement of", "question", "items", "answers", "alpha", "pairwise", "with the values"]
ReviewedReference = Annotated[
    str,
    typer.Argument(metavar="REF", help="preference-pairs, prm-pairs, trees or structured-cot, as KIND or KIND@X.Y.Z."),
]
OptionalReference = Annotated[
    str | None, typer.Argument(metavar="[REF]", help="What was pushed; default: the only review round there.")
]


def push(
    reference: ReviewedReference,
    select: SelectOption = "all",
    limit: ItemLimitOption = None,
    min_submitted: Annotated[
        int | None, typer.Option("--min-submitted", min=1, help="Answers that complete an item; default: 1.")
    ] = None,
    seed: SeedOption = 42,
    workspace: WorkspaceOption = "stairdata",
    dataset: DatasetOption = None,
    contact: ContactOption = "the person who invited you",
    folder: FolderOption = None,
    url: UrlOption = None,
    remote: RemoteOption = False,
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Push items to reviewers; items that are already there stay as they are."""
    from stairdata_review.rounds.push import RoundOptions
    from stairdata_review.rounds.push import push as push_items

    artifact = _open(reference, root)
    options = RoundOptions(root_folder(root), select, limit, seed, workspace, dataset, min_submitted, contact)
    with _connect(folder, url, remote=remote) as argilla, show_progress() as progress:
        pushed = push_items(argilla, artifact, options, progress)
    say(f"{artifact.reference}: {pushed.added} added, {pushed.there_before} were there before")
    if pushed.shortened:
        say(f"{pushed.shortened} have text that is too long to show; a note marks where it was cut")
    say(f"add reviewers with `stairdata review invite NAME`; they sign in at {argilla.url}")
    facts = {"artifact": artifact.reference, "url": argilla.url} | pushed._asdict()
    emit(json.dumps(facts) if json_ else pushed.dataset)


def status(
    reference: OptionalReference = None,
    workspace: WorkspaceOption = "stairdata",
    dataset: DatasetOption = None,
    folder: FolderOption = None,
    url: UrlOption = None,
    remote: RemoteOption = False,
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the state of a review round: progress, reviewers, pace, agreement so far."""
    from stairdata_review.rounds.pull import find_reviewed
    from stairdata_review.rounds.status import status as status_of
    from stairdata_schemas.errors import ArtifactNotFoundError

    with _connect(folder, url, remote=remote) as argilla:
        place, named = _find(argilla, reference, workspace, dataset, root)
        try:
            reviewed = find_reviewed(place, root_folder(root), named)
        except ArtifactNotFoundError as error:
            reviewed = None
            say(f"{error}; without it, the agreement is left out")
        figures = status_of(argilla, place, reviewed)
    if json_:
        emit(json.dumps(figures))
        return
    _show_status(figures)


def pull(
    reference: OptionalReference = None,
    workspace: WorkspaceOption = "stairdata",
    dataset: DatasetOption = None,
    folder: FolderOption = None,
    url: UrlOption = None,
    remote: RemoteOption = False,
    root: RootOption = None,
    version: VersionOption = None,
    json_: JsonOption = False,
) -> None:
    """Put all submitted answers into an artifact of kind reviews."""
    from stairdata_review.reviewers import salt_of
    from stairdata_review.rounds.pull import find_reviewed
    from stairdata_review.rounds.pull import pull as pull_answers

    with _connect(folder, url, remote=remote) as argilla:
        place, named = _find(argilla, reference, workspace, dataset, root)
        reviewed = find_reviewed(place, root_folder(root), named)
        salt = salt_of(_home(folder), place.dataset_id)
        artifact, is_new = pull_answers(argilla, place, reviewed, salt, root_folder(root), version)
    if not is_new:
        say(f"no new answers since {artifact.reference}")
    _print_reviews(artifact, json_=json_)


def export(
    reference: ReviewedReference,
    file: Annotated[Path, typer.Option("--file", help="Table to write: .csv, .xlsx or .jsonl.")],
    select: SelectOption = "all",
    limit: ItemLimitOption = None,
    seed: SeedOption = 42,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing table.")] = False,
    reviewer: Annotated[str, typer.Option("--reviewer", help="Name to fill in as the reviewer.")] = "",
    contact: ContactOption = "the person who invited you",
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Write items to review as a table, for reviewers without Argilla."""
    from stairdata_review.selection import select as select_items
    from stairdata_review.tables.export import export_items
    from stairdata_schemas.errors import UsageError

    if file.exists() and not force:
        raise UsageError(
            f"{file} already exists, and may contain answers; name another --file, or overwrite it with --force"
        )
    artifact = _open(reference, root)
    chosen = select_items(artifact, select, limit, seed, root_folder(root))
    export_items(artifact, file, chosen, seed, reviewer=reviewer, contact=contact)
    say(f"{artifact.reference}: {len(chosen)} items; fill in the empty columns, then `stairdata review import`")
    facts = {"file": str(file), "artifact": artifact.reference, "items": len(chosen)}
    emit(json.dumps(facts) if json_ else str(file))


def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Tables of `review export`, filled in.")],
    input_: Annotated[str, typer.Option("--input", metavar="REF", help="What was exported.")] = "preference-pairs",
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="The reviewer, for rows that don't name one.")
    ] = None,
    folder: FolderOption = None,
    root: RootOption = None,
    version: VersionOption = None,
    max_quarantine: Annotated[
        float, typer.Option("--max-quarantine", min=0, max=1, help="Largest share of refused rows.")
    ] = 0.05,
    json_: JsonOption = False,
) -> None:
    """Read answers from tables into an artifact of kind reviews."""
    from stairdata_review.reviewers import salt_of
    from stairdata_review.tables.answers import RULES, import_reviews

    reviewed = _open(input_, root)
    salt = salt_of(_home(folder), reviewed.manifest.content_hash)
    artifact = import_reviews(
        files, reviewed, salt, root_folder(root), reviewer=reviewer, version=version, max_quarantine=max_quarantine
    )
    for rule in artifact.manifest.quarantine:
        say(f"{rule}: {RULES.get(rule, 'a rule of the schema')}; the rows are in {artifact.folder / 'quarantine'}")
    _print_reviews(artifact, json_=json_)


def check_extra() -> None:
    """Raise an error that names what to install, if the extra `review` is missing."""
    from importlib.util import find_spec

    from stairdata_schemas.errors import UsageError

    missing = next((name for name in EXTRA if find_spec(name) is None), None)
    if missing:
        raise UsageError(f"review needs {missing}: pip install 'stairdata[review]'")


def _open(reference: str, root: Path | None) -> Artifact:
    from stairdata.hub.pull import open_reference

    check_extra()
    return open_reference(reference, root_folder(root))


def _connect(folder: Path | None, url: str | None, *, remote: bool) -> Argilla:
    check_extra()
    from stairdata_review.rounds.client import Argilla, find_access

    return Argilla(find_access(folder, url, remote=remote))


def _home(folder: Path | None) -> Path:
    from stairdata_review.server.folder import default_folder

    return folder or default_folder()


def _find(
    argilla: Argilla, reference: str | None, workspace: str, dataset: str | None, root: Path | None
) -> tuple[Round, Artifact | None]:
    from stairdata_review.rounds.datasets import find_round

    named = _open(reference, root) if reference else None
    argilla.check()
    return find_round(argilla, workspace, dataset, named), named


def _print_reviews(artifact: Artifact, *, json_: bool) -> None:
    left_out = {name: count for name, count in artifact.manifest.details.get("left_out", {}).items() if count}
    if left_out:
        say("left out: " + ", ".join(f"{name} {count}" for name, count in left_out.items()))
    figures = artifact.manifest.details.get("agreement", {})
    if figures:
        say(_agreement_line("agreement", figures))
    print_artifact(artifact, json_=json_)


def _show_status(figures: dict[str, Any]) -> None:
    from stairdata_schemas.cards.card import agreement_rows

    progress, pace, found = figures["progress"], figures["pace"], figures["agreement"]
    per_answer = "unknown" if pace["seconds_an_answer"] is None else f"{pace['seconds_an_answer']:.0f} s an answer"
    rest = "" if pace["hours_of_work"] is None else f", {pace['hours_of_work']:.1f} hours of work"
    rows = [
        [
            "items",
            f"{progress['completed']} of {progress['total']} completed ({figures['min_submitted']} answers each)",
        ],
        ["answers", ", ".join(f"{name} {count}" for name, count in figures["answers"].items())],
        ["pace", f"{per_answer}, {pace['answers_last_24_hours']} answers in the last 24 hours"],
        ["to do", f"{pace['answers_needed']} answers{rest}"],
    ]
    print_table(["", f"{figures['dataset']}, from {figures['artifact']}"], rows)
    if found:
        print_table(AGREEMENT, agreement_rows(figures))
    by_reviewer = found.get("by_reviewer", {})
    table = [_reviewer_row(name, who, by_reviewer.get(name, {})) for name, who in figures["reviewers"].items()]
    if table:
        print_table(["reviewer", "submitted", "draft", "discarded", "with the values", "last answer"], table)


def _reviewer_row(name: str, who: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    counts = [str(who[status]) for status in ("submitted", "draft", "discarded")]
    return [name, *counts, _share(figures, "against_value"), who["last"].partition(".")[0]]


def _agreement_line(what: str, figures: dict[str, Any]) -> str:
    parts = [f"{what}: {figures['answers']} answers on {figures['items']} items"]
    for question in ("verdict", "safe", "reasoning", "helpfulness"):
        if question in figures:
            alpha, pairwise = figures[question]["alpha"], figures[question]["pairwise"]
            said = f"alpha {'undefined' if alpha is None else f'{alpha:.2f}'}"
            parts.append(f"{question} {said}" + ("" if pairwise is None else f", {pairwise:.0%} of pairs equal"))
    if "against_value" in figures:
        parts.append(f"with the values {_share(figures, 'against_value')}")
    return "; ".join(parts)


def _share(figures: dict[str, Any], name: str) -> str:
    found = figures.get(name)
    return f"{found['share']:.0%} of {found['of']}" if found else ""
