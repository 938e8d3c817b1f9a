"""How a tuned model is prepared for serving."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel


class ExportFormat(StrEnum):
    """Format of the artifact that is served: one merged model, its values in so many bits, or the adapter alone."""

    INT8 = "INT8"
    W8A16 = "W8A16"
    FP8 = "FP8"
    FP8_STATIC = "FP8Static"
    INT4 = "INT4"
    INT4_AWQ = "INT4AWQ"
    MERGED = "Merged"
    ADAPTER = "Adapter"


WHOLE_MODELS: Final = tuple(each for each in ExportFormat if each is not ExportFormat.ADAPTER)
"""Formats in which the adapter is part of the model."""
CALIBRATED: Final = frozenset({ExportFormat.FP8_STATIC, ExportFormat.INT4, ExportFormat.INT4_AWQ})
"""Formats that are calibrated on training examples."""


class OnRegression(StrEnum):
    """What becomes of an artifact that is worse than the model that was trained."""

    FAIL = "Fail"
    FALL_BACK = "FallBack"


class Export(ApiModel):
    """How the tuned model is prepared for serving."""

    format: ExportFormat = ExportFormat.INT8
    """Of the weights of all linear layers but the output layer. INT8: 8-bit integers, activations too (W8A8). W8A16:
    8-bit integers, activations in 16 bits. FP8: 8-bit floating point, activations too, by a scale for each token.
    FP8Static: the same with one scale for all tokens, found on training examples. INT4: 4-bit integers, calibrated by
    GPTQ on training examples, activations in 16 bits. INT4AWQ: the same by AWQ. Merged: 16 bits, nothing is rounded.
    Adapter: the adapter itself, beside the 16-bit model that it was trained on: an AdapterDeployment serves several
    such on one copy of that (source.adapters). Not with method Full, nor with DoRA."""
    alternatives: Annotated[list[ExportFormat], Field(max_length=7)] = []
    """Other formats, made and evaluated on the same examples beside it: the report compares them, and FallBack tries
    them in this order."""
    on_regression: OnRegression = OnRegression.FAIL
    """What to do if the artifact is worse than the tuned model on the test examples, beyond chance. Fail: as if a goal
    was missed (evaluation.onFail). FallBack: the first of alternatives that is not worse is the artifact; Merged is
    tried last, whether it is listed or not."""

    @property
    def formats(self) -> list[ExportFormat]:
        """All that are made, in the order in which they are tried."""
        others = list(self.alternatives)
        if self.on_regression is OnRegression.FALL_BACK:
            others = [*(each for each in others if each is not ExportFormat.MERGED), ExportFormat.MERGED]
        return list(dict.fromkeys([self.format, *others]))

    @property
    def servable(self) -> list[ExportFormat]:
        """Those of them that may become the artifact; the others are compared with it."""
        return self.formats if self.on_regression is OnRegression.FALL_BACK else [self.format]
