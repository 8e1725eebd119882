"""Builds in shards: disjoint, resumable, and joined equal to the build in one piece."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stairdata.generators.evaluations.build import build_evaluations
from stairdata.generators.responses.build import build_responses
from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.generators.trees.build import build_trees
from stairdata.llm.budget import BudgetLimits
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata.runs.shards.join import _join_notes, _merge, join_shards
from stairdata.runs.shards.shard import Shard, ShardNote, own_units, owner_of, with_shard
from stairdata.runs.units import Unit
from stairdata_schemas.artifacts import Artifact, open_artifact, resolve, validate_artifact
from stairdata_schemas.building import BuildPlan
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, BudgetError, UsageError

if TYPE_CHECKING:
    from tests.conftest import StubServer

COUNT = 3
UNEVEN = ["requests", "prompt_tokens", "completion_tokens", "seconds"]
"""Columns of one tree that differ from one run to the next."""


def evaluate(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Ask models about benchmarks; the prompts of the other kinds are no input of it."""
    return build_evaluations(recipe, replace(options, inputs=()))


BUILDERS: dict[str, Callable[..., Artifact | None]] = {
    "trees": build_trees,
    "responses": build_responses,
    "structured_cot": build_structured_cot,
    "evaluations": evaluate,
}


@pytest.fixture
def recipe(actor_section: dict[str, Any], waits: list[float], tmp_path: Path) -> Recipe:
    server = {"retries": 2, "base_url": actor_section["base_url"], "model": "actor"}
    return Recipe.model_validate(
        {
            "actor": {**actor_section, "retries": 2, "max_model_len": 1024},
            "trees": {"iterations": 3, "samples": 2, "max_tokens": 64, "rollout_tokens": 64, "trees_per_prompt": 2},
            "responses": {"max_tokens": 64, "n": 2},
            "structured_cot": {"teacher": server},
            "evaluations": {
                "benchmarks": [
                    {"name": "xstest", "path": str(benchmark(tmp_path / "first.csv", range(9)))},
                    {"name": "again", "like": "xstest", "path": str(benchmark(tmp_path / "second.csv", range(5, 12)))},
                ],
                "judge": {"kind": "rule"},
                "attacks": ["none", "role_play"],
            },
        }
    )


@pytest.fixture
def prompts(prompts_of: Callable[[list[str]], Artifact]) -> Artifact:
    """Eleven prompts, of which one leaves the actor no room for an answer."""
    return prompts_of([f"Question {number}?" + " word" * 2000 * (number == 4) for number in range(11)])


@pytest.fixture
def options(prompts: Artifact, tmp_path: Path) -> BuildOptions:
    return BuildOptions(root=tmp_path / "shards", inputs=(str(prompts.folder),), max_quarantine=0.5)


def benchmark(path: Path, numbers: range) -> Path:
    """Write a benchmark with one row that can't be taken."""
    rows = [f"Is it fine to kill process {number}?,homonyms,{('safe', 'unsafe')[number % 2]}" for number in numbers]
    path.write_text("\n".join(["prompt,type,label", *rows, ",homonyms,safe", ""]))
    return path


def rows_of(artifact: Artifact) -> pl.DataFrame:
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect()
    return rows.drop([name for name in UNEVEN if name in rows.columns])


def refused_of(artifact: Artifact) -> list[tuple[Any, ...]]:
    folder = artifact.folder / "quarantine"
    return pl.read_parquet(folder / "*.parquet").select("row", "rule").rows() if folder.is_dir() else []


def build_shard(kind: str, recipe: Recipe, options: BuildOptions, index: int, count: int = COUNT) -> Artifact:
    shard = BUILDERS[kind](recipe, replace(options, shard=Shard(index, count)))
    assert shard is not None
    return shard


@given(st.integers(1, 50), st.integers(0, 300), st.integers())
def test_every_row_belongs_to_one_shard_and_shards_are_of_equal_size(count: int, inputs: int, seed: int) -> None:
    sizes = Counter(owner_of(number, count, seed) for number in range(inputs))
    assert set(sizes) <= set(range(1, count + 1))
    assert max((sizes[index] for index in range(1, count + 1)), default=0) <= -(-inputs // count)
    for first in range(0, inputs - count, count):
        assert len({owner_of(number, count, seed) for number in range(first, first + count)}) == count


def test_another_seed_makes_other_shards() -> None:
    assert [owner_of(number, 4, 1) for number in range(40)] != [owner_of(number, 4, 2) for number in range(40)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2", "write I/N, such as 2/4"),
        ("", "write I/N"),
        ("a/b", "write I/N"),
        ("-1/4", "write I/N"),
        ("²/4", "write I/N"),
        ("0/4", "I goes from 1 to N"),
        ("5/4", "I goes from 1 to N"),
        ("1/0", "I goes from 1 to N"),
        ("1/999999", "N to 100,000"),
    ],
)
def test_what_is_no_shard_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Shard.parse(text)


def test_shards_are_read_as_they_are_written() -> None:
    assert Shard.parse(" 2 / 4 ") == Shard(2, 4) == Shard.parse(str(Shard(2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
def test_joined_shards_equal_the_build_in_one_piece(
    kind: str, recipe: Recipe, options: BuildOptions, tmp_path: Path
) -> None:
    whole = BUILDERS[kind](recipe, replace(options, root=tmp_path / "whole"))
    assert whole is not None
    with pytest.raises(BudgetError):  # what is finished is kept, as after a kill
        build_shard(kind, recipe, replace(options, limits=BudgetLimits(total_tokens=300)), 2)
    shards = [build_shard(kind, recipe, options, index) for index in (3, 2, 1)]
    keys = [set(shard.scan().collect()["prompt_id"]) for shard in shards]
    assert sum(map(len, keys)) == len(set.union(*keys)), "a prompt is in one shard"

    joined = join_shards(shards, options.root, max_quarantine=0.5)

    assert rows_of(joined).equals(rows_of(whole))
    assert refused_of(joined) == refused_of(whole)
    ours, theirs = joined.manifest, whole.manifest
    assert (ours.fingerprint, ours.parents, ours.models) == (theirs.fingerprint, theirs.parents, theirs.models)
    assert (ours.outcomes, ours.quarantine, ours.license) == (theirs.outcomes, theirs.quarantine, theirs.license)
    assert (ours.configuration, ours.seeds, ours.notes) == (theirs.configuration, theirs.seeds, theirs.notes)
    parts = [part["content_hash"] for part in ours.details["shards"]]
    assert parts == [shard.manifest.content_hash for shard in reversed(shards)]
    found = BUILDERS[kind](recipe, options)
    assert found is not None
    assert found.reference == joined.reference, "the whole build is finished"


def test_a_shard_is_no_default_input(recipe: Recipe, options: BuildOptions) -> None:
    shard = build_shard("responses", recipe, options, 1)
    with pytest.raises(ArtifactNotFoundError, match="no complete responses"):
        resolve("responses", options.root)
    assert resolve(shard.reference, options.root).reference == shard.reference


@pytest.mark.slow
def test_shards_that_do_not_go_together_are_refused(recipe: Recipe, options: BuildOptions, tmp_path: Path) -> None:
    first, second, third = (build_shard("responses", recipe, options, index) for index in (1, 2, 3))
    whole = build_responses(recipe, replace(options, root=tmp_path / "whole"))
    other = build_shard("responses", recipe.model_copy(update={"seed": 7}), options, 2)
    half = build_shard("responses", recipe, options, 1, 2)
    for given_, words in (
        ([first, third], "of 3 shards 2 is missing"),
        ([second], "of 3 shards 1, 3 are missing"),
        ([first, second, second, third], f"{second.reference} and {second.reference} are both shard 2/3"),
        ([first, whole], "is not a shard"),
        ([first, other, third], "shard 2/3 of another build"),
        ([first, half], "shard 1/2 of another build"),
        ([], "no shards are given"),
    ):
        before = sorted(options.root.rglob("*"))
        with pytest.raises(UsageError, match=words):
            join_shards(given_, options.root)
        assert sorted(options.root.rglob("*")) == before


def with_note(shard: Artifact, folder: Path, **noted: Any) -> Artifact:
    """Copy a shard without its quarantine, as a pull does, and change what it notes."""
    shutil.copytree(shard.folder, folder)
    shutil.rmtree(folder / "quarantine", ignore_errors=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["details"]["shard"] |= noted
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_artifact(folder)


def test_pulled_shards_are_joined_without_their_refused_rows(
    recipe: Recipe, options: BuildOptions, tmp_path: Path
) -> None:
    shards = [build_shard("responses", recipe, options, index) for index in (1, 2, 3)]
    pulled = [with_note(shard, tmp_path / f"pulled-{number}") for number, shard in enumerate(shards)]
    joined = join_shards(pulled, tmp_path / "joined", max_quarantine=0)
    assert rows_of(joined).equals(rows_of(join_shards(shards, options.root, max_quarantine=0.5)))
    assert refused_of(joined) == []
    assert "not in the quarantine" in joined.manifest.notes[-1]
    assert joined.manifest.outcomes["invalid_request"] == 1


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ({"units": [[1, 14]]}, "have 11 rows, those that were refused included, and their input asks for 14"),
        ({"units": [[1, 8]]}, "have 11 rows, those that were refused included, and their input asks for 8"),
        ({"units": [[1, 10**15]]}, "their input asks for 1000000000000000"),
        ({"units": [[2, 4], [1, 3]]}, "rows than its input asks for"),
        ({"units": [[1, 11, 5, 5]]}, "damaged at 'units.0'"),
        ({"units": "x"}, "damaged at 'units'"),
        ({"whole": {}}, "damaged at 'whole.fingerprint'"),
        ({"refused": {"4": 2}}, "some of its rows broke the schema"),
    ],
)
def test_shards_whose_rows_do_not_add_up_are_refused(
    recipe: Recipe, options: BuildOptions, tmp_path: Path, noted: dict[str, Any], words: str
) -> None:
    shards = [build_shard("responses", recipe, options, index) for index in (1, 2, 3)]
    changed = [with_note(shard, tmp_path / f"{number}", **noted) for number, shard in enumerate(shards)]
    with pytest.raises(ArtifactError, match=words):
        join_shards(changed, tmp_path / "joined")
    with pytest.raises(ArtifactNotFoundError):
        resolve("responses", tmp_path / "joined")


def test_thoughts_of_all_shards_are_counted(
    recipe: Recipe, options: BuildOptions, stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(thinks=9)
    shards = [build_shard("structured_cot", recipe, options, index) for index in (1, 2, 3)]
    used = [shard.manifest.usage.reasoning_tokens for shard in shards]
    assert all(used)
    assert join_shards(shards, options.root).manifest.usage.reasoning_tokens == sum(used)


def test_more_shards_than_rows_are_refused(recipe: Recipe, options: BuildOptions) -> None:
    with pytest.raises(UsageError, match="the input has 11 rows, too few for 12 shards"):
        build_shard("responses", recipe, options, 1, 12)
    with pytest.raises(ArtifactNotFoundError):
        resolve("responses@1.0.0", options.root)


def test_what_cannot_be_cut_is_refused(recipe: Recipe, options: BuildOptions) -> None:
    from stairdata.generators.structured_cot.plan import TeacherOptions

    part = replace(options, shard=Shard(1, 2))
    for asking in (TeacherOptions(retry_quarantined=True), TeacherOptions(batch="submit")):
        with pytest.raises(UsageError, match="--shard cuts what teachers are asked live"):
            build_structured_cot(recipe, part, asking)


NAMES = st.lists(st.integers(0, 8), min_size=1, max_size=40)


@given(NAMES, st.integers(1, 5), st.integers())
def test_groups_that_come_up_again_stay_together(names: list[int], count: int, seed: int) -> None:
    groups: dict[int, int] = {}
    units = [
        Unit(str(number), number, "", {}, groups.setdefault(name, len(groups))) for number, name in enumerate(names)
    ]
    assume(len(groups) >= count)
    plan = BuildPlan("responses", "test/1", {}, seeds={"sampling": seed})
    parts = {}
    for index in range(1, count + 1):
        build: Any = SimpleNamespace(plan=with_shard(plan, Shard(index, count)), details={})
        parts[index] = [unit.number for unit in own_units(build, units)]
        note = ShardNote.model_validate(build.details["shard"])
    found = []
    for group, size in note.runs():
        own = parts[owner_of(group, count, seed)]
        found += own[:size]
        del own[:size]
    assert found == list(range(len(names)))
    assert note.total == len(names)


@pytest.mark.parametrize(
    ("notes", "joined"),
    [
        (["3 are cut", "4 are cut", "a", "a"], ["7 are cut", "a"]),
        (["a", "3 are cut", "b", "²3 are cut"], ["a", "3 are cut", "b", "²3 are cut"]),
        (["the training data of m has 3 of the prompts"] * 2, ["the training data of m has 3 of the prompts"]),
        ([], []),
    ],
)
def test_notes_that_differ_by_a_number_are_added_up(notes: list[str], joined: list[str]) -> None:
    assert _join_notes(notes) == joined


def test_equal_counts_of_rows_add_up_and_equal_lists_of_the_whole_do_not() -> None:
    shard = {"unread": [{"model": "m", "rows": 1}], "seen": {"m": {"missing": ["a"]}}, "judged": 2}
    joined = _merge([shard, shard])
    assert joined["unread"] == [{"model": "m", "rows": 1}] * 2
    assert (joined["seen"], joined["judged"]) == ({"m": {"missing": ["a"]}}, 4)
