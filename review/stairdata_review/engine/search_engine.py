"""The search engine that Argilla asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Dataset, MetadataProperty, Record, Response, Suggestion, User, VectorSettings
from argilla_server.search_engine import SearchEngine, SearchResponseItem, SearchResponses
from argilla_server.search_engine.base import TermsMetrics
from argilla_server.settings import settings
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import create_async_engine

DATABASE = create_async_engine(settings.database_url, **settings.database_engine_args)
"""Connections of our own: a request holds one of Argilla's while it asks us, and could wait for a second for ever."""


@SearchEngine.register("stairdata")
class DatabaseSearchEngine(SearchEngine):
    """Answers from the database; there is no index of records to keep."""

    @classmethod
    async def new_instance(cls) -> DatabaseSearchEngine:
        return cls()

    async def close(self) -> None:
        """Nothing is held between two questions."""

    async def ping(self) -> bool:
        return True

    async def info(self) -> dict[str, Any]:
        return {"name": "stairdata", "version": "1"}

    async def create_index(self, dataset: Dataset) -> None:
        """The database holds all."""

    async def delete_index(self, dataset: Dataset) -> None:
        """The database holds all."""

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
        """The database holds all."""

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """The database holds all."""

    async def partial_record_update(self, record: Record, **update: Any) -> None:
        """The database holds all."""

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
        if dataset.is_draft:
            return {}
        query = select(Record.status, func.count()).where(Record.dataset_id == dataset.id).group_by(Record.status)
        async with DATABASE.connect() as connection:
            counts = {status.value: count for status, count in await connection.execute(query)}
        return {"total": sum(counts.values()), **counts}

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        if dataset.is_draft:
            return {}
        query = (
            select(Response.status, func.count())
            .join(Record, Record.id == Response.record_id)
            .where(Record.dataset_id == dataset.id, Response.user_id == user.id)
            .group_by(Response.status)
        )
        async with DATABASE.connect() as connection:
            counts = {status.value: count for status, count in await connection.execute(query)}
        return {"total": sum(counts.values()), **counts}

    async def search(
        self,
        dataset: Dataset,
        query: Any = None,
        filter: Any = None,
        sort: Any = None,
        offset: int = 0,
        limit: int = 100,
        user_id: Any = None,
    ) -> SearchResponses:
        found = select(Record.id).where(Record.dataset_id == dataset.id)
        page = found.order_by(Record.inserted_at, Record.id).offset(offset).limit(limit)
        async with DATABASE.connect() as connection:
            ids = (await connection.execute(page)).scalars().all()
            total = (await connection.execute(select(func.count()).select_from(found.subquery()))).scalar_one()
        return SearchResponses(items=[SearchResponseItem(record_id=each, score=1.0) for each in ids], total=total)

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> Any:
        return TermsMetrics(total=0)

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        raise UnprocessableEntityError("this server has no search by vectors: leave vector settings out")

    async def similarity_search(self, dataset: Dataset, *_: Any, **__: Any) -> SearchResponses:
        raise UnprocessableEntityError("this server has no search by vectors: use text, filters and sort orders")
