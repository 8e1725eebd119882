"""`stairdata import --from trl|messages`: sets that others have, as prompts, structured reasoning or pairs.

- messages: rows of `messages`, each with `role` and `content`; a user's turn and an assistant's.
- trl: these, and rows of `prompt` with `completion`, or with `chosen` and `rejected`, as plain texts or as lists of
  messages, with the prompt apart or in front of both sides (https://huggingface.co/docs/trl/dataset_formats).

An artifact's row holds one turn of the user and one answer, so a conversation of another shape ends the import. Other
rows that can't be taken are kept in quarantine, by the rule that they break.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.prompts.files import BrokenRow, read_rows
from stairdata.interop.imported_files import frames_of, hash_files
from stairdata.interop.thu_ml import BrokenError, is_storable
from stairdata.recipe.section import Task
from stairdata.runs.options import BuildOptions
from stairdata_schemas import grammar, identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import GrammarError, InputError, UsageError, quote
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.quarantine import QuarantineRow
from stairdata_schemas.text.visible import is_blank

KINDS = {
    "trl": ("prompts", "structured_cot", "preference_pairs", "prm_pairs"),
    "messages": ("prompts", "structured_cot"),
}
ROWS_AT_ONCE = 4096
_READ = {"messages", "prompt", "completion", "chosen", "rejected", "task"}
_PAIRS_NOTE = (
    "pairs of whole answers of another set, which says only which is better: chosen_value is 1, rejected_value 0, and "
    "nothing was visited"
)


class Said(NamedTuple):
    """A user's turn and what is said to it."""

    prompt: str
    answer: str | None
    """The answer, or the better one of two."""
    rejected: str | None


class SeveralTurnsError(Exception):
    """A conversation that is not one turn of the user and one answer."""


def import_conversations(
    source: str, kind: str, paths: Sequence[Path], options: BuildOptions, task: Task | None = None
) -> Artifact:
    """Import files of conversations into one artifact.

    Args:
        source: trl or messages.
        kind: of the artifact.
        paths: JSON Lines, JSON, CSV or parquet, in the order their rows are to have.
        options: where to build.
        task: of rows that don't say theirs.

    Raises:
        UsageError: a kind that can't be imported from there.
        InputError: a file that can't be read, a conversation of several turns, or a task that nothing says; nothing is
            written then.
        QuarantineError: too many rows were refused.
    """
    if kind not in KINDS[source]:
        raise UsageError(f"can't import {kind!r} from {source}; --kind is one of {', '.join(KINDS[source])}")
    configuration = {"from": source, "kind": kind, "files": [path.name for path in paths], "task": task}
    plan = BuildPlan(kind, f"import_{source}/1", configuration, inputs=hash_files(paths))

    def content(_: Build) -> BuildContent:
        importer = _Importer(source, kind, task)
        frames = frames_of(importer.rows(paths, options), kind, ROWS_AT_ONCE)
        return BuildContent(frames, importer.refused, importer.report)

    return build_artifact(
        plan, content, options.root, options.version, fresh=options.fresh, max_quarantine=options.max_quarantine
    )


class _Importer:
    """Makes rows of one kind, and notes what is not taken over."""

    def __init__(self, source: str, kind: str, task: Task | None) -> None:
        self._source = source
        self._kind = kind
        self._task = task
        self._seen: set[bytes] = set()
        self._of_prompt: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()
        self.refused: list[QuarantineRow] = []
        note = _PAIRS_NOTE if kind.endswith("pairs") else f"imported from a set in the form {source}"
        self.report = Report(notes=[note])

    def rows(self, paths: Sequence[Path], options: BuildOptions) -> Iterator[Row]:
        """Yield the rows; what is refused, and fields that are not taken over, are known behind the last."""
        done = 0
        for path in paths:
            for number, raw in enumerate(read_rows(path), start=1):
                try:
                    yield self._row(raw, path)
                except BrokenError as error:
                    text = raw.raw if isinstance(raw, BrokenRow) else json.dumps(raw, ensure_ascii=False, default=str)
                    self.refused.append(QuarantineRow(path.name, number, error.rule, text, error.field))
                except (SeveralTurnsError, InputError) as error:
                    raise InputError(f"{path}, row {number}: {error}; nothing was written") from error
                done += 1
                options.progress(f"import {path.name}", done, 0)
        lost = {f"field {quote(name)} (rows)": count for name, count in sorted(self._fields.items())}
        self.report.details["not_taken_over"] = lost

    def _row(self, raw: Row | BrokenRow, path: Path) -> Row:
        if isinstance(raw, BrokenRow):
            raise BrokenError(raw.rule)
        said = _said(raw) if self._source == "trl" and "messages" not in raw else _of_messages(raw.get("messages"))
        for name, text in said._asdict().items():
            if text is not None and not is_storable(text):
                raise BrokenError("not_unicode", name)
        if is_blank(said.prompt):
            raise BrokenError("blank", "prompt")
        task = raw["task"] if raw.get("task") in TASKS else self._task
        prompt_id = identity.prompt_id(said.prompt)
        row = {"prompt_id": prompt_id, "prompt": said.prompt, "task": task} | self._rest(said, prompt_id, path)
        if task is None and not self._kind.endswith("pairs"):
            raise InputError("nothing says its task; add --task safety or --task helpfulness")
        self._fields.update(raw.keys() - _READ)
        return row

    def _rest(self, said: Said, prompt_id: str, path: Path) -> Row:
        if self._kind == "prompts":
            self._only_once(prompt_id, "duplicate_prompt")
            return {"source": path.name, "reference_answer": said.answer}
        answer = said.answer
        if answer is None or is_blank(answer):
            raise BrokenError("blank" if answer is not None else "missing_value", "answer")
        if self._kind == "structured_cot":
            self._only_once(f"{prompt_id} {answer}", "duplicate_answer")
            return _structured(answer)
        if said.rejected is None or is_blank(said.rejected):
            raise BrokenError("blank" if said.rejected is not None else "missing_value", "rejected")
        if answer == said.rejected:
            raise BrokenError("equal_sides", "rejected")
        ordinal = self._of_prompt[prompt_id]
        self._of_prompt[prompt_id] += 1
        return _pair(prompt_id, ordinal, answer, said.rejected)

    def _only_once(self, key: str, rule: str) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        if digest in self._seen:
            raise BrokenError(rule)
        self._seen.add(digest)


def _structured(answer: str) -> Row:
    try:
        parsed = grammar.parse(answer)
    except GrammarError as error:
        raise BrokenError(f"grammar_{error.rule}", "answer") from error
    steps = [{"title": step.title, "body": step.body} for step in parsed.steps]
    return {"steps": steps, "output": parsed.output, "completion": answer}


def _pair(prompt_id: str, ordinal: int, chosen: str, rejected: str) -> Row:
    """Make a pair out of a tree that nobody grew: two whole answers below the prompt."""
    tree_id = identity.tree_id(prompt_id, 0, ordinal)
    return {
        "pair_id": identity.pair_id(tree_id, 1, 2, "trajectory"),
        "tree_id": tree_id,
        "chosen": chosen,
        "rejected": rejected,
        "prefix_length": 0,
        "depth": 1,
        "chosen_value": 1.0,
        "rejected_value": 0.0,
        "margin": 1.0,
        "chosen_visits": 0,
        "rejected_visits": 0,
        "chosen_is_terminal": True,
        "rejected_is_terminal": True,
        "chosen_node_id": 1,
        "rejected_node_id": 2,
        "granularity": "trajectory",
    }


def _of_messages(messages: Any) -> Said:
    if messages is None:
        raise BrokenError("missing_value", "messages")
    prompt, answer = _turns(messages, ("user", "assistant"), "messages", optional=1)
    return Said(prompt, answer, None)


def _said(raw: Row) -> Said:
    """Read a row of TRL's: the prompt apart, or in front of both sides."""
    answer = raw.get("completion") if raw.get("completion") is not None else raw.get("chosen")
    rejected = raw.get("rejected")
    if raw.get("prompt") is not None:
        (prompt,) = _turns(raw["prompt"], ("user",), "prompt")
        return Said(prompt, _answer(answer, "answer"), _answer(rejected, "rejected"))
    if isinstance(answer, str) or isinstance(rejected, str) or answer is None:
        raise BrokenError("missing_value", "prompt")
    prompt, chosen = _turns(answer, ("user", "assistant"), "chosen")
    if rejected is None:
        return Said(prompt, chosen, None)
    other, worse = _turns(rejected, ("user", "assistant"), "rejected")
    if other != prompt:
        raise BrokenError("different_prompts", "rejected")
    return Said(prompt, chosen, worse)


def _answer(value: Any, name: str) -> str | None:
    return None if value is None else _turns(value, ("assistant",), name)[0]


def _turns(value: Any, roles: tuple[str, ...], name: str, optional: int = 0) -> list[str]:
    """Return the texts of a list of messages of these roles, or a plain text that stands for one.

    Args:
        value: out of the row.
        roles: who speaks, in order.
        name: of the field.
        optional: how many of the last may be missing; their texts are None.

    Raises:
        SeveralTurnsError: others speak, or they speak more often.
        BrokenError: it is no such list.
    """
    if isinstance(value, str) and len(roles) == 1:
        return [value]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise BrokenError("wrong_type", name)
    found = [message.get("role") for message in value]
    if found not in [list(roles[: len(roles) - missing]) for missing in range(optional + 1)]:
        raise SeveralTurnsError(
            f"{name} holds the turns {quote(', '.join(map(str, found)))}, and a row of an artifact holds one turn of "
            "the user and one answer; leave such conversations out"
        )
    contents = [message.get("content") for message in value]
    if not all(isinstance(content, str) for content in contents):
        raise BrokenError("wrong_type", f"{name}.content")
    return contents + [None] * (len(roles) - len(contents))
