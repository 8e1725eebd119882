"""The published form, in and out: what both have comes back, the rest is told, what is broken is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.interop.exporting import export_thu_ml
from stairdata.interop.importing import import_thu_ml
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, validate_artifact, versions
from stairdata_schemas.errors import BuildError, InputError, QuarantineError, UsageError
from tests.stairdata.forests import Shape, artifact_of, tree_of

Element = dict[str, Any]
TEXTS = ["a", "\n\nb", "é👩🏽‍🚀", "", "<|Output|>\nx\n<|/Output|>", "z<|eot_id|>", '"\\\n']


def node(trajectory: list[str], values: list[float], *, is_terminal: bool = False, prompt: str = "Why?") -> Element:
    """A node as the published search writes it."""
    total = sum(values)
    return {
        "prompt": prompt,
        "trajectory": trajectory,
        "is_terminal": is_terminal,
        "is_valid_selected": False,
        "depth": len(trajectory),
        "visited_times": len(values),
        "reward": values[0] if is_terminal and values else None,
        "value_sum": total,
        "true_value": total / len(values) if values else None,
        "p": 1.0,
    }


def small_tree(prompt: str = "Why?") -> Element:
    return {
        "tree_size": 4,
        "0": node([], [1.0, 3.0, -1.0, 3.0], prompt=prompt),
        "0.0": node(["a"], [1.0, 3.0, 3.0], prompt=prompt),
        "0.1": node(["b"], [-1.0], is_terminal=True, prompt=prompt),
        "0.0.0": node(["a", "\n\nc<|/Output|>"], [3.0, 3.0], is_terminal=True, prompt=prompt),
    }


@st.composite
def elements(draw: st.DrawFn) -> Element:
    prompt = draw(st.sampled_from(["Why?", "Wozu 👩🏽‍🚀?", "x"]))
    found: Element = {"0": node([], draw(values()), prompt=prompt)}
    for _ in range(draw(st.integers(0, 8))):
        inner = [tag for tag, each in found.items() if not each["is_terminal"]]
        parent = draw(st.sampled_from(inner))
        tag = f"{parent}.{sum(each.rpartition('.')[0] == parent for each in found)}"
        steps = [*found[parent]["trajectory"], draw(st.sampled_from(TEXTS))]
        rewards = draw(values())
        is_terminal = draw(st.booleans()) and bool(rewards)
        found[tag] = node(
            steps, rewards[:1] * len(rewards) if is_terminal else rewards, is_terminal=is_terminal, prompt=prompt
        )
        found[tag]["p"] = draw(st.sampled_from([1.0, 0.25]))
    ordered = sorted(found, key=lambda tag: (tag.count("."), [int(part) for part in tag.split(".")]))
    return {"tree_size": len(found), **{tag: found[tag] for tag in ordered}}


def values() -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-3, 3), max_size=4)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=4), encoding="utf-8")
    return path


def take(root: Path, kind: str, *contents: Any, max_quarantine: float = 0.05) -> Artifact:
    root.mkdir(exist_ok=True)
    paths = [write(root / f"{number}.json", content) for number, content in enumerate(contents)]
    return import_thu_ml(kind, paths, BuildOptions(root=root, max_quarantine=max_quarantine))


@pytest.mark.slow
@given(forest=st.lists(elements(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_a_round_trip_brings_back_what_both_have(
    forest: list[Element], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("trip")
    artifact = take(root, "trees", forest)
    assert validate_artifact(artifact) == []
    assert export_thu_ml(artifact, root / "back.json") == len(forest)
    lost = artifact.manifest.details["not_taken_over"]
    back = json.loads((root / "back.json").read_text(encoding="utf-8"))
    assert lost or back == forest
    again = import_thu_ml("trees", [root / "back.json"], BuildOptions(root=root))
    assert again.scan().collect().equals(artifact.scan().collect()), "ours, exported and imported, is the same"
    assert set(lost) <= {"end-of-turn text other than the usual one (steps)"}


def test_by_hand(tmp_path: Path) -> None:
    artifact = take(tmp_path, "trees", [small_tree()])
    row = artifact.scan().collect().to_dicts()[0]
    assert (row["prompt"], row["prompt_id"], row["task"], row["actor"]) == (
        "Why?",
        identity.prompt_id("Why?"),
        None,
        None,
    )
    shown = ("node_id", "parent_id", "depth", "step", "is_terminal", "visits", "value_sum", "reward")
    assert [tuple(each[name] for name in shown) for each in row["nodes"]] == [
        (0, -1, 0, "", False, 4, 6.0, None),
        (1, 0, 1, "a", False, 3, 7.0, None),
        (2, 0, 1, "b", True, 1, -1.0, -1.0),
        (3, 1, 2, "\n\nc<|/Output|>", True, 2, 6.0, 3.0),
    ]
    assert all(each["tokens"] is None and each["rollouts"] == [] for each in row["nodes"])


def test_several_files_and_several_trees_of_a_prompt(tmp_path: Path) -> None:
    artifact = take(tmp_path, "trees", [small_tree(), small_tree("What?")], [], [small_tree()])
    rows = artifact.scan().select("tree_id", "prompt").collect()
    assert rows["prompt"].to_list() == ["Why?", "What?", "Why?"]
    assert rows["tree_id"].n_unique() == 3
    assert artifact.manifest.configuration["files"] == ["0.json", "1.json", "2.json"]
    assert take(tmp_path, "trees", [small_tree(), small_tree("What?")], [], [small_tree()]) == artifact


def test_pairs_of_imported_trees_are_those_of_the_published_rules(tmp_path: Path) -> None:
    take(tmp_path, "trees", [small_tree()])
    artifact = build_preference_pairs(
        Recipe.model_validate({"preference_pairs": {"min_visits": 1}}), BuildOptions(root=tmp_path)
    )
    export_thu_ml(artifact, tmp_path / "pairs.jsonl")
    (line,) = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "prompt": "Why?", "chosen": "a", "rejected": "b", "chosen_score": 7 / 3, "rejected_score": -1.0,
        "chosen_is_terminal": False, "rejected_is_terminal": True, "chosen_visited_times": 3,
        "rejected_visited_times": 1,
    }  # fmt: skip


def test_end_of_turn_text_is_taken_off_and_put_back(tmp_path: Path) -> None:
    tree = small_tree()
    tree["0.1"]["trajectory"] = ["b<|eot_id|>"]
    artifact = take(tmp_path, "trees", [tree])
    assert artifact.scan().collect()["nodes"][0][2]["step"] == "b"
    assert artifact.manifest.details == {"end_of_turn": {"closed": "", "open": "<|eot_id|>"}, "not_taken_over": {}}
    export_thu_ml(artifact, tmp_path / "back.json")
    assert json.loads((tmp_path / "back.json").read_text()) == [tree]


def test_what_can_not_be_taken_over_is_counted(tmp_path: Path) -> None:
    tree = small_tree()
    tree["tree_size"] = 9
    tree["0.7"] = tree.pop("0.1")
    tree["0.7"]["trajectory"] = ["b<|im_end|>"]
    tree["0.0"] |= {"is_valid_selected": True, "note": "x"}
    tree["0.2"] = node(["d"], [1.0], is_terminal=True)
    artifact = take(tmp_path, "trees", [tree])
    assert artifact.manifest.details["not_taken_over"] == {
        "end-of-turn text other than the usual one (steps)": 1,
        "gaps in the numbering of children (nodes)": 2,
        "is_valid_selected of a search under way (nodes)": 1,
        "tree_size that is not the number of nodes (trees)": 1,
        "unknown field 'note' (nodes)": 1,
    }


def change(tag: str, **fields: Any) -> Callable[[Element], None]:
    return lambda tree: tree[tag].update(fields)


NAN, INFINITY = float("nan"), float("inf")
BROKEN: list[tuple[str, Callable[[Element], Any]]] = [
    ("no_root", lambda tree: tree.pop("0")),
    ("orphan_node", lambda tree: tree.pop("0.0")),
    ("orphan_node", lambda tree: tree.update({"0.5.0": tree["0.0"]})),  # an unknown parent
    ("not_a_node_id", lambda tree: tree.update({"1": tree["0"]})),
    ("not_a_node_id", lambda tree: tree.update({"0.x": tree["0.0"]})),
    ("not_a_node_id", lambda tree: tree.update({"0.00": tree["0.0"]})),
    ("not_a_node_id", lambda tree: tree.update({"0.": tree["0.0"]})),
    ("wrong_type", lambda tree: tree.update({"0.1": "text"})),
    ("missing_field", lambda tree: tree["0.1"].pop("visited_times")),
    ("wrong_type", change("0.1", visited_times=1.0)),
    ("wrong_type", change("0.1", visited_times=True)),
    ("wrong_type", change("0.1", is_terminal=1)),
    ("wrong_type", change("0.1", trajectory=[1])),
    ("wrong_type", change("0", prompt=None)),
    ("blank_prompt", lambda tree: [each.update(prompt=" ") for tag, each in tree.items() if tag != "tree_size"]),
    ("one_prompt_a_tree", change("0.1", prompt="What?")),
    ("depth_is_one_below_the_parent", change("0.1", depth=2)),
    ("trajectory_continues_the_parents", change("0.0.0", trajectory=["b", "c"])),
    ("trajectory_continues_the_parents", change("0.0.0", trajectory=["a"])),
    ("terminal_nodes_have_no_children", change("0.0", is_terminal=True)),
    ("value_is_the_mean", change("0.0", true_value=2.3334)),
    ("value_is_the_mean", change("0.0", true_value=None)),
    ("value_is_the_mean", change("0.0.0", reward=2.9)),
    ("not_a_number", change("0.0", value_sum=NAN)),
    ("not_a_number", change("0.0", true_value=INFINITY)),
    ("not_a_number", change("0.1", reward=NAN)),
    ("not_a_number", change("0.1", p=-INFINITY)),
    ("not_a_number", change("0.1", value_sum=10**400)),
    ("negative_visits", change("0.1", visited_times=-1)),
    ("too_many_visits", change("0.1", visited_times=2**31)),
    ("unvisited_nodes_have_no_value", change("0.1", visited_times=0, true_value=None)),
    ("not_unicode", change("0.1", trajectory=["\ud800"])),
]


@pytest.mark.parametrize(("rule", "break_it"), BROKEN)
def test_a_broken_tree_is_refused_by_name(rule: str, break_it: Callable[[Element], Any], tmp_path: Path) -> None:
    trees = [small_tree(str(number)) for number in range(25)]
    break_it(trees[3])
    path = tmp_path / "trees.json"
    path.write_text(json.dumps(trees), encoding="utf-8")
    artifact = import_thu_ml("trees", [path], BuildOptions(root=tmp_path))
    assert artifact.manifest.quarantine == {rule: 1}
    assert artifact.manifest.rows == 24
    refused = pl.read_parquet(artifact.folder / "quarantine" / "refused.parquet").to_dicts()[0]
    assert (refused["source"], refused["row"], refused["rule"]) == ("trees.json", 4, rule)
    assert '"trajectory"' in refused["raw"]


def test_a_node_twice_in_the_file(tmp_path: Path) -> None:
    text = json.dumps([small_tree(str(number)) for number in range(25)])
    path = tmp_path / "twice.json"
    path.write_text(text.replace('"0.1":', '"0.0":', 1), encoding="utf-8")
    artifact = import_thu_ml("trees", [path], BuildOptions(root=tmp_path))
    assert artifact.manifest.quarantine == {"duplicate_node_ids": 1}


def test_rounding_of_values_is_no_fault(tmp_path: Path) -> None:
    tree = small_tree()
    tree["0.0"]["true_value"] *= 1 + 5e-7
    assert take(tmp_path, "trees", [tree]).manifest.rows == 1
    tree["0.0"]["true_value"] *= 1 + 5e-6
    with pytest.raises(QuarantineError, match="value_is_the_mean 1"):
        take(tmp_path, "trees", [tree, *(small_tree(str(number)) for number in range(9))])


@pytest.mark.parametrize("part", [0.3, 0.999])
def test_a_cut_file_leaves_nothing_behind(part: float, tmp_path: Path) -> None:
    whole = json.dumps([small_tree(str(number)) for number in range(200)], indent=4).encode()
    path = tmp_path / "cut.json"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=f"at byte {int(len(whole) * part)}: .*nothing was written"):
        import_thu_ml("trees", [path], BuildOptions(root=tmp_path / "root"))
    assert [each.name for each in (tmp_path / "root" / "trees").iterdir()] == [".lock"]
    path.write_bytes(whole)
    assert import_thu_ml("trees", [path], BuildOptions(root=tmp_path / "root")).reference == "trees@1.0.0"


def test_prompts(tmp_path: Path) -> None:
    rows = [
        {"question": "Why?", "type": "safety"},
        {"question": "How?", "type": "helpfulness", "ground_truth": "So."},
        {"question": "When?", "type": "helpfulness", "ground_truth": 4, "id": 7},
    ]
    artifact = take(tmp_path, "prompts", rows)
    assert artifact.scan().select("prompt", "task", "source", "reference_answer").collect().rows() == [
        ("Why?", "safety", "thu-ml", None),
        ("How?", "helpfulness", "thu-ml", "So."),
        ("When?", "helpfulness", "thu-ml", None),
    ]
    assert artifact.manifest.details["not_taken_over"] == {
        "field 'id' (prompts)": 1, "ground_truth that is not text (prompts)": 1,
    }  # fmt: skip
    export_thu_ml(artifact, tmp_path / "back.json")
    back = json.loads((tmp_path / "back.json").read_text())
    assert back == [*rows[:2], {"question": "When?", "type": "helpfulness"}]


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        ("not_an_object", "Why?"),
        ("missing_value", {"question": "a"}),
        ("missing_value", {"type": "safety"}),
        ("wrong_type", {"question": 1, "type": "safety"}),
        ("blank", {"question": " ", "type": "safety"}),
        ("unknown_task", {"question": "a", "type": "chat"}),
        ("unknown_task", {"question": "a", "type": ["chat"]}),
        ("duplicate_prompt", {"question": "0", "type": "safety"}),
        ("not_unicode", {"question": "\ud800", "type": "safety"}),
    ],
)
def test_a_broken_prompt_is_refused_by_name(rule: str, row: Any, tmp_path: Path) -> None:
    rows = [*({"question": str(number), "type": "safety"} for number in range(20)), row]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    artifact = import_thu_ml("prompts", [path], BuildOptions(root=tmp_path))
    assert (artifact.manifest.rows, artifact.manifest.quarantine) == (20, {rule: 1})


def test_an_import_of_nothing_leaves_no_folder_of_a_version(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="the input has no rows"):
        take(tmp_path, "trees", [])
    assert versions(tmp_path, "trees") == []


def test_prompts_say_the_tasks_of_trees(tmp_path: Path) -> None:
    prompts = take(tmp_path, "prompts", [{"question": "Why?", "type": "helpfulness"}])
    path = write(tmp_path / "trees.json", [small_tree(), small_tree("What?")])
    artifact = import_thu_ml("trees", [path], BuildOptions(root=tmp_path), "prompts")
    assert artifact.scan().collect()["task"].to_list() == ["helpfulness", None]
    assert artifact.manifest.parents == [prompts.as_parent()]
    with pytest.raises(UsageError, match=r"--prompts has to name an artifact of kind prompts, not trees@1\.0\.0"):
        import_thu_ml("trees", [path], BuildOptions(root=tmp_path), "trees")


SHAPE: Shape = [(1, 0, "a", False, 1.0, 2), (2, 0, "b", True, -3.0, 4), (3, 1, "c", True, 3.0, 4)]


def test_ours_are_exported_too(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, [tree_of(SHAPE)])
    export_thu_ml(artifact, tmp_path / "ours.json")
    (tree,) = json.loads((tmp_path / "ours.json").read_text())
    assert list(tree) == ["tree_size", "0", "0.0", "0.1", "0.0.0"]
    assert tree["0.0.0"]["trajectory"] == ["a", "c"]
    assert list(tree["0.1"]) == list(node([], []))


SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\n"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_nothing_but_json_decides_where_a_line_of_the_export_ends(separator: str, tmp_path: Path) -> None:
    text = f"{separator}a{separator}\nb{separator}"
    prompts = [{"question": f"q{text}", "type": "safety", "ground_truth": f"r{text}"}]
    export_thu_ml(take(tmp_path, "prompts", prompts), tmp_path / "prompts.json")
    assert json.loads((tmp_path / "prompts.json").read_bytes()) == prompts
    export_thu_ml(artifact_of(tmp_path, [tree_of([(1, 0, text, True, 1.0, 2)])]), tmp_path / "trees.json")
    (tree,) = json.loads((tmp_path / "trees.json").read_bytes())
    assert tree["0.0"]["trajectory"] == [text]


def test_what_has_no_published_form(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, [tree_of(SHAPE)])
    with pytest.raises(UsageError, match=r"the folder .* does not exist"):
        export_thu_ml(artifact, tmp_path / "no" / "x.json")
    with pytest.raises(UsageError, match="can't import 'pairs' from thu-ml; --kind is one of trees, prompts"):
        take(tmp_path, "pairs", [])


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = artifact_of(tmp_path, [tree_of(SHAPE)])
    target = tmp_path / "x.json"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stairdata.interop.exporting.sync_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_thu_ml(artifact, target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
