"""Whether a runtime accepts prompts as long as an artifact's golden prompts and training examples."""

from finetune_api.job_status import ArtifactTokens
from finetune_operator.settings import Runtime


def prompt_violation(tokens: ArtifactTokens | None, name: str, runtime: Runtime) -> str:
    """Why the golden prompts are too long for the runtime; empty if they are not, or were not counted."""
    if tokens is None or tokens.golden_prompt is None:
        return ""
    prompt, both = tokens.golden_prompt, tokens.golden_prompt + (tokens.answer or 0)
    if prompt <= runtime.longest_prompt and both <= runtime.max_total_tokens:
        return ""
    return (
        f"The artifact's longest golden prompt has {prompt} tokens{_answer(tokens.answer)}; {_limits(name, runtime)}."
    )


def example_warning(tokens: ArtifactTokens | None, name: str, runtime: Runtime) -> str:
    """That clients may send longer prompts than the runtime accepts; empty if all training examples fit, or were not
    counted."""
    if tokens is None or tokens.example is None:
        return ""
    prompt = tokens.example - tokens.answer if tokens.answer else 0
    if prompt <= runtime.longest_prompt and tokens.example <= runtime.max_total_tokens:
        return ""
    return (
        f"The artifact's longest training example has {tokens.example} tokens with its answer; "
        f"{_limits(name, runtime)}, and refuses longer requests."
    )


def _answer(tokens: int | None) -> str:
    return "" if tokens is None else f", its answer up to {tokens} more"


def _limits(name: str, runtime: Runtime) -> str:
    if not runtime.limits_prompts:
        return f"runtime {name!r} accepts {runtime.max_total_tokens} for prompt and answer together (maxTotalTokens)"
    return (
        f"runtime {name!r} accepts {runtime.max_input_tokens} for a prompt (maxInputTokens) and "
        f"{runtime.max_total_tokens} with its answer (maxTotalTokens)"
    )
