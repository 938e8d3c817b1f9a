"""Which test examples are asked: always the same ones for the same test split, in proportion to their labels."""

from collections import defaultdict
from collections.abc import Sequence

from finetune_api.hashing import digest
from finetune_jobs.modelling.examples import Example


def sample(examples: Sequence[Example], limit: int) -> list[Example]:
    """At most ``limit`` examples, each label with its share (largest remainder), in the order of the split.

    Within a label the content decides, not the place, so that a reordered split gives the same sample.
    """
    if len(examples) <= limit:
        return list(examples)
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_label[example.label].append(index)
    chosen: list[int] = []
    for label, quota in quotas({label: len(group) for label, group in by_label.items()}, limit).items():
        ordered = sorted(by_label[label], key=lambda index: digest(examples[index].messages))
        chosen += ordered[:quota]
    return [examples[index] for index in sorted(chosen)]


def quotas(sizes: dict[str, int], limit: int) -> dict[str, int]:
    """``limit`` places among groups in proportion to ``sizes``, by the method of the largest remainder."""
    total = sum(sizes.values())
    result = {name: limit * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(limit * sizes[name] % total), name))
    for name in by_remainder[: limit - sum(result.values())]:
        result[name] += 1
    return result
