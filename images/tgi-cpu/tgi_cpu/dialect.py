"""What TGI 3.3 understands of a checkpoint folder: the JSON of transformers 4, checked before any weights are loaded.

TGI pins transformers 4.51 and has its own router, so it does not understand four things that transformers 5 writes:
the tokenizer class ``TokenizersBackend`` and a list of ``extra_special_tokens`` (TGI crashes), ``rope_parameters`` (the
rotary base silently becomes 10000) and ``chat_template.jinja`` (chat requests get a 422). The stand-in runs
transformers 5 and must fail in the same way.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_cpu.args import Args, LauncherError

DEFAULT_ROPE_THETA = 10_000.0
"""The default rotary base of LlamaConfig in transformers 4, and therefore of TGI."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The JSON of one checkpoint as TGI sees it."""

    folder: Path
    config: Mapping[str, Any]
    chat_template: str | None

    @property
    def rope_override(self) -> dict[str, Any] | None:
        """Rotary parameters that TGI would use instead of the checkpoint's own; None if it reads the right ones."""
        if "rope_parameters" not in self.config or "rope_theta" in self.config:
            return None
        scaling = self.config.get("rope_scaling") or {"rope_type": "default"}
        return {**scaling, "rope_theta": DEFAULT_ROPE_THETA}

    @property
    def max_position_embeddings(self) -> int | None:
        """Maximum sequence length of the model in tokens, if config.json has it."""
        value = self.config.get("max_position_embeddings")
        return value if isinstance(value, int) else None


def read_checkpoint(args: Args) -> CheckpointFiles:
    """Check the model folder and the adapters' folders. Raises LauncherError if TGI's shard would crash."""
    folder = Path(args.model_id)
    if not folder.is_dir():
        raise LauncherError(
            f"DownloadError: {args.model_id} is not a folder, and the stand-in never downloads from the hub"
        )
    if not any(folder.glob("*.safetensors")):
        raise LauncherError(f"DownloadError: No local weights found in {args.model_id} with extension .safetensors")
    config = _read_json(folder / "config.json")
    _check_quantization(args, config)
    tokenizer_config = _read_json(args.tokenizer_config_path or folder / "tokenizer_config.json")
    _check_tokenizer(tokenizer_config)
    for adapter in args.adapters:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (adapter.path / name).is_file():
                raise LauncherError(
                    f"ShardCannotStart: LoRA adapter {adapter.adapter_id}: {adapter.path / name} is missing"
                )
    return CheckpointFiles(folder, config, _chat_template(folder, tokenizer_config))


def _check_quantization(args: Args, config: Mapping[str, Any]) -> None:
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method not in {None, "compressed-tensors"}:
        raise LauncherError(f"ShardCannotStart: quantization {method} of {args.model_id} is not available on CPU")
    if args.quantize not in {None, method}:
        raise LauncherError(
            f"ShardCannotStart: ValueError: quantization is not available on CPU (--quantize {args.quantize})"
        )


def _check_tokenizer(tokenizer_config: Mapping[str, Any]) -> None:
    if tokenizer_config.get("tokenizer_class") == "TokenizersBackend":
        message = "ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported."
        raise LauncherError(f"ShardCannotStart: {message}")
    if isinstance(tokenizer_config.get("extra_special_tokens"), list):
        message = (
            "AttributeError: 'list' object has no attribute 'keys' (extra_special_tokens of tokenizer_config.json)"
        )
        raise LauncherError(f"ShardCannotStart: {message}")


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """``chat_template.json`` overrides tokenizer_config.json; of a list of templates, the one named "default"
    counts."""
    standalone = folder / "chat_template.json"
    source = _read_json(standalone) if standalone.is_file() else tokenizer_config
    template = source.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LauncherError(f"ShardCannotStart: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise LauncherError(f"ShardCannotStart: {path} must contain a JSON object")
    return content
