"""How far models are from each other in given texts, and what tells an artifact from its base model."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import TaskType
from finetune_jobs.artifacts.measurements import Distances, Measurements
from finetune_jobs.evaluation.distances import distance, distances, without_numbers
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.evaluation.gates import computes_no_numbers, same_as_base
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

TRUTH = ["ab"[n % 2] for n in range(40)]
WRONG = ["x"] * 40


def apart(tuned_base: float, artifact_base: float, artifact_tuned: float, *, long: bool = False) -> Distances:
    return Distances(
        long=long, texts=8, tuned_base=tuned_base, artifact_base=artifact_base, artifact_tuned=artifact_tuned
    )


def measured(base: list[str], artifact: list[str], *found: Distances) -> Measurements:
    """An evaluation of three models, of which the tuned one answers like the artifact."""
    answers = {"base": base, "tuned": artifact, "artifact": artifact}
    measurements = measure(TaskType.CLASSIFICATION, TRUTH, answers, ["a", "b"])
    return measurements.model_copy(update={"distances": list(found)})


def test_distances_are_of_short_and_of_long_texts() -> None:
    likely = {
        "base": [[-1.0, -1.0], [-4.0], [-2.0, -2.0]],
        "tuned": [[-2.0, -1.0], [-4.0], [-1.0, -2.0]],
        "artifact": [[-2.0, -2.0], [-3.0], [-1.0, -3.0]],
    }
    short, long = distances([False, True, False], likely)
    assert short == Distances(long=False, texts=2, tuned_base=0.5, artifact_base=1.0, artifact_tuned=0.5)
    assert long == Distances(long=True, texts=1, tuned_base=0.0, artifact_base=1.0, artifact_tuned=1.0)
    broken = likely | {"artifact": [[-2.0, -2.0], [float("nan")], [-1.0, -3.0]]}
    assert distances([False, True, False], broken) == [short], "a text for which a model computes no numbers"
    assert distances([], {name: [] for name in likely}) == []


def test_an_artifact_that_computes_no_numbers_is_not_told_from_its_base_model() -> None:
    """Its weights may be finite, and its logits not. No distance is known then, as in an earlier version's evaluation,
    but here texts were read."""
    nothing = [[float("nan"), float("nan")], [float("-inf")]]
    found = distances(
        [False, True], {"base": [[-1.0, -1.0], [-4.0]], "tuned": [[-2.0, -1.0], [-4.0]], "artifact": nothing}
    )
    said = same_as_base(measured(WRONG, WRONG, *found), TaskType.CLASSIFICATION)
    assert_says(said, "Nothing distinguishes the artifact from its base model", "no recorded text", "are numbers")
    assert not same_as_base(measured(WRONG, TRUTH, *found), TaskType.CLASSIFICATION), "it answers better all the same"


def test_a_text_for_which_only_the_artifact_computes_no_numbers_shows_that_it_is_broken() -> None:
    """However well it answers: nothing would be recorded of the text, and no server be asked it."""
    nan, fine = float("nan"), [-1.0, -1.0]
    likely = {"base": [fine, fine, [nan, -1.0]], "tuned": [fine] * 3}
    broken, sound = (
        without_numbers(likely | {"artifact": [fine, text, [nan, -1.0]]}) for text in ([-1.0, float("-inf")], fine)
    )
    assert (broken, sound) == (1, 0), "what the base model cannot read either is no fault of the artifact"
    better = measured(WRONG, TRUTH)
    said = computes_no_numbers(better.model_copy(update={"without_numbers": broken}))
    assert_says(said, "broken", "for 1 of the texts", "not numbers", "lower learning rate", "rounds less")
    assert not computes_no_numbers(better)


@given(st.lists(st.tuples(*[st.floats(-20, 0)] * 3), min_size=1, max_size=9))
def test_a_way_round_is_no_shorter(tokens: list[tuple[float, float, float]]) -> None:
    one, two, three = (list(each) for each in zip(*tokens, strict=True))
    assert distance(one, one) == 0
    assert distance(one, three) <= distance(one, two) + distance(two, three) + 1e-9


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ([apart(3.4, 3.4, 0.04)], False),
        ([apart(0.3, 0.3, 0.2)], False),
        ([apart(0.0, 0.0, 0.0)], True),
        ([apart(0.0, 0.04, 0.04)], True),
        ([apart(0.01, 0.04, 0.04)], True),
        ([apart(3.4, 0.04, 3.4)], True),
        ([apart(0.0, 0.0, 0.0), apart(0.0, 0.04, 0.04, long=True)], True),
        ([apart(0.01, 0.04, 0.04), apart(0.5, 0.5, 0.1, long=True)], False),
        ([], False),
    ],
    ids=[
        *("tuned", "a little", "untrained, nothing rounded", "untrained, rounded", "trained less than was rounded"),
        *("the base under another name", "untrained, both kinds", "long texts tell", "an earlier version's evaluation"),
    ],
)
def test_what_tells_an_artifact_from_its_base_model(found: list[Distances], same: bool) -> None:
    """By the texts alone: no answer is right. With answers that are better beyond chance it is another model."""
    assert bool(same_as_base(measured(WRONG, WRONG, *found), TaskType.CLASSIFICATION)) is same
    assert not same_as_base(measured(WRONG, TRUTH, *found), TaskType.CLASSIFICATION)


def test_an_artifact_that_is_its_base_model_is_told_so() -> None:
    said = same_as_base(measured(WRONG, WRONG, apart(0.0, 0.04, 0.05)), TaskType.CLASSIFICATION)
    parts = ("accuracy is not better", "0.040 nats a token from the base model", "0.050 from the tuned model", "0.000")
    assert_says(
        said, "Nothing distinguishes the artifact from its base model", *parts, "higher learning rate", "rounds less"
    )


def test_no_noise_in_the_export_is_read_as_training() -> None:
    """Whatever rounding did, an adapter that changed nothing is found; whatever it did, a strong one is not."""
    for noise, strength in product((0.0, 0.04, 0.3), (0.0, 2.0)):
        found = apart(strength, strength + noise, noise)
        assert bool(same_as_base(measured(WRONG, WRONG, found), TaskType.CLASSIFICATION)) is (strength == 0)
