"""A model server of known speed, for measuring how well it is kept busy: OpenAI's protocol, sequences in batches.

    python benchmarks/batching_server.py '{"pass_ms": 80}'      prints its port, then serves until it is ended

As an inference server with continuous batching, it computes all sequences in flight together: a pass takes `pass_ms`
and `sequence_ms` for each sequence in it, and adds `tokens` to each; a sequence for which there is no place waits. So
its throughput grows with the number of sequences, up to `places`. The clock decides, not the processor: a pass that was
begun late makes up for it.

Texts follow the step grammar, end at the first stop string, and depend on prompt and seed alone. What is asked by chat
is a judgement: a sentence, then StrongREJECT's three ratings.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

from instant_server import ASSISTANT, WORDS, content_length, envelope

CLOSING = "<|/Reasoning_step|>"


@dataclass
class Speed:
    """How fast the server is."""

    pass_ms: float = 40.0
    sequence_ms: float = 0.2
    tokens: int = 8
    places: int = 256


@dataclass
class Sequence:
    """One text that is being written."""

    left: int
    done: asyncio.Future[None]


class Batch:
    """The sequences in flight."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._work = asyncio.Event()

    async def write(self, lengths: list[int]) -> None:
        """Take the time that so many sequences of these lengths take."""
        loop = asyncio.get_running_loop()
        sequences = [Sequence(length, loop.create_future()) for length in lengths]
        self._waiting.extend(sequences)
        self._work.set()
        await asyncio.gather(*(sequence.done for sequence in sequences))

    async def run(self) -> None:
        """Compute pass after pass."""
        loop, speed = asyncio.get_running_loop(), self._speed
        due = loop.time()
        while True:
            if not self._running and not self._waiting:
                self._work.clear()
                await self._work.wait()
                due = loop.time()
            while self._waiting and len(self._running) < speed.places:
                self._running.append(self._waiting.popleft())
            due += (speed.pass_ms + speed.sequence_ms * len(self._running)) / 1000
            await asyncio.sleep(due - loop.time())
            for sequence in self._running:
                sequence.left -= speed.tokens
                if sequence.left <= 0:
                    sequence.done.set_result(None)
            self._running = [sequence for sequence in self._running if sequence.left > 0]


class Connection(asyncio.Protocol):
    """One connection, which has one request at a time."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._buffer = b""
        self._answering: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if end and len(rest) >= content_length(head):
            self._buffer = b""
            task = asyncio.create_task(self._answer(head, rest))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            said = b'{"object": "list", "data": [{"id": "actor", "object": "model", "created": 0, "owned_by": "x"}]}'
        else:
            asked = json.loads(body)
            said = await (self._chat(asked) if "messages" in asked else self._complete(asked))
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said)
        self._transport.write(answer + said)

    async def _complete(self, asked: dict[str, Any]) -> bytes:
        seed, stops = asked.get("seed") or 0, asked.get("stop") or []
        texts = [_text(asked["prompt"], seed + index, stops) for index in range(asked.get("n") or 1)]
        lengths = [len(text.split()) * 2 for text in texts]
        await self._batch.write(lengths)
        choices: list[dict[str, object]] = [
            {"index": index, "text": text, "finish_reason": "stop", "logprobs": None}
            for index, text in enumerate(texts)
        ]
        return envelope("text_completion", choices, len(asked["prompt"]) // 4, sum(lengths))

    async def _chat(self, asked: dict[str, Any]) -> bytes:
        text = _judgement(asked["seed"])
        length = len(text.split()) * 2
        await self._batch.write([length])
        message = {"role": "assistant", "content": text, "refusal": None}
        read = sum(len(turn["content"]) for turn in asked["messages"]) // 4
        return envelope("chat.completion", [{"index": 0, "message": message, "finish_reason": "stop"}], read, length)


def _judgement(seed: int) -> str:
    """Give one sentence of 8 to 32 words, then the ratings."""
    rng = random.Random(seed)  # noqa: S311 - texts, not secrets
    refused = rng.choice(("yes", "no"))
    return f"{_words(rng)}.\nRefused: {refused}\nConvincing: {rng.randint(1, 5)}\nSpecific: {rng.randint(1, 5)}"


def _text(prompt: str, seed: int, stops: list[str]) -> str:
    """Go on to the first stop string: with one to five steps, of 8 to 32 words each, and the output."""
    rng = random.Random(f"{seed}/{prompt}")  # noqa: S311 - texts, not secrets
    begun = prompt.rpartition(ASSISTANT)[2]
    depth, text = begun.count(CLOSING), ""
    while depth == 0 or (depth < 5 and rng.random() < 0.7):
        before = "\n\n" if begun or text else ""
        text += f"{before}<|Reasoning_step|>\nTitle: Step {depth}:\n{_words(rng)}\n{CLOSING}"
        depth += 1
    text += f"\n\n<|Output|>\nFinal Answer:\nI am sorry, {_words(rng)}.\n<|/Output|>"
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(8, 32)))


async def main() -> None:
    """Serve."""
    batch = Batch(Speed(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(batch), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.gather(server.serve_forever(), batch.run())


if __name__ == "__main__":
    asyncio.run(main())
