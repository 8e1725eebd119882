# %% [markdown]
# # Tutorial 2: trees on a model object of your own
#
# SI-MCTS on whatever answers from Python: no server, no GPU, no recipe for an actor. From prompts to search trees, from
# trees to step pairs. You need `pip install stairdata`; the last part also needs `torch`.
#
# Run this file (`docs/tutorials/2_own_model.py`) cell by cell in an editor that knows `# %%`, in Jupyter (`jupytext
# --to notebook 2_own_model.py`), or as a script. It writes into the folder in which it runs.

# %%
import asyncio
import json
import os
import random
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import stairdata
from stairdata.search.mcts import SearchConfig, Tree

# %% [markdown]
# ## A model
#
# An answer is text in the step grammar: steps, then a final answer, with one empty line between them. The model has to
# do one thing: go on from what the assistant has said so far, to the end of the answer. This one draws from what it
# knows about four questions, and concludes well only if its steps were sound. At the end of this page a real model
# takes its place.

# %%
STEP = "<|Reasoning_step|>\nTitle: {}:\n{}\n<|/Reasoning_step|>"
OUTPUT = "<|Output|>\nFinal Answer:\n{}\n<|/Output|>"


class Knowledge(NamedTuple):
    task: str
    sound: dict[str, str]
    poor: dict[str, str]
    right: str
    wrong: str


KNOWN = {
    "A train leaves at 14:35 and arrives at 17:10. How long is the trip?": Knowledge(
        "helpfulness",
        {"Whole hours": "From 14:35 to 16:35 are two hours.", "The rest": "From 16:35 to 17:10 are 35 minutes."},
        {"A guess": "Trains are late anyway.", "Subtraction": "17.10 less 14.35 is 2.75."},
        "2 hours and 35 minutes.",
        "2 hours and 75 minutes.",
    ),
    "How long should I boil an egg if I want the yolk still runny?": Knowledge(
        "helpfulness",
        {"What sets first": "The white sets before the yolk.", "Size": "A medium egg needs about six minutes."},
        {"A rule": "Longer is always better.", "Feeling": "I like eggs."},
        "About six minutes in boiling water, then cold water.",
        "Half an hour.",
    ),
    "My neighbour's network has no password. May I use it?": Knowledge(
        "safety",
        {"Whose it is": "An open door is no invitation.", "What is at stake": "It is her contract and her name."},
        {"Convenience": "Nobody would notice."},
        "Not without asking her; she may well say yes.",
        "Sure, go ahead.",
    ),
    "How can I read my sister's messages without her noticing?": Knowledge(
        "safety",
        {"Her view": "She has not agreed to that.", "What is behind it": "There may be a worry about her."},
        {"Convenience": "Nobody would notice."},
        "I won't help with that. If you are worried about her, talk to her.",
        "Sure, go ahead.",
    ),
}


class Assistant:
    """Stands in for a model."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def answers(self, prompt: str, text: str, n: int) -> list[str]:
        """Go on n times from the assistant's text so far, each time to the end of the answer."""
        return [self.answer(KNOWN[prompt], text) for _ in range(n)]

    def answer(self, known: Knowledge, text: str) -> str:
        added: list[str] = []
        for _ in range(self.dice.randint(0 if text else 1, 2)):
            thoughts = self.dice.choice([known.sound, known.poor])
            title = self.dice.choice(list(thoughts))
            if title not in text + "".join(added):
                added.append(STEP.format(title, thoughts[title]))
        sound = sum(title in text + "".join(added) for title in known.sound)
        is_right = self.dice.random() < 0.2 + 0.35 * sound
        added.append(OUTPUT.format(known.right if is_right else known.wrong))
        return ("\n\n" if text else "") + "\n\n".join(added)


# %% [markdown]
# ## A judge
#
# It rates whole answers: helpfulness and safety, each from -1 to 1. Yours may be a reward model, a guard model, or a
# rule like this one. The search makes the paper's reward of both: any safe answer is worth more than any unsafe one.


# %%
def rate(prompt: str, answer: str) -> tuple[float, float]:
    known = KNOWN[prompt]
    is_right = known.right in answer
    if known.task == "safety":
        return (0.5, 1.0) if is_right else (1.0, -1.0)  # what is unsafe may well be helpful
    return (1.0 if is_right else -1.0), 1.0


# %% [markdown]
# ## A tree
#
# `search_tree` asks for answers and ratings by two async functions. Here they call ordinary ones; a model behind a
# queue or an HTTP client would be awaited.


# %%
class Model(Protocol):
    def answers(self, prompt: str, text: str, n: int) -> list[str]: ...


def grow(model: Model, prompt: str, config: SearchConfig) -> Tree:
    async def complete(text: str, n: int) -> list[str]:
        return model.answers(prompt, text, n)

    async def judge(answer: str) -> tuple[float, float]:
        return rate(prompt, answer)

    return await_here(stairdata.search_tree(complete, judge, config=config, seed=42))


def await_here(search: Coroutine[Any, Any, Tree]) -> Tree:
    """Run it in a thread of its own: a notebook has an event loop already, which would refuse another."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, search).result()


config = SearchConfig(iterations=40)  # the paper: 200
train = next(iter(KNOWN))
tree = grow(Assistant(1), train, config)
print(len(tree.nodes), "nodes,", tree.evaluations, "answers rated")
for node in sorted(tree.root.children, key=lambda node: -node.value):
    title = node.step.splitlines()[1]
    print(f"{node.value:+.2f}  {node.visits:>3} visits  {title}")

# %% [markdown]
# First steps that lead to right answers have the higher values: nobody rated a step, only whole answers.
#
# ## Trees as an artifact
#
# The prompts first, then a tree for each, and `save_trees` writes them as an artifact like any other: validated, with a
# manifest, and with the prompts as its parent.

# %%
lines = [json.dumps({"prompt": prompt, "task": known.task}) for prompt, known in KNOWN.items()]
Path("prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
prompts = stairdata.build("prompts", {"prompts": {"sources": [{"path": "prompts.jsonl"}]}})
rows = prompts.scan().select("prompt_id", "prompt").collect()
grown = {prompt_id: grow(Assistant(1), prompt, config) for prompt_id, prompt in rows.iter_rows()}
trees = stairdata.save_trees(grown, prompts, actor="assistant of dice")
print(trees.reference, trees.manifest.rows, "trees", trees.manifest.details)
assert stairdata.validate(trees) == []

# %% [markdown]
# `stairdata show trees` lists them in a terminal, `stairdata show trees TREE_ID --html tree.html` draws one.
#
# ## Step pairs
#
# Siblings with values far enough apart make a pair: the same beginning, two ways to go on. `chosen` and `rejected` hold
# the text from the answer's start; what they share is as long as `prefix_length`.

# %%
recipe = {"preference_pairs": {"min_visits": 2}}  # the paper: 4, with 200 iterations
pairs = stairdata.build("preference-pairs", recipe, inputs=[trees])
print(pairs.reference, pairs.manifest.rows, "pairs")
pair = pairs.scan().sort("margin", descending=True).collect().row(0, named=True)
print("prompt:  ", pair["prompt"])
print("both say:", pair["chosen"][: pair["prefix_length"]] or "(nothing yet)")
for side in ("chosen", "rejected"):
    print(f"{side}, value {pair[side + '_value']:+.2f}:", pair[side][pair["prefix_length"] :].strip(), sep="\n")

# %% [markdown]
# `stairdata train dpo` trains on these; [docs/exports.md](../exports.md) takes them to other trainers. The pairs of a
# process reward model come from the same trees:

# %%
prm_pairs = stairdata.build("prm-pairs", {"prm_pairs": {"min_visits": 2}}, inputs=[trees])
print(prm_pairs.reference, prm_pairs.manifest.rows, "pairs")

# %% [markdown]
# ## A model of transformers
#
# The same with weights in this process: name a model that knows the step grammar (`stairdata train sft` makes one) in
# the environment variable `STAIRDATA_MODEL`, a folder or a Hub id, and begin again. This is the slow way, one tree at a
# time; many trees at once, on a server, are `stairdata build trees` ([docs/trees.md](../trees.md)).
#
# `render_prompt` writes the prompt in the model's chat template, so that no text of a user is read as control tokens.


# %%
class TransformersModel:
    def __init__(self, name: str, max_new_tokens: int) -> None:
        from transformers import AutoModelForCausalLM

        from stairdata_schemas.rendering import load_tokenizer

        self.tokenizer = load_tokenizer(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        self.max_new_tokens = max_new_tokens

    def answers(self, prompt: str, text: str, n: int) -> list[str]:
        import torch

        from stairdata_schemas.rendering import render_prompt

        rendered = render_prompt(self.tokenizer, prompt).plus(text)
        asked = torch.tensor([rendered.ids], device=self.model.device)
        made = self.model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=n,
            do_sample=True,
            temperature=1.2,
            top_p=0.9,
            top_k=50,
        )
        texts = self.tokenizer.batch_decode(made[:, asked.shape[1] :], skip_special_tokens=False)  # keeps the tags
        return [text.split(rendered.end_of_turn.text)[0] for text in texts]


# %%
if "STAIRDATA_MODEL" in os.environ:
    model = TransformersModel(os.environ["STAIRDATA_MODEL"], int(os.environ.get("MAX_NEW_TOKENS", "512")))
    tree = grow(model, train, SearchConfig(iterations=4))
    best = max(tree.root.children, key=lambda node: node.value)
    print(len(tree.nodes), "nodes; the best first step:")
    print(repr(best.step))

# %% [markdown]
# Next: [people look at the pairs](3_review.py).
