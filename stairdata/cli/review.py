"""`stairdata review`: people look at pairs in Argilla."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli import review_round
from stairdata.cli.console import emit, say
from stairdata.cli.options import JsonOption, check_url
from stairdata.cli.review_round import FolderOption, RemoteOption, UrlOption, WorkspaceOption

if TYPE_CHECKING:
    from stairdata_review.server.running_server import RunningServer

app = typer.Typer(help="People compare pairs in Argilla; their verdicts become an artifact.", no_args_is_help=True)


@app.command("serve")
def serve(
    context: typer.Context,
    folder: FolderOption = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: 6900 or a free one; 0 takes a free one.")
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="Return when the server is ready.")] = False,
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", envvar="STAIRDATA_REDIS_URL", help="Use this Redis instead of starting one."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Run an Argilla server on 127.0.0.1 with all it needs; Ctrl-C or `review stop` stops it."""
    from stairdata_review.server.background import start_server
    from stairdata_review.server.folder import default_folder
    from stairdata_review.server.running_server import find_server
    from stairdata_review.server.server_processes import run_server

    source = context.get_parameter_source("redis_url")
    if redis_url and source is not None and source.name == "COMMANDLINE":  # which every user of the machine can list
        check_url(redis_url, "--redis-url", "set the whole URL as the environment variable STAIRDATA_REDIS_URL")
    place = (folder or default_folder()).absolute()
    if background:
        already = find_server(place)
        running = start_server(place, port, redis_url, say)
        _show(running, found=already is not None and already.pid == running.pid, json_=json_)
        return
    ours = run_server(
        place, port, redis_url, say, on_ready=lambda running: _show(running, found=False, wait=True, json_=json_)
    )
    if not ours:
        _show(start_server(place, port, redis_url, say), found=True, json_=json_)


@app.command("stop")
def stop(folder: FolderOption = None) -> None:
    """Stop the server of a folder; its data stays."""
    from stairdata_review.server.background import stop_server
    from stairdata_review.server.folder import default_folder

    place = folder or default_folder()
    say("stopped" if stop_server(place) else f"no server runs in {place}")


@app.command("invite")
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name the reviewer signs in with.")],
    workspace: WorkspaceOption = "stairdata",
    new_password: Annotated[
        bool, typer.Option("--new-password", help="Make a new password for an existing reviewer.")
    ] = False,
    folder: FolderOption = None,
    url: UrlOption = None,
    remote: RemoteOption = False,
    json_: JsonOption = False,
) -> None:
    """Give a reviewer access, as an annotator, never an owner; the password is shown once."""
    review_round.check_extra()
    from stairdata_review.rounds import invitations
    from stairdata_review.rounds.client import Argilla, find_access

    with Argilla(find_access(folder, url, remote=remote)) as argilla:
        invitation = invitations.invite(argilla, name, workspace, new_password=new_password)
    if json_:
        emit(json.dumps({name: getattr(invitation, name) for name in ("url", "username", "password")}))
    else:
        emit(f"url: {invitation.url}\nusername: {invitation.username}")
    if invitation.password is None:
        say(f"{name} may see {workspace} and signs in as before; --new-password makes a new password")
    else:
        if not json_:
            emit(f"password: {invitation.password}")
        say("the password is shown only now and not stored: pass it on")


app.command("push")(review_round.push)
app.command("status")(review_round.status)
app.command("pull")(review_round.pull)
app.command("export")(review_round.export)
app.command("import")(review_round.import_)


def _show(running: RunningServer, *, found: bool, wait: bool = False, json_: bool = False) -> None:
    facts = {"url": running.url}
    if running.new_owner and not found:
        owner = running.credentials()
        facts |= {"username": owner.username, "password": owner.password, "api_key": owner.api_key}
    emit(json.dumps(facts) if json_ else "\n".join(f"{name}: {value}" for name, value in facts.items()))
    if len(facts) > 1:
        say(f"the owner's password and key are shown once; they are kept in {running.credentials_file}")
    elif found:
        say("it was already running")
    if wait:
        say("Ctrl-C stops it")
