"""Every command in the README, in AGENTS.md and in docs/ runs: here, or where the table below says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from stairdata.stages import parse_full_recipe
from tests.stairdata.generators.prompts import hub_datasets

if TYPE_CHECKING:
    from tests.conftest import HubServer, StubServer

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
"""`tests/test_tutorials.py` runs them."""
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *DOCS]
RUN_ELSEWHERE = {
    "make test": (".ci/run", "make test"),
    "make quickstart": ("tests/test_quickstart.py", '"quickstart", "--smoke"'),
}
SERVED = "stairdata serve "
"""Commands that run until they are ended: `test_servers_of_a_page` does that."""
SERVERS = r"http://127\.0\.0\.1:800[01]/v1"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_commands_that_run_elsewhere_are_there() -> None:
    listed = {command for page in PAGES for command in commands(page)}
    for command, (place, words) in RUN_ELSEWHERE.items():
        assert command in listed
        assert words in (ROOT / place).read_text(encoding="utf-8")


def test_folders_named_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## Folders")[1].split("```")[1]
    for line in tree.strip().splitlines():
        assert (ROOT / line.split()[0]).is_dir(), line


def test_pages_that_come_from_the_code_are_as_it_would_write_them() -> None:
    specification = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    for name, write in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == write(), "run: python docs/generate.py"


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if target.startswith("https://"):
            continue
        there = page.parent / file if file else page
        assert there.is_file(), target
        if not heading:
            continue
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, target


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_figures_of_the_proof_are_those_that_it_wrote(page: str) -> None:
    written = (ROOT / "docs" / "proof-results.md").read_text(encoding="utf-8")
    table = re.findall(
        r"^\|.*\|$", (ROOT / page).read_text(encoding="utf-8").split("DPO 3 |")[1].split("\n\n")[0], re.M
    )
    cells = [cell.strip() for line in table for cell in line.strip("|").split("|")[1:]]
    figures = [cell for cell in cells if re.match(r"\d", cell)]
    assert len(figures) >= 20
    assert [figure for figure in figures if figure not in written] == []


def test_the_readme_lists_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme.split("## All pages")[1].split("##")[0]
    pages = [page.relative_to(ROOT).as_posix() for page in (*DOCS, *TUTORIALS)]
    assert [page for page in pages if f"({page})" not in listed] == []
    assert "(AGENTS.md)" in listed


def test_agents_are_told_of_every_command_by_its_name() -> None:
    from typer.main import get_command

    from stairdata.cli.main import app
    from stairdata.cli.reports.context import commands as commands_of

    page = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    names = {each["command"].removeprefix("stairdata ").split()[0] for each in commands_of(get_command(app))}
    left_out = {"check-judge", "quickstart"}
    assert {name for name in names if not re.search(rf"`(stairdata )?{name}[ `]", page)} == left_out
    known = "|".join(sorted(names))
    named = re.findall(r"`stairdata ([a-z-]+)", page)
    assert [name for name in named if not re.fullmatch(known, name)] == []


def answer_in_argilla(workplace: Path) -> None:
    """What reviewers do before somebody looks how far they are."""
    from stairdata_review.rounds.client import Argilla, find_access
    from stairdata_review.rounds.datasets import list_rounds

    with Argilla(find_access(workplace / "home" / "argilla", None, remote=False)) as argilla:
        (place,) = list_rounds(argilla, "stairdata")
        values = {"verdict": {"value": "A"}, "safe": {"value": "both"}}
        for page in argilla.records(place.dataset_id):
            for record in page:
                argilla.post(f"/records/{record['id']}/responses", {"values": values, "status": "submitted"})


def answer_in_a_table(workplace: Path) -> None:
    """What a reviewer does with a table."""
    from stairdata_review.tables.cells import read_rows, write_rows

    rows = [row | {"verdict": "A", "safe": "both"} for row in read_rows(workplace / "pairs.xlsx")]
    write_rows(workplace / "pairs.xlsx", list(rows[0]), rows, {}, "")


DONE_BY_PEOPLE = {
    "stairdata review status": answer_in_argilla,
    "stairdata review import pairs.xlsx --input preference-pairs@1.0.0": answer_in_a_table,
}


@pytest.fixture
def workplace(tmp_path: Path, stub_llm: StubServer, tokenizer_folder: Path) -> Iterator[Path]:
    """A folder with what the README speaks of: prompts, a recipe, a model in runs/."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    stub_llm.control(also=["teacher", "actor-1"])
    rows = (ROOT / "stairdata" / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    with (tmp_path / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            file.write(json.dumps(row | {"question": row["prompt"], "type": row["task"]}) + "\n")
    (tmp_path / "evaluation.csv").write_text("question\nWhat is the capital of a country that is not there?\n")
    labelled = [
        {"prompt": "A?", "response": "Sorry.", "label": "refusal"},
        {"prompt": "B?", "response": "Yes.", "label": "true"},
    ]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    (tmp_path / "labelled.csv").write_text("prompt,text,verdict\nA?,No.,declined\nB?,Yes.,answered\n", encoding="utf-8")
    (recipe,) = blocks(ROOT / "README.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(re.sub(SERVERS, stub_llm.base_url, recipe), encoding="utf-8")
    recipe, tested = blocks(ROOT / "docs" / "rounds.md", "yaml")
    parse_full_recipe(yaml.safe_load(tested))
    (tmp_path / "rounds.yaml").write_text(re.sub(SERVERS, stub_llm.base_url, recipe), encoding="utf-8")
    (tmp_path / "training").symlink_to(ROOT / "training")
    logs = ROOT / "tests" / "stairdata" / "interop" / "data"
    shutil.copy(logs / "inspect.eval", tmp_path / "run.eval")
    shutil.copytree(logs / "actor", tmp_path / "samples" / "actor")
    for name in ("base", "sft"):
        folder = tmp_path / "runs" / name
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (tmp_path / "runs" / "sft" / "training.json").write_text("{}", encoding="utf-8")
    yield tmp_path
    from stairdata_review.server.background import stop_server

    stop_server(tmp_path / "home" / "argilla")  # a page that began a server and failed before it ended it


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page(page: Path, workplace: Path, hub: HubServer, stub_llm: StubServer) -> None:
    program = Path(sys.executable).parent / "stairdata"
    hub_datasets.put_paper(hub)
    environment = {  # whose HF_ENDPOINT is the tests' own Hub
        **os.environ,
        "HF_HOME": str(workplace / "hf"),
        "STAIRDATA_HOME": str(workplace / "home"),
    }
    for command in commands(page):
        if command in RUN_ELSEWHERE or command.startswith(SERVED):
            continue
        if command in DONE_BY_PEOPLE:
            DONE_BY_PEOPLE[command](workplace)
        name, *arguments = shlex.split(re.sub(SERVERS, stub_llm.base_url, command))
        assert name == "stairdata", command
        done = subprocess.run(
            [str(program), *arguments],
            check=False,
            cwd=workplace,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_servers_of_a_page(workplace: Path) -> None:
    """What docs/serving.md starts answers the client that the page shows, on the stub in place of vLLM's program."""
    from transformers import AutoTokenizer

    from stairdata_training.models import load_reward_model

    prm = workplace / "runs" / "prm"
    load_reward_model(workplace / "runs" / "sft", head_seed=0).save_pretrained(prm)
    AutoTokenizer.from_pretrained(workplace / "runs" / "sft").save_pretrained(prm)
    (workplace / "recipe.yaml").write_text("responses: {n: 1, temperature: 0.7}\n")
    page = ROOT / "docs" / "serving.md"
    (program,) = blocks(page, "python")
    started = [command for command in commands(page) if command.startswith(SERVED)]
    assert len(started) > 1
    for command in started:
        arguments = [*shlex.split(command)[1:], "--port", "0", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.stairdata.pipeline.on_stub", *arguments],
            cwd=workplace,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            shown = program.replace("http://127.0.0.1:8000/v1", facts["base_url"]).replace("...", facts["api_key"])
            done = subprocess.run(
                [sys.executable, "-c", shown], capture_output=True, text=True, check=False, timeout=300
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
            process.wait()
