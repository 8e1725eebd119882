"""Views: conversations and paths made of an artifact's rows, for the Hub's viewer and for trainers.

A view is written anew at each release and never read back: the rows are what counts. It has a file for each data file
of the artifact. What of it is in memory is one piece of rows, whatever the size of the artifact.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stairdata.examples.conversations import turns, two_sides
from stairdata.examples.paths import LIGHT_NODES, TREES_AT_ONCE, paths_to_leaves
from stairdata.examples.reading import examples_of, whole_rows
from stairdata_schemas.aliases import CountProgress, Json, Row
from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.files import naming
from stairdata_schemas.manifest import Manifest, sha256_of_file
from stairdata_schemas.writing import ROW_GROUP_ROWS, parquet_writer

DETAIL = "views"
"""Key of a published manifest's `details`."""
PIECE_CHARACTERS = 8 * 1024**2
"""Text of the rows that are written together."""
_TEXT = pa.string()
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_DTYPES = {"double": "float64"}
"""What `datasets` calls types for which pyarrow has other names."""


class _TemporaryFolder:
    """A folder that is gone with the last that holds on to it, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="stairdata-views-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class View:
    """A view that was written and is ready to be published."""

    name: str
    schema: pa.Schema
    rows: int
    files: Mapping[str, Path]
    """By their names; as many as the artifact has, with the same names."""
    sha256: Mapping[str, str]
    folder: _TemporaryFolder

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def features(self) -> list[Json]:
        """Return the `features` of `dataset_info` as `datasets` writes them."""
        return [{"name": field.name, **_feature(field.type)} for field in self.schema]


class _ViewForm(NamedTuple):
    """How the view of a kind is made."""

    name: str
    columns: list[tuple[str, pa.DataType]]
    read: Callable[[Path], Iterator[Row]]


def _chat(kind: str, keys: list[str], path: Path) -> Iterator[Row]:
    """Yield the conversations of a data file, without those that break off: they would teach to stop there."""
    form: Callable[[Any], Row] = two_sides if kind == "preference_pairs" else turns
    for frame in iterate_frames(path):
        whole = whole_rows(frame, kind)
        for key, example in zip(whole.select(keys).iter_rows(named=True), examples_of(whole, kind), strict=True):
            yield form(example) | key


def _paths(path: Path) -> Iterator[Row]:
    keys = ["tree_id", "prompt_id", "task"]
    for frame in iterate_frames(path, TREES_AT_ONCE):
        for tree in frame.select("prompt", LIGHT_NODES, *keys).iter_rows(named=True):
            for nodes in paths_to_leaves(tree["nodes"]):
                leaf = nodes[-1]
                yield {
                    "prompt": tree["prompt"],
                    "steps": [node["step"] for node in nodes],
                    "value": leaf["value_sum"] / leaf["visits"] if leaf["visits"] else None,
                    "visits": leaf["visits"],
                    "terminal": leaf["is_terminal"],
                    **{name: tree[name] for name in keys},
                    "node_id": leaf["node_id"],
                }


def _chat_form(kind: str, **keys: pa.DataType) -> _ViewForm:
    conversations = ["prompt", "chosen", "rejected"] if kind == "preference_pairs" else ["messages"]
    columns = [*((name, _MESSAGES) for name in conversations), *keys.items()]
    return _ViewForm("chat", columns, partial(_chat, kind, list(keys)))


_FORMS = {
    "structured_cot": _chat_form("structured_cot", prompt_id=_TEXT, task=_TEXT),
    "preference_pairs": _chat_form("preference_pairs", pair_id=_TEXT, prompt_id=_TEXT, task=_TEXT),
    "responses": _chat_form("responses", response_id=_TEXT, prompt_id=_TEXT, task=_TEXT),
    "evaluations": _chat_form(
        "evaluations",
        prompt_id=_TEXT,
        benchmark=_TEXT,
        attack=_TEXT,
        response_id=_TEXT,
        sample=pa.int32(),
        model=_TEXT,
        judge=_TEXT,
        reads=_TEXT,
        task=_TEXT,
    ),
    "trees": _ViewForm(
        "paths",
        [
            ("prompt", _TEXT),
            ("steps", pa.list_(_TEXT)),
            ("value", pa.float64()),
            ("visits", pa.int32()),
            ("terminal", pa.bool_()),
            ("tree_id", _TEXT),
            ("prompt_id", _TEXT),
            ("task", _TEXT),
            ("node_id", pa.int32()),
        ],
        _paths,
    ),
}
"""By kind."""


def make_view(artifact: Artifact, progress: CountProgress) -> View | None:
    """Write the view of an artifact to a temporary folder; None for a kind that has none, or if no row is in it."""
    form = _FORMS.get(artifact.kind)
    if form is None:
        return None
    folder, schema = _TemporaryFolder(), pa.schema(form.columns)
    files = {path.name: folder.path / path.name for path in artifact.data_files}
    rows = 0
    for number, path in enumerate(artifact.data_files):
        progress(f"making the view {form.name} of {artifact.reference}", number, len(files))
        rows += _write_file(files[path.name], schema, form.read(path))
    pa.default_memory_pool().release_unused()  # as after the check
    hashes = {name: sha256_of_file(path) for name, path in files.items()}
    return View(form.name, schema, rows, files, hashes, folder) if rows else None


def _write_file(path: Path, schema: pa.Schema, rows: Iterator[Row]) -> int:
    count = 0
    with naming(path), parquet_writer(path, schema) as writer:
        for piece in _pieces(rows):
            writer.write_table(pa.Table.from_pylist(piece, schema))
            count += len(piece)
    return count


def _pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    piece: list[Row] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += _characters(row)
        if len(piece) >= ROW_GROUP_ROWS or size >= PIECE_CHARACTERS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _characters(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 1


def _feature(kind: pa.DataType) -> Json:
    if not pa.types.is_list(kind):
        return {"dtype": _DTYPES.get(str(kind), str(kind))}
    inner = kind.value_type
    if pa.types.is_struct(inner):
        return {"list": [{"name": field.name, **_feature(field.type)} for field in inner]}
    return {"list": str(inner)}


def with_view(manifest: Manifest, view: View | None) -> Manifest:
    """Return a manifest whose details name a view, or none."""
    details = {name: value for name, value in manifest.details.items() if name != DETAIL}
    if view is not None:
        details[DETAIL] = {view.name: {"rows": view.rows}}
    return manifest if details == manifest.details else manifest.model_copy(update={"details": details})
