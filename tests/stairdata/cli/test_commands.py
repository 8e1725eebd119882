"""The command line: statuses, what goes to which stream, and text of strangers that stays text."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata_schemas.kinds import KINDS

if TYPE_CHECKING:
    from tests.conftest import StubServer
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]
HEAVY = ["torch", "transformers", "vllm", "trl", "datasets", "argilla", "polars", "pyarrow", "openai"]
KEY = "sk-very-secret-0123456789"
ESCAPE = "\x1b[31m"


def write_prompts(path: Path, *prompts: str, column: str = "prompt") -> str:
    """Write prompts and return the --set value that names them."""
    rows = [{column: prompt, "task": "safety"} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"prompts.sources=[{{path: {json.dumps(str(path))}}}]"


@pytest.fixture
def built(run: Run, tmp_path: Path) -> str:
    """The reference of a prompts artifact of three rows."""
    sources = write_prompts(tmp_path / "q.jsonl", "[bold]One[/bold]", f"{ESCAPE}two", "three")
    ended = run("build", "prompts", "--set", sources)
    assert ended.status == 0, ended.err
    return ended.out.strip()


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["list"], ["train", "--help"], ["serve", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, json\nfrom stairdata.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    light = {"polars", "pyarrow"} if arguments == ["list"] else set()
    assert sorted((set(HEAVY) - light) & loaded) == []


def test_the_program_is_installed(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("stairdata")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert re.fullmatch(r"stairdata \d+\.\d+\.\d+\n", done.stdout)


def test_a_build_writes_its_reference_to_stdout_and_all_else_to_stderr(run: Run, tmp_path: Path) -> None:
    sources = write_prompts(tmp_path / "q.jsonl", "one", "two")
    ended = run("build", "prompts", "--set", sources)
    assert (ended.status, ended.out) == (0, "prompts@1.0.0\n")
    assert "prompts@1.0.0: 2 rows in artifacts/prompts/1.0.0" in ended.err
    again = run("build", "prompts", "--set", sources)
    assert (again.status, again.out) == (0, "prompts@1.0.0\n")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["build", "nonsense"], 2, "can't build 'nonsense'; use one of prompts, structured-cot"),
        (["build", "prompt"], 2, "can't build 'prompt'; did you mean 'prompts'?"),
        (["train", "stf"], 2, "can't train 'stf'; did you mean 'sft'?"),
        (["train", "sft"], 2, "train sft needs a model to start from: give --model, or sft.model in the recipe"),
        (["build"], 2, "Missing command"),
        (["biuld"], 2, "No such command"),
        (["build", "prompts", "--sett", "a=1"], 2, "No such option"),
        (["build", "prompts", "--limit", "0"], 2, "--limit"),
        (["build", "prompts", "--limit", "many"], 2, "--limit"),
        (["build", "prompts", "--max-quarantine", "2"], 2, "--max-quarantine"),
        (["build", "prompts", "--set", "seed"], 2, "error: --set 'seed': write key.key=value"),
        (["build", "prompts", "--set", "sed=1"], 1, "error: recipe: unknown key 'sed'; did you mean 'seed'?"),
        (["build", "prompts", "--recipe", "no.yaml"], 1, "error: the recipe no.yaml does not exist"),
        (["build", "prompts"], 1, "error: prompts.sources is empty"),
        (["build", "prompts", "--set", "prompts.sources=[{path: no.csv}]"], 1, "no.csv can't be read: No such file"),
        (["build", "trees"], 1, "no complete prompts under artifacts; make one with `stairdata build prompts`"),
        (["build", "preference-pairs"], 1, "no complete trees under artifacts"),
        (["build", "prompts", "--version", "1.x"], 2, "'1.x' is not a version; write three numbers"),
        (["build", "prompts", "--version", "2.0.0"], 2, "MAJOR is the schema's version"),
        (["validate"], 2, "Missing argument"),
        (["validate", "prompts"], 1, "no complete prompts under artifacts"),
        (["validate", "prompts@1.0.0"], 1, "no prompts@1.0.0 under artifacts; versions there: none"),
        (["validate", "prompts@latest"], 2, "'latest' is not a version"),
        (["validate", "./nothing"], 1, "no artifact folder at './nothing'"),
        (["show", "promts"], 1, "names no artifact; did you mean 'prompts'?"),
        (["show", "nonsense"], 1, "'nonsense' names no artifact; write a folder"),
        (["show", "prompts", "--rows", "-1"], 2, "--rows"),
        (["schema", "prompt"], 2, "unknown kind 'prompt'; did you mean 'prompts'?"),
        (["schema", "nonsense"], 2, "unknown kind 'nonsense'; use one of prompts, structured_cot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_has_its_status_and_one_message(
    arguments: list[str], status: int, words: str, run: Run, tmp_path: Path
) -> None:
    sources = write_prompts(tmp_path / "q.jsonl", "one")
    extra = ["--set", sources] if "--version" in arguments else []
    ended = run(*arguments, *extra)
    assert ended.status == status, ended.err
    assert words in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    if ended.err.startswith("error: "):
        assert ended.err.count("\n") == 1


def test_no_help_text_is_taken_for_markup() -> None:
    """In brackets a default would vanish from the page."""
    from typer.main import get_command

    from stairdata.cli.main import app

    def texts(command: Any) -> list[str]:
        below = [text for inner in getattr(command, "commands", {}).values() for text in texts(inner)]
        return [command.help or "", *(getattr(each, "help", None) or "" for each in command.params), *below]

    found = texts(get_command(app))
    assert len(found) > 100
    assert [text for text in found if "[" in text] == []


def test_broken_yaml(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("trees: {iterations: 5\n")
    ended = run("build", "prompts", "--recipe", "r.yaml")
    assert ended.status == 1
    assert ended.err.startswith("error: the recipe r.yaml is not YAML: ")


def test_a_disk_that_is_full_is_one_message_and_the_build_goes_on_later(
    run: Run, built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "build",
        "prompts",
        "--set",
        f"prompts.sources=[{{path: {tmp_path / 'q.jsonl'}}}]",
        "--version",
        "1.7.0",
    )
    (tmp_path / "q.jsonl").write_text('{"prompt": "Why?", "task": "safety"}\n', encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stairdata_schemas.writing.sync_file", full)
        ended = run(*arguments)
    assert (ended.status, ended.out) == (1, "")
    assert "No space left on device: " in ended.err
    assert "part-00000.parquet'; finished work is kept" in ended.err
    assert "Traceback" not in ended.err
    assert run("validate", "prompts@1.7.0").status == 1
    assert run(*arguments).out == "prompts@1.7.0\n"
    assert run("validate", "prompts@1.7.0").status == 0


def test_an_interrupted_build_says_how_to_go_on(run: Run, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stairdata.generators.prompts.build.build_prompts", interrupt)
    ended = run("build", "prompts")
    assert (ended.status, ended.out) == (130, "")
    assert "run the same command again" in ended.err


def test_ctrl_c_while_the_first_is_dealt_with_gives_the_same_message(
    run: Run, built: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> None:
        raise KeyboardInterrupt  # typer was writing a line about the first one

    monkeypatch.setattr("stairdata.cli.main.app", again)
    ended = run("list")
    assert (ended.status, ended.out) == (130, "")
    assert "run the same command again" in ended.err


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from stairdata.cli.main import main; main()"]
    plain = subprocess.run([*command, "show", "prompts"], capture_output=True, text=True, check=False, cwd=tmp_path)
    debug = subprocess.run(
        [*command, "--debug", "show", "prompts"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert "ArtifactNotFoundError: no complete prompts" in debug.stderr


def test_list(run: Run, built: str, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "trees" / "1.0.0").mkdir(parents=True)
    damaged = tmp_path / "artifacts" / "trees" / "1.1.0"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    ended = run("list")
    assert (ended.status, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["artifact", "rows", "refused", "created", "state"]
    assert [(line[0], line[-1]) for line in lines[1:]] == [
        ("prompts@1.0.0", "complete"), ("trees@1.0.0", "unfinished"), ("trees@1.1.0", "damaged"),
    ]  # fmt: skip
    assert "None" not in ended.out
    shown = json.loads(run("list", "--json").out)
    assert [row["state"] for row in shown["artifacts"]] == ["complete", "unfinished", "damaged"]
    assert shown["artifacts"][0]["rows"] == 3


def test_list_of_nothing(run: Run) -> None:
    ended = run("list", "--root", "elsewhere")
    assert (ended.status, ended.out) == (0, "")
    assert "no artifacts under elsewhere; build one with `stairdata build prompts`" in ended.err
    assert json.loads(run("list", "--root", "elsewhere", "--json").out) == {"root": "elsewhere", "artifacts": []}


def test_show(run: Run, built: str, tmp_path: Path) -> None:
    ended = run("show", built)
    assert (ended.status, ended.err) == (0, "")
    for words in ("prompts@1.0.0", "prompts/3, stairdata", "prompt_id, prompt, task", "rows"):
        assert words in ended.out
    manifest = json.loads(run("show", built, "--json").out)
    assert (manifest["kind"], manifest["rows"]) == ("prompts", 3)
    assert run("show", tmp_path / "artifacts" / "prompts" / "1.0.0", "--json").out == run("show", built, "--json").out


def test_validate(run: Run, built: str, tmp_path: Path) -> None:
    ended = run("validate", built)
    assert (ended.status, ended.out, ended.err) == (0, "prompts@1.0.0 is valid: 3 rows\n", "")
    assert json.loads(run("validate", built, "--json").out) == {
        "artifact": "prompts@1.0.0", "valid": True, "problems": [],
    }  # fmt: skip
    (path,) = (tmp_path / "artifacts").rglob("train-*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ended = run("validate", built)
    assert ended.status == 1
    assert "sha256" in ended.out
    found = json.loads(run("validate", built, "--json").out)
    assert found["valid"] is False
    assert found["problems"][0]["rule"] == "sha256"
    path.write_bytes(data[:-1])
    ended = run("validate", built)
    assert (ended.status, ended.out) == (1, "")
    assert "the file was changed or cut; build or pull the artifact again" in ended.err


@pytest.mark.parametrize("kind", [*KINDS, "structured-cot"])
def test_schema(kind: str, run: Run) -> None:
    ended = run("schema", kind)
    assert (ended.status, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert document["x-stairdata-kind"] == kind.replace("-", "_")
    assert document["type"] == "object"
    assert set(document["properties"]) == set(KINDS[kind.replace("-", "_")].column_names())


def test_where_artifacts_go(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = write_prompts(tmp_path / "q.jsonl", "one")
    monkeypatch.setenv("STAIRDATA_ROOT", "from-environment")
    assert run("build", "prompts", "--set", sources).status == 0
    assert run("build", "prompts", "--set", sources, "--root", "from-option").status == 0
    assert (tmp_path / "from-environment" / "prompts" / "1.0.0" / "manifest.json").exists()
    assert (tmp_path / "from-option" / "prompts" / "1.0.0" / "manifest.json").exists()
    assert not (tmp_path / "artifacts").exists()


def test_versions_and_fresh(run: Run, tmp_path: Path) -> None:
    one = write_prompts(tmp_path / "q.jsonl", "one")
    assert run("build", "prompts", "--set", one, "--version", "1.3.0").out == "prompts@1.3.0\n"
    two = write_prompts(tmp_path / "q2.jsonl", "two")
    ended = run("build", "prompts", "--set", two, "--version", "1.3.0")
    assert ended.status == 2
    assert "is finished and immutable, and differs" in ended.err
    assert run("build", "prompts", "--set", two).out == "prompts@1.4.0\n"
    assert run("build", "prompts", "--set", two, "--fresh").out == "prompts@1.5.0\n"
    assert run("build", "prompts", "--set", two).out == "prompts@1.5.0\n", "the newest of the same recipe"


def test_more_refused_than_allowed_and_then_allowed(run: Run, tmp_path: Path) -> None:
    sources = write_prompts(tmp_path / "q.jsonl", "one", " ", "two")
    ended = run("build", "prompts", "--set", sources)
    assert (ended.status, ended.out) == (1, "")
    assert "1 of 3 rows were refused (blank 1), more than 5%" in ended.err
    assert "unfinished" in run("list").out
    ended = run("build", "prompts", "--set", sources, "--max-quarantine", "1")
    assert (ended.status, ended.out) == (0, "prompts@1.0.0\n")
    assert "1 refused (blank 1)" in ended.err
    assert run("validate", "prompts").status == 0


def test_markup_and_terminal_escapes_in_rows_are_shown_as_text(run: Run, built: str) -> None:
    ended = run("show", built, "--rows", "3")
    assert "[bold]One[/bold]" in ended.out
    assert r"\x1b[31mtwo" in ended.out
    assert "\x1b" not in ended.out + ended.err


def test_terminal_escapes_in_a_manifest_are_shown_as_text(run: Run, built: str, tmp_path: Path) -> None:
    """An artifact may come from a stranger."""
    path = tmp_path / "artifacts" / "prompts" / "1.0.0" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["notes"] = [f"{ESCAPE}red[bold]"]
    manifest["models"] = [{"role": "actor", "name": f"{ESCAPE}name"}]
    path.write_text(json.dumps(manifest))
    ended = run("show", built)
    assert "red[bold]" in ended.out
    assert "\x1b" not in ended.out


def test_terminal_escapes_in_names_are_shown_as_text(run: Run, built: str, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "prompts" / "1.0.0" / "data" / f"{ESCAPE}x[bold].parquet").write_bytes(b"")
    ended = run("validate", built)
    assert ended.status == 1
    assert "x[bold].parquet" in ended.out
    assert "\x1b" not in ended.out + ended.err


@pytest.mark.parametrize("place", ["column", "file", "recipe"])
def test_terminal_escapes_in_a_message_are_shown_as_text(place: str, run: Run, tmp_path: Path) -> None:
    name = f"{ESCAPE}[bold]q.jsonl" if place == "file" else "q.jsonl"
    sources = write_prompts(tmp_path / name, "one", column=f"{ESCAPE}[bold]" if place == "column" else "x")
    recipe = tmp_path / "r.yaml"
    recipe.write_text('trees: {"\\e[31m[bold]": 1}\n' if place == "recipe" else "{}\n")
    ended = run("build", "prompts", "--recipe", recipe, "--set", sources)
    assert ended.status == 1
    assert "[bold]" in ended.err
    assert "\x1b" not in ended.err


@pytest.fixture
def trees(
    run: Run, stub_llm: StubServer, actor_section: dict[str, Any], waits: list[float], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Ended]:  # fmt: skip
    """Grow small trees from two prompts with the stub."""
    monkeypatch.setenv("STUB_KEY", KEY)
    assert run("build", "prompts", "--set", write_prompts(tmp_path / "q.jsonl", "one", "two")).status == 0
    recipe = {
        "actor": {**actor_section, "api_key_env": "STUB_KEY", "retries": 1},
        "trees": {"iterations": 4, "samples": 2, "max_depth": 2},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return lambda *arguments: run("build", "trees", "--recipe", "r.yaml", *arguments)


def test_trees(trees: Callable[..., Ended], run: Run, stub_llm: StubServer) -> None:
    stub_llm.control(key=KEY)
    ended = trees()
    assert (ended.status, ended.out) == (0, "trees@1.0.0\n")
    assert "trees: 2 of 2" in ended.err
    assert re.search(r"trees@1\.0\.0: 2 rows in .*; \d+ requests, \d+ tokens", ended.err)
    assert run("validate", "trees").status == 0
    assert trees("--limit", "1").out == "trees@1.1.0\n"


def test_a_key_is_written_nowhere(trees: Callable[..., Ended], stub_llm: StubServer, tmp_path: Path) -> None:
    stub_llm.control(script=[{"status": 400, "text": json.dumps({"error": {"message": f"wrong key {KEY}"}})}])
    ended = trees("--max-quarantine", "1")
    assert ended.status == 0
    assert KEY not in ended.out + ended.err
    for path in (tmp_path / "artifacts").rglob("*"):
        if path.suffix == ".parquet":
            assert KEY not in str(pl.read_parquet(path).to_dicts())
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_server_that_can_not_be_used(trees: Callable[..., Ended], stub_llm: StubServer) -> None:
    ended = trees("--set", "actor.model=other")
    assert (ended.status, ended.out) == (1, "")
    assert re.search("does not serve 'other'; it serves '?actor'?\n", ended.err)
    stub_llm.control(key="another")
    ended = trees()
    assert ended.status == 1
    assert KEY not in ended.err
    ended = trees("--set", "actor.base_url=http://127.0.0.1:1/v1")
    assert ended.status == 1
    assert "can't be used" in ended.err
    assert ended.err.count("\n") == 1, "one message"


def test_a_server_that_dies_leaves_one_message(
    trees: Callable[..., Ended], run: Run, stub_llm: StubServer, tmp_path: Path
) -> None:
    prompts = [f"prompt {number}" for number in range(8)]
    assert run("build", "prompts", "--set", write_prompts(tmp_path / "many.jsonl", *prompts)).status == 0
    stub_llm.control(die_after=20)
    ended = trees()
    stub_llm.wait()
    assert (ended.status, ended.out) == (1, "")
    assert "run the same command again" in ended.err
    assert "Traceback" not in ended.err
    assert sum(line.startswith("error: ") for line in ended.err.splitlines()) == 1
    assert "never retrieved" not in ended.err
    stub_llm.start()
    ended = trees("--set", f"actor.base_url={stub_llm.base_url}")
    assert (ended.status, ended.out) == (0, "trees@1.0.0\n"), "the place of the server changes no row"


def test_an_actor_that_is_not_named(run: Run, tmp_path: Path) -> None:
    assert run("build", "prompts", "--set", write_prompts(tmp_path / "q.jsonl", "one")).status == 0
    ended = run("build", "trees")
    assert ended.status == 1
    assert "the recipe names no actor: give actor.path (a model) or actor.base_url (a server)" in ended.err


def test_an_input_of_another_kind(run: Run, built: str) -> None:
    ended = run("build", "preference-pairs", "--input", built)
    assert ended.status == 2
    assert "needs an input of kind trees; --input gave prompts@1.0.0" in ended.err
