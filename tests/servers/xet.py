"""The storage behind Xet: xorbs (packed chunks) and the recipes by which files are put together from them.

The binary layouts are those of xet-core (github.com/huggingface/xet-core, `xet_core_structures`): a xorb is a row
of chunks with an eight-byte header each, a shard a list of files with their segments. Only what the client's
uploads and downloads need is read.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

HEADER = 48
BOOKEND = b"\xff" * 32
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
LZ4, GROUPED_LZ4 = 1, 2


class Segment(NamedTuple):
    """A run of chunks of one xorb."""

    xorb: str
    bytes: int
    first: int
    end: int


class Chunk(NamedTuple):
    """Where a chunk lies in its xorb, header included, and how it is packed."""

    start: int
    stop: int
    scheme: int
    size: int


class XetStore:
    """Xorbs on disk, recipes in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, list[Segment]] = {}
        self.by_sha256: dict[str, str] = {}
        self._chunks: dict[str, list[Chunk]] = {}

    def xorb_path(self, xorb: str) -> Path:
        return self.folder / xorb

    def add_xorb(self, xorb: str, content: bytes) -> bool:
        if self.xorb_path(xorb).exists():
            return False
        self.xorb_path(xorb).write_bytes(content)
        return True

    def add_shard(self, shard: bytes) -> None:
        """Read the files of a shard; its list of xorbs follows and is not needed."""
        position = HEADER
        while shard[position : position + 32] != BOOKEND:
            name = _hex(shard[position : position + 32])
            flags, count = struct.unpack_from("<II", shard, position + 32)
            position += HEADER
            self.files[name] = [_segment(shard, position + index * HEADER) for index in range(count)]
            position += count * HEADER * (2 if flags & WITH_VERIFICATION else 1)
            if flags & WITH_METADATA:
                self.by_sha256[_hex(shard[position : position + 32])] = name
                position += HEADER

    def hash_of(self, sha256: str) -> str | None:
        return self.by_sha256.get(sha256)

    def size_of(self, sha256: str) -> int | None:
        name = self.by_sha256.get(sha256)
        return None if name is None else sum(segment.bytes for segment in self.files[name])

    def reconstruction(self, name: str, ranged: str | None, base: str) -> dict[str, Any] | None:
        """Say how a range of a file is put together; {} if the range starts past its end."""
        segments = self.files.get(name)
        if segments is None:
            return None
        total = sum(segment.bytes for segment in segments)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", ranged or "bytes=0-")
        assert match is not None, ranged
        first, last = int(match[1]), min(int(match[2] or total - 1), total - 1)
        if first >= total:
            return {}
        terms, skipped = self._terms(segments, first, last)
        runs: dict[str, list[tuple[int, int]]] = {}
        for term in terms:
            runs.setdefault(term["hash"], []).append((term["range"]["start"], term["range"]["end"]))
        fetch = {xorb: [self._piece(xorb, run, base) for run in _merged(found)] for xorb, found in runs.items()}
        return {"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch}

    def _terms(self, segments: list[Segment], first: int, last: int) -> tuple[list[dict[str, Any]], int]:
        """Narrow the segments to the chunks that hold the bytes from first to last."""
        terms: list[dict[str, Any]] = []
        skipped = position = 0
        for segment in segments:
            inside: list[int] = []
            for index, chunk in enumerate(self.chunks(segment.xorb)[segment.first : segment.end], segment.first):
                if position + chunk.size > first and position <= last:
                    if not terms and not inside:
                        skipped = first - position
                    inside.append(index)
                position += chunk.size
            if inside:
                size = sum(chunk.size for chunk in self.chunks(segment.xorb)[inside[0] : inside[-1] + 1])
                span = {"start": inside[0], "end": inside[-1] + 1}
                terms.append({"hash": segment.xorb, "unpacked_length": size, "range": span})
        return terms, skipped

    def _piece(self, xorb: str, run: tuple[int, int], base: str) -> dict[str, Any]:
        chunks = self.chunks(xorb)[run[0] : run[1]]
        return {
            "range": {"start": run[0], "end": run[1]},
            "url": f"{base}/{xorb}",
            "url_range": {"start": chunks[0].start, "end": chunks[-1].stop - 1},
        }

    def chunks(self, xorb: str) -> list[Chunk]:
        """Find the chunks of a xorb."""
        if xorb not in self._chunks:
            content, position, found = self.xorb_path(xorb).read_bytes(), 0, []
            while position + 8 <= len(content) and content[position : position + 7] != b"XETBLOB":
                packed = int.from_bytes(content[position + 1 : position + 4], "little")
                size = int.from_bytes(content[position + 5 : position + 8], "little")
                found.append(Chunk(position, position + 8 + packed, content[position + 4], size))
                position += 8 + packed
            self._chunks[xorb] = found
        return self._chunks[xorb]

    def materialise(self, sha256: str, target: Path) -> None:
        """Put a file together, for those who want plain bytes."""
        with target.open("wb") as file:
            for segment in self.files[self.by_sha256[sha256]]:
                content = self.xorb_path(segment.xorb).read_bytes()
                for chunk in self.chunks(segment.xorb)[segment.first : segment.end]:
                    file.write(_unpacked(chunk, content[chunk.start + 8 : chunk.stop]))


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join runs that overlap or touch: the client looks for one that holds all of a term."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _segment(shard: bytes, position: int) -> Segment:
    _, size, first, end = struct.unpack_from("<IIII", shard, position + 32)
    return Segment(_hex(shard[position : position + 32]), size, first, end)


def _hex(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def _unpacked(chunk: Chunk, packed: bytes) -> bytes:
    if chunk.scheme not in {LZ4, GROUPED_LZ4}:
        return packed
    plain: bytes = pa.Codec("lz4").decompress(packed, decompressed_size=chunk.size, asbytes=True)
    return _ungrouped(plain) if chunk.scheme == GROUPED_LZ4 else plain


def _ungrouped(grouped: bytes) -> bytes:
    """Undo the grouping of every fourth byte."""
    out, position = bytearray(len(grouped)), 0
    for offset in range(4):
        count = len(range(offset, len(grouped), 4))
        out[offset::4] = grouped[position : position + count]
        position += count
    return bytes(out)
