"""Runs a model in vLLM, for another process: reads requests from standard input, a line of JSON each, and answers each
with one.

This file is a program for the Python of vLLM's own environment (``vllm_process``), which has other versions of
everything than this package needs: it imports vLLM and the standard library only. What vLLM prints goes to standard
error. It ends when its input does, so that it never outlives whoever started it.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO


def main() -> None:
    """Load the model that the first line describes, then answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        worker = Worker(json.loads(sys.stdin.readline()))
        _say(answers, {"version": worker.version})
        for line in sys.stdin:
            _say(answers, worker.answer(json.loads(line)))
    except Exception as error:
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise


def _say(answers: TextIO, said: dict[str, Any]) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


class Worker:
    """A model in vLLM, and an adapter that requests may ask for."""

    def __init__(self, given: dict[str, Any]) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        adapter = given["adapter"]
        room = {"enable_lora": True, "max_loras": 1, "max_lora_rank": given["rank"]} if adapter else {}
        self.version = str(vllm.__version__)
        self._params = vllm.SamplingParams
        self._adapter = LoRARequest("adapter", 1, adapter) if adapter else None
        self._model = vllm.LLM(
            model=given["model"],
            dtype=given["dtype"],
            max_model_len=given["longest"],
            tensor_parallel_size=given["gpus"],
            # It gets tokens and gives tokens: the tokenizer of whoever asks renders and reads them.
            skip_tokenizer_init=True,
            # Its own would sample and penalise.
            generation_config="vllm",
            trust_remote_code=False,
            enforce_eager=True,
            disable_log_stats=True,
            seed=0,
            **room,
        )
        self._kinds: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
            "write": self._write,
            "step": self._step,
            "read": self._read,
        }

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """To one request."""
        return {"found": self._kinds[asked["kind"]](asked)}

    def _write(self, asked: dict[str, Any]) -> list[Any]:
        """Of each prompt: the tokens of its greedy answer without the one that ends it, their log-probability, and
        whether the model ended it."""
        wanted = self._greedy(
            max_tokens=asked["limit"],
            stop_token_ids=asked["stops"],
            logprobs=0 if asked["weighed"] else None,
        )
        return [_written(each, asked) for each in self._run(asked, asked["prompts"], wanted)]

    def _step(self, asked: dict[str, Any]) -> list[Any]:
        """Of each prompt: the likeliest of its allowed tokens, and its log-probability among all."""
        wanted = [self._greedy(max_tokens=1, allowed_token_ids=each, logprobs=0) for each in asked["allowed"]]
        return [list(_sampled(each)[0]) for each in self._run(asked, asked["prompts"], wanted)]

    def _read(self, asked: dict[str, Any]) -> list[Any]:
        """Of each text: the log-probability of each token but the first. The last one is what must follow the others:
        then a text may be as long as the model takes. Where there is an adapter, one text at a time: vLLM 0.32 on a CPU
        ended when it was given six at once, and reads one."""
        wanted = [
            self._greedy(max_tokens=1, allowed_token_ids=[text[-1]], logprobs=0, prompt_logprobs=0)
            for text in asked["prompts"]
        ]
        texts = [text[:-1] for text in asked["prompts"]]
        together = 1 if self._adapter else len(texts)
        outputs = [
            output
            for start in range(0, len(texts), max(1, together))
            for output in self._run(asked, texts[start : start + together], wanted[start : start + together])
        ]
        return [[*_given(each), _sampled(each)[0][1]] for each in outputs]

    def _greedy(self, **wanted: Any) -> Any:
        return self._params(temperature=0.0, detokenize=False, **wanted)

    def _run(self, asked: dict[str, Any], prompts: Sequence[Sequence[int]], wanted: Any) -> list[Any]:
        return list(
            self._model.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                wanted,
                use_tqdm=False,
                lora_request=self._adapter if asked["adapted"] else None,
            )
        )


def _written(output: Any, asked: dict[str, Any]) -> list[Any]:
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    ended = completion.finish_reason == "stop"
    if ended and tokens and tokens[-1] in asked["stops"]:
        tokens.pop()
    likely = sum(found for _, found in _sampled(output)[: len(tokens)]) if asked["weighed"] else 0.0
    return [tokens, likely, ended]


def _sampled(output: Any) -> list[tuple[int, float]]:
    """The tokens of an answer with their log-probabilities."""
    completion = output.outputs[0]
    return [
        (int(token), float(found[token].logprob))
        for token, found in zip(completion.token_ids, completion.logprobs, strict=True)
    ]


def _given(output: Any) -> list[float]:
    """The log-probabilities of a prompt's tokens but the first."""
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [float(found[token].logprob) for token, found in pairs]


if __name__ == "__main__":
    main()
