"""Where tenancy lets data and keys go: hosts, plain http, and prefixes of URIs as tables and properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.tenancy.claim import Claim, Subject
from finetune_operator.tenancy.places import is_inside, lies_below
from tests.support.sentences import assert_says
from tests.support.tenancy import rule, said

pytestmark = pytest.mark.unit


INSIDE = ["store", "store.team.svc", "s3.storage.svc.cluster.local", "db-0.db.team.svc", "a"]
OUTSIDE = [
    *("s3.example", "another.store", "store.svc.example", "store.team.svc.", ".svc", "xsvc.cluster.local"),
    *("10.0.0.1", "134744072", "0x08080808", "127.0.0.1", "1.2.3.4.nip.io", "store.team.pod.cluster.local", "-a", ""),
]


@pytest.mark.parametrize("host", INSIDE)
def test_only_the_clusters_dns_answers(host: str) -> None:
    assert is_inside(host)


@pytest.mark.parametrize("host", OUTSIDE)
def test_others_may_answer(host: str) -> None:
    """Also a number, which the C library takes for an address."""
    assert not is_inside(host)


HTTP: dict[str, tuple[str, dict[str, Any], str]] = {
    "inside": ("http://MLflow.team.svc:5000/x", {}, ""),
    "outside": ("http://mlflow.example", {}, "https:// outside of the cluster."),
    "an address": ("http://134744072/v1", {}, "https:// outside of the cluster."),
    "excepted": ("http://mlflow.example:5000/x", {"insecure_hosts": ["*.example"]}, ""),
    "another one is": (
        "http://mlflow.example",
        {"insecure_hosts": ["*.corp", "s3"]},
        "https:// outside of the cluster, or http:// to *.corp or s3.",
    ),
    "a store that is listed so": ("http://S3.example:9000", {"endpoints": ["http://s3.example:9000"]}, ""),
    "listed with https": (
        "http://s3.example",
        {"endpoints": ["https://s3.example"]},
        "https:// outside of the cluster.",
    ),
    "encrypted": ("https://s3.example", {}, ""),
}


@pytest.mark.parametrize(("url", "limits", "words"), HTTP.values(), ids=HTTP.keys())
def test_keys_cross_a_network_encrypted(url: str, limits: dict[str, Any], words: str) -> None:
    refused = said(rule(**limits), claims=[Claim(Subject.TRANSPORT, "spec.storage.endpoint", url)])
    assert bool(refused) == bool(words)
    if words:
        assert_says(refused, f"spec.storage.endpoint is '{url}'", "'team-a'", words)


BELOW = [
    ("s3://a/team1", "s3://a/team1"),
    ("s3://a/team1/", "s3://a/team1"),
    ("s3://a/team1", "s3://a/team1/"),
    ("s3://a/team1/x/y.csv", "s3://a/team1"),
    ("s3://a/team1/*.csv", "s3://a/team1"),
    ("s3://a/team1/..x/.y/z.", "s3://a/team1"),
    ("s3://a/x", "s3://a"),
    ("s3://a/x", "s3://"),
    ("hf://acme/base@v1", "hf://"),
    ("hf://acme/base@v1", "hf://acme"),
    ("hf://acme/base@v1", "hf://acme/base"),
    ("hf://acme/base@v1", "hf://acme/base@v1"),
    ("hf://datasets/acme/rows@v1/a.csv", "hf://datasets/acme/rows"),
]
NOT_BELOW = [
    ("s3://a/team10/x", "s3://a/team1"),
    ("s3://a/team1.csv", "s3://a/team1"),
    ("s3://a/*", "s3://a/team1"),
    ("s3://a/team*", "s3://a/team1"),
    ("s3://a", "s3://a/team1"),
    ("s3://a/", "s3://a/team1"),
    ("s3://ab/team1", "s3://a"),
    ("s3://b/a/team1", "s3://a/team1"),
    ("s3://a/Team1/x", "s3://a/team1"),
    ("s3://a/team1/x/../y", "s3://a/team1"),
    ("s3://a/team1/./x", "s3://a/team1"),
    ("s3://a/team1/x//y", "s3://a/team1"),
    ("s3://a/team1//", "s3://a/team1"),
    ("s3://a/team1/..", "s3://a/team1"),
    ("s3://a/team1/../team10/x", "s3://a/team1"),  # is in team10 for a store that resolves ".."
    ("s3://a/team10/../team1/x", "s3://a/team1"),  # is in team10 for a store that does not
    ("s3://a//team1/x", "s3://a/team1"),  # a key may begin with a slash
    ("s3://a/x//team1/../../team1", "s3://a/team1"),
    ("s3://a/team1//../../team1/x", "s3://a/team1/x"),
    ("s3://a/../b/x", "s3://"),
    ("hf://../base@v1", "hf://"),
    ("hf://acme/../base@v1", "hf://"),
    ("s3://a/team1/../../b/x", "s3://a"),
    ("s3://a/..", "s3://a"),
    ("hf://acme/base@v1", "s3://acme"),
    ("hf://acme/base@v1", "hf://acme/base@v2"),
    ("hf://acme/base2@v1", "hf://acme/base"),
    ("hf://acme-evil/base@v1", "hf://acme"),
]


@pytest.mark.parametrize(("uri", "prefix"), BELOW)
def test_below(uri: str, prefix: str) -> None:
    assert lies_below(uri, prefix)


@pytest.mark.parametrize(("uri", "prefix"), NOT_BELOW)
def test_not_below(uri: str, prefix: str) -> None:
    assert not lies_below(uri, prefix)


NAMES = st.text("ab1-", min_size=1, max_size=3)
PATHS = st.lists(NAMES, max_size=4).map("/".join)
WILD_PATHS = st.lists(st.one_of(NAMES, st.sampled_from(["", ".", "..", "*"])), max_size=6).map("/".join)


@given(PATHS, WILD_PATHS)
def test_whatever_the_path_it_ends_below_the_prefix_in_both_readings(prefix: str, path: str) -> None:
    """The oracles are a store's own: a key begins with the prefix and a slash; a file system has the path inside."""
    below = lies_below(f"s3://bucket/{path}", f"s3://bucket/{prefix}")
    if below and prefix:
        assert f"{path.strip('/')}/".startswith(f"{prefix}/")
        assert f"{_walk(path)}/".startswith(f"/bucket/{prefix}/")
    elif below:
        assert f"{_walk(path)}/".startswith("/bucket/")


@given(PATHS.filter(bool), PATHS)
def test_all_that_is_below_is_found_to_be(prefix: str, path: str) -> None:
    assert lies_below(f"s3://bucket/{prefix}/{path}", f"s3://bucket/{prefix}")


@given(PATHS.filter(bool), NAMES, PATHS)
def test_a_name_that_goes_on_is_another_one(prefix: str, more: str, path: str) -> None:
    assert not lies_below(f"s3://bucket/{prefix}{more}/{path}", f"s3://bucket/{prefix}")


def _walk(path: str) -> str:
    """Where a file system gets by walking down a path from the bucket's folder, step by step."""
    place = ["bucket"]
    for step in path.split("/"):
        if step == "..":
            place = place[:-1]
        elif step not in ("", "."):
            place = [*place, step]
    return "/" + "/".join(place)
