"""Where a FineTuneJob publishes: two of them must not publish to the same output."""

from typing import NamedTuple

from finetune_operator.framework.objects import Object


class Output(NamedTuple):
    """Where a FineTuneJob publishes. Buckets of one name in different stores are different buckets.

    The namespace is a part of it: a resource that somebody else writes anywhere in the cluster must not keep this one
    waiting. Between namespaces the store decides, where the name belongs to who published first (resolve).
    """

    namespace: str
    endpoint: str
    uri: str
    name: str


def output_of(job: Object) -> Output:
    """A FineTuneJob's output, from its stored spec."""
    output = job["spec"].get("output") or {}
    storage = output.get("storage") or job["spec"].get("storage") or {}
    return Output(
        namespace=str(job["metadata"]["namespace"]),
        endpoint=str(storage.get("endpoint") or ""),
        uri=str(output.get("uri", "")).rstrip("/"),
        name=str(output.get("name", "")),
    )
