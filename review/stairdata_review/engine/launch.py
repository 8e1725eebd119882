"""Argilla's processes, as this project starts them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from pathlib import Path

from argilla_server.cli.database.migrate import migrate_db
from argilla_server.contexts import accounts
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import UserRole
from argilla_server.models import User
from argilla_server.settings import settings
from sqlalchemy import make_url

from . import (
    schema,
    search_engine,  # noqa: F401 - importing it registers the engine
)
from .browser import with_headers

HOST = "127.0.0.1"


def prepare() -> None:
    """Bring the database to this version's schema and give the owner the credentials of the file beside it."""
    _check_redis()
    migrate_db("head")
    database = sqlite3.connect(str(make_url(settings.database_url).database), isolation_level=None, timeout=60)
    if schema.install(database):
        sys.stdout.write("the text index was made anew\n")
    repaired = schema.repair_statuses(database)
    if repaired:
        sys.stdout.write(f"{repaired} records had another status than their responses ask for\n")
    database.close()
    asyncio.run(_ensure_owner(json.loads(Path("credentials.json").read_text(encoding="utf-8"))))


def serve(port: int) -> None:
    """Run the web server on this machine's own address alone."""
    import argilla_server
    import uvicorn

    pages = Path(argilla_server.__file__).parent / "static"
    uvicorn.run(with_headers(argilla_server.app, pages), host=HOST, port=port, access_log=False)


def work() -> None:
    """Run the worker of the background jobs: record status after a change of distribution, webhooks."""
    from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION
    from rq import Worker

    Worker([HIGH_QUEUE, DEFAULT_QUEUE], connection=REDIS_CONNECTION).work(with_scheduler=True)


def _check_redis() -> None:
    from argilla_server.jobs.queues import REDIS_CONNECTION
    from redis.exceptions import RedisError

    try:
        REDIS_CONNECTION.ping()
    except RedisError as error:
        raise SystemExit(f"Redis can't be used: {error}") from None


async def _ensure_owner(owner: dict[str, str]) -> None:
    async with AsyncSessionLocal() as db:
        user = await accounts.get_user_by_username(db, owner["username"])
        if user is None:
            await User.create(
                db,
                first_name=owner["username"],
                username=owner["username"],
                role=UserRole.owner,
                password_hash=accounts.hash_password(owner["password"]),
                api_key=owner["api_key"],
            )
        elif user.api_key != owner["api_key"] or not accounts.verify_password(owner["password"], user.password_hash):
            await user.update(
                db,
                role=UserRole.owner,
                password_hash=accounts.hash_password(owner["password"]),
                api_key=owner["api_key"],
            )
