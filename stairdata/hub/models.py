"""Publishing a trained model: one commit with the whole folder, then a tag of the training's fingerprint.

The order is that of `push.py`: the folder is checked and searched for secrets, the repository is private before the
first byte, the commit is compared with what was meant before it gets its tag, and a tag is never moved. Card and
curves are made from the rest, so they may change under a tag that is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.hub import attempts
from stairdata.hub.access import Access, Gate, decide_model_access, decide_model_license
from stairdata.hub.attempts import Attempts
from stairdata.hub.client import (
    MAIN,
    MODEL,
    README,
    FileListing,
    Repository,
    api,
    holds,
    hub_errors,
    read,
    repository,
    retried,
    status_of,
    tree,
)
from stairdata.hub.content import FileState, quiet, state_of
from stairdata.hub.push import BLANK, RACES, FileChange, PushResult, Say
from stairdata.hub.secrets import SHOWN, scan_texts, texts_of
from stairdata_schemas.aliases import CountProgress
from stairdata_schemas.cards import card as cards
from stairdata_schemas.errors import HubError, PublishError, ReleaseConflictError, quote
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import CARD_BYTES, MEBIBYTE, TooLargeError
from stairdata_schemas.manifest import MANIFEST_NAME, sha256_of_file
from stairdata_schemas.rendering import check_model_folder
from stairdata_schemas.secrets.own import own_secrets

TRAINING_NAME = "training.json"
CONFIG_NAME = "config.json"
TAG_PREFIX = "training-"
_TAG_DIGITS = 12
_TEXT_BYTES = 256 * MEBIBYTE
"""Most bytes of a file that is searched for secrets: tokenizers of large vocabularies have tens of megabytes."""
_TEXTS = frozenset({".json", ".jinja", ".md", ".txt"})
_WRITTEN = _TEXTS | {".safetensors", ".png", ".model"}
"""Endings of the files that a training writes."""
_MADE_FROM_THE_REST = frozenset({".md", ".png"})


@dataclass(frozen=True, slots=True)
class ModelPushOptions:
    """What was typed."""

    repo: str
    public: bool = False
    gated: Gate | None = None
    license: str | None = None
    allow_secrets: tuple[str, ...] = ()
    progress: CountProgress = quiet


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model folder that was checked and is ready to be published."""

    folder: Path
    options: ModelPushOptions
    tag: str
    files: Mapping[str, Path]
    """All but the card, by their path in the repository."""
    states: Mapping[str, FileState]
    """What tells whether a file changed since it was checked."""
    sha256: Mapping[str, str]
    """Hashes of the weights, which take their time."""
    card: str

    @property
    def bytes(self) -> int:
        return sum(state.bytes for state in self.states.values())

    def holds(self, path: str, there: FileListing) -> bool:
        """Return whether a file of the model is in a tree, with the same content."""
        return holds(there.get(path), self.files[path], self.sha256.get(path))

    def differing(self, there: FileListing) -> list[str]:
        """Name the files that differ from those in a tree or are missing in it, apart from card and curves."""
        content = [path for path in self.files if Path(path).suffix not in _MADE_FROM_THE_REST]
        weights = [path for path in there if path.endswith(".safetensors") and path not in self.files]
        return sorted([*(path for path in content if not self.holds(path, there)), *weights])


class ModelPushPlan(NamedTuple):
    """What a push would do."""

    model: PreparedModel
    repository: Repository | None
    access: Access
    license: str | None
    is_done: bool
    """The tag is there, with the same content."""
    changes: list[FileChange]


def is_model_folder(reference: str) -> bool:
    """Return whether a reference names a folder that holds a model, ours or not, rather than an artifact."""
    folder = Path(reference)
    return (folder / CONFIG_NAME).is_file() and not (folder / MANIFEST_NAME).is_file()


def push_model(folder: Path, options: ModelPushOptions, say: Say = lambda _: None) -> PushResult:
    """Publish a model that `stairdata train` wrote.

    Raises:
        PublishError: it must not be published, or not there, or not like this.
        ReleaseConflictError: this training is there with other content, or the repository holds something else.
        HubError: the Hub can't be reached, or refuses.
    """
    return publish_model(plan_model(prepare_model(folder, options)), say)


# -- what is published ---------------------------------------------------------------------------------------


def prepare_model(folder: Path, options: ModelPushOptions) -> PreparedModel:
    """Check a model folder, and search its texts for secrets.

    Raises:
        ModelError: it holds no weights.
        PublishError: no training of ours wrote it, it is incomplete, or there is a secret in it.
    """
    check_model_folder(folder)
    record = _record(folder)
    files = _files(folder)
    _check_shards(folder, files)
    options.progress(f"checking {folder}, and looking for secrets in it", 0, 0)
    states = {name: state_of(path) for name, path in files.items()}
    card = _read(files.pop(README))
    cards.check_head(card, str(folder / README))
    texts = {name: _read(path) for name, path in files.items() if path.suffix in _TEXTS and name != TRAINING_NAME}
    _check_secrets(folder, {README: card, **texts, **texts_of(record, f"{TRAINING_NAME}:")}, options.allow_secrets)
    return PreparedModel(
        folder=folder,
        options=options,
        tag=f"{TAG_PREFIX}{record['fingerprint'][:_TAG_DIGITS]}",
        files=files,
        states={name: states[name] for name in files},
        sha256={name: sha256_of_file(path) for name, path in files.items() if path.suffix == ".safetensors"},
        card=card,
    )


def _record(folder: Path) -> dict[str, Any]:
    """Read training.json.

    Raises:
        PublishError: there is none, or not one of ours.
    """
    path = folder / TRAINING_NAME
    if not path.is_file():
        raise PublishError(
            f"{folder} holds no {TRAINING_NAME}, so `stairdata train` did not write it; publish other models with "
            "`hf upload`"
        )
    try:
        record = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise PublishError(f"{path} is not JSON ({error}); train again") from error
    fingerprint = record.get("fingerprint") if isinstance(record, dict) else None
    if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{16,64}", fingerprint):
        raise PublishError(f"{path} has no fingerprint of a training (found {quote(fingerprint)}); train again")
    found: dict[str, Any] = record
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a model folder by name.

    Raises:
        PublishError: there is something that no training writes, or no card.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    strange = [
        name for name, path in files.items() if path.is_symlink() or not path.is_file() or path.suffix not in _WRITTEN
    ]
    if strange:
        raise PublishError(
            f"{folder} holds {', '.join(map(quote, strange[:SHOWN]))}, which no training writes and which is not "
            "published; move it elsewhere and push again"
        )
    if README not in files:
        raise PublishError(f"{folder} holds no {README}; write a model card there, and push again")
    return files


def _check_shards(folder: Path, files: Mapping[str, Path]) -> None:
    """Refuse a folder that lacks some of its weights.

    Raises:
        PublishError: the index names a file that is not there.
    """
    index = files.get("model.safetensors.index.json")
    if index is None:
        return
    try:
        named = set(json.loads(_read(index))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PublishError(f"{index} can't be read ({error!r}); train again") from error
    missing = sorted(named - files.keys())
    if missing:
        raise PublishError(f"{folder} lacks {', '.join(map(quote, missing[:SHOWN]))}, which {index.name} names")


def _read(path: Path) -> str:
    try:
        return read_text(path, _TEXT_BYTES)
    except (OSError, UnicodeDecodeError, TooLargeError) as error:
        raise PublishError(f"{path} can't be read: {error}") from error


def _check_secrets(folder: Path, texts: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    hits = [hit for hit in scan_texts(texts, own_secrets()) if hit.allow not in allowed]
    if hits:
        lines = [f"{hit.where}: {hit.what}{hit.beginning}" for hit in hits[:SHOWN]]
        more = f" and {len(hits) - SHOWN} more" if len(hits) > SHOWN else ""
        raise PublishError(
            f"{folder} holds what looks like a secret in {'; '.join(lines)}{more}; take it out, or, if it is not a "
            f"secret, repeat with --allow-secret {hits[0].allow}"
        )


# -- what is there -------------------------------------------------------------------------------------------


def plan_model(model: PreparedModel) -> ModelPushPlan:
    """Look at the repository and decide what is to be done; changes nothing.

    Raises:
        PublishError: visibility or licence forbid it.
        ReleaseConflictError: this training is there with other content, or the repository holds something else.
        HubError: the Hub can't be reached, or refuses.
    """
    options = model.options
    found = repository(options.repo, MODEL)
    there = tree(options.repo, found.head, MODEL) if found else {}
    access = decide_model_access(found, public=options.public, gated=options.gated)
    if found is not None:
        _check_ours(model, found, there)
    is_done = found is not None and _is_released(model, found)
    license = _license(model, _readme(model, found, there) if found else "", public=not access.private)
    return ModelPushPlan(model, found, access, license, is_done, [] if is_done else _changes(model, found, there))


def _license(model: PreparedModel, readme: str, *, public: bool) -> str | None:
    """Return the licence: the one typed, else that of the folder's card, else that of the card on the Hub."""
    stated = [cards.read_head(card).get("license") for card in (model.card, readme)]
    return decide_model_license(model.options.license, stated, public=public)


def _readme(model: PreparedModel, found: Repository, there: FileListing) -> str:
    if README not in there:
        return ""
    return read(model.options.repo, README, found.head, CARD_BYTES, MODEL).decode("utf-8", "replace")


def _releases(found: Repository) -> dict[str, str]:
    """Return the commit of each tag that a training of ours gave."""
    return {tag: commit for tag, commit in found.tags.items() if tag.startswith(TAG_PREFIX)}


def _check_ours(model: PreparedModel, found: Repository, there: FileListing) -> None:
    """Refuse a repository that holds a model from elsewhere.

    Raises:
        ReleaseConflictError: it does.
    """
    if _releases(found) or there.keys() <= {README, *BLANK} or not model.differing(there):
        return
    raise ReleaseConflictError(
        f"{found.name} holds files that `stairdata push` did not put there, such as "
        f"{quote(min(there.keys() - {README, *BLANK}))}; push to another repository"
    )


def _is_released(model: PreparedModel, found: Repository) -> bool:
    """Return whether the tag is there, with the same content.

    Raises:
        ReleaseConflictError: with other content.
    """
    commit = found.tags.get(model.tag)
    if commit is None:
        return False
    wrong = model.differing(tree(found.name, commit, MODEL))
    if wrong:
        raise ReleaseConflictError(
            f"{found.name} has {model.tag} already, with other content: {', '.join(map(quote, wrong[:SHOWN]))} differ; "
            "a tag is never moved: the same training came out differently, so push it to another repository"
        )
    return True


def _changes(model: PreparedModel, found: Repository | None, there: FileListing) -> list[FileChange]:
    changes = [
        FileChange(
            path,
            model.states[path].bytes,
            "same" if model.holds(path, there) else "changed" if path in there else "new",
        )
        for path in model.files
    ]
    changes.append(FileChange(README, 0, "changed" if README in there else "new"))
    gone = _leftovers(model, found, there) if found else []
    return sorted([*changes, *(FileChange(path, there[path].size, "deleted") for path in gone)])


def _leftovers(model: PreparedModel, found: Repository, there: FileListing) -> list[str]:
    """Name the files of trainings before this one, which this one does not have; others' files stay."""
    earlier = {path for commit in set(_releases(found).values()) for path in tree(found.name, commit, MODEL)}
    return sorted((earlier & there.keys()) - model.files.keys() - {README, *BLANK})


# -- the push itself -----------------------------------------------------------------------------------------


def publish_model(plan: ModelPushPlan, say: Say = lambda _: None) -> PushResult:
    """Carry out a plan.

    Raises:
        PublishError: a file changed meanwhile, or the card would hold a secret.
        ReleaseConflictError: somebody put something else there meanwhile.
        HubError: the Hub can't be reached, or refuses.
    """
    model, access = plan.model, plan.access
    repo = model.options.repo
    with hub_errors(repo, MODEL):
        if plan.repository is None:
            retried(lambda: api().create_repo(repo, repo_type=MODEL, private=True, exist_ok=True))
        if access.gate_first is not None:
            retried(lambda: api().update_repo_settings(repo, repo_type=MODEL, gated=access.gate_first))
    if plan.is_done:
        assert plan.repository is not None
        commit = plan.repository.tags[model.tag]
    else:
        say(f"uploading {len(model.files) + 1} files, {model.bytes / 1e6:.1f} MB, to {repo}")
        commit = _commit_and_tag(plan)
    with hub_errors(repo, MODEL):
        if access.ungate_last:
            retried(lambda: api().update_repo_settings(repo, repo_type=MODEL, gated=False))
            say(f"{repo} is no longer gated")
        if access.open_last:
            retried(lambda: api().update_repo_settings(repo, repo_type=MODEL, visibility="public"))
            say(f"{repo} is public now")
    return PushResult(repo, model.tag, commit, plan.is_done)


def _commit_and_tag(plan: ModelPushPlan) -> str:
    """Return the commit that carries the tag, through races and failures."""
    model = plan.model
    repo, tries = model.options.repo, Attempts(model.options.repo, MODEL)
    for race in range(RACES):
        found = repository(repo, MODEL)
        if found is None:
            raise HubError(f"{repo} is gone from the Hub, or this token may no longer see it")
        if not found.private and not model.options.public:
            raise PublishError(f"{repo} was made public meanwhile; pass --public if the model may be public")
        if _is_released(model, found):
            return found.tags[model.tag]
        there = tree(repo, found.head, MODEL)
        _check_ours(model, found, there)
        # an earlier run was killed, or its answer got lost
        has_landed = not model.differing(there)
        commit = found.head if has_landed else tries.make(partial(_commit, plan, found, there))
        if commit is not None and _tag(model, commit, tries):
            return commit
        attempts.wait(race)
    raise HubError(f"others kept committing to {repo}; run the same command again, finished work is kept")


def _commit(plan: ModelPushPlan, found: Repository, there: FileListing) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    model = plan.model
    card = _published_card(plan, found, there)
    added = [CommitOperationAdd(name, str(path)) for name, path in model.files.items()]
    try:
        _check_unchanged(model)
        api().preupload_lfs_files(model.options.repo, added, repo_type=MODEL, revision=MAIN, free_memory=False)
    finally:
        _check_unchanged(model)
    gone = [CommitOperationDelete(path) for path in _leftovers(model, found, there)]
    done = api().create_commit(
        model.options.repo,
        [*added, CommitOperationAdd(README, card.encode()), *gone],
        commit_message=f"Model {model.tag}",
        repo_type=MODEL,
        revision=MAIN,
        parent_commit=found.head,
    )
    return str(done.oid)


def _check_unchanged(model: PreparedModel) -> None:
    for name, path in model.files.items():
        if not path.is_file() or state_of(path) != model.states[name]:
            raise PublishError(
                f"{path} changed while it was uploaded; nothing was published; run the same command again"
            )


def _tag(model: PreparedModel, commit: str, tries: Attempts) -> bool:
    """Tag a commit once it is known to hold the model; False asks to look again."""
    repo = model.options.repo
    wrong = model.differing(tree(repo, commit, MODEL))
    if wrong:
        raise HubError(
            f"the Hub's commit {commit[:12]} does not hold what was sent ({', '.join(map(quote, wrong[:SHOWN]))}); it "
            "got no tag; run the same command again"
        )

    def create() -> str:
        api().create_tag(repo, repo_type=MODEL, tag=model.tag, revision=commit)
        return commit

    try:
        return tries.make(create) is not None
    except HubError as error:
        if status_of(error.__context__ or error) == 409:
            return False  # somebody was faster: look whether it is the same
        raise


def _published_card(plan: ModelPushPlan, found: Repository, there: FileListing) -> str:
    """Return the folder's card with its licence, and with what people wrote into the one on the Hub.

    Raises:
        ReleaseConflictError: the same text of a user's own was changed on both sides.
        PublishError: the card would hold a secret.
    """
    model = plan.model
    on_hub = _readme(model, found, there)
    ours, theirs = cards.user_text(model.card), cards.user_text(on_hub)
    if foreign := cards.foreign_text(on_hub):
        theirs = {"introduction": foreign}
    both = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    if both:
        raise ReleaseConflictError(
            f"your own text ({both[0]}) in the card was changed both in {model.folder / README} and on the Hub; make "
            "them equal, or empty the local one to keep the Hub's, and push again"
        )
    card = cards.with_user_text(_with_license(model.card, plan.license), {**theirs, **ours})
    own_keys = {key: lines for key, lines in cards.user_lines(on_hub).items() if key not in cards.read_head(card)}
    if own_keys:
        card = card.replace("\n---\n", "\n" + "".join(own_keys.values()) + "---\n", 1)
    _check_secrets(model.folder, {README: card}, model.options.allow_secrets)
    return card


def _with_license(card: str, license: str | None) -> str:
    """State a licence in the head of a card and in the text, where each states one."""
    if license is None:
        return card
    head, dashes, body = card.partition("\n---\n")
    head = re.sub(r"^license:.*$", f"license: {license}", head, count=1, flags=re.MULTILINE)
    return f"{head}{dashes}{re.sub(r'^Licence: .*$', f'Licence: {license}.', body, count=1, flags=re.MULTILINE)}"
