"""What a result depends on is in its key: every field of the spec, changed alone, changes the keys of its stages.

The fields and their values come from the CRD's schema, so that a new field is tried too: where it does not reach the
key of its stage, or nobody has said of which, a test fails.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, get_args

import pytest
from pydantic import BaseModel, ValidationError, create_model

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.custom_metrics import FigureRule
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.stages import (
    DEPENDS_ON,
    PIPELINE,
    RECIPE_VERSIONS,
    Params,
    PrepareParams,
    Stage,
    StageInput,
    Upstream,
    input_key,
)
from finetune_operator.finetunejob.params import params_of
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import Images, MetricContainer, PodShape
from tests.support.crd_cases import ABSENT, Case, Path, cases, changed, valid_object
from tests.support.crd_patterns import SCHEMAS, Object

pytestmark = pytest.mark.unit

PREPARE, TRAIN, EXPORT, EVALUATE, PUBLISH = PIPELINE
NO_STAGE: Final = frozenset[Stage]()
KEYS: Final[dict[str, frozenset[Stage]]] = {
    "dataset": frozenset({PREPARE}),
    "task": frozenset({PREPARE, EVALUATE}),
    "task.answerSchema": frozenset({PREPARE, EVALUATE, PUBLISH}),
    "training": frozenset({TRAIN}),
    "training.method": frozenset({TRAIN, EXPORT, EVALUATE}),
    "training.maxLength": frozenset({PREPARE, TRAIN}),
    "training.loss": frozenset({PREPARE, TRAIN}),
    "export": frozenset({EXPORT}),
    "export.onRegression": frozenset({EXPORT, EVALUATE}),
    "export.format": frozenset({EXPORT, PUBLISH}),
    "evaluation": frozenset({EVALUATE}),
    "output": frozenset({PUBLISH}),
    # With whose credentials something is reached changes no result.
    "output.storage": NO_STAGE,
    # Nor does it where copies of one go.
    "output.pushTo": NO_STAGE,
    **{
        f"dataset.{field}": NO_STAGE
        for place in ("sources.0", "benchmarks.0", "replay.source", "pii.ner")
        for field in (f"{place}.storage", f"{place}.secretKeyRef")
    },
    "dataset.distillation.teacher.secretKeyRef": NO_STAGE,
    # The identity of the model's files is an address upstream, as is that of the sources' files.
    "model": NO_STAGE,
    # Where and how the work is done, what it may cost, what is told of it: the result is the same.
    "profile": NO_STAGE,
    "budget": NO_STAGE,
    "storage": NO_STAGE,
    "tracking": NO_STAGE,
    "retention": NO_STAGE,
    "evaluation.goals": frozenset({Stage.PUBLISH}),
    "evaluation.onInconclusive": frozenset({Stage.PUBLISH}),
    "evaluation.onFail": frozenset({Stage.PUBLISH}),
    "evaluation.humanReview": frozenset({Stage.PUBLISH}),
    "evaluation.review": frozenset({Stage.PUBLISH}),
    "evaluation.baseline.endpoint.secretKeyRef": NO_STAGE,
    "evaluation.metrics.0.data.storage": NO_STAGE,
    "evaluation.judge": frozenset({Stage.PUBLISH}),
    "evaluation.judge.endpoint.secretKeyRef": NO_STAGE,
    "suspend": NO_STAGE,
    "rerun": NO_STAGE,
    "reuse": NO_STAGE,
}
"""Fields of the spec with all below them, and the stages whose results depend on them; the longest path counts."""
LINEAGE: Final = {
    *(
        "schemaVersion",
        "run",
        "storage",
        "output",
        "baseModelUri",
        "artifactUri",
        "inputKey",
        "reuse",
        "reuseOwn",
        "tracking",
    ),
    *(
        "baseModelStorage",
        "baseModelSecretKeyRef",
        "artifactDigest",
        "retention",
        "hardware",
        "alternatives",
        "runtimes",
        "timeBudgetSeconds",
        "maxCost",
        "operatorVersion",
        "image",
        "handsOver",
    ),
}
"""Fields of a StageInput on which no result depends: who asks, where, what with, and what is done with the result."""
CHAIN: Final = Upstream(source="1", model="2", dataset="3", adapter="4", export="5", evaluation="6", metrics="7")


def leaves(path: Path, schema: Object) -> Iterator[tuple[Path, Object, bool]]:
    """Every field below a path that is no object itself, with its schema, and whether it can be left out; of lists
    also the items."""
    if schema["type"] == "array":
        yield from leaves((*path, 0), schema["items"])
    for name, child in schema.get("properties", {}).items():
        if child["type"] != "object":
            yield (*path, name), child, name not in schema.get("required", [])
        yield from leaves((*path, name), child)


def changes(path: Path, schema: Object, optional: bool) -> tuple[FineTuneJobSpec, list[FineTuneJobSpec]]:
    """A spec, and what it is after the field has another value, for each value at a bound, and for none."""
    before = FineTuneJobSpec.model_validate(valid_object(meta.FINETUNEJOB, path)["spec"])
    values = [
        case.value for case in cases(meta.FINETUNEJOB, path, schema, set()) if case.path == path and not case.complaint
    ]
    values += [True] if schema["type"] == "boolean" else []
    found = []
    for value in [*values, *([ABSENT] if optional else [])]:
        try:
            after = FineTuneJobSpec.model_validate(changed(Case(meta.FINETUNEJOB, path, value, None))["spec"])
        except ValidationError:  # it does not go with the other fields
            continue
        if after != before:
            found.append(after)
    return before, found


@cache
def changes_of(field: str) -> tuple[FineTuneJobSpec, list[FineTuneJobSpec]]:
    """The changes of a field of ``FIELDS``: the models that two tests look at are made once."""
    return changes(*FIELDS[field])


FIELDS: Final = {
    ".".join(str(step) for step in path[1:]): (path, schema, optional)
    for path, schema, optional in leaves(("spec",), SCHEMAS[meta.FINETUNEJOB]["properties"]["spec"])
}


def given(spec: FineTuneJobSpec) -> Params:
    """Each stage's part of a spec, on a platform that offers every metric container."""
    offered = {
        each.name: MetricContainer(image=each.name, figures={"score": FigureRule()}) for each in spec.evaluation.metrics
    }
    return params_of(spec, offered)


def keys(spec: FineTuneJobSpec) -> dict[Stage, str]:
    """The keys of all stages of a spec, made of the same things upstream."""
    params = given(spec)
    return {stage: input_key(stage, CHAIN, params) for stage in PIPELINE}


def expected(field: str) -> frozenset[Stage]:
    """The stages whose keys a field changes. Raises KeyError for one that nobody has decided on."""
    names = field.split(".")
    known = (".".join(names[:end]) for end in range(len(names), 1, -1))
    return next((KEYS[each] for each in known if each in KEYS), KEYS[names[0]])


def test_the_fields_are_those_of_all_depths() -> None:
    assert len(FIELDS) > 100
    assert {
        *("suspend", "dataset.split.seed", "dataset.sources.0.weight", "dataset.distillation.teacher.secretKeyRef.key"),
        *("dataset.replay.source.configMapKeyRef.key", "dataset.pii.ner.package", "training.learningCurve.percents"),
    } <= FIELDS.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_spec_changes_the_keys_of_its_stages_and_no_others(field: str) -> None:
    spec, changed_specs = changes_of(field)
    assert changed_specs, "no other value of this field was tried"
    before = keys(spec)
    for after in map(keys, changed_specs):
        assert {stage for stage in PIPELINE if before[stage] != after[stage]} == expected(field)


@pytest.mark.slow
def test_every_parameter_of_a_stage_comes_from_the_spec() -> None:
    """None keeps its default whatever the spec says."""
    moved = set()
    for field in FIELDS:
        spec, changed_specs = changes_of(field)
        old = given(spec).model_dump()
        for new in (given(after).model_dump() for after in changed_specs):
            moved |= {
                (stage, name) for stage in PIPELINE for name in new[stage] if old[stage][name] != new[stage][name]
            }
    parameters: dict[str, Any] = {stage: getattr(params_of(SPEC), stage) for stage in PIPELINE}
    declared = {
        (stage, field.alias) for stage, each in parameters.items() for field in type(each).model_fields.values()
    }
    assert declared == moved


SPEC: Final = FineTuneJobSpec.model_validate(valid_object(meta.FINETUNEJOB)["spec"])


def test_texts_that_are_absent_are_in_the_key_as_before() -> None:
    """Earlier versions had them empty: what a teacher answered for such a spec is found again."""
    given = valid_object(meta.FINETUNEJOB, ("spec", "dataset", "distillation"))["spec"]
    for field in ("column", "answerSchema"):
        del given["dataset"]["distillation"][field]
    params = params_of(FineTuneJobSpec.model_validate(given)).prepare
    assert params is not None
    written = params.model_dump(mode="json", by_alias=True)["dataset"]["distillation"]
    assert (written["column"], written["answerSchema"]) == ("", "")
    read = PrepareParams.model_validate_json(params.model_dump_json(by_alias=True)).dataset.distillation
    assert read is not None
    assert (read.column, read.answer_schema) == ("", "")


@pytest.mark.parametrize("address", Upstream.model_fields)
def test_an_address_changes_the_keys_of_those_that_build_on_it(address: str) -> None:
    params, other = params_of(SPEC), CHAIN.model_copy(update={address: "7"})
    differ = {each for each in PIPELINE if input_key(each, other, params) != input_key(each, CHAIN, params)}
    assert differ == {each for each in PIPELINE if address in DEPENDS_ON[each]}
    for each in differ:
        with pytest.raises(ValueError, match=f"no {address} yet"):
            input_key(each, CHAIN.model_copy(update={address: ""}), params)


@pytest.mark.parametrize("stage", PIPELINE)
def test_another_recipe_gives_another_key(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = input_key(stage, CHAIN, params_of(SPEC))
    monkeypatch.setattr("finetune_api.stages.RECIPE_VERSIONS", {**RECIPE_VERSIONS, stage: RECIPE_VERSIONS[stage] + 1})
    assert input_key(stage, CHAIN, params_of(SPEC)) != before


def test_everything_else_that_a_stage_is_given_is_lineage() -> None:
    """A field that is added to StageInput is either a parameter, an address, or said to be lineage here."""
    given = {str(field.alias) for field in StageInput.model_fields.values()}
    assert given - {"stage", "upstream", "params"} == LINEAGE


RECORDED: Final[Object] = {
    "schemaVersion": 1,
    "stage": "verify",
    "run": {
        "kind": "AdapterDeployment",
        "namespace": "team",
        "name": "demo",
        "uid": "uid-of-demo",
        "id": "339a6bb2-d35668",
    },
    "storage": {"endpoint": None, "region": "us-east-1", "secretRef": None},
    "artifactUri": f"s3://models/team/artifacts/{'a' * 64}",
    "params": {
        "verify": {
            "endpoint": "http://demo-339a6bb2-candidate.team.svc:80",
            "samples": 50,
            "minAgreementPercent": 75,
            "timeoutSeconds": 1100,
        }
    },
}
"""The input of a verification as a version wrote it that knew neither engines, nor objectives, nor much else."""


def test_fields_that_later_versions_add_change_no_name_of_a_job() -> None:
    """Or an upgrade of the operator would begin every verification that runs anew."""
    read = StageInput.model_validate(RECORDED)
    today = StageInput.model_validate_json(read.model_dump_json(by_alias=True))
    assert today.model_dump(by_alias=True)["params"]["verify"].keys() > RECORDED["params"]["verify"].keys()
    owner = Owner(ADAPTERDEPLOYMENTS, "team", "demo", "uid-of-demo")
    request = StageRequest(
        owner,
        today,
        image="",
        images=Images(data="", prepare="", jobs="", quantize="", proxy=""),
        shape=PodShape(),
        service_account="",
    )
    assert request.name == "demo-verify-a34ffdb41a"


@pytest.mark.parametrize("stage", PIPELINE)
def test_parameters_that_later_versions_add_change_no_key(stage: Stage) -> None:
    """Or an upgrade would make all results again."""
    params = params_of(SPEC)
    known = getattr(params, stage)
    later = create_model("Later", __base__=type(known), added=(int, 1))
    with_default, with_value = (later(**known.model_dump(), **more) for more in ({}, {"added": 2}))
    before, same, other = (
        input_key(stage, CHAIN, params.model_copy(update={stage.value: each}))
        for each in (known, with_default, with_value)
    )
    assert before == same != other


def models_of(kind: Any) -> Iterator[type[BaseModel]]:
    """A model and all models below it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from models_of(field.annotation)
    for part in get_args(kind):
        yield from models_of(part)


def test_every_default_can_be_told_from_a_value() -> None:
    """pydantic leaves out what equals a default, but not what a factory makes."""
    models = set(models_of(StageInput)) | set(models_of(FineTuneJobSpec)) | set(models_of(AdapterDeploymentSpec))
    assert len(models) > 40
    assert [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if field.default_factory
    ] == []
