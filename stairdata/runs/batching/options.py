"""What `--batch` may be told, and which builds have requests under way in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from stairdata.llm.batches.ledger import Ledger
from stairdata.recipe import Endpoint
from stairdata.runs.options import BatchOptions, BuildOptions
from stairdata_schemas.building import WORK, BuildPlan, find_unfinished
from stairdata_schemas.errors import ArtifactError, RecipeError, UsageError, quote

BATCHES = "batches"
"""Folder of a build's batches, in its folder of work."""
LIMITS = ("max_requests", "max_bytes", "max_enqueued_tokens", "completion_window")
"""The keys of a recipe that say how large batches may be, in the order of `BatchLimits`."""
BATCH_ACTIONS = ("submit", "status", "collect", "cancel")


def check_batch(options: BuildOptions, batch: BatchOptions | None = None) -> None:
    """Check that what `--batch` is told makes sense.

    Args:
        options: of the build.
        batch: in place of those of `options`.

    Raises:
        UsageError: it does not.
    """
    batch = batch or options.batch or BatchOptions()
    if batch.action not in BATCH_ACTIONS:
        raise UsageError(f"--batch {quote(batch.action)}: known are {', '.join(BATCH_ACTIONS)}")
    if options.limits.seconds is not None:
        raise UsageError("--max-seconds goes with asking live; a batch takes as long as it takes")
    if options.fresh and batch.action != "submit":
        raise UsageError(f"--fresh starts over: it leaves nothing for --batch {batch.action}")
    if options.shard is not None:
        raise UsageError("--shard cuts what is asked live, and --batch splits its requests itself; leave one out")


def check_places(endpoints: Iterable[Endpoint], options: BuildOptions) -> None:
    """Check that models can be asked in batches where they are.

    Raises:
        RecipeError: a model folder, and batches go to servers.
    """
    if options.batch is not None and options.batch.files is not None:
        return
    for endpoint in endpoints:
        if endpoint.base_url is None:
            raise RecipeError(
                f"--batch needs the base_url of {quote(endpoint.name)}, a server with a Batch API; a model folder is "
                "served here and asked live: leave --batch out, or write files for `vllm run-batch`: --batch-files "
                "FOLDER"
            )


def check_nothing_under_way(plan: BuildPlan, options: BuildOptions) -> None:
    """Check that starting over would forget nothing that is paid for.

    Raises:
        UsageError: the build has requests in batches.
    """
    named = options.root / plan.kind / options.version if options.version else None
    begun = named or find_unfinished(plan, options.root)
    requests = under_way(begun) if begun else 0
    if begun and requests:
        raise UsageError(
            f"--fresh would forget {requests} requests that {plan.kind}@{begun.name} has in progress in batches; run "
            "`--batch cancel` first, then `--batch collect`"
        )


def under_way(folder: Path) -> int:
    """Return how many requests the build in a folder has in batches."""
    batches = folder / WORK / BATCHES
    return len(Ledger(batches).pending()) if batches.is_dir() else 0


def under_way_elsewhere(own: Path, how: str = "") -> str:
    """Name builds in other folders that have requests under way: perhaps one of them is meant.

    Args:
        own: folder of this build.
        how: else they may differ, after a comma.
    """
    others = []
    for folder in sorted(own.parent.glob("*")):
        with contextlib.suppress(ArtifactError):  # a damaged ledger of another build is told where that is built
            if folder != own and (requests := under_way(folder)):
                others.append(f"{own.parent.name}@{folder.name} has {requests} requests in progress")
    return f" (but {', '.join(others)}: with another --limit, recipe, template or input{how})" if others else ""
