"""How well test-time search keeps a server busy, and what reading a whole answer at once saves; ratios within one run.

    python benchmarks/search.py flight                      64 prompts in flight: share of the server's saturated rate
    python benchmarks/search.py one-at-a-time               64 prompts in flight against one prompt at a time
    python benchmarks/search.py prefixes                    one pass an answer against one pass for each of its prefixes
    python benchmarks/search.py flight --model runs/sft     the first two on a real model; see trees.py for --base-url

The method is beam search, width 4, 4 expansions. Without `--model` and `--base-url` the server is batching_server.py,
which takes as long for an answer as a server with continuous batching would.

`flight` searches with a scorer that answers at once, then sends the very same requests again from a bare client,
`--window` at a time; then it searches for `--prm-seconds` with a reward model in this process. A search scores some 50
beginnings of answers, so that on a CPU the reward model of a fast server is at work all the time: what an answer costs
each of the two is measured by itself, on `--texts` of those beginnings. `one-at-a-time` sends the same requests again,
too, `--window` and 4 at a time: one search has 4 in flight. Rates are tokens a second, as in trees.py; that of a run
with many prompts is of the part in which at least `--steady` are unfinished. Runs that are compared take turns. A real
server finds prompts of earlier runs in its prefix cache; the searches with many prompts in flight come first, so that
this errs to their disadvantage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from instant_server import WORDS
from trees import (
    Sent,
    Watch,
    middle,
    print_machine,
    read_prompts,
    recording,
    safety_prompts,
    saturate,
    served,
    show,
    small_tokenizer,
    speed,
    stand_in,
)

from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.responses.build import build_responses
from stairdata.generators.responses.workload import OpenScorer
from stairdata.llm.budget import Budget
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata.scorers.in_process import BATCH
from stairdata.scorers.opening import open_scorer
from stairdata.scorers.reading import unscored_ids
from stairdata.search.scoring import ScoreItem, Scorer, StepScores
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import BudgetError
from stairdata_schemas.grammar import Step, render, split_steps
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.rendering import step_ids

WIDTH = 4


class Searched(NamedTuple):
    """One build of answers."""

    prompts: int
    """How many."""
    watch: Watch
    sent: list[Sent]
    steady: int
    stopped: float | None
    """When it was stopped, if it was."""

    @property
    def span(self) -> tuple[float, float]:
        """From the first answer of the server until fewer prompts are unfinished than the steady part needs."""
        ends = sorted(self.watch.finished)
        last = max(0, self.prompts - self.steady)
        return min(one.ended for one in self.sent), ends[last] if len(ends) > last else self.stopped or ends[-1]

    @property
    def rate(self) -> float:
        """Tokens a second in that span."""
        return speed(self.sent, *self.span)

    @property
    def tokens_of_an_answer(self) -> float:
        """Tokens that the search for one answer samples."""
        return sum(one.tokens for one in self.sent) / self.prompts

    @property
    def answers_an_hour(self) -> float:
        return 3600 * self.rate / self.tokens_of_an_answer


@dataclass
class Timed:
    """A reward model whose time is measured."""

    model: Any
    spans: list[tuple[float, float]] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.tokenizer, self.context = self.model.tokenizer, self.model.context

    def step_rewards(self, answers: Sequence[Sequence[Sequence[int]]]) -> Any:
        began = time.monotonic()
        rewards = self.model.step_rewards(answers)
        self.spans.append((began, time.monotonic()))
        self.texts += len(answers)
        self.tokens += sum(rewards.tokens)
        return rewards

    @property
    def seconds(self) -> float:
        """Time in which it has computed."""
        return sum(end - start for start, end in self.spans)

    def share(self, began: float, ended: float) -> float:
        """Return the share of a span of time in which it computes."""
        return sum(max(0.0, min(end, ended) - max(start, began)) for start, end in self.spans) / (ended - began)


class InstantScorer:
    """Scores by a hash of the text, at once; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ScoreItem] = []

    async def score(self, items: Sequence[ScoreItem]) -> StepScores:
        self.asked += items
        values = []
        for item in items:
            rng = random.Random(item.text)  # noqa: S311 - scores, not secrets
            values.append([rng.random() for _ in range(max(1, len(split_steps(item.text)) - item.known))])
        return StepScores(values, len(items), 0)


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("flight", "one-at-a-time"):
        add_search_options(commands.add_parser(name))
    timed = commands.choices["flight"]
    timed.add_argument("--prm-seconds", type=float, default=30, help="of the search with a reward model")
    timed.add_argument("--texts", type=int, default=32, help="that the reward model reads to know what they cost")
    commands.choices["one-at-a-time"].add_argument("--alone", type=int, default=4, help="prompts one at a time")
    scored = commands.add_parser("prefixes")
    scored.add_argument("--prefixes", type=int, default=10_000)
    scored.add_argument("--answers", type=Path, help="JSONL with prompt and text; default: made here")
    for command in commands.choices.values():
        command.add_argument("--prm", type=Path, help="folder of a reward model; default: a small one made here")
        command.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.command != "prefixes" and options.base_url and not options.tokenizer:
        commands.choices[options.command].error("--base-url needs --tokenizer")
    print_machine()
    show(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    {"flight": flight, "one-at-a-time": one_at_a_time, "prefixes": prefixes}[options.command](options)


def add_search_options(command: argparse.ArgumentParser) -> None:
    """Add what the benchmarks with a server have in common."""
    command.add_argument("--prompts", type=int, default=128)
    command.add_argument("--prompt-files", type=Path, nargs="*", default=[], help="JSONL with prompt and task")
    command.add_argument("--in-flight", type=int, default=64, help="prompts")
    command.add_argument("--window", type=int, default=64, help="requests in flight")
    command.add_argument("--steady", type=int, default=32)
    command.add_argument("--again", type=float, default=0.5, help="share of the requests that are sent again")
    command.add_argument("--max-tokens", type=int, default=2048)
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--speed", default="{}", help="of batching_server.py, as JSON")
    command.add_argument("--model", type=Path, help="folder; served here")
    command.add_argument("--server-args", default="", help="more arguments for vLLM")
    command.add_argument("--log", type=Path, help="of the server")
    command.add_argument("--base-url")
    command.add_argument("--name", default="actor", help="the server's name for the model")
    command.add_argument("--tokenizer", help="default: the model's, or a small one made here")


def flight(options: argparse.Namespace) -> None:
    """Compare searches with the server's saturated rate, and measure the time of a reward model."""
    from stairdata_training.scoring import PrmScorer

    shares, prm_shares = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(a_server(options, folder))
        options.prm = options.prm or small_reward_model(folder / "prm")
        model = PrmScorer.load(options.prm)
        for _ in range(options.repeats):
            instant = InstantScorer()
            ours = search(options, url, options.prompts, options.in_flight, at_once(instant))
            full = saturated(options, url, ours.sent, options.window)
            shares.append(ours.rate / full)
            report(f"{options.in_flight} prompts in flight, instant scorer", ours)
            show(f"the same requests, {options.window} at a time: {full:.0f} tokens/s; share {shares[-1]:.1%}")
            prm_shares.append(flight_with_model(options, url, model, full))
        show_costs(model, instant.asked, ours, full, options.texts)
    show(f"share of the saturated rate, median of {options.repeats}: {median(shares):.3f} (goal 0.85)")
    show(f"share of the time that the reward model takes: {median(prm_shares):.3f}")


def flight_with_model(options: argparse.Namespace, url: str, model: Any, full: float) -> float:
    """Search with a reward model for a while; return the share of the time in which it computes."""
    timed = Timed(model)
    opened = functools.partial(in_process, timed, options.prm_seconds)
    found = search(options, url, options.prompts, options.in_flight, opened)
    began, ended = found.span
    share = timed.share(began, ended)
    show(
        f"with the reward model, {len(found.watch.finished)} of {found.prompts} answers in {ended - began:.1f} s: it "
        f"computes {share:.1%} of the time, {timed.texts} texts, "
        f"{timed.tokens / max(timed.seconds, 1e-9):.0f} tokens/s; the server is asked for "
        f"{found.rate / full:.1%} of its saturated rate"
    )
    return share


def show_costs(model: Any, asked: Sequence[ScoreItem], found: Searched, full: float, count: int) -> None:
    """Print what an answer costs the server, at its saturated rate, and the reward model, which reads some texts."""
    some = random.Random(0).sample(asked, min(count, len(asked)))  # noqa: S311 - texts, not secrets
    timed = Timed(model)
    answers = [unscored_ids(model.tokenizer, item, model.context) for item in some]
    cpu = time.process_time()
    for at in range(0, len(answers), BATCH):
        timed.step_rewards(answers[at : at + BATCH])
    cpu = time.process_time() - cpu
    a_text = timed.seconds / len(some)
    texts = len(asked) / found.prompts
    server = found.tokens_of_an_answer / full
    show(
        f"an answer costs the server {found.tokens_of_an_answer:.0f} tokens, {server:.2f} s; the reward model "
        f"{texts:.1f} texts of {timed.tokens / len(some):.0f} tokens, {texts * a_text:.2f} s "
        f"({texts * cpu / len(some):.2f} s of CPU): {texts * a_text / (texts * a_text + server):.1%} of both"
    )


def one_at_a_time(options: argparse.Namespace) -> None:
    """Compare many prompts in flight with one prompt at a time, and with what the server's rates allow."""
    ratios, allowed = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as name, a_server(options, Path(name)) as url:
        for _ in range(options.repeats):
            many = search(options, url, options.prompts, options.in_flight, at_once(InstantScorer()))
            alone = search(options, url, options.alone, 1, at_once(InstantScorer()))
            high = saturated(options, url, many.sent, options.window)
            low = saturated(options, url, alone.sent, WIDTH)
            ratios.append(many.answers_an_hour / alone.answers_an_hour)
            allowed.append(high / low)
            report(f"{options.in_flight} prompts in flight", many)
            report("one prompt at a time", alone)
            show(
                f"the same requests, {options.window} at a time: {high:.0f} tokens/s; {WIDTH} at a time: {low:.0f}; "
                f"answers an hour, ratio {ratios[-1]:.2f}, of {allowed[-1]:.2f} that these rates allow"
            )
    shares = [ratio / most for ratio, most in zip(ratios, allowed, strict=True)]
    show(f"answers an hour against one prompt at a time, median of {options.repeats}: {median(ratios):.2f} (goal 2)")
    show(f"share of what the server's rates allow: {median(shares):.3f} (goal 0.85)")


def prefixes(options: argparse.Namespace) -> None:
    """Compare one forward pass for each answer with one for each of its prefixes."""
    from stairdata_training.scoring import PrmScorer

    with tempfile.TemporaryDirectory() as name:
        scorer = PrmScorer.load(options.prm or small_reward_model(Path(name)))
    answers = tokenised(scorer.tokenizer, read_answers(options), options.prefixes)
    whole, parts = sum(len(answer[-1]) for answer in answers), sum(len(ids) for answer in answers for ids in answer)
    show(f"{options.prefixes} prefixes of {len(answers)} answers; {parts} tokens of prefixes, {whole} of whole answers")
    one_pass(scorer, answers[:8])  # what is made at the first pass is there
    ratios: list[tuple[float, float]] = []
    for _ in range(options.repeats):
        together, apart = timed_scores(one_pass, scorer, answers), timed_scores(separate_passes, scorer, answers)
        furthest = max(abs(a - b) for a, b in zip(together.values, apart.values, strict=True))
        ratios.append((apart.seconds / together.seconds, apart.cpu / together.cpu))
        show(
            f"one pass {together.seconds:.2f} s, {together.cpu:.2f} s of CPU; separate {apart.seconds:.2f} s, "
            f"{apart.cpu:.2f} s of CPU; scores differ by {furthest:.1e} at most"
        )
    clock, cpu = (median(each) for each in zip(*ratios, strict=True))
    show(f"ratio of the tokens: {parts / whole:.2f}")
    show(f"ratio of the times, median of {options.repeats}: {clock:.2f} (goal 1.8); of CPU times {cpu:.2f}")
    by_clock, by_cpu = clock * whole / parts, cpu * whole / parts
    show(f"share of the ratio of the tokens: {by_clock:.3f} (goal 0.9); of CPU times {by_cpu:.3f}")


def search(
    options: argparse.Namespace,
    url: str,
    count: int,
    in_flight: int,
    scorer: Callable[[Recipe], OpenScorer],
) -> Searched:
    """Build answers to prompts, to the end or until the scorer stops the build, and watch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = search_recipe(options, url, in_flight)
        source = folder / "prompts.jsonl"
        rows = read_prompts(options.prompt_files, count) or safety_prompts(count)
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        prompts = Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}})
        build_prompts(prompts, BuildOptions(root=folder))
        watch, sent = Watch("responses"), list[Sent]()
        identity = ModelIdentity(role="prm", name="prm")
        building = BuildOptions(root=folder, max_quarantine=1.0, progress=watch)
        stopped = None
        with recording(sent):
            try:
                build_responses(recipe, building, identity, scorer(recipe))
            except BudgetError:
                stopped = time.monotonic()
    return Searched(count, watch, sent, options.steady if in_flight > 1 else 1, stopped)


def search_recipe(options: argparse.Namespace, url: str, in_flight: int) -> Recipe:
    """Return the recipe of a beam search."""
    key = {"api_key_env": "BENCHMARK_KEY"} if options.model and not options.base_url else {}
    actor = {"base_url": url, "model": options.name, "tokenizer": options.tokenizer, "concurrency": options.window}
    responses = {
        "method": "beam",
        "width": WIDTH,
        "prm": str(options.prm),
        "max_tokens": options.max_tokens,
        "top_p": options.top_p,
        "concurrency": in_flight,
    }
    return Recipe.model_validate({"actor": actor | key, "responses": responses})


def saturated(options: argparse.Namespace, url: str, sent: Sequence[Sent], at_a_time: int) -> float:
    """Send requests again from a bare client; return tokens a second while so many are in flight."""
    again = asyncio.run(saturate(middle(sent, options.again), url, at_a_time))
    ends = sorted(one.ended for one in again)
    return speed(again, again[0].began, ends[max(0, len(ends) - at_a_time)])


@contextlib.contextmanager
def a_server(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Give the URL of the server; complete the options by the tokenizer."""
    if options.model or options.base_url:
        options.tokenizer = options.tokenizer or str(options.model)
        with served(options, folder) as url:
            yield url
        return
    options.tokenizer = options.tokenizer or str(small_tokenizer(folder / "tokenizer"))
    with stand_in("batching_server.py", options.speed) as url:
        yield url


def at_once(scorer: InstantScorer) -> Callable[[Recipe], OpenScorer]:
    """Return how the scorer that answers at once is opened."""

    @contextlib.asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[InstantScorer]:
        yield scorer

    return lambda _: opened


def in_process(model: Timed, seconds: float, recipe: Recipe) -> OpenScorer:
    """Open a reward model in this process as `stairdata build responses` does; it stops the build after a while."""

    @contextlib.asynccontextmanager
    async def opened(folder: Path, budget: Budget, waiting: WaitProgress) -> AsyncIterator[Scorer]:
        async with open_scorer(recipe, lambda _: model, folder, budget, waiting) as scorer:
            enough = asyncio.get_running_loop().call_later(seconds, budget.stop, BudgetError("long enough"))
            yield scorer
            enough.cancel()

    return opened


def report(what: str, found: Searched) -> None:
    """Print the speed of a build."""
    watch = found.watch
    show(
        f"{what}: {len(watch.finished)} answers in {watch.ended - watch.began:.1f} s, steady "
        f"{found.rate:.0f} tokens/s, {found.answers_an_hour:.0f} answers/h; {len(found.sent)} requests, "
        f"{1000 * watch.cpu / len(found.sent):.1f} ms of our CPU a request"
    )


def small_reward_model(folder: Path) -> Path:
    """Make a reward model of three layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from stairdata_schemas.rendering import load_tokenizer

    torch.manual_seed(0)
    small_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(load_tokenizer(folder)),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def read_answers(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Give prompts and answers: of a file, or of two to four parts of 8 to 32 words each, the output among them."""
    if options.answers:
        for line in options.answers.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["prompt"], row["text"]
        return
    rng = random.Random(0)  # noqa: S311 - texts, not secrets
    for index in itertools.count():
        words = [" ".join(rng.choices(WORDS, k=rng.randint(8, 32))) for _ in range(rng.randint(2, 4))]
        steps = [Step(f"Step {place}:", each) for place, each in enumerate(words[1:])]
        yield f"Is it all right to try thing number {index}?", render(steps, words[0])


def tokenised(tokenizer: Any, answers: Iterator[tuple[str, str]], count: int) -> list[list[list[int]]]:
    """Return the ids up to the end of each step, of as many answers as have so many prefixes together."""
    found = list[list[list[int]]]()
    for prompt, text in answers:
        ids = step_ids(tokenizer, prompt, text, is_complete=True)
        found.append(ids[-count:])
        count -= len(found[-1])
        if not count:
            return found
    raise SystemExit(f"the answers have {count} prefixes too few")


class TimedScores(NamedTuple):
    """Scores, and what they took."""

    values: list[float]
    seconds: float
    cpu: float


def timed_scores(score: Callable[..., list[float]], scorer: Any, answers: list[list[list[int]]]) -> TimedScores:
    """Score by the clock and by the processor."""
    began, cpu = time.perf_counter(), time.process_time()
    values = score(scorer, answers)
    return TimedScores(values, time.perf_counter() - began, time.process_time() - cpu)


def one_pass(scorer: Any, answers: list[list[list[int]]]) -> list[float]:
    """Score all prefixes of an answer in one forward pass."""
    found = (scorer.step_rewards(answers[at : at + BATCH]).values for at in range(0, len(answers), BATCH))
    return [value for chunk in found for values in chunk for value in values]


def separate_passes(scorer: Any, answers: list[list[list[int]]]) -> list[float]:
    """Score each prefix by itself, those of the same answers together."""
    return one_pass(scorer, [[ids] for answer in answers for ids in answer])


if __name__ == "__main__":
    main()
