"""Load the artifact: bf16, fp32 or compressed-tensors INT8 weights, tokenizer and adapters; offline, safetensors."""

import logging
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tgi_cpu.args import Args
from tgi_cpu.dialect import CheckpointFiles

LOG = logging.getLogger(__name__)
OFFLINE = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Text to token ids and back.

    The encoder is the plain ``tokenizers`` object, as in TGI's router: the event loop calls it while the engine's
    thread decodes, and the transformers wrapper is not safe for that.
    """

    encoder: tokenizers.Tokenizer
    tokenizer: Any
    eos_token_ids: frozenset[int]
    special_token_ids: frozenset[int]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Decode token ids to text, with the checkpoint's own spacing."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


@dataclass(slots=True)
class Checkpoint:
    """A loaded artifact. ``adapters`` maps a public adapter id to its name in peft, and is empty if there are none;
    ``active`` is the name of the active adapter (peft activates the first one when it loads it)."""

    model: Any
    vocabulary: Vocabulary
    adapters: Mapping[str, str]
    active: str | None

    def activate(self, adapter_id: str | None) -> None:
        """Activate an adapter; None, and any id that is not loaded, means the base model: TGI's silent fallback."""
        name = self.adapters.get(adapter_id or "")
        if name == self.active:
            return
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.set_adapter(name)
            self.model.base_model.enable_adapter_layers()
        self.active = name


def load_checkpoint(args: Args, files: CheckpointFiles) -> Checkpoint:
    """Load everything and run one token through it, like TGI's warm-up before it opens the port."""
    transformers_logging.disable_default_handler()  # its logs go through our handler, in our format
    transformers_logging.enable_propagation()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    model = _load_model(args, files)
    vocabulary = _load_vocabulary(files, model)
    adapters: dict[str, str] = {}
    if args.adapters:
        model, adapters = _load_adapters(args, model)
    checkpoint = Checkpoint(model.eval(), vocabulary, adapters, active=next(iter(adapters.values()), None))
    for adapter_id in (None, *adapters):
        checkpoint.activate(adapter_id)
        with torch.inference_mode():
            model(input_ids=torch.tensor([[min(vocabulary.eos_token_ids, default=0)]]))
    return checkpoint


def _load_model(args: Args, files: CheckpointFiles) -> Any:
    config = AutoConfig.from_pretrained(files.folder, **OFFLINE)
    if files.rope_override is not None:
        LOG.warning("config.json has no rope_theta: using rotary base 10000, as TGI 3.3 silently would")
        config.rope_parameters = files.rope_override
    dtype = getattr(torch, args.dtype) if args.dtype else _precision(config)
    return AutoModelForCausalLM.from_pretrained(
        files.folder, config=config, dtype=dtype, use_safetensors=True, **OFFLINE
    )


def _precision(config: Any) -> Any:
    """The checkpoint's own, unless this CPU would have to emulate it, many times slower than float32. The rule is that
    of the evaluation (``finetune_jobs.modelling.device``), so that both compute the same."""
    return torch.float32 if config.dtype is torch.bfloat16 and not _has_bfloat16() else "auto"


def _has_bfloat16() -> bool:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    x86 = platform.machine() == "x86_64"
    return not x86 or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _load_vocabulary(files: CheckpointFiles, model: Any) -> Vocabulary:
    tokenizer = AutoTokenizer.from_pretrained(files.folder, **OFFLINE)
    encoder = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_padding()
    encoder.no_truncation()
    configured = model.generation_config.eos_token_id
    # As TGI reads them: those of the checkpoint's settings only if they are a list, and then no other.
    eos = set(configured) if isinstance(configured, list) else {tokenizer.eos_token_id}
    return Vocabulary(encoder, tokenizer, frozenset(eos - {None}), frozenset(tokenizer.all_special_ids))


def _load_adapters(args: Args, model: Any) -> tuple[Any, dict[str, str]]:
    # peft would import bitsandbytes, and with it torch's compiler (seconds), for layers that this server never has.
    # None in sys.modules marks a module as missing. Artifacts without adapters do not need peft.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment] # as said above
    from peft import PeftModel

    # peft keeps adapters in a module dictionary, whose keys must not contain a dot; a public id may.
    names = {source.adapter_id: f"lora_{index}" for index, source in enumerate(args.adapters)}
    for source in args.adapters:
        name = names[source.adapter_id]
        if isinstance(model, PeftModel):
            model.load_adapter(source.path, adapter_name=name, is_trainable=False, local_files_only=True)
        else:
            model = PeftModel.from_pretrained(model, source.path, adapter_name=name, local_files_only=True)
    return model, names
