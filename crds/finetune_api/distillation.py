"""Distillation: a larger model, the teacher, answers prompts, and its answers become the examples."""

from collections.abc import Mapping
from decimal import Decimal as Number
from enum import StrEnum
from functools import partial
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel, Decimal, Retired
from finetune_api.freeze import Changes
from finetune_api.references import SecretKeyRef
from finetune_api.rules import NotEmpty, Rule, not_zero
from finetune_api.spelled import spelled

TEACHER_URL: Final = r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/v1$"
MODEL_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"
QuestionTemplate = Annotated[
    str,
    spelled(r"\{document\}", "say where the row's text belongs: {document}", min_length=10, max_length=4096),
]
"""A prompt about a document."""
TeacherUrl = Annotated[
    str,
    spelled(
        TEACHER_URL,
        "write http:// or https://, a host and a path that ends with /v1, e.g. https://api.openai.com/v1",
        min_length=10,
        max_length=253,
    ),
]
ModelName = Annotated[
    str,
    spelled(
        MODEL_NAME,
        "write letters, digits and ._:/@+-, starting with a letter or digit",
        min_length=1,
        max_length=128,
    ),
]
MAX_TEMPERATURE: Final = 2
"""Highest temperature that OpenAI's API accepts."""

_COST_NEEDS_PRICES: Final = Rule(
    "!has(self.maxCost) || double(self.maxCost) == 0.0 || (has(self.prices) && "
    "(double(self.prices.usdPerMillionInputTokens) > 0.0 || double(self.prices.usdPerMillionOutputTokens) > 0.0))",
    "maxCost needs prices: set prices.usdPerMillionInputTokens or prices.usdPerMillionOutputTokens above 0",
)
_COST_IS_MORE: Final = Rule(
    "!has(self.maxCost) || double(self.maxCost) > 0.0",
    "maxCost must be above 0: it allows no request otherwise; omit it for no limit",
)
_SAMPLES_NEED_CHANCE: Final = Rule(
    "self.samplesPerPrompt == 1 || !has(self.temperature) || double(self.temperature) > 0.0",
    "samplesPerPrompt above 1 needs a temperature above 0: otherwise all answers to a prompt are the same",
)
_WARM_AT_MOST: Final = Rule(
    f"!has(self.temperature) || double(self.temperature) <= {MAX_TEMPERATURE}.0",
    f"temperature must be {MAX_TEMPERATURE} or less",
)
_WORDS_IN_ORDER: Final = Rule(
    "!has(self.maxAnswerWords) || self.maxAnswerWords == 0 || self.minAnswerWords <= self.maxAnswerWords",
    "minAnswerWords must not exceed maxAnswerWords",
)


_RULES: Final = (_COST_NEEDS_PRICES, _COST_IS_MORE, _SAMPLES_NEED_CHANCE, _WARM_AT_MOST, _WORDS_IN_ORDER)


_IN_KEY: Final = partial(NotEmpty, absent="")
"""As earlier versions had them in prepare's key, so that what a teacher has answered is found."""


class TeacherRef(ApiModel):
    """A model behind any server that implements OpenAI's chat API."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "credentials": Retired("name the Secret and its key with the API key in secretKeyRef")
    }

    url: TeacherUrl
    """Base URL, ending in /v1, e.g. https://api.openai.com/v1 or http://vllm.models.svc:8000/v1."""
    model: ModelName
    """Name of the model on the server."""
    secret_key_ref: Annotated[SecretKeyRef | None, Changes.RETRY] = None
    """The API key; omit it if the server needs none."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    """A request that takes longer is cancelled and retried."""


class Refusals(StrEnum):
    """What to do with a teacher's refusal."""

    DROP = "Drop"
    KEEP = "Keep"


class TeacherPrices(ApiModel):
    """Prices of the teacher."""

    usd_per_million_input_tokens: Decimal = "0"
    """US dollars per million prompt tokens."""
    usd_per_million_output_tokens: Decimal = "0"
    """US dollars per million answer tokens."""

    @property
    def are_zero(self) -> bool:
        """Whether the teacher costs nothing."""
        return not any(map(Number, (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)))


class AnswerDuplicates(StrEnum):
    """What to do with a duplicate answer."""

    KEEP = "Keep"
    WITHIN_PROMPT = "WithinPrompt"
    DROP = "Drop"


class Distillation(ApiModel):
    """Have a teacher answer the rows of the sources, which are then prompts without answers."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [rule.as_schema() for rule in _RULES]})
    retired: ClassVar[Mapping[str, Retired]] = {
        "dropRefusals": Retired("write refusals: Drop, or refusals: Keep", "boolean"),
    }

    teacher: TeacherRef
    """The model that answers."""
    instruction: Annotated[str, Field(max_length=16384)] = ""
    """System prompt for the teacher only, e.g. with background knowledge; dataset.instruction is for the student."""
    column: Annotated[str, Field(max_length=128), _IN_KEY("omit column for the default")] = ""
    """Column or key of the sources with the prompts. Default: prompt, or document if questionTemplate is set."""
    question_template: QuestionTemplate | None = None
    """Turns a document into a prompt: {document} stands for the row's text. If omitted, the row's text is the
    prompt."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of answers requested per prompt."""
    temperature: Decimal | None = None
    """Sampling temperature, 0 to 2. Default: the teacher's own, the only one that some models accept."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=131072)] = 1024
    """Maximum tokens of an answer; an answer cut off there is dropped."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of concurrent requests."""
    requests_per_minute: Annotated[
        int | None, Field(ge=1, le=100000, json_schema_extra=not_zero("omit requestsPerMinute for no limit"))
    ] = None
    """Maximum requests per minute, evenly spread. Default: no limit."""
    deadline_minutes: Annotated[
        int | None, Field(ge=1, le=10080, json_schema_extra=not_zero("omit deadlineMinutes for no limit"))
    ] = None
    """The job fails if the teacher takes longer, counting all pods of the run; its answers are kept for the next run.
    Default: the stage's deadline applies."""
    prices: TeacherPrices | None = None
    """Prices of the teacher. If omitted, tokens are counted but not their cost."""
    max_cost: Decimal | None = None
    """Cost limit in US dollars. No request is sent that could exceed it; the remaining prompts are dropped. Default: no
    limit."""
    answer_schema: Annotated[str, Field(max_length=8192), _IN_KEY("omit answerSchema to accept any answer")] = ""
    """JSON Schema (draft 2020-12) as text; an answer that is not JSON or does not match it is dropped."""
    min_answer_words: Annotated[int, Field(ge=1, le=10000)] = 1
    """Minimum words of an answer; a shorter one is dropped."""
    max_answer_words: Annotated[
        int | None, Field(ge=1, le=100000, json_schema_extra=not_zero("omit maxAnswerWords for any length"))
    ] = None
    """Maximum words of an answer; a longer one is dropped. Default: any length."""
    refusals: Refusals = Refusals.DROP
    """Drop or Keep refusals such as "I'm sorry, but I can't help with that"."""
    duplicates: AnswerDuplicates = AnswerDuplicates.WITHIN_PROMPT
    """Keep: keep all. WithinPrompt: of equal answers to the same prompt, keep only one. Drop: of equal or near-equal
    answers to any prompts, keep only one, for free text."""

    @model_validator(mode="after")
    def _consistent(self) -> "Distillation":
        warmth = None if self.temperature is None else Number(self.temperature)
        limit = None if self.max_cost is None else Number(self.max_cost)
        broken = {
            _COST_NEEDS_PRICES: bool(limit) and (self.prices is None or self.prices.are_zero),
            _COST_IS_MORE: limit == 0,
            _SAMPLES_NEED_CHANCE: self.samples_per_prompt > 1 and warmth == 0,
            _WARM_AT_MOST: warmth is not None and warmth > MAX_TEMPERATURE,
            _WORDS_IN_ORDER: self.max_answer_words is not None and self.max_answer_words < self.min_answer_words,
        }
        for rule, is_broken in broken.items():
            if is_broken:
                raise ValueError(rule.message)
        return self
