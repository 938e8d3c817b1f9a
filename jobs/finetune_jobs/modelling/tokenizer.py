"""The tokenizer of a checkpoint, without its weights and without torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import chat

_CONTENT: Final = ("vocab", "merges")
"""What a tokenizer is made of. As a text, it is the path of a file with that."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises StageError(ModelUnsupported)."""
    with readable("tokenizer", folder):
        if foreign := _files_elsewhere(folder):
            raise unsupported("tokenizer", f"{foreign} may name a file outside of the model. Remove it.")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise unsupported("tokenizer", "it has no eos_token. Add one to its tokenizer_config.json.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: labels and attention masks are explicit everywhere
    return tokenizer


def _files_elsewhere(folder: Path) -> str:
    """What of a tokenizer's settings transformers would open as a file, wherever it is: a model could read the keys in
    this process's environment (/proc/self/environ) into its vocabulary, and so into all that it writes.

    transformers 5.24 replaces paths of the names that a tokenizer's files have (``vocab_file``) in
    tokenizer_config.json, but not those that come after them, by other names or in other places.
    """
    config = _settings(folder / "tokenizer_config.json")
    if config.get("init_inputs"):
        return "init_inputs in tokenizer_config.json"
    named = [(key, "tokenizer_config.json") for key in _CONTENT if isinstance(config.get(key), str)]
    special = _settings(folder / "special_tokens_map.json")
    named += [
        (key, "special_tokens_map.json")
        for key, value in special.items()
        if isinstance(value, str) and not key.endswith(("_token", "_tokens"))
    ]
    return next((f"{key} in {place}" for key, place in named), "")


def _settings(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def stop_token(folder: Path, tokenizer: Any) -> int:
    """The token that ends an answer, from the checkpoint's own files.

    Raises StageError(ModelUnsupported) as ``chat.end_of_turn``.
    """
    return chat.end_of_turn(tokenizer, stop_tokens(folder, tokenizer))


def stop_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens at which a server of these files stops. Raises StageError(ModelUnsupported)."""
    settings = GenerationConfig()
    if (folder / GENERATION_CONFIG_NAME).exists():
        with readable(GENERATION_CONFIG_NAME, folder):
            settings = GenerationConfig.from_pretrained(folder)
    return chat.stop_ids(tokenizer, settings)


def write_served_template(folder: Path, *, thoughts: bool = False) -> None:
    """Give a checkpoint the chat template that renders what was trained (``chat.served_template``), if it is another
    one: requests then need no variable, and cannot open or close a block of thoughts."""
    template = chat.served_template(load_tokenizer(folder), thoughts=thoughts)
    if not template:
        return
    config = folder / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"chat_template": template}
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for other in ("chat_template.jinja", "chat_template.json"):  # both would come before it
        (folder / other).unlink(missing_ok=True)


def write_stop_tokens(folder: Path) -> None:
    """Have ``generation_config.json`` name every token that ends an answer, if one reader would miss any.

    vLLM adds the tokenizer's to those of the file, as the evaluation does. TGI 3.3 takes the file's if they are a list,
    and otherwise the tokenizer's alone (its ``_eos_token_ids``); transformers takes the file's alone.
    """
    path = folder / GENERATION_CONFIG_NAME
    tokenizer = load_tokenizer(folder)
    stops = stop_tokens(folder, tokenizer)
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = content.get("eos_token_id")
    if stops == (frozenset(named) if isinstance(named, list) else {named} & {tokenizer.eos_token_id}):
        return
    content |= {"eos_token_id": sorted(stops)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def readable(what: str, folder: Path) -> Iterator[None]:
    """Turns any library's error about damaged files in ``folder`` into StageError(ModelUnsupported). RuntimeErrors
    pass: PyTorch raises them about the machine, such as out of GPU memory.
    """
    try:
        yield
    except (StageError, RuntimeError):
        raise
    except Exception as error:  # for damaged files, Rust and Python raise anything, even bare Exception
        raise unsupported(what, str(error).replace(f"{folder}/", "").replace(str(folder), ".")) from error


def unsupported(what: str, why: str) -> StageError:
    """The error for a model with an unusable part."""
    first_line = next(iter(why.splitlines()), "")[:300].rstrip(".: ")
    return StageError(Reason.MODEL_UNSUPPORTED, f"The model's {what} cannot be read: {first_line}.")
