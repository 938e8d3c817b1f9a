"""The scan for keys, tokens and passwords. All values are made up; none is or was valid."""

import random
import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jobs.text.secrets import entropy, find_secrets
from tests.support.cost import assert_grows_with_the_size_only

pytestmark = pytest.mark.unit


def made(prefix: str, length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """A token in the form of a service, drawn with a fixed seed: no such token stands in this file."""
    draw = random.Random(prefix)
    return prefix + "7A" + "".join(draw.choice(alphabet) for _ in range(length - 2))


def found(text: str) -> list[tuple[str, str]]:
    return [(finding.entity, text[finding.start : finding.end]) for finding in find_secrets(text)]


HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("AWS_ACCESS_KEY", "AKIA" + made("", 16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")),
        ("GITHUB_TOKEN", made("ghp_", 36)),
        ("GITHUB_TOKEN", made("github_pat_", 22) + "_" + made("x", 59)),
        ("GITLAB_TOKEN", made("glpat-", 20)),
        ("SLACK_TOKEN", "xoxb-" + "123456789012-" + made("", 24)),
        ("SLACK_TOKEN", "https://hooks.slack.com/services/" + "T00000000/B00000000/" + made("", 24)),
        ("STRIPE_KEY", made("sk_live_", 24)),
        ("STRIPE_KEY", made("whsec_", 32)),
        ("OPENAI_KEY", made("sk-proj-", 48)),
        ("ANTHROPIC_KEY", made("sk-ant-api03-", 60)),
        ("GOOGLE_KEY", made("AIza", 35)),
        ("HUGGING_FACE_TOKEN", made("hf_", 34)),
        ("NPM_TOKEN", made("npm_", 36)),
        ("PYPI_TOKEN", made("pypi-AgEIcHlwaS5vcmc", 90)),
        ("SENDGRID_KEY", made("SG.", 22) + "." + made("", 43)),
        ("DIGITALOCEAN_TOKEN", "dop_v1_" + made("", 64, HEX).lower()),
        ("DATABRICKS_TOKEN", "dapi" + made("", 32, HEX).lower()),
        ("TELEGRAM_TOKEN", "123456789:AA" + made("", 33)),
        ("JWT", made("eyJ", 30) + "." + made("eyJ", 60) + "." + made("", 43)),
        (
            "PRIVATE_KEY",
            "-----BEGIN " + "RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIE+/=\n-----END RSA PRIVATE KEY-----",
        ),
        ("PRIVATE_KEY", "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk cut off here"),
    ],
)
def test_tokens_of_services(kind: str, value: str) -> None:
    assert found(f"Here it is: {value}") == [(kind, value)]
    if kind != "PRIVATE_KEY":
        assert found(f'{{"value": "{value}"}}, and more') == [(kind, value)]
        assert found(f"x{value}") == [] or kind in ("SLACK_TOKEN", "TELEGRAM_TOKEN")


@pytest.mark.parametrize(
    ("text", "kind", "secret"),
    [
        ("password: hunter2", "PASSWORD", "hunter2"),
        ("DB_PASSWORD='Tr0ub4dor&3'", "PASSWORD", "Tr0ub4dor&3"),
        ("The password is Correct-Horse9, ok?", "PASSWORD", "Correct-Horse9"),
        ('{"passwd": "12345678"}', "PASSWORD", "12345678"),
        ("Passwort: Geheim!23", "PASSWORD", "Geheim!23"),
        ("postgres://app:s3cr3t@db:5432/x", "PASSWORD", "s3cr3t"),
        ("api_key = 'k3f2a9c1b7d8e4f60a1b2c3d'", "SECRET", "k3f2a9c1b7d8e4f60a1b2c3d"),
        ("token: 123e4567-e89b-42d3-a456-426614174000", "SECRET", "123e4567-e89b-42d3-a456-426614174000"),
        ("Authorization: Bearer k3f2a9c1b7d8e4f60a1b2c3d", "SECRET", "k3f2a9c1b7d8e4f60a1b2c3d"),
        ("AccountKey=Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg==", "SECRET", "Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg=="),
    ],
)
def test_what_is_assigned_to_a_name_that_says_so(text: str, kind: str, secret: str) -> None:
    assert found(text) == [(kind, secret)]


@pytest.mark.parametrize(
    "text",
    [
        "123e4567-e89b-12d3-a456-426614174000",
        "commit 3f2a9c1b7d8e4f60a1b2c3d4e5f60718293a4b5c of the key component",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "I forgot my password, please help. The password is wrong. Is the password required?",
        "password: ********, password=<your password>, password: ${DB_PASSWORD}, password: your_password_1",
        "password = os.environ['DB_PASSWORD']; token = get_token(); secret = settings.secret_key",
        "max_tokens=4096, token bucket: 100 requests, key: value, keyword: abcdefghijklmnop12345",
        "the secret is to knead the dough for 10 minutes",
        "https://user:password@example.com, http://localhost:8080/@me, mailto:a@b.com",
        "Reset your password: https://example.com/reset/a1b2c3",
        "sk-learn, sk-something-that-is-a-slug-with-many-words, ghp_short, AKIAshort",
        "Basic understanding of authorization; Bearer of bad news",
        "password (at least 8 characters), password reset, passwordless",
        "token: 2024-01-01/2024-12-31, api_key=1111-0000-1111-0000",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert found(text) == []


@given(st.text(max_size=200))
def test_findings_lie_in_the_text_and_do_not_overlap(text: str) -> None:
    findings = find_secrets(f"password={text}")
    assert all(0 <= f.start < f.end <= len(text) + 9 for f in findings)
    assert all(first.end <= second.start for first, second in pairwise(findings))


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["sk-", "sk-a", "eyJa-", "eyJaaaaaaaa.", "key: ", "://a:", "-----BEGIN PRIVATE KEY-----"]
)
def test_cost_grows_with_the_length_only(piece: str) -> None:
    assert_grows_with_the_size_only(lambda size: find_secrets(piece * (size // len(piece))), 10_000)


def test_entropy_in_bits_a_character() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy(HEX) == 4
