"""On a Ray cluster of two nodes every kind gives the artifact of one server, whatever dies half-way."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.responses.build import build_responses
from stairdata.recipe import Recipe
from stairdata.runs.executors import ray_cluster
from stairdata.runs.executors.executor import Execution
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import ServerError, UsageError
from stairdata_schemas.manifest import ModelIdentity
from tests.servers.ray_nodes import RayNodes, wait_until_dead
from tests.stairdata.runs.test_spread import Build, build, prepare, rows_of

if TYPE_CHECKING:
    from tests.conftest import StubServer

pytestmark = pytest.mark.slow
__all__ = ["build"]
UNITS_AT_WORK = 3  # of a replica
DIES_AT = {"responses": 6, "structured_cot": 6, "prompts": 6, "trees": 40, "evaluations": 20}
"""The number of the request at which the node is killed."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """One cluster, and one connection to it, for all tests: each takes seconds."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'stairdata[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setattr(ray_cluster, "CPUS", 1)  # else both replicas may be on one node, whatever strategy is asked for
        cluster = RayNodes()
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.stop()


@pytest.mark.parametrize("kind", DIES_AT)
def test_a_node_that_is_killed_half_way_costs_what_it_had_in_flight(
    kind: str, nodes: RayNodes, build: Build, stubs: list[StubServer], caplog: pytest.LogCaptureFixture
) -> None:
    prepare(kind, stubs)
    one = build(kind, "one")
    undisturbed = stubs[0].stats()["requests"]
    prepare(kind, stubs)
    raylet = nodes.second()
    kills, stays = stubs[:2]  # the first one also judges
    for stub in (stays, kills):
        stub.control(hold=1000)  # else one replica might have done all before the other one has started
    lost: list[int] = []

    def kill() -> None:
        for stub in (stays, kills):
            stub.stats(requests=UNITS_AT_WORK)
        lost.extend(replica for replica, node in nodes.replicas().items() if node == raylet)
        kills.control(hold=0, kill_pid=raylet, kill_after=DIES_AT[kind], hold_after_kill=1000)
        wait_until_dead(raylet)
        for replica in lost:  # as on a machine that is gone; Ray ends it, too, but some seconds later
            os.kill(replica, signal.SIGKILL)
        for stub in (stays, kills):
            stub.control(hold=0)

    threading.Thread(target=kill, daemon=True).start()
    said: list[str] = []
    execution = Execution("ray", nodes.address, endpoints=(stays.base_url, kills.base_url))
    on_ray = build(kind, "ray", execution=execution, tell=said.append)
    assert len(lost) == 1, "one replica on each node"
    assert "a replica on the Ray cluster is lost" in caplog.text
    assert rows_of(on_ray).equals(rows_of(one))
    assert on_ray.manifest.fingerprint == one.manifest.fingerprint
    assert on_ray.manifest.usage == one.manifest.usage
    details = [artifact.manifest.details | {"tokens_of_all_runs": None} for artifact in (on_ray, one)]
    assert details[0] == details[1]
    assert not (on_ray.folder / ".build").exists()
    assert "what each endpoint did:" in "\n".join(said)
    again = sum(stub.stats()["requests"] for stub in (stays, kills)) - undisturbed
    # Those in flight, and those answered that the dead replica had not written down yet.
    assert 0 < again <= 2 * UNITS_AT_WORK


def test_a_replica_that_is_killed_is_made_again(
    nodes: RayNodes, build: Build, stub_llm: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no other one that could go on."""
    prepare("prompts", [stub_llm])
    one = build("prompts", "one")
    undisturbed = stub_llm.stats()["requests"]
    prepare("prompts", [stub_llm])
    stub_llm.control(hold=1000)
    killed: list[int] = []

    def kill() -> None:
        stub_llm.stats(requests=UNITS_AT_WORK)
        killed.extend(nodes.replicas())
        stub_llm.control(hold=0, kill_pid=killed[0], kill_after=6)

    threading.Thread(target=kill, daemon=True).start()
    on_ray = build("prompts", "ray", execution=Execution("ray", nodes.address))
    assert len(killed) == 1
    assert "a replica on the Ray cluster is lost" in caplog.text
    assert rows_of(on_ray).equals(rows_of(one))
    assert 0 < stub_llm.stats()["requests"] - undisturbed <= 2 * UNITS_AT_WORK


def test_a_machine_without_the_package_is_refused(nodes: RayNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_cluster.check_cluster(nodes.address)
    monkeypatch.setattr(ray_cluster, "PACKAGE", "no-such-package-of-ours")
    assert set(ray_cluster._installed().values()) == {None}
    monkeypatch.undo()
    for found, words in ((None, "lacks stairdata"), ("0.0.1", r"has stairdata 0\.0\.1")):
        monkeypatch.setattr(ray_cluster, "_installed", lambda found=found: {"10.0.0.7": found})
        with pytest.raises(UsageError, match=rf"the machine 10\.0\.0\.7 of the Ray cluster at '.*' {words}, and"):
            ray_cluster.check_cluster(nodes.address)


def test_a_machine_that_went_away_unnoticed_is_not_asked_for_the_package(
    nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    ask: Any = ray.nodes
    gone = {"Alive": True, "NodeID": "ab" * 28, "NodeManagerAddress": "192.0.2.9"}
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *ask()])
    assert set(ray_cluster._installed()) == {node["NodeManagerAddress"] for node in ask() if node["Alive"]}
    ray_cluster.check_cluster(nodes.address)


def test_what_can_not_be_sent_is_one_message(
    nodes: RayNodes,
    actor_section: dict[str, Any],
    make_prompts: Callable[[int], Artifact],
    stub_llm: StubServer,
    tmp_path: Path,
) -> None:
    recipe = Recipe.model_validate({"actor": actor_section, "responses": {"prm": "prm", "method": "best_of_n", "n": 2}})
    options = BuildOptions(root=tmp_path / "scored", inputs=(str(make_prompts(2).folder),))
    prm = ModelIdentity(role="prm", name="prm", revision="abc")
    scorer: Any = partial(print, threading.Lock())
    with pytest.raises(UsageError, match=r"can't be sent to replicas on Ray .*lock.*; leave --executor"):
        build_responses(recipe, options, prm, scorer, Execution("ray", nodes.address))
    assert stub_llm.stats()["requests"] == 0


# -- what is refused before a cluster is looked for ------------------------------------------------------------


def test_an_address_that_nobody_answers_at_leaves_nothing(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ServerError, match=r"no Ray cluster answers at '127\.0\.0\.1:1': start it"):
        build("responses", "nowhere", execution=Execution("ray", "127.0.0.1:1"))
    assert not (tmp_path / "nowhere").exists()


def test_without_ray_the_message_says_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'stairdata\[ray\]'"):
        build("responses", "nowhere", execution=Execution("ray"))
