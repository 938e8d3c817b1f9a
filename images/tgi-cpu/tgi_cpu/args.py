"""The launcher's flags: every flag is also an environment variable (clap's ``env``); a flag overrides its variable.

Only flags that make sense for one CPU process have an effect. The others are parsed and then ignored, so that a value
that would stop TGI stops the stand-in too.
"""

import argparse
import ipaddress
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG = logging.getLogger(__name__)

BITSANDBYTES = ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4")
QUANTIZATIONS = ("awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", *BITSANDBYTES, "fp8")
DEFAULT_MAX_TOTAL_TOKENS = 4096  # limits the default for long-context models; TGI derives its own from the GPU's memory
EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 - TGI's default, and what a container needs
_ADAPTER = re.compile(r"^([^=@]+)(?:=([^@]+))?(?:@(.+))?$")


class LauncherError(Exception):
    """Why TGI's launcher would exit with status 1, in its own words."""


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """One entry of ``LORA_ADAPTERS``: the id for requests, and the adapter's folder."""

    adapter_id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Args:
    """The flags that have an effect. Lengths are in tokens; ``None``: derived from the checkpoint."""

    model_id: str
    adapters: tuple[AdapterSource, ...]
    quantize: str | None
    dtype: str | None
    max_input_tokens: int | None
    max_total_tokens: int | None
    max_batch_prefill_tokens: int
    max_batch_size: int
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_client_batch_size: int
    validation_workers: int
    tokenizer_config_path: Path | None
    api_key: str | None
    hostname: str
    port: int
    payload_limit: int
    graceful_termination_timeout: int
    json_output: bool
    enable_prefill_logprobs: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum tokens of the input, and of input and answer together."""

    max_input_tokens: int
    max_total_tokens: int

    @classmethod
    def of(cls, args: Args, max_position_embeddings: int | None) -> "Limits":
        """The flags if they are set, otherwise what the model allows. Raises LauncherError if they contradict each
        other."""
        default = min(max_position_embeddings or DEFAULT_MAX_TOTAL_TOKENS, DEFAULT_MAX_TOTAL_TOKENS)
        total = default if args.max_total_tokens is None else args.max_total_tokens
        longest = total - 1 if args.max_input_tokens is None else args.max_input_tokens
        if longest >= total:
            raise LauncherError('ArgumentValidation("`max_input_tokens` must be < `max_total_tokens`")')
        return cls(longest, total)


def parse_args(argv: Sequence[str], env: Mapping[str, str]) -> Args:
    """Read flags and environment.

    Raises LauncherError if the launcher would refuse to start (exit status 1). An unknown flag or a value of the wrong
    type ends the process with status 2, as clap does.
    """
    flags = _parser(env).parse_args(argv)
    _refuse_contradictions(flags)
    return Args(
        model_id=flags.model_id,
        adapters=parse_lora_adapters(flags.lora_adapters),
        quantize=flags.quantize,
        dtype=flags.dtype,
        max_input_tokens=flags.max_input_tokens,
        max_total_tokens=flags.max_total_tokens,
        max_batch_prefill_tokens=flags.max_batch_prefill_tokens,
        max_batch_size=flags.max_batch_size,
        max_concurrent_requests=flags.max_concurrent_requests,
        max_best_of=flags.max_best_of,
        max_stop_sequences=flags.max_stop_sequences,
        max_top_n_tokens=flags.max_top_n_tokens,
        max_client_batch_size=flags.max_client_batch_size,
        validation_workers=flags.validation_workers,
        tokenizer_config_path=flags.tokenizer_config_path,
        api_key=flags.api_key,
        hostname=flags.hostname,
        port=flags.port,
        payload_limit=flags.payload_limit,
        graceful_termination_timeout=flags.graceful_termination_timeout,
        json_output=flags.json_output,
        enable_prefill_logprobs=flags.enable_prefill_logprobs,
    )


def parse_lora_adapters(text: str) -> tuple[AdapterSource, ...]:
    """Parse ``name=/path,name=/path`` into sources, in order.

    Raises LauncherError for what TGI's ``server/.../utils/adapter.py`` refuses: a second ``=`` or ``@`` in an entry.
    """
    sources = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _ADAPTER.match(entry)
        if match is None or entry.count("=") > 1 or entry.count("@") > 1:
            raise LauncherError(f"Invalid LoRA adapter format: {entry}")
        adapter_id, path, revision = match.groups()
        if revision is not None:
            raise LauncherError(
                f"LoRA adapter {entry}: a revision needs the hub, the stand-in works offline; use name=/path"
            )
        sources.append(AdapterSource(adapter_id, Path(path or adapter_id)))
    return tuple(sources)


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tgi-cpu", description=__doc__, allow_abbrev=False)

    def flag(
        name: str,
        default: str | int | None = None,
        *,
        parse: Callable[[str], object] = str,
        short: str | None = None,
    ) -> None:
        names = [f"--{name.replace('_', '-')}", *([short] if short else [])]
        parser.add_argument(*names, default=env.get(name.upper(), default), type=parse)

    def switch(name: str) -> None:
        default = env.get(name.upper(), "false")
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="?", const=True, default=default, type=_boolean)

    flag("model_id", "bigscience/bloom-560m")
    flag("revision")
    flag("quantize", parse=_one_of(*QUANTIZATIONS))
    flag("dtype", parse=_one_of("float16", "bfloat16"))
    flag("lora_adapters", "")
    flag("num_shard", 1, parse=int)
    flag("max_input_tokens", parse=int)
    flag("max_total_tokens", parse=int)
    flag("max_batch_prefill_tokens", 4096, parse=int)
    flag("max_batch_total_tokens", parse=int)
    flag("max_batch_size", 16, parse=int)
    flag("max_concurrent_requests", 128, parse=int)
    flag("max_best_of", 2, parse=int)
    flag("max_stop_sequences", 4, parse=int)
    flag("max_top_n_tokens", 5, parse=int)
    flag("max_client_batch_size", 4, parse=int)
    flag("validation_workers", 2, parse=int)
    flag("tokenizer_config_path", parse=Path)
    flag("api_key")
    flag("hostname", EVERY_INTERFACE)
    flag("port", 3000, parse=int, short="-p")
    flag("payload_limit", 2_000_000, parse=int)
    flag("graceful_termination_timeout", 90, parse=int, short="-g")
    switch("trust_remote_code")
    switch("json_output")
    switch("enable_prefill_logprobs")
    # Parsed, but without effect. MASTER_PORT is why a Service called "master" stops TGI: Kubernetes' service links set
    # it to tcp://..., which is not a number.
    flag("master_port", 29500, parse=int)
    flag("prometheus_port", 9000, parse=int)
    flag("max_waiting_tokens", 20, parse=int)
    flag("waiting_served_ratio", "0.3", parse=float)
    flag("cuda_memory_fraction", "1.0", parse=float)
    flag("cuda_graphs")
    flag("kv_cache_dtype", parse=_one_of("fp8_e4m3fn", "fp8_e5m2"))
    flag("usage_stats", "on", parse=_one_of("on", "off", "no-stack"))
    flag("huggingface_hub_cache")
    flag("otlp_endpoint")
    switch("disable_grammar_support")
    return parser


def _refuse_contradictions(flags: argparse.Namespace) -> None:
    def refuse(message: str) -> LauncherError:
        return LauncherError(f'ArgumentValidation("{message}")')

    longest, total, batch_total = flags.max_input_tokens, flags.max_total_tokens, flags.max_batch_total_tokens
    if longest is not None and total is not None and longest >= total:
        raise refuse(f"`max_input_tokens`({longest}) must be < `max_total_tokens`({total})")
    if total is not None and batch_total is not None and total > batch_total:
        raise refuse(f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch_total}")
    if flags.num_shard < 1:
        raise refuse("`num_shard` cannot be < 1")
    if flags.num_shard > 1:
        raise LauncherError(f'NotEnoughCUDADevices("`num_shard` is {flags.num_shard}, a CPU stand-in has one process")')
    for name in ("validation_workers", "max_batch_size"):
        if getattr(flags, name) < 1:
            raise refuse(f"`{name}` must be > 0")
    if flags.dtype is not None and flags.quantize is not None:
        raise LauncherError(
            "Only 1 can be set between `dtype` and `quantize`, as they both decide how goes the final model."
        )
    if flags.revision is not None:
        raise LauncherError(f"REVISION={flags.revision} makes TGI ask the hub even for a local MODEL_ID; unset it")
    if flags.trust_remote_code:
        raise LauncherError("TRUST_REMOTE_CODE is not supported: a checkpoint's own code is never executed")


def bind_address(hostname: str) -> str:
    """Kubernetes sets HOSTNAME to the pod's name; TGI warns and listens everywhere, and so does the stand-in."""
    try:
        return str(ipaddress.ip_address(hostname))
    except ValueError:
        LOG.warning("Invalid hostname, defaulting to 0.0.0.0")
        return EVERY_INTERFACE


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


def _one_of(*choices: str) -> Callable[[str], str]:
    """argparse does not check ``choices`` for a value from the environment; a type does."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"invalid value '{text}' [possible values: {', '.join(choices)}]")
        return text

    return parse
