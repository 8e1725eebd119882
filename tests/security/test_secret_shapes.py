"""Every shape of a secret is found in the forms in which it leaks, and plain text is not taken for one.

No example is a real secret, and each is put together here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import json
import random
import re
import string

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stairdata.hub.secrets import TextScanner, scan_texts
from stairdata_schemas.secrets.shapes import PLACEHOLDERS, SHAPES, looks_like_key

WORDS = string.ascii_letters + string.digits
CAPITALS = string.ascii_uppercase + string.digits
HEX = "0123456789abcdef"
_RANDOM = random.Random(13)  # noqa: S311


def some(alphabet: str, length: int) -> str:
    return "".join(_RANDOM.choice(alphabet) for _ in range(length))


AWS_SECRET = some(WORDS + "/+", 38) + "/7"
SERVICE_ACCOUNT = json.dumps({"type": "service_account", "project_id": "p", "private_key_id": some(HEX, 40)})
EXAMPLES = {
    "Hugging Face token": ["hf_" + some(string.ascii_letters, 34)],
    "Hugging Face organisation token": ["api_org_" + some(string.ascii_letters, 34)],
    "OpenAI or Anthropic key": [
        "sk-" + some(WORDS, 48),
        "sk-proj-" + some(WORDS + "_-", 120),
        "sk-ant-api03-" + some(WORDS + "_-", 93),
        "sk-or-v1-" + some(HEX, 64),
    ],
    "GitHub token": ["ghp_" + some(WORDS, 36), "ghs_" + some(WORDS, 36), "github_pat_" + some(WORDS + "_", 82)],
    "GitLab token": ["glpat-" + some(WORDS, 20), "glrt-" + some(WORDS, 20), "glpat-" + some(WORDS, 27) + ".01.0abc"],
    "AWS key": ["AKIA" + some(CAPITALS, 16), "ASIA" + some(CAPITALS, 16)],
    "AWS secret": [
        f"aws_secret_access_key = {AWS_SECRET}",
        f"export AWS_SECRET_ACCESS_KEY='{AWS_SECRET}'",
        json.dumps({"SecretAccessKey": AWS_SECRET, "Token": "x"}),
        json.dumps(json.dumps({"secretAccessKey": AWS_SECRET})),
        f"aws_secret: {AWS_SECRET}\n",
    ],
    "AWS Bedrock key": ["ABSK" + some(WORDS, 128) + "=", "bedrock-api-key-" + some(WORDS, 60)],
    "Google key": ["AIza" + some(WORDS + "_-", 35)],
    "Google OAuth token": ["ya29." + some(WORDS + "_-", 120), "GOCSPX-" + some(WORDS + "_-", 28)],
    "Google service account": [SERVICE_ACCOUNT, json.dumps(SERVICE_ACCOUNT)],
    "Azure account key": [
        f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={some(WORDS + '+/', 86)}==;EndpointSuffix=x",
        f"Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=r;SharedAccessKey={some(WORDS + '+/', 43)}=",
    ],
    "Azure client secret": [some(WORDS, 3) + "8Q~" + some(WORDS + "_.-", 34)],
    "Slack token": [
        f"xoxb-{some(string.digits, 12)}-{some(string.digits, 13)}-{some(WORDS, 24)}",
        f"xoxe.xoxp-1-{some(WORDS, 160)}",
        f"xapp-1-A{some(CAPITALS, 10)}-{some(string.digits, 13)}-{some(HEX, 64)}",
    ],
    "Slack hook": [f"https://hooks.slack.com/services/T{some(CAPITALS, 10)}/B{some(CAPITALS, 10)}/{some(WORDS, 24)}"],
    "Discord token": [f"M{some(WORDS, 23)}.{some(WORDS, 6)}.{some(WORDS + '_-', 27)}"],
    "Discord hook": [f"https://discord.com/api/webhooks/{some(string.digits, 18)}/{some(WORDS + '_-', 68)}"],
    "Telegram token": [
        f"{some('123456789', 10)}:AA{some(WORDS + '_-', 33)}",
        f"https://api.telegram.org/bot{some('123456789', 10)}:AA{some(WORDS + '_-', 33)}/getMe",
    ],
    "Twilio key": ["SK" + some(HEX, 32), f"TWILIO_AUTH_TOKEN={some(HEX, 32)}", f'"authToken": "{some(HEX, 32)}"'],
    "DigitalOcean token": ["dop_v1_" + some(HEX, 64), "dor_v1_" + some(HEX, 64)],
    "Databricks token": ["dapi" + some(HEX, 32), "dapi" + some(HEX, 32) + "-2"],
    "xAI key": ["xai-" + some(WORDS, 80)],
    "Stripe key": ["sk_live_" + some(WORDS, 24), "rk_test_" + some(WORDS, 24)],
    "PyPI token": ["pypi-AgEI" + some(WORDS + "_-", 150)],
    "npm token": ["npm_" + some(WORDS, 36)],
    "Docker token": ["dckr_pat_" + some(WORDS + "_-", 27)],
    "HashiCorp Vault token": ["hvs." + some(WORDS + "_-", 90)],
    "Groq key": ["gsk_" + some(WORDS, 52)],
    "Perplexity key": ["pplx-" + some(WORDS, 48)],
    "NVIDIA key": ["nvapi-" + some(WORDS + "_-", 64)],
    "Replicate token": ["r8_" + some(WORDS, 37)],
    "SendGrid key": [f"SG.{some(WORDS, 22)}.{some(WORDS, 43)}"],
    "JSON web token": [f"eyJ{some(WORDS, 20)}.eyJ{some(WORDS, 40)}.{some(WORDS + '_-', 43)}"],
    "private key": [
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK",
    ],
    "PuTTY private key": ["PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none"],
    "bearer token": [f"Authorization: Bearer {some(WORDS, 39)}7", f"bearer  {some(HEX, 31)}7"],
    "password in a header": ["Authorization: Basic bWU6c2VjcmV0MTIz", '{"Authorization": "Basic bWU6c2VjcmV0MTIz"}'],
    "password in a URL": [
        "postgres://me:secret123@db.example.org/x",
        "redis://:secret123@localhost",
        "http://a:b1c2d3@[::1]/",
    ],
    "key in a URL": [
        f"https://a.example.org/v1?api-key={some(HEX, 31)}7",
        f"https://a.example.org/x?v=1&access_token={some(WORDS, 29)}7",
        f"https://a.blob.core.windows.net/c?sv=2024&sig={some(WORDS, 40)}7%3D",
    ],
}
CASES = [(what, example) for what, examples in EXAMPLES.items() for example in examples]
PLAIN = [
    "skating sk-short, hf_tokenizers, key: value, AKIA, task-oriented-dialogue-systems",
    "https://a.org/b:c@d and http://localhost:8000/v1?model=actor&page=2",
    "the bearer of this letter; bearer authentication-and-authorization; Authorization: Bearer YOUR_API_KEY_GOES_HERE",
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + PLACEHOLDERS[0] + "KEY",
    "AKIAIOSFODNN7" + PLACEHOLDERS[0],
    "https://hooks.slack.com/services/T00000000/B00000000/" + PLACEHOLDERS[1],
    "AccountKey=" + PLACEHOLDERS[2] + "/K1SZFPTOtr/KBHBeksoGMGw==",
    "commit 5d41402abc4b2a76b9719d911017c592aabbccdd of 2026-11-28, tree 16 of 128, xoxo, xai is a company",
    "What is 1234567890:A? 12:Answer; MNOPQRSTUVWXYZ.example.org; SK is Slovakia; SK-II; eyJ; dapi; SG.",
    "?key=value&token=none, secret=, my password is in a safe; -----BEGIN PUBLIC KEY-----",
    "auth_token: see the manual; private_key_id: the key's id; PuTTY is a client",
]


def test_every_shape_has_examples_and_a_source() -> None:
    assert EXAMPLES.keys() == SHAPES.keys()
    assert all(shape.source.startswith("https://") for shape in SHAPES.values())


@pytest.mark.parametrize(("what", "example"), CASES)
def test_an_example_is_found_wherever_it_is(what: str, example: str) -> None:
    lines = f"\n{example}\n"
    texts = (example, f"My key is {example}, don't tell", lines, json.dumps({"keys": [lines, example]}))
    hits = list(scan_texts(dict(zip("abcd", texts, strict=True)), {}))
    assert [(hit.where, hit.what) for hit in hits] == [(name, what) for name in "abcd"]
    assert len(list(scan_texts({"json": json.dumps(lines)}, {}))) == 1
    assert max(len(hit.beginning) for hit in hits) == len(" (1234…)")


@pytest.mark.parametrize("text", PLAIN)
def test_plain_words_are_no_secrets(text: str) -> None:
    assert list(scan_texts({"a": text}, {})) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what, shape in SHAPES.items() if shape.within or shape.core])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_part_that_a_text_is_searched_for_first_is_in_every_match(what: str, data: st.DataObject) -> None:
    shape = SHAPES[what]
    match = data.draw(st.from_regex(re.compile(shape.pattern, re.ASCII)))
    assert not shape.within or any(part.lower() in match.lower() for part in shape.within)
    assert re.search(shape.core, match)


def test_many_texts_are_searched_at_once() -> None:
    texts = pl.DataFrame({"value": ["nothing", *(example for _, example in CASES), None, "nothing"]})
    assert TextScanner({}).suspects(texts)["value"].to_list() == [example for _, example in CASES]


def test_what_is_passed_over_first_has_no_shape() -> None:
    """Texts are searched for parts before they are searched for shapes, and only for those of which they have one."""
    parts = [part for shape in SHAPES.values() for part in shape.within]
    texts = [*PLAIN, *parts, "".join(parts), *(example.swapcase() for _, example in CASES)]
    column = pl.DataFrame({"value": texts})
    shapes = [pl.col("value").str.contains(shape.pattern) for shape in SHAPES.values()]
    assert TextScanner({}).suspects(column).equals(column.filter(pl.any_horizontal(shapes)))


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "my_key", "AZUREKEY2025EAST1", "K8S_H100_KEY_2", "_KEY", "HF_TOKEN"]
)
def test_a_name_of_a_variable_is_no_key(name: str) -> None:
    assert not looks_like_key(name)


@pytest.mark.parametrize("key", ["hf_" + "a" * 34, "sk-" + some(WORDS, 48), some(HEX, 32), "gsk_" + some(WORDS, 52)])
def test_a_key_is_no_name_of_a_variable(key: str) -> None:
    assert looks_like_key(key)
