"""The chat template as TGI applies it: only text messages, and an assistant's last message is continued."""

from typing import Any

from jinja2 import TemplateError

from tgi_cpu.contract import InferError, Message


class ChatTemplate:
    """Renders conversations as prompts. Without a template that TGI can see, every chat request gets a 422."""

    def __init__(self, template: str | None, tokenizer: Any) -> None:
        self._template = template
        self._tokenizer = tokenizer

    def render(self, messages: list[Message]) -> str:
        """The prompt. Raises InferError (422, ``template_error``)."""
        if self._template is None:
            raise InferError(422, "Template error: template not found", "template_error")
        turns = [message.for_template() for message in messages]
        try:
            prompt = str(
                self._tokenizer.apply_chat_template(
                    turns, chat_template=self._template, tokenize=False, add_generation_prompt=True
                )
            )
        except (TemplateError, TypeError) as error:
            raise InferError(422, f"Template error: {error}", "template_error") from error
        if turns and turns[-1]["role"] == "assistant":
            end = prompt.rfind(turns[-1]["content"])
            if end >= 0:
                return prompt[: end + len(turns[-1]["content"])].rstrip()
        return prompt
