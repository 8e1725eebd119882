"""The search engine that Argilla asks, in place of Elasticsearch."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from argilla_server.enums import MetadataPropertyType
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import (
    Dataset,
    MetadataProperty,
    Question,
    Record,
    Response,
    Suggestion,
    User,
    VectorSettings,
)
from argilla_server.search_engine import SearchEngine, SearchResponseItem, SearchResponses
from argilla_server.search_engine.base import (
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataMetrics,
    Order,
    TermsMetrics,
    TextQuery,
)
from argilla_server.settings import settings
from sqlalchemy import ColumnElement, String, and_, event, func, literal_column, select, text, true, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import Session

from .conditions import Names, condition, metadata_elements, order
from .schema import STATUS_UPDATE, VERSION
from .texts import TextSearch, text_search

NAME = "stairdata"
MOST_TERMS = 2**14
"""In the metrics of a metadata property; Argilla's own limit."""
PRIME = 2**31 - 1
ROWID = literal_column("records.rowid")
"""Counts up in the order in which records came."""

DATABASE = create_async_engine(settings.database_url, **settings.database_engine_args)
"""Connections of our own: a request holds one of Argilla's while it asks us, and could wait for a second for ever."""


@event.listens_for(DATABASE.sync_engine, "connect")
def _widen(connection: Any, _: Any) -> None:
    """Let a connection keep the index of 100,000 records in memory: 64 MiB instead of 2."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA cache_size = -65536")
    cursor.close()


@SearchEngine.register(NAME)
class DatabaseSearchEngine(SearchEngine):
    """Answers from the database. What it adds to it (`schema`) is kept by triggers, so that most calls do nothing."""

    @classmethod
    async def new_instance(cls) -> DatabaseSearchEngine:
        return cls()

    async def close(self) -> None:
        """Nothing is held between two questions."""

    async def ping(self) -> bool:
        async with DATABASE.connect() as connection:
            return bool(await connection.scalar(text("SELECT version FROM stairdata_schema")) == VERSION)

    async def info(self) -> dict[str, Any]:
        async with DATABASE.connect() as connection:
            sqlite = await connection.scalar(text("SELECT sqlite_version()"))
        return {"name": NAME, "version": str(VERSION), "sqlite": sqlite}

    async def create_index(self, dataset: Dataset) -> None:
        """The database holds all."""

    async def delete_index(self, dataset: Dataset) -> None:
        """The database holds all."""

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
        """The database holds all."""

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """The database holds all."""

    async def partial_record_update(self, record: Record, **update: Any) -> None:
        """Set the status that the record's responses ask for.

        Argilla calls this when it has written a status. Between its reading of the responses and its writing of the
        status another reviewer may have answered; the last of them to come here puts it right.
        """
        async with DATABASE.begin() as connection:
            await connection.execute(text(f"{STATUS_UPDATE} AND records.id = :id"), {"id": record.id.hex})

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """The database holds all."""

    async def update_record_response(self, response: Response) -> None:
        """The database holds all."""

    async def delete_record_response(self, response: Response) -> None:
        """The database holds all."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """The database holds all."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """The database holds all."""

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """Count the records by status; empty for a draft."""
        if dataset.is_draft:
            return {}
        query = select(Record.status, func.count()).where(Record.dataset_id == dataset.id).group_by(Record.status)
        return await _counts(query)

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """Count a user's responses by status; empty for a draft."""
        if dataset.is_draft:
            return {}
        mine = select(Response.status, func.count()).join(Record, Record.id == Response.record_id)
        return await _counts(
            mine.where(Response.user_id == user.id, Record.dataset_id == dataset.id).group_by(Response.status)
        )

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Any = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | str | None = None,
    ) -> SearchResponses:
        """Return a page of records and how many there are.

        Without a sort order, the best match comes first if there is a text query. Else each user has an own order,
        which stays the same, so that reviewers do not all begin with the same records; without a user it is the order
        in which the records came, as it is among equals everywhere.

        Raises:
            UnprocessableEntityError: the user interface and the SDK show its message.
        """
        async with DATABASE.connect() as connection:
            names = await _names(connection, dataset.id)
            found = await _text_search(connection, dataset.id, query)
        where = [Record.dataset_id == dataset.id]
        where += [] if filter is None else [condition(filter, names)]
        where += [] if found is None else [found.condition]
        count = select(func.count()).select_from(Record).where(*where)
        page = _ordered(where, [order(each, names) for each in sort or []], found, user_id)
        # on two connections: SQLite lets both run at once
        counted, rows = await asyncio.gather(_rows(count), _rows(page.offset(offset).limit(limit)))
        items = [SearchResponseItem(record_id=record_id, score=score) for record_id, score in rows]
        return SearchResponses(items=items, total=counted[0][0])

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """Return what a property's values are: terms and how often each occurs, or the least and the greatest."""
        terms = metadata_property.type == MetadataPropertyType.terms
        each, value = metadata_elements(metadata_property)
        present = and_(Record.dataset_id == metadata_property.dataset_id, each.c.type != "null")
        async with DATABASE.connect() as connection:
            if not terms:
                query = select(func.min(value), func.max(value)).select_from(Record).join(each, true()).where(present)
                least, greatest = (await connection.execute(query)).one()
                kind = metadata_property.type == MetadataPropertyType.integer
                return (IntegerMetadataMetrics if kind else FloatMetadataMetrics)(min=least, max=greatest)
            count = func.count().label("count")
            query = (
                select(value.label("term"), count)
                .select_from(Record)
                .join(each, true())
                .where(present)
                .group_by("term")
            )
            rows = (await connection.execute(query.order_by(count.desc(), "term"))).all()
        counted = [TermsMetrics.TermCount(term=term, count=times) for term, times in rows[:MOST_TERMS]]
        return TermsMetrics(total=sum(times for _, times in rows), values=counted)

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        """Do nothing: vectors are kept, and can be pulled, but not searched by."""

    async def similarity_search(self, dataset: Dataset, *_: Any, **__: Any) -> SearchResponses:
        """Refuse.

        Raises:
            UnprocessableEntityError: always.
        """
        raise UnprocessableEntityError(
            "this server can't search by vectors: it has no Elasticsearch; use text, filters and sort orders"
        )


async def _rows(query: Any) -> Any:
    async with DATABASE.connect() as connection:
        return (await connection.execute(query)).all()


async def _counts(query: Any) -> dict[str, int]:
    async with DATABASE.connect() as connection:
        counts = {status.value: count for status, count in await connection.execute(query)}
    return {"total": sum(counts.values()), **counts}


async def _names(connection: AsyncConnection, dataset_id: UUID) -> Names:
    def read(synchronous: Any) -> Names:
        with Session(synchronous, expire_on_commit=False) as session:
            questions = session.scalars(select(Question).where(Question.dataset_id == dataset_id))
            properties = session.scalars(select(MetadataProperty).where(MetadataProperty.dataset_id == dataset_id))
            return Names({each.name: each for each in questions}, {each.name: each for each in properties})

    return await connection.run_sync(read)


async def _text_search(
    connection: AsyncConnection, dataset_id: UUID, query: TextQuery | str | None
) -> TextSearch | None:
    if query is None:
        return None
    asked = TextQuery(q=query) if isinstance(query, str) else query
    return await text_search(connection, dataset_id, asked.q, asked.field)


def _ordered(where: list[Any], orders: list[ColumnElement[Any]], found: TextSearch | None, user_id: Any) -> Any:
    """Return the query of records and scores, in order."""
    if orders:
        return select(Record.id, literal_column("NULL")).where(*where).order_by(*orders, ROWID)
    if found is not None and found.scores is not None:
        scores = found.scores.subquery()
        score = func.coalesce(scores.c.score, 0.0)
        joined = select(Record.id, score).outerjoin(scores, scores.c.record_id == type_coerce(Record.id, String))
        return joined.where(*where).order_by(score.desc(), ROWID)
    one = literal_column("1.0")
    if user_id is None:
        return select(Record.id, one).where(*where).order_by(ROWID)
    return select(Record.id, one).where(*where).order_by(_shuffled(user_id), ROWID)


def _shuffled(user_id: Any) -> ColumnElement[int]:
    """Return a number for each record that looks random, and is the same each time for a user.

    Arithmetic modulo a prime below 2^31, so that no product leaves SQLite's 64 bits.
    """
    digest = hashlib.sha256(str(user_id).encode()).digest()
    factor, start, second, shift = (int.from_bytes(digest[at : at + 4], "big") % PRIME or 1 for at in (0, 4, 8, 12))
    mixed = (ROWID % PRIME * factor + start) % PRIME
    squared: ColumnElement[int] = (mixed * mixed % PRIME * second + shift) % PRIME
    return squared
