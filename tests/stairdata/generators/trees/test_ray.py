"""Trees on Ray: the same rows as without it, whatever dies."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from stairdata.generators.trees.build import build_trees
from stairdata.recipe import Recipe
from stairdata.runs.executors import ray_cluster as ray_executor
from stairdata.runs.executors.executor import Execution
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import BudgetError, BuildError, ServerError, UsageError

if TYPE_CHECKING:
    from tests.conftest import StubServer

pytestmark = pytest.mark.slow
IN_FLIGHT = 4  # requests of an actor at most
UNEVEN = ["requests", "prompt_tokens", "completion_tokens", "seconds"]
Build = Callable[..., Artifact]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Any:
    """One cluster for all tests here: starting it takes seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'stairdata[ray]'")
    quiet = {"memory_monitor_refresh_ms": 0}  # it would kill actors for the memory that other programs take
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=quiet)
    yield
    ray.shutdown()


@pytest.fixture
def build(
    actor_section: dict[str, Any], stub_llm: StubServer, make_prompts: Callable[[int], Artifact], tmp_path: Path
) -> Build:
    def grow(executor: Literal["local", "ray"], count: int = 6, **options: Any) -> Artifact:
        trees = {"iterations": 8, "samples": 3, "max_depth": 3, "concurrency": 4}
        actor = {**actor_section, "retries": 1, "concurrency": IN_FLIGHT}
        recipe = Recipe.model_validate({"actor": actor, "trees": trees})
        endpoints = options.pop("endpoints", two_names(stub_llm) if executor == "ray" else ())
        prompts = str(make_prompts(count).folder)
        given = BuildOptions(root=tmp_path / executor, inputs=(prompts,), **options)
        return build_trees(recipe, given, Execution(executor, endpoints=endpoints))

    return grow


def two_names(server: StubServer) -> tuple[str, str]:
    """Return two URLs of one server."""
    return server.base_url, server.base_url.replace("127.0.0.1", "localhost")


def _rows(artifact: Artifact) -> Any:
    return artifact.scan().drop(UNEVEN).collect()


def test_two_actors_grow_the_trees_of_the_local_executor(build: Build) -> None:
    local, on_ray = build("local"), build("ray")
    assert _rows(on_ray).equals(_rows(local))
    assert on_ray.manifest.fingerprint == local.manifest.fingerprint
    assert on_ray.manifest.usage == local.manifest.usage
    assert on_ray.manifest.details == local.manifest.details
    assert not (on_ray.folder / ".build").exists()


def test_an_actor_that_is_killed_loses_no_tree(
    build: Build, stub_llm: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first actor to bring a tree is killed, with trees under way in it."""
    local = build("local", 12)
    undisturbed = stub_llm.stats()["requests"]
    stub_llm.reset()
    plain = ray_executor.read_result
    killed: list[int] = []

    def read(result: dict[str, Any]) -> Any:
        if not killed:
            killed.append(_workers()[0])
            os.kill(killed[0], signal.SIGKILL)
        return plain(result)

    monkeypatch.setattr(ray_executor, "read_result", read)
    assert _rows(build("ray", 12)).equals(_rows(local))
    assert killed
    # Those in flight, and those answered that the dead actor had not written down yet.
    assert stub_llm.stats()["requests"] <= undisturbed + 2 * IN_FLIGHT, "requests in flight alone are sent again"


def test_a_tree_that_came_in_is_not_paid_for_again(
    build: Build, stub_llm: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray asks again for the tree of an actor that died before it was done with handing it over."""
    plain = ray_executor.KeptJournals.add
    seen: list[Path] = []

    def add(journals: ray_executor.KeptJournals, path: Path) -> None:
        plain(journals, path)
        seen.append(path)
        assert [path.exists() for path in seen] == [False] * (len(seen) - 16) + [True] * min(len(seen), 16)

    monkeypatch.setattr(ray_executor.KeptJournals, "add", add)
    trees = build("ray", 18)  # two actors with eight calls each
    assert len(seen) == trees.manifest.rows == 18
    assert not any(path.exists() for path in seen)


def _workers() -> list[int]:
    """Return the process ids of the actors of this process's cluster."""
    session = pytest.importorskip("ray").get_runtime_context().get_job_id()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::MapWorker" in (process / "cmdline").read_bytes():
                environment = (process / "environ").read_bytes()
                if f"RAY_JOB_ID={session}".encode() in environment:
                    found.append(int(process.name))
    return found


def test_failed_trees_are_refused_and_a_dead_server_stops_the_build(build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(judge_text="no number")
    with pytest.raises(BuildError, match="judge_failure 6"):
        build("ray")
    with pytest.raises(ServerError):
        build("ray", endpoints=("http://127.0.0.1:1/v1",), fresh=True)


def test_a_limit_stops_the_build_and_a_higher_one_lets_it_go_on(build: Build) -> None:
    from stairdata.llm.budget import BudgetLimits

    with pytest.raises(BudgetError, match="--max-total-tokens 10"):
        build("ray", limits=BudgetLimits(total_tokens=10))
    assert _rows(build("ray")).equals(_rows(build("local")))


def test_without_ray_the_message_says_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'stairdata\[ray\]'"):
        build("ray")
