"""Builds that an earlier release left unfinished are finished, and no answer is asked for twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.frozen.builds import Builds, difference, read_frozen, row_hashes
from tests.frozen.unfinished import ANSWERED, FOLDER, PROMPTS, UNFINISHED, put_back, restore_batches

if TYPE_CHECKING:
    from tests.conftest import HubServer, StubServer

ANSWERED_REQUESTS = read_frozen(f"unfinished/{ANSWERED}")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory, stub_process: StubServer, hub_process: HubServer) -> Builds:
    builds = Builds(tmp_path_factory.mktemp("unfinished"), stub_process, hub_process)
    builds.give("prompts", PROMPTS)
    return builds


def test_every_state_is_there() -> None:
    assert sorted(ANSWERED_REQUESTS) == sorted(UNFINISHED)
    assert {path.name for path in FOLDER.iterdir()} == {"prompts", ANSWERED, *UNFINISHED}
    unanswered = {name for name, count in ANSWERED_REQUESTS.items() if not count}
    assert unanswered == {"batch_under_way", "batch_that_may_be_made"}


@pytest.mark.parametrize("name", UNFINISHED)
def test_it_is_finished_without_a_request_made_twice(name: str, builds: Builds, stub_process: StubServer) -> None:
    case = UNFINISHED[name].finished
    builds.reset_stub(case)
    whole = builds.run(f"{name}_as_a_whole", case).artifact
    needed = stub_process.stats()["requests"]

    work = put_back(name, builds)
    assert {path.name for path in work.iterdir()} == UNFINISHED[name].leaves | {"build.json"}
    builds.reset_stub(case)
    if (work / "batches").exists():
        restore_batches(work, stub_process)
    sent_before = stub_process.stats()["sent_in_batches"]
    finished = builds.run(name, case).artifact
    assert whole is not None
    assert finished is not None
    assert finished.folder == work.parent

    stats = stub_process.stats()
    assert ANSWERED_REQUESTS[name] < needed
    assert stats["requests"] == needed - ANSWERED_REQUESTS[name]
    assert stats["most_repeated"] <= 1
    assert stats["sent_in_batches"] == sent_before
    now, frozen = row_hashes(finished), row_hashes(whole)
    assert now == frozen, difference(frozen, now)
    assert (finished.manifest.usage, finished.manifest.outcomes) == (whole.manifest.usage, whole.manifest.outcomes)
