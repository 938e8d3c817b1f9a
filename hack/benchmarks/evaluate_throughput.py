"""Answers per CPU second in an evaluation, compared with transformers' plain ``generate``, one prompt after the other.

Both sides ask the same model (SmolLM2-135M as QLoRA trains on it: nf4, unpacked as the stage unpacks it) the same
questions of examples/transactions, in one process with one thread: at once, and after examples of the training data,
both with room for a sentence. They must write the same texts. In float32 on every machine: in 16 bits rounding decides
ties, which fall otherwise in a batch. Takes some ten CPU minutes (an estimate); ``--rows`` asks fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.dataset import TaskType
from finetune_api.training import Quantization
from hack.benchmarks.result import Result
from hack.benchmarks.train_throughput import fresh_process
from hack.benchmarks.transactions import transactions
from hack.cluster.console import ClusterError, say, step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

ROWS = 60
"""Questions, each of which is asked in both ways."""
TRAIN = 300
"""Further rows, from which the examples in the prompts are chosen."""
SPARE = 20
"""Rows generated beyond those that are needed, per hundred: some lack a text or a category."""


def run(rows: int = ROWS) -> Result:
    """Measure; the value is our rate over both ways together. Raises ClusterError if the sides write different
    texts."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before the process starts
    base = ensure_smollm2(cache_directory())
    with step(f"ask {rows} questions in two ways, in batches and one by one"):
        ways: dict[str, dict[str, Any]] = fresh_process(measure, base, rows)
    for name, way in ways.items():
        say(f"  {name}: {way['ratio']} times the answers per CPU second")
    different = sum(way["different"] for way in ways.values())
    if different:
        raise ClusterError(f"{different} of {len(ways) * rows} answers in batches differ from those one by one")
    ours, plain = (sum(way[side] for way in ways.values()) for side in ("oursSeconds", "plainSeconds"))
    return Result(
        name="evaluate_throughput",
        value=len(ways) * rows / ours,
        unit="answers/CPU-s",
        baseline=len(ways) * rows / plain,
        goal="≥ 4 × generate one by one, with the same texts",
        details={"rows": rows, **ways},
    )


def measure(base: Path, rows: int) -> dict[str, dict[str, Any]]:
    """Both ways of asking, in this process."""
    import torch

    from finetune_jobs.evaluation.generate import ROOM, Questions, answer_limit
    from finetune_jobs.evaluation.shots import choose_shots, with_shots
    from finetune_jobs.modelling.loading import load_base, unpacked
    from finetune_jobs.modelling.tokenizer import load_tokenizer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="finetune-evaluate-") as folder:
        examples = transactions(Path(folder), (rows + TRAIN) * (100 + SPARE) // 100)
    asked, shots = examples[:rows], choose_shots(examples[rows : rows + TRAIN], TaskType.CLASSIFICATION)
    tokenizer = load_tokenizer(base)
    model = unpacked(load_base(base, Quantization.NF4, dtype=torch.float32, where="cpu"))
    limit = answer_limit(tokenizer, [each.label for each in asked])
    prompts = [each.prompt for each in asked]
    shown = [with_shots(prompt, shots) for prompt in prompts]
    return {
        "room": compared(model, tokenizer, Questions(prompts, limit + ROOM, 16)),
        "fewShot": compared(model, tokenizer, Questions(shown, limit + ROOM, 16)),
    }


def compared(model: Any, tokenizer: Any, questions: Any) -> dict[str, Any]:
    """CPU seconds of both sides, and how many texts differ."""
    from finetune_jobs.evaluation.generate import generate_answers
    from finetune_jobs.modelling import chat

    def one_by_one() -> list[str]:
        answers = (answer_plainly(model, tokenizer, prompt, questions.limit) for prompt in questions.prompts)
        return [str(tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in answers]

    answer_plainly(model, tokenizer, questions.prompts[0], 2)  # a first pass sets things up, on whichever side
    ours, seconds = timed(lambda: generate_answers(model, tokenizer, questions, lambda _done, _total: None))
    plain, plain_seconds = timed(one_by_one)
    return {
        "oursSeconds": round(seconds, 2),
        "plainSeconds": round(plain_seconds, 2),
        "ratio": round(plain_seconds / seconds, 2),
        "different": sum(one != other for one, other in zip(ours, plain, strict=True)),
        "promptTokens": sum(len(chat.prompt_ids(tokenizer, prompt)) for prompt in questions.prompts),
        "answerTokens": sum(len(chat.answer_ids(tokenizer, text)) for text in plain),
        "limit": questions.limit,
    }


def answer_plainly(model: Any, tokenizer: Any, prompt: Any, limit: int) -> list[int]:
    """The answer's tokens, without the one that ends it: a prompt on its own, as transformers' documentation does it.
    Tests compare with it, too."""
    import torch
    from transformers import GenerationConfig

    from finetune_jobs.modelling import chat

    stops = sorted(chat.stop_ids(tokenizer, model.generation_config))
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    ids = torch.tensor([chat.prompt_ids(tokenizer, prompt)])
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [token for token in written[0, ids.shape[1] :].tolist() if token not in stops]


def timed(work: Callable[[], list[str]]) -> tuple[list[str], float]:
    """What ``work`` returns, and its CPU seconds."""
    begin = time.process_time()
    return work(), time.process_time() - begin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    result = run(parser.parse_args().rows)
    result.write()
    say(json.dumps(result.details, indent=1))
