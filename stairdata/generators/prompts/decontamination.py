"""Evaluation prompts that must not be in the data: where they are, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.prompts.files import BrokenRow, files_of
from stairdata.generators.prompts.known_datasets import known_source
from stairdata.generators.prompts.mapping import MISSING, PinnedSource, is_wanted, pin, raw_rows, value_at
from stairdata.generators.prompts.near_duplicates import Contamination
from stairdata.hub.pull import open_reference
from stairdata.recipe import ContaminationSection, PromptSource
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import InputError, StairDataError, quote
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import sha256_of_file, sha256_of_json
from stairdata_schemas.text.visible import is_blank

USUAL_NAMES = ("prompt", "question", "instruction", "goal", "behavior", "forbidden_prompt", "query", "text", "input")
_FILE_ENDINGS = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".xz", ".zst"}


class EvaluationSet(NamedTuple):
    """One set of evaluation prompts."""

    name: str
    sha256: str
    """Of the file, of a folder's files, or the artifact's content hash; of a Hub dataset its commit."""
    place: Artifact | PinnedSource
    read_as: dict[str, Any]
    """How a source of the recipe is read, where not in the usual way."""


def evaluation_sets(given: list[str | PromptSource], root: Path) -> list[EvaluationSet]:
    """Find what a recipe and --decontaminate name.

    Raises:
        InputError: a file that is not there or can't be read, or an artifact without prompts.
        StairDataError: a reference that leads nowhere.
    """
    return [_evaluation_set(each, root) for each in given]


def _evaluation_set(given: str | PromptSource, root: Path) -> EvaluationSet:
    if isinstance(given, str):
        path = Path(given).expanduser()
        looks_like_a_file = path.suffix.lower() in _FILE_ENDINGS or path.is_file()
        if not looks_like_a_file:
            return _artifact(given, path, root)
        given = PromptSource(path=path)
    pinned, read_as = pin(given), _reading(given)
    if given.path is None:
        return EvaluationSet(str(given.hub), str(pinned.source.revision), pinned, read_as)
    return EvaluationSet(given.path.name, files_hash(given.path.expanduser(), pinned), pinned, read_as)


def _reading(source: PromptSource) -> dict[str, Any]:
    """Return the settings of a source that are not the usual ones.

    Fingerprints lacked them at first, so those of sources with the usual settings stay what they are. A column that is
    mapped to its own name counts as none, unless it keeps a known dataset from being read in its own way.
    """
    is_known = source.like is not None or known_source(source.hub) is not None
    columns = {ours: theirs for ours, theirs in source.columns.items() if is_known or ours != theirs}
    usual = counted_settings(PromptSource(path=source.path, hub=source.hub))
    settings = counted_settings(source.model_copy(update={"columns": columns}))
    return {name: value for name, value in settings.items() if name not in usual or value != usual[name]}


def _artifact(reference: str, path: Path, root: Path) -> EvaluationSet:
    try:
        artifact = open_reference(reference, root)
    except StairDataError:
        if path.is_dir():
            return _evaluation_set(PromptSource(path=path), root)
        raise
    if "prompt" not in artifact.scan().collect_schema().names():
        raise InputError(f"--decontaminate {reference}: {artifact.reference} has no column 'prompt'")
    return EvaluationSet(artifact.reference, artifact.manifest.content_hash, artifact, {})


def files_hash(path: Path, pinned: PinnedSource) -> str:
    """Hash the file that a path means, or all files of a folder with their names.

    Raises:
        InputError: one can't be read.
    """
    try:
        if not path.is_dir():
            return sha256_of_file(*files_of(path))
        files = files_of(path, pinned.known.files if pinned.known else ())
        return sha256_of_json([[file.relative_to(path).as_posix(), sha256_of_file(file)] for file in files])
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error


def read_contamination(sets: list[EvaluationSet], section: ContaminationSection) -> Contamination | None:
    """Read all sets; None if there are none.

    Raises:
        InputError: a set without prompts, or with rows that have none.
    """
    if not sets:
        return None
    contamination = Contamination(section)
    for each in sets:
        for label, prompt in _prompts_of(each):
            contamination.add(label, prompt)
    return contamination


def _prompts_of(evaluation: EvaluationSet) -> Iterator[tuple[str, str]]:
    if isinstance(evaluation.place, Artifact):
        prompts = evaluation.place.scan().select("prompt").collect()["prompt"]
        yield from ((f"{evaluation.name} row {number}", prompt) for number, prompt in enumerate(prompts, start=1))
        return
    column = None
    chosen = PromptSource(path=Path(), where=evaluation.read_as.get("where", {}))  # a known dataset's own is not meant
    for place, number, raw in raw_rows(evaluation.place):
        where = f"{place} row {number}"
        if isinstance(raw, BrokenRow):
            raise InputError(
                f"{where} can't be read ({raw.detail or raw.rule}): {quote(raw.raw)}; fix it or leave it out"
            )
        if not is_wanted(raw, chosen):
            continue
        column = column or _column(raw, evaluation.place, place)
        mapped = evaluation.place.known.mapped(raw) if evaluation.place.known else {}
        prompt = mapped.get("prompt") if mapped else value_at(raw, column)
        if not isinstance(prompt, str) or is_blank(prompt):
            shown = "nothing" if prompt is MISSING else quote(prompt)
            raise InputError(f"{where} has no text in its column {column!r}, found {shown}; fix or leave out the row")
        yield f"{Path(place).name} row {number}", prompt
    if column is None:
        where = f" where {chosen.where}; check the names and values of `where:`" if chosen.where else ""
        raise InputError(f"{evaluation.name} has no evaluation prompts{where}")


def _column(raw: Row, pinned: PinnedSource, place: str) -> str:
    """Return the column that holds the prompts: the one named, or one of the usual names."""
    named = pinned.source.columns.get("prompt")
    if named is not None or pinned.known is not None:
        return named or "prompt"
    lower = {str(name).lower(): str(name) for name in raw}
    found = next((lower[name] for name in USUAL_NAMES if name in lower), None)
    if found is None:
        raise InputError(
            f"{place} has no column of evaluation prompts with a known name ({', '.join(USUAL_NAMES)}); its "
            f"columns are {', '.join(map(str, raw))}: name one in the recipe, "
            f"`prompts.decontaminate: [{{path: {place}, columns: {{prompt: NAME}}}}]`"
        )
    return found
