"""What strangers publish, and files that somebody sends: refused with one message, in little memory and time.

Each member runs as a user runs it, in a process of its own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from stairdata_review.tables.cells import read_rows
from stairdata_schemas.artifacts import Artifact, open_artifact
from stairdata_schemas.errors import InputError
from stairdata_schemas.formats.limits import TooLargeError
from stairdata_schemas.formats.xlsx import check_xlsx
from stairdata_schemas.manifest import FileEntry, Manifest, content_hash, now
from tests.conftest import HUB_TOKEN
from tests.security import hostile_parquet
from tests.security.measured import MEBIBYTE, STAIRDATA, Measured, run_measured

if TYPE_CHECKING:
    from tests.conftest import HubServer

MOST = 1500 * MEBIBYTE
PATIENCE = 120.0
"""Seconds for a command on a loaded machine; most take two."""
DATA = "data/train-00000-of-00001.parquet"
REPO = "org/data"
MakeParquet = Callable[[Path], bytes]
HOSTILE_PARQUET: list[tuple[MakeParquet, str]] = [
    (hostile_parquet.huge_value, "row 1, field 'prompt': 1.0 GB"),
    (hostile_parquet.repeated_value, "rows 1 to 8192, field 'prompt'"),
    (hostile_parquet.value_over_the_limit, "row 2, field 'prompt': 17.0 MB"),
    (hostile_parquet.huge_value_gzip, "row 1, field 'prompt': 1.0 GB"),
    (hostile_parquet.huge_value_announced_as_small, "decompression failed"),
    (hostile_parquet.two_billion_nulls, "the limit for the file's size"),
    (hostile_parquet.deep_schema, "nested deeper"),
    (hostile_parquet.many_columns, "100001 columns"),
    (hostile_parquet.huge_footer, "the footer: 64.0 MB"),
    (hostile_parquet.damaged_header, "stands twice"),
]


def _members(*quick: MakeParquet) -> Iterator[object]:
    for make, said in HOSTILE_PARQUET:
        yield pytest.param(make, said, id=make.__name__, marks=[] if make in quick else [pytest.mark.slow])


def _artifact(folder: Path, data: bytes, rows: int = 1) -> Path:
    """Write an artifact of prompts around a data file, with a manifest that fits it."""
    path = folder / "prompts" / "1.0.0" / DATA
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    entry = FileEntry(path=DATA, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), rows=rows)
    manifest = Manifest.model_validate(
        {
            "kind": "prompts",
            "version": "1.0.0",
            "schema_version": 1,
            "created_at": now(),
            "stairdata_version": "0.1.0",
            "generator": "prompts/1",
            "fingerprint": "0" * 64,
            "content_hash": content_hash([entry]),
            "configuration": {},
            "rows": rows,
            "files": [entry],
        }
    )
    (path.parents[1] / "manifest.json").write_text(manifest.model_dump_json(indent=2))
    return path.parents[1]


def _check(ended: Measured, said: str) -> None:
    """One message, without a traceback, exit status 1, in bounded memory."""
    words = " ".join((ended.stdout + ended.stderr).split())
    assert ended.code == 1, words
    assert said in words
    assert "Traceback" not in words
    assert words.count(said) == 1
    assert ended.peak < MOST
    assert ended.seconds < PATIENCE


def _run(folder: Path, *arguments: str | Path, **environment: str) -> Measured:
    wide = {"COLUMNS": "1000", "HF_TOKEN": HUB_TOKEN, "STAIRDATA_CACHE": str(folder / "cache")}
    command = [*STAIRDATA, *map(str, arguments)]
    return run_measured(command, folder, limit=PATIENCE, environment=wide | environment)


def _files(folder: Path) -> list[str]:
    """Return the files under a folder, but empty locks."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found if path.name != ".lock")


@pytest.mark.parametrize(("make", "said"), _members())
def test_a_hostile_parquet_file_as_a_source_of_prompts(tmp_path: Path, make: MakeParquet, said: str) -> None:
    (tmp_path / "source.parquet").write_bytes(make(tmp_path))
    source = "prompts.sources=[{path: source.parquet}]"
    ended = _run(tmp_path, "build", "prompts", "--set", source, "--root", "artifacts")
    if make is hostile_parquet.two_billion_nulls:  # in a column that prompts don't need
        said = ""
        assert ended.peak < MOST
        return
    _check(ended, said)
    assert not list((tmp_path / "artifacts").rglob("*.parquet"))


@pytest.mark.parametrize(("make", "said"), _members(hostile_parquet.repeated_value))
def test_a_hostile_artifact_is_not_valid(tmp_path: Path, make: MakeParquet, said: str) -> None:
    _check(_run(tmp_path, "validate", _artifact(tmp_path, make(tmp_path))), said)


@pytest.mark.slow
@pytest.mark.parametrize("make", [hostile_parquet.huge_value, hostile_parquet.repeated_value])
@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "FOLDER", "--rows", "1"),
        ("show", "FOLDER", "--html", "page.html"),
        ("diff", "FOLDER", "OTHER"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_other_commands_on_a_hostile_artifact(tmp_path: Path, make: MakeParquet, arguments: tuple[str, ...]) -> None:
    folder = _artifact(tmp_path, make(tmp_path))
    other = _artifact(tmp_path / "other", hostile_parquet.honest(tmp_path, "?"))
    before = _files(tmp_path)
    places = {"FOLDER": folder, "OTHER": other}
    ended = _run(tmp_path, *(places.get(word, word) for word in arguments))
    _check(ended, "field 'prompt'")
    assert _files(tmp_path) == before


@pytest.mark.parametrize(("make", "said"), _members(hostile_parquet.huge_value))
def test_a_hostile_artifact_on_the_hub(tmp_path: Path, hub: HubServer, make: MakeParquet, said: str) -> None:
    folder = _artifact(tmp_path / "made", make(tmp_path))
    _publish({DATA: folder / DATA, "manifest.json": folder / "manifest.json"})
    ended = _run(tmp_path, "pull", f"{REPO}@v1.0.0", "--root", "pulled")
    _check(ended, said)
    assert _files(tmp_path / "pulled") == []


@pytest.mark.parametrize(
    ("path", "size", "said"),
    [
        ("manifest.json", 600 * MEBIBYTE, f"manifest.json in {REPO}"),
        pytest.param("manifest.json", 0, "is over the limit of 16.0 MB", marks=pytest.mark.slow),
        pytest.param("README.md", 600 * MEBIBYTE, f"README.md in {REPO}", marks=pytest.mark.slow),
        pytest.param("README.md", 0, "is over the limit of 1.0 MB", marks=pytest.mark.slow),
        pytest.param(DATA, 0, "is over the limit of", marks=pytest.mark.slow),
        pytest.param(DATA, 600 * MEBIBYTE, "600.0 MB, over the limit of", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_larger_than_listed(tmp_path: Path, hub: HubServer, path: str, size: int, said: str) -> None:
    folder = _artifact(tmp_path / "made", hostile_parquet.honest(tmp_path, "?"))
    (tmp_path / "card").write_text("# A card\n")
    _publish({DATA: folder / DATA, "manifest.json": folder / "manifest.json", "README.md": tmp_path / "card"})
    hub.control(swollen={path: size})
    ended = _run(tmp_path, "pull", f"{REPO}@v1.0.0", "--root", "pulled", HF_HUB_DISABLE_XET="1")
    _check(ended, said)
    assert not (tmp_path / "pulled" / "prompts").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (hostile_parquet.huge_value, "read at a time, take more than"),
        (hostile_parquet.repeated_value, "read at a time, take more than"),
    ],
)
def test_a_hostile_parquet_file_of_a_plain_dataset(
    tmp_path: Path, hub: HubServer, make: MakeParquet, said: str
) -> None:
    (tmp_path / "source.parquet").write_bytes(make(tmp_path))
    _publish({DATA: tmp_path / "source.parquet"})
    ended = _run(
        tmp_path, "build", "prompts", "--set", f"prompts.sources=[{{hub: {REPO}, split: train}}]", "--root", "artifacts"
    )
    _check(ended, said)
    assert not list((tmp_path / "artifacts").rglob("*.parquet"))


def _publish(files: dict[str, Path]) -> None:
    """Put files into the repository, and tag them as a release."""
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    operations = [CommitOperationAdd(path, str(local)) for path, local in files.items()]
    api.create_commit(REPO, operations, commit_message="release", repo_type="dataset")
    api.create_tag(REPO, tag="v1.0.0", repo_type="dataset")


# -- text, compressed or not, and spreadsheets -----------------------------------------------------------------


def _bomb(path: Path, *, line: bytes, count: int) -> None:
    """Write a line many times, compressed by what the name says."""
    piece = line * (2**20 // len(line) + 1)
    openers: dict[str, Callable[[], Any]] = {
        ".zst": lambda: pa.output_stream(str(path), compression="zstd"),
        ".gz": lambda: gzip.GzipFile(path, "wb", 1),
        ".xz": lambda: lzma.LZMAFile(path, "wb", preset=0),  # noqa: SIM115 - closed below
    }
    with openers.get(path.suffix, lambda: io.FileIO(path, "wb"))() as file:
        for _ in range(count):
            file.write(piece)


ROW = b'{"prompt": "a", "task": "safety"}\n'


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        pytest.param(
            "one.jsonl.zst",
            b"a",
            "line 1 is longer than the limit",
            id="a line without end, zst",
            marks=pytest.mark.slow,
        ),
        pytest.param("one.jsonl.gz", b"a", "line 1 is longer", id="a line without end, gz", marks=pytest.mark.slow),
        pytest.param("one.jsonl.xz", b"a", "line 1 is longer", id="a line without end, xz", marks=pytest.mark.slow),
        pytest.param("one.csv.gz", b'"a,', "line 1", id="a field without end", marks=pytest.mark.slow),
        pytest.param(
            "one.csv.zst", b'"a\n', "does not end as it should", id="a quote without end", marks=pytest.mark.slow
        ),
        pytest.param("one.json.zst", b"[", "nested too deeply", id="lists in lists", marks=pytest.mark.slow),
        pytest.param(
            "one.json.zst", b"[],", "text after the end of the list", id="empty lists", marks=pytest.mark.slow
        ),
        pytest.param("one.json", b" ", "the limit of 64.0 MB", id="spaces", marks=pytest.mark.slow),
    ],
)
def test_a_bomb_as_a_source_of_prompts(tmp_path: Path, name: str, line: bytes, said: str) -> None:
    _bomb(tmp_path / name, line=line, count=100 if name.endswith("json") else 600)
    source = f"prompts.sources=[{{path: {name}}}]"
    ended = _run(tmp_path, "build", "prompts", "--set", source, "--root", "artifacts")
    _check(ended, said)
    assert not list((tmp_path / "artifacts").rglob("*.parquet"))


@pytest.mark.slow
def test_a_bomb_of_structured_reasoning_written_by_hand(tmp_path: Path) -> None:
    _bomb(tmp_path / "rows.jsonl.zst", line=ROW, count=500)
    settings = ("--set", "structured_cot.path=rows.jsonl.zst")
    ended = _run(tmp_path, "build", "structured-cot", *settings, "--root", "artifacts")
    assert ended.code == 1, ended.stderr
    assert ended.peak < MOST
    assert "rows written by hand: 128.0 MB, over the limit of 128.0 MB" in ended.stderr
    assert not list((tmp_path / "artifacts").rglob("*.parquet"))


SHEET = '<?xml version="1.0"?><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'


def _zip(path: Path, **parts: Iterator[bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, pieces in parts.items():
            with archive.open(f"xl/{name.replace('__', '/')}.xml", "w") as file:
                for piece in pieces:
                    file.write(piece)


def _shared_text() -> Iterator[bytes]:
    yield b'<?xml version="1.0"?><sst><si><t>' + b"a" * 2**20 + b"</t></si></sst>"


def _cells() -> Iterator[bytes]:
    yield SHEET.encode() + b"<row>"
    for _ in range(100):
        yield b'<c t="s"><v>0</v></c>' * 10
    yield b"</row></sheetData></worksheet>"


def _far_cell() -> Iterator[bytes]:
    yield SHEET.encode() + b'<row><c r="A1"/><c r="XFD1048576"/></row></sheetData></worksheet>'


def _spaces() -> Iterator[bytes]:
    yield SHEET.encode()
    yield from [b" " * 2**20] * 150


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"sharedStrings": _shared_text, "worksheets__sheet1": _cells}, "the texts of its cells"),
        ({"worksheets__sheet1": _far_cell}, "cells up to its last one"),
        pytest.param({"worksheets__sheet1": _spaces}, "what it unpacks to", marks=pytest.mark.slow),
    ],
    ids=["a text in many cells", "a cell far out", "a bomb"],
)
def test_a_hostile_spreadsheet(tmp_path: Path, parts: dict[str, Callable[[], Iterator[bytes]]], said: str) -> None:
    path = tmp_path / "answers.xlsx"
    _zip(path, **{name: make() for name, make in parts.items()})
    with pytest.raises(TooLargeError, match=said):
        check_xlsx(path)


@pytest.mark.slow
def test_a_manifest_that_is_huge_on_disk(tmp_path: Path) -> None:
    folder = _artifact(tmp_path, hostile_parquet.honest(tmp_path, "?"))
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(600 * MEBIBYTE)
    _check(_run(tmp_path, "validate", folder), "the file: 600.0 MB, over the limit of 16.0 MB")


@pytest.mark.slow
def test_the_limits_can_be_raised(tmp_path: Path) -> None:
    (tmp_path / "source.jsonl").write_text(json.dumps({"prompt": "a" * 2**21, "task": "safety"}) + "\n")
    arguments = ("build", "prompts", "--set", "prompts.sources=[{path: source.jsonl}]", "--root", "artifacts")
    _check(_run(tmp_path, *arguments, STAIRDATA_READ_LIMITS="0.05"), "line 1 is longer than the limit of 1.6 MB")
    assert _run(tmp_path, *arguments).code == 0


# -- readers that take more than a command to reach, in this process: what refuses is what the commands go through ---


@pytest.mark.parametrize("read", [Artifact.scan, Artifact.dataset])
def test_what_trains_and_reports_reads_nothing_of_a_hostile_artifact(
    tmp_path: Path, read: Callable[[Artifact], object]
) -> None:
    artifact = open_artifact(_artifact(tmp_path, hostile_parquet.repeated_value(tmp_path)))
    with pytest.raises(TooLargeError, match="rows 1 to 8192, field 'prompt'"):
        read(artifact)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("answers.csv", b"item_id,verdict\n" + b"a,b\n" * 30_000, "cells"),
        ("answers.csv", b'item_id\n"' + b"a\n" * 2**20, "the row that begins in line 2"),
        ("answers.jsonl", b'{"a": "' + b"a" * 2**21, "line 1 is longer"),
        ("answers.jsonl", b'{"a": 1}\n' * 30_000, "cells"),
    ],
)
def test_answers_of_reviewers_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    monkeypatch.setenv("STAIRDATA_READ_LIMITS", "0.02")  # the sizes here are a fiftieth of what would be refused
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_rows(tmp_path / name)
