"""Parquet is measured by its pages: never as smaller than it decodes to, and what is over a limit has a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stairdata_schemas.errors import UsageError
from stairdata_schemas.formats import limits, parquet
from stairdata_schemas.formats.limits import TooLargeError

ROWS = 3000
TABLE = pa.table(
    {
        "number": pa.array(range(ROWS)),
        "text": [None if row % 7 == 0 else f"shared beginning of {row // 5}" * (row % 4) for row in range(ROWS)],
        "task": ["safety", "helpfulness", "reasoning"] * (ROWS // 3),
        "flag": [True, None, False] * (ROWS // 3),
        "nodes": [
            [{"step": f"step {node} of {row}", "visits": node, "tags": ["a" * node]} for node in range(row % 5)]
            for row in range(ROWS)
        ],
    }
)


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy", "gzip", "brotli", "lz4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "task": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"data_page_version": "2.0"},
        {"data_page_version": "2.0", "use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"data_page_size": 512, "row_group_size": 700, "write_page_index": True},
    ],
    ids=str,
)
def test_an_honest_file_is_measured_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(limits, "ROW_GROUP_BYTES", 1)  # the most exact way
    path = tmp_path / "file.parquet"
    pq.write_table(TABLE, path, compression=compression, **options)
    groups = parquet.measure(path)
    content = sum(column.nbytes for column in TABLE.columns)
    overhead = 15 * limits.VALUE_OVERHEAD * ROWS
    assert sum(group.rows for group in groups) == ROWS
    assert content / 2 < sum(group.size for group in groups)
    if compression != "lz4":  # a dictionary that can't be unpacked here counts by its page
        assert sum(group.size for group in groups) < 3 * content + overhead
    monkeypatch.undo()
    assert pa.Table.from_batches(parquet.iterate_batches(path, 100)).cast(TABLE.schema) == TABLE


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_values_that_share_a_beginning_count_in_full(tmp_path: Path, version: str) -> None:
    texts = ["a" * 3000 + str(row) for row in range(2000)]
    path = tmp_path / "file.parquet"
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "data_page_version": version}
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", **options)
    found = sum(group.size for group in parquet.measure(path))
    assert path.stat().st_size < 50_000
    assert sum(map(len, texts)) <= found < 1.1 * sum(map(len, texts))


def test_repeated_values_count_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROW_GROUP_BYTES", 10_000)
    texts = ["a" * 1000, *["b"] * 99] * 20
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"nodes": [[{"step": text}] for text in texts]}), path)
    (group,) = parquet.measure(path)
    assert 22_000 < group.size < 22_000 + 3 * limits.VALUE_OVERHEAD * len(texts)
    with pytest.raises(TooLargeError, match=r"rows 1 to 2000, most of it field 'nodes.list.element.step', decoded"):
        parquet.check_artifact_files([path])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (["a"] * 40 + ["b" * 2000] + ["c"] * 9, "x"),
        ([[]] * 20 + [["a", "b"]] * 20 + [["c", "d" * 2000]] + [["e"]] * 9, "x"),
        ([[]] * 20 + [[{"a": [{"b": "c"}]}]] * 20 + [[{"a": [{"b": "d" * 2000}]}]] + [None] * 9, "x.a.b"),
    ],
    ids=["text", "list", "lists in lists"],
)
def test_a_value_over_the_limit_is_named_by_row_and_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], field: str
) -> None:
    monkeypatch.setattr(limits, "VALUE_BYTES", 1000)
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"x": values}), path, use_dictionary=False)
    with pytest.raises(TooLargeError, match=f"row 41, field '{field}': 2.0 KB, over the limit of 1000 bytes"):
        list(parquet.iterate_batches(path, 30))


def test_the_environment_raises_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VALUE_BYTES", 1000)
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"x": ["a" * 1500] * 3}), path, use_dictionary=False)
    with pytest.raises(TooLargeError, match="STAIRDATA_READ_LIMITS=2"):
        list(parquet.iterate_batches(path))
    monkeypatch.setenv("STAIRDATA_READ_LIMITS", "2")
    assert sum(batch.num_rows for batch in parquet.iterate_batches(path)) == 3
    monkeypatch.setenv("STAIRDATA_READ_LIMITS", "much")
    with pytest.raises(UsageError, match="'much'"):
        list(parquet.iterate_batches(path))
