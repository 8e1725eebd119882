"""`stairdata export --to trl|llama-factory|openrlhf|verl|axolotl|stepwise`: one writer over a table of targets.

A folder gets the rows, the trainer's own configuration and a README; a file gets the rows alone. Either appears when
it is whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stairdata.examples.reading import Example, count_whole, read_examples
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.axolotl import AXOLOTL
from stairdata.interop.trainers.llama_factory import LLAMA_FACTORY
from stairdata.interop.trainers.openrlhf import OPENRLHF
from stairdata.interop.trainers.stepwise import STEPWISE, THRESHOLD
from stairdata.interop.trainers.target import Data, Form, Target, UnsayableError
from stairdata.interop.trainers.trl import TRL
from stairdata.interop.trainers.verl import VERL
from stairdata.interop.trainers.writing import WRITERS
from stairdata.runs.progress import Progress, quiet
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError
from stairdata_schemas.files import naming, sync_file, sync_folder
from stairdata_schemas.rendering import load_tokenizer

TARGETS = {target.name: target for target in (TRL, LLAMA_FACTORY, OPENRLHF, VERL, AXOLOTL, STEPWISE)}
_TEMPLATE_TOKENS = 512
_LIMIT_STEP = 1024


class TrainerOptions(NamedTuple):
    """What the command line says about an export."""

    whole_answers: bool = False
    """Leave out rows with half-written answers."""
    allow_eos: bool = False
    """Write them although the trainer ends each with its end token."""
    tokenizer: str | None = None
    """Model folder or Hub id: prompts are rendered in its chat template, and no end token follows half-written ones."""
    threshold: float | None = None
    """Of V, for the labels of steps."""


NO_OPTIONS = TrainerOptions()


@dataclass(slots=True)
class TrainerExport:
    """What was written."""

    rows: int = 0
    not_whole: int = 0
    """Rows left out because an answer in them is half-written."""
    unsayable: int = 0
    """Rows left out because a text in them spells control tokens."""
    longest: int = 0
    """Bytes of a prompt and its longest answer."""

    @property
    def limit(self) -> int:
        """Tokens that hold every row in its template: none stands for less than a byte."""
        return -(-(self.longest + _TEMPLATE_TOKENS) // _LIMIT_STEP) * _LIMIT_STEP

    def left_out(self) -> dict[str, int]:
        """Return how many rows were left out, by the reason."""
        reasons = {"half-written answers": self.not_whole, "control tokens in a text": self.unsayable}
        return {why: count for why, count in reasons.items() if count}


def export_to_trainer(
    artifact: Artifact, path: Path, to: str, options: TrainerOptions = NO_OPTIONS, progress: Progress = quiet
) -> TrainerExport:
    """Write an artifact as a trainer reads it.

    Args:
        artifact: of a kind that the target takes.
        path: a new or empty folder; or a file that ends in .jsonl or .parquet, for the rows alone.
        to: a name in `TARGETS`.
        options: what to do about half-written answers.
        progress: told the rows written.

    Raises:
        UsageError: a kind that the target can't take, a path that can't be written, half-written answers that the
            trainer would end, or nothing left to write. Nothing is written then.
        ModelError: the tokenizer can't be loaded.
    """
    target = TARGETS[to]
    suffix = _check_path(path, target)
    form = _form(artifact, target, options)
    export = TrainerExport()
    with naming(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        work = Path(temporary) / "export"
        work.mkdir()
        data = work / f"data{suffix}"
        WRITERS[suffix](data, _rows(artifact, form, options, export, progress))
        if not export.rows:
            raise UsageError(f"{artifact.reference} has no row that {target.title} can take; nothing was written")
        if path.suffix in WRITERS:
            sync_file(data)
            data.replace(path)
        else:
            _write_rest(work, artifact, target, form, export, Data(data.name, export.limit))
            work.replace(path)
        sync_folder(path.parent)
    if options.whole_answers:
        export.not_whole = artifact.manifest.rows - export.rows - export.unsayable
    return export


def _check_path(path: Path, target: Target) -> str:
    """Return the ending of the file of rows."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another place")
    if path.suffix in target.suffixes:
        return path.suffix
    if path.suffix in {*WRITERS, ".json", ".csv"}:
        raise UsageError(f"{target.title} is given {' or '.join(target.suffixes)}, not {path.suffix}, or a folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} holds something already; name a new folder")
    return target.suffixes[0]


def _form(artifact: Artifact, target: Target, options: TrainerOptions) -> Form:
    """Choose the form.

    Raises:
        UsageError: the target takes no such kind, or would end half-written answers; options that contradict.
    """
    kind = artifact.kind
    if kind not in target.forms:
        raise UsageError(f"{target.title} can't take {kind}; --to {target.name} takes {', '.join(target.forms)}")
    if options.tokenizer is None:
        form = target.forms[kind]
    elif kind in target.continued:
        form = target.continued[kind](load_tokenizer(options.tokenizer))
    else:
        raise UsageError(f"{target.title} renders {kind} itself; leave out --tokenizer")
    if form.read is None and options.threshold is not None:
        raise UsageError(f"{target.title} takes no labels of steps; leave out --threshold")
    if form.read is not None and options.whole_answers:
        raise UsageError(f"--to {target.name} labels each step of an answer; leave out --whole-answers")
    if options.allow_eos and (options.whole_answers or not form.ends_every_text):
        raise UsageError("no half-written answer would be given an end token; leave out --allow-eos")
    if form.ends_every_text and not options.allow_eos:
        _check_ends(artifact, target, options)
    return form


def _check_ends(artifact: Artifact, target: Target, options: TrainerOptions) -> None:
    rows, whole = artifact.manifest.rows, count_whole(artifact)
    if whole == rows or (options.whole_answers and whole):
        return
    if options.whole_answers:
        raise UsageError(f"{artifact.reference} has no row of whole answers alone; nothing was written")
    harm = (
        "a reward model would learn to look for an end that no half-written answer has"
        if artifact.kind == "prm_pairs"
        else "a model would learn to stop after each step"
    )
    able = [name for name, each in TARGETS.items() if artifact.kind in each.continued]
    other = "" if target.name in able else f"--to {able[0]} "
    keeps = f"--whole-answers keeps the {whole} other rows; " if whole else ""
    raise UsageError(
        f"{artifact.reference}: {rows - whole} of {rows} rows hold half-written answers, and {target.title} puts an "
        f"end token behind every text: {harm}. {keeps}{other}--tokenizer MODEL writes all without that; "
        "--allow-eos writes all as they are, on your own responsibility"
    )


def _rows(
    artifact: Artifact, form: Form, options: TrainerOptions, export: TrainerExport, progress: Progress
) -> Iterator[Row]:
    for example in _examples(artifact, form, options):
        try:
            row = form.row(example)
        except UnsayableError:
            export.unsayable += 1
            continue
        longest = max(len(text.encode()) for text in example.texts)
        export.longest = max(export.longest, len(example.prompt.encode()) + longest)
        export.rows += 1
        progress(f"export {artifact.kind}", export.rows, 0)
        yield row


def _examples(artifact: Artifact, form: Form, options: TrainerOptions) -> Iterator[Example]:
    if form.read is not None:
        return form.read(artifact, THRESHOLD if options.threshold is None else options.threshold)
    return read_examples(artifact, whole_only=options.whole_answers)


def _write_rest(work: Path, artifact: Artifact, target: Target, form: Form, export: TrainerExport, data: Data) -> None:
    files = form.files(data) | {"README.md": _readme(artifact, target, form, export, data)}
    for name, text in files.items():
        (work / name).write_text(text, encoding="utf-8", newline="\n")
    for file in work.iterdir():
        sync_file(file)
    sync_folder(work)


def _readme(artifact: Artifact, target: Target, form: Form, export: TrainerExport, data: Data) -> str:
    """Return ten lines."""
    lines = [
        f"# {artifact.reference} for {target.title}",
        "",
        f"{export.rows} rows in {data.file} ({form.columns}). Format: {target.url}",
        "",
        f"In this folder, after writing your model's folder or Hub id in place of {settings.MODEL}:",
        "",
        f"    {form.command}",
        "",
        form.ends,
        f"No row is longer than {data.limit} tokens; a lower limit in the configuration cuts or drops rows.",
    ]
    return "\n".join(lines) + "\n"
