"""The supervisor with small Python commands, and what a process that starts such commands sees of them.

A process tree counts as gone when the pipe that all of it inherited reports its end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stairdata_schemas import processes
from stairdata_schemas.processes import (
    SupervisedProcess,
    descendants,
    free_port,
    last_line,
    log_tail,
    port_obstacle,
    started_at,
)

PATIENCE = 60.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc, which Linux alone has")

WAITING = "import signal\nprint('ready', flush=True)\nsignal.pause()\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITING
WITH_GRANDCHILD = (
    "import subprocess, sys\n"
    "command = [sys.executable, '-c', 'import signal; print(\"ready\", flush=True); signal.pause()']\n"
    "subprocess.Popen(command, start_new_session={session})\n"
    "{then}\n"
)


def supervised(script: str, grace: float = PATIENCE) -> list[str]:
    return [sys.executable, processes.__file__, "--grace", str(grace), "--", sys.executable, "-c", script]


@pytest.fixture
def spawn() -> Iterator[Callable[[list[str]], subprocess.Popen[bytes]]]:
    """Start processes with pipes on both ends; whatever a test leaves is killed, supervisors by their pipe."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE)


Spawn = Callable[[list[str]], subprocess.Popen[bytes]]


def is_ready(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == b"ready\n"


def status_when_all_gone(process: subprocess.Popen[bytes]) -> int:
    """Close the supervisor's input, wait until nobody holds its output any more."""
    process.communicate(timeout=PATIENCE)
    return process.returncode


# --- supervisor


def test_the_child_is_ended_when_the_manager_closes_the_pipe(spawn: Spawn) -> None:
    process = spawn(supervised(WAITING))
    assert is_ready(process)
    assert status_when_all_gone(process) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_child_is_ended_when_the_supervisor_gets_a_signal(spawn: Spawn, number: signal.Signals) -> None:
    process = spawn(supervised(WAITING))
    assert is_ready(process)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize("session", [False, pytest.param(True, marks=linux_only)])
@pytest.mark.parametrize("then", ["import signal; signal.pause()", "sys.exit(7)"])
def test_a_grandchild_is_ended_even_if_orphaned_or_in_another_session(spawn: Spawn, session: bool, then: str) -> None:
    process = spawn(supervised(WITH_GRANDCHILD.format(session=session, then=then)))
    assert status_when_all_gone(process) in {7, 128 + signal.SIGTERM}


@linux_only
def test_what_is_started_while_the_others_are_told_is_told_too(spawn: Spawn) -> None:
    """It stands in no list of those who are to be ended, and must not live on for the grace period."""
    script = (
        "import os, signal, subprocess, sys\n"
        "def end(*_):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], start_new_session=True)\n"
        "    os._exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\n" + WAITING
    )
    process = spawn(supervised(script, grace=10 * PATIENCE))
    assert is_ready(process)
    assert status_when_all_gone(process) == 7


def test_what_an_ended_child_leaves_behind_is_ended_without_being_told(spawn: Spawn) -> None:
    process = spawn(supervised(WITH_GRANDCHILD.format(session=False, then="sys.exit(7)")))
    assert process.stdout is not None
    process.stdout.read()
    assert process.wait(PATIENCE) == 7


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(spawn: Spawn) -> None:
    process = spawn(supervised(STUBBORN, grace=0.1))
    assert is_ready(process)
    assert status_when_all_gone(process) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("script", "status"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)],
)
def test_the_exit_status_is_the_childs(spawn: Spawn, script: str, status: int) -> None:
    assert spawn(supervised(script)).wait(PATIENCE) == status


def test_a_command_that_does_not_exist_is_status_127(spawn: Spawn) -> None:
    assert spawn([sys.executable, processes.__file__, "--", "/nowhere/vllm"]).wait(PATIENCE) == 127


def test_the_child_gets_no_input_and_a_session_of_its_own(spawn: Spawn) -> None:
    process = spawn(supervised("import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid())"))
    assert process.stdout is not None
    assert process.stdout.read() == b"'' True\n"


def test_it_runs_as_a_module(spawn: Spawn) -> None:
    command = [sys.executable, "-m", "stairdata_schemas.processes", "--", sys.executable, "-c", "raise SystemExit(5)"]
    assert spawn(command).wait(PATIENCE) == 5


def test_the_child_is_gone_when_the_manager_is_killed(spawn: Spawn) -> None:
    script = "import signal, subprocess, sys\nsubprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\nsignal.pause()\n"
    manager = spawn([sys.executable, "-c", script, *supervised(WAITING)])
    assert is_ready(manager)
    manager.kill()
    assert status_when_all_gone(manager) == -signal.SIGKILL


def test_a_sibling_that_holds_the_pipe_does_not_keep_the_child(spawn: Spawn) -> None:
    # as a worker forked by the manager would
    script = (
        "import os, signal, subprocess, sys\n"
        "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "if os.fork() == 0:\n"
        "    os.close(1)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "signal.pause()\n"
    )
    manager = spawn([sys.executable, "-c", script, *supervised(WAITING)])
    assert is_ready(manager)
    manager.kill()
    assert manager.stdout is not None
    assert manager.stdout.read() == b""


@linux_only
def test_the_child_is_told_when_the_supervisor_itself_is_killed(spawn: Spawn) -> None:
    process = spawn(supervised(WAITING))
    assert is_ready(process)
    process.kill()
    assert status_when_all_gone(process) == -signal.SIGKILL


# --- the process that starts it


Start = Callable[..., SupervisedProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Python scripts that write into `log`; whatever a test leaves is stopped."""
    started: list[SupervisedProcess] = []

    def begin(script: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> SupervisedProcess:
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-c", script]
            started.append(SupervisedProcess(command, log, environment or {}, folder, grace=PATIENCE))
        return started[-1]

    yield begin
    for process in started:
        process.stop()


def test_the_status_is_known_after_the_end(start: Start) -> None:
    process = start("raise SystemExit(3)")
    assert process.wait() == process.status == 3


def test_a_running_process_has_no_status_until_it_is_stopped(start: Start) -> None:
    process = start(WAITING)
    assert process.status is None
    assert process.wait(0.01) is None
    process.stop()
    assert process.status is not None
    process.stop()


def test_what_a_process_started_is_stopped_with_it() -> None:
    reading, writing = os.pipe()
    script = WITH_GRANDCHILD.format(session=False, then="import signal; signal.pause()")
    with os.fdopen(reading, "rb") as output, os.fdopen(writing, "wb") as log:
        process = SupervisedProcess([sys.executable, "-c", script], log, {}, grace=PATIENCE)
        log.close()
        assert output.readline() == b"ready\n"
        process.stop()
        assert output.read() == b""
    assert process.status == 128 + signal.SIGTERM


def test_a_supervisor_that_is_stuck_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SLACK", 0.1 - PATIENCE)
    process = start(WAITING)
    process._supervisor.send_signal(signal.SIGSTOP)
    process.stop()
    assert process.status == -signal.SIGKILL


def test_a_process_gets_the_environment_and_the_folder_it_is_given(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ours")
    script = "import os; print(os.getcwd(), os.environ.get('OPENAI_API_KEY'), os.environ['GIVEN'], sep='|')"
    folder = tmp_path / "a folder"
    folder.mkdir()
    assert start(script, {"GIVEN": "yes"}, folder).wait() == 0
    assert log_tail(tmp_path / "log") == f"{folder}|None|yes\n"


def test_no_file_of_the_working_directory_stands_in_for_a_module_of_the_supervisor(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit(99)")
    assert start("raise SystemExit(3)", {"PYTHONPATH": str(tmp_path)}, tmp_path).wait() == 3


# --- numbers, ports and logs


def test_a_process_is_known_by_when_it_began(start: Start) -> None:
    process = start(WAITING)
    pid = process._supervisor.pid
    began = started_at(pid)
    assert began is not None
    assert started_at(pid) == began
    process.stop()
    assert started_at(pid) is None


@linux_only
def test_all_that_descends_from_a_process_is_found(spawn: Spawn) -> None:
    process = spawn(supervised(WITH_GRANDCHILD.format(session=True, then="import signal; signal.pause()")))
    assert is_ready(process)
    assert len(descendants(process.pid)) == 2
    assert set(descendants(process.pid)) < set(descendants(os.getpid()))
    assert status_when_all_gone(process) == 128 + signal.SIGTERM


def test_a_taken_port_is_an_obstacle_and_a_free_one_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert "in use" in str(port_obstacle(taken))
        assert free_port() != taken
    assert port_obstacle(taken) is None


def test_a_promised_port_is_not_given_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bound later: until then the system may give it out again."""
    ports = iter([4711, 4711, 4712])

    class Probe:
        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def bind(self, _: object) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", next(ports)

    monkeypatch.setattr(socket, "socket", Probe)
    assert free_port(besides=4711) == 4712


def test_the_end_of_a_log_is_read_whatever_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    assert (log_tail(log), last_line(log)) == ("", "")
    log.write_bytes(b"one\n two \xff \n\n")
    assert last_line(log) == "two \ufffd"
    monkeypatch.setattr(processes, "LOG_TAIL", 4)
    log.write_bytes(b"one\ntwo\n")
    assert log_tail(log) == "two\n"
