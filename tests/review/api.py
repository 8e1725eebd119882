"""Argilla's HTTP interface as tests use it, without the SDK between."""

from __future__ import annotations

from typing import Any

import httpx

from stairdata_review.server.running_server import RunningServer

PASSWORD = "a password of tests"


class Api:
    """Requests of one user."""

    def __init__(self, url: str, key: str) -> None:
        head = {"X-Argilla-Api-Key": key}  # and no proxy between a machine and itself
        self._client = httpx.Client(base_url=f"{url}/api/v1", headers=head, timeout=120, trust_env=False)

    def send(self, method: str, path: str, body: Any = None, **parameters: Any) -> httpx.Response:
        return self._client.request(method, path, json=body, params=parameters)

    def call(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        answer = self.send(method, path, body, **parameters)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def get(self, path: str, **parameters: Any) -> Any:
        return self.call("GET", path, **parameters)

    def post(self, path: str, body: Any = None, **parameters: Any) -> Any:
        return self.call("POST", path, body, **parameters)


def owner_of(running: RunningServer) -> Api:
    return Api(running.url, running.credentials().api_key)


def make_workspace(owner: Api, name: str) -> str:
    return str(owner.post("/workspaces", {"name": name})["id"])


def make_reviewer(owner: Api, name: str, workspace_id: str) -> dict[str, Any]:
    body = {"first_name": name, "username": name, "password": PASSWORD, "role": "annotator"}
    user: dict[str, Any] = owner.post("/users", body)
    owner.post(f"/workspaces/{workspace_id}/users", {"user_id": user["id"]})
    return user


def make_dataset(  # noqa: PLR0917
    owner: Api,
    workspace_id: str,
    name: str,
    fields: dict[str, dict[str, Any]],
    questions: dict[str, dict[str, Any]],
    metadata: dict[str, dict[str, Any]] | None = None,
    min_submitted: int = 1,
) -> str:
    """Create and publish a dataset; return its id."""
    distribution = {"strategy": "overlap", "min_submitted": min_submitted}
    dataset = owner.post("/datasets", {"name": name, "workspace_id": workspace_id, "distribution": distribution})
    path = f"/datasets/{dataset['id']}"
    for each, settings in fields.items():
        owner.post(f"{path}/fields", {"name": each, "title": each, "required": False, "settings": settings})
    for each, settings in questions.items():
        required = each == next(iter(questions))
        owner.post(f"{path}/questions", {"name": each, "title": each, "required": required, "settings": settings})
    for each, settings in (metadata or {}).items():
        body = {"name": each, "title": each, "settings": settings, "visible_for_annotators": True}
        owner.post(f"{path}/metadata-properties", body)
    owner.call("PUT", f"{path}/publish")
    return str(dataset["id"])


def add_records(owner: Api, dataset_id: str, records: list[dict[str, Any]], batch: int = 500) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for start in range(0, len(records), batch):
        body = {"items": records[start : start + batch]}
        made += owner.post(f"/datasets/{dataset_id}/records/bulk", body)["items"]
    return made


def labels(*names: str) -> list[dict[str, str]]:
    return [{"value": name, "text": name} for name in names]
