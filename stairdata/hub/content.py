"""What a release consists of: the artifact's own files, its plots and Croissant metadata, and the card.

Data files and manifest are the release's content: two releases of one tag are the same if these are. Plots, views,
metadata and card are made from them, and may look different when another version of a library made them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from stairdata.hub import plots
from stairdata.hub.access import Gate
from stairdata.hub.addresses import VIEWS, ConfigPath, parse_tag
from stairdata.hub.checks import check
from stairdata.hub.client import README, FileListing, Repository, holds, manifests, read, tree
from stairdata.hub.releases import changelog_line, manifest_at, parse_manifest, previous
from stairdata.hub.secrets import check_secrets
from stairdata.hub.views import View, make_view, with_view
from stairdata_schemas.aliases import CountProgress, Json
from stairdata_schemas.artifacts import Artifact, parse_version
from stairdata_schemas.cards import card as cards
from stairdata_schemas.cards.card import Card, CardConfig, CardView, Plot
from stairdata_schemas.cards.croissant import CROISSANT_NAME, croissant
from stairdata_schemas.errors import HubError, PublishError, ReleaseConflictError, quote
from stairdata_schemas.formats.bounded import read_bytes
from stairdata_schemas.formats.limits import CARD_BYTES, MANIFEST_BYTES
from stairdata_schemas.formats.parquet import open_parquet
from stairdata_schemas.manifest import MANIFEST_NAME, Manifest
from stairdata_schemas.secrets.own import own_secrets

T = TypeVar("T")
SHOWN = 5


def quiet(what: str, done: int, total: int) -> None:
    """Report to nobody."""


class FileState(NamedTuple):
    """A file as it was at a moment: other content shows in one of these."""

    inode: int
    bytes: int
    changed_at: int
    """Nanoseconds."""


def state_of(path: Path) -> FileState:
    """Look at a file."""
    found = path.stat()
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What was typed."""

    repo: str
    config: str | None = None
    default: bool = False
    """Make this config the one that loads without a name."""
    public: bool = False
    gated: Gate | None = None
    license: str | None = None
    allow_secrets: tuple[str, ...] = ()
    max_quarantine: float = 0.05
    views: bool = True
    """Publish conversations or paths made of the rows, too, for the Hub's viewer."""
    progress: CountProgress = quiet


@dataclass(frozen=True, slots=True)
class PreparedRelease:
    """An artifact that was checked and is ready to be published."""

    artifact: Artifact
    options: PushOptions
    place: ConfigPath
    tag: str
    data: Mapping[str, Path]
    """Data files by their path in the repository."""
    states: Mapping[str, FileState]
    """What tells whether a data file changed since it was checked, by its path in the repository."""
    small: Mapping[str, bytes]
    """Manifest, Croissant metadata and plots by their path in the repository."""
    dataset_info: dict[str, Any]
    """The config's entry in the card's YAML head: features and sizes."""
    view: View | None = None
    """What `add_view` made of the rows."""

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    @property
    def config_name(self) -> str:
        return self.place.config or self.artifact.kind

    @property
    def large(self) -> dict[str, Path]:
        """Data files and those of the view by their path in the repository."""
        return {**self.data, **self._of_view(self.view.files if self.view else {})}

    @property
    def sha256(self) -> dict[str, str]:
        """Hashes of the large files by their path in the repository."""
        data = {self.place.prefix + entry.path: entry.sha256 for entry in self.manifest.files}
        return data | self._of_view(self.view.sha256 if self.view else {})

    def _of_view(self, values: Mapping[str, T]) -> dict[str, T]:
        folder = self.place.view_folder(self.view.name) if self.view else ""
        return {folder + name: value for name, value in values.items()}

    @property
    def bytes(self) -> int:
        data = sum(entry.bytes for entry in self.manifest.files)
        return data + sum(map(len, self.small.values())) + (self.view.bytes if self.view else 0)

    @property
    def manifest_path(self) -> str:
        return self.place.prefix + MANIFEST_NAME

    def differing_data(self, files: FileListing) -> list[str]:
        """Name the data files that differ from those in a tree, or are missing or too many in it."""
        return self._differing(files, self.data, f"{self.place.prefix}data/")

    def differing(self, files: FileListing) -> list[str]:
        """Name the files of data, view and manifest that differ from those in a tree, or are missing or too many."""
        folders = (f"{self.place.prefix}data/", *map(self.place.view_folder, VIEWS))
        wrong = self._differing(files, self.large, folders)
        if not holds(files.get(self.manifest_path), self.small[self.manifest_path]):
            wrong.append(self.manifest_path)
        return sorted(wrong)

    def _differing(self, files: FileListing, local: Mapping[str, Path], folders: str | tuple[str, ...]) -> list[str]:
        sha256 = self.sha256
        wrong = [path for path, file in local.items() if not holds(files.get(path), file, sha256[path])]
        return [*wrong, *(path for path in files if path.startswith(folders) and path not in local)]


class BranchHead(NamedTuple):
    """A branch of a repository, as a release finds it."""

    commit: str
    files: FileListing
    manifests: dict[str | None, Manifest]
    """Manifests of its configs; None is the root."""
    readme: str


def prepare(artifact: Artifact, options: PushOptions) -> PreparedRelease:
    """Check an artifact, and put together what is to be published of it.

    Raises:
        PublishError: invalid, too many rows refused, or with a secret in it.
    """
    _check_quarantine(artifact, options.max_quarantine)
    options.progress(f"checking {artifact.reference}, and looking for secrets in it", 0, 0)
    states = {entry.path: state_of(artifact.folder / entry.path) for entry in artifact.manifest.files}
    problems, hits = check(artifact, own_secrets())
    pa.default_memory_pool().release_unused()  # what the rows took would stay beside what the upload takes
    if problems:
        found = "; ".join(
            f"{one.where}: {one.rule} ({one.violations}, such as {quote(one.example)})" for one in problems[:SHOWN]
        )
        raise PublishError(f"{artifact.reference} is not valid and was not published: {found}; build or pull it again")
    cards.check_head(_local_card(artifact), str(artifact.folder / README))
    check_secrets(artifact, hits, {README: _local_card(artifact)}, options.allow_secrets)
    place = ConfigPath(options.config)
    data = {place.prefix + entry.path: artifact.folder / entry.path for entry in artifact.manifest.files}
    tag = place.tag(artifact.manifest.version)
    small = _small_files(artifact, options, place)
    states = {place.prefix + path: state for path, state in states.items()}
    info = _measured_info(
        place.config or artifact.kind, _features(artifact), artifact.data_files, artifact.manifest.rows
    )
    return PreparedRelease(artifact, options, place, tag, data, states, small, info)


def add_view(release: PreparedRelease) -> PreparedRelease:
    """Make the view of a release's rows, if it is wanted and there is one, and name it in the manifest."""
    view = make_view(release.artifact, release.options.progress) if release.options.views else None
    if view is None:
        return release
    small = {**release.small, release.manifest_path: _manifest_text(release.artifact, view)}
    return replace(release, view=view, small=small)


def _check_quarantine(artifact: Artifact, limit: float) -> None:
    manifest = artifact.manifest
    refused = sum(manifest.quarantine.values())
    if refused and refused / (manifest.rows + refused) > limit:
        rules = ", ".join(f"{rule} {count}" for rule, count in manifest.quarantine.items())
        raise PublishError(
            f"{artifact.reference} was built with {refused} of {manifest.rows + refused} rows refused ({rules}), more "
            f"than {limit:.0%}; fix its input and build again, or raise --max-quarantine"
        )


def _local_card(artifact: Artifact) -> str:
    path = artifact.folder / README
    return read_bytes(path, CARD_BYTES).decode("utf-8") if path.is_file() else ""  # text mode would change line ends


def _small_files(artifact: Artifact, options: PushOptions, place: ConfigPath) -> dict[str, bytes]:
    from huggingface_hub import constants

    manifest = artifact.manifest
    url = f"{constants.ENDPOINT}/datasets/{options.repo}"
    metadata = croissant(manifest, options.repo, url, options.license or manifest.license)
    files = {
        MANIFEST_NAME: _manifest_text(artifact),
        CROISSANT_NAME: (json.dumps(metadata, indent=2) + "\n").encode(),
    }
    if plots.available():
        options.progress(f"drawing the plots of {artifact.reference}", 0, 0)
        files |= {f"plots/{picture.name}": picture.png for picture in plots.draw(artifact)}
    return {place.prefix + name: content for name, content in files.items()}


def _manifest_text(artifact: Artifact, view: View | None = None) -> bytes:
    """Return the manifest that goes to the Hub: the artifact's own, which names no view, unless there is one."""
    manifest = with_view(artifact.manifest, view)
    if manifest is artifact.manifest:
        return read_bytes(artifact.folder / MANIFEST_NAME, MANIFEST_BYTES)
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def _features(artifact: Artifact) -> list[Json]:
    with open_parquet(artifact.data_files[0]) as file:
        there = set(file.schema_arrow.names)  # files may lack a nullable column of later schemas
    return [feature for feature in cards.yaml_features(artifact.kind) if feature["name"] in there]


def _measured_info(name: str, features: list[Json], files: Sequence[Path], rows: int) -> Json:
    size = 0
    for path in files:
        with open_parquet(path) as file:
            metadata = file.metadata
        size += sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return {
        "config_name": name,
        "features": features,
        "splits": [{"name": "train", "num_bytes": size, "num_examples": rows}],
        "download_size": sum(path.stat().st_size for path in files),
        "dataset_size": size,
    }


# -- the repository ------------------------------------------------------------------------------------------


def read_head(repo: str, commit: str) -> BranchHead:
    """Read what a release has to know of a commit.

    Raises:
        HubError: the Hub can't be reached, or refuses; a manifest there is none.
        PublishError: the head of the card there can't be read.
    """
    files = tree(repo, commit)
    found: dict[str | None, Manifest] = {}
    for config, path in manifests(files).items():
        manifest = parse_manifest(read(repo, path, commit, MANIFEST_BYTES))
        if manifest is None:
            raise HubError(f"{repo} holds {path}, which is not a manifest that this release reads; use another --repo")
        found[config] = manifest
    readme = read(repo, README, commit, CARD_BYTES).decode("utf-8", "replace") if README in files else ""
    cards.check_head(readme, f"{README} in {repo}")
    return BranchHead(commit, files, found, readme)


def check_layout(release: PreparedRelease, head: BranchHead) -> None:
    """Refuse a repository that is laid out for something else.

    Raises:
        PublishError: root and configs would mix, a config would change its kind, or files of others are in the way.
    """
    repo, place = release.options.repo, release.place
    configs = [name for name in head.manifests if name is not None]
    if place.config is None and configs:
        raise PublishError(f"{repo} holds several configs ({', '.join(configs)}); name one with --config")
    if place.config is not None and None in head.manifests:
        kind = head.manifests[None].kind
        raise PublishError(f"{repo} holds {kind} at its root, so it can't have configs; use another --repo")
    there = head.manifests.get(place.config)
    if there is not None and there.kind != release.artifact.kind:
        raise PublishError(
            f"{repo} holds {there.kind} where {release.artifact.kind} would go; use another --repo"
            + (" or --config" if place.config else ", or a new one with --config for each kind")
        )
    foreign = [path for path in head.files if place.holds(path) and there is None]
    if foreign:
        raise PublishError(
            f"{repo} holds files that stairdata did not publish ({', '.join(map(quote, foreign[:SHOWN]))}); use "
            "another --repo, or remove them there first"
        )


def is_older(release: PreparedRelease, head: BranchHead) -> bool:
    """Return whether a higher version stands at the head already."""
    there = head.manifests.get(release.place.config)
    return there is not None and parse_version(there.version) > parse_version(release.manifest.version)


# -- the card ------------------------------------------------------------------------------------------------


def render_card(
    release: PreparedRelease, head: BranchHead, repository: Repository, license: str | None, *, gated: bool
) -> str:
    """Render the card that goes with a release: all configs of the head, with this one in its place.

    Raises:
        ReleaseConflictError: the user's own text was changed both here and on the Hub.
    """
    configs = [_card_config(release, name, manifest, head) for name, manifest in _configs(release, head).items()]
    earlier = previous(repository, release.place, parse_version(release.manifest.version))
    local = _local_card(release.artifact)
    names = [config.name for config in configs]
    default = cards.default_config(head.readme)
    if release.options.default or default not in names:
        default = release.config_name if release.options.default or not head.manifests else names[0]
    return cards.render(
        Card(
            configs=configs,
            default=str(default),
            repo=release.options.repo,
            license=license,
            gated=gated,
            dataset_info=_dataset_info(release, configs, cards.read_head(head.readme).get("dataset_info")),
            changelog=_changelog(release, head, repository, earlier),
            kept=_kept(release, head, repository, earlier),
            extra={**cards.user_lines(local), **cards.user_lines(head.readme)},
        )
    )


def _configs(release: PreparedRelease, head: BranchHead) -> dict[str | None, Manifest]:
    found = {**head.manifests, release.place.config: release.manifest}
    return {name: found[name] for name in sorted(found, key=lambda name: name or "")}


def _card_config(release: PreparedRelease, name: str | None, manifest: Manifest, head: BranchHead) -> CardConfig:
    place = ConfigPath(name)
    is_ours = place == release.place
    paths = release.small if is_ours else head.files
    folder = f"{place.prefix}plots/"
    captions = {f"{plot.name}.png": plot.caption for plot in plots.DISTRIBUTIONS.get(manifest.kind, [])}
    pictures = [path for path in sorted(paths) if path.startswith(folder)]
    shown = tuple(Plot(path, captions.get(path.removeprefix(folder), "")) for path in pictures)
    files = release.large if is_ours else head.files
    view = next((view for view in VIEWS if any(path.startswith(place.view_folder(view)) for path in files)), None)
    made = CardView(view, place.view_config(view), place.view_folder(view)) if view else None
    return CardConfig(manifest, name or manifest.kind, place.prefix, shown, place.tag(manifest.version), made)


def _dataset_info(release: PreparedRelease, configs: list[CardConfig], there: Any) -> Any:
    """Return `dataset_info` of the YAML head: ours measured, the others' as they stand there."""
    entries = there if isinstance(there, list) else [there]
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("config_name"), str)]
    known = {entry["config_name"]: entry for entry in named}
    ours = {release.config_name: release.dataset_info}
    if (view := release.view) is not None:
        name = release.place.view_config(view.name)
        ours[name] = _measured_info(name, view.features, list(view.files.values()), view.rows)
    names = [name for config in configs for name in (config.name, config.view and config.view.name) if name]
    known = {**known, **ours}
    found = [known[name] for name in names if name in known]
    return found[0] if len(found) == 1 else found


def _changelog(
    release: PreparedRelease, head: BranchHead, repository: Repository, earlier: str | None
) -> dict[str, str]:
    """Join the card's lines with those of releases that it does not have yet, and with ours."""
    lines = cards.read_changelog(head.readme)
    before = manifest_at(repository.name, release.place, repository.tags[earlier]) if earlier else None
    for tag, name in repository.releases().items():
        if tag not in lines:
            manifest = manifest_at(repository.name, name.place, repository.tags[tag])
            if manifest is not None:
                lines[tag] = changelog_line(tag, manifest, None).replace("; first release", "")
    lines[release.tag] = changelog_line(release.tag, release.manifest, before)
    names = {tag: parse_tag(tag) for tag in lines}
    order = [
        (name.place.config or "", tuple(-part for part in name.version), tag) for tag, name in names.items() if name
    ]
    return {tag: lines[tag] for _, _, tag in sorted(order)}


def _kept(release: PreparedRelease, head: BranchHead, repository: Repository, earlier: str | None) -> dict[str, str]:
    """Join the user's own text of both sides; the last release's tells who changed it."""
    here, there = cards.user_text(_local_card(release.artifact)), cards.user_text(head.readme)
    foreign = cards.foreign_text(head.readme)
    if foreign:
        there = {"introduction": foreign}
    if not here or here == there:
        return there
    base: dict[str, str] = {}
    if earlier is not None:
        base = cards.user_text(
            read(repository.name, README, repository.tags[earlier], CARD_BYTES).decode("utf-8", "replace")
        )
    kept = {}
    for name in cards.SECTIONS:
        ours, theirs, common = (texts.get(name, "") for texts in (here, there, base))
        if ours and theirs and ours != theirs and common not in {ours, theirs}:
            raise ReleaseConflictError(
                f"your own text ({name}) in the card was changed both in {release.artifact.folder / README} and on the "
                "Hub; make them equal, or empty the local one to keep the Hub's, and push again"
            )
        kept[name] = theirs if not ours or ours == common else ours
    return kept
