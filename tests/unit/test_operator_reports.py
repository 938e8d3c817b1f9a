"""What a pod may report that the status cannot hold: the operator's plan survives it, and believes none of it."""

from __future__ import annotations

import pytest

from finetune_api.job_status import FineTuneJobStatus, Phase
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Stage
from finetune_operator.finetunejob.plan import plan
from tests.support.runs import IDENTITY, NOW, RESOLVED, done, observed, told
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

OWN = "s3://artifacts/team/"


@pytest.mark.parametrize(
    "told_uri",
    [
        pytest.param(OWN + "x" * 1024, id="longer than the status holds"),
        pytest.param("s3://artifacts/other-team/artifacts/4", id="somebody else's"),
        pytest.param(OWN + "../other-team/4", id="somebody else's in other words"),
        pytest.param("", id="none"),
    ],
)
def test_an_artifact_is_below_the_output_whatever_publish_reports(told_uri: str) -> None:
    publish = done(Stage.PUBLISH, scalars={"artifactUri": told_uri})
    result = plan(observed(jobs=(RESOLVED, *map(done, PIPELINE[:-1]), publish)), NOW)
    artifact = result.status.artifact
    assert artifact is not None
    assert artifact.uri.startswith(OWN)
    assert artifact.uri.endswith(artifact.digest)


@pytest.mark.parametrize("name", ["sourceDigest", "modelDigest", "metricsDigest"])
def test_a_digest_that_is_too_long_fails_the_run_with_a_status_that_can_be_written(name: str) -> None:
    """The API server refused it with everything else, so the run neither went on nor ended."""
    resolve = done(Stage.RESOLVE, scalars=IDENTITY | {name: "5" * 65})
    result = plan(observed(jobs=(resolve,)), NOW)
    FineTuneJobStatus.model_validate(result.status.model_dump(mode="json", by_alias=True))
    if name == "metricsDigest":  # no metric container asks for data, so it is not looked at
        assert result.status.run is not None
        assert result.status.run.metrics_digest == ""
    else:
        assert told(result) == (Phase.FAILED, Reason.INTERNAL_ERROR)
        assert_says(result.status.conditions[0].message, "resolve reported no digest of the sources or of the model")
