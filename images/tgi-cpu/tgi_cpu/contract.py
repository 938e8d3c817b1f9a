"""Requests and errors on the wire.

Requests are parsed as strictly as serde parses TGI's structs: unknown fields are ignored; a wrong type or missing field
gives a plain-text 422, broken JSON a 400, a missing content type a 415, and a body that is too long a 413.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

Unsigned = Annotated[int, Field(ge=0)]


class Wire(BaseModel):
    """Base of everything that is parsed from a request body."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class GenerateParameters(Wire):
    """``parameters`` of the native routes."""

    best_of: Unsigned | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: Unsigned | None = None
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: Unsigned | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: Unsigned | None = None
    top_n_tokens: Unsigned | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


class GenerateRequest(Wire):
    """Body of ``/generate``, ``/generate_stream`` and ``/tokenize``. Without ``parameters`` TGI samples."""

    inputs: str
    parameters: GenerateParameters = GenerateParameters(do_sample=True)


class CompatGenerateRequest(GenerateRequest):
    """Body of ``POST /``."""

    stream: bool = False


class TextChunk(Wire):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    """Location of an image."""

    url: str


class ImageChunk(Wire):
    """An image in a message; a text model sees its Markdown."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Wire):
    """One turn of a conversation: content, or an earlier answer's tool calls."""

    role: str
    content: str | list[TextChunk | ImageChunk] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, str]:
        """Role and flattened text, which is all that a chat template receives."""
        if self.content is None:
            return {"role": self.role, "content": json.dumps(self.tool_calls or [])}
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        texts = [c.text if isinstance(c, TextChunk) else f"![]({c.image_url.url})" for c in self.content]
        return {"role": self.role, "content": "".join(texts)}


class StreamOptions(Wire):
    """``stream_options`` of the chat route."""

    include_usage: bool = False


class OpenAIRequest(Wire):
    """Fields of both chat and completion requests. ``model`` names the adapter; "tgi" or none is the base model."""

    model: str | None = None
    frequency_penalty: float | None = None
    stop: list[str] | None = None
    stream: bool = False
    seed: Unsigned | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def adapter_id(self) -> str | None:
        """The requested adapter, loaded or not."""
        return None if self.model == "tgi" else self.model


class ChatRequest(OpenAIRequest):
    """Body of ``/v1/chat/completions`` and ``/chat_tokenize``."""

    messages: list[Message]
    max_tokens: Unsigned | None = Field(None, validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: Unsigned | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream_options: StreamOptions = StreamOptions()


class CompletionRequest(OpenAIRequest):
    """Body of ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    max_tokens: Unsigned | None = None
    repetition_penalty: float | None = None
    suffix: str | None = None


class BodyError(Exception):
    """A body that could not be parsed: status and plain text, as from axum's ``Json`` extractor."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class InferError(Exception):
    """A parsed request that TGI refuses or fails to answer: an HTTP status and the body's two fields."""

    def __init__(self, status: int, error: str, error_type: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, "error_type": error_type}


def invalid(message: str) -> InferError:
    """422: a value in the request breaks a rule."""
    return InferError(422, f"Input validation error: {message}", "validation")


WireModel = TypeVar("WireModel", bound=Wire)


async def read_body(request: Request, model: type[WireModel], limit: int) -> WireModel:
    """Parse a body of at most ``limit`` bytes. Raises BodyError."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        raise BodyError(415, "Expected request with `Content-Type: application/json`")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyError(413, "Failed to buffer the request body: length limit exceeded")
    try:
        return model.model_validate_json(body)
    except ValidationError as failure:
        raise _rejection(failure) from failure


def _rejection(failure: ValidationError) -> BodyError:
    error = failure.errors(include_url=False, include_input=False)[0]
    if error["type"] == "json_invalid":
        return BodyError(400, f"Failed to parse the request body as JSON: {error['msg']}")
    *parents, name = [str(part) for part in error["loc"]] or ["body"]
    reason = f"missing field `{name}`" if error["type"] == "missing" else f"{name}: {error['msg']}"
    place = "".join(f"{parent}: " for parent in parents)
    return BodyError(422, f"Failed to deserialize the JSON body into the target type: {place}{reason}")
