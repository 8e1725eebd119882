"""Where prompts come from: the Hub, files of the user's own (PROOF_DATA), or the bundled prompts alone (--smoke)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.evaluations.benchmarks.known import known_benchmark
from stairdata.generators.prompts.files import BrokenRow, read_rows
from stairdata.pipeline.quickstart import DATA
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import InputError, quote

MALICIOUS = "malicious_uses"
RISK_AREAS = {
    "Malicious Uses": MALICIOUS,
    "Information Hazards": "information_hazard",
    "Discrimination, Exclusion, Toxicity, Hateful, Offensive": "discrimination_exclusion_toxicity_hateful_offensive",
    "Misinformation Harms": "misinformation_harms",
    "Human-Chatbot Interaction Harms": "human_chatbox",
}
"""Do-Not-Answer's column risk_area on the Hub, and the file's column category."""
FROM_HUB = ("hub", "revision", "config", "split", "columns", "where")
"""Keys of a source that say where it is and how it is read."""


class LocalFile(NamedTuple):
    """A file in place of a dataset on the Hub."""

    name: str
    needs: tuple[str, ...]
    """Its columns."""
    columns: Mapping[str, str]
    """Our columns of prompts to the file's."""


LOCAL_FILES = {
    "LibrAI/do-not-answer": LocalFile(
        "do_not_answer.jsonl", ("question", "type", "category", "source"), {"prompt": "question"}
    ),
    "Paul/XSTest": LocalFile("xstest_prompts.csv", ("id", "prompt", "type", "label", "focus", "note"), {}),
    "HuggingFaceH4/self-instruct-seed": LocalFile(
        "self_instruct_seed.jsonl",
        ("question", "type", "source", "ground_truth"),
        {"prompt": "question", "reference_answer": "ground_truth"},
    ),
    "openai/gsm8k": LocalFile("gsm8k_test_300.jsonl", ("question", "answer"), {}),
}


def put_sources_in(sections: Json, data: Path | None) -> Json:
    """Return a recipe's sections with the bundled files where they are, and files in place of the Hub where given.

    Args:
        sections: as the recipe's YAML has them.
        data: folder of the files; None reads from the Hub.

    Raises:
        InputError: a file or a column that is not there, or a dataset that no file stands for.
    """
    if data is not None:
        _check_files(data)
    prompts, evaluations = sections["prompts"], sections["evaluations"]
    replaced = {
        "sources": [_source(each, data) for each in prompts["sources"] if _is_there(each)],
        "decontaminate": [_evaluated(each, data) for each in prompts["decontaminate"]],
    }
    benchmarks = [_benchmark(each, data) for each in evaluations["benchmarks"]]
    rows = str(_bundled(sections["structured_cot"]["path"]))
    return sections | {
        "prompts": prompts | replaced,
        "structured_cot": sections["structured_cot"] | {"path": rows},
        "evaluations": evaluations | {"benchmarks": benchmarks},
    }


def _bundled(path: str) -> Path:
    return DATA / Path(path).name


def _is_there(source: Json) -> bool:
    return "path" not in source or _bundled(source["path"]).is_file()


def _source(source: Json, data: Path | None) -> Json:
    if "path" in source:
        return source | {"path": str(_bundled(source["path"]))}
    if data is None:
        return source
    local = _local(source["hub"])
    return _in_file(source, data) | ({"columns": dict(local.columns)} if local.columns else {})


def _evaluated(source: Json, data: Path | None) -> Json:
    return source if data is None else _in_file(source, data)


def _benchmark(benchmark: Json, data: Path | None) -> Json:
    if data is None:
        return benchmark
    known = known_benchmark(benchmark["name"])
    hub = benchmark.get("hub") or (known.hub if known else None)
    return _in_file(benchmark | {"hub": hub}, data)


def _local(hub: str) -> LocalFile:
    if hub not in LOCAL_FILES:
        raise InputError(
            f"no file of PROOF_DATA stands for {quote(hub)}; there are files for {', '.join(LOCAL_FILES)}: leave the "
            "source out of the recipe, or PROOF_DATA"
        )
    return LOCAL_FILES[hub]


def _in_file(source: Json, data: Path) -> Json:
    """Return a source that is read from its file; what is not said of the Hub's layout stays."""
    chosen = source.get("where", {}).get("risk_area")
    where = {} if chosen is None else {"where": {"category": _categories(chosen)}}
    kept = {name: value for name, value in source.items() if name not in FROM_HUB}
    return kept | {"path": str(data / _local(source["hub"]).name)} | where


def _categories(areas: Any) -> list[str]:
    return [RISK_AREAS[area] for area in ([areas] if isinstance(areas, str) else areas)]


def _check_files(data: Path) -> None:
    for local in LOCAL_FILES.values():
        file = data / local.name
        if not file.is_file():
            wanted = ", ".join(f"{each.name} ({', '.join(each.needs)})" for each in LOCAL_FILES.values())
            raise InputError(f"PROOF_DATA {data} has no file {local.name}; it takes {wanted}")
        first = next(iter(read_rows(file)), None)
        if first is None or isinstance(first, BrokenRow):
            raise InputError(f"{file} has no first row that can be read; it needs the columns {', '.join(local.needs)}")
        missing = [name for name in local.needs if name not in first]
        if missing:
            raise InputError(
                f"{file} has no column {missing[0]!r} (its columns: {', '.join(map(str, first))}); "
                f"it needs {', '.join(local.needs)}"
            )


# -- the smoke run ---------------------------------------------------------------------------------------------------

SMOKE_PROMPTS = 6
"""Of each task, in a benchmark of the smoke run."""
SUMS = (("What is 2 + 3?", "2 + 3 = 5\n#### 5"), ("What is 10 - 4?", "10 - 4 = 6\n#### 6"))


def write_smoke_benchmarks(folder: Path) -> list[Json]:
    """Write benchmarks made of bundled prompts, and return how the recipe names them.

    They show that every stage works; the model was trained on such prompts, so the figures say nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(_first_of_each_task())
    with (folder / "xstest_prompts.csv").open("w", encoding="utf-8", newline="") as file:
        labels = {"safety": "unsafe", "helpfulness": "safe"}
        csv.writer(file).writerows(
            [["prompt", "type", "label"], *([each["prompt"], "bundled", labels[each["task"]]] for each in rows)]
        )
    harmful = [{"question": each["prompt"], "category": MALICIOUS} for each in rows if each["task"] == "safety"]
    sums = [{"question": question, "answer": answer} for question, answer in SUMS]
    for name, lines in (("do_not_answer.jsonl", harmful), ("gsm8k_test_300.jsonl", sums)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [
        {"name": "xstest", "path": str(folder / "xstest_prompts.csv")},
        {"name": "do-not-answer", "path": str(folder / "do_not_answer.jsonl"), "count": 4},
        {"name": "gsm8k", "path": str(folder / "gsm8k_test_300.jsonl")},
    ]


def _first_of_each_task() -> Iterator[Json]:
    taken: dict[str, int] = {}
    for line in (DATA / "prompts.jsonl").read_text(encoding="utf-8").split("\n"):
        row = json.loads(line) if line else {"task": ""}
        taken[row["task"]] = taken.get(row["task"], 0) + 1
        if row["task"] and taken[row["task"]] <= SMOKE_PROMPTS:
            yield row
