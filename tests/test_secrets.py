from __future__ import annotations

import pytest

from indexer.secrets import secret_content, secret_name

# Tokens are put together here so that no scanner, ours included, takes this file for a leak.
BODY = "Zk3Qw9Rt7Yp2Lm5Xc8Vb1Nh4Jd6Gs0AuEiOoTf"


def token(prefix: str, length: int) -> str:
    return prefix + (BODY * 4)[:length]


def pem(kind: str, body: str, newline: str = "\n") -> str:
    return newline.join([f"-----BEGIN {kind}-----", body, f"-----END {kind}-----"])


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "web/.env.production",
        "deploy/prod.env",
        "certs/server.PEM",
        "server.key",
        "store.p12",
        "home/.ssh/config",
        "id_rsa",
        "id_ed25519",
        "deploy_rsa",
        ".npmrc",
        ".pypirc",
        ".netrc",
        "vault.kdbx",
        "infra/terraform.tfstate",
        "infra/terraform.tfstate.backup",
        "infra/prod.tfvars",
        ".aws/credentials",
        "credentials.json",
        "config/secrets.yml",
        "service-account-prod.json",
        "gcp-credentials.json",
        "client_secret_12.json",
        ".docker/config.json",
        "wp-config.php",
    ],
)
def test_names_of_secrets(path: str) -> None:
    assert secret_name(path)


@pytest.mark.parametrize(
    "path",
    [
        ".env.example",
        ".env.local.sample",
        "credentials.template.json",
        "prod.tfvars.example",
        "id_rsa.pub",
        "src/credentials.py",
        "auth/secrets.go",
        "CredentialsProvider.java",
        "credentials/__init__.py",
        "secrets/store.rs",
        "environment.ts",
        "env.py",
        "keys.py",
        "docs/credentials.md",
        "config.json",
        "monkey.ts",
    ],
)
def test_names_that_only_sound_like_secrets(path: str) -> None:
    assert not secret_name(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (pem("RSA PRIVATE KEY", BODY + BODY), "private key"),
        (pem("PRIVATE KEY", BODY + BODY, newline="\\n"), "private key"),
        (
            pem("OPENSSH PRIVATE KEY", "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAA"),
            "private key",
        ),
        (
            pem("RSA PRIVATE KEY", f"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,1F\n\n{BODY}{BODY}"),
            "private key",
        ),
        (f'KEY = ("-----BEGIN EC PRIVATE KEY-----\\n"\n       "{BODY}{BODY}\\n")', "private key"),
        (f"key_id = '{'AKIA' + 'Q3EGRTWPLK7ZXN4V'}'", "AWS access key id"),
        (token("ghp_", 36), "GitHub token"),
        (token("github_pat_", 22) + "_" + token("", 59), "GitHub token"),
        ("xoxb-" + "123456789012-123456789012-" + BODY[:24], "Slack token"),
        ("https://hooks.slack." + "com/services/T01ABCDEF/B01ABCDEF/" + BODY[:24], "Slack webhook"),
        (token("sk_" + "live_", 24), "Stripe key"),
        (token("sk-proj-", 40) + "T3BlbkFJ" + token("", 40), "OpenAI key"),
        (token("sk-ant-" + "api03-", 95), "Anthropic key"),
        (token("AIza", 35), "Google API key"),
        (token("glpat-", 20), "GitLab token"),
    ],
)
def test_content_of_secrets(text: str, what: str) -> None:
    assert secret_content(f"# settings\n{text}\nend\n") == what


@pytest.mark.parametrize(
    "text",
    [
        "if line.startswith('-----BEGIN RSA PRIVATE KEY-----'):\n    raise ValueError('a private key')\n",
        pem("PUBLIC KEY", BODY + BODY),
        pem("CERTIFICATE", BODY + BODY),
        pem("PRIVATE KEY", "..."),
        "AKIA" + "IOSFODNN7EXAMPLE",
        "AKIA" + "X" * 16,
        "ghp_" + "x" * 36,
        "export GITHUB_TOKEN=ghp_...",
        "ghp_" + "1234567890abcdefghijklmnopqrstuvwxyz",
        "sk_" + "test_" + BODY[:24],
        "sk-" + "your-key-here",
        token("", 40),
        "sha256:" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_content_that_only_looks_like_secrets(text: str) -> None:
    assert secret_content(f"# settings\n{text}\nend\n") is None
