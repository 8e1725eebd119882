"""What this machine's environment holds and nobody else may see is found; what is no secret is not taken for one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from stairdata.hub.secrets import scan_texts
from stairdata_schemas.secrets import own
from stairdata_schemas.secrets.own import own_secrets

AWS_SECRET = "/q7Rz+0pWv/Lm3Xc9Ty2Bn8Gh5Jd1Fs6Qa4Ue/Zo"  # begins with a slash, as one in 64 does
PRIVATE_KEY = "-----BEGIN PRIVATE " + "KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "j.doe-2041")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)


# numbers as ids: pytest puts the id into the environment
LEAKS = [
    ("AWS_SECRET_ACCESS_KEY", AWS_SECRET, AWS_SECRET),
    ("DB_PASS", "hunter22", "hunter22"),
    ("SMTP_PASSWORD", "pa55/word", "pa55/word"),
    ("MYSQL_PWD", "p@ss:w0rd", "p@ss:w0rd"),
    ("PGPASSFILE_PASS", "Tr0ub4dor&3", "Tr0ub4dor&3"),
    ("REGISTRY_AUTH", "me:s3cretpw", "s3cretpw"),
    ("PROXY_AUTH", "Basic bWU6c2VjcmV0", "bWU6c2VjcmV0"),
    ("CI_WEBHOOK", "https://chat.example.org/in/b1946ac9", "https://chat.example.org/in/b1946ac9"),
    ("TEAMS_WEBHOOK_URL", "https://a.webhook.office.com/x/y-1", "https://a.webhook.office.com/x/y-1"),
    ("GOOGLE_CREDENTIALS", json.dumps({"private_key": PRIVATE_KEY, "client_id": "1"}), PRIVATE_KEY),
    ("AZURE_CREDENTIALS", '{"a": {"clientSecret": "x9/Qw-7zT"}}', "x9/Qw-7zT"),
    ("SSH_KEY", PRIVATE_KEY, "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"),
    ("DATABASE_URL", "postgres://me:s3cret%2Fpw@db/x", "s3cret/pw"),
    ("CELERY_BROKER", "amqp://me:s3cret%2Fpw@mq//", "s3cret%2Fpw"),
    ("REDIS_URL", "redis://:longpassword1@cache:6379/0", "longpassword1"),
    ("HTTPS_PROXY", "http://me:proxy-pw-1@proxy:3128", "proxy-pw-1"),
    ("SENTRY_DSN", "https://3f1c2b9a@o1.ingest.sentry.io/2", "3f1c2b9a"),
    ("ENDPOINT", "https://a.example.org/v1?api-key=zx81-zx81", "zx81-zx81"),
    ("PGDSN", "host=db password=s3cret/pw user=me", "s3cret/pw"),
    ("STORAGE", "AccountName=me;AccountKey=abc/DEF+123==;Suffix=x", "abc/DEF+123=="),
    ("API_KEYS", "first-key-1,second-key-2", "second-key-2"),
    ("LONG_WORD_PASSPHRASE", "correcthorsebatterystaple", "correcthorsebatterystaple"),
    ("session-cookie", "a1b2c3d4", "a1b2c3d4"),
    ("HF_TOKEN", "hf_short_1", "hf_short_1"),
]


@pytest.mark.parametrize(("name", "value", "leaked"), LEAKS, ids=[f"{number}" for number in range(len(LEAKS))])
def test_a_secret_is_found_in_every_spelling(
    name: str, value: str, leaked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert own_secrets()[leaked] == name
    texts = (
        f"it is {leaked}.",
        json.dumps(leaked),
        json.dumps(leaked).replace("/", "\\/"),
        f"x={quote(leaked, safe='')}",
    )
    hits = list(scan_texts({str(number): text for number, text in enumerate(texts)}, own_secrets()))
    assert [hit.what for hit in hits] == [f"secret of this environment ({name})"] * 4


HARMLESS = [
    ("TOKENIZERS_PARALLELISM", "false"),
    ("USE_AUTH", "true"),
    ("AUTH_REQUIRED", "disabled"),
    ("MAX_TOKENS", "4096"),
    ("PIN", "20261128"),
    ("TOKENIZER", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("SSH_AUTH_SOCK", "/run/ssh-abc123/agent.7"),
    ("SSH_KEY", "~/.ssh/id_ed25519"),
    ("TLS_KEY", "./keys/server-1.pem"),
    ("SSL_KEY_FILE", "server-key-1.pem"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "keys/service-1.json"),
    ("PWD", "/work/some-folder-1"),
    ("AUTH_URL", "https://login.example.org/oauth2/token"),
    ("TOKEN_ENDPOINT", "http://localhost:8000/v1"),
    ("AUTH_USER", "svc-account-1"),
    ("DB_PASS", "password"),
    ("DB_PASSWORD", "j.doe-2041"),
    ("OPENAI_API_KEY", "not-needed"),
    ("OPENAI_API_KEY", "EMPTY"),
    ("VAULT_TOKEN", "********"),
    ("API_KEY", ""),
    ("KEYBOARD_LAYOUT", "us"),
    ("AUTH_METHOD", "oauth2-device"),
    ("EDITOR", "vim-nox-9"),
    ("HTTPS_PROXY", "http://proxy-1.example.org:3128"),
    ("BAD_TOKEN", "abc\udcff1234"),
]


@pytest.mark.parametrize(("name", "value"), HARMLESS, ids=[f"{number}" for number in range(len(HARMLESS))])
def test_a_value_that_is_no_secret_is_not_looked_for(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "service-1.json").touch()
    monkeypatch.setenv(name, value)
    assert own_secrets() == {}


def test_the_token_of_the_hub_counts_wherever_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token/of-a-file-1")
    assert own_secrets() == {"token/of-a-file-1": own.HUB_TOKEN}
    (hit,) = scan_texts({"README.md": "say token/of-a-file-1"}, own_secrets())
    assert (hit.what, hit.beginning) == (f"secret of this environment ({own.HUB_TOKEN})", "")
