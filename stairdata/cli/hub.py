"""`stairdata push`, `pull`, and what `show --lineage` and `list --repo` print."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stairdata.cli.console import emit, print_table, say, show_progress
from stairdata.cli.options import JsonOption, RootOption, root_folder
from stairdata.cli.results import print_artifact

if TYPE_CHECKING:
    from rich.tree import Tree

    from stairdata.hub.access import Gate
    from stairdata.hub.lineage import Ancestor
    from stairdata.hub.models import ModelPushOptions, ModelPushPlan
    from stairdata.hub.push import PushPlan, PushResult
    from stairdata.hub.releases import Release
    from stairdata_schemas.artifacts import Artifact

ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="NAME", help="Config, if the repository holds several kinds.")
]


def push(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="KIND, KIND@X.Y.Z, a folder (also of a model), or org/name@TAG.")
    ],
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="Repository on the Hub.")],
    root: RootOption = None,
    config: ConfigOption = None,
    default: Annotated[bool, typer.Option("--default", help="Make this config the default one.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; the gate stays.")] = False,
    gated: Annotated[
        str | None,
        typer.Option(
            "--gated",
            metavar="manual|auto|no",
            help="How access is approved; default: manual, or no if every row is helpfulness.",
        ),
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence, if that of the parents is unknown.")
    ] = None,
    allow_secret: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-secret",
            metavar="ROW",
            help="Row, field or file that only looks like a secret; can be repeated.",
        ),
    ] = None,
    max_quarantine: Annotated[
        float, typer.Option("--max-quarantine", min=0, max=1, help="Fail if a larger share was refused.")
    ] = 0.05,
    no_views: Annotated[
        bool, typer.Option("--no-views", help="Publish the rows alone, without conversations or paths made of them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change; change nothing.")] = False,
    json_: JsonOption = False,
) -> None:
    """Publish an artifact or a trained model on the Hub: private by default, as one commit with a tag."""
    _let_the_client_show_progress()
    from stairdata.hub.addresses import parse_config, parse_repo
    from stairdata.hub.content import PushOptions, prepare
    from stairdata.hub.models import ModelPushOptions, is_model_folder
    from stairdata.hub.pull import open_reference
    from stairdata.hub.push import make_plan, publish

    name = parse_repo(repo)
    if is_model_folder(reference):
        _refuse_options_of_artifacts(config is not None or default or no_views)
        model_options = ModelPushOptions(name, public, _gate(gated), license_, tuple(allow_secret or ()))
        _push_model(Path(reference), model_options, dry_run=dry_run, json_=json_)
        return
    with show_progress() as progress:
        options = PushOptions(
            repo=name,
            config=parse_config(config) if config is not None else None,
            default=default,
            public=public,
            gated=_gate(gated),
            license=license_,
            allow_secrets=tuple(allow_secret or ()),
            max_quarantine=max_quarantine,
            views=not no_views,
            progress=progress,
        )
        plan = make_plan(prepare(open_reference(reference, root_folder(root)), options))
    if not any(path.endswith(".png") for path in plan.release.small):
        from stairdata.hub.plots import HINT

        say(f"the card will have no plots: they need matplotlib ({HINT})")
    if dry_run:
        _print_plan(plan, name, plan.release.tag, json_=json_)
        return
    done = publish(plan, say)
    if done.was_there and default and not json_:
        say("--default takes effect with a new version; this one already exists")
    _print_result(done, json_=json_)


def _push_model(folder: Path, options: ModelPushOptions, *, dry_run: bool, json_: bool) -> None:
    from stairdata.hub.models import plan_model, prepare_model, publish_model

    with show_progress() as progress:
        plan = plan_model(prepare_model(folder, replace(options, progress=progress)))
    if dry_run:
        _print_plan(plan, options.repo, plan.model.tag, json_=json_)
    else:
        _print_result(publish_model(plan, say), json_=json_)


def _refuse_options_of_artifacts(are_given: bool) -> None:
    from stairdata_schemas.errors import UsageError

    if are_given:
        raise UsageError("--config, --default and --no-views are for artifacts; a repository holds one model")


def _print_result(done: PushResult, *, json_: bool) -> None:
    if json_:
        emit(json.dumps(done._asdict()))
        return
    say(f"{done.tag} already exists, with the same content" if done.was_there else f"published {done.tag}")
    emit(f"{done.repo}@{done.tag}")


def _gate(text: str | None) -> Gate | None:
    from stairdata.hub.access import GATES
    from stairdata_schemas.errors import UsageError, quote

    if text is None:
        return None
    if text not in GATES:
        raise UsageError(f"--gated {quote(text)}: write one of {', '.join(GATES)}")
    return text  # type: ignore[return-value]


def _let_the_client_show_progress() -> None:
    """Leave the bars of bytes to huggingface_hub on a terminal; it reads this when it is imported."""
    if sys.stderr.isatty():
        os.environ.pop("TQDM_DISABLE", None)


def _print_plan(plan: PushPlan | ModelPushPlan, repo: str, tag: str, *, json_: bool) -> None:
    found, access = plan.repository, plan.access
    facts = {
        "repo": repo,
        "exists": found is not None,
        "tag": tag,
        "is_done": plan.is_done,
        "private": access.private,
        "gated": access.gate,
        "license": plan.license,
        "changes": [change._asdict() for change in plan.changes],
    }
    if json_:
        emit(json.dumps(facts))
        return
    now = f"{'private' if found.private else 'public'}, gated {found.gated or 'no'}" if found else "not there"
    will = f"{'private' if access.private else 'public'}, gated {access.gate}"
    rows = [["repository", f"{now} -> {will}"], ["licence", plan.license or "unknown"]]
    rows.append(["tag", f"{tag} ({'exists, with the same content' if plan.is_done else 'new'})"])
    print_table(["", repo], rows)
    if plan.is_done:
        say("dry run: the release already exists, nothing would change")
        return
    files = [[change.path, f"{change.bytes:,}" if change.bytes else "", change.change] for change in plan.changes]
    print_table(["file", "bytes", "change"], files)
    say("dry run: nothing was changed")


def pull(
    reference: Annotated[
        str, typer.Argument(metavar="ORG/NAME[@REV]", help="Tag, commit or branch; default: highest version.")
    ],
    root: RootOption = None,
    config: ConfigOption = None,
    migrate: Annotated[bool, typer.Option("--migrate", help="Convert an older schema version.")] = False,
    json_: JsonOption = False,
) -> None:
    """Fetch an artifact from the Hub and check every hash and row of it."""
    _let_the_client_show_progress()
    from stairdata.hub.addresses import parse_address
    from stairdata.hub.pull import pull as fetch
    from stairdata_schemas.errors import UsageError, quote

    address = parse_address(reference)
    if address is None:
        raise UsageError(
            f"{quote(reference)} is not a dataset on the Hub; write org/name, org/name@v1.0.0 or org/name@SHA"
        )

    def progress(what: str, done: int, total: int) -> None:
        del done, total
        say(what)

    artifact = fetch(address, root_folder(root), config, to_current=migrate, progress=progress)
    print_artifact(artifact, json_=json_)


def print_lineage(artifact: Artifact, root: Path, *, json_: bool) -> None:
    """Draw the whole ancestry of an artifact."""
    from rich.console import Console
    from rich.tree import Tree

    from stairdata.hub.lineage import lineage

    top = lineage(artifact, root)
    if json_:
        emit(json.dumps(top.as_json()))
        return
    tree = Tree(_ancestor_line(top))
    _grow(tree, top)
    Console(highlight=False, markup=False, emoji=False).print(tree)  # a soft wrap would cut long lines in a tree


def _grow(tree: Tree, ancestor: Ancestor) -> None:
    for parent in ancestor.parents:
        _grow(tree.add(_ancestor_line(parent)), parent)


def _ancestor_line(ancestor: Ancestor) -> Any:
    from rich.text import Text

    from stairdata_schemas.errors import visible

    facts = [f"{ancestor.rows} rows" if ancestor.found else "not found", ancestor.content_hash[:12]]
    facts += [ancestor.generator or "", *ancestor.models, f"licence {ancestor.license}" if ancestor.license else ""]
    return Text(visible(f"{ancestor.reference}  {', '.join(filter(None, facts))}  ({ancestor.where})"))


def print_releases(repo: str, *, json_: bool) -> None:
    """List the releases of a repository, and what changed between them."""
    from stairdata.hub.addresses import parse_repo
    from stairdata.hub.client import repository
    from stairdata.hub.releases import releases
    from stairdata_schemas.errors import HubError

    found = repository(parse_repo(repo))
    if found is None:
        raise HubError(f"no dataset {repo} on the Hub for this token; check the name, and `hf auth whoami`")
    listed = releases(found)
    if json_:
        facts = {"repo": found.name, "private": found.private, "gated": found.gated, "head": found.head}
        emit(json.dumps(facts | {"releases": [_release_facts(release) for release in listed]}))
        return
    if not listed:
        say(f"{found.name} has no release")
        return
    rows = [[_shown(value) for value in _row(release).values()] for release in listed]
    print_table(["tag", "config", "kind", "created", "rows", "schema", "licence", "commit", "changes"], rows)


def _release_facts(release: Release) -> dict[str, Any]:
    manifest = release.manifest
    return {
        "tag": release.tag,
        "config": release.place.config,
        "kind": manifest.kind if manifest else None,
        "created": manifest.created_at.isoformat() if manifest else None,
        "rows": manifest.rows if manifest else None,
        "schema_version": manifest.schema_version if manifest else None,
        "license": manifest.license if manifest else None,
        "commit": release.commit,
        "changes": release.changes if manifest else ["no manifest that this release reads"],
    }


def _row(release: Release) -> dict[str, Any]:
    """Return the facts of a release as short as a table needs them."""
    facts = _release_facts(release)
    created = f"{release.manifest.created_at:%Y-%m-%d %H:%M}" if release.manifest else None
    return facts | {"created": created, "commit": release.commit[:12]}


def _shown(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
