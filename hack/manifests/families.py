"""``docs/reference/families.md``: the model families whose shape preflight knows, and why it does not know others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from finetune_jobs.fit.families import Family, known
from finetune_jobs.fit.shapes import WITH_IMAGES, families

_PAGE: Final = """\
# Model families

<!-- Written by `make manifests` from jobs/finetune_jobs/fit/families.json, which `make families` writes. -->

Preflight knows the shape of {count} families: of their models it estimates memory, time and cost
([fit](../concepts/fit.md)). Each was read from small models of transformers {transformers} on PyTorch's meta device,
and has exactly the parameters of other models, which it was not read from. A model of another family trains as well,
without an estimate. `model_type` is that of the model's config.json.

| `model_type` | linear layers, which get an adapter |
| --- | --- |
{dense}

Mixtures of experts, whose experts get no adapter:

| `model_type` | linear layers, which get an adapter |
| --- | --- |
{experts}

Of a config with several parts the text part counts:

| `model_type` | text part | |
| --- | --- | --- |
{texts}

## Not known
| `model_type` | why |
| --- | --- |
{left_out}
"""


def page() -> str:
    """The page."""
    found = known()
    return _PAGE.format(
        count=len(families()),
        transformers=found.made["transformers"],
        dense=_known({kind: each for kind, each in found.families.items() if not each.has_experts}),
        experts=_known({kind: each for kind, each in found.families.items() if each.has_experts}),
        texts="\n".join(
            [f"| `{kind}` | `{part}` | |" for kind, part in found.texts.items()]
            + [f"| `{kind}` | `{part}` | and the part for images, adapted too |" for kind, part in WITH_IMAGES.items()]
        ),
        left_out="\n".join(
            [f"| {_names(kinds)} | {why} |" for why, kinds in _by_reason(found.left_out)]
            + [f"| {_names(found.images)} | models for images and text; take one for text alone |"]
        ),
    )


def _known(found: Mapping[str, Family]) -> str:
    """A line for all families with the same linear layers."""
    alike: dict[str, list[str]] = defaultdict(list)
    for kind, family in found.items():
        alike[_names(dict.fromkeys(each.name for each in family.linear))].append(kind)
    return "\n".join(
        f"| {_names(kinds)} | {layers} |" for layers, kinds in sorted(alike.items(), key=lambda each: each[1])
    )


def _by_reason(left_out: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    alike: dict[str, list[str]] = defaultdict(list)
    for kind, why in left_out.items():
        alike[why].append(kind)
    return sorted(alike.items(), key=lambda each: (-len(each[1]), each[1]))


def _names(found: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in found)
