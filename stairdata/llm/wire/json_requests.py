"""Requests for an answer, sent and read as plain JSON.

The openai package copies what it sends part by part, by its type, builds address and headers anew for each request, and
makes an object of each part of an answer: half of the processor's time that it takes (docs/performance.md). Settings
and errors are the package's; listings, files and batches go through it.
"""

from __future__ import annotations

import json
import ssl
from functools import cached_property, lru_cache
from typing import Any

import anyio
import httpx2
import openai

from stairdata.llm.wire.bounded_http import BoundedHttpClient


class JsonRequests:
    """Sends JSON to a server and returns what it answers, of whatever shape.

    Args:
        package: the client of the openai package; its address, key, headers and time limit hold here, too.
        http: what it sends with.
        timeout: seconds that a request may take.
    """

    def __init__(self, package: openai.AsyncOpenAI, http: BoundedHttpClient, timeout: float) -> None:
        self._package = package
        self._http = http
        self._extensions = {"timeout": httpx2.Timeout(timeout).as_dict()}
        self._url = lru_cache(self._join)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a body once.

        Returns:
            The JSON of the answer, or its text where it is none and does not claim to be.

        Raises:
            openai.APIConnectionError: there was no whole answer; APITimeoutError: in time.
            openai.APIStatusError: it was an error.
            ValueError: the body can't be written as JSON, or the answer can't be read.
        """
        request = self._request(path, body)
        try:
            response = await self._http.send(request)
        except httpx2.TimeoutException as error:
            raise openai.APITimeoutError(request=request) from error
        except (httpx2.RequestError, ssl.SSLError, anyio.EndOfStream) as error:
            raise openai.APIConnectionError(request=request) from error
        if not response.is_success:
            raise _status_error(response)
        return _read(response)

    def _request(self, path: str, body: dict[str, Any]) -> httpx2.Request:
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        return httpx2.Request(
            "POST", self._url(path), headers=self._headers, content=content, extensions=self._extensions
        )

    @cached_property
    def _headers(self) -> httpx2.Headers:
        # an Omit stands for a header that is left out
        named = {**self._package.auth_headers, **self._package.default_headers}
        return httpx2.Headers({name: value for name, value in named.items() if isinstance(value, str)})

    def _join(self, path: str) -> httpx2.URL:
        base = self._package.base_url
        return base.copy_with(raw_path=base.raw_path + path.lstrip("/").encode())


def _read(response: httpx2.Response) -> Any:
    if response.headers.get("content-type", "").endswith("json"):
        return response.json()
    try:
        return json.loads(response.text)
    except (ValueError, RecursionError):
        return response.text


def _status_error(response: httpx2.Response) -> openai.APIStatusError:
    """Return the package's error of a status, with the words that the package would find in its body."""
    text = response.text.strip()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") if isinstance(error, dict) and isinstance(body, dict) else None
    message = f"Error code: {response.status_code}" + (f" - {said}" if isinstance(said, str) and said else "")
    return openai.APIStatusError(message, response=response, body=error)
