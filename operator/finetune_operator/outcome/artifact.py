"""What a stage has said of a published artifact. Pure."""

from collections.abc import Mapping

from finetune_api.job_status import ArtifactStatus, ArtifactTokens
from finetune_operator.outcome.pod import count_of


def artifact_of(digest: str, uri: str, scalars: Mapping[str, str]) -> ArtifactStatus:
    """The artifact for the status, from the scalars of publish and of follow."""
    tokens = ArtifactTokens(
        golden_prompt=count_of(scalars, "goldenPromptTokens"), answer=count_of(scalars, "answerTokens")
    )
    return ArtifactStatus(
        digest=digest,
        uri=uri,
        format=scalars.get("format", "")[:16],
        architecture=scalars.get("architecture", "")[:64] or None,
        base_digest=scalars.get("baseDigest", "")[:64] or None,
        rank=count_of(scalars, "rank"),
        size_bytes=count_of(scalars, "sizeBytes"),
        base_size_bytes=count_of(scalars, "baseSizeBytes"),
        tokens=tokens if tokens != ArtifactTokens() else None,
    )
