"""Entry point: `stairdata`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from stairdata.cli import (
    artifacts,
    check_judge,
    hub,
    interop,
    quickstart,
    review,
    run,
    serve,
    show,
    train,
)
from stairdata.cli.build import group, join
from stairdata.cli.console import keep_secrets_out_of_stderr, make_streams_whole, say
from stairdata.cli.reports import context, diff, judge_agreement, report

INTERRUPTED = 130
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_XET_TELEMETRY_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # one bar, ours
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow other processes down tenfold
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Xet's own defaults take 1.6 GB of memory for 2 GB of files: docs/publishing.md
    "HF_XET_DATA_MAX_CONCURRENT_FILE_INGESTION": "1",
    "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER_SIZE": "96mb",
    "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER_PERFILE_SIZE": "48mb",
    "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER_LIMIT": "192mb",
}
"""What libraries read; a value that the user set stays."""

app = typer.Typer(
    name="stairdata",
    help="STAIR's data as versioned datasets: build them, check them, train on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"stairdata {version('stairdata')}\n")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["STAIRDATA_DEBUG"] = "1"


app.add_typer(group.app, name="build")
app.command("join")(join.join)
app.command("context")(context.context)
app.command("validate")(artifacts.validate)
app.command("list")(artifacts.list_)
app.command("show")(show.show)
app.command("diff")(diff.diff)
app.command("report")(report.report)
app.command("check-judge")(check_judge.check_judge)
app.command("judge-agreement")(judge_agreement.judge_agreement)
app.command("schema")(artifacts.schema)
app.command("import")(interop.import_)
app.command("export")(interop.export)
app.command("push")(hub.push)
app.command("pull")(hub.pull)
app.command("train")(train.train)
app.command("serve")(serve.serve)
app.command("run")(run.run)
app.command("quickstart")(quickstart.quickstart)
app.add_typer(review.app, name="review")


def main() -> None:
    """Run the command line; a user's mistake prints one message and no traceback."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    make_streams_whole()
    keep_secrets_out_of_stderr()
    try:
        _run()
    except KeyboardInterrupt:  # Ctrl-C once more, while the first one was being dealt with
        _end_interrupted()


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever presses it often gets no traceback
    say("interrupted; finished work is kept: run the same command again to continue")
    sys.exit(INTERRUPTED)


def _run() -> None:
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _end_interrupted()
        raise
    except Exception as error:
        from stairdata_schemas.errors import StairDataError

        if not isinstance(error, StairDataError | OSError) or os.environ.get("STAIRDATA_DEBUG"):
            raise
        say(f"error: {error}" + _advice(error))
        sys.exit(getattr(error, "exit_status", 1))


def _advice(error: Exception) -> str:
    """Return what to do about a disk that is full or a folder that can't be written; our own errors say it already."""
    if not isinstance(error, OSError):
        return ""
    return "; finished work is kept: make room or name another folder, and run the same command again"
