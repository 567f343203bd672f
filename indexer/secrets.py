"""Files that look like secrets: by name, and by content that cannot be anything else.

Precise rather than complete: what is skipped here wrongly is missing from memory without anyone having asked
for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate


def any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """One regular expression for many shell patterns, to be matched against a whole name."""
    return re.compile("|".join(map(translate, patterns)))


# Data formats in which people keep credentials. A source module called credentials.py or secrets.go handles
# secrets and does not hold them, so it is read.
_DATA = "json yaml yml toml ini cfg conf xml txt csv properties env enc db plist"

# Patterns of file names in lower case.
_PLAIN_NAMES = """
    .env .env.* *.env .envrc *.pem *.key *.p8 *.p12 *.pfx *.jks *.keystore *.truststore *.kdb *.kdbx *.ppk
    *.gpg *.pgp *_rsa *_dsa *_ecdsa *_ed25519
    .npmrc .pypirc .netrc _netrc .htpasswd .pgpass .my.cnf .dockercfg .dockerconfigjson .git-credentials
    .s3cfg .boto .vault-token credentials secrets kubeconfig *.kubeconfig *.tfstate *.tfstate.*
    *.tfvars *.tfvars.json client_secret*.json client-secret*.json service-account*.json
    service_account*.json serviceaccount*.json *-credentials.json *_credentials.json wp-config.php *.ovpn
    *.mobileprovision
"""
_DATA_NAMES = [f"{name}.{suffix}" for name in ("credentials", "secrets", "secret") for suffix in _DATA.split()]
_NAMES = any_of([*_PLAIN_NAMES.split(), *_DATA_NAMES])

# Files whose name is harmless and whose directory is not.
_PATHS = any_of(["*/.docker/config.json", "*/.kube/config", "*/.aws/config", "*/.ssh/*"])

# `.env.example`, `credentials.sample.json`, `id_rsa.pub`: templates are written to be read, public keys to be
# given away.
_HARMLESS = re.compile(r"[._-](example|sample|template|tmpl|dist|defaults?|pub)([._-]|$)")

_CONTENT = tuple(
    (what, literal, re.compile(pattern))
    for what, literal, pattern in (
        (
            "private key",
            "PRIVATE KEY",
            # The body must follow: code that looks for the header line holds the header alone. Between them
            # may be a line break, one written as \n, a string's quotes, or the headers of an encrypted key.
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r"(?:\s|\\[nr]|[\"'+,\\]|[A-Z][A-Za-z-]+: [^\n]*\n)*"
            r"([A-Za-z0-9+/=]{40,})",
        ),
        ("AWS access key id", "A", r"\b(?:AKIA|ASIA)([A-Z2-7]{16})\b"),
        ("GitHub token", "gh", r"\bgh[pousr]_([A-Za-z0-9]{36})\b"),
        ("GitHub token", "github_pat_", r"\bgithub_pat_([A-Za-z0-9]{22}_[A-Za-z0-9]{59})\b"),
        ("GitLab token", "glpat-", r"\bglpat-([A-Za-z0-9_-]{20})\b"),
        ("Slack token", "xox", r"\bxox[abeoprs]-(?:\d+-)+([A-Za-z0-9]{20,})"),
        (
            "Slack webhook",
            "hooks.slack.com",
            r"hooks\.slack\.com/services/T[A-Z0-9]{8,}/B[A-Z0-9]{8,}/(\w{24})\b",
        ),
        ("Stripe key", "k_live_", r"\b[rs]k_live_([A-Za-z0-9]{24,})\b"),
        ("OpenAI key", "T3BlbkFJ", r"\bsk-([A-Za-z0-9_-]{16,}T3BlbkFJ[A-Za-z0-9_-]{16,})"),
        ("Anthropic key", "sk-ant-", r"\bsk-ant-[a-z]+\d{2}-([A-Za-z0-9_-]{80,})"),
        ("Google API key", "AIza", r"\bAIza([A-Za-z0-9_-]{35})(?![A-Za-z0-9_-])"),
        ("Google client secret", "GOCSPX-", r"\bGOCSPX-([A-Za-z0-9_-]{28})(?![A-Za-z0-9_-])"),
        ("Hugging Face token", "hf_", r"\bhf_([A-Za-z]{34})\b"),
        ("npm token", "npm_", r"\bnpm_([A-Za-z0-9]{36})\b"),
        ("PyPI token", "pypi-AgEI", r"\bpypi-(AgEI[A-Za-z0-9_-]{50,})"),
    )
)

# What people write where a real token would stand.
_PLACEHOLDER = re.compile(r"EXAMPLE|example|12345|abcde|ABCDE")
_DISTINCT = 8  # characters: `ghp_xxxx...` has one, 16 random ones have hardly ever fewer than 8


def secret_name(path: str) -> bool:
    """Whether the name of a file says that it holds secrets; `path` with slashes."""
    lower = path.lower()
    name = lower.rpartition("/")[2]
    if _HARMLESS.search(name):
        return False
    return bool(_NAMES.match(name) or _PATHS.match(f"/{lower}"))


def secret_content(text: str) -> str | None:
    """What kind of secret a text holds, such as "private key"; None where nothing is certain."""
    for what, literal, pattern in _CONTENT:
        if literal in text:
            for match in pattern.finditer(text):
                if len(set(match[1])) >= _DISTINCT and not _PLACEHOLDER.search(match[1]):
                    return what
    return None
