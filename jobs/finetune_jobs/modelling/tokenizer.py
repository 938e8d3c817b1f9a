"""The tokenizer of a checkpoint, without its weights and without torch."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from finetune_api.reasons import Reason
from finetune_jobs.errors import StageError
from finetune_jobs.modelling import chat


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises StageError(ModelUnsupported)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise unsupported("tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise unsupported("tokenizer", "it names no eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: labels and attention masks are explicit everywhere
    return tokenizer


def stop_token(folder: Path, tokenizer: Any) -> int:
    """The token that ends an answer, from the checkpoint's own files.

    Raises StageError(ModelUnsupported) as ``chat.end_of_turn``.
    """
    has_settings = (folder / GENERATION_CONFIG_NAME).exists()
    settings = GenerationConfig.from_pretrained(folder) if has_settings else GenerationConfig()
    return chat.end_of_turn(tokenizer, chat.stop_ids(tokenizer, settings))


def unsupported(what: str, why: object) -> StageError:
    """The error of a base model of which a part cannot be used."""
    first_line = next(iter(str(why).splitlines()), "")[:300]
    return StageError(Reason.MODEL_UNSUPPORTED, f"The base model's {what} cannot be read: {first_line}")
