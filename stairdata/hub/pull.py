"""Fetching a release: to a commit first, then its files, each checked against the manifest before it counts.

A release is fetched into `<root>/.hub/<org>/<name>/<commit>/`, where a run that was interrupted goes on, and is
renamed into `<root>/<kind>/<version>` when it is whole and valid. Nothing of a repository is ever executed: what is
read are parquet files, JSON and text.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Lock, Semaphore
from typing import NamedTuple, TypeVar

from filelock import FileLock, Timeout

from stairdata.hub.addresses import Address, ConfigPath, TagName, parse_address, parse_tag
from stairdata.hub.client import (
    DATASET,
    README,
    FileListing,
    Repository,
    api,
    hub_errors,
    manifests,
    read,
    repository,
    retried,
    tree,
)
from stairdata.hub.views import with_view
from stairdata_schemas.aliases import CountProgress
from stairdata_schemas.artifacts import (
    READERS,
    Artifact,
    Problem,
    Version,
    open_artifact,
    parse_version,
    resolve,
    validate_file,
    validate_whole,
)
from stairdata_schemas.cards import card as cards
from stairdata_schemas.cards.card import Card, CardConfig
from stairdata_schemas.errors import ArtifactError, HubError, UsageError, quote
from stairdata_schemas.files import sync_file, sync_folder, write_atomic
from stairdata_schemas.formats.limits import CARD_BYTES, MANIFEST_BYTES, VARIABLE
from stairdata_schemas.kinds import KINDS, SCHEMA_VERSION
from stairdata_schemas.manifest import (
    MANIFEST_NAME,
    ORIGIN_NAME,
    FileEntry,
    Manifest,
    Origin,
    read_manifest,
    read_origin,
    sha256_of_file,
)
from stairdata_schemas.migrations import check_paths, migrate

T = TypeVar("T")
STORE = ".hub"
STAGING = ".pull"
WORKERS = 4
"""Files that are downloaded at once."""
LARGE = 64 * 1024**2
"""Bytes from which a file takes turns."""
PATIENCE = 1.0
"""Seconds that the next large download waits for the one before: a slow link is given more connections."""
TICK = 0.2
"""Seconds after which Ctrl-C is looked for: with the handler of polars it does not end a wait."""
_SHA = re.compile(r"[0-9a-f]{7,40}")


def quiet(what: str, done: int, total: int) -> None:
    """Report to nobody."""


class RemoteRelease(NamedTuple):
    """A release on the Hub, resolved to a commit."""

    repo: str
    commit: str
    place: ConfigPath
    tag: str | None
    files: FileListing


def open_reference(reference: str, root: Path) -> Artifact:
    """Open what a reference names: a folder, KIND[@X.Y.Z] under the root, or org/name[@TAG] on the Hub.

    A release on the Hub is fetched once, and kept under the root apart from what was built there.

    Raises:
        ArtifactNotFoundError: nothing there.
        ArtifactError: what is there is incomplete or damaged.
        HubError: the Hub can't be reached, or refuses.
    """
    address = parse_address(reference)
    is_local = reference.startswith(("/", "./", "../")) or (Path(reference) / MANIFEST_NAME).is_file()
    if address is None or is_local:
        return resolve(reference, root)
    target = resolve_address(address)
    manifest = _read_manifest(target)
    _check_schema_version(manifest, target)
    return fetch(target, root, manifest)


def pull(
    address: Address,
    root: Path,
    config: str | None = None,
    *,
    to_current: bool = False,
    progress: CountProgress = quiet,
) -> Artifact:
    """Fetch a release into `<root>/<kind>/<version>`.

    Args:
        address: repository and revision.
        root: folder of the artifacts.
        config: the config, where a repository holds several and the revision does not say which.
        to_current: migrate an older schema version to the current one, as a new artifact beside.
        progress: told what is being done.

    Raises:
        ArtifactError: the release is damaged or no artifact, or another one stands where it would go.
        HubError: the Hub can't be reached, or refuses.
    """
    target = resolve_address(address, config)
    progress(f"looking at {target.repo} at {target.commit[:12]}", 0, 0)
    manifest = _read_manifest(target)
    _check_schema_version(manifest, target, may_be_older=to_current)
    home = root / manifest.kind / manifest.version
    there = _already_there(home, manifest, target)
    if there is None:
        there = _move(fetch(target, root, manifest, progress), home)
    if to_current and there.manifest.schema_version != SCHEMA_VERSION:
        return migrate(there, root)
    return there


# -- which release -------------------------------------------------------------------------------------------


def resolve_address(address: Address, config: str | None = None) -> RemoteRelease:
    """Resolve a reference to a commit and a config.

    Raises:
        HubError: no such repository, revision or config, or it is no artifact of ours.
    """
    found = repository(address.repo)
    if found is None:
        raise HubError(
            f"no dataset {address.repo} on the Hub for this token; check the name, and `hf auth whoami`; a local "
            "artifact is KIND or KIND@X.Y.Z"
        )
    tag = _tag_for(address.revision, found, config)
    commit = found.tags[tag] if tag else _commit_for(str(address.revision), found)
    if not _SHA.fullmatch(commit):
        raise HubError(f"{found.name} has {quote(commit)} as a commit, which is invalid")
    files = tree(address.repo, commit)
    name = parse_tag(tag) if tag else None
    place = name.place if name and not config else _place(address, files, config)
    if place.prefix + MANIFEST_NAME not in files:
        raise HubError(
            f"{address} has no {place.prefix}{MANIFEST_NAME}: it is a plain dataset, not an artifact; its "
            f"rows can become prompts: stairdata build prompts --set 'prompts.sources=[{{hub: {address.repo}}}]'"
        )
    return RemoteRelease(address.repo, commit, place, tag, files)


def _tag_for(revision: str | None, found: Repository, config: str | None) -> str | None:
    """Return the release's tag; None where the revision is a branch or a commit."""
    releases = found.releases()
    if revision is None:
        return _highest(found, releases, config)
    if revision in found.tags:
        return revision
    wanted = parse_tag(revision) or parse_tag(f"v{revision}")
    if wanted is None:
        return None
    tag = ConfigPath(config or wanted.place.config).tag(wanted.version)
    if tag in found.tags:
        return tag
    same = sorted(name for name, parsed in releases.items() if parsed.version == wanted.version)
    known = ", ".join(sorted(releases)) or "none"
    hint = f"; that version is there as {', '.join(same)}" if same else ""
    raise HubError(f"{found.name} has no release {quote(revision)}; its releases: {known}{hint}")


def _highest(found: Repository, releases: dict[str, TagName], config: str | None) -> str | None:
    if not releases:
        files = tree(found.name, found.head)
        place = _place(Address(found.name), files, config)
        what = "holds files but no release" if place.prefix + MANIFEST_NAME in files else "is not an artifact"
        raise HubError(
            f"{found.name} {what}; name a revision (a plain dataset's rows can become prompts: stairdata build prompts "
            f"--set 'prompts.sources=[{{hub: {found.name}}}]')"
        )
    configs = sorted({parsed.place.config or "" for parsed in releases.values()})
    if config is None and len(configs) > 1:
        config = _default_config(found)
        if config not in configs:
            raise HubError(f"{found.name} holds several configs; name one with --config: {', '.join(configs)}")
    wanted = config if config is not None else configs[0]
    of_config = {tag: parsed.version for tag, parsed in releases.items() if (parsed.place.config or "") == wanted}
    if not of_config and configs != [""]:
        raise HubError(f"{found.name} has no config {quote(wanted)}; its configs: {', '.join(configs)}")
    versions: dict[str, Version] = of_config or {tag: parsed.version for tag, parsed in releases.items()}
    return max(versions, key=lambda tag: versions[tag])


def _default_config(found: Repository) -> str | None:
    return cards.default_config(read(found.name, README, found.head, CARD_BYTES).decode("utf-8", "replace"))


def _commit_for(revision: str, found: Repository) -> str:
    if revision in found.branches:
        return found.branches[revision]
    if not _SHA.fullmatch(revision):
        known = ", ".join(sorted(found.releases())) or "none"
        raise HubError(f"{found.name} has no revision {quote(revision)}; its releases: {known}")
    with hub_errors(found.name):
        return str(retried(lambda: api().dataset_info(found.name, revision=revision)).sha)


def _place(address: Address, files: FileListing, config: str | None) -> ConfigPath:
    """Find the config in a tree, where the revision does not say which."""
    found = manifests(files)
    if config is not None and config in found:
        return ConfigPath(config)
    if None in found:
        return ConfigPath()
    if config is not None:
        known = ", ".join(str(name) for name in found) or "none"
        raise HubError(f"{address} has no config {quote(config)}; its configs: {known}")
    if len(found) > 1:
        raise HubError(f"{address} holds several configs; name one with --config: {', '.join(map(str, found))}")
    return ConfigPath(next(iter(found), None))


# -- the manifest --------------------------------------------------------------------------------------------


def _read_manifest(target: RemoteRelease) -> Manifest:
    """Read and judge the manifest before anything else is downloaded.

    Raises:
        ArtifactError: not a manifest of ours, or one that lists what is not there, or more than should be there.
    """
    import tempfile

    path = target.place.prefix + MANIFEST_NAME
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST_NAME).write_bytes(read(target.repo, path, target.commit, MANIFEST_BYTES))
        try:
            manifest = read_manifest(Path(folder))
        except ArtifactError as error:
            said = str(error).removeprefix(f"{Path(folder) / MANIFEST_NAME} ")
            raise ArtifactError(f"{path} in {target.repo} at {target.commit[:12]} {said}") from None
    where = f"{target.repo} at {target.commit[:12]}"
    if manifest.kind not in KINDS:
        raise ArtifactError(f"{where}: unknown kind {quote(manifest.kind)}; a newer stairdata may know it")
    try:
        parse_version(manifest.version)  # it becomes a folder
    except UsageError as error:
        raise ArtifactError(f"{where}: its manifest's version is wrong: {error}") from None
    check_paths(manifest, where)
    _check_files(manifest, target, where)
    return manifest


def _check_files(manifest: Manifest, target: RemoteRelease, where: str) -> None:
    """Compare the manifest with the tree: what would be refused after gigabytes is refused before them."""
    for entry in manifest.files:
        there = target.files.get(target.place.prefix + entry.path)
        if there is None:
            raise ArtifactError(f"{where} lacks {entry.path}, which its manifest lists: the release is damaged")
        if there.size != entry.bytes or there.sha256 not in {None, entry.sha256}:
            raise ArtifactError(
                f"{where}: {entry.path} is not the file that its manifest lists; the release is damaged"
            )
    folder, known = f"{target.place.prefix}data/", {target.place.prefix + entry.path for entry in manifest.files}
    extra = [path for path in target.files if path.startswith(folder) and path not in known]
    if extra:
        raise ArtifactError(f"{where} holds {quote(extra[0])}, which its manifest does not list: somebody changed it")


def _check_schema_version(manifest: Manifest, target: RemoteRelease, *, may_be_older: bool = False) -> None:
    if manifest.schema_version < SCHEMA_VERSION and not may_be_older:
        raise ArtifactError(
            f"{target.repo} has schema version {manifest.schema_version}, this release reads {SCHEMA_VERSION}; "
            f"`stairdata pull {target.repo} --migrate` makes a new artifact of the current version"
        )
    if manifest.schema_version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{target.repo} has schema version {manifest.schema_version}, this release reads {SCHEMA_VERSION}; upgrade "
            "stairdata, or pull an older release"
        )


# -- the files -----------------------------------------------------------------------------------------------


def fetch(target: RemoteRelease, root: Path, manifest: Manifest, progress: CountProgress = quiet) -> Artifact:
    """Fetch a release into the store under the root, or return the one that is there.

    Raises:
        ArtifactError: damaged.
        HubError: the Hub can't be reached, or refuses.
    """
    home = root / manifest.kind / manifest.version
    origin = read_origin(home)
    if origin is not None and (origin.repo, origin.commit, origin.config) == _identity(target):
        return open_artifact(home)
    folder = root / STORE / target.repo / target.commit[:16] / (target.place.config or "root")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if not (folder / MANIFEST_NAME).is_file():
            _download(target, manifest, folder, progress)
        is_current = manifest.schema_version == SCHEMA_VERSION
        return open_artifact(folder) if is_current else Artifact(folder, with_view(manifest, None))


def _identity(target: RemoteRelease) -> tuple[str, str, str | None]:
    return target.repo, target.commit, target.place.config


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise HubError(f"another process is fetching into {folder}; wait for it, or end it") from error
    try:
        yield
    finally:
        lock.release()


def _download(target: RemoteRelease, manifest: Manifest, folder: Path, progress: CountProgress) -> None:
    """Download, check, and write the manifest last."""
    artifact = Artifact(folder, manifest)
    size = sum(entry.bytes for entry in manifest.files)
    progress(f"downloading {len(manifest.files)} files, {size / 1e6:.1f} MB, from {target.repo}", 0, 0)
    (folder / "data").mkdir(exist_ok=True)
    problems = _fetch_files(target, artifact)
    if manifest.schema_version == SCHEMA_VERSION:
        problems = problems or validate_whole(artifact)
    if problems:
        shutil.rmtree(folder / "data")
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        one = problems[0]
        if one.rule == "too_large":
            raise ArtifactError(
                f"{target.repo} at {target.commit[:12]}: {one.where}, {one.example}; it was not kept; if you trust it, "
                f"raise the limits with {VARIABLE}=2 (or more)"
            )
        raise ArtifactError(
            f"{target.repo} at {target.commit[:12]} breaks the schema of {manifest.kind}: {one.where}: {one.rule} "
            f"({one.violations} times, such as {quote(one.example)}); it was not kept"
        )
    sync_folder(folder / "data")
    write_atomic(folder / README, _local_card(target, manifest))
    origin = Origin(repo=target.repo, commit=target.commit, tag=target.tag, config=target.place.config)
    write_atomic(folder / ORIGIN_NAME, origin.model_dump_json(indent=2) + "\n")
    content = read(target.repo, target.place.prefix + MANIFEST_NAME, target.commit, MANIFEST_BYTES)
    own = with_view(manifest, None)  # a view stays on the Hub
    write_atomic(folder / MANIFEST_NAME, content if own is manifest else own.model_dump_json(indent=2) + "\n")
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def _fetch_files(target: RemoteRelease, artifact: Artifact) -> list[Problem]:
    """Download the files that an earlier run did not finish, and check each while the next ones are on their way.

    The first file that is not valid, and Ctrl-C, end what is under way.
    """
    from stairdata.hub.transfers import end_xet_transfers, stopped_by

    files, turns, stop = artifact.manifest.files, _Turns(), Event()

    def downloaded(entry: FileEntry) -> Path | None:
        if (artifact.folder / entry.path).is_file():
            return None
        with turns.take(entry.bytes), stopped_by(stop):
            return _download_file(target, target.place.prefix + entry.path, artifact.folder / STAGING, stop)

    def checked(entry: FileEntry, download: Future[Path | None]) -> list[Problem]:
        if (path := download.result()) is not None:
            sync_file(path)
            path.replace(artifact.folder / entry.path)
        return _check_file(target, artifact, entry, stop)

    # in threads: four fifths of a check's time is spent in libraries that let other threads run
    with ThreadPoolExecutor(WORKERS) as downloads, ThreadPoolExecutor(READERS) as readers:
        try:
            fetched = [downloads.submit(downloaded, entry) for entry in files]
            results = [readers.submit(checked, *each) for each in zip(files, fetched, strict=True)]
            return next(filter(None, map(_awaited, results)), [])
        except KeyboardInterrupt:
            stop.set()
            end_xet_transfers()
            raise
        finally:
            stop.set()
            downloads.shutdown(wait=False, cancel_futures=True)
            readers.shutdown(wait=False, cancel_futures=True)


def _awaited(future: Future[T]) -> T:
    """Return what a thread came to; Ctrl-C ends the wait."""
    while not wait([future], TICK).done:
        pass
    return future.result()


class _Turns:
    """Has large downloads begin one after the other.

    Those that begin together end together, and are then checked while nothing is on its way.
    """

    def __init__(self) -> None:
        self._queue = Lock()
        self._free = Semaphore(1)

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait until the download before has ended, or has shown that the link is no faster than that."""
        with self._queue if size >= LARGE else nullcontext():
            is_mine = size >= LARGE and self._free.acquire(timeout=PATIENCE)
        try:
            yield
        finally:
            if is_mine:
                self._free.release()


def _download_file(target: RemoteRelease, path: str, staging: Path, stop: Event) -> Path:
    """Download a file as it is; return where it lies."""
    from huggingface_hub import hf_hub_download

    from stairdata.hub.transfers import bound_transfers, transfer_limit

    def attempt() -> str:
        if stop.is_set():
            raise CancelledError
        return hf_hub_download(target.repo, path, repo_type=DATASET, revision=target.commit, local_dir=staging)

    bound_transfers()
    with hub_errors(target.repo), transfer_limit(target.files[path].size):
        return Path(retried(attempt))


def _check_file(target: RemoteRelease, artifact: Artifact, entry: FileEntry, stop: Event) -> list[Problem]:
    """Check a file that was downloaded.

    Raises:
        ArtifactError: it is not the one that the manifest lists; it was thrown away.
    """
    home = artifact.folder / entry.path
    if artifact.manifest.schema_version != SCHEMA_VERSION:
        _check_hash(home, entry, sha256_of_file(home), target)
        return []

    def look_up(*_: object) -> None:
        if stop.is_set():
            raise CancelledError

    problems = validate_file(artifact, entry, look_up)
    if problems and problems[0].rule == "sha256":
        _check_hash(home, entry, problems[0].example, target)
    return problems


def _check_hash(home: Path, entry: FileEntry, found: str, target: RemoteRelease) -> None:
    """Throw away a file that is not the one that the manifest lists."""
    if found != entry.sha256:
        home.unlink()
        raise ArtifactError(
            f"{home.name} of {target.repo} at {target.commit[:12]} has sha256 {found[:16]}, its manifest says "
            f"{entry.sha256[:16]}; it was damaged on the way or on the Hub: pull again"
        )


def _local_card(target: RemoteRelease, manifest: Manifest) -> str:
    """Return the card of a local artifact: its config alone, with the user's own text and keys of the repository's."""
    there = README in target.files
    text = read(target.repo, README, target.commit, CARD_BYTES).decode("utf-8", "replace") if there else ""
    license = cards.read_head(text).get("license")
    return cards.render(
        Card(
            [CardConfig(manifest, manifest.kind)],
            manifest.kind,
            license=license if isinstance(license, str) and license != "unknown" else manifest.license,
            kept=cards.user_text(text),
            extra=cards.user_lines(text),
        )
    )


# -- the place under the root --------------------------------------------------------------------------------


def _already_there(home: Path, manifest: Manifest, target: RemoteRelease) -> Artifact | None:
    """Return the same artifact if it is under the root already.

    Raises:
        ArtifactError: another one is.
    """
    if not home.exists():
        return None
    if not (home / MANIFEST_NAME).is_file():
        raise ArtifactError(
            f"{home} holds an unfinished build; finish it, delete it, or pull into another folder with --root"
        )
    there = read_manifest(home)
    if (there.content_hash, there.fingerprint) != (manifest.content_hash, manifest.fingerprint):
        raise ArtifactError(
            f"{home} is not the {manifest.kind}@{manifest.version} of {target.repo}; a finished version is never "
            "overwritten: pull into another folder with --root"
        )
    return open_artifact(home) if there.schema_version == SCHEMA_VERSION else Artifact(home, there)


def _move(fetched: Artifact, home: Path) -> Artifact:
    """Rename a fetched release to its place under the root, in one step."""
    if fetched.folder == home:
        return fetched
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / ".lock"):
        if home.exists():
            raise ArtifactError(f"{home} was created by another process; run the same command again")
        (fetched.folder / ".lock").unlink(missing_ok=True)
        fetched.folder.rename(home)
        sync_folder(home.parent)
    for folder in list(fetched.folder.parents)[:4]:
        try:
            folder.rmdir()  # the store's own folders, as far as they are empty
        except OSError:
            break
    return Artifact(home, fetched.manifest)
