from __future__ import annotations

import asyncio
import errno
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas.files import Journal, read_journal, write_atomic
from stairdata_schemas.quarantine import QuarantineRow, write_quarantine
from stairdata_schemas.writing import ShardWriter

ANY_TEXT = st.text(alphabet=st.characters(), max_size=6)  # lone surrogates too
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), ANY_TEXT, st.lists(ANY_TEXT, max_size=2)
)
RECORDS = st.lists(st.dictionaries(ANY_TEXT, VALUES, max_size=2), max_size=3)


def write_journal(path: Path, records: list[dict[str, Any]]) -> list[int]:
    """Write records and return the length of the file before the first and after each."""
    lengths = [0]
    with closing(Journal(path)) as journal:
        for record in records:
            journal.append(record)
            lengths.append(path.stat().st_size)
    return lengths


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A limit on the size of files: the system refuses to write, as on a full disk, without naming the file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_named_by_the_file(tmp_path: Path, prompts: Callable[..., pl.DataFrame]) -> None:
    with pytest.raises(OSError, match=r"File too large: '.*card.md'"):
        write_atomic(tmp_path / "card.md", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []
    journal = Journal(tmp_path / "rows.jsonl")
    with pytest.raises(OSError, match=r"File too large: '.*rows.jsonl'"):
        journal.append({"text": "x" * 5000})
    writer = ShardWriter(tmp_path / "data", "prompts")
    with pytest.raises(OSError, match=r"File too large.*part-00000.parquet"):
        writer.write(prompts(os.urandom(20_000).hex()))
    refused = [QuarantineRow("f", 0, "rule", os.urandom(20_000).hex())]
    with pytest.raises(OSError, match=r"File too large.*refused.parquet"):
        write_quarantine(tmp_path / "quarantine", refused)


@pytest.mark.parametrize("data", ["text ünïcödé\n", b"\x00bytes\xff", ""])
def test_write_atomic_replaces_the_file(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def disk_full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_no_unicode_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"


def test_the_content_is_on_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append("fsync")
        fsync(descriptor)

    def watched_replace(old: Path, new: Path) -> None:
        calls.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomic(tmp_path / "file", "new")
    assert calls == ["fsync", "replace", "fsync"]


class Disk:
    """A disk whose syncs take as long as a test wants, and fail when it says so."""

    def __init__(self) -> None:
        self.syncs = 0
        self.is_full = False
        self.free = threading.Event()
        self.free.set()
        self.at_work = threading.Event()

    def fsync(self, _: int) -> None:
        self.syncs += 1
        self.at_work.set()
        assert self.free.wait(60)
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def hold(self, journal: Journal) -> asyncio.Task[None]:
        """Begin a sync that does not end before `free` is set."""
        self.free.clear()
        self.at_work.clear()
        journal.append({"held": 1})
        waiting = asyncio.create_task(journal.commit())
        await asyncio.to_thread(self.at_work.wait, 60)
        return waiting


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


def test_a_commit_syncs_what_is_not_synced_yet(tmp_path: Path, disk: Disk) -> None:
    async def write() -> list[int]:
        syncs = []
        with closing(Journal(tmp_path / "journal")) as journal:
            for number in range(2):
                journal.append({"a": number})
                syncs.append(disk.syncs)
            for _ in range(2):
                await journal.commit()
                syncs.append(disk.syncs)
        return syncs

    assert asyncio.run(write()) == [0, 0, 1, 1]


def test_records_that_come_while_the_disk_is_at_work_share_the_next_sync(tmp_path: Path, disk: Disk) -> None:
    async def write() -> None:
        with closing(Journal(tmp_path / "journal")) as journal:
            first = await disk.hold(journal)
            later = []
            for number in range(9):
                journal.append({"number": number})
                later.append(asyncio.create_task(journal.commit()))
            await asyncio.sleep(0)
            assert not any(task.done() for task in (first, *later))
            disk.free.set()
            await asyncio.gather(first, *later)

    asyncio.run(write())
    assert disk.syncs == 2


def test_a_disk_that_refused_once_is_not_believed_again(tmp_path: Path, disk: Disk) -> None:
    """After a failed fsync the system takes the lost pages for written, and the next fsync succeeds."""
    path = tmp_path / "rows.jsonl"

    async def write() -> list[BaseException | None]:
        with closing(Journal(path)) as journal:
            waiting = [await disk.hold(journal)]
            journal.append({"later": 1})
            waiting += [asyncio.create_task(journal.commit()) for _ in range(3)]
            disk.is_full = True
            disk.free.set()
            failures = await asyncio.gather(*waiting, return_exceptions=True)
            disk.is_full = False
            failures += await asyncio.gather(journal.commit(), return_exceptions=True)
            with pytest.raises(OSError, match="No space left"):
                journal.append({"after": 1})
        return failures

    failures = asyncio.run(write())
    assert [str(failure) for failure in failures] == [f"[Errno 28] No space left on device: '{path}'"] * 5
    assert disk.syncs == 1
    assert list(read_journal(path)) == [{"held": 1}, {"later": 1}], "what a kill would leave"


def test_whoever_is_cancelled_leaves_the_sync_to_the_others(tmp_path: Path, disk: Disk) -> None:
    async def write() -> None:
        with closing(Journal(tmp_path / "journal")) as journal:
            first = await disk.hold(journal)
            other = asyncio.create_task(journal.commit())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            disk.free.set()
            await other

    asyncio.run(write())
    assert disk.syncs == 1


def test_a_journal_is_not_closed_under_a_sync(tmp_path: Path, disk: Disk) -> None:
    async def write() -> None:
        journal = Journal(tmp_path / "journal")
        waiting = await disk.hold(journal)
        closed = asyncio.create_task(asyncio.to_thread(journal.close))
        await asyncio.sleep(0)
        assert not closed.done()
        disk.free.set()
        await asyncio.gather(waiting, closed)

    asyncio.run(write())


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_a_power_cut_takes_no_record_that_was_committed(writers: list[list[int]], data: st.DataObject) -> None:
    """Writers on one event loop; a cut of power leaves the file as of the last sync, or with any piece of the rest."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "journal"
        synced: list[int] = [0]
        appended: list[dict[str, Any]] = []
        committed: list[tuple[int, int]] = []
        """Number of records at each commit, and what was synced when it returned."""
        patch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))

        async def writer(journal: Journal, number: int, pauses: list[int]) -> None:
            for count, pause in enumerate(pauses):
                appended.append({"writer": number, "count": count})
                journal.append(appended[-1])
                mine = len(appended)
                for _ in range(pause):
                    await asyncio.sleep(0)
                await journal.commit()
                committed.append((mine, synced[-1]))

        async def write() -> None:
            with closing(Journal(path)) as journal:
                await asyncio.gather(*(writer(journal, number, pauses) for number, pauses in enumerate(writers)))

        asyncio.run(write())
        content = path.read_bytes()
        records, durable = data.draw(st.sampled_from(committed), label="the last commit before the cut")
        cut = data.draw(st.integers(durable, len(content)), label="where the file ends after it")
        path.write_bytes(content[:cut])
        left = list(read_journal(path))
        assert left == appended[: len(left)]
        assert len(left) >= records


def test_a_journal_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "journal")) == []


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"text": "two\nlines\r\nand\u2028more\x00"},
        {"text": "漢字 😀 \N{COMBINING ACUTE ACCENT}"},
        {"text": "\ud800", "\udfff": 1},
        {"text": "\ud83d\ude00"},  # a pair of surrogates, kept as two
        {"nested": [{"deep": [1, 2.5, None, True]}]},
    ],
)
def test_a_record_comes_back_as_it_was(tmp_path: Path, record: dict[str, Any]) -> None:
    write_journal(tmp_path / "journal", [record, {"next": 1}])
    assert list(read_journal(tmp_path / "journal")) == [record, {"next": 1}]


def test_a_record_is_there_before_the_journal_is_closed(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "new" / "journal")) as journal:
        journal.append({"a": 1})
        assert list(read_journal(journal.path)) == [{"a": 1}]


@given(RECORDS, st.dictionaries(ANY_TEXT, VALUES, max_size=2))
@settings(max_examples=8)
def test_a_journal_cut_anywhere_keeps_its_whole_records(records: list[dict[str, Any]], later: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        lengths = write_journal(path, records)
        content = path.read_bytes()
        for cut in range(len(content) + 1):
            path.write_bytes(content[:cut])
            whole = records[: sum(length <= cut for length in lengths) - 1]
            assert list(read_journal(path)) == whole
            write_journal(path, [later])
            assert list(read_journal(path)) == [*whole, later]


@given(RECORDS.filter(bool), st.data())
@settings(max_examples=100)
def test_a_damaged_byte_ends_the_journal_before_its_record(records: list[dict[str, Any]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        lengths = write_journal(path, records)
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1), label="position")
        content[position] ^= data.draw(st.integers(1, 255), label="flip")
        path.write_bytes(content)
        whole = records[: sum(length <= position for length in lengths) - 1]
        assert list(read_journal(path)) == whole
        write_journal(path, [{"later": 1}])
        assert list(read_journal(path)) == [*whole, {"later": 1}]


def test_every_byte_of_a_line_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, [{"a": "é"}])
    content = path.read_bytes()
    unnoticed = []
    for position in range(len(content)):
        for flip in (1 << bit for bit in range(8)):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            if list(read_journal(path)):
                unnoticed.append(position)
    assert unnoticed == []


@pytest.mark.parametrize("junk", [b"\n", b"not a journal\n", b"00000000 {}\n", b"\x00" * 40, b"deadbeef" * 4])
def test_junk_is_no_record(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(junk)
    assert list(read_journal(path)) == []
    write_journal(path, [{"a": 1}])
    assert list(read_journal(path)) == [{"a": 1}]
