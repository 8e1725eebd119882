from __future__ import annotations

import hashlib
import unicodedata
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas import identity


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_prompt_id_is_the_head_of_sha256() -> None:
    assert identity.prompt_id("") == "e3b0c44298fc1c14"  # the best-known digest there is
    assert identity.prompt_id("Why is the sky blue?") == sha256("Why is the sky blue?")[:16]


def test_ids_hash_their_parts_with_slashes_between() -> None:
    prompt = identity.prompt_id("x")
    tree = identity.tree_id(prompt, 42)
    assert tree == sha256(f"{prompt}/42/0")[:16]
    assert identity.tree_id(prompt, 42, 3) == sha256(f"{prompt}/42/3")[:16]
    assert identity.pair_id(tree, 5, 7, "step") == sha256(f"{tree}/5/7/step")[:16]
    made_by = {"models": [{"name": "é"}], "n": 2}
    assert identity.response_id(prompt, made_by, 1) == sha256(f'{prompt}/{{"models":[{{"name":"é"}}],"n":2}}/1')[:16]
    assert identity.response_id(prompt, dict(reversed(made_by.items())), 1) == identity.response_id(prompt, made_by, 1)


def test_ids_of_different_things_differ() -> None:
    prompt = identity.prompt_id("x")
    tree = identity.tree_id(prompt, 42)
    ids = [
        prompt,
        tree,
        identity.tree_id(prompt, 43),
        identity.tree_id(prompt, 42, 1),
        identity.pair_id(tree, 1, 2, "step"),
        identity.pair_id(tree, 2, 1, "step"),
        identity.pair_id(tree, 1, 2, "trajectory"),
        identity.response_id(prompt, {"method": "sample"}, 1),
        identity.response_id(prompt, {"method": "best_of_n"}, 1),
        identity.response_id(prompt, {"method": "best_of_n"}, 2),
    ]
    assert len(set(ids)) == len(ids)


@given(st.text())
def test_all_normal_forms_of_a_prompt_share_an_id(prompt: str) -> None:
    # NFD of a prompt and its NFC are canonically equal; compatibility forms (NFKC) are other texts
    forms = {identity.prompt_id(unicodedata.normalize(form, prompt)) for form in ("NFC", "NFD")}
    assert forms == {identity.prompt_id(prompt)}


def test_compatibility_forms_are_other_prompts() -> None:
    assert identity.prompt_id("ﬁne") != identity.prompt_id("fine")
    assert identity.prompt_id("caf\u00e9") == identity.prompt_id("cafe\u0301")


@given(st.text(alphabet=st.characters()))
def test_any_text_has_an_id(prompt: str) -> None:
    value = identity.prompt_id(prompt)  # lone surrogates too
    assert len(value) == 16
    assert set(value) <= set("0123456789abcdef")


def test_request_seed_is_the_low_53_bits_of_sha256() -> None:
    digest = int(sha256("42/tree/3/1"), 16)
    assert identity.request_seed(42, "tree", 3, 1) == digest % 2**53
    assert identity.request_seed(42, "tree", 3) == int(sha256("42/tree/3/0"), 16) % 2**53


@given(st.integers(0, 2**63), st.text(max_size=20), st.integers(0, 10_000), st.integers(0, 100))
def test_request_seed_is_exact_in_json(seed: int, owner: str, call: int, ask: int) -> None:
    value = identity.request_seed(seed, owner, call, ask)
    assert 0 <= value < 2**53
    assert int(float(value)) == value


def test_request_seeds_differ_by_all_that_they_are_made_of() -> None:
    seeds = [
        identity.request_seed(42, "a", 1),
        identity.request_seed(43, "a", 1),
        identity.request_seed(42, "b", 1),
        identity.request_seed(42, "a", 2),
        identity.request_seed(42, "a", 1, 1),
    ]
    assert len(set(seeds)) == len(seeds)


@given(st.integers(0, 2**32), st.text(max_size=16))
@settings(max_examples=50)
def test_consecutive_calls_never_have_consecutive_seeds(seed: int, owner: str) -> None:
    # vLLM seeds sample i of a request with seed + i: seeds closer than n would repeat samples
    seeds = sorted(identity.request_seed(seed, owner, call) for call in range(200))
    assert all(later - earlier > 64 for earlier, later in pairwise(seeds))
