"""What `vllm run-batch` does with a file, in the form of vLLM 0.32 (entrypoints/launchers/run_batch.py), by the stub.

It answers chats alone, in the order of the requests, and writes its file when all are answered. The chat template that
lets prompts through makes a chat the same as a continuation of its one message, so that is what the stub is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

RAW = ("include_stop_str_in_output", "stop")
"""Options of a chat that stands for a continuation."""


def run_batch(requests: Path, answers: Path, base_url: str, fail: dict[int, dict[str, Any]] | None = None) -> None:
    """Answer a file.

    Args:
        requests: what is asked.
        answers: where to.
        base_url: the stub's.
        fail: the error of some requests, by their number.
    """
    lines = []
    for number, line in enumerate(requests.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        assert record["url"] == "/v1/chat/completions"
        assert record["method"] == "POST"
        response: dict[str, Any] = {"status_code": 200, "request_id": f"vllm-batch-{number}", "body": None}
        error = (fail or {}).get(number)
        if error is None:
            response["body"] = _answer(record["body"], base_url)
        else:
            response["status_code"] = error["code"]
        lines.append(
            {
                "id": f"vllm-{number}",
                "custom_id": record["custom_id"],
                "response": response,
                "error": {"error": error} if error else None,
            }
        )
    answers.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")


def _answer(body: dict[str, Any], base_url: str) -> dict[str, Any]:
    if not all(name in body for name in RAW):
        answer: dict[str, Any] = httpx.post(f"{base_url}/chat/completions", json=body).raise_for_status().json()
        return answer
    (message,) = body["messages"]
    asked = {"prompt": message["content"], "max_tokens": body["max_completion_tokens"]} | body
    answer = httpx.post(f"{base_url}/completions", json=asked).raise_for_status().json()
    for choice in answer["choices"]:
        choice["message"] = {"role": "assistant", "content": choice.pop("text"), "refusal": None, "reasoning": None}
    return answer | {"object": "chat.completion"}
