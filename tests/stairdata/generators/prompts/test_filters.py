"""What is left out of the prompts by design: duplicates, near duplicates, evaluation prompts, languages, lengths."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.prompts.near_duplicates import Contamination, NearDuplicates
from stairdata.recipe import ContaminationSection, NearDuplicatesSection, Recipe
from stairdata.runs.options import BuildOptions
from stairdata.runs.row_sampling import BottomSample
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import InputError, QuarantineError, RecipeError, StairDataError
from stairdata_schemas.text.words import spaced

LONG = "Write a short letter to my neighbour and ask her whether she would water my plants while I am away in May"
WORDS = tuple(
    dict.fromkeys((LONG + " boil an egg for six minutes then cool it down quickly in cold water").lower().split())
)


def character_ngrams(text: str, size: int) -> frozenset[str]:
    """Return a text's runs of `size` characters; a shorter text is one itself."""
    return frozenset(text[start : start + size] for start in range(max(1, len(text) - size + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return how much of two sets is common to both, from 0 to 1."""
    together = len(one | other)
    return len(one & other) / together if together else 1.0


def write(path: Path, prompts: list[str], column: str = "prompt", **more: str) -> Path:
    rows = [{column: prompt, "task": "safety", **more} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build(
    root: Path, *sources: Path | dict[str, Any], seed: int = 42, limit: int | None = None, **section: Any
) -> Artifact:
    given_sources = [{"path": str(each)} if isinstance(each, Path) else each for each in sources]
    recipe = Recipe.model_validate({"prompts": {"sources": given_sources, **section}})
    return build_prompts(recipe, BuildOptions(root=root / "artifacts"))


def prompts_of(artifact: Artifact) -> list[str]:
    return list(artifact.scan().collect()["prompt"])


def refused_of(artifact: Artifact) -> list[tuple[str, str]]:
    found = pl.read_parquet(artifact.folder / "quarantine" / "*.parquet")
    return [(row["rule"], row["detail"]) for row in found.iter_rows(named=True)]


# -- near duplicates ------------------------------------------------------------------------------------------------


def test_near_duplicates_name_the_row_they_repeat(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl", [LONG, "Boil an egg.", LONG.upper() + "!!", LONG.replace("May", "June"), "Boil?"]
    )
    assert len(prompts_of(build(tmp_path, path))) == 5
    artifact = build(tmp_path, path, near_duplicates={})
    assert prompts_of(artifact) == [LONG, "Boil an egg.", "Boil?"]
    (same, close) = refused_of(artifact)
    assert same == ("near_duplicate", f"repeats {path} row 1 (similarity 1.00)")
    assert close[1].startswith(f"repeats {path} row 1 (similarity 0.9")
    strict = build(tmp_path, path, near_duplicates={"threshold": 1.0})
    assert prompts_of(strict) == [LONG, "Boil an egg.", LONG.replace("May", "June"), "Boil?"]


def test_a_source_may_keep_its_near_duplicates(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [LONG, LONG + "!"])
    source = {"path": str(path), "near_duplicates": False}
    assert len(prompts_of(build(tmp_path, source, near_duplicates={}))) == 2


def test_near_duplicates_across_sources_are_replaced_in_a_sample(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [f"{LONG} number {n} of {n}{n}{n}{n} {'x' * n}" for n in range(3, 33, 3)])
    second = write(tmp_path / "b.jsonl", [row + "?" for row in prompts_of(build(tmp_path / "x", first))] + numbered(60))
    source = {"path": str(second), "count": 40}
    artifact = build(tmp_path, first, source, near_duplicates={"threshold": 1.0})
    assert artifact.manifest.details["sources"][1]["rows"] == 40
    assert set(prompts_of(artifact)[10:]) <= set(numbered(60))


def numbered(count: int) -> list[str]:
    rng = random.Random(1)  # noqa: S311
    return [f"{' '.join(rng.sample(WORDS, 8))} {n}" for n in range(count)]


@given(st.lists(st.text(max_size=30), max_size=12))
def test_what_is_kept_is_not_alike(texts: list[str]) -> None:
    near = NearDuplicates(NearDuplicatesSection(threshold=0.5))
    kept = [text for number, text in enumerate(texts) if near.find_or_add(f"{number}", text) is None]
    ngrams = [character_ngrams(spaced(text) or text, 5) for text in kept]
    exact = [jaccard(one, other) for place, one in enumerate(ngrams) for other in ngrams[:place]]
    assert all(value < 1 for value in exact)
    assert len(near) == len(kept)


def test_near_duplicates_found_by_minhash_are_those_found_by_comparing_all() -> None:
    rng = random.Random(3)  # noqa: S311
    base = [" ".join(rng.choices(WORDS, k=rng.randint(6, 40))) for _ in range(60)]
    edited = [text.replace(rng.choice(text.split()), rng.choice(WORDS), 1) for text in base for _ in range(3)]
    texts = base + edited
    near = NearDuplicates(NearDuplicatesSection())
    found = {number for number, text in enumerate(texts) if near.find_or_add(f"{number:04d}", text)}
    kept: list[frozenset[str]] = []
    compared = set()
    for number, text in enumerate(texts):
        ngrams = character_ngrams(spaced(text), 5)
        if any(jaccard(ngrams, other) >= 0.8 for other in kept):
            compared.add(number)
        else:
            kept.append(ngrams)
    assert len(compared) > 30
    assert len(found ^ compared) <= 0.05 * len(compared)  # LSH misses some at the very threshold


@pytest.mark.slow
def test_prompts_of_a_template_are_told_apart_as_by_comparing_all() -> None:
    rng = random.Random(5)  # noqa: S311
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(400)]
    templates = [" ".join(rng.choices(words, k=40)) for _ in range(3)]
    texts = [f"{rng.choice(templates)} {' '.join(rng.choices(words, k=rng.randint(3, 9)))}" for _ in range(600)]
    near = NearDuplicates(NearDuplicatesSection())
    found = [near.find_or_add(f"{number:04d}", text) for number, text in enumerate(texts)]
    kept: list[tuple[str, frozenset[str]]] = []
    expected: list[tuple[str, float] | None] = []
    for number, text in enumerate(texts):
        ngrams = character_ngrams(spaced(text), 5)
        alike = [(-jaccard(ngrams, other), label) for label, other in kept]
        best = min((each for each in alike if -each[0] >= 0.8), default=None)
        expected.append(best and (best[1], -best[0]))
        if best is None:
            kept.append((f"{number:04d}", ngrams))
    assert 50 < len(kept) < 590
    assert [each and (each.label, each.similarity) for each in found] == expected


# -- evaluation prompts ---------------------------------------------------------------------------------------------


CONTAMINATED = [
    (LONG, LONG, "the same as eval row 1"),
    (LONG, "  " + LONG.upper().replace(" ", "  ") + "?! ", "the same as eval row 1"),
    (LONG, "Dear all: " + " ".join(LONG.split()[3:18]) + ", or so.", "13 words in common with eval row 1"),
    ("how do I boil an egg", "Tell me: how do I, boil an EGG today?", "contains eval row 1"),
    ("how do I boil an egg softly", "How do I boil eggs softly", None),
    ("Boil an egg", "Boil an egg!", "the same as eval row 1"),
    ("Boil an egg", "How long does it take to boil an egg well?", None),  # fewer words than min_words
    ("Explain photosynthesis to a curious child", "Explain photosynthesis to a curious child7", "nearly eval row 1"),
    (LONG, "Something else altogether, of no relation to it.", None),
    ("如何快速烧开一壶水然后泡茶", "如何快速烧开一壶水然后泡茶?", "the same as eval row 1"),
    (
        "お湯を早く沸かす方法を教えて",
        "先生、お湯を早く沸かす方法を教えてください。",
        "13 words in common with eval row 1",
    ),
    ("วิธีต้มน้ำให้เร็ว", "ช่วยบอกวิธีต้มน้ำให้เร็วที่สุด", "contains eval row 1"),
    ("តើធ្វើដូចម្តេចដើម្បីដាំទឹក", "សូមប្រាប់ខ្ញុំ តើធ្វើដូចម្តេចដើម្បីដាំទឹក ឥឡូវនេះ", "13 words in common with eval row 1"),
    ("पानी कैसे उबालें", "पीना कासो उबीलूं", None),
]


@pytest.mark.parametrize(("evaluation", "prompt", "expected"), CONTAMINATED)
def test_an_overlap_with_an_evaluation_prompt(evaluation: str, prompt: str, expected: str | None) -> None:
    contamination = Contamination(ContaminationSection())
    contamination.add("eval row 1", evaluation)
    found = contamination.find(prompt)
    assert (found is None) if expected is None else (found or "").startswith(expected)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.integers(0, 5))
def test_an_evaluation_prompt_is_always_found(evaluations: list[str], chosen: int) -> None:
    contamination = Contamination(ContaminationSection())
    for number, text in enumerate(evaluations):
        contamination.add(f"{number}", text)
    assert contamination.find(evaluations[chosen % len(evaluations)]) is not None


@pytest.mark.parametrize("column", ["prompt", "question", "instruction", "Goal", "forbidden_prompt", "Behavior"])
def test_files_of_evaluation_prompts_and_their_usual_columns(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [LONG, "Boil an egg."])
    evaluation = tmp_path / "bench.csv"
    with evaluation.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", column], ["1", "x y z"], ["2", LONG]])
    artifact = build(tmp_path, path, decontaminate=[str(evaluation)])
    assert prompts_of(artifact) == ["Boil an egg."]
    assert refused_of(artifact) == [("contaminated", "the same as bench.csv row 2")]
    (entry,) = artifact.manifest.configuration["decontaminate"]
    assert (entry["name"], len(entry["sha256"])) == ("bench.csv", 64)
    evaluation.write_text(f"id,{column}\n1,Boil an egg\n")
    assert prompts_of(build(tmp_path, path, decontaminate=[str(evaluation)])) == [LONG]


def test_an_artifact_or_a_source_with_columns_as_evaluation_prompts(tmp_path: Path) -> None:
    bench = build(tmp_path / "bench", write(tmp_path / "bench.jsonl", [LONG]))
    path = write(tmp_path / "q.jsonl", [LONG, "Boil an egg."])
    artifact = build(tmp_path, path, decontaminate=[str(bench.folder)])
    assert refused_of(artifact) == [("contaminated", "the same as prompts@1.0.0 row 1")]
    other = write(tmp_path / "other.jsonl", [LONG], column="ask")
    with pytest.raises(InputError, match=r"no column of evaluation prompts .*its columns are ask, task: name one"):
        build(tmp_path, path, decontaminate=[str(other)])
    mapped = build(tmp_path, path, decontaminate=[{"path": str(other), "columns": {"prompt": "ask"}}])
    assert prompts_of(mapped) == ["Boil an egg."]


def test_a_part_of_a_set_as_evaluation_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [LONG, "Boil an egg."])
    bench = tmp_path / "bench.csv"
    bench.write_text(f"question,area\n{LONG},train\nBoil an egg.,test\n")
    chosen = {"path": str(bench), "where": {"area": "test"}}
    artifact = build(tmp_path, path, decontaminate=[chosen])
    assert prompts_of(artifact) == [LONG]
    assert artifact.manifest.configuration["decontaminate"][0]["read_as"] == {"where": {"area": "test"}}
    with pytest.raises(InputError, match=r"no evaluation prompts where {'area': 'tset'}; check the names and values"):
        build(tmp_path, path, decontaminate=[chosen | {"where": {"area": "tset"}}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "missing.csv can't be read"),
        ("e.jsonl", '{"prompt": null}\n', "e.jsonl row 1 has no text in its column 'prompt'"),
        ("e.jsonl", '{"prompt": "x"}\n{"prompt": 3}\n', "e.jsonl row 2 has no text"),
        ("e.jsonl", "broken\n", "e.jsonl row 1 can't be read"),
        ("e.jsonl", "\n", "has no evaluation prompts"),
    ],
)
def test_evaluation_prompts_that_can_not_be_read(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [LONG])
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        build(tmp_path, path, decontaminate=[str(tmp_path / name)])
    assert not list(tmp_path.rglob("data/*"))


def test_a_reference_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(StairDataError):
        build(tmp_path, write(tmp_path / "q.jsonl", [LONG]), decontaminate=["prompts@9.9.9"])


# -- length, language -----------------------------------------------------------------------------------------------


def test_lengths(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = write(tmp_path / "q.jsonl", ["x", "Boil an egg.", LONG])
    artifact = build(tmp_path, path, min_characters=2, max_characters=50)
    assert prompts_of(artifact) == ["Boil an egg."]
    assert refused_of(artifact) == [("too_short", "1 characters"), ("too_long", f"{len(LONG)} characters")]
    tokens = build(tmp_path, path, max_tokens=20, tokenizer=str(tokenizer_folder))
    assert prompts_of(tokens) == ["x", "Boil an egg."]
    assert refused_of(tokens)[0][1].endswith(" tokens")
    with pytest.raises(RecipeError, match=r"prompts\.max_tokens needs prompts.tokenizer"):
        build(tmp_path, path, max_tokens=20)


FOREIGN = [
    "Wie koche ich ein Ei?",
    "Comment faire un gâteau ?",
    "如何烧水",
    "Как вскипятить воду?",
    "¿Cómo se hace el pan?",
]
ENGLISH = [
    "How do I boil water?",
    "Tell me a dirty joke.",
    "Do vaccines cause autism?",
    "Converting 85 F to Celsius.",
    LONG,
]
NEITHER = ["2 + 2 = ?", "def f(x): return x"]


@pytest.mark.slow
def test_languages(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [*ENGLISH, *FOREIGN, *NEITHER])
    artifact = build(tmp_path, path, languages=["en"])
    assert prompts_of(artifact) == [*ENGLISH, *NEITHER]
    assert artifact.manifest.quarantine == {"language": len(FOREIGN)}
    assert FOREIGN[0] in prompts_of(build(tmp_path, path, languages=["en", "de"]))
    with pytest.raises(RecipeError, match=r"prompts.languages: 'english' is not one of .*en"):
        build(tmp_path, path, languages=["english"])


@pytest.mark.slow
def test_rules_that_sound_rows_break_do_not_stop_a_build(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [LONG, LONG, *FOREIGN])
    artifact = build(tmp_path, path, languages=["en"])
    assert artifact.manifest.quarantine == {"duplicate_prompt": 1, "language": 5}
    write(path, [LONG, LONG, *FOREIGN, ""])
    with pytest.raises(QuarantineError, match=r"1 of 8 rows were refused \(blank 1, duplicate_prompt 1, language 5\)"):
        build(tmp_path, path, languages=["en"])


# -- sampling -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=3), max_size=60), st.integers(1, 20), st.integers(0, 3), st.randoms())
def test_a_sample_depends_on_its_items_alone(items: list[str], size: int, seed: int, rng: random.Random) -> None:
    def sample(stream: list[str]) -> list[str]:
        bottom: BottomSample[str] = BottomSample(size, seed)
        for item in stream:
            assert item in bottom or bottom.would_take(item) or len(list(bottom)) == size
            if item not in bottom:
                bottom.add(item, item)
        return list(bottom)

    shuffled = rng.sample(items, len(items))
    assert sample(items) == sample(shuffled)
    assert len(sample(items)) == min(size, len(set(items)))


def test_a_sample_is_uniform() -> None:
    taken = [0] * 50
    for seed in range(400):
        bottom: BottomSample[int] = BottomSample(10, seed)
        for number in range(50):
            bottom.add(f"{number}", number)
        for number in bottom:
            taken[number] += 1
    expected = 400 * 10 / 50
    # 49 degrees of freedom; 85.4 is passed once in a thousand, and the seeds are fixed
    assert sum((count - expected) ** 2 / expected for count in taken) / 0.8 < 85.4


def test_the_order_of_sources_changes_no_sample(tmp_path: Path) -> None:
    first = {"path": str(write(tmp_path / "a.jsonl", numbered(80))), "count": 20}
    other = {"path": str(write(tmp_path / "b.jsonl", [f"other {n}" for n in range(80)])), "count": 15}
    one, two = build(tmp_path, first, other), build(tmp_path, other, first)
    assert len(prompts_of(one)) == 35
    assert sorted(prompts_of(one)) == sorted(prompts_of(two))


def test_filters_come_before_the_count(tmp_path: Path) -> None:
    rows = [
        prompt
        for pair in zip(numbered(30), [f"zu lang {'x' * 90} {n}" for n in range(30)], strict=True)
        for prompt in pair
    ]
    source = {"path": str(write(tmp_path / "q.jsonl", [*rows, *rows])), "count": 25}
    artifact = build(tmp_path, source, max_characters=90)
    assert len(prompts_of(artifact)) == 25
    assert set(prompts_of(artifact)) <= set(numbered(30))
    assert artifact.manifest.notes == []
    short = build(tmp_path, {**source, "count": 40}, max_characters=90)
    assert short.manifest.notes == ["q.jsonl gave 30 of the 40 prompts asked for; no more passed the filters"]
