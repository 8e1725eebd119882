"""Small datasets on the tests' Hub, in the layout of the published ones: folders, formats, columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stairdata.generators.prompts.known_datasets import KNOWN
from tests.conftest import HUB_TOKEN

if TYPE_CHECKING:
    from tests.conftest import HubServer

Row = dict[str, Any]
HARMS = ("Endangering National Security", "Privacy Violation", "Economic Crime")


def put(hub: HubServer, name: str, files: Mapping[str, bytes], tag: str | None = None) -> str:
    """Make a dataset of these files, and return its commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub.control(
        tokens={HUB_TOKEN: ["write", "tester", "org", *{hub_id.partition("/")[0] for hub_id in (*KNOWN, name)}]}
    )
    api = HfApi()
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    commit = api.create_commit(name, operations, commit_message="files", repo_type="dataset")
    if tag is not None:  # stands for the commit of that name on the real Hub
        api.create_tag(name, tag=tag, revision=commit.oid, repo_type="dataset")
    return str(commit.oid)


def put_known(hub: HubServer, name: str, files: Mapping[str, bytes]) -> str:
    """Make a known dataset at the commit that recipes pin it to."""
    return put(hub, name, files, KNOWN[name].revision)


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def saferlhf_row(number: int, **changes: Any) -> Row:
    """A row of PKU-SafeRLHF as its files have it."""
    harm = {name: name == HARMS[number % 3] for name in HARMS}
    return {
        "prompt": f"How would somebody do mild harm number {number}?",
        "response_0": f"Like this, {number}.",
        "response_1": f"Better not, {number}.",
        "prompt_source": "BeaverTails",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": harm,
        "response_1_harm_category": dict.fromkeys(HARMS, False),
        "response_0_severity_level": 2,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 1,
        "response_0_sha256": "0" * 64,
        "response_1_sha256": "1" * 64,
    } | changes


SAFERLHF_CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: [data/Alpaca-7B/train.jsonl, data/Alpaca2-7B/train.jsonl]
  - split: test
    path: [data/Alpaca-7B/test.jsonl]
- config_name: alpaca-7b
  data_files:
  - split: train
    path: [data/Alpaca-7B/train.jsonl]
license: cc-by-nc-4.0
---
"""


def saferlhf(rows: int = 6) -> dict[str, bytes]:
    """The dataset's files: the second repeats the first prompt, as the real one does."""
    return {
        "README.md": SAFERLHF_CARD,
        "data/Alpaca-7B/train.jsonl": jsonl([saferlhf_row(number) for number in range(rows)]),
        "data/Alpaca2-7B/train.jsonl": jsonl([saferlhf_row(number) for number in (0, *range(rows, 2 * rows))]),
        "data/Alpaca-7B/test.jsonl": jsonl([saferlhf_row(999)]),
    }


def ultrafeedback_row(number: int, source: str = "evol_instruct", **changes: Any) -> Row:
    """A row of UltraFeedback as its files have it."""
    rating = {"Rating": "4", "Rationale": "Fine."}
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    completions = [
        {
            "annotations": dict.fromkeys(aspects, rating),
            "custom_system_prompt": "You are an assistant.",
            "model": model,
            "principle": "helpfulness",
            "response": f"{model} says {number}",
            "critique": "Good.",
            "fine-grained_score": fine,
            "overall_score": overall,
        }
        for model, overall, fine in (("alpaca-7b", 6.0, 3.0), ("gpt-4", 8.5, 4.5), ("bard", 8.5, 4.75))
    ]
    row = {
        "source": source,
        "instruction": f"Please explain thing number {number}.",
        "models": ["alpaca-7b", "gpt-4", "bard"],
        "completions": completions,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
    return row | changes


def ultrafeedback(rows: int = 4) -> dict[str, bytes]:
    """The dataset's files: no configuration, one file a collection."""
    names = ("evol_instruct", "sharegpt", "truthful_qa")
    files = {
        f"{name}.jsonl": jsonl([ultrafeedback_row(100 * place + number, name) for number in range(rows)])
        for place, name in enumerate(names)
    }
    return files | {"README.md": b"---\nlicense: mit\ntask_categories: [text-generation]\n---\n"}


JAILBREAKV_CARD = b"""---
license: mit
configs:
- config_name: JailBreakV_28K
  data_files:
  - split: mini_JailBreakV_28K
    path: JailBreakV_28K/mini_JailBreakV_28K.csv
  - split: JailBreakV_28K
    path: JailBreakV_28K/JailBreakV_28K.csv
- config_name: RedTeam_2K
  data_files:
  - split: RedTeam_2K
    path: JailBreakV_28K/RedTeam_2K.csv
---
"""


def jailbreakv_row(number: int, *, text: bool = True) -> Row:
    """A row of JailBreakV-28k as its file has it; those without text lean on a picture."""
    return {
        "id": number,
        "jailbreak_query": f'You are "Ann",\nan actor. Answer, {number}: how is mild harm done?'
        if text
        else "See picture",
        "redteam_query": f"How is mild harm {number} done?",
        "format": "Template" if text else "figstep",
        "policy": "Fraud",
        "image_path": f"llm_transfer_attack/{number}.png",
        "from": "GPT Generate",
        "selected_mini": number == 0,
        "transfer_from_llm": text,
    }


def as_csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def jailbreakv(rows: int = 5) -> dict[str, bytes]:
    """The dataset's files: configurations and splits of its own names, some rows about pictures."""
    every = [jailbreakv_row(number, text=number % 3 != 2) for number in range(rows)]
    return {
        "README.md": JAILBREAKV_CARD,
        "JailBreakV_28K/JailBreakV_28K.csv": as_csv(every),
        "JailBreakV_28K/mini_JailBreakV_28K.csv": as_csv(every[:1]),
        "JailBreakV_28K/RedTeam_2K.csv": b"id,question,policy,from\n0,Why?,Fraud,Handcraft\n",
    }


COMPLETION = """<|Reasoning_step|>
Title: Problem Analysis:
The question asks for {0}.
<|/Reasoning_step|>

<|Output|>
Final Answer:
It is {0}.
<|/Output|>"""


def stair_prompts() -> dict[str, bytes]:
    rows = [
        {"prompt": f"Question {number} of {source}?", "source": source}
        for number, source in enumerate(("PKU-SafeRLHF", "JailbreakV", "UltraFeedback"))
    ]
    card = b"---\nlicense: cc-by-nc-sa-4.0\nlanguage: [en]\n---\n"
    return {"README.md": card, "STAIR-Prompts.json": json.dumps(rows, indent=4).encode()}


def stair_sft() -> dict[str, bytes]:
    """The set's file: a sound row, one with loose white space, one that is cut."""
    sound, loose = COMPLETION.format("one"), COMPLETION.format("two").replace("\n\n", "\n") + "\n"
    cut = COMPLETION.format("three").removesuffix("<|/Output|>")
    rows = [
        {"prompt": f"Question {number}?", "answer": answer, "source": source}
        for number, (answer, source) in enumerate(
            [(sound, "PKU-SafeRLHF"), (loose, "UltraFeedback"), (cut, "UltraFeedback"), (sound, "PKU-SafeRLHF")]
        )
    ]
    rows[3]["prompt"] = rows[0]["prompt"]
    return {"README.md": b"---\nlicense: cc-by-nc-sa-4.0\n---\n", "STAIR-SFT.json": json.dumps(rows).encode()}


def put_paper(hub: HubServer) -> None:
    """Make all datasets that the paper's mixtures take from, and the published reasoning."""
    put_known(hub, "PKU-Alignment/PKU-SafeRLHF", saferlhf())
    put_known(hub, "openbmb/UltraFeedback", ultrafeedback())
    put_known(hub, "JailbreakV-28K/JailBreakV-28k", jailbreakv())
    put_known(hub, "thu-ml/STAIR-SFT", stair_sft())
