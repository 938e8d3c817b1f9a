"""The order of a training's examples: the same steps however they are divided, and little padding within one."""

import random

import pytest

from finetune_jobs.training.order import StepOrder

pytestmark = [pytest.mark.unit, pytest.mark.slow]

STEP = 16


def drawn_lengths(count: int = 500) -> list[int]:
    chosen = random.Random(0)
    return [min(1024, 8 + int(chosen.lognormvariate(4.8, 0.9))) for _ in range(count)]


LENGTHS = drawn_lengths()


def plain_and_sorted() -> list[list[list[int]]]:
    return [steps(StepOrder(LENGTHS, STEP, seed=0, by_length=each)) for each in (False, True)]


def steps(order: StepOrder) -> list[list[int]]:
    numbers = list(order)
    assert len(numbers) == len(order)
    return [numbers[start : start + STEP] for start in range(0, len(numbers), STEP)]


def padded(numbers: list[list[int]], size: int) -> int:
    """Tokens of all passes of so many examples, each padded to its longest."""
    passes = [step[start : start + size] for step in numbers for start in range(0, len(step), size)]
    return sum(len(each) * max(LENGTHS[number] for number in each) for each in passes)


@pytest.mark.parametrize("by_length", [False, True])
def test_an_epoch_has_every_example_once_and_the_next_another_order(by_length: bool) -> None:
    order = StepOrder(LENGTHS, STEP, seed=3, by_length=by_length)
    epochs = [list(order) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(LENGTHS)))
    assert epochs[0] != epochs[1] != epochs[2]
    order.set_epoch(1)
    assert list(order) == epochs[1]
    assert list(StepOrder(LENGTHS, STEP, seed=3, by_length=by_length)) == epochs[0]
    assert list(StepOrder(LENGTHS, STEP, seed=4, by_length=by_length)) != epochs[0]


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("size", [1, 2, 8, STEP])
def test_the_first_pass_is_the_largest_of_all(by_length: bool, size: int) -> None:
    """By its tokens, and by those of its longest example, over more than an epoch."""
    order = StepOrder(LENGTHS, STEP, seed=0, by_length=by_length)
    passes = [numbers[at : at + size] for numbers in (*steps(order), *steps(order)) for at in range(0, STEP, size)]
    first, *others = [[LENGTHS[number] for number in each] for each in passes if each]
    assert max(first) == max(LENGTHS)
    assert sum(first) == max(sum(each) for each in (first, *others))
    assert sorted(first, reverse=True) == first


def test_by_length_a_step_has_the_same_examples_from_the_longest_on() -> None:
    plain, sorted_ = plain_and_sorted()
    assert [set(step) for step in plain] == [set(step) for step in sorted_]
    for step in sorted_:
        lengths = [LENGTHS[number] for number in step]
        assert lengths == sorted(lengths, reverse=True)


def test_by_length_passes_have_less_padding() -> None:
    plain, sorted_ = plain_and_sorted()
    assert padded(sorted_, STEP) == padded(plain, STEP)
    assert padded(sorted_, STEP // 2) < 0.85 * padded(plain, STEP // 2)
    assert padded(sorted_, STEP // 8) < 0.85 * padded(plain, STEP // 8)


def test_a_measurement_may_begin_with_any_step() -> None:
    usual, drawn = (StepOrder(LENGTHS, STEP, seed=0, longest_first=each) for each in (True, False))
    assert steps(usual)[0] != steps(drawn)[0]
    assert steps(usual) == steps(drawn)  # their second epoch


def test_blanks_are_the_last_examples_of_an_epoch() -> None:
    count = 2 * STEP - 3
    for by_length in (False, True):
        order = list(StepOrder(LENGTHS[:count], STEP, seed=0, blanks=3, by_length=by_length))
        assert order[count:] == [count, count + 1, count + 2]
        assert sorted(order[:count]) == list(range(count))
