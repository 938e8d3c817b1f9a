"""How the CPU stand-in for TGI reads its flags and a checkpoint's JSON, and what it refuses to start with."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked
from tests.support.tiny_model import build_tiny_llama, edit_json
from tgi_cpu.__main__ import JsonLines
from tgi_cpu.args import bind_address, parse_args
from tgi_cpu.dialect import CheckpointFiles

pytestmark = pytest.mark.unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "status", "reason"),
    [
        ({"MAX_INPUT_TOKENS": "8", "MAX_TOTAL_TOKENS": "8"}, 1, "`max_input_tokens`(8) must be < `max_total_tokens`"),
        ({"MAX_INPUT_TOKENS": "2048"}, 1, "`max_input_tokens` must be < `max_total_tokens`"),
        ({"MAX_TOTAL_TOKENS": "9", "MAX_BATCH_TOTAL_TOKENS": "8"}, 1, "must be <= `max_batch_total_tokens`"),
        ({"LORA_ADAPTERS": "a=/b=c"}, 1, "Invalid LoRA adapter format: a=/b=c"),
        ({"LORA_ADAPTERS": "a=/no/such/adapter"}, 1, "/no/such/adapter/adapter_config.json is missing"),
        ({"MODEL_ID": "org/model"}, 1, "org/model is not a folder"),
        ({"REVISION": "main"}, 1, "REVISION=main"),
        ({"QUANTIZE": "bitsandbytes-nf4"}, 1, "quantization is not available on CPU"),
        ({"TRUST_REMOTE_CODE": "true"}, 1, "TRUST_REMOTE_CODE is not supported"),
        ({"QUANTIZE": "nf4"}, 2, "invalid value 'nf4'"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, 2, "--master-port"),
    ],
)  # fmt: skip
def test_launcher_refuses(tmp_path: Path, env: dict[str, str], status: int, reason: str) -> None:
    start = _start({"MODEL_ID": str(build_tiny_llama(tmp_path)), **env})
    assert (start.returncode, reason in start.stderr) == (status, True), start.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, "Tokenizer class TokenizersBackend does"),
        ("tokenizer_config.json", {"extra_special_tokens": ["<x>"]}, "'list' object has no attribute 'keys'"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantization gptq"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_tgi_cannot_read_is_refused(
    tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    model = build_tiny_llama(tmp_path)
    edit_json(model / file, **change)
    start = _start({"MODEL_ID": str(model)})
    assert (start.returncode, reason in start.stderr) == (1, True), start.stderr


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_theta": 500000.0}, None),
        ({"rope_theta": 500000.0, "rope_parameters": {"rope_theta": 500000.0}}, None),
        ({"rope_parameters": {"rope_theta": 500000.0}}, 10000.0),  # what TGI silently reads
        ({}, None),
    ],
)
def test_the_rotary_base_is_read_as_transformers_4_reads_it(config: dict[str, Any], theta: float | None) -> None:
    override = CheckpointFiles(Path(), config, None).rope_override
    assert (None if override is None else override["rope_theta"]) == theta


@pytest.mark.parametrize(("hostname", "bound"), [("127.0.0.1", "127.0.0.1"), ("::", "::"), ("tgi-6f5b-x2x", "0.0.0.0")])
def test_a_pod_name_in_hostname_means_every_interface(hostname: str, bound: str) -> None:
    assert bind_address(parse_args([], {"HOSTNAME": hostname}).hostname) == bound


def test_a_log_line_is_json_with_its_traceback() -> None:
    try:
        raise ValueError("no such\ntoken")
    except ValueError:
        record = logging.LogRecord("tgi_cpu.engine", logging.ERROR, "", 0, "failed: %s", ("x",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    content = json.loads(line)
    assert (content["level"], content["target"]) == ("ERROR", "tgi_cpu.engine")
    assert content["fields"]["message"].startswith("failed: x\nTraceback")


def _start(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return forked.run(["tgi_cpu"], {**os.environ, **env})
