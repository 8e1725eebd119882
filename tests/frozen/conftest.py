"""One set of builds for all tests here: each is made once, when a test first asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.frozen.builds import Builds

if TYPE_CHECKING:
    from tests.conftest import HubServer, StubServer


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory, stub_process: StubServer, hub_process: HubServer) -> Builds:
    return Builds(tmp_path_factory.mktemp("builds"), stub_process, hub_process)
