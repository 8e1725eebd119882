"""`stairdata import`: files of the published code as artifacts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.generators.prompts.known_datasets import published_prompt
from stairdata.hub.pull import open_reference
from stairdata.interop import thu_ml
from stairdata.interop.imported_files import frames_of, hash_files
from stairdata.interop.thu_ml import BrokenError, Losses
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import UsageError
from stairdata_schemas.formats.json_list import Duplicates, read_list
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.manifest import Parent
from stairdata_schemas.quarantine import QuarantineRow
from stairdata_schemas.text.visible import is_blank

GENERATORS = {"trees": "import_thu_ml_trees/1", "prompts": "import_thu_ml_prompts/1"}
TREES_AT_ONCE = 32
PROMPTS_AT_ONCE = 4096
_PROMPT_FIELDS = {"question", "type", "ground_truth", "prompt", "source"}


def import_thu_ml(kind: str, paths: Sequence[Path], options: BuildOptions, prompts: str | None = None) -> Artifact:
    """Import files of the published code into one artifact.

    Args:
        kind: trees or prompts.
        paths: the files, in the order their rows are to have.
        options: where to build.
        prompts: reference of the prompts the trees were grown from: they say the trees' tasks, which tree files don't.

    Raises:
        UsageError: a kind that can't be imported.
        InputError: a file that is cut or broken (with the byte position); nothing is written then.
        QuarantineError: too many elements were refused.
    """
    if kind not in GENERATORS:
        raise UsageError(f"can't import {kind!r} from thu-ml; --kind is one of {', '.join(GENERATORS)}")
    parent = open_reference(prompts, options.root) if prompts is not None else None
    plan = _plan(kind, paths, [parent.as_parent()] if parent else [])

    def content(_: Build) -> BuildContent:
        importer = _TreeImporter(_tasks(parent)) if kind == "trees" else _PromptImporter()
        refused: list[QuarantineRow] = []
        rows = _rows(paths, importer.row, refused, options)
        frames = importer.watched(frames_of(rows, kind, importer.rows_at_once))
        return BuildContent(frames, refused, Report(notes=importer.notes, details=importer.details))

    return build_artifact(
        plan, content, options.root, options.version, fresh=options.fresh, max_quarantine=options.max_quarantine
    )


def _plan(kind: str, paths: Sequence[Path], parents: list[Parent]) -> BuildPlan:
    configuration = {"from": "thu-ml", "kind": kind, "files": [path.name for path in paths]}
    return BuildPlan(kind, GENERATORS[kind], configuration, parents=parents, inputs=hash_files(paths))


def _tasks(prompts: Artifact | None) -> dict[str, str]:
    if prompts is None:
        return {}
    if prompts.kind != "prompts":
        raise UsageError(f"--prompts has to name an artifact of kind prompts, not {prompts.reference}")
    return dict(prompts.scan().select("prompt_id", "task").collect().iter_rows())


def _rows(
    paths: Sequence[Path], make: Callable[[Any], Row], refused: list[QuarantineRow], options: BuildOptions
) -> Iterator[Row]:
    done = 0
    for path in paths:
        for number, element in enumerate(read_list(path), start=1):
            try:
                row = make(element)
            except BrokenError as error:
                refused.append(QuarantineRow(path.name, number, error.rule, _raw(element), error.field))
            else:
                yield row
            done += 1
            options.progress(f"import {path.name}", done, 0)


def _raw(element: Any) -> str:
    return json.dumps(element, ensure_ascii=False)


class _TreeImporter:
    """Makes rows of trees, and notes what they can't hold."""

    rows_at_once = TREES_AT_ONCE

    def __init__(self, tasks: dict[str, str]) -> None:
        self._tasks = tasks
        self._losses = Losses()
        self._endings: Counter[tuple[bool, str]] = Counter()
        self._ordinals: Counter[str] = Counter()
        self.details: dict[str, Any] = {}
        self.notes = ["imported from the published code's JSON; it says no tokens, rollouts, tasks or seeds of trees"]

    def row(self, element: Any) -> Row:
        """Make a row of one tree; its id counts the trees of its prompt."""
        prompt = thu_ml.prompt_of(element)
        if not thu_ml.is_storable(prompt):
            raise BrokenError("not_unicode", "0.prompt")
        nodes = thu_ml.nodes_of(element, self._losses, self._endings)
        prompt_id = identity.prompt_id(prompt)
        ordinal = self._ordinals[prompt_id]
        self._ordinals[prompt_id] += 1
        return {
            "tree_id": identity.tree_id(prompt_id, 0, ordinal),
            "prompt_id": prompt_id,
            "prompt": prompt,
            "task": self._tasks.get(prompt_id),
            "nodes": nodes,
        }

    def watched(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Pass the frames on, and sum up behind the last."""
        yield from frames
        usual: dict[str, str] = {}
        for closed in (True, False):
            texts = {text: count for (is_closed, text), count in self._endings.items() if is_closed == closed}
            if texts:
                name = "closed" if closed else "open"
                usual[name] = max(texts, key=lambda text: texts[text])
                self._losses["end-of-turn text other than the usual one (steps)"] += (
                    sum(texts.values()) - texts[usual[name]]
                )
        self.details["end_of_turn"] = usual
        self.details["not_taken_over"] = {what: count for what, count in sorted(self._losses.items()) if count}


class _PromptImporter:
    """Makes rows of prompts, and notes what they can't hold."""

    rows_at_once = PROMPTS_AT_ONCE

    def __init__(self) -> None:
        self._losses = Losses()
        self._seen: set[str] = set()
        self.details: dict[str, Any] = {}
        self.notes = ["imported from the published code's JSON"]

    def row(self, element: Any) -> Row:
        """Make a row of one prompt."""
        prompt, task = self._checked(element)
        mapped = published_prompt(element)
        answer, category = mapped["reference_answer"], mapped["category"]
        if answer is not None and not isinstance(answer, str):
            self._losses["ground_truth that is not text (prompts)"] += 1
            answer = None
        for field in element.keys() - _PROMPT_FIELDS:
            self._losses[f"field {field[:40]!r} (prompts)"] += 1
        prompt_id = identity.prompt_id(prompt)
        if not thu_ml.is_storable(prompt, answer or ""):
            raise BrokenError("not_unicode", "question")
        if prompt_id in self._seen:
            raise BrokenError("duplicate_prompt", "question")
        self._seen.add(prompt_id)
        return {
            "prompt_id": prompt_id,
            "prompt": prompt,
            "task": task,
            "source": "thu-ml",
            "category": category if isinstance(category, str) and thu_ml.is_storable(category) else None,
            "reference_answer": answer,
        }

    @staticmethod
    def _checked(element: Any) -> tuple[str, str]:
        if isinstance(element, Duplicates):
            raise BrokenError("duplicate_field", element.key)
        if not isinstance(element, dict):
            raise BrokenError("not_an_object")
        mapped = published_prompt(element)
        prompt, task = mapped["prompt"], mapped["task"]
        if prompt is None or task is None:
            raise BrokenError("missing_value", "question" if prompt is None else "type")
        if not isinstance(prompt, str):
            raise BrokenError("wrong_type", "question")
        if is_blank(prompt):
            raise BrokenError("blank", "question")
        if task not in TASKS:
            raise BrokenError("unknown_task", "type")
        return prompt, task

    def watched(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Pass the frames on, and sum up behind the last."""
        yield from frames
        self.details["not_taken_over"] = dict(sorted(self._losses.items()))
