"""Every stage of STAIR in order, resumable: what `stairdata quickstart` runs.

The model is SmolLM2-135M-Instruct. It is far too small to be made safe by this; what the run shows is that every
stage works, and what each leaves behind. Finished stages are skipped by fingerprint, so a run that was killed is
finished by running it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from stairdata.runs.progress import Progress
    from stairdata.stages import FullRecipe
    from stairdata_schemas.artifacts import Artifact

DATA = Path(__file__).parent / "data"
LICENSE = "apache-2.0"  # of the bundled rows
HELD_OUT_FROM = 48  # rows of the bundled prompts from there on are for measuring only


class Sizes(NamedTuple):
    """How large the stages are."""

    cot_rows: int | None
    tree_prompts: int
    iterations: int
    pairs: int
    eval_prompts: int
    candidates: int
    sft_epochs: float
    sft_learning_rate: float


SMALL = Sizes(
    cot_rows=None,
    tree_prompts=16,
    iterations=10,
    pairs=48,
    eval_prompts=24,
    candidates=4,
    sft_epochs=2,
    sft_learning_rate=4e-4,
)
SMOKE = Sizes(
    cot_rows=96,
    tree_prompts=4,
    iterations=6,
    pairs=12,
    eval_prompts=4,
    candidates=2,
    sft_epochs=2,
    sft_learning_rate=5e-4,
)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a pipeline's folder for this process.

    Raises:
        BuildLockedError: another process runs in it.
    """
    from filelock import FileLock, Timeout

    from stairdata_schemas.errors import BuildLockedError

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BuildLockedError(f"another quickstart is running in {folder}; wait for it, or name a --folder") from error
    with lock:
        yield


@dataclass(slots=True)
class Pipeline:
    """One run through all stages."""

    folder: Path
    sizes: Sizes
    teacher: dict[str, str] | None
    progress: Progress

    def run(self) -> dict[str, Any]:
        """Run or skip each stage in order, and write summary.json."""
        models, sizes = self.folder / "models", self.sizes
        stages = [self._base_model(models / "base")]
        prompts, cot = self._prompts(0), self.structured_cot()
        stages += [_stage("prompts", prompts), _stage("structured_cot", cot)]
        stages.append(self._train("sft", cot, models / "base", models / "sft"))
        trees = self._build("trees", [prompts], models / "sft", limit=sizes.tree_prompts)
        pairs = self._build("preference_pairs", [trees])
        stages += [_stage("trees", trees), _stage("preference_pairs", pairs)]
        stages.append(self._train("dpo", pairs, models / "sft", models / "dpo-1"))
        prm_pairs = self._build("prm_pairs", [trees])
        stages.append(_stage("prm_pairs", prm_pairs))
        stages.append(self._train("prm", prm_pairs, models / "dpo-1", models / "prm"))
        held_out = self._prompts(HELD_OUT_FROM)
        stages.append(_stage("prompts (held out)", held_out))
        answers = {
            name: self._build("responses", [held_out], models / name, limit=sizes.eval_prompts, n=n)
            for name, n in (("base", 1), ("sft", 1), ("dpo-1", sizes.candidates))
        }
        stages += [_stage(f"responses ({name})", artifact) for name, artifact in answers.items()]
        summary = {"sizes": sizes._asdict(), "stages": stages, "table": _table(answers, sizes.candidates)}
        from stairdata_schemas.files import write_atomic

        write_atomic(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def _base_model(self, output: Path) -> dict[str, Any]:
        from stairdata_schemas.errors import ModelError
        from stairdata_schemas.rendering import check_model_folder

        started = time.monotonic()
        try:
            check_model_folder(output)
        except ModelError:
            self.progress("fetch SmolLM2-135M-Instruct", 0, 0)
            from stairdata_training.smollm2 import prepare_smollm2

            prepare_smollm2(output)
        return {"stage": "base", "model": str(output), "seconds": round(time.monotonic() - started, 1)}

    def _recipe(self, actor: Path | None = None, **sections: Any) -> FullRecipe:
        from stairdata.stages import FullRecipe

        if actor is not None:
            sections["actor"] = {"path": str(actor), "max_model_len": 1024, "concurrency": 64}
        return FullRecipe.model_validate(sections)

    def _prompts(self, skip: int) -> Artifact:
        source = {"path": str(DATA / "prompts.jsonl"), "skip": skip, "license": LICENSE}
        return self._run_build("prompts", self._recipe(prompts={"sources": [source]}), [])

    def structured_cot(self) -> Artifact:
        path = DATA / "structured_cot.jsonl"
        if self.teacher is None:
            recipe = self._recipe(structured_cot={"path": str(path), "license": LICENSE})
            return self._run_build("structured_cot", recipe, [], self.sizes.cot_rows)
        source = {"path": str(path), "name": "stairdata-bundled", "license": LICENSE}
        prompts = self._run_build("prompts", self._recipe(prompts={"sources": [source]}), [])
        recipe = self._recipe(structured_cot={"teacher": self.teacher})
        return self._run_build("structured_cot", recipe, [prompts], self.sizes.cot_rows)

    def _build(
        self, kind: str, parents: list[Artifact], actor: Path | None = None, limit: int | None = None, n: int = 1
    ) -> Artifact:
        sections: dict[str, Any] = {
            "trees": {
                "trees": {
                    "iterations": self.sizes.iterations,
                    "max_tokens": 128,
                    "rollout_tokens": 256,
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "judge": {"kind": "reference"},
                }
            },
            "preference_pairs": {"preference_pairs": {"min_visits": 1, "min_margin": 0.25}},
            "prm_pairs": {"prm_pairs": {"min_visits": 1, "min_margin": 0.25}},
            "responses": {
                "responses": {
                    "method": "best_of_n" if n > 1 else "sample",
                    "n": n,
                    "prm": str(self.folder / "models" / "prm"),
                    "max_tokens": 256,
                    "temperature": 0.7,
                    "top_p": 1.0,
                }
            },
        }
        return self._run_build(kind, self._recipe(actor, **sections[kind]), parents, limit)

    def _run_build(self, kind: str, recipe: FullRecipe, parents: list[Artifact], limit: int | None = None) -> Artifact:
        from stairdata.runs.options import BuildOptions
        from stairdata.stages import build_kind

        options = BuildOptions(
            root=self.folder / "artifacts",
            inputs=tuple(str(parent.folder.resolve()) for parent in parents),
            limit=limit,
            max_quarantine=0.5,
            progress=self.progress,
        )
        artifact = build_kind(kind, recipe, options)
        assert artifact is not None, "only a batch leaves a build unfinished"
        return artifact

    def _train(self, stage: str, artifact: Artifact, model: Path, output: Path) -> dict[str, Any]:
        from stairdata.stages import train_stage

        section = training_section(stage, self.sizes)
        result = train_stage(stage, self._recipe(None, **{stage: section}), artifact, str(model), output, self.progress)
        return {
            "stage": f"train {stage}",
            "model": str(output),
            "data": artifact.reference,
            "rows": result.rows,
            "tokens": result.tokens,
            "seconds": round(result.seconds, 1),
        }


def training_section(stage: str, sizes: Sizes) -> dict[str, Any]:
    """Return the settings that teach a 135M model the grammar in minutes; no advice for larger ones."""
    sections: dict[str, dict[str, Any]] = {
        "sft": {"epochs": sizes.sft_epochs, "learning_rate": sizes.sft_learning_rate, "batch_size": 8},
        "dpo": {"epochs": 1, "learning_rate": 1e-5, "batch_size": 4, "max_rows": sizes.pairs},
        "prm": {"epochs": 1, "learning_rate": 5e-5, "batch_size": 4, "max_rows": sizes.pairs},
    }
    return {"gradient_accumulation": 1, "gradient_checkpointing": False, "max_length": 1024, **sections[stage]}


def _stage(name: str, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "stage": name,
        "artifact": artifact.reference,
        "folder": str(artifact.folder),
        "rows": manifest.rows,
        "refused": sum(manifest.quarantine.values()),
        "tokens": manifest.usage.completion_tokens,
        "seconds": manifest.seconds,
    }


def _table(answers: dict[str, Artifact], n: int) -> dict[str, dict[str, float | None]]:
    """Measure the answers of each model; the last model's candidates give both a single sample and the best of n."""
    first = {name: _measure(artifact, lambda row: row["candidates"][0]) for name, artifact in answers.items()}
    best = _measure(answers["dpo-1"], lambda row: row["candidates"][row["chosen_index"]])
    return {**first, f"dpo-1, best of {n}": best}


def _measure(artifact: Artifact, pick: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, float | None]:
    from stairdata.search.refusal import is_refusal
    from stairdata_schemas.grammar import is_grammatical

    rows = [(row["task"], pick(row)) for row in artifact.scan().collect().iter_rows(named=True)]
    texts = {task: [answer["text"] for of, answer in rows if of == task] for task in ("safety", "helpfulness")}
    return {
        "answers": float(len(rows)),
        "in the grammar": _mean([is_grammatical(answer["text"]) for _, answer in rows]),
        "refusals, safety prompts": _mean([is_refusal(text) for text in texts["safety"]]),
        "refusals, helpfulness prompts": _mean([is_refusal(text) for text in texts["helpfulness"]]),
        "mean PRM score": _mean([answer["score"] for _, answer in rows]),
        "mean tokens": _mean([answer["tokens"] for _, answer in rows]),
    }


def _mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
