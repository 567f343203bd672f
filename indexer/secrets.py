"""Secrets: files that hold them, by their names, and values in other files that cannot be anything else.

Such files are not read; such values are masked before a model sees the text. Precise rather than complete: what is
masked here wrongly is missing from memory without anyone having asked for it. Values are found by detect-secrets, and
by patterns of tokens that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import translate
from functools import lru_cache
from typing import Any


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

# Of detect-secrets: plugins that see more than secrets. Entropy alone finds every hash, an address is no secret, and
# the header of a private key says nothing of its body.
_IMPRECISE = ("HighEntropy", "IPPublic", "PrivateKey")
# Its plugin for values beside words like "password" is slow, so it sees only lines that have such a word and a quote.
_KEYWORD = "KeywordDetector"
_KEYWORDS = re.compile(r"(?i)(?:pass|pwd|secret|token|api_?key|private_?key|auth|credential).*[\"'`]")
# Raise it where the rules change: all documents are looked through again then.
SCANNER = "1"
_MASK = "*"
_LONGEST_KEY = 20_000  # characters

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


def masked(text: str) -> tuple[str, int]:
    """The text with secret values masked, every character of them but line breaks, so that nothing else moves; and how
    many there were."""
    found: list[tuple[int, int]] = []
    for start, end in sorted({*_by_library(text), *_by_patterns(text)}):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    for start, end in found:
        text = text[:start] + re.sub(r"[^\n]", _MASK, text[start:end]) + text[end:]
    return text, len(found)


def _by_patterns(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of tokens stand that have a pattern here."""
    for _, literal, pattern in _CONTENT:
        if literal in text:
            for match in pattern.finditer(text):
                if _is_random(match[1]):
                    start, end = match.span(1)
                    if literal == "PRIVATE KEY":
                        last = text.find("-----END", end, end + _LONGEST_KEY)
                        end = end if last < 0 else last
                    yield start, end


def _by_library(text: str) -> Iterator[tuple[int, int]]:
    """Where the values stand that detect-secrets finds, line by line."""
    at = 0
    for line in text.split("\n"):
        for name, plugin in _plugins():
            if name == _KEYWORD and not _KEYWORDS.search(line):
                continue
            for value in plugin.analyze_string(line):
                certain = _is_random(value)
                if name == _KEYWORD:
                    certain = certain and bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value))
                if certain and (start := line.find(value)) >= 0:
                    yield at + start, at + start + len(value)
        at += len(line) + 1


@lru_cache(maxsize=1)
def _plugins() -> list[tuple[str, Any]]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    known: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    return [(p.__name__, p()) for p in known if not any(word in p.__name__ for word in _IMPRECISE)]


def _is_random(value: str) -> bool:
    return len(set(value)) >= _DISTINCT and not _PLACEHOLDER.search(value)
