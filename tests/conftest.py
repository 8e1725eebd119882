"""Fixtures that several rooms share: a stub language model and a Hub behind HTTP, a small tokenizer, a browser."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# The same examples on each machine and in each run, however slow it is. To look for others, as whoever changes a rule
# should: pytest --hypothesis-profile=search
_PATIENT: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("repeatable", derandomize=True, **_PATIENT)
settings.register_profile("search", max_examples=1000, **_PATIENT)
settings.load_profile("repeatable")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: see stairdata/cli/main.py

# huggingface_hub and datasets read these once, when they are imported. The port is ours and closed until a test
# starts the Hub: whatever asks for it before is refused at once.
_HUB_SOCKET = socket.socket()
_HUB_SOCKET.bind(("127.0.0.1", 0))
HUB_URL = f"http://127.0.0.1:{_HUB_SOCKET.getsockname()[1]}"
HUB_TOKEN = "hf_test_write"
_HUB_HOME = tempfile.mkdtemp(prefix="stairdata-tests-hf-")
atexit.register(shutil.rmtree, _HUB_HOME, ignore_errors=True)
# The client asks for this list once a day, and before whichever request comes first: requests are counted here.
(Path(_HUB_HOME) / ".agent_harnesses.json").write_text('{"standardEnvVars": [], "harnesses": {}}')
HUB_ENVIRONMENT = {
    "HF_ENDPOINT": HUB_URL,
    "HF_HOME": _HUB_HOME,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_XET_TELEMETRY_ENABLED": "0",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
os.environ |= HUB_ENVIRONMENT
for _name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
    os.environ.pop(_name, None)

HERE = Path(__file__).parent
BROWSER_PATIENCE = 120_000  # milliseconds; only a page that never shows what it should takes that long
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes make no readable id, and packed ones hold the time: workers of pytest-xdist would collect other tests."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


def call(address: str, method: str, path: str, body: str | None) -> dict[str, Any]:
    """Send a request of the tests' own to one of their servers, and return its answer."""
    connection = http.client.HTTPConnection(address, timeout=300)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 200, answer
    return answer


class StubServer:
    """The stub of tests/servers/stub_llm.py: starts at first use, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.tokenizer: Path | None = None
        """Folder of the one that it reads token ids with, after each reset."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.is_running:
            return
        self.stop()
        command = [sys.executable, "-m", "tests.servers.stub_llm"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        """End the process that this object started."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def wait(self) -> None:
        """Wait until it has died by itself."""
        assert self._process is not None
        self._process.wait(timeout=30)

    def control(self, **options: Any) -> None:
        """Change its options."""
        self._call("POST", "/control", json.dumps(options))

    def reset(self) -> None:
        """Put options and counts back."""
        self.control(reset=True, tokenizer=self.tokenizer and str(self.tokenizer))

    def stats(self, hanging: int = 0, requests: int = 0) -> dict[str, Any]:
        """Return its counts, as soon as that many requests hang, and that many were sent."""
        return self._call("GET", f"/stats?hanging={hanging}&requests={requests}")

    def last(self) -> dict[str, Any]:
        """Return path, body and headers of the last request."""
        return self._call("GET", "/last")

    def _call(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        return call(f"127.0.0.1:{self.port}", method, path, body)


@pytest.fixture(scope="session")
def stub_process(tokenizer_folder: Path) -> Iterator[StubServer]:
    server = StubServer()
    server.tokenizer = tokenizer_folder
    yield server
    server.stop()


@pytest.fixture
def stub_llm(stub_process: StubServer) -> StubServer:
    """A stub server that runs, with the default options and no request counted."""
    stub_process.start()
    stub_process.reset()
    return stub_process


class HubServer:
    """The Hub of tests/servers/hub.py, in a process of its own, at HUB_URL."""

    def __init__(self, folder: Path) -> None:
        self.url = HUB_URL
        command = [sys.executable, "-m", "tests.servers.hub", str(folder), "--fd", str(_HUB_SOCKET.fileno())]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[_HUB_SOCKET.fileno()],
            cwd=HERE.parent,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def stop(self) -> None:
        """End the process that this object started."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def control(self, **options: Any) -> None:
        """Change its options."""
        self._call("POST", "/_control", json.dumps(options))

    @property
    def requests(self) -> list[str]:
        """The requests since the last reset or recount."""
        found: list[str] = self._call("GET", "/_stats")["requests"]
        return found

    @property
    def tokens(self) -> list[str]:
        """The tokens that were sent."""
        found: list[str] = self._call("GET", "/_stats")["tokens"]
        return found

    def repo(self, name: str) -> dict[str, Any]:
        """Return what a repository holds: tags, branches, files by path and sha256, visibility."""
        found: dict[str, Any] = self._call("GET", "/_stats")["repos"][name]
        return found

    def has(self, name: str) -> bool:
        """Tell whether a repository is there."""
        return name in self._call("GET", "/_stats")["repos"]

    def _call(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        return call(HUB_URL.removeprefix("http://"), method, path, body)


@pytest.fixture(scope="session")
def hub_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    server = HubServer(tmp_path_factory.mktemp("hub"))
    yield server
    server.stop()


@pytest.fixture
def hub(hub_process: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """An empty Hub, a token that may write to `org`, and waits that take no time."""
    hub_process.control(reset=True)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return hub_process


@pytest.fixture(params=["lfs", "xet"])
def lane(request: pytest.FixtureRequest, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which files go to the Hub and come from there."""
    _use_lane(request.param, hub, monkeypatch)
    return str(request.param)


@pytest.fixture
def lfs_lane(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain LFS alone."""
    _use_lane("lfs", hub, monkeypatch)


def _use_lane(name: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch client and server to plain LFS, or to Xet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", name == "lfs")
    hub.control(xet=name == "xet")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with the grammar's tags and ChatML, as a model's folder has it."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from stairdata_schemas.grammar import TAGS

    special = ["<|im_start|>", "<|im_end|>", *TAGS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["Title: Problem Analysis:\nthe answer is here\nFinal Answer:\nsorry"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(TAGS),
        chat_template=CHATML,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system; skips where there is none.

    Playwright keeps an event loop in this thread, so it has to end before tests of other modules start theirs.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium; get it with `apt-get install -y chromium` (Debian)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=BROWSER_PATIENCE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: Browser) -> Callable[..., Page]:
    """Open a page in a context of its own, by the options of the latter; whoever asks closes that."""

    def opened(**options: Any) -> Page:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(BROWSER_PATIENCE)
        return page

    return opened
