"""Adds the format of transformers 4 to a checkpoint that transformers 5 wrote, so that both can read it.

Text Generation Inference 3.3 reads checkpoints with transformers 4.51: it looks for ``rope_theta`` where version 5
writes ``rope_parameters`` and silently takes 10,000 when it is missing, it does not know the class
``TokenizersBackend`` nor a list of ``extra_special_tokens``, and its router reads the chat template from
``tokenizer_config.json`` only.
"""

import json
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

GENERIC_TOKENIZER: Final = "PreTrainedTokenizerFast"
"""The class of transformers 4 that reads any ``tokenizer.json``."""
_OF_THE_WRITER: Final = ("backend", "is_local", "local_files_only")
"""Settings about the writing machine that transformers 5 leaves in tokenizer_config.json."""


def write_transformers_v4(folder: Path) -> None:
    """Add to a checkpoint's JSON files what readers with transformers 4 need. Idempotent."""
    _rewrite(folder / "config.json", config_v4)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else None
    _rewrite(folder / "tokenizer_config.json", lambda config: tokenizer_config_v4(config, text))


def config_v4(config: Json) -> Json:
    """``config.json`` with rope_theta, rope_scaling and torch_dtype beside their names of version 5."""
    result = dict(config)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        result.setdefault("rope_theta", rope["rope_theta"])
    if rope.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        result["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "dtype" in config:
        result.setdefault("torch_dtype", config["dtype"])
    return result


def tokenizer_config_v4(config: Json, template: str | None) -> Json:
    """``tokenizer_config.json`` with a class of version 4 and the chat template (given, if it has a file) inline."""
    result = {name: value for name, value in config.items() if name not in _OF_THE_WRITER}
    if config.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = GENERIC_TOKENIZER
    if isinstance(extra := config.get("extra_special_tokens"), list):  # version 4 expects a mapping there, and fails
        result["additional_special_tokens"] = result.get("additional_special_tokens") or extra
        del result["extra_special_tokens"]
    if template and not config.get("chat_template"):
        result["chat_template"] = template
    return result


def _rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
