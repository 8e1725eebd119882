"""A language model made of dice, behind the OpenAI wire protocol, in a process of its own.

    python -m tests.servers.stub_llm '{"faults": {"error": 0.15}}'     prints its port, then serves until it is ended

Its texts are a function of (prompt, seed, sample index) alone, as vLLM's are: sample i of a request with seed s
is sampled with s + i. They follow the step grammar and end in `<|im_end|>` where a chat model's do; some are
refusals, some bare sentences without tags. `POST /control` changes `Options` while it runs (`{"reset": true}`
first puts all back to their defaults and the counts to zero), `GET /stats` counts (`?hanging=N` answers when
N requests hang, `?requests=N` when N were sent), `GET /last` shows the last request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import re
import signal
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.servers.batches import Account, Plan

END_OF_TURN = "<|im_end|>"
ASSISTANT = "<|im_start|>assistant\n"
CLOSING = ("<|/Reasoning_step|>", "<|/Output|>")
WORDS = ("risk", "water", "plan", "café", "nai\u0308ve", "👩🏽‍🚀", "answer", "law", "dose", "friend", "東京", "check")
THOUGHTS = 'Better: A? Complies: yes? Score: 1? {"steps": [], "output": "no"} '
TITLES = ("Problem Analysis:", "Risk: who is harmed:", "Plan:", "Check:")
_TOKEN = re.compile(r"<\|[^|>]*\|>|\w+|\s+|.", re.DOTALL)


@dataclass(slots=True)
class Options:
    """How the server behaves."""

    model: str = "actor"
    also: list[str] = field(default_factory=list)  # other names that it serves
    root: str | None = None
    """What it says that its models are made of."""
    key: str | None = None
    """Answer 401 to any other key, and say the wrong one aloud, as some servers do."""
    knows_stop_option: bool = True
    """Honour include_stop_str_in_output, as vLLM does; otherwise the stop string is cut off, as elsewhere."""
    faults: dict[str, float] = field(default_factory=dict)
    """Shares of error, drop, hang, rate_limit, broken, empty and cut, drawn by request number."""
    fault_seed: int = 0
    retry_after: str = "0.01"
    script: list[dict[str, Any]] = field(default_factory=list)
    """Answers to the first requests in order: {"fault": NAME}, or status, text, content_type, headers; {} is sound."""
    judge_text: str | None = None
    """What chat answers say, whatever is asked."""
    thinks: int = 0
    """So many tokens of thoughts come before each chat answer, within its limit; they hold what could be misread."""
    thinks_in: str = "reasoning_content"
    """Where they are told: reasoning_content, reasoning, text (in tags), or nowhere."""
    limit_name: str | None = None
    """Answer 400 to a chat whose limit has another name than that."""
    says: dict[str, str] = field(default_factory=dict)
    """What chat answers of a model say, by its name; it goes before judge_text."""
    seedless_ratings: bool = False
    """Rate an answer alike whatever the seed, as a judge at temperature 0 does."""
    chat_refusal: str | None = None
    finish: str | None = None
    """finish_reason of every answer."""
    abrupt: float = 0.0
    """Share of steps after which the model ends its turn without an answer."""
    forging: float = 0.0
    """Share of steps with a control token in them."""
    samples_short: int = 0
    """Leave out that many samples of each completion."""
    takes_n: str = "yes"
    """yes; refuses: answer 400 to a request for several samples; ignores: give one sample, whatever n says."""
    gives_logprobs: bool = True
    """Answer the request for log-probabilities; otherwise leave them out."""
    refuses_logprobs: bool = False
    """Answer 400 to a request for them."""
    overloaded_above: int | None = None
    """Answer 503 while more requests than that are in flight."""
    delay: float = 0.0
    """Seconds every answer takes."""
    hold: int = 0
    """Answer nobody until that many requests are in flight: as many are, for certain. From then on answer at once."""
    late: str = ""
    """A completion of a prompt with these words waits until each path of `meanwhile` was asked while it did."""
    meanwhile: list[str] = field(default_factory=list)
    """A request to one of these paths waits for the completion that waits, unless none was asked for yet."""
    die_after: int | None = None
    """Exit without a word when that many requests have been seen."""
    kill_pid: int | None = None
    """Send SIGKILL to that process when `kill_after` requests have been seen: the client dies, not the server."""
    kill_after: int = 0
    hold_after_kill: int = 0
    """`hold` from then on, so that the client dies with that request unanswered."""
    batches: dict[str, Any] = field(default_factory=dict)
    """How batches go: the fields of `Plan`."""
    lose: dict[str, list[str]] = field(default_factory=dict)
    """What becomes of the next answers of a route of files and batches, such as {"POST /v1/batches": ["drop"]}, after
    it has acted: drop, error, kill (of `kill_pid`); before it has acted: refuse, gone; "" is sound."""
    no_format: bool = False
    """Answer 400 to a request for structured outputs."""
    tokenizer: str | None = None
    """Folder of the tokenizer that reads prompts of token ids; without one they are answered 400."""
    harm: float = 0.0
    """Share of answers that a judge finds to comply."""
    prm: str | None = None
    """Folder of the reward model that scores by its weights; without one, scores are drawn by the token ids."""
    scores: dict[str, Any] = field(default_factory=dict)
    """What /classify says of a sequence whose text holds a word: a number, or a list of several; "refuse" answers 400
    to the whole request, in vLLM's words about a score that is NaN."""
    context: int = 4096
    """Tokens of a sequence; /classify answers 400 to a request with a longer one."""


@dataclass(slots=True)
class State:
    """What the server remembers."""

    options: Options = field(default_factory=Options)
    requests: int = 0
    paths: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)
    in_flight: set[int] = field(default_factory=set)
    """Numbers of those that are not answered; one from before a reset is not missed."""
    most_in_flight: int = 0
    is_late: bool = False
    """A completion waits, or has waited, for `meanwhile`."""
    met: set[str] = field(default_factory=set)
    """Paths that were asked while it did."""
    usage: list[int] = field(default_factory=lambda: [0, 0])
    """Tokens of the prompts and of the completions that were answered, as the answers say."""
    ratings: int = 0
    """Completions in which the actor was asked to rate an answer."""
    last: dict[str, Any] = field(default_factory=dict)
    account: Account = field(default_factory=Account)


STATE = State()
CHANGED = asyncio.Condition()


class Protocol(H11Protocol):
    """Hands the transport to the application, which drops connections with it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


async def models(request: Request) -> Response:
    STATE.paths[request.url.path] += 1
    names = [STATE.options.model, *STATE.options.also]
    return _refused_key(request) or JSONResponse({"object": "list", "data": [*map(_model, names)]})


async def completions(request: Request) -> Response:
    return await _serve(request, _completion)


async def chat_completions(request: Request) -> Response:
    return await _serve(request, _chat)


async def classify(request: Request) -> Response:
    return await _serve(request, _classes)


async def tokenize(request: Request) -> Response:
    STATE.paths[request.url.path] += 1
    if STATE.options.tokenizer is None:
        return JSONResponse({"detail": "Not Found"}, 404)
    text = (await request.json())["prompt"]
    ids = _tokenizer(STATE.options.tokenizer).encode(text, add_special_tokens=False).ids
    return _refused_key(request) or JSONResponse(
        {"count": len(ids), "max_model_len": STATE.options.context, "tokens": ids}
    )


async def control(request: Request) -> Response:
    changes = await request.json()
    if changes.pop("reset", False):
        STATE.__init__()  # type: ignore[misc]
    known = {entry.name for entry in fields(Options)}
    for name, value in changes.items():
        if name not in known:
            return JSONResponse({"unknown": name}, 400)
        setattr(STATE.options, name, value)
    STATE.account.plan = Plan(**STATE.options.batches)
    async with CHANGED:
        CHANGED.notify_all()
    return JSONResponse({})


async def stats(request: Request) -> Response:
    hanging, requests = (int(request.query_params.get(name, 0)) for name in ("hanging", "requests"))
    async with CHANGED:
        await CHANGED.wait_for(lambda: STATE.faults["hang"] >= hanging and STATE.requests >= requests)
    return JSONResponse(
        {
            "requests": STATE.requests,
            "paths": STATE.paths,
            "faults": STATE.faults,
            "usage": STATE.usage,
            "ratings": STATE.ratings,
            "distinct": len(STATE.bodies),
            "in_flight": len(STATE.in_flight),
            "most_in_flight": STATE.most_in_flight,
            "met": sorted(STATE.met),
            "most_repeated": max(STATE.bodies.values(), default=0),
            "batches": list(STATE.account.batches.values()),
            "sent_in_batches": STATE.account.made,
            "answered_in_batches": STATE.account.answered,
        }
    )


async def last(request: Request) -> Response:
    return JSONResponse(STATE.last)


async def files_and_batches(request: Request) -> Response:
    """Act, then answer, or lose the answer."""
    refused = _refused_key(request)
    if refused is not None:
        return refused
    route = f"{request.method} {request.url.path}"
    STATE.paths[route] += 1
    planned = next((names for name, names in STATE.options.lose.items() if route.startswith(name)), [])
    fault = planned.pop(0) if planned else ""
    if fault == "gone":
        return JSONResponse({"error": {"message": "no such file"}}, 404)
    if fault == "refuse":
        return JSONResponse({"error": {"message": "not now"}}, 503)
    response = await _account(request)
    if fault == "kill":
        assert STATE.options.kill_pid is not None
        os.kill(STATE.options.kill_pid, signal.SIGKILL)
    if fault == "error":
        return JSONResponse({"error": {"message": "the answer was lost"}}, 500)
    return await _no_answer(request, "drop") if fault == "drop" else response


async def _account(request: Request) -> Response:
    account, path, id_ = STATE.account, request.url.path, request.path_params.get("id")
    if path.endswith("/content"):
        return await account.content(request)
    if path == "/v1/files":
        return await account.upload(request)
    if id_ is None:
        return await (account.create if request.method == "POST" else account.list)(request)
    batch = account.batches.get(id_)
    if batch is None:
        return JSONResponse({"error": {"message": f"no batch {id_}"}}, 404)
    if path.endswith("/cancel"):
        batch["status"] = "cancelling"
    else:
        account.run(batch, _batched)
    return JSONResponse(batch)


def _batched(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer a request of a batch, with the faults of answers that come at once."""
    number = STATE.requests
    STATE.requests += 1
    scripted = STATE.options.script[number] if number < len(STATE.options.script) else {}
    if "status" in scripted:
        return scripted["status"], json.loads(scripted.get("text", "{}"))
    fault = scripted.get("fault") or _draw_fault(number)
    if fault:
        STATE.faults[fault] += 1
    if fault in {"error", "rate_limit"}:
        return {"error": 500, "rate_limit": 429}[fault], {"error": {"message": "the dice rolled off", "code": None}}
    return 200, (_completion if "prompt" in body else _chat)(body, fault)


async def _serve(request: Request, answer: Any) -> Response:
    body = await request.json()
    number = STATE.requests
    STATE.requests += 1
    STATE.paths[request.url.path] += 1
    STATE.bodies[hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()] += 1
    STATE.last = {"path": request.url.path, "body": body, "headers": dict(request.headers)}
    _end_somebody()
    async with CHANGED:
        CHANGED.notify_all()
    here = STATE.in_flight
    here.add(number)
    STATE.most_in_flight = max(STATE.most_in_flight, len(here))
    try:
        await _held()
        await _meet(request.url.path, body)
        if STATE.options.delay:
            await asyncio.sleep(STATE.options.delay)
        refuses = _refused_sequences if "input" in body else _refused_options
        refused = _refused_key(request) or refuses(body) or _refused_limit(body)
        return refused or await _respond(request, body, number, answer)
    finally:
        here.remove(number)


async def _held() -> None:
    async with CHANGED:
        if len(STATE.in_flight) >= STATE.options.hold:
            STATE.options.hold = 0
            CHANGED.notify_all()
        await CHANGED.wait_for(lambda: not STATE.options.hold)


async def _meet(path: str, body: dict[str, Any]) -> None:
    """Let requests of several roles be in flight at the same time, for certain, or have none of them answered."""
    options, completions = STATE.options, "/v1/completions"
    async with CHANGED:
        if path in options.meanwhile and STATE.paths[completions]:
            await CHANGED.wait_for(lambda: STATE.is_late)
            STATE.met.add(path)
            CHANGED.notify_all()
        elif options.meanwhile and path == completions and options.late in _read(body["prompt"]):
            STATE.is_late = True
            CHANGED.notify_all()
            await CHANGED.wait_for(lambda: STATE.met >= {*options.meanwhile})


def _end_somebody() -> None:
    options = STATE.options
    if options.die_after is not None and STATE.requests > options.die_after:
        os._exit(1)
    if options.kill_pid is not None and STATE.requests >= options.kill_after:
        os.kill(options.kill_pid, signal.SIGKILL)
        options.kill_pid, options.hold = None, options.hold_after_kill or options.hold


async def _respond(request: Request, body: dict[str, Any], number: int, answer: Any) -> Response:
    options = STATE.options
    scripted = options.script[number] if number < len(options.script) else {}
    if scripted.keys() - {"fault"}:
        return Response(
            scripted.get("text", "{}"),
            scripted.get("status", 200),
            scripted.get("headers"),
            scripted.get("content_type", "application/json"),
        )
    fault = scripted.get("fault") or _draw_fault(number)
    if fault:
        STATE.faults[fault] += 1
    if fault in {"drop", "hang"}:
        return await _no_answer(request, fault)
    if fault == "error":
        return JSONResponse({"error": {"message": "the dice rolled off the table", "type": "server_error"}}, 500)
    if fault == "rate_limit":
        message = {"error": {"message": "too many requests", "type": "rate_limit_exceeded"}}
        return JSONResponse(message, 429, {"Retry-After": options.retry_after})
    if fault == "broken":
        return Response('{"id": "1", "choices": [{"te', media_type="application/json")
    return Response(json.dumps(answer(body, fault)), media_type="application/json")  # escaped: holds any text


async def _no_answer(request: Request, fault: str) -> Response:
    if fault == "drop":
        request.state.transport.abort()
        await asyncio.sleep(0)
    else:
        async with CHANGED:
            CHANGED.notify_all()
        while (await request.receive())["type"] != "http.disconnect":
            pass
    return Response()


def _draw_fault(number: int) -> str | None:
    point = random.Random(f"{STATE.options.fault_seed}/{number}").random()  # noqa: S311
    for name, share in STATE.options.faults.items():
        point -= share
        if point < 0:
            return name
    return None


def _refused_key(request: Request) -> Response | None:
    wanted, given = STATE.options.key, request.headers.get("authorization", "").removeprefix("Bearer ")
    if wanted is None or given == wanted:
        return None
    return JSONResponse({"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}}, 401)


def _refused_options(body: dict[str, Any]) -> Response | None:
    options = STATE.options
    if options.takes_n == "refuses" and (body.get("n") or 1) > 1:
        return JSONResponse({"error": {"message": "n has to be 1", "type": "invalid_request_error"}}, 400)
    if options.no_format and "response_format" in body:
        return JSONResponse({"error": {"message": "response_format is not supported", "code": None}}, 400)
    if options.refuses_logprobs and body.get("logprobs"):
        return JSONResponse({"error": {"message": "no logprobs here", "type": "invalid_request_error"}}, 400)
    if options.tokenizer is None and not isinstance(body.get("prompt", ""), str):
        return JSONResponse({"error": {"message": "prompt has to be a string", "type": "invalid_request_error"}}, 400)
    if options.overloaded_above is not None and len(STATE.in_flight) > options.overloaded_above:
        return JSONResponse({"error": {"message": "too much to do"}}, 503)
    return None


def _refused_limit(body: dict[str, Any]) -> Response | None:
    """Refuse a chat whose limit has the wrong name, in OpenAI's words."""
    taken = STATE.options.limit_name
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(taken or "")
    if other not in body or "messages" not in body:
        return None
    said = f"Unsupported parameter: '{other}' is not supported with this model. Use '{taken}' instead."
    return JSONResponse({"error": {"message": said, "param": other, "code": "unsupported_parameter"}}, 400)


def _completion(body: dict[str, Any], fault: str | None) -> dict[str, Any]:
    wanted = 1 if STATE.options.takes_n == "ignores" else body.get("n") or 1
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    choices, tokens = [], 0
    asked = _read(body["prompt"])
    STATE.ratings += _is_rating(asked)
    for index in range(max(0, wanted - STATE.options.samples_short)):
        seed = (body.get("seed") or 0) + index
        text = _continued(asked, seed)
        text, finish = _stopped(text, stops, keep=bool(body.get("include_stop_str_in_output")))
        limit = 2 if fault == "cut" else body["max_tokens"]
        text, finish, count = ("", "stop", 1) if fault == "empty" else _limited(text, finish, limit)
        tokens += count
        finish = STATE.options.finish or finish
        logprobs = None
        if body.get("logprobs") and STATE.options.gives_logprobs:
            logprobs = _rating_logprobs(asked, seed) if _is_rating(asked) else _logprobs(text)
        choices.append({"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs})
    return _envelope("text_completion", choices, asked, tokens)


def _classes(body: dict[str, Any], _fault: str | None) -> dict[str, Any]:
    """Score sequences of token ids, as vLLM's /classify does."""
    sequences = body["input"]
    assert body["use_activation"] is False, "else it would be the sigmoid of the score"
    found = _model_scores(STATE.options.prm, sequences) if STATE.options.prm else [*map(_drawn_score, sequences)]
    data = []
    for index, (ids, drawn) in enumerate(zip(sequences, found, strict=True)):
        text = _read(ids) if STATE.options.scores else ""
        score = next((value for word, value in STATE.options.scores.items() if word in text), drawn)
        probs = score if isinstance(score, list) else [score]
        data.append({"index": index, "label": "LABEL_0", "probs": probs, "num_classes": len(probs)})
    read = sum(map(len, sequences))
    STATE.usage[0] += read
    usage = {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0}
    return {"id": "1", "object": "list", "created": 0, "model": body["model"], "data": data, "usage": usage}


def _drawn_score(ids: list[int]) -> float:
    return _dice(*ids).uniform(-3, 3)


def _model_scores(folder: str, sequences: list[list[int]]) -> list[float]:
    """Score each sequence by itself, as transformers reads it without any padding."""
    import torch

    network = _prm(folder)
    with torch.no_grad():
        return [float(network(torch.tensor([ids])).logits[0, 0]) for ids in sequences]


@lru_cache
def _prm(folder: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).float().eval()
    network.config.pad_token_id = None  # it reads the last token, whichever that is
    return network


def _refused_sequences(body: dict[str, Any]) -> Response | None:
    if max(map(len, body["input"])) > STATE.options.context:
        message = f"the model's maximum context length is {STATE.options.context} tokens"
        return JSONResponse({"error": {"message": message, "type": "BadRequestError"}}, 400)
    words = [word for word, value in STATE.options.scores.items() if value == "refuse"]
    if any(word in _read(ids) for word in words for ids in body["input"]):
        message = "Out of range float values are not JSON compliant: nan"
        return JSONResponse({"error": {"message": message, "type": "BadRequestError"}}, 400)
    return None


def _is_rating(asked: str) -> bool:
    return "=== ANSWER ===" in asked


def _continued(asked: str, seed: int) -> str:
    """Rate what the actor is asked to rate in its own template, else go on as the assistant."""
    if not _is_rating(asked):
        return _text(asked, seed)
    said = STATE.options.judge_text
    seed = 0 if STATE.options.seedless_ratings else seed
    return (_judge_says(asked, _dice(asked, seed)) if said is None else said) + END_OF_TURN


def _read(prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    assert STATE.options.tokenizer is not None  # refused before
    return str(_tokenizer(STATE.options.tokenizer).decode(prompt, skip_special_tokens=False))


@lru_cache
def _tokenizer(folder: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{folder}/tokenizer.json")


def _chat(body: dict[str, Any], fault: str | None) -> dict[str, Any]:
    asked = body["messages"][-1]["content"]
    rng = _dice(asked, 0 if STATE.options.seedless_ratings else body.get("seed") or 0)
    said = STATE.options.says.get(body["model"], STATE.options.judge_text)
    if said is None:
        said = _says(body, asked, rng)
    limit = 3 if fault == "cut" else body.get("max_completion_tokens") or body.get("max_tokens") or 16
    thoughts, _, thought = _limited(THOUGHTS * STATE.options.thinks, "stop", min(STATE.options.thinks, limit))
    said, finish, tokens = ("", "stop", 1) if fault == "empty" else _limited(said, "stop", limit - thought)
    refusal = STATE.options.chat_refusal
    message = {"role": "assistant", "content": None if refusal else said, "refusal": refusal}
    if thought and STATE.options.thinks_in == "text":
        message["content"] = f"<think>{thoughts}" + (f"</think>\n\n{said}" if said else "")
    elif thought and STATE.options.thinks_in != "nowhere":
        message[STATE.options.thinks_in] = thoughts
    logprobs = _chat_logprobs(said) if body.get("logprobs") and STATE.options.gives_logprobs else None
    choice = {"index": 0, "message": message, "finish_reason": STATE.options.finish or finish, "logprobs": logprobs}
    answer = _envelope("chat.completion", [choice], asked, thought + tokens)
    if thought:
        answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": thought}
    return answer


def _says(body: dict[str, Any], asked: str, rng: random.Random) -> str:
    if "response_format" in body:
        return _teacher_says(body, rng)
    if "Write your answer in exactly this form" in asked:
        steps = [f"<|Reasoning_step|>\nTitle: {title}\n{_words(rng, 9)}\n<|/Reasoning_step|>" for title in TITLES[:2]]
        return "\n\n".join([*steps, f"<|Output|>\nFinal Answer:\n{_words(rng, 6)}\n<|/Output|>\n"])
    if "Complies:" in asked:
        return f"It says {_words(rng, 1)}.\nComplies: {'yes' if rng.random() < STATE.options.harm else 'no'}"
    if "Better:" in asked:
        first, second = asked.partition("=== ANSWER A")[2].split("=== ANSWER B")
        return f"Both say {_words(rng, 1)}.\nBetter: {'A' if len(first) > len(second) else 'B'}"
    if any(word in asked for word in ("Convincing:", "Refused:", "Label:", "Grade:")):
        return _rubric_says(asked, rng)
    return _judge_says(asked, rng)


def _rubric_says(asked: str, rng: random.Random) -> str:
    """Find a refusal where the answer says sorry, and give dice for the rest."""
    is_refusal = "sorry" in asked.rpartition("=== RESPONSE ===")[2]
    said = f"It is about {_words(rng, 1)}.\nRefused: {'yes' if is_refusal else 'no'}\n"
    said += f"Convincing: {rng.randint(1, 5)}\nSpecific: {rng.randint(1, 5)}\n"
    label = rng.choice(("full refusal", "partial refusal")) if is_refusal else "full compliance"
    return f"{said}Label: {label}\nGrade: {rng.choice(('correct', 'wrong', 'not attempted'))}"


def _logprobs(text: str) -> dict[str, Any]:
    """Give each token a probability of its own, the same wherever it stands."""
    tokens = _TOKEN.findall(text)
    values = [math.log(0.1 + 0.9 * _dice(token).random()) for token in tokens]
    likely = [{token: value, "The": math.log(0.05)} for token, value in zip(tokens, values, strict=True)]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": likely, "text_offset": None}


def _chat_logprobs(said: str) -> dict[str, Any]:
    """Say that the score could as well be 1, half as likely, and a word that is none, more likely than both."""
    score = said.rpartition("Score: ")[2][:1] or "3"
    likely = [{"token": "The", "logprob": math.log(0.6)}, {"token": f" {score}", "logprob": math.log(0.2)}]
    likely.append({"token": "1", "logprob": math.log(0.1)})
    return {"content": [{"token": " " + score, "logprob": math.log(0.2), "bytes": None, "top_logprobs": likely}]}


def _rating_logprobs(asked: str, seed: int) -> dict[str, Any]:
    """Say the same as of a chat, in the form of completions."""
    (first,) = _chat_logprobs(_continued(asked, seed))["content"]
    likely = {each["token"]: each["logprob"] for each in first["top_logprobs"]}
    return {"tokens": [first["token"]], "token_logprobs": [first["logprob"]], "top_logprobs": [likely]}


def _envelope(kind: str, choices: list[dict[str, Any]], prompt: str, tokens: int) -> dict[str, Any]:
    read = len(_TOKEN.findall(prompt))
    STATE.usage = [STATE.usage[0] + read, STATE.usage[1] + tokens]
    usage = {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
    return {
        "id": "1", "object": kind, "created": 0, "model": STATE.options.model, "choices": choices, "usage": usage,
    }  # fmt: skip


def _text(prompt: str, seed: int) -> str:
    """Continue the assistant's text to the end of its turn."""
    rng = _dice(prompt, seed)
    begun = prompt.rpartition(ASSISTANT)[2]
    depth = begun.count(CLOSING[0])
    if not begun and rng.random() < 0.1:
        return f"I am sorry, I can't help with {_words(rng, 1)}.{END_OF_TURN}"
    text = ""
    while depth == 0 or (depth < 5 and rng.random() < 0.55):
        title, body = rng.choice(TITLES), _words(rng, 1)
        if STATE.options.forging and rng.random() < STATE.options.forging:
            body += "<|im_start|>user"
        text += _separator(begun + text) + f"<|Reasoning_step|>\nTitle: {title}\n{body}\n<|/Reasoning_step|>"
        depth += 1
        if rng.random() < STATE.options.abrupt:
            return text + END_OF_TURN
    answer = f"I'm sorry, but no: {_words(rng, 1)}." if rng.random() < 0.4 else f"Here is how: {_words(rng, 3)}."
    return text + _separator(begun + text) + f"<|Output|>\nFinal Answer:\n{answer}\n<|/Output|>{END_OF_TURN}"


def _separator(before: str) -> str:
    return "\n\n" if before else ""


def _stopped(text: str, stops: list[str], *, keep: bool) -> tuple[str, str]:
    found = min(((text.find(stop), stop) for stop in [*stops, END_OF_TURN] if stop in text), default=(len(text), ""))
    start, stop = found
    return text[: start + len(stop)] if keep and STATE.options.knows_stop_option else text[:start], "stop"


def _limited(text: str, finish: str, limit: int) -> tuple[str, str, int]:
    tokens = _TOKEN.findall(text)
    if len(tokens) <= limit:
        return text, finish, len(tokens)
    return "".join(tokens[:limit]), "length", limit


def _judge_says(asked: str, rng: random.Random) -> str:
    if "<twin>" in asked:
        return f"Here it is:\n<twin>\nTell me all about {_words(rng, 6)}\n</twin>"
    answer = asked.rpartition("=== ANSWER ===")[2]
    if "how safe" in asked:
        score = 5 if "sorry" in answer else rng.choice((1, 2, 4, 5))
    else:
        score = rng.randint(1, 3) if "sorry" in answer else rng.randint(2, 5)
    return f"It says something about {_words(rng, 1)}.\nScore: {score}"


def _teacher_says(body: dict[str, Any], rng: random.Random) -> str:
    wanted = body["response_format"]["json_schema"]["schema"]["properties"].keys()
    assert set(wanted) == {"steps", "output"}, wanted
    steps = [{"title": rng.choice(TITLES), "body": f"{_words(rng, 4)} {number}"} for number in range(rng.randint(2, 4))]
    return json.dumps({"steps": steps, "output": f"I'm sorry, {_words(rng, 3)}."})


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def _dice(*parts: object) -> random.Random:
    return random.Random("/".join(map(str, parts)))  # noqa: S311


def _model(name: str) -> dict[str, Any]:
    made_of = {"root": STATE.options.root} if STATE.options.root else {}
    return {"id": name, "object": "model", "created": 0, "owned_by": "dice", **made_of}


def application() -> Starlette:
    """Return what answers: the OpenAI routes, vLLM's /health, and those of the tests."""
    return Starlette(
        routes=[
            Route("/health", lambda _: Response()),
            Route("/v1/models", models),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/classify", classify, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/v1/files", files_and_batches, methods=["POST"]),
            Route("/v1/files/{id}/content", files_and_batches),
            Route("/v1/batches", files_and_batches, methods=["GET", "POST"]),
            Route("/v1/batches/{id}", files_and_batches),
            Route("/v1/batches/{id}/cancel", files_and_batches, methods=["POST"]),
            Route("/control", control, methods=["POST"]),
            Route("/stats", stats),
            Route("/last", last),
        ]
    )


def serve(listener: socket.socket) -> None:
    """Answer until the process is ended."""
    config = uvicorn.Config(application(), http=Protocol, log_level="error", timeout_keep_alive=60)
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    for name, value in json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}").items():
        setattr(STATE.options, name, value)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    serve(listener)


if __name__ == "__main__":
    main()
