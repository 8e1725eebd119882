"""A model that answers at once, for measuring our own side: OpenAI's protocol on a bare asyncio socket.

    python benchmarks/instant_server.py [SHARE]      prints its port, then serves until it is ended

SHARE of the answers say that they are sorry; default: 1, all. Texts follow the step grammar and depend on prompt and
seed alone; an answer has four steps and an output, of about 25 words each.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

ASSISTANT = "<|im_start|>assistant\n"
WORDS = [f"word{number}" for number in range(200)]
DEPTH = 4
STEP_TOKENS = 60
_sorry_share = [1.0]


class Server(asyncio.Protocol):
    """One connection: reads requests one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            length = content_length(head)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            body = _respond(head, rest[:length])
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.write(answer + body)


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    return 0


def _respond(head: bytes, body: bytes) -> bytes:
    if head.startswith(b"GET"):
        return b'{"object": "list", "data": [{"id": "actor", "object": "model", "created": 0, "owned_by": "x"}]}'
    asked = json.loads(body)
    if "response_format" in asked:
        return _teacher(asked)
    if "messages" in asked:
        message = {"role": "assistant", "content": "Fine.\nScore: 4", "refusal": None}
        return envelope("chat.completion", [{"index": 0, "message": message, "finish_reason": "stop"}], 100, 8)
    choices, tokens = [], 0
    for index in range(asked.get("n") or 1):
        text, count = _text(asked["prompt"], asked["seed"] + index)
        tokens += count
        choices.append({"index": index, "text": text, "finish_reason": "stop", "logprobs": None})
    return envelope("text_completion", choices, len(asked["prompt"]) // 4, tokens)


def _teacher(asked: dict[str, object]) -> bytes:
    rng = random.Random(str(asked.get("seed") or asked["messages"]))  # noqa: S311 - texts, not secrets
    steps = [{"title": f"Step {number}:", "body": _words(rng)} for number in range(DEPTH)]
    message = {
        "role": "assistant",
        "content": json.dumps({"steps": steps, "output": f"I am sorry, {_words(rng)}."}),
        "refusal": None,
    }
    choices: list[dict[str, object]] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return envelope("chat.completion", choices, 300, (DEPTH + 1) * STEP_TOKENS)


def envelope(kind: str, choices: list[dict[str, object]], read: int, written: int) -> bytes:
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    answer = {"id": "1", "object": kind, "created": 0, "model": "actor", "choices": choices, "usage": usage}
    return json.dumps(answer).encode()


def _text(prompt: str, seed: int) -> tuple[str, int]:
    rng = random.Random(seed)  # noqa: S311 - texts, not secrets
    begun = prompt.rpartition(ASSISTANT)[2]
    text = ""
    for number in range(begun.count("<|/Reasoning_step|>"), DEPTH):
        separator = "\n\n" if number else ""
        text += f"{separator}<|Reasoning_step|>\nTitle: Step {number}:\n{_words(rng)}\n<|/Reasoning_step|>"
    begin = "I am sorry" if rng.random() < _sorry_share[0] else "Well"
    text += f"\n\n<|Output|>\nFinal Answer:\n{begin}, {_words(rng)}.\n<|/Output|>"
    return text, text.count("Title") * STEP_TOKENS + STEP_TOKENS


def _words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=25))


async def main() -> None:
    """Serve."""
    _sorry_share[:] = [float(share) for share in sys.argv[1:2]] or _sorry_share
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
