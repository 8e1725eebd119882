"""What `import stairdata` offers: the stages and artifacts, without the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata.search.choice import best_of, best_of_curve
from stairdata.search.custom_policy import search_tree
from stairdata_schemas.artifacts import Artifact

if TYPE_CHECKING:
    from stairdata.hub.lineage import Ancestor
    from stairdata.hub.push import PushResult
    from stairdata.runs.executors.executor import Execution
    from stairdata.runs.progress import Progress
    from stairdata.search.mcts import Tree
    from stairdata.stages import FullRecipe
    from stairdata_schemas.artifacts import Problem

__all__ = [
    "Artifact",
    "best_of",
    "best_of_curve",
    "build",
    "join",
    "lineage",
    "load_recipe",
    "open_artifact",
    "pull",
    "push",
    "save_trees",
    "search_tree",
    "validate",
]

ROOT = Path("artifacts")
CUT_KINDS = ("structured_cot", "trees", "responses", "evaluations")
"""Kinds that can be built in shards."""


def load_recipe(source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> FullRecipe:
    """Load a recipe, every key of which has a default (docs/recipe.md).

    Args:
        source: a YAML file, the name of a recipe that comes with the package, or the sections as a mapping.
        overrides: `key.key=value` with values in YAML, as the command line's `--set`; for files alone.

    Raises:
        RecipeError: an unknown key (names the nearest known one) or a wrong value.
        UsageError: overrides of a mapping.
    """
    from stairdata.stages import parse_full_recipe, read_full_recipe
    from stairdata_schemas.errors import UsageError

    if source is None or isinstance(source, str | Path):
        return read_full_recipe(Path(source) if source is not None else None, overrides)
    if overrides:
        raise UsageError("overrides go with a recipe file; change the mapping instead")
    return parse_full_recipe(source)


def build(
    kind: str,
    recipe: FullRecipe | Mapping[str, Any],
    *,
    root: str | Path = ROOT,
    inputs: Sequence[str | Artifact] = (),
    version: str | None = None,
    limit: int | None = None,
    fresh: bool = False,
    max_quarantine: float = 0.05,
    shard: str | None = None,
    rejudge: str | Artifact | None = None,
    endpoints: Sequence[str] | Mapping[str, Sequence[str]] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Build an artifact, as `stairdata build` does: it resumes, and returns a finished one of the same recipe.

    Args:
        kind: prompts, structured_cot, trees, preference_pairs, prm_pairs, responses or evaluations.
        recipe: from `load_recipe`, or its sections as a mapping.
        root: folder of the artifacts.
        inputs: artifacts or references; default: the newest local one of the kind that is needed.
        version: default: the next one.
        limit: input rows at most.
        fresh: start over instead of continuing an unfinished build.
        max_quarantine: largest share of refused rows.
        shard: I/N, the I-th of N parts of the input alone; `join` makes one artifact of them.
        rejudge: trees, or their reference, whose answers are rated again by the recipe's judge; nothing is sampled.
        endpoints: URLs of servers in place of the recipe's `base_url`: of the model that the build is about, or by the
            roles of several, {"actor": [...], "judge": [...]} (docs/cluster.md).
        progress: called with what is being done, how much is done, how much there is (0: unknown), and details.

    Raises:
        UsageError: `shard`, `rejudge` or `endpoints` of a kind that knows no such thing.
        StairDataError: one of its kinds, with what went wrong and what to do next; finished work is kept.
    """
    from stairdata.runs.options import BuildOptions
    from stairdata.runs.progress import quiet
    from stairdata.runs.shards.shard import Shard
    from stairdata.stages import BUILT_KINDS, FullRecipe, build_kind
    from stairdata_schemas.errors import UsageError, quote

    stage = kind.replace("-", "_")
    if rejudge is not None and stage in BUILT_KINDS and stage != "trees":
        raise UsageError(f"rejudge rates trees again, and {quote(kind)} is to be built; leave it out")
    if shard is not None and stage in BUILT_KINDS and stage not in CUT_KINDS:
        raise UsageError(f"{quote(kind)} asks no models, or looks at its input as a whole; leave shard out")
    options = BuildOptions(
        root=Path(root),
        version=version,
        inputs=tuple(map(_reference, inputs)),
        limit=limit,
        fresh=fresh,
        max_quarantine=max_quarantine,
        progress=progress or quiet,
        shard=Shard.parse(shard) if shard is not None else None,
    )
    own: dict[str, Any] = {"rejudge": _reference(rejudge)} if rejudge is not None else {}
    if endpoints and stage in BUILT_KINDS:
        own["execution"] = _execution(kind, endpoints)
    artifact = build_kind(kind, recipe if isinstance(recipe, FullRecipe) else load_recipe(recipe), options, **own)
    assert artifact is not None, "only a batch leaves a build unfinished"
    return artifact


def _execution(kind: str, endpoints: Sequence[str] | Mapping[str, Sequence[str]]) -> Execution:
    """Return where a build's models are asked."""
    from stairdata.runs.executors.executor import Execution
    from stairdata.runs.executors.roles import MAIN_ROLES, urls_by_role
    from stairdata_schemas.errors import UsageError, quote

    stage = kind.replace("-", "_")
    if stage not in MAIN_ROLES:
        raise UsageError(f"{quote(kind)} asks no models; leave endpoints out")
    urls = urls_by_role(stage, endpoints.items() if isinstance(endpoints, Mapping) else [("", endpoints)])
    return Execution(endpoints=urls.pop("", ()), role_endpoints=urls)


def _reference(artifact: str | Artifact) -> str:
    return str(artifact.folder.resolve()) if isinstance(artifact, Artifact) else artifact


def join(
    shards: Sequence[str | Artifact],
    root: str | Path = ROOT,
    *,
    version: str | None = None,
    max_quarantine: float = 0.05,
) -> Artifact:
    """Join all shards of a build, in any order, into the artifact that the build in one piece makes.

    Args:
        shards: artifacts or references.
        root: folder of the artifacts.
        version: default: the next one.
        max_quarantine: largest share of refused rows.

    Raises:
        UsageError: what is given is no shard, of different builds, there twice, or not all.
        ArtifactError: a shard that is damaged.
        QuarantineError: more rows were refused than `max_quarantine`.
    """
    from stairdata.runs.shards.join import join_shards

    artifacts = [each if isinstance(each, Artifact) else open_artifact(each, root) for each in shards]
    return join_shards(artifacts, Path(root), version, max_quarantine)


def save_trees(
    trees: Mapping[str, Tree],
    prompts: Artifact,
    *,
    actor: str,
    seed: int = 42,
    root: str | Path = ROOT,
    version: str | None = None,
) -> Artifact:
    """Write trees of `search_tree` as an artifact, from which pairs are built like from any other trees.

    Args:
        trees: by the `prompt_id` of the prompt that each was grown from; one a prompt.
        prompts: the artifact of those prompts, which says their tasks; the parent of the new one.
        actor: name of the model that grew them.
        seed: what `search_tree` was given.
        root: folder of the artifacts.
        version: default: the next one; the same trees again are the finished artifact.

    Raises:
        UsageError: no trees, an input that isn't prompts, or a tree of a prompt that is not among them.
    """
    from stairdata.generators.trees.custom_trees import save_custom_trees
    from stairdata.runs.options import BuildOptions

    return save_custom_trees(trees, prompts, actor, seed, BuildOptions(root=Path(root), version=version))


def open_artifact(reference: str | Path, root: str | Path = ROOT) -> Artifact:
    """Open an artifact: its rows are `scan()` (polars) and `dataset()` (datasets), its record is `manifest`.

    Args:
        reference: a folder, KIND or KIND@X.Y.Z under the root, or org/name@TAG on the Hub.
        root: folder of the artifacts.

    Raises:
        ArtifactError: there is no such artifact, or it is damaged.
        HubError: it can't be fetched from the Hub.
    """
    from stairdata.hub.pull import open_reference

    return open_reference(str(reference.resolve()) if isinstance(reference, Path) else reference, Path(root))


def validate(artifact: Artifact) -> list[Problem]:
    """Check files, hashes, columns and every rule of an artifact's kind; an empty list means that it is valid."""
    from stairdata_schemas.artifacts import validate_artifact

    return validate_artifact(artifact)


def lineage(artifact: Artifact, root: str | Path = ROOT) -> Ancestor:
    """Return an artifact with its parents, their parents and so on, found under the root or on the Hub."""
    from stairdata.hub.lineage import lineage as ancestry

    return ancestry(artifact, Path(root))


def push(artifact: Artifact, repo: str, **options: Any) -> PushResult:
    """Publish an artifact on the Hub in one commit, with a tag of its version; private and gated first.

    Args:
        artifact: what to publish.
        repo: org/name.
        options: as fields of `stairdata.hub.content.PushOptions`: config, default, public, gated, license,
            allow_secrets, max_quarantine, views.

    Raises:
        PublishError: it may not be published: a secret, rows that break a rule, too much in quarantine.
        HubError: the Hub refuses or can't be reached.
    """
    from stairdata.hub.addresses import parse_repo
    from stairdata.hub.content import PushOptions
    from stairdata.hub.push import push as publish

    return publish(artifact, PushOptions(parse_repo(repo), **options))


def pull(reference: str, root: str | Path = ROOT, *, config: str | None = None, migrate: bool = False) -> Artifact:
    """Fetch a release from the Hub and check every hash and row of it.

    Args:
        reference: org/name, org/name@TAG, org/name@BRANCH or org/name@COMMIT.
        root: folder of the artifacts.
        config: where a repository holds several kinds.
        migrate: bring an older schema version to the current one.

    Raises:
        UsageError: `reference` names no dataset on the Hub.
        HubError: it can't be fetched, or isn't what its manifest says.
    """
    from stairdata.hub.addresses import parse_address
    from stairdata.hub.pull import pull as fetch
    from stairdata_schemas.errors import UsageError, quote

    address = parse_address(reference)
    if address is None:
        raise UsageError(f"{quote(reference)} is no dataset on the Hub; write org/name or org/name@v1.0.0")
    return fetch(address, Path(root), config, to_current=migrate)
