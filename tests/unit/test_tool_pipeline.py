"""A data set in which every answer calls a tool, through all stages to a verified server: the real ones, on a tiny
model, and the stand-in for TGI."""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.dataset import Task as SpecTask
from finetune_api.dataset import TaskType
from finetune_api.endpoint_stages import VerifyParams
from finetune_api.evaluation import Coverage, Evaluation
from finetune_api.export import Export, ExportFormat
from finetune_api.finetunejob import Output
from finetune_api.gates import Gates
from finetune_api.layout import EVALUATION_PAGE, output_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome
from finetune_api.stages import (
    EvaluateParams,
    ExportParams,
    Params,
    Stage,
    StageInput,
    StageResult,
    TrainParams,
    Upstream,
)
from finetune_api.training import Method
from finetune_jobs.artifacts.artifact import ANSWERS, GOLDEN, METRICS, SAMPLE, read_answers
from finetune_jobs.artifacts.calls import CallFormat
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluate import evaluate
from finetune_jobs.fetch import fetch
from finetune_jobs.modelling.base_model import find_base_model
from finetune_jobs.modelling.calls import find_format
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.prepare import prepare
from finetune_jobs.publish import publish
from finetune_jobs.reading.inputs import inputs_digest
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.train import train
from finetune_jobs.verify import verify
from tests.support.preparing import Prepared, text
from tests.support.reasoning import QWEN3
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.stages import DEPLOYMENT, Lent, context, pipeline_params, run_process, stage_input
from tests.support.tgi_process import tgi_cpu
from tests.support.tiny_model import build_tiny_llama, edit_json
from tests.support.training import BASE, settings

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_client")]

TEMPLATE: Final = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Hermes and Qwen 2.5 have it, without the words around the tools."""
FUNCTIONS: Final = ("refund", "track")
TOOLS: Final = [{"type": "function", "function": {"name": name, "description": name}} for name in FUNCTIONS]
CHAIN: Final = (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE, Stage.PUBLISH)
RUNS: Final = {
    Stage.PREPARE: prepare,
    Stage.TRAIN: train,
    Stage.EVALUATE: evaluate,
    Stage.PUBLISH: publish,
}
"""Export runs as its container does: its environment is another."""


def calling(number: int) -> dict[str, Any]:
    """A row whose answer calls a tool, as OpenAI's API has it: the arguments are a text."""
    function = {"name": FUNCTIONS[number % 2], "arguments": json.dumps({"urgent": number % 2 == 0})}
    answer = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    return {
        "messages": [{"role": "user", "content": f"{FUNCTIONS[number % 2]} {text(number)}"}, answer],
        "tools": TOOLS,
    }


@dataclass
class Pipeline:
    """Stages one after the other, on what the ones before have left in the store."""

    s3: SeaweedFS
    store: Store
    folder: Path
    params: Params
    chain: Upstream
    quantize_python: Path

    def run(self, stage: Stage) -> StageResult:
        """A stage and its result."""
        output = Output(uri=self.store.uri("out"), name="tools")
        given = stage_input(
            stage, self.s3.storage, output, self.params, self.chain, base_model_uri=self.store.uri(BASE)
        )
        if stage in RUNS:
            result = execute(context(given, self.folder), RUNS[stage])
        else:
            ended = run_process(given, self.folder, ADMIN, python=self.quantize_python)
            assert ended.code == ExitCode.OK, (ended.result, ended.log)
            result = ended.result
        self.chain = self.chain.with_output(stage, result.output_digest)
        return result

    def serve(self, stage: Stage, result: StageResult, endpoint: str = "", samples: int = 10) -> StageResult:
        """Fetch or verify what was published."""
        params = VerifyParams(endpoint=endpoint, samples=samples, min_agreement_percent=75, timeout_seconds=180)
        uri = result.scalars["artifactUri"]
        given = StageInput(
            stage=stage, run=DEPLOYMENT, storage=self.s3.storage, artifact_uri=uri, params=Params(verify=params)
        )
        return execute(context(given, self.folder), fetch if stage is Stage.FETCH else verify)

    def file(self, stage: Stage, result: StageResult, name: str) -> str:
        """A file that a stage has left."""
        return (self.store.get(f"out/{output_folder(stage, result.output_digest)}/{name}") or b"").decode()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is still loading is asked again soon."""
    monkeypatch.setattr("finetune_jobs.verification.connection._POLL_SECONDS", 0.05)


@pytest.fixture
def pipeline(s3: SeaweedFS, place: str, quantize_python: Path, tmp_path: Path) -> Pipeline:
    """A base model that can call tools, and a job whose rows all do."""
    store = Store.connect(s3.storage, place)
    base = build_tiny_llama(tmp_path / "base")
    edit_json(base / "tokenizer_config.json", chat_template=TEMPLATE)
    for file in base.iterdir():
        store.upload(f"{BASE}/{file.name}", file)
    store.put("rows.jsonl", b"".join(json.dumps(calling(n)).encode() + b"\n" for n in range(300)))
    sets = {"general": Coverage.OFF, "adversarial": Coverage.OFF}
    task = SpecTask(type=TaskType.TEXT)
    params = pipeline_params(
        [store.uri("rows.jsonl")], Output(uri=store.uri("out"), name="tools"), columns=None, task=task, max_length=512
    )
    assert params.prepare
    assert params.publish
    params = params.model_copy(
        update={
            "train": TrainParams(training=settings(Method.FULL, epochs=2, batch_size=4)),
            "export": ExportParams(export=Export(format=ExportFormat.MERGED), method=Method.FULL),
            "evaluate": EvaluateParams(
                evaluation=Evaluation(max_samples=10, golden_prompts=3, **sets), task=task, method=Method.FULL
            ),
            "publish": params.publish.model_copy(update={"format": ExportFormat.MERGED}),
        }
    )
    assert params.prepare
    upstream = Upstream(
        source=inputs_digest(Lent(store), params.prepare.dataset),
        model=find_base_model(Lent(store), store.uri(BASE)).digest,
    )
    return Pipeline(s3, store, tmp_path, params, upstream, quantize_python)


def test_a_data_set_of_calls_alone_is_published_and_proved(pipeline: Pipeline, tmp_path: Path) -> None:
    results = {stage: pipeline.run(stage) for stage in CHAIN}

    evaluation, published = results[Stage.EVALUATE], results[Stage.PUBLISH]
    answers = read_answers(pipeline.file(Stage.EVALUATE, evaluation, ANSWERS).splitlines(), ANSWERS)
    form = CallFormat(begin="<tool_call>", name_key="name", arguments_key="arguments")
    assert {answer.calls for answer in answers} == {form}
    assert all(answer.prompt.startswith('<|im_start|>system\n[{"type": "function"') for answer in answers)
    assert all(form.read(answer.label) for answer in answers)
    measured = json.loads(pipeline.file(Stage.EVALUATE, evaluation, METRICS))["measurements"]["measured"]
    figures = {each["metric"]: each["models"]["artifact"]["value"] for each in measured}
    assert figures["toolName"] >= figures["toolArguments"] >= 0
    assert figures["toolUse"] > 0.5  # it has learnt the form
    page = re.sub(r"<[^>]+>", "", pipeline.file(Stage.EVALUATE, evaluation, EVALUATION_PAGE))
    assert "Tool calls" in page
    assert "refund().urgent" in page
    for name in (GOLDEN, SAMPLE):
        promised = read_answers(pipeline.file(Stage.PUBLISH, published, name).splitlines(), name)
        assert promised
        assert all(each.prompt and each.tools == TOOLS for each in promised)

    pipeline.serve(Stage.FETCH, published)
    model = tmp_path / "models" / published.output_digest / "model"
    recording = {"ENABLE_PREFILL_LOGPROBS": "true"}
    with tgi_cpu(model, tmp_path, env=recording, fresh=False) as server:
        verified = pipeline.serve(Stage.VERIFY, published, server.url)
    outcomes = {check.name: check.outcome for check in verified.checks}
    proved = {"digest", "promptTokens", "differsFromBase", "logProbabilities", "concurrentStreams", "testSample"}
    assert {outcomes[name] for name in proved} == {CheckOutcome.PASSED}
    [calls] = [check for check in verified.checks if check.name == "toolCalls"]
    assert (calls.outcome, calls.seen[:40]) == (CheckOutcome.SKIPPED, "TGI makes calls in a form of its own; vL")
    assert "13 of 13 counts" in next(check.seen for check in verified.checks if check.name == "promptTokens")
    assert int(verified.scalars["agreementPercent"]) >= 75

    base = tmp_path / "base"
    planted = tmp_path / "planted" / published.output_digest
    planted.parent.mkdir()
    planted.symlink_to(base, target_is_directory=True)
    with (
        tgi_cpu(planted, tmp_path, env=recording, fresh=False) as server,
        pytest.raises(StageError, match=r"differsFromBase"),
    ):
        pipeline.serve(Stage.VERIFY, published, server.url, samples=1)


PYTHON: Final = TEMPLATE.replace("{{ c.function | tojson }}", "{{ c.function.name }}(place='somewhere')")
"""As Llama 4 has it: no JSON."""


@pytest.mark.parametrize(
    ("template", "task", "metric", "called", "why"),
    [
        (TEMPLATE, TaskType.TEXT, "toolUse", False, "none of the 20 test examples of the evaluation expects a tool"),
        (TEMPLATE, TaskType.TEXT, "toolName", True, ""),
        (PYTHON, TaskType.TEXT, "toolName", True, "the base model's chat template does not write tool calls as JSON"),
        (TEMPLATE, TaskType.EXTRACTION, "validJson", True, "every test example of the evaluation expects a tool call"),
        (TEMPLATE, TaskType.EXTRACTION, "validJson", False, ""),
    ],
)
def test_goals_that_the_calls_of_these_data_leave_unmeasured_are_refused_before_training(
    s3: SeaweedFS, place: str, tmp_path: Path, template: str, task: TaskType, metric: str, called: bool, why: str
) -> None:
    base = build_tiny_llama(tmp_path / "base")
    edit_json(base / "tokenizer_config.json", chat_template=template)
    prepared = Prepared(s3, place, base, tmp_path)
    given = [calling(n) if called else {"prompt": text(n), "completion": f'{{"n": {n}}}'} for n in range(200)]
    prepared.gates = Gates.model_validate({"goals": [{"metric": metric, "atLeast": "0.5"}]})  # 20 rows can show it
    run = partial(
        prepared.run,
        prepared.put("rows.jsonl", given),
        columns=None,
        task=SpecTask(type=task),
        max_length=512,
    )
    if not why:
        run()
        return
    with pytest.raises(StageError, match=why) as error:
        run()
    assert error.value.reason is Reason.SPEC_INVALID


def test_the_form_of_a_template_is_found_by_having_it_write_a_call(tmp_path: Path) -> None:
    base = build_tiny_llama(tmp_path / "base")
    mistral = (
        "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
        "{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]<|im_end|>"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    one = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}"
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
        '{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    forms = {
        TEMPLATE: CallFormat(begin="<tool_call>", name_key="name", arguments_key="arguments"),
        QWEN3: CallFormat(begin="<tool_call>", name_key="name", arguments_key="arguments"),
        mistral: CallFormat(begin="[TOOL_CALLS]", name_key="name", arguments_key="arguments"),
        one: CallFormat(name_key="name", arguments_key="parameters"),
        PYTHON: None,
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}": None,
    }
    for template, form in forms.items():
        edit_json(base / "tokenizer_config.json", chat_template=template)
        tokenizer = load_tokenizer(base)
        assert find_format(tokenizer, stop_token(base, tokenizer)) == form, template
    edit_json(base / "tokenizer_config.json", chat_template=QWEN3)
    tokenizer = load_tokenizer(base)
    found = find_format(tokenizer, stop_token(base, tokenizer), thoughts=True)
    assert found == forms[QWEN3]
