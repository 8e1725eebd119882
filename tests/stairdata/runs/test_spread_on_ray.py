"""Every kind that works on Ray gives the artifact of one server there, also where one of its servers dies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
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
from tests.stairdata.runs.test_spread import Build, build, prepare, rows_of

if TYPE_CHECKING:
    from tests.conftest import StubServer

pytestmark = pytest.mark.slow
ON_RAY = ["responses", "structured_cot", "prompts", "trees/judge"]
__all__ = ["build"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Any:
    """One cluster for all tests here: starting it takes seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'stairdata[ray]'")
    quiet = {"memory_monitor_refresh_ms": 0}  # it would kill actors for the memory that other programs take
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=quiet)
    yield
    ray.shutdown()


@pytest.mark.parametrize("kind", ON_RAY)
def test_two_replicas_of_which_one_loses_its_server_give_the_rows_of_one_server(
    kind: str, build: Build, stubs: list[StubServer]
) -> None:
    prepare(kind, stubs)
    one = build(kind, "one")
    stays, dies = stubs[:2]
    prepare(kind, stubs)
    dies.control(die_after=3)
    stays.control(hold=1000)  # else it might have done all before the other replica has started
    threading.Thread(target=_release, args=(stays, dies), daemon=True).start()
    said: list[str] = []
    urls, (_, _, role) = (stays.base_url, dies.base_url), kind.partition("/")
    execution = Execution("ray", endpoints=urls, role_endpoints={role: urls} if role else {})
    on_ray = build(kind, "ray", execution=execution, tell=said.append)
    assert rows_of(on_ray).equals(rows_of(one))
    assert on_ray.manifest.fingerprint == one.manifest.fingerprint
    assert on_ray.manifest.usage == one.manifest.usage
    assert not dies.is_running
    assert "what each endpoint did:" in "\n".join(said)


def _release(stays: StubServer, dies: StubServer) -> None:
    assert dies._process is not None
    dies._process.wait()
    stays.control(hold=0)


def test_a_machine_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_cluster.check_cluster("auto")
    monkeypatch.setattr(ray_cluster, "PACKAGE", "no-such-package-of-ours")
    installed = ray_cluster._installed()
    assert list(installed.values()) == [None]
    monkeypatch.undo()
    for found, words in ((None, "lacks stairdata"), ("0.0.1", r"has stairdata 0\.0\.1")):
        monkeypatch.setattr(ray_cluster, "_installed", lambda found=found: {"10.0.0.7": found})
        with pytest.raises(UsageError, match=rf"the machine 10\.0\.0\.7 of the Ray cluster at 'auto' {words}, and"):
            ray_cluster.check_cluster("auto")


def test_an_address_that_nobody_answers_at_leaves_nothing(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ServerError, match=r"no Ray cluster answers at '127\.0\.0\.1:1': start it"):
        build("responses", "nowhere", execution=Execution("ray", "127.0.0.1:1"))
    assert not (tmp_path / "nowhere").exists()


def test_what_can_not_be_sent_is_one_message(
    actor_section: dict[str, Any], make_prompts: Callable[[int], Artifact], stub_llm: StubServer, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate({"actor": actor_section, "responses": {"prm": "prm", "method": "best_of_n", "n": 2}})
    options = BuildOptions(root=tmp_path / "scored", inputs=(str(make_prompts(2).folder),))
    prm = ModelIdentity(role="prm", name="prm", revision="abc")
    scorer: Any = partial(print, threading.Lock())
    with pytest.raises(UsageError, match=r"can't be sent to replicas on Ray .*lock.*; leave --executor"):
        build_responses(recipe, options, prm, scorer, Execution("ray"))
    assert stub_llm.stats()["requests"] == 0
