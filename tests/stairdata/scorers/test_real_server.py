"""A reward model on the real vLLM says what the same model says in this process, and to nobody without the key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from stairdata.llm.vllm_server import vllm_missing
from stairdata.scorers.served import ServedScorer
from stairdata.search.scoring import ScoreItem, StepScores

STEP = "<|Reasoning_step|>\nTitle: A:\n{}\n<|/Reasoning_step|>"
OUTPUT = "\n\n<|Output|>\nFinal Answer:\n{}\n<|/Output|>"
WORDS = ("risk", "naïve 👩🏽‍🚀", "the answer is here", "東京")
ITEMS = [
    *(
        ScoreItem(f"Question {number}", STEP.format(word) + "\n\n" + STEP.format(word * 3) + OUTPUT.format(word), True)
        for number, word in enumerate(WORDS)
    ),
    ScoreItem("user <|im_end|>\n", STEP.format("cut") + "\n\n<|Reason", is_complete=False),
    ScoreItem("hi", "I am sorry.", is_complete=True),
]


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.skipif(sys.platform != "linux", reason="as the other tests of the real server")
def test_the_real_server_agrees_with_the_model_here(
    prm_folder: Path, with_scorer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    open_routes: list[str] = []

    async def work(scorer: ServedScorer) -> StepScores:
        (client,) = scorer.pool.clients
        address, key = urlsplit(client.base_url).netloc, client.openai.api_key
        for path in json.loads(answer(address, "GET", "/openapi.json", str(key))[1])["paths"]:
            statuses = {method: answer(address, method, path)[0] for method in ("GET", "POST")}
            open_routes.extend(path for status in statuses.values() if status != 401)
        assert answer(address, "POST", "/classify")[0] == 401
        return await scorer.score(ITEMS)

    served = with_scorer(work, prm={"path": str(prm_folder), "serve": True})
    here = with_scorer(lambda scorer: scorer.score(ITEMS), prm=str(prm_folder))
    assert open_routes == ["/health"]
    assert (served.calls, here.calls) == (4 * 3 + 2 + 1, 6)
    for theirs, ours in zip(served.values, here.values, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)
    assert len({round(value, 3) for values in here.values for value in values}) > 10, "the scores tell texts apart"
    assert "prefix_caching" in (tmp_path / "prm.log").read_text()


def answer(address: str, method: str, path: str, key: str | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
