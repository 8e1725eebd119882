"""What training costs: beside bare TRL, in padding, and in tokenising.

    python benchmarks/training.py throughput [--model FOLDER] [--steps 6] [--repeats 3] [--threads 1]
    python benchmarks/training.py padding [--model FOLDER] [--artifacts ROOT]
    python benchmarks/training.py tokenise [--model FOLDER] [--rows 100000]

`throughput` trains SFT, DPO and PRM by our trainers and by TRL's own, which get the same ids in the same batches, the
same settings and the same start. Each side has a process of its own for all its runs (malloc's settings are those of a
process), and the sides take turns, so that other load meets both. Counted are the real tokens of each step but the
first, from the end of the first step to the end of the last; loading and DPO's reference pass are left out. Ratios are
printed by the clock and by the processor's time; on a machine with other work, one thread and the latter say most.

`padding` counts the padded positions of DPO's reference pass, which sees the training's own batches.

`tokenise` makes the ids of preference pairs as a training does before it loads weights, on one core.

Rows are made from the trees of `pairs.py`, or taken from the artifacts under `--artifacts`. Without `--model`, a tiny
model of single bytes is made; `prepare_smollm2` and `stairdata train sft` make a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}

import datasets
import pairs
import torch
import trl
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from stairdata_schemas.artifacts import newest
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import TRAINED_ON, DpoConfig, PrmConfig, SftConfig, TrainingConfig
from stairdata_training.data.preparing import prepare_rows
from stairdata_training.dpo import DPO
from stairdata_training.prm import PRM
from stairdata_training.sft import SFT
from stairdata_training.tokens import dpo_row, prepare_tokenizer
from stairdata_training.trainers.cpu import keep_freed_memory
from stairdata_training.trainers.method import Method, prepare_trainer
from stairdata_training.trainers.mixin import StepCallback, arguments

METHODS: dict[str, tuple[Method, type[TrainingConfig]]] = {
    "sft": (SFT, SftConfig),
    "dpo": (DPO, DpoConfig),
    "prm": (PRM, PrmConfig),
}
SIDES = ("ours", "bare")
PAIRS_OF_A_TREE = 190
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Trained(NamedTuple):
    """One run of a trainer."""

    tokens: int
    seconds: float
    cpu: float
    """Seconds of the processor, all threads together."""
    loss: float
    """Of the last step."""


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ended, by the clock and by the processor, and the last loss."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.loss = 0.0

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        self.loss = logs.get("loss", self.loss)


class Ready:
    """Goes in front of a bare trainer: the rows are ids already, and come in the order in which they are stored."""

    train_dataset: Any

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, _: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class BareSft(Ready, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's."""


class BareDpo(Ready, trl.DPOTrainer):  # type: ignore[misc]
    """TRL's."""


class BarePrm(Ready, trl.RewardTrainer):  # type: ignore[misc]
    """TRL's."""


def bare(name: str, steps: int) -> Callable[..., Any]:
    """Return what makes a bare trainer, with the arguments of `Method.trainer`."""

    def make(network: Any, ids: Any, tokenizer: Any, config: Any, folder: Path, adapters: Any) -> Any:
        settings = arguments(config, folder) | {"save_strategy": "no", "max_steps": steps}
        common = {"model": network, "train_dataset": ids, "processing_class": tokenizer, "peft_config": adapters}
        if name == "sft":
            return BareSft(args=trl.SFTConfig(**settings), **common)
        if name == "dpo":
            return BareDpo(args=trl.DPOConfig(**settings, beta=config.beta, precompute_ref_log_probs=True), **common)
        return BarePrm(args=trl.RewardConfig(**settings), **common)

    return make


def train(side: str, name: str, rows: Path, model: str, settings: dict[str, Any]) -> Trained:
    """Train once from the start, and measure the steps after the first."""
    method, config_type = METHODS[name]
    config = config_type(**settings)
    assert config.max_steps is not None
    if side == "bare":
        method = replace(method, trainer=bare(name, config.max_steps))
    with tempfile.TemporaryDirectory() as folder:
        given = datasets.Dataset.load_from_disk(str(rows / name), keep_in_memory=True)
        prepared = prepare_trainer(method, given, model, config, Path(folder) / "work" / "partial")
        trainer = prepared.trainer
        trainer.remove_callback(PrinterCallback)
        if side == "ours":
            trainer.add_callback(StepCallback(name, trainer, None))
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        rows_per_step = config.batch_size * config.gradient_accumulation
        lengths = prepared.rows.ids
        shown = range(rows_per_step, rows_per_step * config.max_steps)
        tokens = sum(_tokens(lengths[index % len(lengths)]) for index in shown)
        seconds, cpu = (clock.ends[-1][which] - clock.ends[0][which] for which in range(2))
        return Trained(tokens, seconds, cpu, clock.loss)


def _tokens(row: dict[str, Any]) -> int:
    """Return what a model reads of a row, padding left out."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row.get("prompt_ids", ())) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def work(side: str, threads: int | None) -> None:
    """Train what each line of stdin says, and answer with a line; a side's runs share this process."""
    if threads is not None:
        torch.set_num_threads(threads)
    if side == "ours":
        keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # trainers print
    for line in sys.stdin:
        asked = json.loads(line)
        found = train(side, asked["method"], Path(asked["rows"]), asked["model"], asked["settings"])
        print(json.dumps(found), file=answers, flush=True)


@contextmanager
def worker(side: str, log: Path, threads: int | None) -> Iterator[Callable[[dict[str, Any]], Trained]]:
    """Start a side's process; what it says besides goes into the log."""
    command = [sys.executable, __file__, "work", side, *(["--threads", str(threads)] if threads else [])]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def ask(what: dict[str, Any]) -> Trained:
            print(json.dumps(what), file=into, flush=True)
            answer = out.readline()
            if not answer:
                sys.exit(f"{side} failed:\n{log.read_text()[-3000:]}")
            return Trained(*json.loads(answer))

        yield ask
        into.close()


def throughput(options: argparse.Namespace, folder: Path) -> None:
    """Print tokens a second of both sides, and the ratio, for each trainer."""
    model = options.model or str(tiny_model(folder / "model"))
    settings = {
        "max_steps": options.steps,
        "batch_size": options.batch_size,
        "gradient_accumulation": options.accumulation,
        "gradient_checkpointing": options.gradient_checkpointing,
        "learning_rate": 1e-5,
    }
    root = options.artifacts or made_artifacts(folder / "artifacts", 1, ("preference-pairs", "prm-pairs"))
    rows = folder / "rows"
    needed = options.steps * options.batch_size * options.accumulation
    for name in METHODS:
        given = sft_rows() if name == "sft" and not options.artifacts else newest(root, TRAINED_ON[name]).dataset()
        given.shuffle(seed=0).select(range(min(needed, len(given)))).save_to_disk(str(rows / name))
    print(f"{'':<6}{'stairdata':>12}{'bare TRL':>12}   tokens/s, medians of {options.repeats}; {options.steps} steps")
    threads = options.threads
    with worker("ours", folder / "ours.log", threads) as ours, worker("bare", folder / "bare.log", threads) as others:
        for name in options.trainers:
            asked = {"method": name, "rows": str(rows), "model": model, "settings": settings}
            turns = [(ours(asked), others(asked)) for _ in range(options.repeats)]
            speeds = [[each.tokens / each.seconds for each in turn] for turn in turns]
            mine, theirs = (median(turn[side] for turn in speeds) for side in range(2))
            by_clock = [turn[0] / turn[1] for turn in speeds]
            by_cpu = [mine.tokens / mine.cpu / (theirs.tokens / theirs.cpu) for mine, theirs in turns]
            losses = " and ".join(f"{each.loss:.5f}" for each in turns[0])
            print(
                f"{name:<6}{mine:>12,.0f}{theirs:>12,.0f}   {name} ratio {_spread(by_clock)}, of the processor's time "
                f"{_spread(by_cpu)}; last losses {losses}; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def padding(options: argparse.Namespace, folder: Path) -> None:
    """Print the share of padded positions in the reference pass."""
    model = options.model or str(tiny_model(folder / "model"))
    rows = newest(options.artifacts or made_artifacts(folder / "artifacts", 3), "preference_pairs").dataset()
    tokenizer = load_tokenizer(model)
    prepare_tokenizer(tokenizer)
    config = DpoConfig(
        batch_size=options.batch_size, gradient_accumulation=options.accumulation, max_rows=options.max_rows
    )
    per_step = config.batch_size * config.gradient_accumulation
    made = prepare_rows(rows, config, per_step, lambda row: dpo_row(tokenizer, row), folder / "rows", print)
    unsorted = [dpo_row(tokenizer, row) for row in rows.select(range(len(made.ids)))]
    print(f"{len(made.ids)} pairs, {config.batch_size} in a forward pass, {per_step} in a step")
    print(f"padding in the order of the artifact: {padded(unsorted, config.batch_size):.1f} %")
    print(f"padding of the reference pass: {padded(made.ids, config.batch_size):.1f} %")


def padded(rows: Any, batch_size: int) -> float:
    """Return how many of a hundred positions are padding, by TRL's own collator, rows in their order."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collator = DataCollatorForPreference(pad_token_id=0)
    masks = [
        collator([dict(rows[index]) for index in range(start, min(start + batch_size, len(rows)))])["attention_mask"]
        for start in range(0, len(rows), batch_size)
    ]
    read = sum(int(mask.sum()) for mask in masks)
    return 100 * (1 - read / sum(int(mask.numel()) for mask in masks))


def tokenise(options: argparse.Namespace, folder: Path) -> None:
    """Print how long it takes to make the ids of preference pairs, on one core."""
    model = options.model or str(tiny_model(folder / "model"))
    trees = -(-options.rows // PAIRS_OF_A_TREE)
    rows = newest(options.artifacts or made_artifacts(folder / "artifacts", trees), "preference_pairs").dataset()
    rows = rows.select(range(min(options.rows, len(rows))))
    tokenizer = load_tokenizer(model)
    prepare_tokenizer(tokenizer)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    began, cpu = time.perf_counter(), time.process_time()
    config = DpoConfig(max_length=16384)  # in bytes, a tiny model's tokens, some are long
    made = prepare_rows(rows, config, 128, lambda row: dpo_row(tokenizer, row), folder / "rows", print)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{len(made.ids):,} pairs tokenised on one core: {seconds:.1f} s, of the processor {cpu:.1f} s")


def made_artifacts(root: Path, trees: int, kinds: Sequence[str] = ("preference-pairs",)) -> Path:
    """Write so many trees, and take pairs out of them."""
    pairs.trees(root, trees, pairs.forest())
    for kind in kinds:
        pairs.run("build", kind, "--root", root)
    return root


def sft_rows() -> datasets.Dataset:
    """Return the whole paths of some trees, as answers."""
    rows = []
    for tree in pairs.forest().head(20).iter_rows(named=True):
        nodes = tree["nodes"]
        for leaf in nodes:
            if leaf["is_terminal"]:
                steps, at = [], leaf["node_id"]
                while at > 0:
                    steps.append(nodes[at]["step"])
                    at = nodes[at]["parent_id"]
                answer = "".join(reversed(steps)).lstrip()
                rows.append({"prompt_id": tree["prompt_id"], "prompt": tree["prompt"], "completion": answer})
    return datasets.Dataset.from_list(rows)


def tiny_model(folder: Path) -> Path:
    """Make a model of single bytes with random weights, and the grammar's tags."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *TAGS]
    vocabulary = {token: index for index, token in enumerate([*special, *pre_tokenizers.ByteLevel.alphabet()])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=16384, **shape)
    LlamaForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("throughput", "padding", "tokenise"):
        command = commands.add_parser(name)
        command.add_argument("--model", help="folder with the grammar's tags; default: a tiny one made here")
        command.add_argument("--artifacts", type=Path, help="root of artifacts; default: made here")
        command.add_argument("--batch-size", type=int, default=4)
        command.add_argument("--accumulation", type=int, default=1)
    commands.choices["throughput"].add_argument("--steps", type=int, default=6)
    commands.choices["throughput"].add_argument("--repeats", type=int, default=3)
    commands.choices["throughput"].add_argument("--threads", type=int, help="of each side; default: torch's own")
    commands.choices["throughput"].add_argument("--trainers", nargs="+", choices=METHODS, default=[*METHODS])
    commands.choices["throughput"].add_argument("--gradient-checkpointing", action="store_true")
    commands.choices["padding"].add_argument("--max-rows", type=int)
    commands.choices["tokenise"].add_argument("--rows", type=int, default=100_000)
    command = commands.add_parser("work", help=argparse.SUPPRESS)
    command.add_argument("side", choices=SIDES)
    command.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.command == "work":
        work(options.side, options.threads)
        return
    datasets.disable_progress_bars()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "tokenizers"))
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores (load {load:.1f})"
    print(f"{machine}, Python {platform.python_version()}, {packages}")
    with tempfile.TemporaryDirectory() as folder:
        {"throughput": throughput, "padding": padding, "tokenise": tokenise}[options.command](options, Path(folder))


if __name__ == "__main__":
    main()
