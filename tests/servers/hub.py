"""A Hub for datasets and models, in a process of its own, as the unmodified huggingface_hub client knows it.

    python -m tests.servers.hub FOLDER            listens on a port of its own, prints it, serves until it is ended
    python -m tests.servers.hub FOLDER --fd N     serves the bound socket that it inherited

Content lies in FOLDER by its hash; repositories, refs and commits are in memory. A file that is over ten bytes of
parquet or picture is LFS: plain (batch, PUT, verify, multipart over `multipart_over`), or by Xet (see `xet.py`),
as the client likes; a download is offered by Xet where `xet` is on.

`POST /_control` changes `Options`; `{"reset": true}` forgets everything first (`"all"`: Xet's storage, too).
`GET /_stats` lists the requests since the last reset. Faults go by the number of a request, from 0: `error` answers
500 without doing anything, `drop` cuts the connection, `cut` in the middle of a file, `lost` does what was asked
and cuts the connection,
`late_error` does it and answers 500, `kill` sends SIGKILL to `kill_pid` before, `kill_late` after it is done. With
`outage` all requests from that number on fail in that way.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn
import yaml
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.servers.xet import XetStore

LFS_ENDINGS = (".parquet", ".png", ".bin", ".safetensors")
Handler = Callable[..., Awaitable[Response]]


@dataclass(slots=True)
class Options:
    """How the server behaves."""

    xet: bool = False
    """Offer downloads by Xet."""
    multipart_over: int = 1 << 40
    """LFS files of more bytes are sent in parts of `part_bytes`."""
    part_bytes: int = 1 << 20
    page: int = 1000
    """Entries of a tree, or commits, on a page."""
    redirect: bool = False
    """Send downloads of LFS files to another origin, as the Hub does."""
    faults: dict[str, str] = field(default_factory=dict)
    """Number of the request (as text) to the name of the fault."""
    outage: list[Any] = field(default_factory=list)
    """[first number, fault]: all requests from there on."""
    kill_pid: int | None = None
    before: dict[str, str] = field(default_factory=dict)
    """Path fragment to a repository: a stranger's commit lands in it right before the first such POST."""
    hold: int = 0
    """Hold that many POSTs to /commit/ until all of them are there, then answer: a race for certain."""
    tokens: dict[str, list[str]] = field(default_factory=lambda: {"hf_test_write": ["write", "tester", "org"]})
    """Token to its role, its user and the organisations that it may write to."""
    swollen: dict[str, int] = field(default_factory=dict)
    """Path to how many bytes a download of it brings, whatever is listed; 0: it has no end."""
    shuffle_lfs: bool = False
    """Damage what is downloaded: the first byte of LFS files is flipped."""
    rate: float = 0.0
    """Bytes a second over all connections, in each direction; 0: as many as there are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a tree."""

    size: int
    oid: str
    """Hash of git: of the content, or of the LFS pointer."""
    sha256: str
    lfs: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit with its whole tree."""

    oid: str
    parent: str | None
    title: str
    date: str
    tree: dict[str, Entry]


@dataclass(slots=True)
class Repo:
    """A repository."""

    name: str
    private: bool
    kind: str = "dataset"
    gated: Any = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        name = revision.removeprefix("refs/heads/")
        oid = self.branches.get(name) or self.tags.get(revision) or revision
        found = self.commits.get(oid)
        if found is None and re.fullmatch(r"[0-9a-f]{7,40}", oid):
            found = next((commit for key, commit in self.commits.items() if key.startswith(oid)), None)
        if found is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message, **{k.replace("_", "-"): v for k, v in self.headers.items()}}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message}, self.status, headers)


class Protocol(H11Protocol):
    """Hands the transport to the application, which drops connections with it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


class CutResponse(Response):
    """A file of which half the bytes come before the connection breaks."""

    def __init__(self, whole: FileResponse, request: Request) -> None:
        self._whole = whole
        self._request = request
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def half(message: Any) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": message["body"][: len(message["body"]) // 2], "more_body": True}
            await send(message)
            if message["type"] == "http.response.body":
                self._request.state.transport.close()

        await self._whole(scope, receive, half)


class Link:
    """One direction of a slow link, which all connections share."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def carry(self, count: int, rate: float) -> None:
        """Wait as long as so many bytes are on their way."""
        if rate:
            self._free_at = max(self._free_at, time.monotonic()) + count / rate
            await asyncio.sleep(self._free_at - time.monotonic())


class Hub:
    """The whole of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.xet = XetStore(folder / "xet")
        self.up, self.down = Link(), Link()
        self.reset()

    def reset(self, *, all_of_it: bool = False) -> None:
        """Forget all, but not Xet's storage unless asked to: clients remember what they have sent there."""
        if all_of_it:
            shutil.rmtree(self.folder / "xet")
            self.xet = XetStore(self.folder / "xet")
        shutil.rmtree(self.folder / "blobs", ignore_errors=True)
        (self.folder / "blobs").mkdir(parents=True)
        self.options = Options()
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.tokens_seen: set[str] = set()
        self.held = asyncio.Barrier(1)

    # -- the one entrance ------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def received() -> Any:
            message = await receive()
            await self.up.carry(len(message.get("body", b"")), self.options.rate)
            return message

        async def sent(message: Any) -> None:
            await self.down.carry(len(message.get("body", b"")), self.options.rate)
            await send(message)

        request = Request(scope, received)
        raw = scope["raw_path"].decode().partition("?")[0]
        response = await (self.own if raw.startswith("/_") else self.counted)(request, raw)
        if response is None:
            request.state.transport.abort()
            await asyncio.sleep(0)
            return
        await response(scope, receive, sent)

    async def own(self, request: Request, raw: str) -> Response | None:
        if raw == "/_stats":
            repos = {name: self.describe(repo) for name, repo in self.repos.items()}
            return JSONResponse({"requests": self.requests, "tokens": sorted(self.tokens_seen), "repos": repos})
        changes = await request.json()
        if wanted := changes.pop("reset", False):
            self.reset(all_of_it=wanted == "all")
        if changes.pop("recount", False):
            self.requests = []
            self.options.faults, self.options.outage, self.options.kill_pid = {}, [], None
        if forget := changes.pop("forget", None):
            self.repos.pop(forget, None)
        known = {entry.name for entry in fields(Options)}
        for name, value in changes.items():
            if name not in known:
                return JSONResponse({"unknown": name}, 400)
            setattr(self.options, name, value)
        if self.options.hold:
            self.held, self.options.hold = asyncio.Barrier(self.options.hold), 0
        return JSONResponse({})

    def describe(self, repo: Repo) -> dict[str, Any]:
        main = repo.commits[repo.branches["main"]]
        return {
            "private": repo.private,
            "gated": repo.gated,
            "tags": repo.tags,
            "branches": repo.branches,
            "commits": [commit.title for commit in self.history(repo, main)],
            "files": {path: entry.sha256 for path, entry in main.tree.items()},
            "trees": {
                tag: {path: entry.sha256 for path, entry in repo.commits[oid].tree.items()}
                for tag, oid in repo.tags.items()
            },
        }

    async def counted(self, request: Request, raw: str) -> Response | None:  # noqa: PLR0911 - a fault, a return
        number = len(self.requests)
        self.requests.append(f"{request.method} {raw}")
        self.tokens_seen.add(request.headers.get("authorization", "").removeprefix("Bearer "))
        fault = self.options.faults.get(str(number))
        if self.options.outage and number >= self.options.outage[0]:
            fault = self.options.outage[1]
        if fault == "error":
            return JSONResponse({"error": "the Hub has hiccups"}, 500)
        if fault == "drop":
            return None
        if fault == "kill":
            self.kill()
            return None
        response = await self.answer(request, raw)
        if fault == "late_error":
            return JSONResponse({"error": "the Hub has hiccups"}, 500)
        if fault == "kill_late":
            self.kill()
            return None
        if fault == "cut":
            return CutResponse(response, request) if isinstance(response, FileResponse) else None
        return None if fault == "lost" else response

    def kill(self) -> None:
        """End the client, not the server."""
        if self.options.kill_pid is not None:
            os.kill(self.options.kill_pid, signal.SIGKILL)
            self.options.kill_pid = None

    async def answer(self, request: Request, raw: str) -> Response:
        raw, request.state.kind = as_dataset(raw)
        try:
            for method, pattern, handler in ROUTES:
                if (match := re.fullmatch(pattern, raw)) and request.method in method.split():
                    return await handler(self, request, *match.groups())
            raise RefusedError(418, None, f"this server does not know {request.method} {raw}")
        except RefusedError as refused:
            return refused.response()
        except Exception as error:  # noqa: BLE001 - a fault of this server must not look like the Hub's own
            sys.stderr.write(f"{request.method} {raw}: {error!r}\n")
            return JSONResponse({"error": repr(error)}, 418)

    # -- who may what ----------------------------------------------------------------------------------------

    def user(self, request: Request) -> list[str] | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.options.tokens:
            raise RefusedError(401, None, "Invalid credentials in Authorization header")
        return self.options.tokens.get(token)

    def repo(self, request: Request, name: str, *, write: bool = False, content: bool = False) -> Repo:
        user, repo = self.user(request), self.repos.get(unquote(name))
        member = user is not None and name.partition("/")[0] in user[1:]
        if repo is None or repo.kind != request.state.kind or (repo.private and not member):
            raise RefusedError(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and (user is None or not member or user[0] != "write"):
            raise RefusedError(403, None, "You have no write access to this repository")
        if content and repo.gated and not member:
            raise RefusedError(403 if user else 401, "GatedRepo", f"Access to dataset {name} is restricted")
        return repo

    # -- repositories ----------------------------------------------------------------------------------------

    async def whoami(self, request: Request) -> Response:
        user = self.user(request)
        if user is None:
            raise RefusedError(401, None, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": user[0]} for name in user[2:]]
        access = {"displayName": "tests", "role": user[0]}
        answer = {"type": "user", "id": "1", "name": user[1], "fullname": user[1], "orgs": orgs}
        return JSONResponse(answer | {"auth": {"type": "access_token", "accessToken": access}})

    async def create(self, request: Request) -> Response:
        user, body = self.user(request), await request.json()
        if user is None:
            raise RefusedError(401, None, "Invalid username or password.")
        space = body.get("organization") or user[1]
        if user[0] != "write" or space not in user[1:]:
            raise RefusedError(403, None, f"You don't have the rights to create a dataset under the namespace {space}")
        name = f"{space}/{body['name']}"
        kind = body.get("type") or "model"
        url = f"{request.base_url}{'datasets/' if kind == 'dataset' else ''}{name}"
        if name in self.repos:
            return JSONResponse({"error": "You already created this dataset repo", "url": url}, 409)
        repo = self.repos[name] = Repo(name, private=body.get("visibility") == "private", kind=kind)
        self.commit_to(repo, "main", None, "initial commit", {".gitattributes": self.keep(b"*.parquet filter=lfs\n")})
        return JSONResponse({"url": url, "id": name, "name": name})

    async def settings(self, request: Request, name: str) -> Response:
        repo, body = self.repo(request, name, write=True), await request.json()
        if "visibility" in body:
            repo.private = body["visibility"] == "private"
        repo.gated = body.get("gated", repo.gated)
        return JSONResponse({"private": repo.private, "gated": repo.gated})

    async def info(self, request: Request, name: str, revision: str = "main") -> Response:
        repo = self.repo(request, name)
        commit = repo.resolve(unquote(revision))
        readme = commit.tree.get("README.md")
        head = re.match(r"\A---\n(.*?)\n---\n", self.blob(readme).decode(), re.DOTALL) if readme else None
        return JSONResponse(
            {
                "_id": "1",
                "id": repo.name,
                "sha": commit.oid,
                "author": repo.name.partition("/")[0],
                "lastModified": commit.date,
                "private": repo.private,
                "gated": repo.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "cardData": yaml.safe_load(head.group(1)) if head else {},
                "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
            }
        )

    async def refs(self, request: Request, name: str) -> Response:
        repo = self.repo(request, name)
        branches = [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in repo.branches.items()]
        tags = [{"name": k, "ref": f"refs/tags/{k}", "targetCommit": v} for k, v in repo.tags.items()]
        return JSONResponse({"branches": branches, "tags": tags, "converts": []})

    async def tag(self, request: Request, name: str, revision: str) -> Response:
        repo, body = self.repo(request, name, write=True), await request.json()
        commit = repo.resolve(unquote(revision))
        if body["tag"] in repo.tags:
            raise RefusedError(409, None, "Tag reference exists already.")
        repo.tags[body["tag"]] = commit.oid
        return JSONResponse({})

    async def branch(self, request: Request, name: str, branch: str) -> Response:
        repo = self.repo(request, name, write=True)
        branch = unquote(branch)
        if request.method == "DELETE":
            if branch == "main":
                raise RefusedError(403, None, "Cannot delete the default branch")
            if repo.branches.pop(branch, None) is None:
                raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            return JSONResponse({})
        body = json.loads(await request.body() or b"{}")
        if branch in repo.branches:
            raise RefusedError(409, None, "Reference already exists")
        repo.branches[branch] = repo.resolve(body.get("startingPoint") or "main").oid
        return JSONResponse({})

    async def commits(self, request: Request, name: str, revision: str) -> Response:
        repo = self.repo(request, name)
        found = [
            {"id": c.oid, "title": c.title, "message": "", "authors": [{"user": "tester"}], "date": c.date}
            for c in self.history(repo, repo.resolve(unquote(revision)))
        ]
        return self.paged(request, found)

    @staticmethod
    def history(repo: Repo, commit: Commit) -> list[Commit]:
        found = [commit]
        while found[-1].parent is not None:
            found.append(repo.commits[found[-1].parent])
        return found

    # -- trees -----------------------------------------------------------------------------------------------

    async def tree(self, request: Request, name: str, revision: str, path: str = "") -> Response:
        repo = self.repo(request, name)
        commit = repo.resolve(unquote(revision))
        prefix = f"{unquote(path)}/" if path else ""
        inside = {key: entry for key, entry in sorted(commit.tree.items()) if key.startswith(prefix)}
        if prefix and not inside:
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        recursive = request.query_params.get("recursive", "false").lower() == "true"
        return self.paged(request, self.listed(inside, prefix, recursive=recursive))

    def listed(self, inside: dict[str, Entry], prefix: str, *, recursive: bool) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for key, entry in inside.items():
            parts = key.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(folder.encode()).hexdigest()  # noqa: S324 - git's
                found.setdefault(folder, {"type": "directory", "path": folder, "oid": oid, "size": 0})
                if not recursive:
                    break
            if recursive or len(parts) == 1:
                found[key] = self.file(key, entry)
        return list(found.values())

    def file(self, path: str, entry: Entry) -> dict[str, Any]:
        shown: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.lfs:
            shown["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            if self.options.xet and (xet_hash := self.xet.hash_of(entry.sha256)):
                shown["xetHash"] = xet_hash
        return shown

    def paged(self, request: Request, items: list[dict[str, Any]]) -> Response:
        start = int(request.query_params.get("cursor", 0))
        end = start + self.options.page
        headers = {}
        if end < len(items):
            headers["Link"] = f'<{request.url.include_query_params(cursor=end)}>; rel="next"'
        return JSONResponse(items[start:end], headers=headers)

    async def paths_info(self, request: Request, name: str, revision: str) -> Response:
        commit = self.repo(request, name).resolve(unquote(revision))
        paths = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([self.file(path, commit.tree[path]) for path in paths if path in commit.tree])

    # -- commits ---------------------------------------------------------------------------------------------

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        head = re.match(r"\A---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            yaml.safe_load(head.group(1) if head else "{}")
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request: Request, name: str, branch: str) -> Response:
        repo = self.repo(request, name, write=True)
        if unquote(branch) not in repo.branches:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        tree = repo.resolve(unquote(branch)).tree
        files = []
        for asked in (await request.json())["files"]:
            lfs = asked["path"].endswith(LFS_ENDINGS) or asked["size"] > 10 * 1024**2
            there = tree.get(asked["path"])
            oid = None if there is None else there.sha256 if there.lfs else there.oid
            mode = "lfs" if lfs else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": files})

    async def commit(self, request: Request, name: str, branch: str) -> Response:
        repo, branch = self.repo(request, name, write=True), unquote(branch)
        if branch not in repo.branches:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        if self.held.parties > 1:
            await self.held.wait()
            self.held = asyncio.Barrier(1)
        self.strangers_first(request.url.path)
        head = repo.commits[repo.branches[branch]]
        header = lines[0]["value"]
        if header.get("parentCommit") and not head.oid.startswith(header["parentCommit"]):
            raise RefusedError(412, None, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for line in lines[1:]:
            self.apply(tree, line["key"], line["value"])
        oid = self.commit_to(repo, branch, head.oid, header["summary"], tree)
        url = f"{request.base_url}datasets/{repo.name}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def strangers_first(self, path: str) -> None:
        """Let somebody else's commit land right before this one."""
        for fragment, change in list(self.options.before.items()):
            if fragment in path:
                del self.options.before[fragment]
                name, file, text = change.split("|", 2)
                repo = self.repos[name]
                head = repo.commits[repo.branches["main"]]
                self.commit_to(repo, "main", head.oid, "stranger", {**head.tree, file: self.keep(text.encode())})

    def apply(self, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = self.keep(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            tree[path] = self.lfs_entry(value["oid"])
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
        elif key == "deletedFolder":
            for inside in [name for name in tree if name.startswith(path.rstrip("/") + "/")]:
                del tree[inside]

    def commit_to(self, repo: Repo, branch: str, parent: str | None, title: str, tree: dict[str, Entry]) -> str:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        seed = f"{repo.name}/{parent}/{title}/{len(repo.commits)}/{sorted(tree.items())}"
        oid = hashlib.sha1(seed.encode()).hexdigest()  # noqa: S324 - git's
        repo.commits[oid] = Commit(oid, parent, title, date, tree)
        repo.branches[branch] = oid
        return oid

    def keep(self, content: bytes) -> Entry:
        """Store a regular file; one that is there is let be, an answer may be reading it."""
        digest = hashlib.sha256(content).hexdigest()
        if not (path := self.path_of(digest)).exists():
            path.write_bytes(content)
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's
        return Entry(len(content), oid, digest, lfs=False)

    def lfs_entry(self, sha256: str) -> Entry:
        path = self.path_of(sha256)
        size = path.stat().st_size if path.exists() else self.xet.size_of(sha256)
        if size is None:
            raise RefusedError(400, None, f"LFS object {sha256} was not uploaded")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()  # noqa: S324 - git's
        return Entry(size, oid, sha256, lfs=True)

    def path_of(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise RefusedError(400, None, "no sha256")
        return self.folder / "blobs" / sha256

    def blob(self, entry: Entry) -> bytes:
        return self.path_of(entry.sha256).read_bytes()

    # -- LFS -------------------------------------------------------------------------------------------------

    async def lfs_batch(self, request: Request, name: str) -> Response:
        self.repo(request, name, write=True)
        objects = [self.lfs_action(request, entry) for entry in (await request.json())["objects"]]
        return JSONResponse({"transfer": "basic", "objects": objects})

    def lfs_action(self, request: Request, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if self.path_of(oid).exists():
            return {"oid": oid, "size": size}
        base = str(request.base_url).rstrip("/")
        upload: dict[str, Any] = {"href": f"{base}/lfs/{oid}?signature=SIGNED"}
        if size > self.options.multipart_over:
            parts = range(1, -(-size // self.options.part_bytes) + 1)
            urls = {str(part): f"{base}/lfs/{oid}/{part}?signature=SIGNED" for part in parts}
            upload = {
                "href": f"{base}/lfs/{oid}/complete",
                "header": {"chunk_size": str(self.options.part_bytes)} | urls,
            }
        verify = {"href": f"{base}/lfs/{oid}/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    async def lfs_put(self, request: Request, oid: str, part: str = "") -> Response:
        if request.query_params.get("signature") != "SIGNED":
            raise RefusedError(403, None, "the URL is not signed")
        target = self.path_of(oid)
        temporary = target.with_name(f"{oid}.part{part}" if part else f"{oid}.{len(self.requests)}.tmp")
        hasher = hashlib.sha256()
        with temporary.open("wb") as file:
            async for piece in request.stream():
                hasher.update(piece)
                file.write(piece)
        if part:
            return Response(headers={"ETag": hasher.hexdigest()})
        return self.lfs_done(temporary, target, hasher.hexdigest())

    async def lfs_complete(self, request: Request, oid: str) -> Response:
        target, parts = self.path_of(oid), (await request.json())["parts"]
        whole = target.with_name(f"{oid}.whole")
        hasher = hashlib.sha256()
        with whole.open("wb") as file:
            for part in sorted(parts, key=lambda part: part["partNumber"]):
                piece = target.with_name(f"{oid}.part{part['partNumber']}").read_bytes()
                hasher.update(piece)
                file.write(piece)
        return self.lfs_done(whole, target, hasher.hexdigest())

    def lfs_done(self, temporary: Path, target: Path, found: str) -> Response:
        if found != target.name:
            temporary.unlink()
            raise RefusedError(400, None, f"content has sha256 {found}")
        temporary.replace(target)
        return Response()

    async def lfs_verify(self, request: Request, oid: str) -> Response:
        body = await request.json()
        if not self.path_of(oid).exists() or self.path_of(oid).stat().st_size != body["size"]:
            raise RefusedError(400, None, "size differs")
        return Response()

    # -- downloads -------------------------------------------------------------------------------------------

    async def resolve(self, request: Request, name: str, revision: str, path: str) -> Response:
        repo = self.repo(request, name, content=True)
        commit = repo.resolve(unquote(revision))
        entry = commit.tree.get(unquote(path))
        if entry is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.oid)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.sha256 if entry.lfs else entry.oid}"'}
        if (swollen := self.options.swollen.get(unquote(path))) is not None and request.method == "GET":
            length = {"Content-Length": str(swollen)} if swollen else {}
            return StreamingResponse(swell(swollen), headers=headers | length)
        if entry.lfs:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'}
            if self.options.xet and (xet_hash := self.xet.hash_of(entry.sha256)):
                route = f"{request.base_url}api/{repo.kind}s/{name}/xet-read-token/{commit.oid}"
                headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
            if self.options.redirect:
                port = request.url.port
                location = f"http://localhost:{port}/cdn/{entry.sha256}?signature=SIGNED"
                return Response(status_code=302, headers=headers | {"Location": location})
        return self.content(entry.sha256, headers)

    async def cdn(self, request: Request, sha256: str) -> Response:
        if request.headers.get("authorization"):
            raise RefusedError(400, None, "a token was sent to another origin")
        return self.content(sha256, {"ETag": f'"{sha256}"'})

    def content(self, sha256: str, headers: dict[str, str]) -> Response:
        path = self.path_of(sha256)
        if not path.exists():
            self.xet.materialise(sha256, path)
        if self.options.shuffle_lfs and "X-Linked-Size" in headers:
            data = path.read_bytes()
            return Response(bytes([data[0] ^ 1]) + data[1:], headers=headers)
        return FileResponse(path, headers=headers, media_type="application/octet-stream")

    # -- Xet -------------------------------------------------------------------------------------------------

    async def xet_token(self, request: Request, name: str, right: str, revision: str) -> Response:
        self.repo(request, name, write=right == "write", content=right == "read").resolve(unquote(revision))
        cas, token, expires = f"{str(request.base_url).rstrip('/')}/cas", "xet-token", 4102444800
        headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": cas, "accessToken": token, "exp": expires}, headers=headers)

    async def xorb_put(self, request: Request, xorb: str) -> Response:
        return JSONResponse({"was_inserted": self.xet.add_xorb(xorb, await request.body())})

    async def xorb_get(self, request: Request, xorb: str) -> Response:
        del request
        return FileResponse(self.xet.xorb_path(xorb), media_type="application/octet-stream")

    async def shards(self, request: Request) -> Response:
        self.xet.add_shard(await request.body())
        return JSONResponse({"result": 1})

    async def reconstruction(self, request: Request, xet_hash: str) -> Response:
        answer = self.xet.reconstruction(xet_hash, request.headers.get("range"), f"{request.base_url}cas/xorb")
        if answer is None:
            raise RefusedError(404, None, "no such file")
        return JSONResponse(answer) if answer else Response(status_code=416)

    async def cas_unknown(self, request: Request, path: str) -> Response:
        del request
        raise RefusedError(404, None, f"{path} is not there")

    async def agents(self, request: Request) -> Response:
        del request
        return JSONResponse({"standardEnvVars": [], "harnesses": {}})


_R = r"/api/datasets/([^/]+/[^/]+)"
_OID = r"([0-9a-f]{64})"
ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", r"/api/whoami-v2", Hub.whoami),
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate_yaml),
    ("GET", r"/api/agent-harnesses", Hub.agents),
    ("PUT", rf"{_R}/settings", Hub.settings),
    ("GET", _R, Hub.info),
    ("GET", rf"{_R}/revision/([^/]+)", Hub.info),
    ("GET", rf"{_R}/refs", Hub.refs),
    ("POST", rf"{_R}/tag/([^/]+)", Hub.tag),
    ("POST DELETE", rf"{_R}/branch/([^/]+)", Hub.branch),
    ("GET", rf"{_R}/commits/([^/]+)", Hub.commits),
    ("GET", rf"{_R}/tree/([^/]+)", Hub.tree),
    ("GET", rf"{_R}/tree/([^/]+)/(.+)", Hub.tree),
    ("POST", rf"{_R}/paths-info/([^/]+)", Hub.paths_info),
    ("POST", rf"{_R}/preupload/([^/]+)", Hub.preupload),
    ("POST", rf"{_R}/commit/([^/]+)", Hub.commit),
    ("GET", rf"{_R}/xet-(read|write)-token/([^/]+)", Hub.xet_token),
    ("POST", r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Hub.lfs_batch),
    ("PUT", rf"/lfs/{_OID}", Hub.lfs_put),
    ("PUT", rf"/lfs/{_OID}/(\d+)", Hub.lfs_put),
    ("POST", rf"/lfs/{_OID}/complete", Hub.lfs_complete),
    ("POST", rf"/lfs/{_OID}/verify", Hub.lfs_verify),
    ("GET HEAD", r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Hub.resolve),
    ("GET HEAD", rf"/cdn/{_OID}", Hub.cdn),
    ("POST", rf"/cas/v1/xorbs/default/{_OID}", Hub.xorb_put),
    ("GET", rf"/cas/xorb/{_OID}", Hub.xorb_get),
    ("POST", r"/cas/v1/shards", Hub.shards),
    ("GET", rf"/cas/v1/reconstructions/{_OID}", Hub.reconstruction),
    ("GET HEAD POST", r"/cas/(.*)", Hub.cas_unknown),
]


def as_dataset(raw: str) -> tuple[str, str]:
    """Return a path as it would be for a dataset of that name, and the kind of repository that it means."""
    if raw.startswith("/api/models/"):
        return raw.replace("/models/", "/datasets/", 1), "model"
    if re.fullmatch(r"/(?!datasets/|api/|lfs/|cdn/|cas/)[^/]+/[^/]+(\.git/info/lfs/objects/batch|/resolve/.+)", raw):
        return f"/datasets{raw}", "model"
    return raw, "dataset"


async def swell(size: int) -> AsyncIterator[bytes]:
    """Send so many bytes, or with 0 as many as are taken."""
    sent = 0
    while not size or sent < size:
        piece = b" " * min(2**20, size - sent if size else 2**20)
        sent += len(piece)
        yield piece
        await asyncio.sleep(0)  # else nobody notices that the client has gone


def main() -> None:
    folder = Path(sys.argv[1])
    inherited = int(sys.argv[3]) if "--fd" in sys.argv else None
    listener = socket.socket(fileno=inherited) if inherited is not None else socket.create_server(("127.0.0.1", 0))
    listener.listen(256)
    hub = Hub(folder)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(hub, http=Protocol, log_level="error", timeout_keep_alive=60, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
