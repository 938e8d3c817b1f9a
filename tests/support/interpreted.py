"""Fused kernels on a CPU, in Triton's interpreter: ``python -m tests.support.interpreted FOLDER CASE …`` prints what
each case found as a line of JSON.

A process of its own, since Triton asks once, when a kernel is defined, whether it is to be interpreted. Import this
module before any other that imports Triton.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from operator import index
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm, rope, swiglu
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from triton.compiler.errors import CompilationError
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from finetune_api.training import Kernels, Method
from finetune_jobs.fit.kernels import FAMILIES
from finetune_jobs.modelling import device
from finetune_jobs.training import kernel_checks, kernels
from finetune_jobs.training.selective import PLAIN, SELECTIVE

PROGRAM: Final = "tests.support.interpreted"
SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_convert = interpreter._implicit_cvt
Found = dict[str, Any]
Gradients = Mapping[str, torch.Tensor]


def _as_launched(argument: Any) -> Any:
    """A launch hands a kernel its fractions in float32; Triton 3.7's interpreter leaves them Python's own, of which
    Liger's kernels cannot ask a type."""
    if not isinstance(argument, float):
        return _convert(argument)
    return tl.tensor(TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore] # Triton's own language
def _rsqrt(x):  # type: ignore[no-untyped-def]
    return 1 / tl.sqrt(x)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


def _patch_for_good() -> None:
    """The interpreter replaces the functions of Triton's language for each launch of a kernel and again for each call
    of a function in one, more than half of its time. Here nothing else needs them as they were."""
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    vars(interpreter)["_patch_lang"] = lambda _: interpreter._LangPatchScope()


@cache
def _of_shape(sizes: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a block of this shape, and a tensor of such blocks, have whatever their numbers are; ``()``: a number."""
    block, tensor = object.__new__(tl.block_type), object.__new__(tl.tensor)
    if sizes:
        _block(block, tl.float32, list(sizes))
    _tensor(tensor, None, block if sizes else tl.float32)
    return {name: vars(block).get(name) for name in _SHAPED}, {name: vars(tensor)[name] for name in _SHAPED}


def _lean_block(self: Any, element_ty: Any, shape: Iterable[Any]) -> None:
    sizes = tuple(map(index, shape))
    vars(self).update(_of_shape(sizes)[0], element_ty=element_ty, name=f"<{sizes}, {element_ty}>")


def _lean_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 # Triton's name
    sizes = tuple(type.shape) if type.is_block() else ()
    vars(self).update(_of_shape(sizes)[1], handle=handle, type=type, dtype=type.scalar)


def _lean_number(kind: Any) -> Any:
    """numpy's type of a number, or of an address."""
    return _ADDRESS if kind.scalar.is_ptr() else _number(kind.scalar)


def _make_lean() -> None:
    """The interpreter works out types and shapes anew for each step of each row, and looks for overflows of whole
    numbers, which a compiled kernel does only where it is debugged: together that is most of what is left of its
    time."""
    tl.block_type.__init__, tl.tensor.__init__ = _lean_block, _lean_tensor
    vars(interpreter)["_get_np_dtype"] = _lean_number
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


_block, _tensor, _number = tl.block_type.__init__, tl.tensor.__init__, cache(interpreter._get_np_dtype)
_ADDRESS: Final = np.dtype(np.uint64)
_SHAPED: Final = ("shape", "numel")
_patch_for_good()
_make_lean()
vars(interpreter)["_implicit_cvt"] = _as_launched
vars(rms_norm)["rsqrt"], vars(geglu)["tanh"] = _rsqrt, _tanh  # CUDA's own, which the interpreter does not have
vars(kernel_checks)["ROWS"] = 8  # each row is a program of its own, which takes milliseconds here
vars(device)["_cpu_has_bfloat16"] = lambda: False  # it would compute with bfloat16's bits as with whole numbers


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))


def passed(model: Any) -> tuple[float, Gradients]:
    """Loss and gradients of two rows of tokens."""
    model.zero_grad()
    tokens = torch.randint(SIZES["vocab_size"], (2, 3), generator=torch.Generator().manual_seed(1))
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {name: each.grad.clone() for name, each in model.named_parameters()}


def apart(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> Found:
    """How far loss and gradients are from those of the plain model."""
    (loss, gradients), (plain_loss, plain) = found, expected
    assert gradients.keys() == plain.keys()
    far = {name: float((gradients[name] - each).norm() / (each.norm() + 1e-9)) for name, each in plain.items()}
    return {"loss": abs(loss - plain_loss) / plain_loss, "gradients": max(far.values()), "moved": len(far)}


def family(name: str) -> Found:
    """All kernels of a family in place, unasked, against the model without."""
    model = model_of(name)
    code = sys.modules[type(model).__module__]
    before = dict(vars(code))
    expected = passed(model)
    fused = kernels.fuse(model)
    changed = [each for each, value in before.items() if vars(code)[each] is not value]
    counts = {"norms": len(fused.norms), "gates": len(fused.gates), "changed": changed}
    found = apart(passed(model), expected) | counts
    for kernel in FAMILIES[name]:
        fused.remove(kernel)
    again = passed(model)
    same = again[0] == expected[0] and all(torch.equal(each, expected[1][at]) for at, each in again[1].items())
    return found | {"asBefore": same and all(vars(code)[each] is value for each, value in before.items())}


def checked(name: str) -> Found:
    """What the check says of a family's kernels, in 32 bits and in 16."""
    model = model_of(name)
    fused = kernels.fuse(model)
    faults = {}
    for dtype in (torch.float32, torch.float16):
        with patch.object(kernels, "precision", lambda dtype=dtype: dtype):
            for kernel in FAMILIES[name]:
                faults[f"{kernel} {dtype}"] = kernels.fault_of(kernel, fused, model.to(dtype))
    kernels.restore_rotation(fused.family)
    return {"faults": faults}


@contextmanager
def _planted(what: str) -> Iterator[None]:
    """A kernel that is wrong, or does not compile."""
    right: dict[str, Any] = {"forward": swiglu.swiglu_forward, "backward": rope.rope_backward}

    def wrong_forward(*given: Any) -> Any:
        a, b, made = right["forward"](*given)
        made[..., -1] *= 1.5  # one number of each row
        return a, b, made

    def wrong_backward(q: Any, k: Any, cos: Any, sin: Any, **others: Any) -> Any:
        return right["backward"](q, k, cos, -sin, **others)  # turned on instead of back

    def failing(*_: Any) -> Any:
        raise CompilationError("", None, "no such instruction on sm_123")

    place = {"forward": (swiglu, "swiglu_forward", wrong_forward), "backward": (rope, "rope_backward", wrong_backward)}
    with patch.object(*place.get(what, (rms_norm, "rms_norm_forward", failing))):
        yield


def planted(what: str) -> Found:
    """A planted fault is found, in words, and the model computes as if that kernel did not exist."""
    from finetune_api.training import Training

    model, told = model_of("qwen3"), list[str]()
    expected = passed(model)
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    handler.setLevel(logging.WARNING)
    logging.getLogger(kernels.__name__).addHandler(handler)
    with _planted(what):
        used = kernels.use_kernels(model, Training())
        found = apart(passed(model), expected)
    return found | {"used": used, "told": told}


def short(asked: str, answer: str) -> dict[str, Any]:
    """A row of few tokens, each of which is a program of several kernels."""
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def trained(asked: str) -> Found:
    """A pass of the trainer with kernels against one without: ``method,rows,activations``, where rows are ``packed``
    or ``padded``, and of activations ``all``, a ``part`` or ``none`` are kept. Adapters are on two layers only, so that
    the products that are rotated are a frozen base's own."""
    from finetune_jobs.fit.recipe import Batch
    from finetune_jobs.fit.steps import ON_CPU
    from finetune_jobs.modelling.tokenizer import load_tokenizer
    from finetune_jobs.training import packing
    from finetune_jobs.training.build import Examples, build_trainer
    from tests.support.tiny_model import build_tiny_llama
    from tests.support.training import load_for_training, read_examples, settings, write_dataset

    method, rows, keeping = asked.split(",")
    folder = FOLDER / asked
    base = build_tiny_llama(folder / "base")
    dataset = write_dataset(folder / "dataset", train=[short("fox", "refund"), short("the dog", "my order")])
    examples = read_examples(base, dataset, "train")
    step = replace(ON_CPU, checkpointing=keeping != "all", selective=keeping == "part")
    results, used = [], []
    for kind in (Kernels.AUTO, Kernels.OFF):
        training = settings(Method(method), kernels=kind, dropout="0.1", target_modules=["down_proj", "gate_proj"])
        model = load_for_training(base, training)
        if rows == "packed":
            assert packing.use_packing(model)
        parts = Examples(examples, examples, load_tokenizer(base))
        trainer = build_trainer(model, parts, training, folder / kind, Batch.of(training), step=step)
        used.append(trainer.kernels)
        told = trainer.args.activation_checkpointing_kwargs or PLAIN
        if step.checkpointing:
            trainer.model.activation_checkpointing_enable(told)
        trainer.model.train()
        batch = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset.to_list()))
        torch.manual_seed(1)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        weights = trainer.model.named_parameters()
        results.append(
            (float(loss.detach()), {name: each.grad.clone() for name, each in weights if each.grad is not None})
        )
        selective = told == SELECTIVE
        kernels.restore_rotation(sys.modules[LlamaForCausalLM.__module__])  # packing asks the next model, row by row
    return apart(*results) | {"used": used, "selective": selective}


CASES: Final[Mapping[str, Callable[[str], Found]]] = {
    "family": family,
    "checked": checked,
    "planted": planted,
    "trained": trained,
}
FOLDER: Final = Path(sys.argv[1] if len(sys.argv) > 1 else ".")


def main() -> None:
    """Entry point."""
    for case in sys.argv[2:]:
        kind, _, asked = case.partition(":")
        print(json.dumps({"case": case, **CASES[kind](asked)}), flush=True)


if __name__ == "__main__":
    main()
