"""What `build` takes for each kind alike: options, the progress report, and how the result is printed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import (
    InputOption,
    JsonOption,
    LimitOption,
    RecipeOption,
    RootOption,
    SetOption,
    VersionOption,
    check_url,
    read_recipe,
    root_folder,
)
from stairdata.cli.results import print_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from stairdata.cli.build.batching import BatchAction
    from stairdata.runs.executors.executor import Execution
    from stairdata.runs.forecast import Forecast
    from stairdata.runs.options import BuildOptions
    from stairdata.runs.progress import Progress
    from stairdata.stages import FullRecipe
    from stairdata_schemas.artifacts import Artifact

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Build the I-th of N parts alone, on any machine; `stairdata join` makes one artifact of them.",
        show_default=False,
    ),
]
MaxQuarantineOption = Annotated[
    float, typer.Option("--max-quarantine", min=0, max=1, help="Fail if a larger share of the rows is refused.")
]
COSTS = "Costs and limits"  # headings of the help
SERVERS = "Servers and clusters"


class ExecutorName(StrEnum):
    """Where units are worked on."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """The options of kinds that ask a model; the fields are the command line's parameters."""

    endpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoints",
            metavar="[ROLE=]URL,URL",
            help="Spread the work over several servers of the model, in place of its base_url; with a role, such as "
            "judge=URL,URL, of another model that is asked. Can be repeated.",
            rich_help_panel=SERVERS,
        ),
    ] = None
    executor: Annotated[
        ExecutorName,
        typer.Option(
            "--executor",
            help="Where the work is done: in this process, or by replicas on a Ray cluster.",
            rich_help_panel=SERVERS,
        ),
    ] = ExecutorName.LOCAL
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Ray cluster; default: one on this machine.",
            show_default=False,
            rich_help_panel=SERVERS,
        ),
    ] = None

    @property
    def are_given(self) -> bool:
        return self != ExecutionOptions()

    def execution(self, kind: str) -> Execution:
        """Return where the units of a build are worked on.

        Raises:
            UsageError: a role that the kind does not know, a URL with a password in it, what is given twice, or an
                address without Ray.
        """
        from stairdata.runs.executors.executor import Execution
        from stairdata.runs.executors.roles import urls_by_role

        urls = urls_by_role(kind, map(_role_and_urls, self.endpoints or ()))
        check_url(self.address or "", "--address", "let Ray take it from its own environment")
        return Execution(self.executor.value, self.address, urls.pop("", ()), urls)


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """The options of `build` that every kind takes; the fields are the command line's parameters."""

    recipe: RecipeOption = None
    set_: SetOption = None
    input_: InputOption = None
    root: RootOption = None
    version: VersionOption = None
    limit: LimitOption = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing an unfinished build.")] = (
        False
    )
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what the build would ask of the models, and build nothing.",
            rich_help_panel=COSTS,
        ),
    ] = False
    max_total_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-total-tokens", min=1, help="Stop before the build uses more tokens.", rich_help_panel=COSTS
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost", min=0, help="Stop before it costs more, at the recipe's prices.", rich_help_panel=COSTS
        ),
    ] = None
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="Stop this run after this time.", rich_help_panel=COSTS)
    ] = None
    max_quarantine: MaxQuarantineOption = 0.05
    json_: JsonOption = False

    def read_recipe(self) -> FullRecipe:
        """Read the recipe that these options name."""
        return read_recipe(self.recipe, self.set_)

    @contextmanager
    def build_options(self) -> Iterator[BuildOptions]:
        """Yield what the generator is told, with a progress report on stderr."""
        from stairdata.llm.budget import BudgetLimits
        from stairdata.runs.options import BuildOptions

        with show_progress() as progress:
            yield BuildOptions(
                root=root_folder(self.root),
                version=self.version,
                inputs=tuple(self.input_ or ()),
                limit=self.limit,
                fresh=self.fresh,
                max_quarantine=self.max_quarantine,
                progress=progress,
                limits=BudgetLimits(self.max_total_tokens, self.max_cost, self.max_seconds),
                tell=lambda words: say(words) if words else None,
            )

    def run(
        self,
        forecast: Callable[[BuildOptions], Forecast],
        generate: Callable[[BuildOptions], Artifact | None],
        shard: str | None = None,
        batch: BatchAction | None = None,
        batch_files: Path | None = None,
    ) -> None:
        """Build, or print the forecast where that is asked for.

        Args:
            forecast: says what would be asked of the models.
            generate: builds.
            shard: I/N, which part of the input is worked on; default: all.
            batch: ask in batches; default: live.
            batch_files: folder in which these are files.
        """
        from stairdata.runs.options import BatchOptions
        from stairdata.runs.shards.shard import Shard
        from stairdata_schemas.errors import UsageError

        part = Shard.parse(shard) if shard is not None else None
        if part is not None and self.dry_run:
            raise UsageError("--dry-run forecasts the whole build, and --shard builds a part of it; leave one out")
        with self.build_options() as whole:
            action = batch.value if batch is not None else "submit"
            is_batched = batch is not None or batch_files is not None
            asking = BatchOptions(action, batch_files) if is_batched else None
            options = replace(whole, shard=part, batch=asking)
            if self.dry_run:
                emit(forecast(options).shown(json_=self.json_))
                return
            artifact = generate(options)
            if artifact is not None:
                _check_for_push(artifact, options.progress)
        print_artifact(artifact, json_=self.json_)


def takes_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its parameters that are a group of options, beside its own."""
    given = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in given if is_dataclass(each.annotation)}
    options = {name: _options_of(group) for name, group in groups.items()}

    def with_shared(**values: Any) -> None:
        made = {name: groups[name](**{each.name: values.pop(each.name) for each in options[name]}) for name in groups}
        command(**made, **values)

    own = (each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in given if each.name not in groups)
    parameters = [*(option for each in options.values() for option in each), *own]
    with_shared.__doc__ = command.__doc__
    with_shared.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_shared.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_shared


def _options_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def _role_and_urls(value: str) -> tuple[str, tuple[str, ...]]:
    """Split a value of `--endpoints`; a URL has no "=" before the "://"."""
    role, is_given, urls = value.partition("=")
    has_role = bool(is_given) and role.strip().replace("-", "_").isidentifier()
    return (role.strip().replace("-", "_"), comma_separated(urls)) if has_role else ("", comma_separated(value))


def comma_separated(text: str | None) -> tuple[str, ...]:
    """Split a list that is written with commas."""
    return tuple(filter(None, map(str.strip, (text or "").split(","))))


def _check_for_push(artifact: Artifact, progress: Progress) -> None:
    """Check a large artifact while nobody waits for it, so that its push need not read the rows again."""
    from stairdata.hub.checks import check, is_large, is_noted

    if is_large(artifact):
        from stairdata_schemas.secrets.own import own_secrets

        own = own_secrets()
        if not is_noted(artifact, own):  # a build that was finished before costs no hashing
            progress(f"checking {artifact.reference}", 0, 0)
            check(artifact, own)  # what it finds is told when somebody pushes
