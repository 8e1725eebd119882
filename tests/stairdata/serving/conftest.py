"""The server that searches, run by uvicorn in a thread, and a search that is told what to find."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import openai
import pytest

from stairdata.serving.app import Service, application
from stairdata.serving.limits import ServingLimits
from stairdata.serving.protocol import ChatQuestion, ChosenAnswer
from stairdata.serving.server import running, take_port

KEY = "key-of-the-tests-0123456789"
PATIENCE = 300.0
ANSWER = (
    "<|Reasoning_step|>\nTitle: Problem Analysis:\nwho asks?\n<|/Reasoning_step|>\n\n"
    "<|Reasoning_step|>\nTitle: Plan:\nnaïve 👩🏽‍🚀\n\nsecond\n<|/Reasoning_step|>\n\n"
    "<|Output|>\nFinal Answer:\nWater.\n\nDrink it.\n<|/Output|>"
)


class ScriptedSearcher:
    """Finds what it is told, when it is told."""

    def __init__(self) -> None:
        self.found = ChosenAnswer(ANSWER, is_complete=True, prompt_tokens=21, completion_tokens=340)
        self.error: Exception | None = None
        self.refuses: Exception | None = None
        self.questions: list[ChatQuestion] = []
        self.begun, self.cancelled = threading.Semaphore(0), threading.Semaphore(0)
        self.release = threading.Event()
        self.release.set()

    def check(self, _question: ChatQuestion) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def answer(self, question: ChatQuestion) -> ChosenAnswer:
        self.questions.append(question)
        self.begun.release()
        try:
            await asyncio.to_thread(self.release.wait, PATIENCE)
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        if self.error is not None:
            raise self.error
        return self.found

    async def watch(self) -> None:
        await asyncio.Event().wait()

    def is_begun(self) -> bool:
        return self.begun.acquire(timeout=PATIENCE)

    def is_cancelled(self) -> bool:
        return self.cancelled.acquire(timeout=PATIENCE)


class RunningServer:
    """A server that answers in a thread of its own."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{
                "base_url": f"http://127.0.0.1:{self.port}/v1",
                "api_key": KEY,
                "max_retries": 0,
                "timeout": PATIENCE,
                **options,
            }
        )

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def send(
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Send a request as it is, and return status, JSON and headers."""
        connection = self.connect()
        try:
            given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None, answer.headers
        finally:
            connection.close()


@contextmanager
def in_thread(make: Callable[[], AbstractAsyncContextManager[Service]]) -> Iterator[RunningServer]:
    """Run a server until the context ends; its service is opened in the thread's event loop."""
    listener, ready, found = take_port(0), threading.Event(), []
    port = listener.getsockname()[1]
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(ended.set))
        async with make() as service, running(application(service, KEY), listener, service.limits.in_flight):
            found.append(service)
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield RunningServer(found[0], port)
    finally:
        ends[0]()
        thread.join(PATIENCE)


@pytest.fixture
def searcher() -> ScriptedSearcher:
    return ScriptedSearcher()


@pytest.fixture
def serve(searcher: ScriptedSearcher) -> Iterator[Callable[..., RunningServer]]:
    """Start a server of the scripted search."""
    with ExitStack() as stack:

        def start(hides_reasoning: bool = False, **limits: Any) -> RunningServer:
            def make() -> AbstractAsyncContextManager[Service]:
                return nullcontext(Service(searcher, "actor", ServingLimits(**limits), hides_reasoning))

            return stack.enter_context(in_thread(make))

        yield start
        searcher.release.set()  # else a thread would wait for it
