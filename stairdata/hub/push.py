"""Publishing a release: one commit, then a tag on it, and whatever was interrupted is finished by the next run.

Nothing is uploaded before the artifact is checked and the repository is private and gated as it has to be. Data,
view, manifest and card go in one `create_commit` with `parent_commit`; the commit is compared with what was meant
before it gets its tag; a repository becomes public last. A tag is never moved. A version lower than the one at the
head goes to a branch of its own, so that `main` keeps the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from stairdata.hub import attempts
from stairdata.hub.access import Access, decide_access, decide_license
from stairdata.hub.addresses import ConfigPath
from stairdata.hub.attempts import Attempts
from stairdata.hub.client import (
    DATASET,
    MAIN,
    README,
    Repository,
    api,
    holds,
    hub_errors,
    repository,
    retried,
    status_of,
    tree,
)
from stairdata.hub.content import (
    BranchHead,
    PreparedRelease,
    PushOptions,
    add_view,
    check_layout,
    is_older,
    prepare,
    read_head,
    render_card,
    state_of,
)
from stairdata.hub.releases import manifest_at
from stairdata.hub.secrets import SecretHit, scan_texts
from stairdata.hub.views import with_view
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import HubError, PublishError, ReleaseConflictError, quote
from stairdata_schemas.files import write_atomic
from stairdata_schemas.manifest import ORIGIN_NAME, Origin, read_origin
from stairdata_schemas.secrets.own import own_secrets

Say = Callable[[str], None]
RACES = 100
"""How often somebody else's commit may come first before a push gives up."""
BLANK = {".gitattributes"}


class FileChange(NamedTuple):
    """What a push does to one file of a repository."""

    path: str
    bytes: int
    change: Literal["new", "changed", "same", "deleted"]


class PushPlan(NamedTuple):
    """What a push would do."""

    release: PreparedRelease
    repository: Repository | None
    access: Access
    license: str | None
    head: BranchHead | None
    is_done: bool
    """The tag is there, with the same content."""
    changes: list[FileChange]


class PushResult(NamedTuple):
    """What a push came to."""

    repo: str
    tag: str
    commit: str
    was_there: bool
    """The release was there already, with the same content."""


def push(artifact: Artifact, options: PushOptions, say: Say = lambda _: None) -> PushResult:
    """Publish an artifact.

    Raises:
        PublishError: it must not be published, or not there, or not like this.
        ReleaseConflictError: the version is there with other content, or somebody changed what would be replaced.
        HubError: the Hub can't be reached, or refuses.
    """
    return publish(make_plan(prepare(artifact, options)), say)


def make_plan(release: PreparedRelease) -> PushPlan:
    """Look at the repository and decide what is to be done; changes nothing.

    Raises:
        PublishError: visibility, gate, licence or layout forbid it.
        ReleaseConflictError: the version is there with other content.
        HubError: the Hub can't be reached, or refuses.
    """
    options = release.options
    found = repository(options.repo)
    head = read_head(options.repo, found.head) if found else None
    is_new = found is None or head is None or (found.private and not found.tags and head.files.keys() <= BLANK)
    access = decide_access(found, is_new, release.artifact, public=options.public, gated=options.gated)
    if head is not None:
        check_layout(release, head)
    license = _license(release, head, public=not access.private)
    is_done = found is not None and _is_released(release, found)
    release = release if is_done else add_view(release)
    return PushPlan(release, found, access, license, head, is_done, [] if is_done else _changes(release, head))


def _license(release: PreparedRelease, head: BranchHead | None, *, public: bool) -> str | None:
    from stairdata_schemas.cards.card import read_head as read_yaml

    others = [manifest for name, manifest in head.manifests.items() if name != release.place.config] if head else []
    stated = read_yaml(head.readme).get("license") if head else None
    stated = stated if isinstance(stated, str) else None
    return decide_license(release.manifest, release.options.license, others, stated, public=public)


def _is_released(release: PreparedRelease, found: Repository) -> bool:
    """Return whether the tag is there, with the same content; views are none.

    Raises:
        ReleaseConflictError: with other content.
    """
    commit = found.tags.get(release.tag)
    if commit is None:
        return False
    files, path = tree(found.name, commit), release.manifest_path
    wrong = release.differing_data(files)
    if not holds(files.get(path), release.small[path]):
        there = manifest_at(found.name, release.place, commit)
        if there is None or with_view(there, None) != with_view(release.manifest, None):
            wrong.append(path)
    if wrong:
        raise ReleaseConflictError(
            f"{found.name} has {release.tag} already, with other content: {', '.join(map(quote, sorted(wrong)[:8]))} "
            f"differ{' and more' if len(wrong) > 8 else ''}; a tag is never moved: build another version, or push to "
            "another repository"
        )
    return True


def _changes(release: PreparedRelease, head: BranchHead | None) -> list[FileChange]:
    files = head.files if head else {}
    changes = []
    contents: dict[str, Path | bytes] = {**release.large, **release.small}
    for path, local in contents.items():
        size = local.stat().st_size if isinstance(local, Path) else len(local)
        same = holds(files.get(path), local, release.sha256.get(path))
        changes.append(FileChange(path, size, "same" if same else "changed" if path in files else "new"))
    changes.append(FileChange(README, 0, "changed" if README in files else "new"))
    gone = _leftovers(release, files)
    return sorted([*changes, *(FileChange(path, files[path].size, "deleted") for path in gone)])


def _leftovers(release: PreparedRelease, files: Iterable[str]) -> list[str]:
    """Name the files of the place that the release does not have."""
    kept = {*release.large, *release.small}
    return [path for path in files if release.place.holds(path) and path not in kept]


def publish(plan: PushPlan, say: Say = lambda _: None) -> PushResult:
    """Carry out a plan.

    Raises:
        PublishError: the card would hold a secret.
        ReleaseConflictError: somebody changed meanwhile what the release would replace.
        HubError: the Hub can't be reached, or refuses.
    """
    release, access = plan.release, plan.access
    repo = release.options.repo
    _open_repository(plan)
    if plan.is_done:
        assert plan.repository is not None
        commit = plan.repository.tags[release.tag]
    else:
        megabytes = release.bytes / 1e6
        say(f"uploading {len(release.large) + len(release.small) + 1} files, {megabytes:.1f} MB, to {repo}")
        commit = _Publisher(plan, say).run()
    _remove_branch(release)
    _settle(repo, access, say)
    _note_origin(release, commit)
    return PushResult(repo, release.tag, commit, plan.is_done)


def _note_origin(release: PreparedRelease, commit: str) -> None:
    """Write down where the artifact stands now, unless it came from elsewhere; it is whole without the note."""
    folder, repo = release.artifact.folder, release.options.repo
    known = read_origin(folder)
    if known is None or known.repo == repo:
        origin = Origin(repo=repo, commit=commit, tag=release.tag, config=release.place.config)
        with suppress(OSError):
            write_atomic(folder / ORIGIN_NAME, origin.model_dump_json(indent=2) + "\n")


def _open_repository(plan: PushPlan) -> None:
    """Make the repository private and gated as it has to be, before the first byte."""
    repo, gate = plan.release.options.repo, plan.access.gate_first
    with hub_errors(repo):
        if plan.repository is None:
            retried(lambda: api().create_repo(repo, repo_type=DATASET, private=True, exist_ok=True))
        if gate is not None:
            retried(lambda: api().update_repo_settings(repo, repo_type=DATASET, gated=gate))


def _settle(repo: str, access: Access, say: Say) -> None:
    """Open the repository as it was asked for, now that the release is whole."""
    with hub_errors(repo):
        if access.ungate_last:
            retried(lambda: api().update_repo_settings(repo, repo_type=DATASET, gated=False))
            say(f"{repo} is no longer gated")
        if access.open_last:
            retried(lambda: api().update_repo_settings(repo, repo_type=DATASET, visibility="public"))
            say(f"{repo} is public now")


def _branch_name(release: PreparedRelease) -> str:
    return f"backport-{release.tag}"


def _remove_branch(release: PreparedRelease) -> None:
    """Remove the branch that a lower version was committed on; its tag keeps the commit."""
    repo, name = release.options.repo, _branch_name(release)
    found = repository(repo)
    if found is not None and name in found.branches:
        try:
            with hub_errors(repo):
                retried(lambda: api().delete_branch(repo, repo_type=DATASET, branch=name))
        except HubError:
            after = repository(repo)
            if after is None or name in after.branches:
                raise  # and not an answer that got lost


class _Publisher:
    """Commits and tags, through races and failures."""

    def __init__(self, plan: PushPlan, say: Say) -> None:
        self.plan, self.say = plan, say
        self.release = plan.release
        self.repo = plan.release.options.repo
        self.first: BranchHead | None = plan.head
        self.attempts = Attempts(self.repo)

    def run(self) -> str:
        """Return the commit that carries the tag."""
        for race in range(RACES):
            found = self._look()
            if _is_released(self.release, found):
                return found.tags[self.release.tag]
            branch, head = self._branch(found)
            if self._has_landed(head):
                commit: str | None = head.commit
            else:
                card = self._card(head, found)
                commit = self.attempts.make(partial(self._commit, branch, head, card))
            if commit is not None and self._tag(commit):
                return commit
            attempts.wait(race)
        raise HubError(f"others kept committing to {self.repo}; run the same command again, finished work is kept")

    def _look(self) -> Repository:
        found = repository(self.repo)
        if found is None:
            raise HubError(f"{self.repo} is gone from the Hub, or this token may no longer see it")
        if not found.private and not self.release.options.public:
            raise PublishError(f"{self.repo} was made public meanwhile; pass --public if the release may be public")
        if not found.is_gated and self.plan.access.gate != "no":
            raise PublishError(f"{self.repo} lost its gate meanwhile; gate it on the Hub, or pass --gated no")
        return found

    def _branch(self, found: Repository) -> tuple[str, BranchHead]:
        """Choose the branch: main, or one of its own for a version lower than main's."""
        head = read_head(self.repo, found.head)
        check_layout(self.release, head)
        self._check_neighbours(head)
        if not is_older(self.release, head):
            return MAIN, head
        name = _branch_name(self.release)
        if name not in found.branches:
            with hub_errors(self.repo):
                retried(
                    lambda: api().create_branch(
                        self.repo, repo_type=DATASET, branch=name, revision=head.commit, exist_ok=True
                    )
                )
        return name, read_head(self.repo, self._look().branches[name])

    def _check_neighbours(self, head: BranchHead) -> None:
        """Stop if somebody changed, since the first look, something else than configs and their card.

        Raises:
            ReleaseConflictError: files outside any release, or files of this config without a release.
        """
        first, self.first = self.first, self.first or head
        if first is None or first.commit == head.commit:
            return
        changed = {
            path for path in first.files.keys() | head.files.keys() if first.files.get(path) != head.files.get(path)
        }
        released = {name for name in head.manifests if head.manifests[name] != first.manifests.get(name)}
        strange = [
            path
            for path in sorted(changed - {README, *BLANK})
            if not any(ConfigPath(name).holds(path) for name in released)
        ]
        if strange:
            raise ReleaseConflictError(
                f"somebody else changed {', '.join(map(quote, strange[:8]))} in {self.repo} meanwhile; look at it, and "
                "push again if the change is fine"
            )
        place = self.release.place.config
        if place in released and head.manifests[place].version == self.release.manifest.version:
            if self._has_landed(head):
                return
            raise ReleaseConflictError(
                f"somebody else is publishing {self.release.tag} to {self.repo} with other content; build another "
                "version"
            )
        self.say(f"{self.repo} changed meanwhile; the release is added on top")

    def _has_landed(self, head: BranchHead) -> bool:
        """Return whether the head is this release already: an earlier run was killed, or its answer got lost."""
        return not self.release.differing(head.files)

    def _commit(self, branch: str, head: BranchHead, card: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        large = [CommitOperationAdd(path, str(local)) for path, local in self.release.large.items()]
        sha256 = self.release.sha256
        for operation in large:  # they were hashed when they were checked, and found to be the manifest's, or made
            operation.upload_info.sha256 = bytes.fromhex(sha256[operation.path_in_repo])
        small = [CommitOperationAdd(path, content) for path, content in self.release.small.items()]
        sent = [*large, *small]
        try:
            self._check_unchanged()
            api().preupload_lfs_files(self.repo, sent, repo_type=DATASET, revision=branch, free_memory=False)
        finally:
            self._check_unchanged()
        gone = [CommitOperationDelete(path) for path in _leftovers(self.release, head.files)]
        done = api().create_commit(
            self.repo,
            [*sent, CommitOperationAdd(README, card.encode()), *gone],
            commit_message=f"Release {self.release.tag}",
            repo_type=DATASET,
            revision=branch,
            parent_commit=head.commit,
        )
        return str(done.oid)

    def _check_unchanged(self) -> None:
        """Look whether what is uploaded is what was checked."""
        for path, local in self.release.data.items():
            if not local.is_file() or state_of(local) != self.release.states[path]:
                raise PublishError(
                    f"{path} changed while it was uploaded; nothing was published; run the same command again"
                )

    def _card(self, head: BranchHead, found: Repository) -> str:
        card = render_card(self.release, head, found, self.plan.license, gated=self.plan.access.gate != "no")
        hits: list[SecretHit] = list(scan_texts({README: card}, own_secrets()))
        if hits and README not in self.release.options.allow_secrets:
            raise PublishError(
                f"the card would hold what looks like a secret: {hits[0].what}{hits[0].beginning}; take it out of "
                f"{README}, here or on the Hub, or repeat with --allow-secret {README}"
            )
        return card

    def _tag(self, commit: str) -> bool:
        """Tag a commit once it is known to be the release; False asks to look again."""
        wrong = self.release.differing(tree(self.repo, commit))
        if wrong:
            raise HubError(
                f"the Hub's commit {commit[:12]} does not hold what was sent ({', '.join(map(quote, wrong[:8]))}); it "
                "got no tag; run the same command again"
            )

        def create() -> str:
            api().create_tag(self.repo, repo_type=DATASET, tag=self.release.tag, revision=commit)
            return commit

        try:
            return self.attempts.make(create) is not None
        except HubError as error:
            if status_of(error.__context__ or error) == 409:
                return False  # somebody was faster: look whether it is the same
            raise
