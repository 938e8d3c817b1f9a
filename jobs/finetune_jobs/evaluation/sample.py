"""Which test examples are asked: always the same ones for the same test split, and like the whole of it."""

from collections import defaultdict
from collections.abc import Sequence

from finetune_api.dataset import TaskType
from finetune_api.hashing import digest
from finetune_jobs.modelling.token_files import Conversation


def sample(examples: Sequence[Conversation], limit: int, task: TaskType) -> list[Conversation]:
    """At most ``limit`` examples in the order of the split; of a classification each label has its share.

    Where answers are no classes, nearly every answer is its own: shares of those would choose answers by their text.
    Which ones, the hash of the content decides, not the place: a reordered split gives the same sample.
    """
    if len(examples) <= limit:
        return list(examples)
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_label[example.label if task is TaskType.CLASSIFICATION else ""].append(index)
    chosen: list[int] = []
    for label, quota in quotas({label: len(group) for label, group in by_label.items()}, limit).items():
        ordered = sorted(by_label[label], key=lambda index: digest(examples[index].messages))
        chosen += ordered[:quota]
    return [examples[index] for index in sorted(chosen)]


def quotas(sizes: dict[str, int], limit: int) -> dict[str, int]:
    """``limit`` places among groups in proportion to ``sizes``, by the method of the largest remainder.

    Of equal remainders the hash of the name decides: by the name itself, rare labels of the alphabet's end would never
    be asked.
    """
    total = sum(sizes.values())
    result = {name: limit * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(limit * sizes[name] % total), digest(name)))
    for name in by_remainder[: limit - sum(result.values())]:
        result[name] += 1
    return result
