"""Artifacts that are asked for more than a runtime takes: refused before a pod starts, or served with a warning."""

import pytest

from finetune_api.job_status import ArtifactTokens
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_operator.adapterdeployment.token_limits import prompt_violation
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.settings import Engine, Runtime, Settings
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import SETTINGS, following, published

pytestmark = pytest.mark.unit

LIMITS = ("runtime 'tgi-cpu'", "1024", "maxInputTokens", "2048", "maxTotalTokens")
"""What a message says of the runtime."""


def deployed(tokens: ArtifactTokens | None) -> ServingCluster:
    cluster = ServingCluster(spec=following(), source=published(GOOD, tokens=tokens))
    cluster.settle()
    return cluster


def taking(prompt: int, total: int) -> Settings:
    """A platform whose runtime takes so many tokens."""
    limits = {"max_input_tokens": prompt, "max_total_tokens": total}
    runtime = SETTINGS.runtimes["tgi-cpu"].model_copy(update=limits)
    return SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": runtime}})


@pytest.mark.parametrize(("prompt", "answer", "fits"), [(1500, 548, True), (1500, 549, False), (2048, 1, False)])
def test_vllm_has_one_limit_for_prompt_and_answer(prompt: int, answer: int, fits: bool) -> None:
    runtime = Runtime(engine=Engine.VLLM, image="vllm:1", max_total_tokens=2048)
    said = prompt_violation(ArtifactTokens(golden_prompt=prompt, answer=answer), "vllm", runtime)
    assert (said == "") is fits
    if not fits:
        assert_says(said, "runtime 'vllm' accepts 2048 for prompt and answer together (maxTotalTokens)")
        assert "maxInputTokens" not in said


@pytest.mark.parametrize(
    ("prompt", "answer", "refused"),
    [(1024, 1024, False), (1025, 20, True), (1000, 1049, True), (None, 4096, False), (1025, None, True)],
)
def test_golden_prompts_that_do_not_fit_start_nothing(prompt: int | None, answer: int | None, refused: bool) -> None:
    cluster = deployed(ArtifactTokens(golden_prompt=prompt, answer=answer))
    assert cluster.status.phase is (ServingPhase.FAILED if refused else ServingPhase.READY)
    if refused:
        assert not cluster.objects
        [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
        assert stalled.reason == Reason.PROMPTS_TOO_LONG
        assert_says(
            stalled.message, "golden prompt", f"{prompt} tokens", *([f"{answer} more"] if answer else []), *LIMITS
        )
        assert "None" not in stalled.message
        assert "raise the runtime's maxTotalTokens, and on Text Generation Inference maxInputTokens" in stalled.message
        cluster.settings = taking(4096, 5200)
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY


def test_what_serves_goes_on_when_a_new_artifact_does_not_fit() -> None:
    cluster = deployed(ArtifactTokens(golden_prompt=300, answer=20))
    old = cluster.traffic()
    cluster.source = published(BETTER, tokens=ArtifactTokens(golden_prompt=3000, answer=20))
    cluster.settle()
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})
    assert cluster.status.phase is ServingPhase.DEGRADED
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Stalled") == ("True", Reason.PROMPTS_TOO_LONG)


def test_what_was_proved_is_not_refused_by_a_count() -> None:
    """A server may count a token less than those who trained."""
    cluster = deployed(None)
    cluster.source = published(GOOD, tokens=ArtifactTokens(golden_prompt=1025, answer=20))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY


@pytest.mark.parametrize(
    ("tokens", "warned"),
    [
        (ArtifactTokens(golden_prompt=300, answer=20, example=1044), False),
        (ArtifactTokens(golden_prompt=300, answer=20, example=1045), True),  # its prompt has 1025 at least
        (ArtifactTokens(golden_prompt=300, answer=1500, example=2048), False),
        (ArtifactTokens(golden_prompt=300, answer=1500, example=2049), True),
        (ArtifactTokens(example=2048), False),
        (ArtifactTokens(example=4096), True),
        (ArtifactTokens(), False),
        (None, False),
    ],
)
def test_longer_examples_are_a_warning(tokens: ArtifactTokens | None, warned: bool) -> None:
    cluster = deployed(tokens)
    assert cluster.status.phase is ServingPhase.READY
    told = [each.message for each in cluster.status.conditions if each.type == "Discouraged"]
    assert [event.message for event in cluster.events if event.reason is Reason.SETTINGS_DISCOURAGED] == told
    if not warned:
        assert told == []
        return
    assert tokens is not None
    [message] = told
    assert_says(message, "example", f"{tokens.example} tokens", *LIMITS, "refuses longer requests")
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    cluster.settings = taking(4096, 5200)
    cluster.settle()
    assert not [each for each in cluster.status.conditions if each.type == "Discouraged"]
