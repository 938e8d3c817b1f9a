"""What the code of a model family in transformers fixes: the names of its layers, how their sizes follow from
config.json, and the sizes that config.json may leave out.

Preflight's image holds neither torch nor transformers, so this is computed beforehand: ``make families`` builds every
causal language model of transformers on PyTorch's meta device and writes families.json (``hack.families``). A family is
in it only if models of other sizes than those it was read from have just the parameters that it says.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from math import prod
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

DATA: Final = Path(__file__).with_name("families.json")

EVERY_LAYER: Final = "every layer"
"""Of a list of layers by their number."""
Fixed = bool | int | float | str | tuple[str, ...] | None
"""What a field must be; of one that lists a kind for each layer, the kinds that make no difference."""
Sizes = Mapping[str, int]
"""What a config.json says of sizes, by the names that the family's config has for them."""


class Read(StrEnum):
    """What a linear layer reads: those of a kind share one tensor."""

    BEFORE_ATTENTION = "BeforeAttention"
    """The normalised hidden state."""
    COMPRESSED = "Compressed"
    """What a smaller layer made of it, of its own (multi-head latent attention)."""
    ATTENTION = "Attention"
    """What attention gives."""
    BEFORE_FEED_FORWARD = "BeforeFeedForward"
    """The normalised hidden state, which one family's single normalisation makes for attention too."""
    PRODUCT = "Product"
    """What the last layer of the feed-forward part reads."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditional(_Data):
    """Parameters that are there where switches of config.json are set so."""

    when: Mapping[str, bool] = {}

    def there(self, switches: Mapping[str, bool]) -> bool:
        """Whether they are."""
        return all(switches[name] is wanted for name, wanted in self.when.items())


class Linear(Conditional):
    """A linear layer; its bias is counted elsewhere."""

    name: str
    reads: Read
    inputs: str
    outputs: str


class Count(Conditional):
    """Further parameters."""

    size: str


class Norms(Conditional):
    """Normalisations that a layer has only with some settings."""

    hidden: int = 0
    """Over the hidden state."""
    of_heads: bool = False
    """Of queries and keys."""


class Mixture(_Data):
    """A mixture of experts."""

    count: str
    active: str
    width: str
    """Of the feed-forward part that one of them is."""
    each: tuple[Count, ...]
    """Parameters of one of them."""


class Layer(_Data):
    """What the layers of one kind have in common."""

    gated: bool
    """Whether the feed-forward part multiplies two projections (SwiGLU, GeGLU)."""
    norms: int
    """Normalisations over the hidden state, whatever the switches."""
    heads: str
    kv_heads: str
    head_dim: str
    output_gate: bool = False
    """Whether what attention gives is multiplied by a gate, a number for each of its."""
    qk_norm: bool = False
    """Whether attention normalises queries and keys, each head by itself or all together, whatever the switches."""
    switched_norms: tuple[Norms, ...] = ()
    """Those that depend on switches."""
    score_bytes: int = 0
    """What attention keeps of each score, one per head, query and key, for its backward pass; 0: a kernel computes it
    that keeps none."""
    key_dim: str = ""
    """Of a layer with the gated delta rule in place of attention, the width of a key; heads are then those of values,
    and there is a key head for some of them each. Empty for attention."""
    linear: tuple[Linear, ...]
    """Linear layers."""
    vectors: tuple[Count, ...] = ()
    """Further parameters, without its experts."""
    experts: Mixture | None = None


class Asks(StrEnum):
    """What a condition asks of a layer's number, which starts at 0."""

    FROM = "From"
    """Not below the value."""
    UNTIL = "Until"
    """Not above the value; -1 is the last layer."""
    EVERY = "Every"
    """The last one of each so many layers."""
    EXCEPT = "Except"
    """Not in the list."""


class Condition(_Data):
    """A condition on a layer's number."""

    asks: Asks
    field: str = ""
    """Of config.json; empty where transformers fixes the value."""
    usual: int | tuple[int, ...]
    """The value where config.json does not say it."""


class Pattern(_Data):
    """Of which of a family's kinds each layer is."""

    listed: str = ""
    """A field that lists it, if config.json has it."""
    labels: Mapping[str, int] = {}
    """The kinds by their names in that list; empty where it has the numbers of the layers of the second kind."""
    second: tuple[Condition, ...] = ()
    """Without a list, layers for which all of this holds are of the second kind, the others of the first."""


class Family(_Data):
    """A family. Sizes are formulas: sums of products of numbers and of what config.json says, e.g.
    ``num_key_value_heads*head_dim``."""

    aliases: Mapping[str, str] = {}
    """Other names that config.json may have for a field, and its own."""
    defaults: Mapping[str, int | str] = {}
    """Sizes that config.json may leave out: a number or a formula."""
    nulls: Mapping[str, str] = {}
    """What null means for a size."""
    computed: Mapping[str, str] = {}
    """Sizes that config.json cannot set."""
    switches: Mapping[str, bool] = {}
    """Fields that add or remove parameters, and their defaults."""
    fixed: Mapping[str, Fixed] = {}
    """Fields that make layers of another kind, and the only values with which these are the layers."""
    tied: bool
    """Whether the output layer shares the embedding's weights, if config.json does not say."""
    hidden: str
    layers: str
    vocab: str
    kinds: tuple[Layer, ...]
    """The kinds of layers that its models have: mostly one."""
    pattern: Pattern | None = None
    """Of which kind each layer is, if there are several."""
    outside: tuple[Count, ...] = ()
    """Parameters outside the layers, without the embedding's and the output layer's weights."""

    @property
    def linear(self) -> tuple[Linear, ...]:
        """Linear layers of all kinds."""
        return tuple(each for kind in self.kinds for each in kind.linear)

    @property
    def has_experts(self) -> bool:
        """Whether its models have mixtures of experts."""
        return any(kind.experts for kind in self.kinds)


class Families(_Data):
    """Everything that the file holds."""

    made: Mapping[str, str]
    """By what it was made (``hack.families``)."""
    families: Mapping[str, Family]
    """By the ``model_type`` of config.json."""
    texts: Mapping[str, str]
    """Configurations of a text part and others, of which transformers' causal model takes the text part alone, and the
    family of that part."""
    images: tuple[str, ...]
    """Families for images and text of which transformers has no causal language model."""
    left_out: Mapping[str, str]
    """Causal language models that are not described here, and why."""


def evaluate(formula: str, sizes: Sizes) -> int:
    """The value of a sum of products, of which ``a//b`` may be a factor. Raises KeyError for a size that is missing."""
    return sum(prod(_factor(each, sizes) for each in term.split("*")) for term in formula.split("+"))


def names(formula: str) -> set[str]:
    """The sizes in a formula."""
    return {each for each in formula.replace("//", "*").replace("+", "*").split("*") if not each.isdigit()}


def _factor(text: str, sizes: Sizes) -> int:
    over, _, under = text.partition("//")
    value = int(over) if over.isdigit() else sizes[over]
    return value // sizes[under] if under else value


@cache
def known() -> Families:
    """What the file holds."""
    return Families.model_validate_json(DATA.read_bytes())
