"""Whether a runtime takes conversations as long as those that an artifact learnt and is asked."""

from finetune_api.finetunejob import ArtifactTokens
from finetune_operator.settings import Runtime


def prompt_violation(tokens: ArtifactTokens | None, name: str, runtime: Runtime) -> str:
    """Why the runtime cannot even be asked the golden prompts; empty where it can, or where nobody has counted."""
    if tokens is None or not tokens.golden_prompt:
        return ""
    prompt, both = tokens.golden_prompt, tokens.golden_prompt + tokens.answer
    if prompt <= runtime.max_input_tokens and both <= runtime.max_total_tokens:
        return ""
    return (
        f"The longest golden prompt of the artifact has {prompt} tokens, and its answer may have {tokens.answer}; "
        f"{_limits(name, runtime)}."
    )


def example_warning(tokens: ArtifactTokens | None, name: str, runtime: Runtime) -> str:
    """That clients may ask for more than the runtime takes; empty where all that was trained fits, as far as known."""
    if tokens is None:
        return ""
    prompt = tokens.example - tokens.answer if tokens.answer else 0
    if prompt <= runtime.max_input_tokens and tokens.example <= runtime.max_total_tokens:
        return ""
    return (
        f"The longest example that the artifact was trained with has {tokens.example} tokens with its answer; "
        f"{_limits(name, runtime)}, and answers 422 to what is longer."
    )


def _limits(name: str, runtime: Runtime) -> str:
    return (
        f"runtime {name!r} takes {runtime.max_input_tokens} for a prompt (maxInputTokens), {runtime.max_total_tokens} "
        "with its answer (maxTotalTokens)"
    )
