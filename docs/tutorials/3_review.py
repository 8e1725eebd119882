# %% [markdown]
# # Tutorial 3: a review round
#
# People look at pairs in Argilla, blind, and decide which pairs are trained on. You need `pip install
# 'stairdata[review]'` and a browser. No model and no GPU: the pairs come from a few written answers.
#
# Run this file (`docs/tutorials/3_review.py`) cell by cell in an editor that knows `# %%`, in Jupyter (`jupytext --to
# notebook 3_review.py`), or as a script. It writes into the folder in which it runs; delete that folder to begin again.

# %%
import asyncio
import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import stairdata
from stairdata.search.mcts import SearchConfig, Tree

# %% [markdown]
# The review server's data lies in this folder, too. Without this line it is in your user data folder, where it belongs.

# %%
os.environ.setdefault("STAIRDATA_HOME", str(Path("review-server").absolute()))


def run(command: str) -> None:
    """Run a command as in a terminal, and show what it prints."""
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(f"$ {command}\n{done.stdout}")
    assert done.returncode == 0, done.stderr


# %% [markdown]
# ## Pairs
#
# A round begins with pairs, and pairs with trees. If you have trees, `stairdata build preference-pairs` makes pairs of
# them, and you can go on below. Here a few written answers stand in for a model; [tutorial 2](2_own_model.py) explains
# the search. The rating of an answer is what a judge would say: helpfulness from -1 to 1, all of them are safe.


# %%
class Answer(NamedTuple):
    title: str
    step: str
    output: str
    helpfulness: float


WRITTEN = {
    "A train leaves at 14:35 and arrives at 17:10. How long is the trip?": [
        Answer("Whole hours", "To 16:35 are two hours; 35 minutes are left.", "2 hours and 35 minutes.", 1.0),
        Answer("Subtraction", "17.10 less 14.35 is 2.75.", "2 hours and 75 minutes.", -1.0),
    ],
    "How long should I boil an egg if I want the yolk still runny?": [
        Answer("What sets first", "The white sets before the yolk.", "About six minutes, then cold water.", 0.8),
        Answer("A rule", "What is boiled for long keeps for long.", "Half an hour.", -1.0),
    ],
    "What is the difference between weather and climate?": [
        Answer("Time", "One is about days, the other about decades.", "Weather is today; climate is the average.", 0.9),
        Answer("Words", "Both words are about the sky.", "There is none.", -0.9),
    ],
    "How do I keep houseplants alive while I am away for two weeks?": [
        Answer("Water", "They need less in the shade.", "Water them well, and move them out of the sun.", 0.7),
        Answer("Water", "More is better.", "Fill the pots to the brim.", -0.6),
    ],
}


class Written:
    """Answers a prompt with one of the written answers; a step leads to its own output four times out of five."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.dice = random.Random(1)

    async def complete(self, text: str, n: int) -> Sequence[str]:
        return [self.rest(text) for _ in range(n)]

    def rest(self, text: str) -> str:
        begun = [answer for answer in self.answers if answer.step in text]
        drawn = begun[0] if begun else self.dice.choice(self.answers)
        step = "" if begun else f"<|Reasoning_step|>\nTitle: {drawn.title}:\n{drawn.step}\n<|/Reasoning_step|>"
        output = drawn.output if self.dice.random() < 0.8 else self.dice.choice(self.answers).output
        return f"{step}\n\n<|Output|>\nFinal Answer:\n{output}\n<|/Output|>"

    async def judge(self, text: str) -> tuple[float, float]:
        return next(answer.helpfulness for answer in self.answers if answer.output in text), 1.0

    def grow(self) -> Tree:
        search = stairdata.search_tree(self.complete, self.judge, config=SearchConfig(iterations=20))
        with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has an event loop already
            return pool.submit(asyncio.run, search).result()


lines = [json.dumps({"prompt": prompt, "task": "helpfulness"}) for prompt in WRITTEN]
Path("prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
prompts = stairdata.build("prompts", {"prompts": {"sources": [{"path": "prompts.jsonl"}]}})
asked = prompts.scan().select("prompt_id", "prompt").collect()
trees = stairdata.save_trees(
    {prompt_id: Written(WRITTEN[prompt]).grow() for prompt_id, prompt in asked.iter_rows()}, prompts, actor="written"
)
Path("recipe.yaml").write_text("preference_pairs: {min_visits: 2}\n", encoding="utf-8")
run("stairdata build preference-pairs --recipe recipe.yaml")

# %% [markdown]
# ## Push
#
# `review serve` starts a real Argilla on this machine; the first time it makes an environment for it, which takes some
# minutes. It prints the owner's password once. `push` sends pairs; who reviews them sees two continuations, A and B,
# and not which one is chosen. `invite` prints a reviewer's password.

# %%
run("stairdata review serve --background")
run("stairdata review push preference-pairs --select stratified --limit 20")
run("stairdata review invite ann")

# %% [markdown]
# ## Review
#
# Sign in at the address above as `ann`, open the dataset, and answer the items: which continuation is better, which are
# safe. Then go on here. Answer one or two against your own opinion, and see what becomes of those pairs.

# %%
print("Answer items in the browser. When you are done, press Enter here.", flush=True)
input()
run("stairdata review status")

# %% [markdown]
# ## Fetch, and decide
#
# `pull` makes an artifact of the answers, in which reviewers are salted hashes. With `--reviews`, `build` lets them
# decide: here pairs that most reviewers see the other way round are flipped, ties go, and pairs that nobody looked at
# stay.

# %%
run("stairdata review pull")
reviews = stairdata.open_artifact("reviews")
print(reviews.scan().select("reviewer", "verdict", "safe", "comment").collect())

# %%
run(
    "stairdata build preference-pairs --recipe recipe.yaml --reviews reviews"
    " --set 'preference_pairs.reviews={policy: majority, overruled: flip}'"
)
reviewed = stairdata.open_artifact("preference-pairs")
print(reviewed.reference, reviewed.manifest.rows, "pairs;", reviewed.manifest.details["reviews"])
print("made from", *(parent.kind for parent in reviewed.manifest.parents))
run("stairdata diff preference-pairs@1.0.0 preference-pairs@1.1.0")

# %% [markdown]
# A flipped pair keeps its values, so its margin is below zero. [docs/review.md](../review.md) says how to read
# agreement, and how to work with tables in place of Argilla. Stop the server when you are done; its data stays.

# %%
run("stairdata review stop")
