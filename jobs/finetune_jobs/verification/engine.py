"""What verification asks of a model server, whatever its API; one module beside this one per engine.

Its counterpart in the operator, which renders the server's pod, is ``finetune_operator.runtimes.plan``.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.artifacts.calls import Call


@dataclass(frozen=True)
class Limits:
    """Token limits of a server, as it reports them; 0 if it does not."""

    prompt: int = 0
    """The prompt alone; 0 too if the server has no such limit."""
    total: int = 0
    """Prompt and answer together."""

    def take(self, answer: Answer) -> bool:
        """Whether a prompt of this length is accepted; true if a length is unknown."""
        return not answer.prompt_tokens or self.have_room(answer.prompt_tokens, answer.max_tokens)

    def have_room(self, prompt: int, answer: int) -> bool:
        """Whether the server accepts so many tokens, as far as it says."""
        return prompt <= (self.prompt or math.inf) and prompt + answer <= (self.total or math.inf)

    def __str__(self) -> str:
        total = self.total or "an unknown number"
        if not self.prompt:
            return f"it accepts {total} for prompt and answer together (the runtime's maxTotalTokens)"
        return (
            f"it accepts {self.prompt} for a prompt (the runtime's maxInputTokens), {total} with its answer "
            "(maxTotalTokens)"
        )


@dataclass(frozen=True)
class Served:
    """What a server says of itself."""

    model: str
    """Path of the model in the server's pod."""
    limits: Limits


@dataclass(frozen=True)
class Reply:
    """A greedy answer."""

    text: str
    """Without thoughts."""
    stopped: bool | None = None
    """Whether the model ended it itself; None: the server does not say."""
    prompt_tokens: int = 0
    """As the server counted them; 0: it does not say."""
    calls: Sequence[Call] = ()
    """Calls of tools that the server has read from the answer."""


@dataclass(frozen=True)
class RefusedForm:
    """A server does not answer in the form that it was asked for, and tells its clients so."""

    why: str
    """For people: its own words, or what would help."""


@dataclass(frozen=True)
class Streamed:
    """A greedy answer that came token by token."""

    text: str
    """Without thoughts; as far as it came."""
    fault: str = ""
    """Why it did not end as a stream has to; empty if it did."""
    failed: bool = False
    """Whether that is a failure of the server to answer, which may pass; else its stream is none of OpenAI's API."""
    first_token: float | None = None
    """Seconds from the request to the first part of the answer; None: there was none."""
    output_token: float | None = None
    """Seconds between two tokens, on average; None: no two came one after the other."""
    calls: Sequence[Call] = ()
    """Calls of tools, joined from their parts as clients join them."""


@dataclass(frozen=True)
class Forced:
    """How likely a server finds the tokens of a given text."""

    ids: list[int]
    log_probs: list[float]
    """Of all tokens but the first; empty if the server does not give them."""

    @property
    def has_numbers(self) -> bool:
        """Whether it gives them, and all are numbers."""
        return bool(self.log_probs) and all(map(math.isfinite, self.log_probs))


class ServerCounts(Counter[tuple[str, str]]):
    """What a server has counted since it started: each count has a name and a part.

    ``ANSWERED``: requests with an answer. ``FAILED``: those without one by the server's fault; each part counts all of
    them that it notices, so the largest part counts. Times, by the names below: requests that took no longer than the
    part says, in seconds; the part "+Inf" has all of them.
    """


ANSWERED: Final = "answered"
FAILED: Final = "failed"
REQUEST_SECONDS: Final = "requestSeconds"
"""From a request to the end of its answer."""
FIRST_TOKEN_SECONDS: Final = "firstTokenSeconds"
"""From a request to the first part of its answer; not every engine measures it."""
TIMES: Final = (REQUEST_SECONDS, FIRST_TOKEN_SECONDS)


class ModelServer(Protocol):
    """A candidate's server. Every method raises StageError: CandidateFailed (retriable unless the server says that it
    never will), PromptsTooLong. ``served`` is called first."""

    engine: str
    """Its API, as the tolerances know it."""
    metrics: str
    """What the names of its metrics begin with. The chart's recording rules give them the names of all engines."""

    def served(self) -> Served:
        """What it serves; its path holds the artifact's digest."""

    def answer(self, asked: Answer) -> Reply:
        """The most likely answer to a chat."""

    def call_tools(self, asked: Answer) -> Reply | RefusedForm:
        """The same, of a chat that is sent with its tools: the server renders them, and reads calls from the answer."""

    def stream_calls(self, asked: Answer) -> Streamed | RefusedForm:
        """The same chat with its tools, answered as a stream."""

    def hold_to(self, asked: Answer, schema: str) -> Reply | RefusedForm:
        """The most likely answer to a chat whose answer the server holds to a JSON schema."""

    def stream(self, asked: Answer) -> Streamed:
        """The same answer as a stream. Called by several threads at once."""

    def silent_seconds(self) -> float:
        """For how long none of the streams that are open has brought anything; 0 while none is."""

    def log_probs(self, reference: ReferenceText) -> Forced:
        """One forward pass over a given text."""

    def waiting(self) -> int | None:
        """Requests that wait for their turn, with what the server works on not among them; None: it does not say.
        Raises nothing."""

    def refuses_other_names(self) -> bool | None:
        """Whether a request that names another model is refused with 404; None: the engine looks at no name."""

    def counts(self) -> ServerCounts:
        """What it has counted so far. May be called without ``served``."""


class AdapterHost(Protocol):
    """A server that loads adapters while it runs. Its methods raise StageError (CandidateFailed)."""

    def loaded(self) -> dict[str, str]:
        """Paths of the adapters by their names."""

    def load(self, name: str, path: str) -> None:
        """An adapter answers under a name from now on."""

    def unload(self, name: str) -> None:
        """Nothing answers under a name from now on; requests that have begun go on."""
