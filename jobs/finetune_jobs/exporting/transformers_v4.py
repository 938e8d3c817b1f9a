"""Adds the format of transformers 4 to a checkpoint that transformers 5 wrote, so that both can read it.

Text Generation Inference 3.3 reads checkpoints with transformers 4.51: it looks for ``rope_theta`` and its like where
version 5 writes ``rope_parameters`` and silently takes its defaults when they are missing, it does not know the class
``TokenizersBackend`` nor a list of ``extra_special_tokens``, and its router reads the chat template from
``chat_template.json``, or where there is none from ``tokenizer_config.json``, but not from ``chat_template.jinja``.
"""

import json
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

GENERIC_TOKENIZER: Final = "PreTrainedTokenizerFast"
"""The class of transformers 4 that reads any ``tokenizer.json``."""
_BY_LAYER: Final = "gemma3_text"
"""The family of which version 4 knows, too, that its layers have two kinds of positions."""
_GPT_NEOX: Final = ("gpt_neox", "gpt_neox_japanese")
"""Families that have names of their own for the base and the part of each head that is turned."""
_OUTSIDE: Final = ("rope_theta", "partial_rotary_factor")
"""What version 4 has beside the scaling, not in it."""
_PHI3_SCALING: Final = ("short_factor", "long_factor")
"""All that Phi-3 takes in version 4 beside the type, by its name of then: it refuses a scaling that says more."""
_OF_THE_WRITER: Final = ("backend", "is_local", "local_files_only")
"""Settings about the writing machine that transformers 5 leaves in tokenizer_config.json."""


def add_tokenizer_config(folder: Path) -> None:
    """Write the ``tokenizer_config.json`` of a checkpoint that has none: transformers does without, and reads special
    tokens elsewhere, but TGI's router looks for them, and for the chat template, only there."""
    path, tokens = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    if path.exists():
        return
    found = json.loads(tokens.read_text(encoding="utf-8")) if tokens.exists() else {}
    named = {name: _texts(token) for name, token in found.items()}
    path.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _texts(tokens: Any) -> Any:
    """Tokens without what else is said of them, which is in ``tokenizer.json`` too."""
    if isinstance(tokens, list):
        return [_texts(each) for each in tokens]
    return tokens["content"] if isinstance(tokens, dict) else tokens


def write_transformers_v4(folder: Path) -> None:
    """Add to a checkpoint's JSON files what readers with transformers 4 need, and remove the template of a processor,
    which no tokenizer reads. Idempotent."""
    _rewrite(folder / "config.json", config_v4)
    (folder / "chat_template.json").unlink(missing_ok=True)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else None
    _rewrite(folder / "tokenizer_config.json", lambda config: tokenizer_config_v4(config, text))


def config_v4(config: Json) -> Json:
    """``config.json`` with the names of positions and of the number format that version 4 has, beside those of version
    5; of a model that also sees or hears, in its text part too."""
    result = dict(config)
    for name, value in rotary_v4(config).items():
        if not result.get(name):
            result[name] = value
    if "dtype" in config:
        result.setdefault("torch_dtype", config["dtype"])
    if isinstance(text := config.get("text_config"), dict):
        result["text_config"] = config_v4(text)
    return result


def rotary_v4(config: Json) -> Json:
    """What ``rope_parameters`` says of positions, by the names that version 4 reads. Empty without them."""
    rope = config.get("rope_parameters") or {}
    family = config.get("model_type")
    found: Json = {}
    if family == _BY_LAYER:
        if "rope_theta" in (local := rope.get("sliding_attention") or {}):
            found["rope_local_base_freq"] = local["rope_theta"]
        rope = rope.get("full_attention") or {}
    found = {name: rope[name] for name in _OUTSIDE if name in rope} | found
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = _scaling_v4(rope, family)
    if family in _GPT_NEOX:
        own = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
        found |= {theirs: rope[name] for theirs, name in own.items() if name in rope}
    return found


def _scaling_v4(rope: Json, family: Any) -> Json:
    if family == "phi3":
        return {"type": rope["rope_type"], **{name: rope[name] for name in _PHI3_SCALING if name in rope}}
    return {name: value for name, value in rope.items() if name not in _OUTSIDE}


def tokenizer_config_v4(config: Json, template: str | None) -> Json:
    """``tokenizer_config.json`` with a class of version 4 and the chat template inline: ``template``, if it has a file,
    which both versions of transformers read in place of what stands here."""
    result = {name: value for name, value in config.items() if name not in _OF_THE_WRITER}
    if config.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = GENERIC_TOKENIZER
    if isinstance(extra := config.get("extra_special_tokens"), list):  # version 4 expects a mapping there, and fails
        result["additional_special_tokens"] = result.get("additional_special_tokens") or extra
        del result["extra_special_tokens"]
    if template:
        result["chat_template"] = template
    return result


def _rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
