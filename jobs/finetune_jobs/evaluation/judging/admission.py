"""A judge that cannot judge, or is one of those that it judges: refused before anything is paid for. Pure functions."""

from urllib.parse import urlsplit

from finetune_api.judging import Judge
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef
from finetune_jobs.base.errors import StageError


def require_judge(judge: Judge, run: RunRef, output_name: str, base_model_uri: str) -> None:
    """Raises StageError (SpecInvalid) for one that may not ask about each pair in both orders, that is called like the
    artifact or the base model, or whose URL is that of a Service with the name of the job or of its output, in the
    job's namespace.

    More cannot be known: a server calls its models what it likes.
    """
    endpoint, place = judge.endpoint, "spec.evaluation.judge.endpoint"
    if judge.max_requests < 2 * judge.max_examples:
        raise StageError(
            Reason.SPEC_INVALID,
            f"spec.evaluation.judge.maxRequests is {judge.max_requests}, but {judge.max_examples} pairs (maxExamples) "
            "in both orders take at least twice as many requests: raise it, or lower maxExamples.",
        )
    if endpoint.model.casefold() in {name.casefold() for name in (output_name, _hub_name(base_model_uri)) if name}:
        what = "the output of this job" if endpoint.model.casefold() == output_name.casefold() else "the base model"
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place}.model is {endpoint.model!r}, as {what} is called: no model judges its own answers. Name another "
            "model.",
        )
    service, _, rest = (urlsplit(endpoint.url).hostname or "").partition(".")
    namespace = rest.partition(".")[0]
    if service in (output_name, run.name) and namespace in ("", run.namespace):
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place}.url is that of the Service {service!r} of this namespace, which serves what this job makes: no "
            "model judges its own answers. Name another server.",
        )


def _hub_name(uri: str) -> str:
    """``organisation/name`` of a model of the hub; empty for others."""
    return uri.removeprefix("hf://").partition("@")[0] if uri.startswith("hf://") else ""
