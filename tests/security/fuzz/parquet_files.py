"""Parquet files whose footer, page headers and pages are damaged, as an artifact's data and as any other file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from stairdata.generators.prompts.files import parquet_columns, read_rows
from stairdata_schemas import identity
from stairdata_schemas.artifacts import open_artifact, validate_artifact
from stairdata_schemas.errors import StairDataError
from stairdata_schemas.formats.parquet import check_artifact_files
from stairdata_schemas.kinds import arrow_schema
from stairdata_schemas.manifest import MANIFEST_NAME, FileEntry, Manifest, content_hash, sha256_of_file
from tests.security.fuzz.damage import damaged
from tests.security.fuzz.manifests import MANIFEST
from tests.security.hostile_parquet import assemble, body_of, footer_of

NUMBERS = (-1, 0, 1, 2, 5, 8, 127, 1000, 2**20, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
PROMPTS = ["Why is the sky blue?", "", "a" * 300, "ü\U0001f600", "Why is the sky blue? And the sea?"] * 20
_OPTIONS: tuple[dict[str, Any], ...] = (
    {"compression": "zstd"},
    {"compression": "snappy", "data_page_version": "2.0"},
    {"compression": "gzip", "use_dictionary": False, "row_group_size": 30},
    {"compression": "none", "data_page_size": 64, "write_page_index": True},
    {"compression": "lz4", "use_dictionary": False, "use_byte_stream_split": False, "store_schema": False},
    {"compression": "zstd", "use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}},
    {"compression": "none", "use_dictionary": False, "column_encoding": {"prompt": "DELTA_LENGTH_BYTE_ARRAY"}},
    {"compression": "brotli", "use_content_defined_chunking": True},
)


def _prompts() -> pa.Table:
    columns = {name: [None] * len(PROMPTS) for name in arrow_schema("prompts").names}
    known = {"prompt_id": [identity.prompt_id(text) for text in PROMPTS], "prompt": PROMPTS}
    fixed = {"task": ["safety"] * len(PROMPTS), "source": ["x"] * len(PROMPTS)}
    return pa.table({**columns, **known, **fixed}, schema=arrow_schema("prompts"))


def _others() -> pa.Table:
    """Columns of all kinds, some with lists."""
    rows = 50
    return pa.table(
        {
            "prompt": pa.array(PROMPTS[:rows]).dictionary_encode(),
            "messages": [[{"role": "user", "content": "x"}] * (row % 4) for row in range(rows)],
            "scores": [[[1.5, None], []], None] * (rows // 2),
            "map": pa.array([[("a", 1)], []] * (rows // 2), pa.map_(pa.string(), pa.int64())),
            "time": [datetime(2026, 1, 1, tzinfo=UTC)] * rows,
            "price": [Decimal("1.50")] * rows,
            "image": pa.array([b"\x89PNG"] * rows, pa.binary(4)),
            "number": pa.array(range(rows), pa.uint64()),
            "half": pa.array([0.5] * rows, pa.float16()),
            "flag": [True, None] * (rows // 2),
            "nothing": pa.nulls(rows),
            "view": pa.array(["x"] * rows, pa.string_view()),
            "took": pa.array([1] * rows, pa.duration("ms")),
        }
    )


@cache
def _files() -> list[bytes]:
    found = []
    for number, options in enumerate(_OPTIONS):
        for table in [_prompts(), _others()]:
            if table.num_columns > 10 and "column_encoding" in options:
                continue
            sink = io.BytesIO()
            pq.write_table(table.slice(0, 100 - number), sink, **options)
            found.append(sink.getvalue())
    return found


def _integers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of each number, text and list in a footer."""
    for key, (kind, inner) in value.items():
        if kind in {4, 5, 6, 8}:
            yield value, key
        elif kind == 12:
            yield from _integers(inner)
        elif kind == 9:
            yield value, key
            for item in inner[1]:
                if isinstance(item, dict):
                    yield from _integers(item)


@st.composite
def _with_other_footer(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(_files()))
    footer = footer_of(data)
    for _ in range(draw(st.integers(0, 3))):
        places = list(_integers(footer))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind, value = holder[key]
        if kind == 8:
            holder[key] = kind, draw(st.sampled_from([b"", b"\xff", b"prompt", b"a" * 5000, value * 2]))
        elif kind == 9:
            items = value[1]
            holder[key] = kind, (value[0], draw(st.sampled_from([[], items[:1], items[1:], items * 2, items * 50])))
        else:
            holder[key] = kind, draw(st.sampled_from([*NUMBERS, value + 1, value - 1, value * 2]))
    return assemble(body_of(data), footer)


@st.composite
def _with_other_pages(draw: st.DrawFn) -> bytes:
    """Damage the body alone, so that the footer still leads to it."""
    data = draw(_with_other_footer() | st.sampled_from(_files()))
    length = len(body_of(data))
    body = bytearray(data[:length])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(4, min(length - 1, 200)) | st.integers(4, length - 1))
        body[place] = draw(st.integers(0, 255))
    return bytes(body) + data[length:]


FILES = _with_other_footer() | _with_other_pages() | damaged(st.deferred(lambda: st.sampled_from(_files())))


def read_any_parquet(data: bytes, folder: Path) -> None:
    """Read a file as a source of prompts, and as the data of an artifact."""
    path = folder / "data" / "train-00000.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    for read in (_as_source, _as_artifact):
        try:
            read(path)
        except StairDataError:
            continue


def _as_source(path: Path) -> None:
    parquet_columns(path)
    for _ in read_rows(path):
        pass


def _as_artifact(path: Path) -> None:
    """Validate it under a manifest that agrees with it, then read it as commands do that have no look at each row."""
    entry = FileEntry(
        path="data/train-00000.parquet", sha256=sha256_of_file(path), bytes=path.stat().st_size, rows=len(PROMPTS)
    )
    whole = {**MANIFEST, "files": [entry], "rows": entry.rows, "content_hash": content_hash([entry])}
    folder = path.parent.parent
    (folder / MANIFEST_NAME).write_text(Manifest.model_validate(whole).model_dump_json())
    artifact = open_artifact(folder)
    if validate_artifact(artifact):
        return  # `pull` and `push` refuse it
    check_artifact_files([path])
    artifact.scan().collect()
