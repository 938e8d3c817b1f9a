"""What a user is told about a base model that cannot be trained: the part, what is wrong with it, and the remedy.

A table of what was done to a good model, and what is said of it where prepare and train read it. Each row's message is
made once, for its own test and for the one that no sentence is untested.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
import torch
from safetensors.numpy import load_file, save_file

from finetune_api.reasons import Reason
from finetune_api.training import Loss, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.chat import Message
from finetune_jobs.modelling.encoding import encode_conversation, require_system_message
from finetune_jobs.modelling.loading import cuda_memory, load_base
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.training.adapter import adapter_config
from tests.support.sentences import assert_says, unsaid
from tests.support.tiny_model import CHAT_TEMPLATE, build_tiny_llama, edit_json
from tests.support.training import row, settings

pytestmark = [pytest.mark.unit, pytest.mark.slow]

Damage = Callable[[Path], object]

UP: Final = "model.layers.1.mlp.up_proj.weight"
DEAF: Final = CHAT_TEMPLATE.replace("for message in messages", "for message in messages if message['role'] != 'system'")
"""As some early instruction-tuned models have it: a system message is neither refused nor rendered."""


def halved(name: str) -> Damage:
    """Cut a file in half, as a broken upload does."""
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[: (model / name).stat().st_size // 2])


def config(**changes: Any) -> Damage:
    """Change fields of config.json; None removes one."""
    return lambda model: edit_json(model / "config.json", **changes)


def tokenizer(**changes: Any) -> Damage:
    """The same in tokenizer_config.json."""
    return lambda model: edit_json(model / "tokenizer_config.json", **changes)


def special_tokens(**given: Any) -> Damage:
    """With a special_tokens_map.json, as older releases of transformers wrote it."""
    return lambda model: (model / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|im_end|>"} | given))


def template(old: str, new: str) -> Damage:
    """Another chat template."""
    return tokenizer(chat_template=CHAT_TEMPLATE.replace(old, new))


def without_a_matrix(model: Path) -> None:
    """As when a part of the weights was not uploaded."""
    weights = load_file(model / "model.safetensors")
    del weights[UP]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def unreadable(what: str, why: str) -> str:
    """Parts of the message about a part of the model; what a library says of it is one of them."""
    return f"The model's {what} … {why}"


def never_stops(found: str) -> str:
    """Parts of the message about a template that ends an answer with something other than the stop token."""
    return (
        f"chat template … {found}, … stop tokens: '<|im_end|>' … eos_token_id … generation_config.json, … "
        "instruction-tuned model."
    )


TOKENIZERS: Final[list[tuple[Damage, str]]] = [
    (
        lambda model: (model / "tokenizer.json").write_text("{"),
        unreadable("tokenizer", "line 1 column 2 (char 1)"),
    ),
    (
        lambda model: edit_json(model / "tokenizer.json", model={"type": "Unknown"}),
        unreadable("tokenizer", "ModelUntagged at line 56 column 1"),
    ),
    (
        tokenizer(eos_token=None),
        unreadable("tokenizer", "no eos_token. … tokenizer_config.json"),
    ),
    (
        tokenizer(vocab="/proc/self/environ"),
        unreadable("tokenizer", "vocab in tokenizer_config.json … outside of the model. Remove"),
    ),
    (
        tokenizer(init_inputs=["/proc/self/environ"]),
        unreadable("tokenizer", "init_inputs in tokenizer_config.json … outside of the model. Remove"),
    ),
    (
        special_tokens(vocab_file="/proc/self/environ"),
        unreadable("tokenizer", "vocab_file in special_tokens_map.json … outside of the model. Remove"),
    ),
    (
        halved("generation_config.json"),
        unreadable(
            "generation_config.json",
            "'generation_config.json' … not a valid JSON",
        ),
    ),
    (
        tokenizer(chat_template=None),
        "tokenizer … no chat template: … instruction-tuned model, … chat_template … tokenizer_config.json.",
    ),
    (template("'<|im_end|>'", "'<end>'"), never_stops("'<'")),
    (template("'<|im_end|>'", "'<|bos|>'"), never_stops("'<|bos|>'")),
    (template("+ '<|im_end|>' + '\n'", ""), never_stops("nothing")),
    (
        tokenizer(chat_template=DEAF),
        "chat template … system message, … user messages … spec.dataset.instruction … system role.",
    ),
    (
        template(
            "{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}{% for"
        ),
        "chat template … system, user: … No system role. … spec.dataset.instruction",
    ),
]
"""What was done to the model, and what prepare says of it."""
WEIGHTS: Final[list[tuple[Damage, Training, Reason, str]]] = [
    (
        halved("config.json"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("config.json", "line 15 column 3 (char 307)"),
    ),
    (
        config(model_type=None, auto_map={"AutoModelForCausalLM": "model.py"}),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("config.json", "code … checkpoint, … never run"),
    ),
    (
        config(model_type="unheard-of"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable(
            "weights",
            "model type `unheard-of`",
        ),
    ),
    (
        halved("model.safetensors"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", "incomplete metadata"),
    ),
    (
        without_a_matrix,
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", f"{UP}, … config.json"),
    ),
    (
        config(hidden_size=128),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", "config.json … size … lm_head.weight and 20 more"),
    ),
    (
        lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", "model.safetensors"),
    ),
    (
        Path.exists,
        settings(target_modules=["q_proj", "query_key_value"]),
        Reason.SPEC_INVALID,
        "spec.training.targetModules … 'query_key_value', … linear layer … LlamaForCausalLM … down_proj, gate_proj, "
        "k_proj, o_proj, q_proj, up_proj, v_proj. … Without targetModules, all",
    ),
    (
        Path.exists,
        settings(rank=128),
        Reason.SPEC_INVALID,
        "spec.training.rank 128 … any linear layer … smaller side is 64 … at most 64; 16 suits",
    ),
    (
        Path.exists,
        settings(rank=64, target_modules=["up_proj", "k_proj"]),
        Reason.SPEC_INVALID,
        "spec.training.rank 64 … k_proj … smaller side is 32 … at most 32; 16 suits",
    ),
]
"""What was done to the model (nothing, at last), how it is trained, and what train says of it."""
TOOLS: Final = "chat template … tool_calls: … use a model … as text … content."
MEMORY: Final = "GPU's memory … the base model."


def damaged(folder: Path, damage: Damage) -> Path:
    """A good model to which this was done."""
    model = build_tiny_llama(folder / "base")
    damage(model)
    return model


@cache
def said_of_tokenizer(number: int) -> StageError:
    """What a row of TOKENIZERS ends in, where prepare reads the model."""
    damage, _ = TOKENIZERS[number]
    messages = row("where is my parcel?", "refund")["messages"]

    def encode(model: Path) -> None:
        found = load_tokenizer(model)
        stop = stop_token(model, found)
        require_system_message(found, messages)
        encode_conversation(found, Conversation(messages), stop, Loss.ANSWER)

    with TemporaryDirectory() as folder, pytest.raises(StageError) as error:
        encode(damaged(Path(folder), damage))
    return error.value


@cache
def said_of_tools() -> StageError:
    """What a template without tools ends in."""
    call = {"function": {"name": "balance", "arguments": {}}}
    asked: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    with TemporaryDirectory() as folder:
        model = build_tiny_llama(Path(folder) / "base")
        found = load_tokenizer(model)
        stop = stop_token(model, found)
    with pytest.raises(StageError) as error:
        encode_conversation(found, Conversation(asked), stop, Loss.ANSWER)
    return error.value


@cache
def said_of_weights(number: int) -> StageError:
    """What a row of WEIGHTS ends in, where train reads the model."""
    damage, training, *_ = WEIGHTS[number]
    with TemporaryDirectory() as folder, pytest.raises(StageError) as error:
        adapter_config(load_base(damaged(Path(folder), damage)), training)
    return error.value


@cache
def said_of_memory() -> StageError:
    """Raised here as torch does it: there may be no GPU."""
    with pytest.raises(StageError) as error, cuda_memory("the base model"):
        raise torch.OutOfMemoryError
    return error.value


@pytest.mark.parametrize("number", range(len(TOKENIZERS)))
def test_a_tokenizer_that_cannot_be_used(number: int) -> None:
    error = said_of_tokenizer(number)
    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert_says(error.message, *TOKENIZERS[number][-1].split(" … "))


def test_a_template_without_tools() -> None:
    assert said_of_tools().reason is Reason.MODEL_UNSUPPORTED
    assert_says(said_of_tools().message, *TOOLS.split(" … "))


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
def test_weights_that_cannot_be_trained(number: int) -> None:
    *_, reason, parts = WEIGHTS[number]
    error = said_of_weights(number)
    assert (error.reason, error.retriable) == (reason, False)
    assert_says(error.message, *parts.split(" … "))


def test_a_gpu_that_does_not_hold_the_model() -> None:
    assert said_of_memory().reason is Reason.CUDA_OUT_OF_MEMORY
    assert_says(said_of_memory().message, *MEMORY.split(" … "))


@pytest.mark.parametrize(
    "module", ["modelling.tokenizer", "modelling.chat", "modelling.encoding", "modelling.loading", "training.adapter"]
)
def test_every_sentence_about_a_model_is_in_a_table(module: str) -> None:
    errors = [
        *map(said_of_tokenizer, range(len(TOKENIZERS))),
        *map(said_of_weights, range(len(WEIGHTS))),
        said_of_tools(),
        said_of_memory(),
    ]
    messages = [error.message for error in errors]
    assert [each for each in unsaid(f"finetune_jobs.{module}", messages) if each not in PROBES] == []


PROBES: Final = ("an answer", "a question", " (and something else)")
"""Texts that a template is tried with."""
