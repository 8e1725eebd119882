r"""What common tokens and keys look like, and who says so.

The patterns are read by the regex engine of polars (Rust's: no look-around, and time linear in the text). Nearly each
has a part that is always the same, so that gigabytes are searched at the speed of a literal search, and plain text has
no hits: docs/publishing.md gives the measured rate, and why the rule sets of other tools were not taken.

Where a vendor names no format on a page of its own, the source is GitHub's list of the tokens that it finds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

_GITHUB_LIST = "https://docs.github.com/en/code-security/reference/secret-security/supported-secret-scanning-patterns"
_IS = r"""["'\s\\]{0,9}(?:=>|[:=])["'\s\\]{0,9}"""
"""Between a name and its value, in a shell, in JSON (also inside a JSON text), YAML or Python."""

_START = r"(?:\b|\\[nrt])"
"""Where a word begins, also after the end of a line inside a JSON text."""


class SecretShape(NamedTuple):
    """How a kind of secret is recognised."""

    pattern: str
    source: str
    """The page that gives the format."""
    within: tuple[str, ...] = ()
    """One of these is in every match, in some case, which a text is searched for first; () has the pattern alone."""
    core: str = ""
    """A pattern that is in every match and is found faster than the whole, where there is no such text."""
    needs_digit: bool = False
    """A match without a digit is words, such as YOUR_API_KEY."""


SHAPES: Mapping[str, SecretShape] = {
    "Hugging Face token": SecretShape(
        _START + r"hf_[A-Za-z0-9]{30,}", "https://huggingface.co/docs/hub/security-tokens", within=("hf_",)
    ),
    "Hugging Face organisation token": SecretShape(
        _START + r"api_org_[A-Za-z0-9]{30,}", _GITHUB_LIST, within=("api_org_",)
    ),
    "OpenAI or Anthropic key": SecretShape(
        _START + r"sk-(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{20,}",
        "https://platform.openai.com/docs/api-reference/authentication",
        within=("sk-",),
    ),
    "GitHub token": SecretShape(
        _START + r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
        "https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/about-authentication-to-github",
        within=("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    "GitLab token": SecretShape(
        _START + r"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|wt|soat|ffct)-[A-Za-z0-9_.-]{20,}",
        "https://docs.gitlab.com/security/tokens/",
        within=(
            "glpat-",
            "gloas-",
            "gldt-",
            "glrt-",
            "glrtr-",
            "glcbt-",
            "glptt-",
            "glft-",
            "glimt-",
            "glagent-",
            "glwt-",
            "glsoat-",
            "glffct-",
        ),
    ),
    "AWS key": SecretShape(
        _START + r"A(?:KIA|SIA)[0-9A-Z]{16}\b",
        "https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html",
        within=("AKIA", "ASIA"),
    ),
    "AWS secret": SecretShape(
        rf"(?i:secret_?access_?key|aws_?secret(?:_?key)?){_IS}[A-Za-z0-9/+]{{40}}(?:[^A-Za-z0-9/+=]|$)",
        "https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_access-keys.html",
        within=("access_key", "accesskey", "secret_access", "secretaccess", "aws_secret", "awssecret"),
    ),
    "AWS Bedrock key": SecretShape(
        _START + r"(?:ABSK[A-Za-z0-9+/]{100,}={0,2}|bedrock-api-key-[A-Za-z0-9+/]{40,})",
        "https://docs.aws.amazon.com/bedrock/latest/userguide/api-keys.html",
        within=("ABSK", "bedrock-api-key-"),
    ),
    "Google key": SecretShape(
        _START + r"AIza[0-9A-Za-z_-]{35}", "https://cloud.google.com/docs/authentication/api-keys", within=("AIza",)
    ),
    "Google OAuth token": SecretShape(
        _START + r"(?:ya29\.[0-9A-Za-z_-]{20,}|GOCSPX-[0-9A-Za-z_-]{28})",
        "https://developers.google.com/identity/protocols/oauth2",
        within=("ya29.", "GOCSPX-"),
    ),
    "Google service account": SecretShape(
        rf"private_key_id{_IS}[0-9a-f]{{40}}\b",
        "https://cloud.google.com/iam/docs/keys-create-delete",
        within=("private_key_id",),
    ),
    "Azure account key": SecretShape(
        _START + r"(?i:AccountKey|SharedAccessKey)\s*=\s*[A-Za-z0-9+/]{43,}=",
        "https://learn.microsoft.com/en-us/azure/storage/common/storage-configure-connection-string",
        within=("AccountKey", "SharedAccessKey"),
    ),
    "Azure client secret": SecretShape(
        _START + r"[0-9A-Za-z_.~]{3}[78]Q~[0-9A-Za-z_.~-]{31,34}",
        "https://learn.microsoft.com/en-us/purview/sit-defn-client-secret-api-key",
        within=("Q~",),
    ),
    "Slack token": SecretShape(
        _START + r"(?:xox[abeoprs](?:\.xox[bp])?-[0-9A-Za-z-]{10,}|xapp-[0-9]-[0-9A-Za-z-]{20,})",
        "https://api.slack.com/concepts/token-types",
        within=("xox", "xapp-"),
    ),
    "Slack hook": SecretShape(
        _START + r"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/[0-9A-Za-z+/]{20,}",
        "https://api.slack.com/messaging/webhooks",
        within=("hooks.slack",),
    ),
    "Discord token": SecretShape(
        _START + r"[MNO][0-9A-Za-z_-]{23,27}\.[0-9A-Za-z_-]{6}\.[0-9A-Za-z_-]{27,38}",
        "https://discord.com/developers/docs/reference#authentication",
        core=r"\.[0-9A-Za-z_-]{6}\.[0-9A-Za-z_-]{27}",
    ),
    "Discord hook": SecretShape(
        _START + r"discord(?:app)?\.com/api/(?:v[0-9]+/)?webhooks/[0-9]{17,20}/[0-9A-Za-z_-]{40,}",
        "https://discord.com/developers/docs/resources/webhook",
        within=("/webhooks/",),
    ),
    "Telegram token": SecretShape(
        r"(?:\b|bot|\\[nrt])[0-9]{6,12}:A[0-9A-Za-z_-]{34}", "https://core.telegram.org/bots/api#authorizing-your-bot"
    ),
    "Twilio key": SecretShape(
        rf"(?:{_START}SK|(?i:auth_?token){_IS})[0-9a-f]{{32}}\b", "https://www.twilio.com/docs/iam/api-keys"
    ),
    "DigitalOcean token": SecretShape(
        _START + r"do[opr]_v1_[0-9a-f]{64}\b",
        "https://docs.digitalocean.com/notes/2022/api-token-format",
        within=("_v1_",),
    ),
    "Databricks token": SecretShape(
        _START + r"(?:dapi|dose|dkea)[0-9a-f]{32}\b",
        "https://docs.databricks.com/aws/en/dev-tools/auth/pat",
        within=("dapi", "dose", "dkea"),
    ),
    "xAI key": SecretShape(_START + r"xai-[0-9A-Za-z]{40,}", _GITHUB_LIST, within=("xai-",)),
    "Stripe key": SecretShape(
        _START + r"[rs]k_(?:live|test)_[0-9A-Za-z]{20,}", "https://docs.stripe.com/keys", within=("k_live_", "k_test_")
    ),
    "PyPI token": SecretShape(
        _START + r"pypi-AgEI[0-9A-Za-z_-]{40,}", "https://pypi.org/help/#apitoken", within=("pypi-",)
    ),
    "npm token": SecretShape(
        _START + r"npm_[0-9A-Za-z]{36}", "https://docs.npmjs.com/about-access-tokens", within=("npm_",)
    ),
    "Docker token": SecretShape(
        _START + r"dckr_[po]at_[0-9A-Za-z_-]{20,}", "https://docs.docker.com/security/access-tokens/", within=("dckr_",)
    ),
    "HashiCorp Vault token": SecretShape(
        _START + r"hv[sb]\.[0-9A-Za-z_-]{24,}",
        "https://developer.hashicorp.com/vault/docs/concepts/tokens",
        within=("hvs.", "hvb."),
    ),
    "Groq key": SecretShape(_START + r"gsk_[0-9A-Za-z]{40,}", _GITHUB_LIST, within=("gsk_",)),
    "Perplexity key": SecretShape(_START + r"pplx-[0-9A-Za-z]{40,}", _GITHUB_LIST, within=("pplx-",)),
    "NVIDIA key": SecretShape(
        _START + r"nvapi-[0-9A-Za-z_-]{40,}",
        "https://docs.nvidia.com/ngc/latest/ngc-user-guide.html",
        within=("nvapi-",),
    ),
    "Replicate token": SecretShape(
        _START + r"r8_[0-9A-Za-z]{36,}", "https://replicate.com/docs/topics/security/api-tokens", within=("r8_",)
    ),
    "SendGrid key": SecretShape(
        _START + r"SG\.[0-9A-Za-z_-]{20,}\.[0-9A-Za-z_-]{20,}",
        "https://www.twilio.com/docs/sendgrid/ui/account-and-settings/api-keys",
        within=("SG.",),
    ),
    "JSON web token": SecretShape(
        _START + r"eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
        "https://www.rfc-editor.org/rfc/rfc7519#section-3.1",
        within=("eyJ",),
    ),
    "private key": SecretShape(
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
        "https://www.rfc-editor.org/rfc/rfc7468#section-10",
        within=("PRIVATE KEY",),
    ),
    "PuTTY private key": SecretShape(
        _START + r"PuTTY-User-Key-File-[123]:",
        "https://the.earth.li/~sgtatham/putty/0.81/htmldoc/AppendixC.html",
        within=("PuTTY-User-Key-File",),
    ),
    "bearer token": SecretShape(
        _START + r"(?i:bearer)[ \t]+[0-9A-Za-z._~+/-]{16,}",
        "https://www.rfc-editor.org/rfc/rfc6750#section-2.1",
        needs_digit=True,
        within=("bearer",),
    ),
    "password in a header": SecretShape(
        rf"{_START}(?i:authorization){_IS}(?i:basic)[ \t]+[0-9A-Za-z+/]{{12,}}={{0,2}}",
        "https://www.rfc-editor.org/rfc/rfc7617#section-2",
        within=("authorization",),
    ),
    "password in a URL": SecretShape(
        r"://[^/\s:@]{0,64}:[^/\s:@]{6,128}@[A-Za-z0-9\[]",
        "https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1",
        within=("://",),
    ),
    "key in a URL": SecretShape(
        r"[?&](?i:(?:api|access|auth|subscription)[_-]?(?:key|token)|token|key|secret|password|sig|signature)="
        r"[0-9A-Za-z%._~+/-]{16,}",
        "https://www.rfc-editor.org/rfc/rfc6750#section-2.3",
        needs_digit=True,
        within=("key=", "token=", "secret=", "password=", "sig=", "signature="),
    ),
}
PLACEHOLDERS = (
    "EXAMPLE",  # AWS's AKIAIOSFODNN7EXAMPLE and its secret
    "XXXXXXXXXXXXXXXXXXXXXXXX",  # Slack's hook
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",  # Azure's storage emulator
)
"""What vendors' own manuals print in a secret's place."""


def is_placeholder(shape: SecretShape, match: str) -> bool:
    """Return whether a match is a manual's example or plain words."""
    is_words = shape.needs_digit and not any(character.isdigit() for character in match)
    return is_words or any(printed in match for printed in PLACEHOLDERS)


def is_shape_of_secret(text: str) -> bool:
    """Return whether a short text holds something of these shapes."""
    return any(
        (found := re.search(shape.pattern, text)) is not None and not is_placeholder(shape, found[0])
        for shape in SHAPES.values()
    )


def looks_like_key(name: str) -> bool:
    """Return whether somebody gave a key where the name of a variable belongs."""
    return is_shape_of_secret(name) or any(_is_random(part) for part in name.split("_"))


_LEAST_RANDOM = 12
_LEAST_CHANGES = 4


def _is_random(word: str) -> bool:
    """Return whether letters and digits alternate as they do in a random word, and not in AZUREKEY2025EAST1."""
    changes = sum(left.isdigit() != right.isdigit() for left, right in pairwise(word))
    return len(word) >= _LEAST_RANDOM and changes >= _LEAST_CHANGES
