"""A fault at every request of a push and of a pull: after another run the release is whole and right."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.hub.addresses import Address
from stairdata.hub.content import PushOptions
from stairdata.hub.pull import pull
from stairdata.hub.push import push
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import ArtifactError, HubError

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"
FAULTS = ("error", "drop", "lost", "late_error")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.hub.plots.available", lambda: False)  # a second each, and no request more


def content(artifact: Artifact) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in artifact.manifest.files}


def is_whole(there: dict[str, Any], artifact: Artifact, tag: str = "v1.0.0") -> bool:
    tree = there["trees"][tag]
    data = {path: sha256 for path, sha256 in tree.items() if path.startswith("data/")}
    return data == content(artifact) and {"README.md", "manifest.json", "croissant.json"} <= tree.keys()


def check_never_half(hub: HubServer, artifact: Artifact) -> None:
    """After whatever happened: no tag, or a whole release; never public, never content without a gate."""
    if not hub.has(REPO):
        return
    there = hub.repo(REPO)
    assert there["private"]
    assert not there["tags"] or is_whole(there, artifact)
    assert there["gated"] == "manual" or there["commits"] == ["initial commit"]


def push_until_done(artifact: Artifact, hub: HubServer) -> None:
    try:
        push(artifact, PushOptions(REPO))
    except HubError:
        check_never_half(hub, artifact)
        hub.control(recount=True)
        push(artifact, PushOptions(REPO))
    hub.control(recount=True)
    there = hub.repo(REPO)
    assert list(there["tags"]) == ["v1.0.0"]
    assert is_whole(there, artifact)
    assert (there["private"], there["gated"], list(there["branches"])) == (True, "manual", ["main"])
    assert there["commits"] == ["Release v1.0.0", "initial commit"]


def each_index(make: Make, hub: HubServer) -> Iterator[tuple[int, Artifact]]:
    """Yield every request index of a push, each with content that no Hub has seen before."""
    push(make("first", "of all"), PushOptions(REPO))
    for index in range(len(hub.requests)):
        hub.control(forget=REPO, recount=True)
        yield index, make(f"{index} a", f"{index} b", root=f"artifacts-{index}")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_anywhere_in_a_push(fault: str, lane: str, hub: HubServer, make: Make) -> None:
    for index, artifact in each_index(make, hub):
        hub.control(faults={str(index): fault})
        push_until_done(artifact, hub)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_hub_is_gone_from_some_request_on(fault: str, lane: str, hub: HubServer, make: Make) -> None:
    for index, artifact in each_index(make, hub):
        hub.control(outage=[index, fault])
        push_until_done(artifact, hub)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error", "drop"])
def test_one_fault_anywhere_in_a_pull(fault: str, lane: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    hub.control(recount=True)
    pull(Address(REPO), tmp_path / "clean")
    count = len(hub.requests)
    for index in range(count):
        hub.control(recount=True)
        hub.control(faults={str(index): fault})
        pull_until_done(artifact, hub, tmp_path / str(index))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error", "drop"])
def test_the_hub_is_gone_from_some_request_of_a_pull_on(
    fault: str, lane: str, hub: HubServer, make: Make, tmp_path: Path
) -> None:
    artifact = make()
    push(artifact, PushOptions(REPO))
    hub.control(recount=True)
    pull(Address(REPO), tmp_path / "clean")
    count = len(hub.requests)
    for index in range(count):
        hub.control(recount=True)
        hub.control(outage=[index, fault])
        pull_until_done(artifact, hub, tmp_path / str(index))


def pull_until_done(artifact: Artifact, hub: HubServer, root: Path) -> None:
    try:
        pulled = pull(Address(REPO), root)
    except (HubError, ArtifactError):
        assert not (root / "prompts").exists()
        hub.control(recount=True)
        pulled = pull(Address(REPO), root)
    assert validate_artifact(pulled) == []
    assert pulled.manifest == artifact.manifest
    assert [path.name for path in root.iterdir()] == ["prompts"]
    shutil.rmtree(root)
