"""Push and pull over both lanes, against a Hub in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stairdata.hub.content import PushOptions
from stairdata.hub.places import Address
from stairdata.hub.pull import pull
from stairdata.hub.push import push
from stairdata_schemas.artifacts import Artifact, validate_artifact

if TYPE_CHECKING:
    from tests.conftest import HubServer

Make = Callable[..., Artifact]
REPO = "org/data"


def test_a_release_comes_back_as_it_was(lane: str, hub: HubServer, make: Make, tmp_path: Path) -> None:
    artifact = make()
    done = push(artifact, PushOptions(REPO))
    assert (done.tag, done.was_there) == ("v1.0.0", False)
    there = hub.repo(REPO)
    assert (there["private"], there["gated"]) == (True, "manual")
    assert there["tags"] == {"v1.0.0": done.commit}
    assert there["commits"] == ["Release v1.0.0", "initial commit"]
    pulled = pull(Address(REPO, "v1.0.0"), tmp_path / "other")
    assert pulled.folder == tmp_path / "other" / "prompts" / "1.0.0"
    assert validate_artifact(pulled) == []
    assert pulled.manifest == artifact.manifest
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["prompts"]
    origin = pulled.as_parent()
    assert (origin.repo, origin.commit) == (REPO, done.commit)
