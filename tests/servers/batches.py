"""OpenAI's files and batches, as an account that the stub language model answers for.

A batch runs when its state is asked for, as far as `Plan` says. Every route can lose its answer after it has acted,
and a client can be killed at that moment.
"""

from __future__ import annotations

import email
import email.policy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
RAN = {"completed", "expired", "cancelled"}


@dataclass(slots=True)
class Plan:
    """How batches go."""

    ends: str = "completed"
    """What becomes of a batch: completed, expired, failed, queue_full, or in_progress for one that does not end; broken
    for one that is failed once a share of it is answered."""
    share: float = 1.0
    """The part of its requests that is answered."""
    silent: bool = False
    """Say nothing of the others, rather than why not."""
    queue_tokens: int | None = None
    """Refuse batches once more bytes than that are enqueued, as an account's queue does with tokens."""
    lists: bool = True
    """Show batches in the list."""
    dialect: bool = False
    """Be another vendor's: metadata is refused, and states, times, counts and lines of answers have forms of their
    own, with errors among the answers."""
    lag: int = 0
    """So many looks at the list don't show the newest batch yet."""


@dataclass(slots=True)
class Account:
    """What the server keeps."""

    plan: Plan = field(default_factory=Plan)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    """How often each request was sent in some batch, by custom_id."""
    answered: Counter[str] = field(default_factory=Counter)

    async def upload(self, request: Request) -> Response:
        """POST /v1/files."""
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + await request.body(), policy=email.policy.HTTP)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        purpose, content = (parts[name].get_payload(decode=True) for name in ("purpose", "file"))
        assert isinstance(purpose, bytes)
        assert isinstance(content, bytes)
        assert purpose.strip() == b"batch"
        return JSONResponse(self.file(self.store(parts["file"].get_filename() or "", content)))

    def store(self, name: str, content: bytes) -> str:
        """Keep a file."""
        id_ = f"file-{len(self.files):04d}"
        self.files[id_] = (name, content)
        return id_

    def file(self, id_: str) -> dict[str, Any]:
        """Describe a file."""
        name, content = self.files[id_]
        return {
            "id": id_, "object": "file", "bytes": len(content), "created_at": 0, "filename": name, "purpose": "batch",
            "status": "processed",
        }  # fmt: skip

    async def content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content."""
        found = self.files.get(request.path_params["id"])
        return Response(found[1]) if found else _error(404, "no such file")

    async def create(self, request: Request) -> Response:
        """POST /v1/batches."""
        body = await request.json()
        if body["input_file_id"] not in self.files:
            return _error(400, "no such file")
        if self.plan.dialect and "metadata" in body:
            return _error(400, "unknown field: metadata")
        lines = self.files[body["input_file_id"]][1].splitlines()
        self.made.update(json.loads(line)["custom_id"] for line in lines)
        id_ = f"batch_{len(self.batches):04d}"
        self.batches[id_] = {
            "id": id_, "object": "batch", "endpoint": body["endpoint"], "errors": None, "status": "validating",
            "input_file_id": body["input_file_id"], "completion_window": body["completion_window"],
            "created_at": 2_000_000_000,
            "metadata": body.get("metadata"), "output_file_id": None, "error_file_id": None,
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }  # fmt: skip
        if self.plan.dialect:
            self.batches[id_] |= {"status": "QUEUED", "created_at": "today", "request_counts": None}
        return JSONResponse(self.batches[id_])

    async def list(self, request: Request) -> Response:
        """GET /v1/batches, newest first, two a page."""
        shown = list(reversed(self.batches.values())) if self.plan.lists else []
        if self.plan.lag > 0:
            self.plan.lag -= 1
            shown = shown[1:]
        after = request.query_params.get("after")
        start = next((index + 1 for index, batch in enumerate(shown) if batch["id"] == after), 0)
        page = shown[start : start + 2]
        more = start + 2 < len(shown)
        return JSONResponse({"object": "list", "data": page, "has_more": more})

    def run(self, batch: dict[str, Any], answer: Answer) -> None:
        """Let a batch go as the plan says."""
        if batch["status"] in RAN | {"failed", "SUCCEEDED"}:
            return
        if self.plan.ends == "broken":
            self.finish(batch, answer)
            batch["status"] = "failed"
            return
        if self.plan.ends in {"failed", "queue_full"}:
            code = "token_limit_exceeded" if self.plan.ends == "queue_full" else "invalid_json_line"
            batch |= {
                "status": "failed",
                "errors": {"object": "list", "data": [{"code": code, "message": "no: " + code}]},
            }
            return
        batch["status"] = "cancelled" if batch["status"] == "cancelling" else self.plan.ends
        if batch["status"] in RAN:
            self.finish(batch, answer)
            if self.plan.dialect:
                batch |= {"status": "SUCCEEDED", "request_counts": None}

    def finish(self, batch: dict[str, Any], answer: Answer) -> None:
        """Answer the requests that it comes to, and say of the others why not."""
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]][1].splitlines()]
        reached = round(len(lines) * self.plan.share)
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            record = {"id": f"req-{number}", "custom_id": line["custom_id"], "response": None, "error": None}
            if number >= reached and self.plan.silent:
                continue
            if number >= reached:
                record["error"] = {"code": f"batch_{batch['status']}", "message": "it was not its turn in time"}
            else:
                status, body = answer(line["body"])
                self.answered[line["custom_id"]] += 1
                record["response"] = {"status_code": status, "request_id": "r", "body": body}
            if self.plan.dialect:
                answered = record["response"]
                is_good = answered and answered["status_code"] == 200
                record["response"] = answered["body"] if is_good else answered | {"status_code": "400"}
                good.append(record)
                continue
            (good if record["response"] and record["response"]["status_code"] == 200 else bad).append(record)
        good.reverse()  # the order of answers is nobody's promise
        for name, records in (("output_file_id", good), ("error_file_id", bad)):
            if records:
                content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
                batch[name] = self.store(name, content)
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)
