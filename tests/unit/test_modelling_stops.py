"""Tokens that end an answer, in an exported checkpoint: every server must stop where the evaluation did."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.training import Method
from finetune_jobs.exporting.checkpoint import complete
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_tokens
from finetune_jobs.modelling.tuning import Tuning
from tests.support.tiny_model import build_tiny_llama
from tgi_cpu.args import parse_args
from tgi_cpu.checkpoint import load_checkpoint
from tgi_cpu.dialect import read_checkpoint

pytestmark = [pytest.mark.unit, pytest.mark.slow]

EOS = 3
"""The tokenizer's."""


def settings_of(folder: Path, named: Any) -> None:
    content = {"bos_token_id": 1, "pad_token_id": 0} | ({} if named is None else {"eos_token_id": named})
    (folder / "generation_config.json").write_text(json.dumps(content))


def read_by_stand_in(folder: Path) -> frozenset[int]:
    args = parse_args([], {"MODEL_ID": str(folder)})
    return load_checkpoint(args, read_checkpoint(args)).vocabulary.eos_token_ids


@pytest.mark.parametrize(
    ("named", "written"),
    [
        (EOS, EOS),
        ([EOS], [EOS]),
        ([7, EOS], [7, EOS]),
        # TGI would have stopped at the tokenizer's only, or at 7 only
        (7, [EOS, 7]),
        ([7], [EOS, 7]),
        (None, [EOS]),
    ],
)
def test_all_that_end_an_answer_are_named_where_a_reader_would_miss_one(
    named: Any, written: Any, tmp_path: Path
) -> None:
    base = build_tiny_llama(tmp_path / "base")
    settings_of(base, named)
    meant = stop_tokens(base, load_tokenizer(base))
    out = build_tiny_llama(tmp_path / "out")
    settings_of(out, named)
    complete(base, out, Tuning(method=Method.LORA))
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == written
    assert read_by_stand_in(out) == stop_tokens(out, load_tokenizer(out)) == meant


def test_the_stand_in_reads_them_as_tgi_does(tmp_path: Path) -> None:
    base = build_tiny_llama(tmp_path)
    for named, read in ((7, {EOS}), ([7], {7}), ([7, 8], {7, 8})):
        settings_of(base, named)
        assert read_by_stand_in(base) == read
