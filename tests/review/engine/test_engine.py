"""Parts of the search engine that need no server: the query language, and the text index that triggers keep."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata_review.engine import browser, schema
from stairdata_review.engine.text_query import All, Group, Not, Words, parse

A, B, C = Words("a"), Words("b"), Words("c")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("a b", Group("and", (A, B))),
        ("a + b", Group("and", (A, B))),
        ("a|b", Group("or", (A, B))),
        ("a b | c", Group("or", (Group("and", (A, B)), C))),
        ("a | b c", Group("and", (Group("or", (A, B)), C))),
        ("a (b | c)", Group("and", (A, Group("or", (B, C))))),
        ("-a", Not(A)),
        ("--a", A),
        ("- a", A),
        ("a-b", Words("a-b")),
        ('"a b"', Words("a b", "phrase")),
        ('"a b"~3', Words("a b", "phrase", 3)),
        ("a*", Words("a", "prefix")),
        ("a~2", Words("a", "fuzzy", 2)),
        ("a~9", Words("a", "fuzzy", 2)),
        ("a~", A),
        (r"a\*", Words("a*")),
        (r"\-a", Words("-a")),
        ('"a', A),
        ("(a", A),
        ("a)", A),
        ("| a", A),
        ("a !!! b", Group("and", (A, B))),
        (" * ", All()),
        ("", None),
        ("?!", None),
        ("()", None),
    ],
)
def test_queries_are_read_as_the_search_box_means_them(text: str, query: object) -> None:
    assert parse(text) == query


@given(st.text(alphabet='ab "\\()|+-~*3!', max_size=60))
def test_any_text_is_a_query(text: str) -> None:
    parse(text)


def test_deep_and_unclosed_groups_are_no_trouble() -> None:
    assert parse("(" * 3000 + "a") == A
    parse("(" * 3000 + "a" + ")" * 3000)


TABLES = """
CREATE TABLE datasets (id CHAR(32) PRIMARY KEY, distribution JSON);
CREATE TABLE fields (name VARCHAR, settings JSON, dataset_id CHAR(32));
CREATE TABLE records (id CHAR(32) PRIMARY KEY, fields JSON NOT NULL, external_id VARCHAR, dataset_id CHAR(32),
    inserted_at DATETIME, updated_at DATETIME, metadata JSON, status VARCHAR(9) DEFAULT 'pending' NOT NULL);
CREATE TABLE responses (id INTEGER PRIMARY KEY, "values" JSON, status VARCHAR, record_id CHAR(32), user_id CHAR(32));
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The tables of Argilla that the search reads, with a dataset of a text, a chat and an image field."""
    connection = sqlite3.connect(tmp_path / "argilla.db", isolation_level=None)
    connection.executescript(TABLES)
    connection.execute("""INSERT INTO datasets VALUES ('d', '{"strategy": "overlap", "min_submitted": 2}')""")
    for name, kind in (("step", "text"), ("prompt", "chat"), ("picture", "image")):
        connection.execute("INSERT INTO fields VALUES (?, ?, 'd')", (name, json.dumps({"type": kind})))
    yield connection
    connection.close()


def _add(database: sqlite3.Connection, record_id: str, step: str, *messages: str) -> None:
    chat = [{"role": "user", "content": each} for each in messages]
    fields = json.dumps({"step": step, "prompt": chat, "picture": "https://cat"})
    database.execute("INSERT INTO records (id, fields, dataset_id) VALUES (?, ?, 'd')", (record_id, fields))


def _found(database: sqlite3.Connection, match: str) -> set[str]:
    rows = database.execute(
        "SELECT t.record_id FROM stairdata_index JOIN stairdata_texts AS t ON t.id = stairdata_index.rowid "
        "WHERE stairdata_index MATCH ?",
        (match,),
    )
    return {record_id for (record_id,) in rows}


def test_triggers_keep_the_index_of_what_is_added_changed_and_deleted(database: sqlite3.Connection) -> None:
    _add(database, "before", "early bird")
    assert schema.install(database)
    _add(database, "r1", "1 &lt; 2 &amp;amp; done", "hello there", "and again")
    assert _found(database, '"early"') == {"before"}
    assert _found(database, '"1 2"') == {"r1"}
    assert _found(database, '"lt"') == set()
    assert _found(database, '"there and"') == set()  # no phrase runs over two messages
    assert _found(database, '"hello"') == {"r1"}
    assert _found(database, '"user" OR "cat"') == set()

    database.execute("""UPDATE records SET fields = '{"step": "other"}' WHERE id = 'r1'""")
    assert _found(database, '"hello" OR "done"') == set()
    assert _found(database, '"other"') == {"r1"}
    database.execute("DELETE FROM records WHERE id = 'r1'")
    assert _found(database, '"other"') == set()
    assert database.execute("SELECT count(*) FROM stairdata_texts").fetchone() == (2,)
    assert not schema.install(database)


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TRIGGER stairdata_update",
        "DROP INDEX stairdata_records",
        "UPDATE stairdata_schema SET version = 0",
        "DELETE FROM stairdata_texts",
        "DROP TABLE stairdata_index",
    ],
)
def test_a_damaged_index_is_made_anew(database: sqlite3.Connection, damage: str) -> None:
    schema.install(database)
    _add(database, "r1", "alpha")
    database.execute(damage)
    assert schema.install(database)
    assert _found(database, '"alpha"') == {"r1"}
    assert not schema.install(database)


def test_statuses_are_set_to_what_responses_say(database: sqlite3.Connection) -> None:
    schema.install(database)
    for name, submitted in (("r0", 0), ("r1", 1), ("r2", 2)):
        _add(database, name, "text")
        for user in range(submitted):
            row = (name, str(user))
            database.execute("INSERT INTO responses (status, record_id, user_id) VALUES ('submitted', ?, ?)", row)
        database.execute("INSERT INTO responses (status, record_id, user_id) VALUES ('draft', ?, 'x')", (name,))
    database.execute("UPDATE records SET status = 'completed' WHERE id = 'r0'")
    assert schema.repair_statuses(database) == 2
    assert dict(database.execute("SELECT id, status FROM records")) == {
        "r0": "pending", "r1": "pending", "r2": "completed",
    }  # fmt: skip
    assert schema.repair_statuses(database) == 0


def test_pages_run_their_own_scripts_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script>a("@@baseUrl@@/x")</script><script src="/b.js"></script>')
    (tmp_path / "other.html").write_text("<script>b()</script>")
    rules = dict(rule.partition(" ")[::2] for rule in browser.policy(tmp_path).split("; "))
    assert len(rules["script-src"].split()) == 3
    assert browser._hash('a("/x")') in rules["script-src"]
    assert "unsafe" not in rules["script-src"]
    assert rules["connect-src"] == "'self'"
