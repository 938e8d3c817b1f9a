"""What a server's answers prove: each check as a table, and which failure is reported."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from finetune_api.dataset import TaskType
from finetune_api.endpoint_stages import LatencyObjectives
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import MAX_RESULT_BYTES, Outcome, Stage, StageResult
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.distances import distance
from finetune_jobs.verification.checks import (
    Observed,
    count,
    digest_check,
    make_checks,
    require_all,
    unprovable,
    unproved,
)
from finetune_jobs.verification.engine import Forced, Limits, Reply, Served, Streamed
from finetune_jobs.verification.forms import Formed
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.outcomes import LIMIT
from finetune_jobs.verification.power import SampleSize
from finetune_jobs.verification.servers import client_of
from finetune_jobs.verification.tgi import TgiServer
from finetune_jobs.verification.tolerance import tolerance
from finetune_jobs.verify import _base_check, _summary
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

TOLERANCE = 0.1
IDS = [1, 5, 6, 7]
BASE, ARTIFACT = [-3.0, -2.0, -4.0], [-1.0, -0.5, -0.0]


def asked(number: int, *, base: str = "b", log_probability: float | None = None) -> Answer:
    texts = {"label": "a", "base": base, "tuned": "a", "artifact": "a"}
    messages = [{"role": "user", "content": f"question {number}"}]
    return Answer(messages=messages, **texts, prompt_tokens=30, stopped=True, log_probability=log_probability)


def reference(*, long: bool = False, base: Sequence[float] = BASE) -> ReferenceText:
    turned = {"straight": [-1.0, -0.5, -0.1], "turned": [-1.1, -0.45, -0.1]} if long else {}
    return ReferenceText(text="text", ids=IDS, long=long, base=list(base), artifact=ARTIFACT, **turned)


FAR: Final = reference().model_copy(update={"straight": [-1.0, -0.5, -0.1], "turned": [-1.08, -0.42, -0.18]})
"""A short text with what a rotary base makes of it that is far off."""
FAR_ONLY: Final = FAR.model_copy(update={"positions_only": True})
ASTRAY: Final = Forced(IDS, [-1.08, -0.42, -0.08])
"""No further from it than another precision, but all the way."""

NO_NUMBERS: Final = Forced(IDS, [-1.0, float("nan"), 0.0])


def shifted(by: float, ids: Sequence[int] = IDS) -> Forced:
    """A server whose probabilities are so far from the artifact's, towards the base's."""
    return Forced(list(ids), [value - by for value in ARTIFACT])


SAME = shifted(0.0)
RIGHT = [Reply("a\n", True, 30)] * 40
WRONG = [Reply("b", True, 30)] * 40
CUT = [Reply("a", False, 30)] * 40
SLOW_ONCE = [Streamed("a", "", False, 9.0 if number == 7 else 0.1, 0.02) for number in range(20)]
ONE_CHANGED = [*[Streamed("a")] * 7, Streamed("b")]
THREE_CHANGED = [*[Streamed("a")] * 5, *[Streamed("b")] * 3]
CUT_OFF = [*[Streamed("a")] * 7, Streamed("a", "a stream ends without [DONE]")]
CUT_SHORT = ["finishReason", "goldenTexts"]
"""Without concurrentStreams: both answers are cut within the same character."""
RECORD = [reference(), reference(), reference(long=True)]
WIDE: Final = reference().model_copy(update={"ids": [*IDS, 8]})


def observed(
    *,
    golden: Sequence[Reply] = RIGHT[:8],
    sample: Sequence[Reply] = RIGHT,
    references: Sequence[ReferenceText] = RECORD,
    forced: Sequence[Forced] = (SAME, SAME, SAME),
    task: TaskType = TaskType.CLASSIFICATION,
    too_long: int = 0,
    refuses_other_names: bool | None = None,
    size: SampleSize | None = None,
    streams: Sequence[Streamed] | None = None,
    log_probability: float | None = None,
    first_token: float | None = None,
    output_token: float | None = None,
) -> Observed:
    alone = [Streamed(reply.text, "", False, (n + 1) / 10, (n + 1) / 1000) for n, reply in enumerate(golden)]
    return Observed(
        golden=[asked(n, log_probability=log_probability) for n in range(len(golden))],
        golden_replies=golden,
        sample=[asked(n) for n in range(len(sample))],
        sample_replies=sample,
        references=references,
        forced=forced,
        task=task,
        tolerance=TOLERANCE,
        usual_tolerance=TOLERANCE,
        too_long=too_long,
        refuses_other_names=refuses_other_names,
        size=size,
        streams=alone if streams is None else streams,
        objectives=LatencyObjectives(first_token=first_token, output_token=output_token),
    )


def failed(checks: Sequence[VerificationCheck]) -> list[str]:
    return [check.name for check in checks if check.outcome is CheckOutcome.FAILED]


def named(checks: Sequence[VerificationCheck], name: str) -> VerificationCheck:
    return next(check for check in checks if check.name == name)


NO_RECORD: dict[str, Any] = {"references": (), "forced": ()}


@pytest.mark.parametrize(
    ("seen", "fails"),
    [
        (observed(), []),
        (observed(refuses_other_names=True), []),
        (observed(refuses_other_names=False), ["modelName"]),
        (observed(forced=(shifted(0.09), shifted(0.09), shifted(0.09))), []),
        # Another engine breaks ties elsewhere: right answers that are not the artifact's words.
        (observed(golden=WRONG[:3] + RIGHT[:5], task=TaskType.TEXT), []),
        (observed(golden=WRONG[:3] + RIGHT[:5]), ["goldenTexts"]),
        (observed(golden=WRONG[:3] + RIGHT[:5], **NO_RECORD), ["goldenTexts"]),
        (observed(golden=WRONG[:3] + RIGHT[:5], task=TaskType.TEXT, **NO_RECORD), ["goldenTexts"]),
        (observed(golden=WRONG[:8], **NO_RECORD), ["differsFromBase", "goldenTexts"]),
        # Every answer is right, and the weights are not the artifact's.
        (observed(forced=(shifted(0.2), shifted(0.2), SAME)), ["logProbabilities"]),
        (observed(forced=(SAME, SAME, shifted(0.2))), ["longPrompts"]),
        # No further away than another precision, but on the way to wrong positions.
        (observed(forced=(SAME, SAME, Forced(IDS, [-1.09, -0.46, 0.0]))), ["positions"]),
        (observed(forced=(SAME, SAME, Forced(IDS, [-1.02, -0.49, 0.01]))), []),
        (observed(references=[FAR, FAR_ONLY], forced=(ASTRAY, ASTRAY)), ["positions"]),
        (observed(references=[FAR, FAR_ONLY], forced=(SAME, SAME)), []),
        # What is no number is no text that hardly shows them, nor does it hide what the others show.
        (observed(references=[reference(), FAR_ONLY], forced=(SAME, NO_NUMBERS)), ["positions"]),
        (observed(references=[reference(), FAR_ONLY], forced=(SAME, Forced(IDS, []))), ["positions"]),
        (observed(references=[FAR, FAR_ONLY], forced=(NO_NUMBERS, ASTRAY)), ["logProbabilities", "positions"]),
        # Texts that are there for their positions say nothing of the weights.
        (observed(references=[FAR, FAR_ONLY], forced=(SAME, Forced(IDS, [-1.4, -0.9, -0.4]))), []),
        (observed(forced=(Forced(IDS, BASE), Forced(IDS, BASE), SAME)), ["differsFromBase", "logProbabilities"]),
        (observed(forced=(Forced(IDS, []), SAME, SAME)), ["logProbabilities"]),
        (observed(forced=(shifted(0, [1, 5, 6, 8]), SAME, SAME)), ["promptTokens", "logProbabilities"]),
        (observed(golden=[Reply("a", True, 31)] * 8), ["promptTokens"]),
        (observed(golden=CUT[:8]), ["finishReason"]),
        (observed(golden=[Reply("a", True, 0)] * 8, sample=[Reply("a")] * 40, **NO_RECORD), []),
        # A server has to say why an answer is over, and need not say so of each.
        (observed(golden=[Reply("a", None, 30)] * 8), ["finishReason"]),
        (observed(golden=[Reply("a", None, 30)] * 2 + RIGHT[:6]), []),
        (observed(golden=[Reply("a", None, 30)] * 3 + RIGHT[:5]), ["finishReason"]),
        (observed(sample=RIGHT[:36] + WRONG[:4]), []),
        (observed(sample=RIGHT[:30] + WRONG[:10]), ["testSample"]),
        (observed(sample=()), []),
        (observed(streams=CUT_OFF), ["concurrentStreams"]),
        (observed(streams=CUT_OFF, task=TaskType.TEXT), ["concurrentStreams"]),
        # A label changes with what is computed beside it only where another was nearly as likely.
        (observed(streams=ONE_CHANGED, log_probability=-0.01), ["concurrentStreams"]),
        (observed(streams=ONE_CHANGED, log_probability=-0.7), []),
        # Without probabilities (models that think, older artifacts) no tie is known: a share may change, as of texts.
        (observed(streams=ONE_CHANGED), []),
        (observed(streams=ONE_CHANGED, **NO_RECORD), []),
        (observed(streams=THREE_CHANGED), ["concurrentStreams"]),
        (observed(streams=[Streamed("a")] * 8, golden=[*RIGHT[:7], WRONG[0]]), []),
        (observed(streams=THREE_CHANGED, task=TaskType.TEXT), []),
        (observed(streams=ONE_CHANGED, task=TaskType.TEXT, **NO_RECORD), []),
        (observed(streams=THREE_CHANGED, task=TaskType.TEXT, **NO_RECORD), ["concurrentStreams"]),
        (observed(streams=[Streamed("b")] * 8, golden=[Reply("b\ufffd\ufffd", False, 30)] * 8, **NO_RECORD), CUT_SHORT),
        (observed(streams=()), []),
        (observed(first_token=0.8, output_token=0.008), []),
        (observed(first_token=0.7), ["timeToFirstToken"]),
        (observed(output_token=0.007), ["timePerOutputToken"]),
        (observed(streams=SLOW_ONCE, first_token=0.1), []),
        (observed(streams=[Streamed("a", "", False, 0.1)] * 8, first_token=0.1, output_token=0.001), []),
    ],
)
def test_what_fails(seen: Observed, fails: list[str]) -> None:
    checks = make_checks(seen, 75)
    assert failed(checks) == fails
    assert len({check.name for check in checks}) == 12


def test_a_base_that_is_too_near_is_told_apart_by_texts() -> None:
    """Two servers of the same weights may be as far apart as this base is from the artifact."""
    near = [reference(base=[value - 0.15 for value in ARTIFACT]), reference(long=True)]
    told = observed(references=near, forced=(shifted(0.09), SAME))
    assert failed(make_checks(told, 75)) == []
    assert_says(named(make_checks(told, 75), "differsFromBase").seen, "0 of 8 answered like the base")
    assert "differsFromBase" in failed(
        make_checks(observed(references=near, forced=(SAME, SAME), golden=WRONG[:8]), 75)
    )


def test_what_cannot_be_compared_is_skipped_and_says_why() -> None:
    checks = make_checks(observed(references=RECORD[:2], forced=(SAME, SAME), too_long=1), 75)
    assert_says(named(checks, "longPrompts").seen, "1 recorded texts are too long")
    none_fits = observed(**NO_RECORD, too_long=18)
    checks = make_checks(none_fits, 75)
    for name in ("logProbabilities", "longPrompts"):
        assert_says(named(checks, name).seen, "18 recorded texts are too long for the runtime")
    assert_says(_summary(checks, none_fits), "no room for any of the 18 recorded texts", "raise", "maxInputTokens")
    checks = make_checks(observed(**NO_RECORD), 75)
    assert_says(named(checks, "logProbabilities").seen, "no record")
    assert_says(_summary(checks, observed(**NO_RECORD)), "published by an earlier version", "publish it again")
    skipped = {check.name for check in checks if check.outcome is CheckOutcome.SKIPPED}
    speed = {"timeToFirstToken", "timePerOutputToken"}
    assert skipped == {"modelName", "logProbabilities", "longPrompts", "positions", *speed}
    assert named(checks, "timeToFirstToken").seen == "800 ms at p95 of 8 streams (median: 450 ms); no objective"
    assert_says(named(checks, "modelName").seen, "answers to any model name")


@pytest.mark.parametrize(
    ("references", "limits", "seen"),
    [
        (RECORD, Limits(), ""),
        ([], Limits(), "the artifact has no record of them"),
        # Long texts, and those for positions, are no proof of the weights.
        ([reference(long=True), FAR_ONLY], Limits(), "the artifact has no record of them"),
        (RECORD, Limits(4, 5), ""),
        (RECORD, Limits(3, 4), "3 recorded texts are too long for the runtime"),
        ([reference(), WIDE], Limits(4, 5), ""),
    ],
)
def test_weights_that_have_to_be_proved_by_probabilities(
    references: list[ReferenceText], limits: Limits, seen: str
) -> None:
    made = unproved(references, limits)
    if not seen:
        assert made == []
        return
    with pytest.raises(StageError) as error:
        require_all(made, "http://candidate")
    assert error.value.reason is Reason.VERIFICATION_FAILED
    parts = ("http://candidate", "logProbabilities", "spec.verification.requireProbabilities", seen)
    assert_says(error.value.message, *parts)


def test_long_and_short_texts_are_each_judged_by_their_own_wrong_base() -> None:
    checks = make_checks(observed(references=[FAR, reference(long=True)], forced=(ASTRAY, SAME)), 75)
    found = named(checks, "positions")
    assert (found.outcome, found.seen) == (
        CheckOutcome.FAILED,
        "0.00 of the way in long texts, 1.00 of the way in short texts",
    )
    checks = make_checks(observed(references=[FAR, reference(long=True)], forced=(SAME, SAME)), 75)
    assert named(checks, "positions").outcome is CheckOutcome.PASSED


def test_positions_that_hardly_matter_are_not_judged() -> None:
    """Differences of a server in all directions are larger than what wrong positions would change."""
    insensitive = [reference(), reference(), reference(long=True).model_copy(update={"turned": [-1.01, -0.5, -0.1]})]
    noisy = Forced(IDS, [-1.05, -0.45, -0.05])
    checks = make_checks(observed(references=insensitive, forced=(SAME, SAME, noisy)), 75)
    assert named(checks, "positions").outcome is CheckOutcome.SKIPPED


def test_positions_in_a_text_that_repeats_itself_are_not_judged() -> None:
    """Every token is nearly certain there, and all noise goes the way of wrong positions."""
    repeating = [reference(), reference(), reference(long=True).model_copy(update={"turned": [-1.03, -0.53, -0.11]})]
    less_sure = Forced(IDS, [-1.02, -0.52, -0.01])
    checks = make_checks(observed(references=repeating, forced=(SAME, SAME, less_sure)), 75)
    assert named(checks, "positions").outcome is CheckOutcome.SKIPPED


def test_a_long_text_that_would_hardly_show_positions_hides_nothing_in_another() -> None:
    """Such as invoices after invoices, in which noise alone goes against the way; the words beside them show it."""
    repeating = reference(long=True).model_copy(update={"turned": [-1.0, -0.52, -0.13]})
    words = reference(long=True)
    less_sure, turned = Forced(IDS, [-1.0, -0.2, 0.0]), Forced(IDS, [-1.08, -0.46, 0.0])
    checks = make_checks(observed(references=[repeating, words], forced=(less_sure, turned)), 75)
    found = named(checks, "positions")
    assert (found.outcome, found.seen) == (CheckOutcome.FAILED, "0.80 of the way in long texts")


@pytest.mark.parametrize(
    ("seen", "reason", "parts"),
    [
        (
            observed(forced=(Forced(IDS, BASE), Forced(IDS, BASE), SAME)),
            Reason.ADAPTER_INACTIVE,
            "differsFromBase … closer to the artifact … 2.500 nats … 0.000 from the base",
        ),
        (
            observed(golden=WRONG[:8], **NO_RECORD),
            Reason.ADAPTER_INACTIVE,
            "differsFromBase … unlike the base … 8 of 8",
        ),
        (
            observed(forced=(SAME, SAME, shifted(0.2))),
            Reason.VERIFICATION_FAILED,
            "longPrompts … at most 0.100 nats a token … 0.200",
        ),
        (observed(golden=CUT[:8]), Reason.VERIFICATION_FAILED, "finishReason … 75 % … 0 of 8"),
        (
            observed(golden=[Reply("a", None, 30)] * 8),
            Reason.VERIFICATION_FAILED,
            "finishReason … 75 % … 0 of 8; 8 without a finish reason",
        ),
        (
            observed(streams=CUT_OFF),
            Reason.VERIFICATION_FAILED,
            "concurrentStreams … 8 concurrent streams … 1 of 8: a stream ends without [DONE]",
        ),
        (
            observed(first_token=0.25),
            Reason.VERIFICATION_FAILED,
            "timeToFirstToken … at most 250 ms at p95 … 800 ms at p95 of 8 streams (median: 450 ms)",
        ),
        (
            observed(streams=ONE_CHANGED, log_probability=-0.01),
            Reason.VERIFICATION_FAILED,
            "concurrentStreams … labels as single requests … 7 of 8 equal; changed although certain: 1",
        ),
        (
            observed(streams=THREE_CHANGED),
            Reason.VERIFICATION_FAILED,
            "concurrentStreams … 75 % of concurrent streams equal single requests … 5 of 8 equal",
        ),
        (observed(refuses_other_names=False), Reason.VERIFICATION_FAILED, "modelName … 404 … an answer"),
        (
            observed(golden=RIGHT[:5] + WRONG[:3]),
            Reason.VERIFICATION_FAILED,
            "goldenTexts … 75 % … 62 % of 8 golden prompts",
        ),
        (
            observed(sample=RIGHT[:30] + WRONG[:10]),
            Reason.VERIFICATION_FAILED,
            "testSample … 40 of 40 right … 30 (0.60 to 0.86) … 10 became wrong, 0 right (p = 0.0020)",
        ),
        (
            observed(golden=[Reply("a", True, 31)] * 8),
            Reason.VERIFICATION_FAILED,
            "promptTokens … 40 of 48 counts … 31 tokens instead of 30",
        ),
    ],
)
def test_the_first_failure_is_reported_with_all_checks(seen: Observed, reason: Reason, parts: str) -> None:
    checks = make_checks(seen, 75)
    with pytest.raises(StageError) as error:
        require_all(checks, "http://candidate")
    assert error.value.reason is reason
    assert error.value.checks == checks
    assert_says(error.value.message, "http://candidate", *parts.split(" … "))


def test_an_artifact_that_answers_like_its_base_proves_nothing() -> None:
    same = [asked(1, base="a")]
    seen = Observed(same, RIGHT[:1], (), (), (), (), TaskType.CLASSIFICATION, TOLERANCE, TOLERANCE)
    with pytest.raises(StageError, match=r"no golden prompt distinguishes the artifact from its base") as error:
        require_all(make_checks(seen, 1), "http://candidate")
    assert error.value.reason is Reason.ADAPTER_INACTIVE


@pytest.mark.parametrize(
    ("bases", "references", "provable"),
    [
        (["a", "a"], [], False),
        (["a", "a"], [reference(base=[value - 0.2 for value in ARTIFACT])], False),
        (["a", "a"], [reference(base=[value - 0.21 for value in ARTIFACT])], True),
        (["a", "a"], [reference(long=True)], False),
        (["a", "b"], [reference(base=ARTIFACT)], True),
    ],
    ids=["no record", "within two tolerances", "beyond them", "only long texts", "one answer tells"],
)
def test_what_no_server_could_prove_is_known_beforehand(
    bases: list[str], references: list[ReferenceText], provable: bool
) -> None:
    """What publish is told is what the check then finds of the best of servers."""
    answers = [asked(number, base=base) for number, base in enumerate(bases)]
    said = unprovable(answers, references, TOLERANCE)
    best = Observed(
        answers, RIGHT[:2], (), (), references, [SAME] * len(references), TaskType.TEXT, TOLERANCE, TOLERANCE
    )
    check = named(make_checks(best, 75), "differsFromBase")
    assert (check.outcome is CheckOutcome.PASSED) is (said == "") is provable
    if said:
        assert_says(said, "No server could prove", "all 2 answers", "may be 0.200", "higher learning rate")


def test_a_better_server_is_no_failure() -> None:
    tested = [answer.model_copy(update={"artifact": "b"}) for answer in map(asked, range(20))]
    seen = Observed([asked(1)], RIGHT[:1], tested, RIGHT[:20], (), (), TaskType.CLASSIFICATION, TOLERANCE, TOLERANCE)
    counts = count(seen)
    assert (counts.correct, counts.expected, counts.losses, counts.wins) == (20, 0, 0, 20)
    assert failed(make_checks(seen, 75)) == []


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (SampleSize(40, 0.29), "40 of 40 right, as evaluated; they show a drop of 0.29"),
        (SampleSize(40, 0.2, 0.2), "40 of 40 right, as evaluated; they show a drop of 0.20"),
        (SampleSize(40, 0.29, 0.1), "40 of 40 right, as evaluated; too few for 0.10: they show a drop of 0.29"),
        (SampleSize(40, None, 0.1), "40 of 40 right, as evaluated; too few for 0.10: they show no drop"),
    ],
)
def test_the_sample_says_which_drop_it_shows(size: SampleSize, said: str) -> None:
    """Whatever it shows, only a server that is worse fails: a small test split is no fault of the server's."""
    check = named(make_checks(observed(size=size), 75), "testSample")
    assert (check.expected, check.outcome) == (said, CheckOutcome.PASSED)


def test_the_path_of_the_model_holds_the_digest() -> None:
    assert digest_check(f"/models/{'a' * 64}/model", "a" * 64).outcome is CheckOutcome.PASSED
    other = digest_check("/models/other/model", "a" * 64)
    assert (other.outcome, other.seen) == (CheckOutcome.FAILED, "/models/other/model")


def test_the_distance_is_a_mean() -> None:
    assert distance([-1.0, -2.0], [-1.5, -1.0]) == pytest.approx(0.75)
    assert distance([], []) == 0.0


def test_a_result_with_every_check_fits_a_termination_message() -> None:
    checks = [
        digest_check("/models/" + "x" * 200, "a" * 64),
        *make_checks(replace(observed(sample=RIGHT[:30] + WRONG[:10]), calls=Formed(), held=Formed(schema="{}")), 75),
    ]
    assert len(checks) == 15
    full = [check.model_copy(update={"expected": "x" * LIMIT, "seen": "y" * LIMIT}) for check in checks]
    result = StageResult(
        stage=Stage.VERIFY, outcome=Outcome.FAILED, reason=Reason.VERIFICATION_FAILED, message="m" * 500, checks=full
    )
    assert len(result.model_dump_json(by_alias=True).encode()) <= MAX_RESULT_BYTES


@pytest.mark.parametrize(("asked_for", "expected"), [(None, tolerance("tgi", "INT8")), (0.9, 0.9)])
def test_the_spec_may_say_how_far_a_server_may_be(asked_for: float | None, expected: float) -> None:
    nothing = Promise([], [], [], TaskType.TEXT, "INT8", max_distance=asked_for)
    assert observe(TgiServer("http://candidate"), nothing, Limits(), lambda *_: None).tolerance == expected


class Truthful(TgiServer):
    """Gives back what was recorded."""

    def log_probs(self, reference: ReferenceText) -> Forced:
        return Forced(reference.ids, reference.artifact)


@pytest.mark.parametrize(("asked_for", "expected", "noticed"), [(None, 0.12, 0.25), (0.9, 0.9, 0.25), (0.1, 0.1, 0.1)])
def test_an_artifact_whose_noise_was_measured_is_held_to_it(
    asked_for: float | None, expected: float, noticed: float
) -> None:
    """Unless the spec says how far a server may be. What is noticeable stays a share of what is usual: who admits a
    server that is further away does not give up the checks for wrong positions and for drift."""
    texts = [reference().model_copy(update={"noise": noise}) for noise in (0.06, 0.1)]
    promise = Promise([], [], texts, TaskType.TEXT, "Merged", max_distance=asked_for)
    found = observe(Truthful("http://candidate"), promise, Limits(), lambda *_: None)
    assert found.tolerance == pytest.approx(expected)
    assert found.usual_tolerance == noticed
    [said] = [each.expected for each in make_checks(found, 75) if each.name == "logProbabilities"]
    assert said.startswith(f"at most {expected:.3f} nats")


class UnderAdapters(TgiServer):
    """Is the base as it was recorded, in another precision."""

    def served(self) -> Served:
        return Served("", Limits())

    def log_probs(self, reference: ReferenceText) -> Forced:
        return Forced(reference.ids, [value - 0.2 for value in reference.base])


def test_the_base_under_adapters_is_held_to_what_is_usual() -> None:
    """Noise is measured of the adapter, which may be surer of these texts than its base, and so move less."""
    texts = [reference().model_copy(update={"noise": 0.02})]
    seen = observe(
        Truthful("http://candidate"), Promise([], [], texts, TaskType.TEXT, "Adapter"), Limits(), lambda *_: None
    )
    assert seen.tolerance < 0.2 < seen.usual_tolerance
    assert _base_check(UnderAdapters("http://candidate"), [seen]).outcome is CheckOutcome.PASSED
    assert _base_check(UnderAdapters("http://candidate"), [seen], 0.1).outcome is CheckOutcome.FAILED


def test_an_image_older_than_the_engine_says_so() -> None:
    with pytest.raises(StageError) as error:
        client_of("other", "http://127.0.0.1:1")
    assert_says(error.value.message, "knows the engines tgi, vllm and not 'other'", "set images.data")
    assert not error.value.retriable
