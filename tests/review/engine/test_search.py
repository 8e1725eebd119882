"""Argilla's search endpoints on 1,000 records, each answer compared with that of a few lines of Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_review.server.running_server import RunningServer
from tests.review.api import Api, add_records, labels, make_dataset, make_reviewer, make_workspace, owner_of

pytestmark = pytest.mark.slow

RECORDS = 1000
MIN_SUBMITTED = 2
LABELS = ("good", "bad", "tie")
TAGS = ("safe", "rude", "long", "odd")
TASKS = ("safety", "helpfulness", "Other Task")
AGENTS = ("judge-1", "judge-2", "Judge 3")
WORDS = ("alpha", "Beta", "gamma", "délta", "don't", "3.14", "snake_case", "x&y", "a<b", "omega", "omegas", "天气很好")
STATUSES = ("draft", "submitted", "discarded")

FIELDS = {
    "prompt": {"type": "chat", "use_markdown": False},
    "left": {"type": "text", "use_markdown": False},
    "right": {"type": "text", "use_markdown": False},
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "verdict": {"type": "label_selection", "options": labels(*LABELS)},
    "tags": {"type": "multi_label_selection", "options": labels(*TAGS)},
    "stars": {"type": "rating", "options": [{"value": value} for value in range(6)]},
    "comment": {"type": "text", "use_markdown": False},
}
METADATA: dict[str, dict[str, Any]] = {
    "task": {"type": "terms"},
    "depth": {"type": "integer"},
    "margin": {"type": "float"},
}

Row = dict[str, Any]


@dataclass(repr=False)
class World:
    """A dataset on the server, and the same as plain rows in the order of their coming."""

    owner: Api
    reviewers: list[Api]
    user_ids: list[str]
    dataset_id: str
    rows: list[Row]

    def ask(self, who: int | None, body: Row, offset: int = 0, limit: int = 50) -> tuple[list[str], int, list[Any]]:
        path = f"datasets/{self.dataset_id}/records/search"
        api, path = (self.owner, f"/{path}") if who is None else (self.reviewers[who], f"/me/{path}")
        found = api.post(path, body, offset=offset, limit=limit)
        items = found["items"]
        return [each["record"]["id"] for each in items], found["total"], [each["query_score"] for each in items]


@pytest.fixture(scope="module")
def world(argilla_server: RunningServer) -> World:
    owner = owner_of(argilla_server)
    workspace = make_workspace(owner, "contract")
    users = [make_reviewer(owner, f"contract-{number}", workspace) for number in range(3)]
    dataset_id = make_dataset(owner, workspace, "contract", FIELDS, QUESTIONS, METADATA, MIN_SUBMITTED)
    question_ids = {each["name"]: each["id"] for each in owner.get(f"/datasets/{dataset_id}/questions")["items"]}
    user_ids = [user["id"] for user in users]
    rows = [_row(random.Random(number), number, user_ids) for number in range(RECORDS)]  # noqa: S311
    made = add_records(owner, dataset_id, [_as_sent(row, question_ids) for row in rows])
    kept = {each["id"]: each for each in owner.get(f"/datasets/{dataset_id}/records", limit=RECORDS)["items"]}
    for row, record in zip(rows, made, strict=True):
        row |= {name: kept[record["id"]][name] for name in ("id", "inserted_at", "updated_at")}
        assert kept[record["id"]]["status"] == row["status"]
    reviewers = [Api(argilla_server.url, user["api_key"]) for user in users]
    return World(owner, reviewers, user_ids, dataset_id, rows)


def _row(rng: random.Random, number: int, user_ids: list[str]) -> Row:
    def words() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))

    def maybe(share: float, make: Callable[[], Any]) -> Any:
        return make() if rng.random() < share else None

    task = rng.choice([None, *TASKS, *TASKS, rng.sample(TASKS, 2)])
    row: Row = {
        "external_id": maybe(0.8, lambda: f"item-{number:04}"),
        "prompt": [words() for _ in range(rng.randint(1, 3))],
        "left": words(),
        "right": maybe(0.7, words),
        "task": task,
        "depth": maybe(0.9, lambda: rng.randint(-3, 9)),
        "margin": maybe(0.9, lambda: rng.choice([0.1, 0.25, 1.5, rng.random()])),
        "suggestions": {},
        "responses": {},
    }
    for name in ("verdict", "tags", "stars"):
        if rng.random() < 0.5:
            value = _answer(rng, name)
            score = [rng.random() for _ in value] if name == "tags" else maybe(0.7, rng.random)
            suggestion = {"value": value, "score": score, "agent": maybe(0.7, lambda: rng.choice(AGENTS))}
            row["suggestions"][name] = {**suggestion, "type": rng.choice([None, "model", "human"])}
    for user_id in user_ids:
        if rng.random() < 0.5:
            row["responses"][user_id] = {"status": rng.choice(STATUSES), "values": _answers(rng)}
    submitted = sum(each["status"] == "submitted" for each in row["responses"].values())
    row["status"] = "completed" if submitted >= MIN_SUBMITTED else "pending"
    return row


def _answer(rng: random.Random, name: str) -> Any:
    if name == "verdict":
        return rng.choice(LABELS)
    return rng.sample(TAGS, rng.randint(1, 3)) if name == "tags" else rng.randint(0, 5)


def _answers(rng: random.Random) -> Row:
    return {
        name: _answer(rng, name) for name in ("verdict", "tags", "stars") if name == "verdict" or rng.random() < 0.7
    }


def _as_sent(row: Row, question_ids: dict[str, str]) -> Row:
    """As the API takes it; the signs of markup as entities, as `review push` sends them."""
    prompt = [{"role": "user", "content": _escape(each)} for each in row["prompt"]]
    fields = {"prompt": prompt, **{name: _escape(row[name]) for name in ("left", "right") if row[name] is not None}}
    return {
        "external_id": row["external_id"],
        "fields": fields,
        "metadata": {name: row[name] for name in METADATA if row[name] is not None},
        "suggestions": [{"question_id": question_ids[name], **each} for name, each in row["suggestions"].items()],
        "responses": [
            {"user_id": user, "status": each["status"], "values": _valued(each["values"])}
            for user, each in row["responses"].items()
        ],
    }


def _valued(values: Row) -> Row:
    return {name: {"value": value} for name, value in values.items()}


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- the plain answer


def matches(row: Row, filter_: Row, user: str | None) -> bool:
    scope = filter_["scope"]
    if scope["entity"] != "response":
        return any(_holds(value, filter_) for value in _values(row, scope))
    responses = [each for who, each in row["responses"].items() if user in {None, who}]
    if scope.get("question") is None:
        wanted = set(filter_["values"])
        return any(each["status"] in wanted for each in responses) or ("pending" in wanted and not responses)
    return any(_holds(value, filter_) for each in responses for value in _listed(each["values"].get(scope["question"])))


def _values(row: Row, scope: Row) -> list[Any]:
    if scope["entity"] == "metadata":
        return _listed(row[scope["metadata_property"]])
    if scope["entity"] == "suggestion":
        return _listed(row["suggestions"].get(scope["question"], {}).get(scope["property"]))
    value = row[scope["property"]]
    return _listed(datetime.fromisoformat(value) if scope["property"].endswith("_at") else value)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _holds(value: Any, filter_: Row) -> bool:
    if filter_["type"] == "terms":
        return any(_alike(term, value) == value for term in filter_["values"])
    low, high = filter_.get("ge"), filter_.get("le")
    return bool((low is None or _alike(low, value) <= value) and (high is None or value <= _alike(high, value)))


def _alike(asked: Any, value: Any) -> Any:
    """Read what was asked for as the kind of thing that the value is."""
    if isinstance(value, datetime):
        return datetime.fromisoformat(asked)
    return float(asked) if isinstance(value, int | float) else str(asked)


def sort_key(row: Row, scope: Row, user: str | None, descending: bool) -> Any:
    if scope["entity"] != "response":
        values = _values(row, scope)
        return (max if descending else min)(values) if values else None
    responses = [each for who, each in row["responses"].items() if user in {None, who}]
    if scope.get("question") is None:
        values = [each["status"] for each in responses]
    else:
        values = [value for each in responses for value in _listed(each["values"].get(scope["question"]))]
    if values and scope.get("question") == "stars":
        return sum(values) / len(values)
    return (max if descending else min)(values) if values else None


def plain_search(world: World, who: int | None, filters: list[Row], orders: list[Row]) -> list[Row]:
    user = None if who is None else world.user_ids[who]
    found = [row for row in world.rows if all(matches(row, each, user) for each in filters)]
    for order in reversed(orders):
        descending = order["order"] == "desc"
        keyed = [(sort_key(row, order["scope"], user, descending), row) for row in found]
        present = [pair for pair in keyed if pair[0] is not None]
        present.sort(key=lambda pair: pair[0], reverse=descending)
        found = [row for _, row in present] + [row for key, row in keyed if key is None]
    return found


# --- what is asked


def _terms(scope: Row, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    listed = st.lists(values, min_size=1, max_size=3)
    return st.builds(lambda chosen: {"type": "terms", "scope": scope, "values": [str(each) for each in chosen]}, listed)


def _ranges(scope: Row, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    def make(pair: tuple[Any, Any], ends: str) -> Row:
        low, high = sorted(pair)
        given = {"ge": low} if "g" in ends else {}
        return {"type": "range", "scope": scope, **given, **({"le": high} if "l" in ends else {})}

    return st.builds(make, st.tuples(values, values), st.sampled_from(["g", "l", "gl"]))


def _both(scope: Row, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    return st.one_of(_terms(scope, values), _ranges(scope, values))


NUMBERS = st.one_of(st.integers(-4, 10), st.sampled_from([0.1, 0.25, 1.5]), st.floats(0, 1))
ANSWERS = {
    "verdict": st.sampled_from([*LABELS, "nothing"]),
    "tags": st.sampled_from([*TAGS, "nothing"]),
    "stars": st.integers(-1, 6),
}


def _scope(entity: str, **rest: Any) -> Row:
    return {"entity": entity, **rest}


def filters(world: World) -> st.SearchStrategy[Row]:
    some = st.sampled_from(world.rows)
    kinds = [
        _terms(_scope("response", property="status"), st.sampled_from([*STATUSES, "pending", "nothing"])),
        _terms(_scope("record", property="status"), st.sampled_from(["pending", "completed", "nothing"])),
        _terms(_scope("record", property="id"), some.map(lambda row: row["id"])),
        _both(_scope("record", property="external_id"), some.map(lambda row: row["external_id"] or "item-5")),
        _both(_scope("record", property="inserted_at"), some.map(lambda row: row["inserted_at"])),
        _ranges(_scope("record", property="updated_at"), some.map(lambda row: row["updated_at"])),
        _both(_scope("metadata", metadata_property="task"), st.sampled_from([*TASKS, "nothing", "p"])),
        _both(_scope("metadata", metadata_property="depth"), st.integers(-4, 10)),
        _both(_scope("metadata", metadata_property="margin"), NUMBERS),
    ]
    for name, answers in ANSWERS.items():
        kinds.append(_both(_scope("response", question=name), answers))
        kinds.append(_both(_scope("suggestion", question=name, property="value"), answers))
        kinds.append(_both(_scope("suggestion", question=name, property="score"), NUMBERS))
        kinds.append(_both(_scope("suggestion", question=name, property="agent"), st.sampled_from([*AGENTS, "k"])))
        kinds.append(_terms(_scope("suggestion", question=name, property="type"), st.sampled_from(["model", "human"])))
    return st.one_of(kinds)


SCOPES = [
    *(_scope("record", property=name) for name in ("id", "external_id", "status", "inserted_at", "updated_at")),
    *(_scope("metadata", metadata_property=name) for name in METADATA),
    _scope("response", property="status"),
    *(_scope("response", question=name) for name in ANSWERS),
    *(
        _scope("suggestion", question=name, property=part)
        for name in ANSWERS
        for part in ("value", "score", "agent", "type")
    ),
]
ORDERS = st.fixed_dictionaries({"scope": st.sampled_from(SCOPES), "order": st.sampled_from(["asc", "desc"])})
WHO = st.sampled_from([None, 0, 1, 2])


def _body(filters_: list[Row], orders: list[Row]) -> Row:
    return {**({"filters": {"and": filters_}} if filters_ else {}), **({"sort": orders} if orders else {})}


MANY = settings(max_examples=150)


@MANY
@given(data=st.data())
def test_filters_and_orders_agree_with_the_plain_answer(world: World, data: st.DataObject) -> None:
    who = data.draw(WHO)
    asked = data.draw(st.lists(filters(world), max_size=4))
    orders = data.draw(st.lists(ORDERS, min_size=1, max_size=3))
    offset, limit = data.draw(st.sampled_from([0, 0, 1, 40])), data.draw(st.integers(1, 60))
    expected = [row["id"] for row in plain_search(world, who, asked, orders)]
    ids, total, _ = world.ask(who, _body(asked, orders), offset, limit)
    assert total == len(expected)
    assert ids == expected[offset : offset + limit]


# --- text


def tokens(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text).lower().split()


def _texts(row: Row, field: str | None) -> list[list[str]]:
    """The words of each text; a chat's messages are one field, and no phrase runs from one into the next."""
    fields = {"prompt": " messagebreak ".join(row["prompt"]), "left": row["left"], "right": row["right"] or ""}
    return [tokens(text) for name, text in fields.items() if field in {None, name}]


def _has(words: list[str], text: list[str], *, prefix: bool = False) -> bool:
    def at(start: int) -> bool:
        here = text[start : start + len(words)]
        if not prefix:
            return here == words
        return len(here) == len(words) and here[:-1] == words[:-1] and here[-1].startswith(words[-1])

    return any(at(start) for start in range(len(text)))


@dataclass(frozen=True)
class Asked:
    """A query as the server gets it, and what it asks of a row."""

    q: str
    holds: Callable[[Row, str | None], bool]


def _leaf(text: str, *, prefix: bool = False) -> Callable[[Row, str | None], bool]:
    if "天" in text:
        return lambda row, field: any(text in each for each in _raw(row, field))
    return lambda row, field: any(_has(tokens(text), each, prefix=prefix) for each in _texts(row, field))


def _raw(row: Row, field: str | None) -> list[str]:
    fields = {"prompt": "\n".join(row["prompt"]), "left": row["left"], "right": row["right"] or ""}
    return [text for name, text in fields.items() if field in {None, name}]


WORD = st.sampled_from([*WORDS, "ALPHA", "nowhere", "snake", "don", "Délta", "天气"]).map(lambda w: Asked(w, _leaf(w)))
PREFIX = st.sampled_from(["omeg", "al", "DÉL", "3.1", "q"]).map(lambda w: Asked(f"{w}*", _leaf(w, prefix=True)))
PHRASE = st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=3).map(
    lambda words: Asked(f'"{" ".join(words)}"', _leaf(" ".join(words)))
)


def _join(parts: list[Asked]) -> st.SearchStrategy[Asked]:
    """Parts and operators, which bind from left to right."""

    def make(signs: list[str]) -> Asked:
        asked = parts[0]
        for sign, part in zip(signs, parts[1:], strict=True):
            either = "|" in sign
            asked = Asked(f"{asked.q}{sign}{part.q}", _joined(asked, part, either=either))
        return asked

    count = len(parts) - 1
    return st.lists(st.sampled_from([" ", " | ", " + "]), min_size=count, max_size=count).map(make)


def _joined(left: Asked, right: Asked, *, either: bool) -> Callable[[Row, str | None], bool]:
    if either:
        return lambda row, field: left.holds(row, field) or right.holds(row, field)
    return lambda row, field: left.holds(row, field) and right.holds(row, field)


def _not(asked: Asked) -> Asked:
    return Asked(f"-{asked.q}", lambda row, field: not asked.holds(row, field))


LEAF = st.one_of(WORD, WORD, PREFIX, PHRASE)
QUERY = st.recursive(
    st.one_of(LEAF, LEAF, LEAF.map(_not)),
    lambda parts: (
        st.lists(parts, min_size=2, max_size=3).flatmap(_join).map(lambda asked: Asked(f"({asked.q})", asked.holds))
    ),
    max_leaves=5,
)


@MANY
@given(data=st.data())
def test_text_queries_agree_with_the_plain_answer(world: World, data: st.DataObject) -> None:
    asked = data.draw(QUERY, label="query")
    field = data.draw(st.sampled_from([None, *FIELDS]))
    who = data.draw(WHO)
    some = data.draw(st.lists(filters(world), max_size=1))
    body = {**_body(some, []), "query": {"text": {"q": asked.q, **({"field": field} if field else {})}}}
    expected = {row["id"] for row in plain_search(world, who, some, []) if asked.holds(row, field)}
    ids, total, scores = world.ask(who, body, limit=RECORDS)
    assert total == len(expected), asked.q
    assert len(ids) == len(set(ids))
    assert set(ids) == expected
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "query",
    ["", "!!!", '"', "(", ")", "((alpha", "-", "+|", "~", "\\", '"alpha', "alpha~9~", "q*r*", "*", "NEAR(a b)", "'; --",
     'text : "alpha"', "alpha AND", "^alpha", "{alpha}", "\x00", "(" * 300 + "alpha", '"alpha" "', "alpha\\*"],
)  # fmt: skip
def test_no_text_makes_the_search_fail(world: World, query: str) -> None:
    _, total, _ = world.ask(None, {"query": {"text": {"q": query}}}, limit=1)
    alpha = sum(_leaf("alpha")(row, None) for row in world.rows)
    lenient = {"((alpha", '"alpha', "alpha~9~", "^alpha", "{alpha}", "(" * 300 + "alpha", '"alpha" "', "alpha\\*"}
    assert total == (alpha if query in lenient else RECORDS if query == "*" else 0)


def test_a_word_near_another_is_found(world: World) -> None:
    def ids(query: str) -> set[str]:
        return set(world.ask(None, {"query": {"text": {"q": query}}}, limit=RECORDS)[0])

    assert ids("omgea~2") == ids("omega")
    assert ids("omega~1") == ids("omega | omegas")
    assert ids("alpah") == set()
    assert ids("gama~1") == ids("gamma")
    assert ids('"alpha gamma"~1') > ids('"alpha gamma"')


def test_a_search_of_too_many_words_is_refused(world: World) -> None:
    body = {"query": {"text": {"q": " ".join(map(str, range(500)))}}}
    answer = world.owner.send("POST", f"/datasets/{world.dataset_id}/records/search", body)
    assert answer.status_code == 422
    assert "at most" in answer.json()["detail"]


# --- order without a sort, numbers, refusals


def test_each_reviewer_has_an_own_order_that_stays(world: World) -> None:
    orders = []
    for who in range(3):
        pages = [world.ask(who, {}, offset, 250)[0] for offset in range(0, RECORDS, 250)]
        orders.append([each for page in pages for each in page])
        assert orders[-1] == world.ask(who, {}, 0, RECORDS)[0]
        assert sorted(orders[-1]) == sorted(row["id"] for row in world.rows)
    assert orders[0] != orders[1] != orders[2]
    assert world.ask(None, {}, 0, RECORDS)[0] == [row["id"] for row in world.rows]


def test_progress_and_metrics_count_what_is_there(world: World) -> None:
    path = f"/datasets/{world.dataset_id}"
    completed = sum(row["status"] == "completed" for row in world.rows)
    progress = world.owner.get(f"{path}/progress")
    assert (progress["total"], progress["completed"]) == (RECORDS, completed)
    for who, api in enumerate(world.reviewers):
        statuses = [row["responses"][world.user_ids[who]]["status"] for row in world.rows
                    if world.user_ids[who] in row["responses"]]  # fmt: skip
        counts = {status: statuses.count(status) for status in STATUSES}
        expected = {"total": RECORDS, "pending": RECORDS - len(statuses), **counts}
        assert api.get(f"/me{path}/metrics")["responses"] == expected
    for each in world.owner.get(f"/me{path}/metadata-properties")["items"]:
        values = [value for row in world.rows for value in _listed(row[each["name"]])]
        metrics = world.owner.get(f"/metadata-properties/{each['id']}/metrics")
        if each["name"] == "task":
            assert metrics["total"] == len(values)
            assert {one["term"]: one["count"] for one in metrics["values"]} == {
                task: values.count(task) for task in TASKS
            }
        else:
            # Argilla rounds what it shows
            assert (metrics["min"], metrics["max"]) == pytest.approx((min(values), max(values)), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"filters": {"and": [{"type": "terms", "scope": _scope("metadata", metadata_property="depth"),
                               "values": ["deep"]}]}}, "'deep' is not a number"),
        ({"filters": {"and": [{"type": "range", "scope": _scope("record", property="inserted_at"), "ge": "soon"}]}},
         "'soon' is not a date"),
        ({"filters": {"and": [{"type": "range", "scope": _scope("response", property="status"), "ge": "a"}]}},
         "terms of their status"),
        ({"sort": [{"scope": _scope("response", question="comment"), "order": "asc"}]}, "can't be sorted by 'comment'"),
        ({"sort": [{"scope": _scope("response"), "order": "asc"}]}, "by a question, or by their status"),
        ({"filters": {"and": [{"type": "terms", "scope": _scope("response", question="x"), "values": ["a"]}]}}, "x"),
    ],
)  # fmt: skip
def test_what_can_not_be_searched_is_refused_with_words(world: World, body: Row, words: str) -> None:
    answer = world.owner.send("POST", f"/datasets/{world.dataset_id}/records/search", body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_dates_leave_parts_open(world: World) -> None:
    day = world.rows[0]["inserted_at"][:10]

    def total(**bounds: str) -> int:
        scope = _scope("record", property="inserted_at")
        return world.ask(None, {"filters": {"and": [{"type": "range", "scope": scope, **bounds}]}})[1]

    last = max(row["inserted_at"] for row in world.rows)[:10]
    assert total(ge=day, le=last) == RECORDS
    assert total(le=last) == RECORDS
    assert total(ge="2999") == 0
    assert total(ge="2999-01-01T00:00:00+02:00") == 0


def test_similarity_is_refused_clearly(world: World) -> None:
    settings_ = {"name": "v", "title": "v", "dimensions": 2}
    world.owner.post(f"/datasets/{world.dataset_id}/vectors-settings", settings_)
    body = {"query": {"vector": {"name": "v", "value": [0.5, 0.5]}}}
    answer = world.owner.send("POST", f"/datasets/{world.dataset_id}/records/search", body)
    assert answer.status_code == 422
    assert "can't search by vectors" in answer.json()["detail"]
