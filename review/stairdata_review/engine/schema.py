"""What the search adds to Argilla's database: three indexes, and a full-text index that triggers keep.

Triggers run in the transaction that writes a record, so the text index is never behind, whoever writes and wherever
a process is killed. All of it can be made anew from Argilla's tables, and is, if a part is missing or of another
version.

- `stairdata_records` covers what filters and sort orders read of a record, its metadata included: a scan of it reads
  a small part of what a scan of the table would, since texts are long.
- `stairdata_responses` finds a reviewer's responses by status, `stairdata_record_responses` those of a record: SQLite
  would take Argilla's index of all responses by status, and need minutes for 100,000 records.
- `stairdata_texts` has a row for each text or chat field of each record, `stairdata_index` (FTS5, without a copy of
  the text) the words of that row. One row a field, so that the words of a question may stand in several fields.
"""

from __future__ import annotations

import sqlite3

VERSION = 1
PARTS = (
    ("index", "stairdata_records"),
    ("index", "stairdata_responses"),
    ("index", "stairdata_record_responses"),
    ("table", "stairdata_texts"),
    ("index", "stairdata_texts_record"),
    ("table", "stairdata_index"),
    ("table", "stairdata_vocabulary"),
    ("trigger", "stairdata_insert"),
    ("trigger", "stairdata_update"),
    ("trigger", "stairdata_delete"),
    ("table", "stairdata_schema"),
)

MESSAGE_BREAK = 0xE000
"""A character of its own word, put between chat messages, so that no phrase runs over their border."""


def install(database: sqlite3.Connection) -> bool:
    """Make what is missing; return whether the text index was made anew.

    Raises:
        sqlite3.OperationalError: this build of SQLite has no FTS5, or the disk is full.
    """
    database.execute("PRAGMA journal_mode = WAL")
    with database:
        database.execute("BEGIN IMMEDIATE")
        if _is_current(database):
            return False
        for kind, name in reversed(PARTS):
            database.execute(f"DROP {kind} IF EXISTS {name}")
        for statement in _statements():
            database.execute(statement)
    database.execute("ANALYZE stairdata_texts")
    return True


def repair_statuses(database: sqlite3.Connection) -> int:
    """Set each record's status to what its responses say, for a server that was killed in between; return how many."""
    with database:
        return database.execute(STATUS_UPDATE).rowcount


def _is_current(database: sqlite3.Connection) -> bool:
    there = set(database.execute("SELECT type, name FROM sqlite_master WHERE name LIKE 'stairdata%'"))
    if not there.issuperset(PARTS):
        return False
    if database.execute("SELECT version FROM stairdata_schema").fetchone() != (VERSION,):
        return False
    return not database.execute(_BEHIND).fetchone()


_STATUS = """
CASE WHEN (SELECT count(*) FROM responses WHERE responses.record_id = records.id AND responses.status = 'submitted')
       >= (SELECT json_extract(distribution, '$.min_submitted') FROM datasets WHERE datasets.id = records.dataset_id)
     THEN 'completed' ELSE 'pending' END
"""
STATUS_UPDATE = f"UPDATE records SET status = {_STATUS} WHERE status <> {_STATUS}"
"""Argilla reads the responses and writes the status in two steps, between which another reviewer's answer may come."""

_BEHIND = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM stairdata_texts WHERE record_id NOT IN (SELECT id FROM records))
OR EXISTS (SELECT 1 FROM records WHERE id NOT IN (SELECT record_id FROM stairdata_texts) AND fields LIKE '%": "%')
"""


def _text(fields: str, name: str) -> str:
    """Return SQL for the plain text of a field: of a chat, its messages; entities as the characters they stand for."""
    path = f"""'$."' || {name} || '"'"""
    messages = (
        f"SELECT group_concat(json_extract(value, '$.content'), ' ' || char({MESSAGE_BREAK}) || ' ') "
        f"FROM json_each({fields}, {path})"
    )
    text = f"CASE json_type({fields}, {path}) WHEN 'array' THEN ({messages}) ELSE json_extract({fields}, {path}) END"
    return f"replace(replace(replace({text}, '&lt;', '<'), '&gt;', '>'), '&amp;', '&')"


def _index_rows(record: str, which: str) -> str:
    return (
        f"INSERT INTO stairdata_index (rowid, text) SELECT t.id, {_text(f'{record}.fields', 't.field')} "
        f"FROM stairdata_texts AS t {which};"
    )


def _add(record: str) -> str:
    return f"""
    INSERT INTO stairdata_texts (record_id, dataset_id, field)
    SELECT {record}.id, {record}.dataset_id, f.name FROM fields AS f
    WHERE f.dataset_id = {record}.dataset_id AND json_extract(f.settings, '$.type') <> 'image'
    AND json_extract({record}.fields, '$."' || f.name || '"') IS NOT NULL;
    {_index_rows(record, f"WHERE t.record_id = {record}.id")}
    """


_REMOVE = f"""
    INSERT INTO stairdata_index (stairdata_index, rowid, text)
    SELECT 'delete', t.id, {_text("OLD.fields", "t.field")} FROM stairdata_texts AS t WHERE t.record_id = OLD.id;
    DELETE FROM stairdata_texts WHERE record_id = OLD.id;
"""


def _statements() -> list[str]:
    return [
        "CREATE INDEX stairdata_records ON records "
        "(dataset_id, status, inserted_at, updated_at, external_id, id, metadata)",
        "CREATE INDEX stairdata_responses ON responses (user_id, status, record_id)",
        "CREATE INDEX stairdata_record_responses ON responses (record_id, status)",
        "CREATE TABLE stairdata_texts (id INTEGER PRIMARY KEY, record_id CHAR(32) NOT NULL, "
        "dataset_id CHAR(32) NOT NULL, field VARCHAR NOT NULL)",
        "CREATE INDEX stairdata_texts_record ON stairdata_texts (record_id)",
        "CREATE VIRTUAL TABLE stairdata_index USING fts5 "
        "(text, content = '', tokenize = 'unicode61 remove_diacritics 0')",
        "CREATE VIRTUAL TABLE stairdata_vocabulary USING fts5vocab ('stairdata_index', 'row')",
        "INSERT INTO stairdata_texts (record_id, dataset_id, field) SELECT r.id, r.dataset_id, f.name "
        "FROM records AS r JOIN fields AS f ON f.dataset_id = r.dataset_id "
        "WHERE json_extract(f.settings, '$.type') <> 'image' "
        "AND json_extract(r.fields, '$.\"' || f.name || '\"') IS NOT NULL",
        _index_rows("r", "JOIN records AS r ON r.id = t.record_id"),
        f"CREATE TRIGGER stairdata_insert AFTER INSERT ON records BEGIN {_add('NEW')} END",
        f"CREATE TRIGGER stairdata_update AFTER UPDATE OF fields ON records BEGIN {_REMOVE} {_add('NEW')} END",
        f"CREATE TRIGGER stairdata_delete AFTER DELETE ON records BEGIN {_REMOVE} END",
        "CREATE TABLE stairdata_schema (version INTEGER NOT NULL)",
        f"INSERT INTO stairdata_schema VALUES ({VERSION})",
    ]
