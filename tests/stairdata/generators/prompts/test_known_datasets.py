"""Datasets by name, from a Hub that speaks the real protocol to the unmodified clients, and from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stairdata.generators.prompts import hub_datasets as hub_rows
from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.prompts.known_datasets import KNOWN
from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.generators.structured_cot.from_hub import put_right
from stairdata.recipe import Recipe, load_recipe, packaged_recipe
from stairdata.runs.options import BuildOptions
from stairdata.stages import FullRecipe
from stairdata_schemas import grammar
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import InputError, RecipeError
from tests.conftest import HUB_TOKEN
from tests.stairdata.generators.prompts import hub_datasets as published

if TYPE_CHECKING:
    from tests.conftest import HubServer

PKU, FEEDBACK, JAILBREAK = "PKU-Alignment/PKU-SafeRLHF", "openbmb/UltraFeedback", "JailbreakV-28K/JailBreakV-28k"
PROMPTS, SFT = "thu-ml/STAIR-Prompts", "thu-ml/STAIR-SFT"


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_rows, "_sleep", lambda _: None)
    monkeypatch.setattr("stairdata.hub.client.LONGEST_WAIT", 0.0)


def build(root: Path, *sources: dict[str, Any], seed: int = 42, **options: Any) -> Artifact:
    recipe = Recipe.model_validate({"seed": seed, "prompts": {"sources": list(sources)}})
    return build_prompts(recipe, BuildOptions(root=root / "artifacts", **options))


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return artifact.scan().collect().to_dicts()


def refused_of(artifact: Artifact) -> list[dict[str, Any]]:
    return pl.read_parquet(artifact.folder / "quarantine" / "*.parquet").to_dicts()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_saferlhf_by_name(hub: HubServer, tmp_path: Path) -> None:
    published.put_known(hub, PKU, published.saferlhf())
    artifact = build(tmp_path, {"hub": PKU})
    rows = rows_of(artifact)
    assert [row["prompt"] for row in rows] == [published.saferlhf_row(number)["prompt"] for number in range(12)]
    assert rows[4] == {
        "prompt_id": rows[4]["prompt_id"],
        "prompt": "How would somebody do mild harm number 4?",
        "task": "safety",
        "source": PKU,
        "category": "Privacy Violation",
        "reference_answer": "Better not, 4.",
        "reference_is_safe": True,
        "twin_of": None,
    }
    (refused,) = refused_of(artifact)
    assert (refused["rule"], refused["row"], refused["detail"]) == ("duplicate_prompt", 7, f"repeats {PKU} row 1")
    assert artifact.manifest.license == "cc-by-nc-4.0"
    (source,) = artifact.manifest.details["sources"]
    assert source == {"source": PKU, "revision": KNOWN[PKU].revision, "license": "cc-by-nc-4.0", "rows": 12}
    assert validate_artifact(artifact) == []


def test_ultrafeedback_by_name(hub: HubServer, tmp_path: Path) -> None:
    published.put_known(hub, FEEDBACK, published.ultrafeedback())
    artifact = build(tmp_path, {"hub": FEEDBACK})
    rows = rows_of(artifact)
    assert [row["category"] for row in rows] == ["evol_instruct"] * 4 + ["sharegpt"] * 4 + ["truthful_qa"] * 4
    assert rows[5]["prompt"] == "Please explain thing number 101."
    assert (rows[5]["task"], rows[5]["reference_answer"], rows[5]["reference_is_safe"]) == (
        "helpfulness", "bard says 101", None,
    )  # fmt: skip
    assert artifact.manifest.configuration["sources"][0]["revision"] == KNOWN[FEEDBACK].revision


def test_jailbreakv_by_name_takes_the_attacks_that_are_text(hub: HubServer, tmp_path: Path) -> None:
    published.put_known(hub, JAILBREAK, published.jailbreakv())
    rows = rows_of(build(tmp_path, {"hub": JAILBREAK}))
    assert [row["prompt"] for row in rows] == [published.jailbreakv_row(n)["jailbreak_query"] for n in (0, 1, 3, 4)]
    assert {(row["task"], row["category"], row["reference_answer"]) for row in rows} == {("safety", "Fraud", None)}
    with_pictures = rows_of(build(tmp_path, {"hub": JAILBREAK, "where": {"selected_mini": [True, False]}}))
    assert len(with_pictures) == 5


def test_stair_prompts_by_name_at_the_head(hub: HubServer, tmp_path: Path) -> None:
    commit = published.put_known(hub, PROMPTS, published.stair_prompts())
    artifact = build(tmp_path, {"hub": PROMPTS})
    assert [(row["task"], row["category"]) for row in rows_of(artifact)] == [
        ("safety", "PKU-SafeRLHF"), ("safety", "JailbreakV"), ("helpfulness", "UltraFeedback"),
    ]  # fmt: skip
    assert artifact.manifest.details["sources"][0]["revision"] == commit
    assert artifact.manifest.license == "cc-by-nc-sa-4.0"


@pytest.mark.parametrize(
    ("name", "files", "count"),
    [
        (PKU, published.saferlhf(), 12),
        (FEEDBACK, published.ultrafeedback(), 12),
        (JAILBREAK, published.jailbreakv(), 4),
        (PROMPTS, published.stair_prompts(), 3),
    ],
    ids=[PKU, FEEDBACK, JAILBREAK, PROMPTS],
)
def test_the_same_rows_from_files_brought_by_hand(
    name: str, files: dict[str, bytes], count: int, hub: HubServer, tmp_path: Path
) -> None:
    published.put_known(hub, name, files)
    folder = write_files(tmp_path / "data", files)
    by_name, by_hand = build(tmp_path, {"hub": name}), build(tmp_path, {"path": str(folder), "like": name})
    assert rows_of(by_hand) == rows_of(by_name)
    assert len(rows_of(by_hand)) == count
    assert by_hand.manifest.license == by_name.manifest.license == KNOWN[name].license


def test_one_file_of_a_known_set_and_the_code_s_own_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(published.jsonl([published.saferlhf_row(1)]))
    assert rows_of(build(tmp_path, {"path": str(path), "like": PKU}))[0]["reference_answer"] == "Better not, 1."
    path = tmp_path / "examples.json"
    path.write_text(json.dumps([{"question": "Why?", "type": "helpfulness", "ground_truth": "So."}]))
    (row,) = rows_of(build(tmp_path, {"path": str(path), "like": PROMPTS}))
    assert (row["prompt"], row["task"], row["reference_answer"]) == ("Why?", "helpfulness", "So.")


def test_a_form_that_is_not_the_known_one(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(published.jsonl([published.ultrafeedback_row(1)]))
    with pytest.raises(InputError, match=r"no column prompt .*its columns: source, instr.*layout is not that of PKU"):
        build(tmp_path, {"path": str(path), "like": PKU})
    with pytest.raises(RecipeError, match="did you mean 'PKU-Alignment/PKU-SafeRLHF'"):
        build(tmp_path, {"path": str(path), "like": "PKU-Alignment/SafeRLHF"})


ODD_ROWS = [
    (published.saferlhf_row(1, safer_response_id=None), ("How would somebody do mild harm number 1?", None, None)),
    (published.saferlhf_row(1, safer_response_id=7), ("How would somebody do mild harm number 1?", None, None)),
    (published.saferlhf_row(1, response_0_harm_category=None), None),
]


@pytest.mark.parametrize(("row", "expected"), ODD_ROWS)
def test_saferlhf_rows_without_a_safer_response(row: dict[str, Any], expected: Any) -> None:
    mapped = KNOWN[PKU].mapped(row)
    if expected is None:
        assert mapped["category"] is None
    else:
        assert (mapped["prompt"], mapped["reference_answer"], mapped["reference_is_safe"]) == expected


@pytest.mark.parametrize("completions", [None, [], [None], [{"response": "", "overall_score": 9}], "text"])
def test_ultrafeedback_rows_without_an_answer(completions: Any) -> None:
    assert KNOWN[FEEDBACK].mapped({"instruction": "Why?", "completions": completions})["reference_answer"] is None


@pytest.mark.parametrize("score", ["N/A", float("nan"), "nan", None, [9], {}])
def test_scores_that_are_no_numbers_lose(score: Any) -> None:
    completions = [{"response": "a", "overall_score": score}, {"response": "b", "overall_score": "1"}]
    assert KNOWN[FEEDBACK].mapped({"completions": completions})["reference_answer"] == "b"


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video"])
def test_pictures_and_sound_on_the_hub_that_nobody_asked_for_are_not_decoded(
    kind: str, hub: HubServer, tmp_path: Path
) -> None:
    features = {"prompt": {"dtype": "string", "_type": "Value"}, "media": {"_type": kind}}
    path = tmp_path / "q.parquet"
    media = pa.array([{"bytes": b"neither picture nor sound", "path": None}])
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table({"prompt": ["Why?"], "media": media}).replace_schema_metadata(told), path)
    published.put(hub, "org/media", {"data/train-00000-of-00001.parquet": path.read_bytes()})
    artifact = build(tmp_path, {"hub": "org/media", "task": "safety"})
    assert [row["prompt"] for row in rows_of(artifact)] == ["Why?"]


@pytest.mark.parametrize("on_hub", [False, True])
@pytest.mark.parametrize("wanted", [1, "harmful", "1", [1, "HARMFUL"]])
def test_classes_by_number_are_taken_by_name(on_hub: bool, wanted: Any, hub: HubServer, tmp_path: Path) -> None:
    label = {"names": ["harmless", "harmful"], "_type": "ClassLabel"}
    features = {"prompt": {"dtype": "string", "_type": "Value"}, "label": label}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"prompt": ["Why?", "How?"], "label": [0, 1]}).replace_schema_metadata(told)
    path = tmp_path / "q.parquet"
    pq.write_table(table, path)
    place = {"path": str(path)}
    if on_hub:
        published.put(hub, "org/labels", {"data/train-00000-of-00001.parquet": path.read_bytes()})
        place = {"hub": "org/labels"}
    source = {**place, "task": "safety", "columns": {"category": "label"}}
    assert [row["category"] for row in rows_of(build(tmp_path, source))] == ["harmless", "harmful"]
    assert [row["category"] for row in rows_of(build(tmp_path, source | {"where": {"label": wanted}}))] == ["harmful"]


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n"])
def test_published_reasoning_with_other_line_ends(ends: str) -> None:
    text = grammar.render([grammar.Step("Plan:", "Heat.\nWait.")], "Use a pot.\nNow.")
    assert put_right(text.replace("\n", ends)) == text


@pytest.mark.parametrize(
    ("completions", "answer"),
    [
        ({"response": ["a", "b"], "overall_score": ["nan", "1"]}, "b"),
        ({"response": ["a", "b", None], "overall_score": [7, 2]}, "a"),
        ({"response": ["a", "b"], "overall_score": [7, 7], "fine-grained_score": [1, 2], "model": "m"}, "b"),
        ({"response": [], "overall_score": []}, None),
        ({"response": "text"}, None),
    ],
)
def test_ultrafeedback_s_completions_as_a_dict_of_lists(completions: Any, answer: str | None) -> None:
    assert KNOWN[FEEDBACK].mapped({"completions": completions})["reference_answer"] == answer


@pytest.mark.parametrize(("safer", "answer"), [("1", "b"), ("0.0", "a"), (1.0, "b"), (True, None), ("2", None)])
def test_saferlhf_s_numbers_as_csv_writes_them(safer: object, answer: str | None) -> None:
    row = {"response_0": "a", "response_1": "b", "safer_response_id": safer}
    assert KNOWN[PKU].mapped(row)["reference_answer"] == answer


def test_any_dataset_with_a_mapping_and_nested_columns(hub: HubServer, tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [{"from": "human", "value": f"Why {n}?"}, {"from": "gpt", "value": "So."}],
            "meta": {"lang": "en"},
        }
        for n in range(3)
    ] + [{"conversations": [{"from": "human", "value": "Warum?"}], "meta": {"lang": "de"}}]
    card = b"---\nlicense: mit\n---\n"
    commit = published.put(hub, "org/talks", {"data/train.jsonl": published.jsonl(rows), "README.md": card})
    columns = {"prompt": "conversations.0.value", "reference_answer": "conversations.1.value"}
    source = {"hub": "org/talks", "task": "helpfulness", "columns": columns, "where": {"meta.lang": "EN"}}
    artifact = build(tmp_path, source)
    assert [(row["prompt"], row["reference_answer"], row["source"]) for row in rows_of(artifact)] == [
        (f"Why {n}?", "So.", "org/talks") for n in range(3)
    ]
    assert artifact.manifest.configuration["sources"][0]["revision"] == commit
    assert artifact.manifest.license == "mit"


def test_a_parquet_dataset_by_a_tag(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pl.DataFrame({"question": ["Why?"], "type": ["safety"]}).write_parquet(path)
    commit = published.put(hub, "org/q", {"data/train-00000-of-00001.parquet": path.read_bytes()}, tag="v1")
    source = {"hub": "org/q", "revision": "v1", "columns": {"prompt": "question", "task": "type"}}
    artifact = build(tmp_path, source)
    assert rows_of(artifact)[0]["prompt"] == "Why?"
    assert artifact.manifest.configuration["sources"][0]["revision"] == commit


# -- the Hub in bad weather -----------------------------------------------------------------------------------------


def many(hub: HubServer) -> list[str]:
    """A dataset of three files, and its prompts in order."""
    files = {
        f"part-{part}.jsonl": published.jsonl(
            [{"prompt": f"Question {part}-{n}: {'x' * 900}", "task": "safety"} for n in range(30)]
        )
        for part in range(3)
    }
    published.put(hub, "org/many", files)
    return [f"Question {part}-{n}: {'x' * 900}" for part in range(3) for n in range(30)]


@pytest.mark.parametrize(
    "fault", ["error", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("drop", "lost", "cut"))]
)
def test_rows_come_once_each_in_order_whatever_request_fails(fault: str, hub: HubServer, tmp_path: Path) -> None:
    expected = many(hub)
    hub.control(recount=True)
    build(tmp_path / "calm", {"hub": "org/many"})
    requests = len(hub.requests)
    assert requests > 5
    for number in range(requests):
        hub.control(recount=True)
        hub.control(faults={str(number): fault})
        artifact = build(tmp_path / f"{number}", {"hub": "org/many"})
        assert [row["prompt"] for row in rows_of(artifact)] == expected, number


def test_a_hub_that_stays_away_leaves_nothing_behind(hub: HubServer, tmp_path: Path) -> None:
    many(hub)
    hub.control(recount=True)
    build(tmp_path / "calm", {"hub": "org/many"})
    requests = len(hub.requests)
    for first in range(0, requests, 3):
        hub.control(recount=True)
        hub.control(outage=[first, "drop"])
        with pytest.raises(InputError, match="the Hub can't be reached for 'org/many'"):
            build(tmp_path / f"{first}", {"hub": "org/many"})
        assert not list(tmp_path.glob(f"{first}/**/data/*"))
    hub.control(recount=True)
    assert build(tmp_path / "0", {"hub": "org/many"}).reference == "prompts@1.0.0"


def test_where_the_hub_can_not_be_reached_the_message_says_what_to_bring(hub: HubServer, tmp_path: Path) -> None:
    hub.control(outage=[0, "drop"])
    with pytest.raises(InputError) as caught:
        build(tmp_path, {"hub": FEEDBACK})
    words = str(caught.value)
    for part in (
        "the Hub can't be reached for 'openbmb/UltraFeedback'",
        f"hf download openbmb/UltraFeedback --repo-type dataset --revision {KNOWN[FEEDBACK].revision}",
        "--include '*.jsonl' --local-dir data/UltraFeedback",
        "{path: data/UltraFeedback, like: openbmb/UltraFeedback}",
    ):
        assert part in words


def test_offline_by_wish(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"path: data/STAIR-Prompts, like: thu-ml/STAIR-Prompts"):
        build(tmp_path, {"hub": PROMPTS})


def test_a_gated_dataset_says_accept_the_terms(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    published.put(hub, "org/q", {"q.jsonl": published.jsonl([{"prompt": "Why?", "task": "safety"}])})
    HfApi().update_repo_settings("org/q", repo_type="dataset", gated="manual")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"'org/q' is gated: accept its terms on http.*/datasets/org/q, set HF_TOKEN"):
        build(tmp_path, {"hub": "org/q"})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": "org/nothing"}, r"no dataset 'org/nothing' on the Hub .*HF_TOKEN"),
        ({"hub": "org/q", "revision": "v9"}, "'org/q' has no revision 'v9'; name another"),
        ({"hub": "org/q", "split": "tset"}, r"'org/q' can't be read .*tset.* check id, revision, config and split"),
        ({"hub": "org/q", "config": "other"}, r"'org/q' can't be read .*other"),
        ({"hub": "org/q", "columns": {"prompt": "a.b"}}, r"no column 'a\.b' \(its columns: prompt, task\)"),
        ({"hub": "org/q", "where": {"lang": "en"}}, r"no column 'lang' for `where:`"),
        ({"hub": "org/q", "where": {"task": "help"}}, r"no row where .*'task': 'help'"),
    ],
)
def test_a_dataset_that_is_not_as_the_recipe_says(
    source: dict[str, Any], message: str, hub: HubServer, tmp_path: Path
) -> None:
    published.put(hub, "org/q", {"q.jsonl": published.jsonl([{"prompt": "Why?", "task": "safety"}])})
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, source)
    assert HUB_TOKEN not in str(caught.value)


# -- the paper's mixtures, and the published reasoning --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tasks"), [("stair-50k", (25000, 25000)), ("stair-20k", (10000, 10000)), ("one-round", (25000, 25000))]
)
def test_the_paper_s_mixtures_come_along(name: str, tasks: tuple[int, int]) -> None:
    recipe = load_recipe(FullRecipe, packaged_recipe(Path(name)), [])
    asked = {source.hub: source.count or 0 for source in recipe.prompts.sources}
    assert (sum(asked.values()) - asked[FEEDBACK], asked[FEEDBACK]) == tasks
    assert all(source.revision == KNOWN[source.hub or ""].revision for source in recipe.prompts.sources)


def test_a_mixture_builds_in_small(hub: HubServer, tmp_path: Path) -> None:
    for name, files in (
        (PKU, published.saferlhf()),
        (FEEDBACK, published.ultrafeedback()),
        (JAILBREAK, published.jailbreakv()),
    ):
        published.put_known(hub, name, files)
    recipe = load_recipe(Recipe, packaged_recipe(Path("stair-50k")), [])
    artifact = build_prompts(recipe, BuildOptions(root=tmp_path))
    assert [each["rows"] for each in artifact.manifest.details["sources"]] == [12, 4, 12]
    assert artifact.manifest.notes[0].startswith(f"{PKU} gave 12 of the 22000 prompts asked for")
    assert artifact.manifest.license == "cc-by-nc-4.0"


def test_no_such_recipe() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'stair-5k'.*dpo, .*prm, .*sft, stair-20k, stair-50k"):
        packaged_recipe(Path("stair-5k"))
    assert packaged_recipe(Path("recipe.yaml")) == Path("recipe.yaml")
    assert packaged_recipe(None) is None


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_published_reasoning_as_structured_cot(by_hand: bool, hub: HubServer, tmp_path: Path) -> None:
    files = published.stair_sft()
    published.put_known(hub, SFT, files)
    folder = write_files(tmp_path / "data", files)
    section = {"path": str(folder / "STAIR-SFT.json"), "like": SFT} if by_hand else {"hub": SFT}
    recipe = Recipe.model_validate({"structured_cot": section})
    artifact = build_structured_cot(recipe, BuildOptions(root=tmp_path / "artifacts", max_quarantine=0.5))
    assert artifact is not None
    rows = rows_of(artifact)
    assert [row["completion"] for row in rows] == [published.COMPLETION.format(word) for word in ("one", "two")]
    assert [(row["task"], row["teacher"]) for row in rows] == [("safety", "gpt-4o"), ("helpfulness", "gpt-4o")]
    assert artifact.manifest.quarantine == {"duplicate_prompt": 1, "grammar_unclosed_block": 1}
    assert artifact.manifest.notes[1].startswith("1 rows had other white space")
    assert artifact.manifest.license == "cc-by-nc-sa-4.0"
    assert validate_artifact(artifact) == []


@pytest.mark.parametrize("section", [{"hub": "org/other"}, {"like": SFT}, {"path": "x.json", "like": PKU}])
def test_other_sets_of_reasoning_are_not_known(section: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=SFT):
        build_structured_cot(Recipe.model_validate({"structured_cot": section}), BuildOptions(root=tmp_path))
