"""What a server's answers prove: a list of checks, each with what was expected and seen. Pure.

Texts must be equal only where answers are labels. Elsewhere a good model on another engine may break a tie in a long
answer and go on differently; the probabilities of given tokens decide there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.endpoint_stages import LatencyObjectives
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.distances import distance
from finetune_jobs.evaluation.metrics import mcnemar, wilson
from finetune_jobs.evaluation.tasks import right_for
from finetune_jobs.verification.engine import Forced, Limits, Reply, Streamed
from finetune_jobs.verification.forms import Formed, form_checks
from finetune_jobs.verification.outcomes import judged, skipped
from finetune_jobs.verification.positions import HALF_WAY, Pairs, ways_to_wrong_positions
from finetune_jobs.verification.power import SampleSize, is_worse

DIGEST: Final = "digest"
MODEL_NAME: Final = "modelName"
PROMPT_TOKENS: Final = "promptTokens"
DIFFERS_FROM_BASE: Final = "differsFromBase"
LOG_PROBABILITIES: Final = "logProbabilities"
LONG_PROMPTS: Final = "longPrompts"
POSITIONS: Final = "positions"
FINISH: Final = "finishReason"
GOLDEN: Final = "goldenTexts"
CONCURRENT: Final = "concurrentStreams"
SAMPLE: Final = "testSample"
FIRST_TOKEN: Final = "timeToFirstToken"
OUTPUT_TOKEN: Final = "timePerOutputToken"
BASE_MODEL: Final = "baseModel"
ALL: Final = "checks"
"""Of an adapter: what came of all of them."""

_SURE: Final = math.log(0.8)
"""Of an answer's log-probability: the next best one is at least 1.4 nats behind, which no order of additions makes
up."""
_CUT: Final = "\N{REPLACEMENT CHARACTER}"
_SHOWN: Final = 6
"""Checks that an adapter has failed: a status has room for sixteen, and other adapters have a line each."""


@dataclass(frozen=True)
class Observed:
    """What an artifact promises, and what a server did. The lists of a pair are of equal length."""

    golden: Sequence[Answer]
    golden_replies: Sequence[Reply]
    sample: Sequence[Answer]
    sample_replies: Sequence[Reply]
    references: Sequence[ReferenceText]
    """Those that the server has room for."""
    forced: Sequence[Forced]
    task: TaskType
    tolerance: float
    """Nats a token that another engine or precision may be away from the evaluation."""
    usual_tolerance: float
    """The same for a model of which no noise was measured, as the base under adapters. What is noticeable is a share of
    it, which ``maxDistance`` may lower, not raise: else it would switch off the checks that look for small changes."""
    too_long: int = 0
    """References that the server has no room for."""
    refuses_other_names: bool | None = None
    """Whether it refuses requests that name another model; None: it looks at no name."""
    size: SampleSize | None = None
    """Why the sample has so many examples; None: nobody asked."""
    streams: Sequence[Streamed] = ()
    """Answers to the first of the golden prompts and the sample that were asked for at once, as streams."""
    objectives: LatencyObjectives = field(default_factory=LatencyObjectives)
    calls: Formed | None = None
    """Chats with tools; None: the data have none."""
    held: Formed | None = None
    """Chats that were held to the schema of the answers; None: there is none."""

    @property
    def agreement_percent(self) -> int:
        """Share of the golden prompts that were answered in the artifact's own words."""
        same = sum(
            _same(asked.artifact, reply.text) for asked, reply in zip(self.golden, self.golden_replies, strict=True)
        )
        return 100 * same // max(1, len(self.golden))


@dataclass(frozen=True)
class Counts:
    """A sample of the test split, answered by artifact and server."""

    samples: int
    correct: int
    expected: int
    """Answers of the artifact that were right."""
    losses: int
    """Answers that were right from the artifact and wrong from the server."""
    wins: int


def count(observed: Observed) -> Counts:
    """How many answers of the sample are right."""
    right, pairs = right_for(observed.task), zip(observed.sample, observed.sample_replies, strict=True)
    rights = [
        (right(a.read(a.label), a.read(a.artifact)), right(a.read(a.label), a.read(reply.text))) for a, reply in pairs
    ]
    return Counts(
        samples=len(rights),
        correct=sum(now for _, now in rights),
        expected=sum(before for before, _ in rights),
        losses=sum(before and not now for before, now in rights),
        wins=sum(now and not before for before, now in rights),
    )


def make_checks(observed: Observed, min_agreement_percent: int) -> list[VerificationCheck]:
    """Every check but that of the digest, in the order in which a failure is reported."""
    return [
        *prompt_checks(observed, min_agreement_percent),
        _concurrent_streams(observed, min_agreement_percent),
        _test_sample(count(observed), observed.size),
        *form_checks(observed.calls, observed.held, observed.task, min_agreement_percent),
        _latency(FIRST_TOKEN, [each.first_token for each in observed.streams], observed.objectives.first_token),
        _latency(OUTPUT_TOKEN, [each.output_token for each in observed.streams], observed.objectives.output_token),
    ]


def prompt_checks(observed: Observed, min_agreement_percent: int) -> list[VerificationCheck]:
    """Those that golden prompts and reference texts are enough for."""
    pairs = list(zip(observed.references, observed.forced, strict=True))
    short = [pair for pair in pairs if pair[0].of_weights]
    long = [pair for pair in pairs if pair[0].long]
    return [
        _model_name(observed),
        _prompt_tokens(observed),
        _differs_from_base(observed, short),
        _log_probabilities(LOG_PROBABILITIES, short, observed.tolerance, _why_none(observed.too_long, "them")),
        _log_probabilities(LONG_PROMPTS, long, observed.tolerance, _why_none(observed.too_long, "long prompts")),
        _positions(pairs, observed.usual_tolerance),
        _finish(observed, min_agreement_percent),
        _golden_texts(observed, min_agreement_percent),
    ]


def digest_check(model: str, digest: str) -> VerificationCheck:
    """Whether the server's path of its model holds the artifact's digest."""
    return judged(DIGEST, digest in model, f"artifact {digest[:12]}", model if digest not in model else digest[:12])


def unproved(references: Sequence[ReferenceText], limits: Limits) -> list[VerificationCheck]:
    """Where probabilities must prove the weights: their check, failed, if the server can be asked for none; otherwise
    nothing. It is known before the server is asked."""
    fitting = [each for each in references if limits.have_room(len(each.ids), 1)]
    if any(each.of_weights for each in fitting):
        return []
    expected = "recorded texts, for spec.verification.requireProbabilities"
    return [judged(LOG_PROBABILITIES, False, expected, _why_none(len(references) - len(fitting), "them"))]


def base_check(references: Sequence[ReferenceText], forced: Sequence[Forced], tolerance: float) -> VerificationCheck:
    """Whether the base under adapters, which clients can ask for, is the model that was recorded beside one of them."""
    base = [each.model_copy(update={"artifact": each.base}) for each in references]
    pairs = list(zip(base, forced, strict=True))
    return _log_probabilities(BASE_MODEL, pairs, tolerance, "no adapter has a record of it")


def of_adapter(adapter: str, made: Sequence[VerificationCheck]) -> list[VerificationCheck]:
    """An adapter's checks in few lines, as those of several have to fit a termination message: what failed, and how
    many there were."""
    failed = [each for each in made if each.outcome is CheckOutcome.FAILED]
    left_out = sum(each.outcome is CheckOutcome.SKIPPED for each in made)
    sample = next((each.seen.partition(";")[0] for each in made if each.name == SAMPLE), "")
    seen = f"{len(made) - left_out - len(failed)} passed, {left_out} skipped"
    seen += f"; test sample: {sample}" if sample else ""
    named = [each.model_copy(update={"name": f"{adapter}.{each.name}"}) for each in failed[:_SHOWN]]
    return [judged(f"{adapter}.{ALL}", not failed, f"{len(made)} checks", seen), *named]


def require_all(checks: Sequence[VerificationCheck], server: str) -> None:
    """Raises StageError (AdapterInactive, VerificationFailed) that names the server and the first check that failed."""
    failed = next((check for check in checks if check.outcome is CheckOutcome.FAILED), None)
    if failed is None:
        return
    reason = Reason.ADAPTER_INACTIVE if failed.name == DIFFERS_FROM_BASE else Reason.VERIFICATION_FAILED
    said = f"{server} fails the check {failed.name}: expected {failed.expected}, seen {failed.seen}."
    raise StageError(reason, said, checks=checks)


def apart_from_base(references: Sequence[ReferenceText]) -> float:
    """How far artifact and base model are from each other in the texts that show it best, in nats a token."""
    short = [distance(each.artifact, each.base) for each in references if each.of_weights]
    return mean(short) if short else 0.0


def unprovable(answers: Sequence[Answer], references: Sequence[ReferenceText], tolerance: float) -> str:
    """Why no server of an artifact could pass DIFFERS_FROM_BASE, in a sentence; empty if one can. ``answers``: those
    among which the golden ones are chosen."""
    apart = apart_from_base(references)
    if apart > 2 * tolerance or any(each.distinguishes_base for each in answers):
        return ""
    return (
        f"No server could prove that it serves this artifact and not its base model: all {len(answers)} answers to the "
        f"test examples are the base model's, and in the recorded texts the two are {apart:.3f} nats a token apart, of "
        f"which two servers of the same weights may be {2 * tolerance:.3f}. Train for more steps or with a higher "
        "learning rate."
    )


def _model_name(observed: Observed) -> VerificationCheck:
    """A client with a wrong name must learn of it, and not be answered by whatever model there is."""
    if observed.refuses_other_names is None:
        return skipped(MODEL_NAME, "this server answers to any model name")
    seen = "404" if observed.refuses_other_names else "an answer"
    return judged(MODEL_NAME, observed.refuses_other_names, "404 for an unknown model name", seen)


def _prompt_tokens(observed: Observed) -> VerificationCheck:
    """A changed template or tokenizer changes the tokens that the model sees, and so everything else."""
    asked = zip([*observed.golden, *observed.sample], [*observed.golden_replies, *observed.sample_replies], strict=True)
    counted = [(a.prompt_tokens, r.prompt_tokens) for a, r in asked if a.prompt_tokens and r.prompt_tokens]
    ids = [r.ids == f.ids for r, f in zip(observed.references, observed.forced, strict=True) if f.ids]
    if not counted and not ids:
        return skipped(PROMPT_TOKENS, "the server does not count tokens")
    wrong = next(((wanted, given) for wanted, given in counted if wanted != given), None)
    seen = f"{sum(w == g for w, g in counted)} of {len(counted)} counts and {sum(ids)} of {len(ids)} texts equal"
    if wrong:
        seen += f"; {wrong[1]} tokens instead of {wrong[0]}"
    return judged(PROMPT_TOKENS, wrong is None and all(ids), "the recorded tokens", seen)


def _differs_from_base(observed: Observed, pairs: Pairs) -> VerificationCheck:
    """By probabilities, where those of base and artifact are further apart than two servers may be; else by texts."""
    apart = apart_from_base([reference for reference, _ in pairs])
    if apart > 2 * observed.tolerance and all(_comparable(*pair) for pair in pairs):
        to_artifact = mean(distance(r.artifact, f.log_probs) for r, f in pairs)
        to_base = mean(distance(r.base, f.log_probs) for r, f in pairs)
        seen = f"{to_artifact:.3f} nats a token from the artifact, {to_base:.3f} from the base model"
        return judged(DIFFERS_FROM_BASE, to_artifact < to_base, "closer to the artifact than to its base model", seen)
    pairs_of_texts = zip(observed.golden, observed.golden_replies, strict=True)
    telling = [_same(asked.base, reply.text) for asked, reply in pairs_of_texts if asked.distinguishes_base]
    expected = "most distinguishing golden prompts answered unlike the base model"
    if not telling:
        return judged(
            DIFFERS_FROM_BASE, False, expected, "no golden prompt distinguishes the artifact from its base model"
        )
    seen = f"{sum(telling)} of {len(telling)} answered like the base model"
    return judged(DIFFERS_FROM_BASE, sum(telling) * 2 < len(telling), expected, seen)


def _log_probabilities(name: str, pairs: Pairs, tolerance: float, without: str) -> VerificationCheck:
    """The mean distance to the evaluated artifact over all texts; ``without``: why there are none."""
    if not pairs:
        return skipped(name, without)
    expected = f"at most {tolerance:.3f} nats a token from the artifact"
    if silent := _silent(pairs):
        return judged(name, False, expected, silent)
    if not all(_comparable(*pair) for pair in pairs):
        return judged(name, False, expected, "probabilities of different tokens")
    seen = mean(distance(reference.artifact, forced.log_probs) for reference, forced in pairs)
    return judged(name, seen <= tolerance, expected, f"{seen:.3f}")


def _positions(pairs: Pairs, usual_tolerance: float) -> VerificationCheck:
    """A rotary base that is nearly right, or far off, moves probabilities in a direction that was recorded."""
    expected = "less than half the way to a wrong rotary base"
    if silent := _silent([pair for pair in pairs if pair[0].positions_only]):  # of the others, their own checks say it
        return judged(POSITIONS, False, expected, silent)
    known = [pair for pair in pairs if pair[0].turned and _comparable(*pair)]
    if not known:
        return skipped(POSITIONS, "no comparable record of wrong positions")
    ways = ways_to_wrong_positions(known, usual_tolerance)
    if not ways:
        return skipped(POSITIONS, "these texts would hardly reveal wrong positions")
    seen = ", ".join(f"{way:.2f} of the way in {name} texts" for name, way in ways.items())
    return judged(POSITIONS, max(ways.values()) < HALF_WAY, expected, seen)


def _finish(observed: Observed, min_percent: int) -> VerificationCheck:
    """A model that has lost its stop token goes on until the limit. A server that does not say why an answer is over
    leaves its clients in the dark, too."""
    asked = zip(observed.golden, observed.golden_replies, strict=True)
    ends = [reply.stopped for answer, reply in asked if answer.stopped]
    if not ends:
        return skipped(FINISH, "no recorded answer ends by itself")
    ended, untold = ends.count(True), ends.count(None)
    enough = 100 * ended >= min_percent * len(ends)
    seen = f"{ended} of {len(ends)}" + (f"; {untold} without a finish reason" if untold else "")
    return judged(FINISH, enough, f"{min_percent} % of answers end by themselves", seen)


def _golden_texts(observed: Observed, min_percent: int) -> VerificationCheck:
    if not observed.golden:
        return skipped(GOLDEN, "the artifact has no golden prompts")
    seen = f"{observed.agreement_percent} % of {len(observed.golden)} golden prompts"
    if observed.references and observed.task is not TaskType.CLASSIFICATION:
        return skipped(GOLDEN, f"{seen} equal; probabilities decide, because answers are not labels")
    enough = observed.agreement_percent >= min_percent
    return judged(GOLDEN, enough, f"{min_percent} % answered in the artifact's words", seen)


def _concurrent_streams(observed: Observed, min_percent: int) -> VerificationCheck:
    """The server's answers to several clients are those that it gives to one.

    It adds in another order then, which may break a tie. Labels must be the same where it is known to have had none;
    longer answers, and labels that were recorded without probabilities, are judged as the golden texts are.
    """
    if not observed.streams:
        return skipped(CONCURRENT, "the artifact has no golden prompts")
    count, faults = len(observed.streams), [each.fault for each in observed.streams if each.fault]
    if faults:
        seen = f"{len(faults)} of {count}: {faults[0]}"
        return judged(CONCURRENT, False, f"{count} concurrent streams end properly", seen)
    asked, alone = [*observed.golden, *observed.sample], [*observed.golden_replies, *observed.sample_replies]
    pairs = list(zip(asked, alone, observed.streams, strict=False))
    equal = [_as_alone(reply, streamed) for _, reply, streamed in pairs]
    seen = f"{sum(equal)} of {count} equal"
    labels = observed.task is TaskType.CLASSIFICATION
    if labels and any(each.log_probability is not None for each, _, _ in pairs):
        changed = sum(_is_sure(a, r) and not _as_alone(r, s) for a, r, s in pairs)
        expected = "concurrent streams give the same labels as single requests"
        return judged(
            CONCURRENT, not changed, expected, f"{seen}; changed although certain: {changed}" if changed else seen
        )
    if observed.references and not labels:
        return judged(CONCURRENT, True, f"{count} concurrent streams end properly", f"all; {seen} to single requests")
    enough = 100 * sum(equal) >= min_percent * count
    return judged(CONCURRENT, enough, f"{min_percent} % of concurrent streams equal single requests", seen)


def _as_alone(reply: Reply, streamed: Streamed) -> bool:
    """Whether a stream has the whole answer. One that is cut within a character ends with replacement characters; the
    stream waits for the rest of the character and ends without."""
    return _same(reply.text.rstrip(_CUT), streamed.text.rstrip(_CUT))


def _is_sure(asked: Answer, reply: Reply) -> bool:
    """Whether the model is known to have no second answer that is nearly as likely. Nothing is known of one that thinks
    before it answers."""
    known = asked.log_probability
    return _same(asked.artifact, reply.text) and known is not None and known >= _SURE


def _test_sample(counts: Counts, size: SampleSize | None) -> VerificationCheck:
    """No worse than the evaluation, beyond chance (McNemar's test of the answers that changed)."""
    if not counts.samples:
        return skipped(SAMPLE, "spec.verification.samples is 0")
    chance, (low, high) = mcnemar(counts.wins, counts.losses), wilson(counts.correct, counts.samples)
    seen = f"{counts.correct} ({low:.2f} to {high:.2f}); {counts.losses} became wrong, {counts.wins} right"
    expected = f"{counts.expected} of {counts.samples} right, as evaluated{f'; {size}' if size else ''}"
    return judged(SAMPLE, not is_worse(counts.losses, counts.wins), expected, f"{seen} (p = {chance:.4f})")


def _latency(name: str, measured: Sequence[float | None], limit: float | None) -> VerificationCheck:
    """The 95th percentile (nearest rank) of what was measured, in milliseconds; without a limit for people to read."""
    known = sorted(each for each in measured if each is not None)
    if not known:
        return skipped(name, "no stream was long enough")
    late = known[math.ceil(0.95 * len(known)) - 1]
    seen = f"{1000 * late:.0f} ms at p95 of {len(known)} streams (median: {1000 * median(known):.0f} ms)"
    if limit is None:
        return skipped(name, f"{seen}; no objective")
    return judged(name, late <= limit, f"at most {1000 * limit:.0f} ms at p95, with several clients", seen)


def _why_none(too_long: int, what: str) -> str:
    if too_long:
        return f"{too_long} recorded texts are too long for the runtime"
    return f"the artifact has no record of {what}"


def _silent(pairs: Pairs) -> str:
    """That a server gives no probabilities for some of the texts, or none that are numbers; empty: it does for all."""
    silent = sum(not forced.has_numbers for _, forced in pairs)
    return f"no probabilities for {silent} of {len(pairs)} texts" if silent else ""


def _comparable(reference: ReferenceText, forced: Forced) -> bool:
    return reference.ids == forced.ids and len(forced.log_probs) == len(reference.artifact) and forced.has_numbers


def _same(left: str, right: str) -> bool:
    return left.strip() == right.strip()
