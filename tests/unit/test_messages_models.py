"""What a user is told about a base model that cannot be trained: exact messages.

A table of what was done to a good model, and what is said of it where prepare and train read it.
"""

from collections.abc import Callable
from pathlib import Path
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
from tests.support.sentences import unsaid
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


def template(old: str, new: str) -> Damage:
    """Another chat template."""
    return tokenizer(chat_template=CHAT_TEMPLATE.replace(old, new))


def without_a_matrix(model: Path) -> None:
    """As when a part of the weights was not uploaded."""
    weights = load_file(model / "model.safetensors")
    del weights[UP]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def unreadable(what: str, why: str) -> str:
    """The message about a part of the model; what a library says of it is a part of that."""
    return f"The base model's {what} cannot be read: {why}."


def never_stops(found: str) -> str:
    """The message about a template that ends an answer with something else than the stop token."""
    return (
        f"The base model's chat template ends an answer with {found}, which does not stop generation (stop tokens: "
        "'<|im_end|>'): correct eos_token_id in its generation_config.json, or use an instruction-tuned model."
    )


TOKENIZERS: Final[list[tuple[Damage, str]]] = [
    (
        lambda model: (model / "tokenizer.json").write_text("{"),
        unreadable("tokenizer", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ),
    (
        lambda model: edit_json(model / "tokenizer.json", model={"type": "Unknown"}),
        unreadable("tokenizer", "data did not match any variant of untagged enum ModelUntagged at line 56 column 1"),
    ),
    (
        tokenizer(eos_token=None),
        unreadable("tokenizer", "it names no eos_token. Add one to its tokenizer_config.json"),
    ),
    (
        halved("generation_config.json"),
        unreadable(
            "generation_config.json",
            "It looks like the config file at 'generation_config.json' is not a valid JSON file",
        ),
    ),
    (
        tokenizer(chat_template=None),
        "The base model's tokenizer has no chat template: use an instruction-tuned model, or add chat_template to its "
        "tokenizer_config.json.",
    ),
    (template("'<|im_end|>'", "'<end>'"), never_stops("'<'")),
    (template("'<|im_end|>'", "'<|bos|>'"), never_stops("'<|bos|>'")),
    (template("+ '<|im_end|>' + '\n'", ""), never_stops("nothing")),
    (
        tokenizer(chat_template=DEAF),
        "The base model's chat template drops the system message, so the model would never see the instruction: put it "
        "into the user's messages (without spec.dataset.instruction), or use a model whose template has a system role.",
    ),
    (
        template(
            "{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}{% for"
        ),
        "The base model's chat template refuses a conversation of system, user: No system role. Without "
        "spec.dataset.instruction there is no system message.",
    ),
]
"""What was done to the model, and what prepare says of it."""
WEIGHTS: Final[list[tuple[Damage, Training, Reason, str]]] = [
    (
        halved("config.json"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("config.json", "Unterminated string starting at: line 15 column 3 (char 307)"),
    ),
    (
        config(model_type=None, auto_map={"AutoModelForCausalLM": "model.py"}),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("config.json", "it needs code that comes with the checkpoint, which is never run"),
    ),
    (
        config(model_type="unheard-of"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable(
            "weights",
            "The checkpoint you are trying to load has model type `unheard-of` but Transformers does not "
            "recognize this architecture. This could be because of an issue with the checkpoint, or because your "
            "version of Transformers is out of date",
        ),
    ),
    (
        halved("model.safetensors"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", "Error while deserializing header: incomplete metadata, file not fully covered"),
    ),
    (
        without_a_matrix,
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", f"the files do not hold {UP}, which config.json asks for"),
    ),
    (
        config(hidden_size=128),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", "config.json says another size of lm_head.weight and 20 more"),
    ),
    (
        lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
        settings(),
        Reason.MODEL_UNSUPPORTED,
        unreadable("weights", "Error no file named model.safetensors found in directory"),
    ),
    (
        Path.exists,
        settings(target_modules=["q_proj", "query_key_value"]),
        Reason.SPEC_INVALID,
        "spec.training.targetModules names 'query_key_value', which is no linear layer of LlamaForCausalLM that can "
        "get an adapter. There are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj. Left out, all of "
        "them are trained.",
    ),
    (
        Path.exists,
        settings(rank=128),
        Reason.SPEC_INVALID,
        "spec.training.rank 128 is more than any linear layer can use, whose smaller side is 64: set it to 64 at most; "
        "16 suits most tasks.",
    ),
    (
        Path.exists,
        settings(rank=64, target_modules=["up_proj", "k_proj"]),
        Reason.SPEC_INVALID,
        "spec.training.rank 64 is more than k_proj can use, whose smaller side is 32: set it to 32 at most; 16 suits "
        "most tasks.",
    ),
]
"""What was done to the model (nothing, at last), how it is trained, and what train says of it."""
TOOLS: Final = (
    "The base model's chat template has no form for an answer with tool_calls: use a model that was made for calling "
    "tools, or write the calls as text into content."
)
MEMORY: Final = "The GPU's memory did not hold the base model."


def damaged(folder: Path, damage: Damage) -> Path:
    """A good model to which this was done."""
    model = build_tiny_llama(folder / "base")
    damage(model)
    return model


@pytest.mark.parametrize(("damage", "message"), TOKENIZERS, ids=map(str, range(len(TOKENIZERS))))
def test_a_tokenizer_that_cannot_be_used(tmp_path: Path, damage: Damage, message: str) -> None:
    model = damaged(tmp_path, damage)
    messages = row("where is my parcel?", "refund")["messages"]

    def encode() -> None:
        found = load_tokenizer(model)
        stop = stop_token(model, found)
        require_system_message(found, messages)
        encode_conversation(found, Conversation(messages), stop, Loss.ANSWER)

    with pytest.raises(StageError) as error:
        encode()
    assert (error.value.reason, error.value.message) == (Reason.MODEL_UNSUPPORTED, message)


def test_a_template_without_tools(tmp_path: Path) -> None:
    model = build_tiny_llama(tmp_path / "base")
    found, call = load_tokenizer(model), {"function": {"name": "balance", "arguments": {}}}
    asked: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    with pytest.raises(StageError) as error:
        encode_conversation(found, Conversation(asked), stop_token(model, found), Loss.ANSWER)
    assert (error.value.reason, error.value.message) == (Reason.MODEL_UNSUPPORTED, TOOLS)


@pytest.mark.parametrize(("damage", "training", "reason", "message"), WEIGHTS, ids=map(str, range(len(WEIGHTS))))
def test_weights_that_cannot_be_trained(
    tmp_path: Path, damage: Damage, training: Training, reason: Reason, message: str
) -> None:
    with pytest.raises(StageError) as error:
        adapter_config(load_base(damaged(tmp_path, damage)), training)
    assert (error.value.reason, error.value.message, error.value.retriable) == (reason, message, False)


def test_a_gpu_that_does_not_hold_the_model() -> None:
    """Raised here as torch does it: there may be no GPU."""
    with pytest.raises(StageError) as error, cuda_memory("the base model"):
        raise torch.OutOfMemoryError
    assert (error.value.reason, error.value.message) == (Reason.CUDA_OUT_OF_MEMORY, MEMORY)


@pytest.mark.parametrize(
    "module", ["modelling.tokenizer", "modelling.chat", "modelling.encoding", "modelling.loading", "training.adapter"]
)
def test_every_sentence_about_a_model_is_in_a_table(module: str) -> None:
    messages = [*(row[-1] for row in TOKENIZERS), *(row[-1] for row in WEIGHTS), TOOLS, MEMORY]
    assert [each for each in unsaid(f"finetune_jobs.{module}", messages) if each not in PROBES] == []


PROBES: Final = ("an answer", "a question", " (and something else)")
"""Texts that a template is tried with."""
