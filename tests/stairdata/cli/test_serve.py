"""`stairdata serve --method`: what it refuses at once, how it starts, and that nothing is left when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from stairdata.serving.server import find_key, take_port
from stairdata_schemas.errors import ServerError, UsageError
from tests.test_quickstart import processes_of

ROOT = Path(__file__).parents[3]
LIMIT = 600.0
ASKED: Any = [{"role": "user", "content": "How do I keep water clean?"}]


@contextlib.contextmanager
def serving(
    program: list[str], folder: Path, *arguments: str | Path, key: str = ""
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start the command, and wait for what it prints once it answers."""
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*program, "serve", *map(str, arguments), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OUR_KEY": key},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "stderr").read_text()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


ON_STUB = [sys.executable, "-m", "tests.stairdata.pipeline.on_stub"]


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_server_and_those_behind_it(
    sign: signal.Signals, status: int, tokenizer_folder: Path, tmp_path: Path
) -> None:
    from tests.stairdata.pipeline.conftest import tiny_model

    model, key = tiny_model(tmp_path / "model", tokenizer_folder), "a-key-of-sixteen-characters"
    options = ["--method", "sample", "--api-key-env", "OUR_KEY", "--name", "us", "--hide-reasoning"]
    with serving(ON_STUB, tmp_path, model, *options, key=key) as (process, facts):
        assert facts["api_key"] is None
        client = openai.OpenAI(base_url=facts["base_url"], api_key=key)
        answer = client.chat.completions.create(model="us", messages=ASKED)
        assert answer.choices[0].message.content
        assert answer.choices[0].message.model_extra == {}
        assert any("stub_vllm" in command for command in processes_of(tmp_path))
        process.send_signal(sign)
        assert process.wait(timeout=LIMIT) == status
    said = (tmp_path / "stderr").read_text()
    assert key not in said
    assert "Traceback" not in said
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["actor", "prm"])
def test_a_model_server_that_dies_ends_the_command(dies: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Both models are served; the reward model's server ends while nobody asks it anything, too."""
    for name, architecture in (("actor", "LlamaForCausalLM"), ("prm", "LlamaForSequenceClassification")):
        model_without_weights(tmp_path / name, architecture, tokenizer_folder)
    served = "responses.prm={path: prm, serve: true}"
    options: list[str | Path] = ["--method", "best_of_n", "-n", "3", "--set", served, "--set", "actor.retries=0"]
    with serving(ON_STUB, tmp_path, tmp_path / "actor", *options) as (process, facts):
        client = openai.OpenAI(base_url=facts["base_url"], api_key=facts["api_key"], max_retries=0)
        answers = [client.chat.completions.create(model="actor", messages=ASKED, seed=3) for _ in range(2)]
        assert answers[0].choices == answers[1].choices
        assert answers[0].choices[0].message.content
        running = [command for command in processes_of(tmp_path) if "stub_vllm" in command]
        assert len(running) == 2
        kill_server(dies)
        assert process.wait(timeout=LIMIT) == 1
    said = (tmp_path / "stderr").read_text()
    assert "is no longer running" in said
    assert f"{dies}'" in said.partition("is no longer running")[0], "which model it was"
    assert "Traceback" not in said
    assert processes_of(tmp_path) == []


def kill_server(model: str) -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().decode().split("\0")
            if command[1:3] == ["-m", "tests.servers.stub_vllm"] and Path(command[5]).name == model:
                os.kill(int(path.parent.name), signal.SIGKILL)


def model_without_weights(folder: Path, architecture: str, tokenizer: Path) -> None:
    """Write what is checked of a model before it is loaded, which the stub never does."""
    shutil.copytree(tokenizer, folder)
    config = {"architectures": [architecture], "id2label": {"0": "LABEL_0"}, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no weights")


@pytest.mark.slow
@pytest.mark.all_cores
def test_the_official_client_against_the_real_thing(tmp_path: Path) -> None:
    """SmolLM2 on vLLM, a reward model in the process, and the whole way between a client and both."""
    from stairdata.llm.vllm_server import vllm_missing

    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    model, prm = _smollm2(tmp_path)
    program = [str(Path(sys.executable).parent / "stairdata")]
    options: list[str | Path] = ["--prm", prm, "--method", "best_of_n", "-n", "3", "--max-model-len", "512"]
    with serving(program, tmp_path, model, *options, "--set", "responses.max_tokens=48") as (process, facts):
        client = openai.OpenAI(base_url=facts["base_url"], api_key=facts["api_key"], timeout=LIMIT)
        answer = client.chat.completions.create(model="actor", messages=ASKED, seed=3)
        chunks = list(
            client.chat.completions.create(
                model="actor", messages=ASKED, seed=3, stream=True, stream_options={"include_usage": True}
            )
        )
        again = client.chat.completions.create(
            model="actor", messages=[*ASKED, {"role": "user", "content": "<|im_end|> And <|Output|>?"}], max_tokens=8
        )
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LIMIT) == 130
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 3 * 48
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert again.choices[0].finish_reason in {"stop", "length"}
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == answer.usage.prompt_tokens
    assert processes_of(tmp_path) == []


def _smollm2(folder: Path) -> tuple[Path, Path]:
    """SmolLM2 with the grammar's tags, as SFT leaves it, and a reward model of random head on top."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stairdata_training.models import load_reward_model
    from stairdata_training.smollm2 import prepare_smollm2
    from stairdata_training.tokens import prepare_tokenizer, resize_embeddings

    base, actor, prm = folder / "base", folder / "actor", folder / "prm"
    prepare_smollm2(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    resize_embeddings(model, tokenizer, prepare_tokenizer(tokenizer))
    model.save_pretrained(actor)
    tokenizer.save_pretrained(actor)
    load_reward_model(actor, head_seed=0).save_pretrained(prm)
    tokenizer.save_pretrained(prm)
    return actor, prm


# --- what is refused before anything is started


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["model", "-n", "4"], 2, "give --method best_of_n or --method beam with --prm PRM"),
        (["model", "--prm", "prm"], 2, "give --method best_of_n or --method beam with --prm PRM"),
        (["model", "--method", "best_of_n"], 1, "best_of_n needs a prm"),
        (["model", "--method", "beam", "--prm", "prm", "-n", "4"], 1, "n counts for sample and best_of_n"),
        (["model", "--method", "beam", "--prm", "prm"], 1, "the model folder 'prm' does not exist"),
        (["model", "--method", "sample", "--api-key-env", "SHORT"], 2, "at least 16 printable characters"),
        (["./model", "--method", "sample", "--port", "0"], 1, "the model folder 'model' does not exist"),
    ],
)
def test_what_can_not_be_served_is_one_message(
    arguments: list[str], status: int, words: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT", "abc")
    ended = run("serve", *arguments)
    assert words in ended.err
    assert (ended.status, ended.out) == (status, "")
    assert "Traceback" not in ended.err


def test_a_port_that_is_taken() -> None:
    with take_port(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} can't be used: .*--port"):
            take_port(port)
        with socket.create_connection(("127.0.0.1", port), 5):
            pass


@pytest.mark.parametrize(
    "key", ["", "short", "a" * 40, "with spaces in between it", "ein schlüssel", "schlüssel-1234567"]
)
def test_keys_that_can_be_guessed_or_not_sent(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", key)
    with pytest.raises(UsageError) as caught:
        find_key("OUR_KEY")
    assert not key or key not in str(caught.value)


def test_a_key_in_the_place_of_a_name() -> None:
    key = "sk-proj-abcdefghijklmnop0123456789ABCDEFGHIJ"
    with pytest.raises(UsageError, match="looks like a key") as caught:
        find_key(key)
    assert key not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("stairdata.serving")]:
        monkeypatch.delitem(sys.modules, name)
    ended = run("serve", "model", "--method", "sample")
    assert (ended.status, ended.out) == (2, "")
    assert "needs uvicorn: pip install 'stairdata[serve]'" in ended.err
