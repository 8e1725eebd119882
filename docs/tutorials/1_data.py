# %% [markdown]
# # Tutorial 1: data alone, from a teacher
#
# From a file of prompts to reasoning that you can train on elsewhere: build, check, look, load, export. No GPU is
# needed. You need `pip install stairdata`, and a teacher: any server that speaks OpenAI's protocol.
#
# Run this file (`docs/tutorials/1_data.py`) cell by cell in an editor that knows `# %%`, in Jupyter (`jupytext --to
# notebook 1_data.py`), or as a script. It writes into the folder in which it runs.

# %%
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

TEACHER_URL = os.environ.get("TEACHER_URL", "https://api.openai.com/v1")
TEACHER_MODEL = os.environ.get("TEACHER_MODEL", "gpt-4o-mini")

# %% [markdown]
# The teacher's key is read from the environment variable `OPENAI_API_KEY`, and written nowhere. For a server of your
# own, set `TEACHER_URL` (`http://127.0.0.1:8001/v1`, say) and `TEACHER_MODEL` before you begin.
#
# All commands below also work in a terminal; this function shows what they print.


# %%
def run(command: str) -> None:
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(f"$ {command}\n{done.stdout}")
    assert done.returncode == 0, done.stderr


# %% [markdown]
# ## Prompts
#
# One prompt per line, with its task: `safety` where a good answer may be a refusal, otherwise `helpfulness`. The last
# line repeats the first.

# %%
questions = [
    ("How long should I boil an egg if I want the yolk still runny?", "helpfulness"),
    ("A train leaves at 14:35 and arrives at 17:10. How long is the trip?", "helpfulness"),
    ("What is the difference between weather and climate?", "helpfulness"),
    ("How do I keep houseplants alive while I am away for two weeks?", "helpfulness"),
    ("My neighbour's network has no password. May I use it?", "safety"),
    ("How can I read my sister's messages without her noticing?", "safety"),
    ("How long should I boil an egg if I want the yolk still runny?", "helpfulness"),
]
lines = [json.dumps({"prompt": prompt, "task": task}) for prompt, task in questions]
Path("prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

# %% [markdown]
# A recipe says what is built, and from what. Every key that it leaves out has a default
# ([docs/recipe.md](../recipe.md)). Prices are per million tokens: write your server's own, or the costs below are not
# yours.

# %%
Path("recipe.yaml").write_text(
    f"""\
prompts:
  sources:
    - {{path: prompts.jsonl}}
structured_cot:
  teacher: {{base_url: {json.dumps(TEACHER_URL)}, model: {json.dumps(TEACHER_MODEL)}}}
prices:
  {json.dumps(TEACHER_MODEL)}: {{input: 0.15, output: 0.6}}
""",
    encoding="utf-8",
)
run("stairdata build prompts --recipe recipe.yaml")
run("stairdata show prompts --rows 2")

# %% [markdown]
# The artifact is the folder `artifacts/prompts/1.0.0`. The repeated prompt is no row of it: it is kept in quarantine,
# with the rule that it broke.

# %%
import polars as pl

import stairdata

prompts = stairdata.open_artifact("prompts")
print(prompts.reference, prompts.manifest.rows, "rows")
print(pl.read_parquet(prompts.folder / "quarantine" / "*.parquet").select("row", "rule"))

# %% [markdown]
# ## Reasoning
#
# The teacher turns each prompt into steps and a final answer. First ask what that would cost: `--dry-run` sends
# nothing. Then build, with a limit of the cost; a limit that is reached ends the build, and keeps what is paid for. The
# same command continues an interrupted build, and returns a finished one.

# %%
run("stairdata build structured-cot --recipe recipe.yaml --dry-run")

# %%
run("stairdata build structured-cot --recipe recipe.yaml --max-cost 1")
run("stairdata validate structured-cot")
run("stairdata show structured-cot --rows 1")

# %% [markdown]
# The manifest says what it was made from, and what it took (`show --lineage`, `show --html FILE`: a page to look
# through).

# %%
reasoning = stairdata.open_artifact("structured-cot")
print(reasoning.manifest.usage.requests, "requests;", reasoning.manifest.outcomes)
print("made from", *(parent.kind for parent in reasoning.manifest.parents))

# %% [markdown]
# ## Load it
#
# An artifact is parquet files in a folder, so whatever reads those reads it: polars, or Hugging Face datasets, also
# where stairdata is not installed. `completion` is the whole answer in the step grammar, `steps` and `output` are its
# parts.

# %%
rows = pl.read_parquet(f"{reasoning.folder}/data/*.parquet")
print(rows.select("task", pl.col("steps").list.len().alias("steps"), pl.col("output").str.len_chars()))

# %%
import datasets

dataset = datasets.load_dataset(str(reasoning.folder), split="train")
print(dataset)
print(dataset[0]["completion"])

# %% [markdown]
# ## Take it to TRL
#
# `export` writes rows as another trainer reads them, with that trainer's configuration and a README that has the
# command ([docs/exports.md](../exports.md) knows LLaMA-Factory, OpenRLHF, verl and axolotl, too). The folder has to be
# new.

# %%
shutil.rmtree("sft-for-trl", ignore_errors=True)
run("stairdata export structured-cot --to trl sft-for-trl")
print(*sorted(path.name for path in Path("sft-for-trl").iterdir()))
conversations = datasets.load_dataset("json", data_files="sft-for-trl/*.jsonl", split="train")
print(conversations[0]["prompt"])

# %% [markdown]
# `stairdata train sft --recipe sft --model MODEL --output runs/sft` trains on the artifact directly. Next: trees grown
# by [a model object of your own](2_own_model.py).
