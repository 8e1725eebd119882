"""Reading artifacts: references, opening, listing, scanning, validating."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from stairdata_schemas import grammar, identity
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, GrammarError, UsageError, nearest, quote
from stairdata_schemas.formats.limits import TooLargeError
from stairdata_schemas.formats.parquet import DamagedError, check_artifact_files, iterate_batches
from stairdata_schemas.formats.repeated_rows import repeated_keys
from stairdata_schemas.kinds import KINDS, LATER_COLUMNS, SCHEMA_VERSION, kind_name, polars_schema, row_schema
from stairdata_schemas.manifest import (
    MANIFEST_NAME,
    SHARD,
    FileEntry,
    Manifest,
    Parent,
    content_hash,
    read_manifest,
    read_origin,
    sha256_of_file,
)

READERS = 2
"""Files read at once; more would take more memory than time is won."""
_NUMBER = r"(0|[1-9]\d{0,99})"  # Python reads no number of 5,000 digits
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}", re.ASCII)
_DATA_FILE = re.compile(r"data/train-\d{5}-of-\d{5}\.parquet", re.ASCII)


class Version(NamedTuple):
    """A semantic version: MAJOR is the schema's version, MINOR new content, PATCH card or metadata."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact on disk."""

    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def reference(self) -> str:
        return f"{self.manifest.kind}@{self.manifest.version}"

    @property
    def data_files(self) -> list[Path]:
        return [self.folder / entry.path for entry in self.manifest.files]

    def scan(self) -> pl.LazyFrame:
        """Return the rows as a polars LazyFrame, columns in the schema's order.

        A column that came later and that older files lack is null.

        Raises:
            TooLargeError: a file would decode to more than a limit allows.
        """
        check_artifact_files(self.data_files)
        return scan_files(self.data_files, schema=polars_schema(self.kind), missing_columns="insert")

    def dataset(self) -> Any:
        """Return the rows as a memory-mapped `datasets.Dataset`.

        Raises:
            TooLargeError: a file would decode to more than a limit allows.
            ArtifactError: a folder has `::` in its name, which `datasets` takes for an archive and a file in it.
        """
        from datasets import load_dataset

        if "::" in str(self.folder.absolute()):
            raise ArtifactError(f"{self.folder}: datasets can't read a folder with '::' in its path; rename or move it")

        check_artifact_files(self.data_files)
        files = [glob.escape(str(path.absolute())) for path in self.data_files]  # it takes names for patterns
        return load_dataset("parquet", data_files={"train": files}, split="train")

    def as_parent(self) -> Parent:
        """Return the entry that a child's manifest keeps of this artifact."""
        origin = read_origin(self.folder)
        return Parent(
            kind=self.kind,
            version=self.manifest.version,
            content_hash=self.manifest.content_hash,
            repo=origin.repo if origin else None,
            commit=origin.commit if origin else None,
            license=self.manifest.license,
        )


def parse_version(text: str) -> Version:
    """Read `X.Y.Z`.

    Raises:
        UsageError: anything else.
    """
    match = _VERSION.fullmatch(text)
    if match is None:
        raise UsageError(f"{quote(text)} is not a version; write three numbers, such as 1.0.0")
    return Version(*(int(part) for part in match.groups()))


def open_artifact(folder: Path) -> Artifact:
    """Open an artifact; its data files have to be there, their content is checked by `validate_artifact`.

    Raises:
        ArtifactError: incomplete, damaged, of an unknown kind or schema version, or with paths that leave it.
    """
    manifest = read_manifest(folder)
    if manifest.kind not in KINDS:
        raise ArtifactError(f"{folder / MANIFEST_NAME}: unknown kind {quote(manifest.kind)}")
    if manifest.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder} has schema version {manifest.schema_version}; this release reads version {SCHEMA_VERSION}"
        )
    if not manifest.files:
        raise ArtifactError(f"{folder / MANIFEST_NAME} lists no data file; build or pull the artifact again")
    for entry in manifest.files:
        _check_entry(folder, entry)
    return Artifact(folder, manifest)


def _check_entry(folder: Path, entry: FileEntry) -> None:
    if not _DATA_FILE.fullmatch(entry.path):
        raise ArtifactError(f"{folder / MANIFEST_NAME}: {quote(entry.path)} is not a valid path of a data file")
    path = folder / entry.path
    if not path.is_file():
        raise ArtifactError(f"{path} is missing although the manifest lists it; build or pull the artifact again")
    if path.stat().st_size != entry.bytes:
        raise ArtifactError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
            "the file was changed or cut; build or pull the artifact again"
        )


def resolve(reference: str, root: Path) -> Artifact:
    """Open what a reference names.

    A reference is a path (it starts with `/`, `./` or `../`, or is a folder with a manifest), or
    `KIND[@X.Y.Z]` under `root`, the newest version if none is given.

    Raises:
        ArtifactNotFoundError: nothing there.
        ArtifactError: what is there is incomplete or damaged.
    """
    if reference.startswith(("/", "./", "../")) or (Path(reference) / MANIFEST_NAME).is_file():
        if not Path(reference).is_dir():
            raise ArtifactNotFoundError(f"no artifact folder at {quote(reference)}")
        return open_artifact(Path(reference))
    name, _, version = reference.partition("@")
    if name.replace("-", "_") not in KINDS:
        raise ArtifactNotFoundError(
            f"{quote(reference)} names no artifact; {_meant(name)}write a folder (./path), or KIND or KIND@X.Y.Z with "
            f"KIND one of {', '.join(KINDS)}; a plain Hub dataset can be a source of `build prompts`"
        )
    kind = kind_name(name)
    if version:
        return _open_version(root, kind, parse_version(version))
    return newest(root, kind)


def _meant(name: str) -> str:
    close = nearest(name.replace("-", "_"), KINDS)
    return f"did you mean {close!r}? Else " if close else ""


def _open_version(root: Path, kind: str, version: Version) -> Artifact:
    folder = root / kind / str(version)
    if not folder.is_dir():
        known = ", ".join(str(version) for version in versions(root, kind)) or "none"
        raise ArtifactNotFoundError(f"no {kind}@{version} under {root}; versions there: {known}")
    return open_artifact(folder)


def newest(root: Path, kind: str) -> Artifact:
    """Open the newest complete version of a kind that is not a shard of a build.

    Raises:
        ArtifactNotFoundError: there is none.
    """
    for version in reversed(versions(root, kind)):
        folder = root / kind / str(version)
        if (folder / MANIFEST_NAME).is_file() and SHARD not in (found := open_artifact(folder)).manifest.details:
            return found
    command = "review pull" if kind == "reviews" else f"build {kind.replace('_', '-')}"
    raise ArtifactNotFoundError(
        f"no complete {kind} under {root}; make one with `stairdata {command}`, or name another --root or --input"
    )


def versions(root: Path, kind: str) -> list[Version]:
    """List the version folders of a kind, complete or not, oldest first."""
    folder = root / kind
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name)]
    return sorted(parse_version(name) for name in names)


def list_folders(root: Path) -> Iterator[tuple[str, Version, Path]]:
    """Yield (kind, version, folder) of everything under a root, complete or not."""
    for kind in KINDS:
        for version in versions(root, kind):
            yield kind, version, root / kind / str(version)


class Problem(NamedTuple):
    """Something that `validate_artifact` found."""

    where: str
    rule: str
    violations: int
    example: str


RowVisitor = Callable[[FileEntry, int, pl.DataFrame], None]
"""Told of each piece of rows that is read: its file, the number of its first row, the rows."""


def validate_artifact(artifact: Artifact, visit: RowVisitor | None = None, *, rows: bool = True) -> list[Problem]:
    """Check an artifact against its manifest and its schema; an empty list means that all holds.

    Checked are: sha256 and row count of each file, files that the manifest doesn't know, the column names and
    types, every rule of the schema, keys across files, prompt ids, for prompts whose twins they are, and for
    structured_cot the grammar.

    Args:
        artifact: what to check.
        visit: sees every row on the way, from several threads; reading them is most of the time.
        rows: read the rows; without, only the files themselves are compared with the manifest.
    """
    files = artifact.manifest.files
    with ThreadPoolExecutor(min(READERS, len(files) or 1, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda entry: validate_file(artifact, entry, visit, rows=rows), files))
    whole = validate_whole(artifact, sound=rows and not any(found))
    return [*_unknown_files(artifact), *chain.from_iterable(found), *whole]


def validate_whole(artifact: Artifact, *, sound: bool = True) -> list[Problem]:
    """Check what no single file can show: keys across files, whose twins prompts are, and the manifest's own sums.

    Args:
        artifact: what to check.
        sound: each file was read, and holds by itself; otherwise keys are not looked at.
    """
    problems = [*_duplicate_keys(artifact), *_twins_of_nobody(artifact)] if sound else []
    total = sum(entry.rows for entry in artifact.manifest.files)
    if total != artifact.manifest.rows:
        problems.append(Problem(MANIFEST_NAME, "rows", 1, f"{artifact.manifest.rows} rows, its files hold {total}"))
    if content_hash(artifact.manifest.files) != artifact.manifest.content_hash:
        problems.append(Problem(MANIFEST_NAME, "content_hash", 1, artifact.manifest.content_hash))
    return problems


def _unknown_files(artifact: Artifact) -> Iterator[Problem]:
    known = set(artifact.data_files)
    for path in sorted((artifact.folder / "data").iterdir()):
        if path not in known:
            yield Problem(f"data/{path.name}", "not_in_the_manifest", 1, path.name)


def validate_file(
    artifact: Artifact, entry: FileEntry, visit: RowVisitor | None = None, *, rows: bool = True
) -> list[Problem]:
    """Check one data file: its sha256, and, unless `rows` is off, its columns and every row."""
    path = artifact.folder / entry.path
    digest = sha256_of_file(path)
    if digest != entry.sha256:
        return [Problem(entry.path, "sha256", 1, f"{digest} instead of {entry.sha256}")]
    if not rows:
        return []
    try:
        check_artifact_files([path])
        return _validate_table(artifact, entry, path, visit)
    except TooLargeError as error:
        return [Problem(entry.path, "too_large", 1, error.what)]
    except DamagedError as error:
        return [Problem(entry.path, "parquet", 1, error.what)]
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        return [Problem(entry.path, "parquet", 1, quote(str(error)))]


def _validate_table(artifact: Artifact, entry: FileEntry, path: Path, visit: RowVisitor | None) -> list[Problem]:
    expected, found = polars_schema(artifact.kind), scan_files([path]).collect_schema()
    absent = {*LATER_COLUMNS.get(artifact.kind, ())} - {*found}
    wrong = [name for name in {*expected, *found} - absent if found.get(name) != expected.get(name)]
    if wrong:
        return [Problem(entry.path, "columns", len(wrong), ", ".join(sorted(wrong)))]
    rows = 0
    problems: list[Problem] = []
    for frame in iterate_frames(path):
        if visit is not None:
            visit(entry, rows, frame)
        rows += len(frame)
        problems += _validate_rows(artifact.kind, entry.path, with_later_columns(artifact.kind, frame))
    if rows != entry.rows:
        problems.append(Problem(entry.path, "rows", 1, f"{rows} instead of {entry.rows}"))
    return problems


def scan_files(paths: Sequence[Path], **options: Any) -> pl.LazyFrame:
    """Scan parquet files by their names: polars takes `[` and `*` in a name for a pattern, and `~` for a home.

    Args:
        paths: of the files, at least one.
        options: of `polars.scan_parquet`.

    Raises:
        ArtifactError: no file is named, or one is not there.
    """
    if not paths:
        raise ArtifactError("the list of data files is empty; build or pull the artifact again")
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise ArtifactError(f"{missing} is missing; build or pull the artifact again")
    return pl.scan_parquet([path.absolute() for path in paths], glob=False, **options)


def iterate_frames(path: Path, rows: int = 4096) -> Iterator[pl.DataFrame]:
    """Read a parquet file in pieces of bounded size: about 8 MB, and at most that many rows."""
    for batch in iterate_batches(path, rows):
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        yield frame


def with_later_columns(kind: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Return rows with all columns of their kind: those that an earlier release did not write yet are null."""
    absent = [name for name in LATER_COLUMNS.get(kind, ()) if name not in frame.columns]
    schema = polars_schema(kind)
    nulls = [pl.lit(None, schema[name]).alias(name) for name in absent]
    return frame.with_columns(nulls).select(schema.names()) if absent else frame


def _validate_rows(kind: str, where: str, frame: pl.DataFrame) -> Iterator[Problem]:
    schema = row_schema(kind)
    if not frame.select(_every_rule(kind)).item():  # a sixth of what it costs to take the rows apart
        failure = schema.filter(frame).failure
        key, details = schema.primary_key()[0], failure.details()
        for rule, count in failure.counts().items():
            yield Problem(where, rule, count, str(details.filter(pl.col(rule) == "invalid")[key][0]))
    for rule, bad in (("prompt_id", _wrong_prompt_ids(frame)), ("grammar", _wrong_completions(kind, frame))):
        if bad:
            yield Problem(where, rule, len(bad), bad[0])


@cache
def _every_rule(kind: str) -> pl.Expr:
    """Return an expression that is true of a frame in which no row breaks a rule (null breaks none)."""
    rules = row_schema(kind)._validation_rules(with_cast=False)
    return pl.all_horizontal([rule.expr.all().alias(name) for name, rule in rules.items()])


def _wrong_prompt_ids(frame: pl.DataFrame) -> list[str]:
    if "prompt" not in frame.columns:
        return []
    pairs = frame.select("prompt_id", "prompt").unique(maintain_order=True).iter_rows()
    return [found for found, prompt in pairs if found != identity.prompt_id(prompt)]


def _wrong_completions(kind: str, frame: pl.DataFrame) -> list[str]:
    if kind != "structured_cot":
        return []
    columns = frame.select("prompt_id", "completion", "steps", "output").iter_rows()
    return [row_id for row_id, completion, steps, output in columns if not _matches(completion, steps, output)]


def _matches(completion: str, steps: list[dict[str, str]], output: str) -> bool:
    try:
        parsed = grammar.parse(completion)
    except GrammarError:
        return False
    return parsed.output == output and [{"title": step.title, "body": step.body} for step in parsed.steps] == steps


def _duplicate_keys(artifact: Artifact) -> list[Problem]:
    keys = row_schema(artifact.kind).primary_key()
    repeated = repeated_keys(artifact.scan(), keys)
    if repeated.is_empty():
        return []
    return [Problem("data", "primary_key", len(repeated), str(repeated[keys[0]][0]))]


def _twins_of_nobody(artifact: Artifact) -> list[Problem]:
    """Find twins of prompts that are not there; a part of other prompts may have them, whose rest is in its parent."""
    is_part = any(parent.kind == "prompts" for parent in artifact.manifest.parents)
    if artifact.kind != "prompts" or is_part:
        return []
    rows = artifact.scan().select("prompt_id", "twin_of")
    others = rows.select(twin_of="prompt_id")
    lost = rows.drop_nulls("twin_of").join(others, on="twin_of", how="anti").collect(engine="streaming")
    return [Problem("data", "twin_of", len(lost), str(lost["prompt_id"][0]))] if len(lost) else []
