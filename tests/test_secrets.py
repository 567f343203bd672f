from __future__ import annotations

import pytest

from indexer.secrets import masked, secret_name

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
    ("text", "secret"),
    [
        (pem("RSA PRIVATE KEY", BODY + BODY), BODY),
        (pem("PRIVATE KEY", BODY + "ab\n" + BODY[:9]), BODY[:9]),
        (pem("PRIVATE KEY", BODY + BODY, newline="\\n"), BODY),
        (pem("OPENSSH PRIVATE KEY", "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAA"), "b3BlbnNz"),
        (pem("RSA PRIVATE KEY", f"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,1F\n\n{BODY}{BODY}"), BODY),
        (f'KEY = ("-----BEGIN EC PRIVATE KEY-----\\n"\n       "{BODY}{BODY}\\n")', BODY),
        (f"key_id = '{'AKIA' + 'Q3EGRTWPLK7ZXN4V'}'", "Q3EGRTWPLK7ZXN4V"),
        (token("ghp_", 36), BODY[:36]),
        (token("github_pat_", 22) + "_" + token("", 59), BODY[:22]),
        ("xoxb-" + "123456789012-123456789012-" + BODY[:24], BODY[:24]),
        ("https://hooks.slack." + "com/services/T01ABCDEF/B01ABCDEF/" + BODY[:24], BODY[:24]),
        (token("sk_" + "live_", 24), BODY[:24]),
        (token("sk-proj-", 40) + "T3BlbkFJ" + token("", 40), BODY),
        (token("sk-ant-" + "api03-", 95), BODY),
        (token("AIza", 35), BODY[:35]),
        (token("glpat-", 20), BODY[:20]),
        (f"password = '{BODY[:12]}'", BODY[:12]),
        (f"url = 'postgresql://app:{BODY[:14]}@db.internal/x'", BODY[:14]),
    ],
)
def test_secret_values_are_masked_and_nothing_else_moves(text: str, secret: str) -> None:
    whole = f"# settings\n{text}\nend\n"
    found, count = masked(whole)
    assert secret not in found and count >= 1
    assert len(found) == len(whole) and found.startswith("# settings\n") and found.endswith("\nend\n")
    assert [len(line) for line in found.split("\n")] == [len(line) for line in whole.split("\n")]
    assert masked(found) == (found, 0)


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
        "password = 'correct horse battery staple'",
        "client_secret='my-client-secret'",
        "url = 'postgresql://user:pass@host/db'",
        "password = getpass('Password: ')",
        "sha256:" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_values_that_only_look_like_secrets_stay(text: str) -> None:
    whole = f"# settings\n{text}\nend\n"
    assert masked(whole) == (whole, 0)
