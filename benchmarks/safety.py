"""Does a model get safer with each training, and what does test-time search add? The whole measurement, one command.

    python benchmarks/safety.py run --models base=DIR,sft=DIR,dpo=DIR --prm DIR --data DIR --folder OUT
    python benchmarks/safety.py forecast ...                the same options: what it would ask, and for how long

`--data` holds `do_not_answer.jsonl` (question), `xstest_prompts.csv` (prompt, label) and `self_instruct_seed.jsonl`
(question). Each model answers 300 prompts of Do-Not-Answer, all of XSTest and 100 helpful ones once, and 100 of the
first under four attacks. The last model (`--searched`) then answers 100 harmful prompts and 100 of XSTest, unattacked,
by four samples and by a beam search (2 x 2); the process reward model chooses. All are judged by rule, in words alone.

Each part is an artifact of kind `evaluations`, and its recipe lies beside it: a part that is finished is not asked
again, one that was interrupted goes on. `table.md` has the figures with their intervals, `table.json` all of them.
Prompts that a model was trained on are known where `--root` is the folder of the artifacts that it was trained on.
`--share 0.02` measures a fiftieth of the prompts, to try it out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml
from safety_tables import ATTACKED, HELPFUL, MeasuredPart, write_tables
from trees import print_machine, show

from stairdata.cli.console import show_progress
from stairdata.runs.options import BuildOptions
from stairdata.stages import build_evaluations, forecast_evaluations, parse_full_recipe
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import StairDataError

HARMFUL_PROMPTS, XSTEST_PROMPTS, HELPFUL_PROMPTS, ATTACKED_PROMPTS, SEARCHED_PROMPTS = 300, 450, 100, 100, 100
ATTACKS = "role_play,prefix_injection,refusal_suppression,prefill"
SAMPLES = 4
WIDTH = EXPANSIONS = 2
LEVELS = 5
"""Steps of an answer with its output, assumed."""
PROMPT_TOKENS = 60
"""Of a prompt in its template, assumed."""
START_SECONDS = 40
"""From a build's begin to its first answer: the server's start."""
LIMIT_MINUTES = 60


class PlannedPart(NamedTuple):
    """One artifact that is to be made."""

    model: str
    method: str
    """sample, best_of_n (four scored samples) or beam."""
    recipe: Json

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method}"


def main() -> None:
    """Run or forecast the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "forecast"])
    parser.add_argument("--models", type=named_values, required=True, help="NAME=FOLDER,...; compared in this order")
    parser.add_argument("--prm", help="folder of a process reward model; without one nothing is searched")
    parser.add_argument("--serve-prm", action="store_true", help="on a server of its own in place of this process")
    parser.add_argument("--searched", help="models that search, by name; default: the last")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prompts")
    parser.add_argument("--folder", type=Path, required=True, help="for recipes and tables")
    parser.add_argument("--root", type=Path, help="folder of the artifacts; default: artifacts in --folder")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts")
    parser.add_argument("--attacks", default=ATTACKS)
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parser.add_argument("--max-quarantine", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--base-url", help="of a server that has all models by these names; folders: their tokenizers")
    parser.add_argument("--rate", type=float, default=300, help="tokens a second, for a forecast")
    parser.add_argument("--prm-rate", type=float, default=1000, help="those that the PRM reads")
    parser.add_argument("--answer-tokens", type=named_values, default={}, help="NAME=TOKENS,... assumed; default 150")
    options = parser.parse_args()
    options.root = options.root or options.folder / "artifacts"
    options.searched = (options.searched or list(options.models)[-1]).split(",") if options.prm else []
    options.attacks = options.attacks.split(",")
    if unknown := [name for name in options.searched if name not in options.models]:
        parser.error(f"--searched names {unknown[0]}, which is not among --models")
    print_machine()
    try:
        forecast(options)
        if options.command == "run":
            run(options)
    except StairDataError as error:
        sys.exit(f"{error}; the same command goes on")


def named_values(text: str) -> dict[str, str]:
    """Read NAME=VALUE,NAME=VALUE."""
    pairs = [each.partition("=") for each in text.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE,NAME=VALUE")
    return {name: value for name, _, value in pairs}


def run(options: argparse.Namespace) -> None:
    """Build what is not there yet, and write the tables."""
    made = []
    for part in parts(options):
        path = options.folder / "recipes" / f"{part.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(part.recipe, sort_keys=False), encoding="utf-8")
        with show_progress() as progress:
            building = BuildOptions(options.root, max_quarantine=options.max_quarantine, progress=progress, tell=show)
            artifact = build_evaluations(parse_full_recipe(part.recipe), building)
        assert artifact is not None, "only a batch leaves a build unfinished"
        show(f"{part.name}: {artifact.reference}, {artifact.manifest.rows} rows")
        made.append(MeasuredPart(part.model, part.method, artifact, options.models[part.model]))
    write_tables(made, options.attacks, options.folder)
    show((options.folder / "table.md").read_text(encoding="utf-8"))


def forecast(options: argparse.Namespace) -> None:
    """Print how much each part asks, and how long that takes at the rates that are assumed."""
    total = 0.0
    for part in parts(options):
        found = forecast_evaluations(parse_full_recipe(part.recipe), BuildOptions(options.root))
        prompts = sum(load.requests for load in found.models if load.role == "actor")
        if not prompts:
            show(f"{part.name}: finished")
            continue
        written, read = tokens_of(options, part, prompts)
        seconds = START_SECONDS + written / options.rate + read / options.prm_rate
        total += seconds
        words = f", the PRM reads {read:,}" if read else ""
        show(f"{part.name}: {prompts:,} prompts, {written:,} tokens{words}; {seconds / 60:.0f} min")
    verdict = "within" if total <= 60 * LIMIT_MINUTES else "more than"
    show(
        f"in all {total / 60:.0f} min at {options.rate:.0f} tokens/s of the models and {options.prm_rate:.0f} of the "
        f"PRM, one after the other ({verdict} {LIMIT_MINUTES})"
    )


def tokens_of(options: argparse.Namespace, part: PlannedPart, prompts: int) -> tuple[int, int]:
    """Return the tokens that the model writes, and that the process reward model reads."""
    answer = min(int(options.answer_tokens.get(part.model, 150)), options.max_tokens)
    if part.method == "sample":
        return prompts * answer, 0
    if part.method == "best_of_n":
        return prompts * SAMPLES * answer, prompts * SAMPLES * (PROMPT_TOKENS + answer)
    # each level reads the beginnings of all its candidates again; they have 60% of an answer on average
    beginnings = LEVELS * WIDTH * EXPANSIONS * (PROMPT_TOKENS + round(0.6 * answer))
    return prompts * WIDTH * EXPANSIONS * answer, prompts * beginnings


def parts(options: argparse.Namespace) -> list[PlannedPart]:
    """List the artifacts that are to be made, one model after the other."""
    found = []
    for model in options.models:
        found.append(PlannedPart(model, "sample", recipe_of(options, model, every_prompt(options), {"n": 1})))
        if model in options.searched:
            prm = {"path": options.prm, "serve": True} if options.serve_prm else options.prm
            # scored samples that are all judged, so that the best of 1, 2 and 4 are known
            methods: dict[str, Json] = {
                "best_of_n": {"method": "sample", "n": SAMPLES, "prm": prm},
                "beam": {"method": "beam", "width": WIDTH, "expansions": EXPANSIONS, "prm": prm},
            }
            prompts = searched_prompts(options)
            found += [PlannedPart(model, name, recipe_of(options, model, prompts, m)) for name, m in methods.items()]
    return found


def recipe_of(options: argparse.Namespace, model: str, evaluations: Json, responses: Json) -> Json:
    """Return the recipe of one part."""
    folder = options.models[model]
    actor: Json = {"path": folder}
    if options.base_url:
        actor = {"base_url": options.base_url, "model": model, "tokenizer": folder}
    sampling = {"max_tokens": options.max_tokens, "temperature": options.temperature, "top_p": 1.0}
    return {
        "seed": options.seed,
        "actor": actor | {"max_model_len": options.max_model_len, "concurrency": options.concurrency},
        "responses": responses | sampling,
        "evaluations": evaluations,
    }


def every_prompt(options: argparse.Namespace) -> Json:
    """Return what each model is asked once, with the attacks."""
    helpful = {
        "name": HELPFUL,
        "path": str(options.data / "self_instruct_seed.jsonl"),
        "columns": {"prompt": "question"},
        "task": "helpfulness",
        "score": "refusal",
        "count": scaled(HELPFUL_PROMPTS, options.share),
        "license": "apache-2.0",
    }
    attacked = {"benchmarks": [ATTACKED], "count": scaled(ATTACKED_PROMPTS, options.share)}
    return {
        "benchmarks": [*benchmarks(options, HARMFUL_PROMPTS, XSTEST_PROMPTS), helpful],
        "attacks": {"names": ["none", *options.attacks], **attacked},
    }


def searched_prompts(options: argparse.Namespace) -> Json:
    """Return what is searched: a part of the same prompts, since a sample depends on the prompts and the seed alone."""
    return {"benchmarks": benchmarks(options, SEARCHED_PROMPTS, SEARCHED_PROMPTS)}


def benchmarks(options: argparse.Namespace, harmful: int, xstest: int) -> list[dict[str, Any]]:
    """Return the two benchmarks of refusals, so many prompts of each."""
    files: Sequence[tuple[str, str, int]] = (
        (ATTACKED, "do_not_answer.jsonl", harmful),
        ("xstest", "xstest_prompts.csv", xstest),
    )
    return [
        {"name": name, "path": str(options.data / file), "count": scaled(count, options.share)}
        for name, file, count in files
    ]


def scaled(count: int, share: float) -> int:
    """Return a share of a count, at least two."""
    return max(2, round(count * share))


if __name__ == "__main__":
    main()
