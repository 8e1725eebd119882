"""One real Argilla server for all tests of reviews; its environment is made on first use and shared by all runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stairdata_review.server.background import start_server, stop_server
from stairdata_review.server.environment import ensure_environment
from stairdata_review.server.running_server import RunningServer
from stairdata_schemas.errors import ReviewError


@pytest.fixture(scope="session")
def argilla_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a folder of its own, on a free port; ended with the session."""
    try:
        ensure_environment()
    except ReviewError as error:
        pytest.skip(f"Argilla's server can't be installed here: {error}")
    folder: Path = tmp_path_factory.mktemp("argilla")
    running = start_server(folder, port=0)
    yield running
    stop_server(folder)
