"""The HTTP application: `/v1/models`, `/v1/chat/completions` and `/health`, and nothing else.

The invariant: each search has a place among those in flight and is a task of its own, which ends with its connection. A
client that hangs up cancels it, and with it the requests to the models.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stairdata.llm.in_server.guard import OPEN_PATH, AsgiApp, ServerGuard
from stairdata.llm.outcomes import RequestFailedError
from stairdata.serving.answers import KEEP_ALIVE, AnswerForm, event
from stairdata.serving.limits import Admission, ServingLimits
from stairdata.serving.protocol import ChatQuestion, ChosenAnswer, Searcher
from stairdata.serving.refusals import RefusedRequestError, refusal_of
from stairdata.serving.requests import read_request
from stairdata_schemas.errors import ModelError, ServerError, quote

STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
READ_BEYOND = 16
"""How many times the largest body is read, and thrown away: a client that is still sending would not see the answer."""
_CLOSED = {"Connection": "close"}


@dataclass(slots=True)
class Service:
    """What the routes share.

    Args:
        searcher: answers.
        model: the name that clients ask for.
        limits: of requests.
        hides_reasoning: steps are left out of answers.
    """

    searcher: Searcher
    model: str
    limits: ServingLimits = field(default_factory=ServingLimits)
    hides_reasoning: bool = False
    failure: ServerError | None = None
    """Why no question can be answered any more."""
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    created: int = field(default_factory=lambda: int(time.time()))
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits.in_flight)

    async def answer(self, question: ChatQuestion) -> ChosenAnswer:
        """Search, within the time that a search may take."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self.searcher.answer(question)
        except ServerError as error:
            self.failure = error
            self.failed.set()
            raise


def application(service: Service, key: str) -> AsgiApp:
    """Return the application behind its guard, which wants the key and a Host of this machine."""

    async def chat(request: Request) -> ChatReply:
        return await _chat(service, request)

    async def models(_: Request) -> Response:
        model = {"id": service.model, "object": "model", "created": service.created, "owned_by": "stairdata"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return Response()

    inner = Starlette(
        routes=[
            Route(OPEN_PATH, health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers={RefusedRequestError: _refuse, HTTPException: _refuse_http, Exception: _refuse},
    )
    inner.router.redirect_slashes = False
    return ServerGuard(inner, key)


async def _chat(service: Service, request: Request) -> ChatReply:
    _check_type(request)
    chat = read_request(await _body(request, service.limits), service.limits)
    if chat.model != service.model:
        raise RefusedRequestError(
            f"no model {quote(chat.model)} here; this server has {quote(service.model)}",
            404,
            param="model",
            code="model_not_found",
        )
    try:
        service.searcher.check(chat.question)
    except RequestFailedError as error:
        raise refusal_of(error) from error
    except ModelError as error:
        raise RefusedRequestError(str(error), param="messages", code="invalid_conversation") from error
    form = AnswerForm(service.model, service.hides_reasoning, chat.with_usage)
    leave = service.admission.enter()  # nothing is awaited between this and the reply, which gives it back
    return ChatReply(lambda: service.answer(chat.question), form, leave, service.limits, is_stream=chat.is_stream)


class ChatReply(Response):
    """Runs a search and sends what it finds; ends it when the client hangs up.

    Args:
        search: begins the search.
        form: of the answer.
        leave: called when the search has ended.
        limits: of requests.
        is_stream: send events instead of one JSON object.
    """

    def __init__(
        self,
        search: Callable[[], Awaitable[ChosenAnswer]],
        form: AnswerForm,
        leave: Callable[[], None],
        limits: ServingLimits,
        *,
        is_stream: bool,
    ) -> None:
        self._search, self._form, self._leave, self._limits = search, form, leave, limits
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        searching: asyncio.Future[Any] = asyncio.ensure_future(self._search())
        searching.add_done_callback(lambda _: self._leave())
        hanging_up: asyncio.Future[Any] = asyncio.ensure_future(_hang_up(receive))
        try:
            if self._is_stream:
                await self._stream(searching, hanging_up, send)
            else:
                await asyncio.wait({searching, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
                if searching.done():
                    await _whole(searching, self._form)(scope, receive, send)
        finally:
            searching.cancel()
            hanging_up.cancel()
            await asyncio.gather(searching, hanging_up, return_exceptions=True)

    async def _stream(self, searching: asyncio.Future[Any], hanging_up: asyncio.Future[Any], send: Send) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in STREAM_HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not (searching.done() or hanging_up.done()):
            await _send(send, KEEP_ALIVE)
            await asyncio.wait(
                {searching, hanging_up}, timeout=self._limits.keep_alive, return_when=asyncio.FIRST_COMPLETED
            )
        if not searching.done():
            return
        failure = searching.exception()
        events = self._form.events(searching.result()) if failure is None else [event(refusal_of(failure).body)]
        for each in events:
            await _send(send, each)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _whole(searching: asyncio.Future[ChosenAnswer], form: AnswerForm) -> Response:
    failure = searching.exception()
    return JSONResponse(form.whole(searching.result())) if failure is None else refusal_of(failure).response()


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise RefusedRequestError(f"send Content-Type: application/json, not {quote(given)}", 415)


async def _body(request: Request, limits: ServingLimits) -> bytes:
    body, length = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                length += len(piece)
                if length <= limits.body_bytes:
                    body += piece
                elif length > READ_BEYOND * limits.body_bytes:
                    break
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} s"
        raise RefusedRequestError(message, 408, headers=_CLOSED) from None
    except ClientDisconnect:
        raise RefusedRequestError("the body ended before its end") from None
    if length > limits.body_bytes:
        raise RefusedRequestError(f"the body has more than {limits.body_bytes:,} bytes", 413, headers=_CLOSED)
    return bytes(body)


async def _refuse(_: Request, error: Exception) -> Response:
    return refusal_of(error).response()


async def _refuse_http(_: Request, error: Any) -> Response:
    """Say in OpenAI's form that there is no such route, or none for this method."""
    return RefusedRequestError(error.detail, error.status_code, headers=error.headers).response()
