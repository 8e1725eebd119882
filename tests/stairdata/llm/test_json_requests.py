"""Errors of a status are those that the openai package makes of the same answer."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.llm.wire.json_requests import _status_error

WORDS = st.text(max_size=20)
BODIES = st.one_of(
    WORDS,
    st.lists(WORDS, max_size=2),
    st.dictionaries(st.sampled_from(["message", "detail", "code"]), WORDS),
    st.fixed_dictionaries({"error": st.one_of(WORDS, st.none(), st.fixed_dictionaries({"message": WORDS}))}),
)


@pytest.fixture(scope="module")
def package() -> Any:
    return openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)


@given(BODIES, st.sampled_from([400, 401, 404, 422, 429, 500, 503]), st.booleans())
def test_an_error_says_what_the_packages_says(package: Any, body: Any, status: int, is_json: bool) -> None:
    text = json.dumps(body) if is_json else str(body)
    response = httpx2.Response(status, text=text, request=httpx2.Request("POST", "http://127.0.0.1:9/v1/completions"))
    ours, theirs = _status_error(response), package._make_status_error_from_response(response)
    assert (ours.status_code, ours.body, ours.code) == (theirs.status_code, theirs.body, theirs.code)
