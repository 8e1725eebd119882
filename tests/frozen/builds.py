"""Runs the cases by the command line, and tells what entered each fingerprint and what the rows are.

A fingerprint is the SHA-256 of a JSON object of five members: generator, configuration, and what tells parents,
models and inputs apart. That object is what is frozen. What differs between machines or releases of libraries (the
content hash of a parent depends on how Parquet is written) stands in it under a name: `<content of prompts 1.0.0>`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from stairdata_schemas import rendering
from stairdata_schemas.artifacts import Artifact, open_artifact
from tests.conftest import HUB_TOKEN, make_tokenizer
from tests.frozen.cases import CASES, TRAININGS, Case
from tests.frozen.inputs import write_inputs

if TYPE_CHECKING:
    from tests.conftest import HubServer, StubServer

Json = dict[str, Any]
DATA = Path(__file__).parent / "data"
REVIEWED_AT = 1_700_000_000
UNEVEN = {"seconds", "response_id"}
"""Columns that measure time, or that hash what differs between machines: the models' folders."""


class Built(NamedTuple):
    """What came of a case."""

    artifact: Artifact | None
    """None where its server can't be started here."""
    fingerprint: str
    counted: Json
    """What the fingerprint is the hash of."""


class Builds:
    """The cases, each built when it is first asked for.

    Args:
        folder: an empty one.
        stub: the language model.
        hub: the Hub.
    """

    def __init__(self, folder: Path, stub: StubServer, hub: HubServer) -> None:
        self.folder = folder
        self._stub = stub
        self._hub = hub
        self._built: dict[str, Built] = {}
        self._places: dict[str, str] = {}
        self.values: dict[str, str] = {}
        """What the names in frozen objects stand for here."""
        write_inputs(folder)
        self._make_models()

    def __getitem__(self, name: str) -> Built:
        if name not in self._built:
            self._build_parents(CASES[name])
            self.reset_stub(CASES[name])
            self._built[name] = self.run(name, CASES[name])
        return self._built[name]

    def artifact(self, name: str) -> Artifact:
        """Return the artifact of a case."""
        artifact = self[name].artifact
        assert artifact is not None
        return artifact

    def give(self, name: str, folder: Path) -> None:
        """Take an artifact that is there as that of a case."""
        artifact = open_artifact(folder)
        self._built[name] = Built(artifact, artifact.manifest.fingerprint, {})

    def run(self, name: str, case: Case) -> Built:
        """Run the commands of a case, with the artifacts in a folder of that name."""
        if case.hub is not None:
            self._put_on_hub(case.hub, (self.folder / case.hub).read_bytes(), case.recipe)
        artifact = None
        with watched_plans() as plans:
            for command in case.commands:
                if command.startswith("review import"):
                    self._answer_reviews()
                root = "" if command.startswith("review export") else f" --root {name}"
                fails = case.fails and command == case.commands[-1]
                said = self._run(command + root, case.recipe, fails=fails)
                if "@" in said:
                    artifact = open_artifact(self.folder / name / said.replace("@", "/"))
                    version, content = artifact.manifest.version, artifact.manifest.content_hash
                    self.values[f"<content of {name} {version}>"] = content
        fingerprint = artifact.manifest.fingerprint if artifact else plans[-1]["fingerprint"]
        return Built(artifact, fingerprint, counted_of(plans[-1]))

    def reset_stub(self, case: Case) -> None:
        """Put the language model into the state that a case wants, its counts to zero."""
        self._stub.start()
        self._stub.reset()
        self._stub.control(**case.stub)
        self._places |= {"$URL": self._stub.base_url, "$PORT": str(self._stub.port)}

    def train(self, stage: str) -> tuple[str, Json]:
        """Train a tiny model for one step; return the fingerprint, and what it is the hash of."""
        from tests.training.conftest import tiny_model

        case, output = TRAININGS[stage], self.folder / f"trained_{stage}"
        if "$BASE" not in self._places:
            self._places["$BASE"] = str(tiny_model(self.folder / "base", "chatml", tags=True))
            self.values["<base model>"] = rendering.model_hash(self.folder / "base")
        self._build_parents(case)
        self._run(f"{case.commands[0]} --output {output}", case.recipe)
        record = json.loads((output / "training.json").read_text(encoding="utf-8"))
        return record["fingerprint"], {"counted": record["identity"]}

    def named(self, counted: Json) -> Json:
        """Put names in place of what differs between machines."""
        found = _replaced(counted, {value: name for name, value in self.values.items()})
        return {
            name: sorted(value, key=str) if name in {"parents", "models"} else value for name, value in found.items()
        }

    def resolved(self, frozen: Json) -> Json:
        """Put what is so here in place of the names."""
        return _replaced(frozen, self.values)

    def _build_parents(self, case: Case) -> list[str]:
        """Build what a case needs, before the stub is put into the state that the case wants."""
        words = [word for command in case.commands for word in command.split()]
        names = [name for name in CASES if f"@{name}" in words]
        for name in names:
            self[name]
        return names

    def _run(self, command: str, recipe: Json, *, fails: bool = False) -> str:
        (self.folder / "recipe.json").write_text(self._filled(json.dumps(recipe)), encoding="utf-8")
        arguments = [self._filled(part) for part in shlex.split(command)]
        with contextlib.chdir(self.folder):
            return stairdata(*arguments, fails=fails)

    def _filled(self, text: str) -> str:
        if text.startswith("@"):
            return str(self.artifact(text[1:]).folder)
        if "$PRM" in text and "$PRM" not in self._places:
            self._make_prm(self.folder / "prm")
        for name, place in self._places.items():
            text = text.replace(name, place)
        return text

    def _make_models(self) -> None:
        """Make a tokenizer, what looks like a model, and a tokenizer's folder that pairs count by its bytes, unread."""
        tokenizer = self._stub.tokenizer = make_tokenizer(self.folder / "tokenizer")
        self.values["<tokenizer>"] = rendering.tokenizer_hash(rendering.load_tokenizer(tokenizer))
        model = make_tokenizer(self.folder / "model")
        (model / "config.json").write_text('{"model_type": "llama"}')
        (model / "model.safetensors").write_bytes(b"no weights")
        self.values["<model>"] = rendering.model_hash(model)
        self._places = {"$TOKENIZER": str(tokenizer), "$MODEL": str(model)}
        (self.folder / "unread_tokenizer").mkdir()
        (self.folder / "unread_tokenizer" / "tokenizer.json").write_text("{}")

    def _make_prm(self, folder: Path) -> None:
        """Make a reward model that finds all answers equally good, so that no score depends on a processor."""
        import torch
        from transformers import LlamaConfig, LlamaForSequenceClassification

        tokenizer = rendering.load_tokenizer(make_tokenizer(folder))
        tokenizer.pad_token = "<|im_end|>"
        tokenizer.save_pretrained(folder)
        config = LlamaConfig(
            vocab_size=400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1
        )
        network = LlamaForSequenceClassification(config)
        torch.nn.init.zeros_(network.score.weight)
        network.save_pretrained(str(folder))
        self._places["$PRM"] = str(folder)
        self.values["<reward model>"] = rendering.model_hash(folder)

    def _put_on_hub(self, file: str, content: bytes, recipe: Json) -> None:
        from huggingface_hub import CommitOperationAdd, HfApi

        (section,) = recipe.values()
        name = section.get("hub") or section["sources"][0]["hub"]
        self._hub.control(reset=True)
        self._hub.control(tokens={HUB_TOKEN: ["write", "tester", name.partition("/")[0]]})
        api = HfApi(token=HUB_TOKEN)
        api.create_repo(name, repo_type="dataset")
        card = b"---\nlicense: cc-by-4.0\n---\n"
        operations = [CommitOperationAdd("README.md", card), CommitOperationAdd(file, content)]
        commit = api.create_commit(name, operations, commit_message="files", repo_type="dataset")
        self.values[f"<commit of {name}>"] = commit.oid

    def _answer_reviews(self) -> None:
        """Fill in the table as a reviewer would, at a known time and under a known salt."""
        table, folder = self.folder / "review.jsonl", self.folder / "reviewers"
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
        said = [("A", "both"), ("B", "A"), ("tie", "both"), ("both_bad", "neither")]
        for number, row in enumerate(rows):
            row |= dict(zip(("verdict", "safe"), said[number % len(said)], strict=True))
        table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.utime(table, (REVIEWED_AT, REVIEWED_AT))
        folder.mkdir()
        salts = folder / "review-salts.json"
        salts.write_text(json.dumps({self.artifact("pairs").manifest.content_hash: "salt"}))
        salts.chmod(0o600)


def stairdata(*arguments: str, fails: bool = False) -> str:
    """Run the command line in this process, and return what it wrote to stdout."""
    from stairdata.cli.main import main

    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["stairdata", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    assert bool(status) is fails, err.getvalue()
    return out.getvalue().strip()


@contextlib.contextmanager
def watched_plans() -> Iterator[list[Json]]:
    """Keep a copy of each `.build/build.json` as it is put in place: a build that finishes removes its own."""
    plans: list[Json] = []
    replace = Path.replace

    def watched(path: Path, target: Path) -> Path:
        result = replace(path, target)
        if Path(target).name == "build.json":
            plans.append(json.loads(Path(target).read_text(encoding="utf-8")))
        return result

    with mock.patch.object(Path, "replace", watched):
        yield plans


def counted_of(plan: Json) -> Json:
    """Return what the fingerprint of a build.json is the hash of."""
    names = ("role", "name", "revision", "tokenizer_hash")
    return {
        "generator": plan["generator"],
        "configuration": plan["configuration"],
        "parents": [parent["content_hash"] for parent in plan["parents"]],
        "models": [[model[name] for name in names] for model in plan["models"]],
        "inputs": plan["inputs"],
    }


def fingerprint_of(counted: Json) -> str:
    """Hash what a fingerprint covers; written here a second time, since this must not change with the code."""
    return sha256(counted | {"parents": sorted(counted["parents"]), "models": sorted(counted["models"], key=str)})


def sha256(value: Any) -> str:
    """Hash canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def row_hashes(artifact: Artifact) -> Json:
    """Hash the rows in order, each column for itself, so that a test can say which one changed."""
    columns = artifact.scan().collect().to_dict(as_series=False)
    hashes = {name: sha256(_rounded(values))[:16] for name, values in columns.items() if name not in UNEVEN}
    manifest = artifact.manifest
    return {"kind": manifest.kind, "rows": manifest.rows, "columns": hashes, "quarantine": manifest.quarantine}


def read_frozen(name: str) -> Json:
    """Read a file of frozen data."""
    frozen: Json = json.loads((DATA / name).read_text(encoding="utf-8"))
    return frozen


def difference(frozen: Json, now: Json) -> str:
    """Show what changed, line by line."""
    before, after = (json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (frozen, now))
    return "\n".join(difflib.unified_diff(before, after, "frozen", "now", lineterm=""))


def _replaced(value: Json, words: Mapping[str, str]) -> Json:
    """Replace whole strings anywhere in a JSON object."""
    text = json.dumps(value)
    for old, new in words.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    found: Json = json.loads(text)
    return found


def _rounded(value: Any) -> Any:
    """Leave out the digits in which a logarithm may differ from one machine to the next."""
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return {key: _rounded(each) for key, each in value.items()} if isinstance(value, dict) else value
