"""How far the weights of a layer may be from those that they were rounded from: bounds that follow from the format."""

from typing import Final

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType

CALIBRATED_MOST: Final = 0.5
"""Of the norm of a layer's weights, how much calibrated 4-bit weights may differ by. GPTQ keeps what a layer computes
rather than its weights, so that no bound of a single weight follows from the format. It takes 0.13 to 0.17
of layers of SmolLM2-135M (docs/concepts/training.md); a layer of zeros is 1 away, another layer's weights 1.4."""
SCALES_MOST: Final = 2**-7
"""Of a scale, how much it may differ from what the weights of its group say: it is computed and stored with 8 bits of
precision."""
_BF16: Final = 2**-8
"""Of a number, how much is lost where it is kept in 16 bits: of a weight divided by its scale, and of the scale."""


class Change:
    """How much rounding has changed the weights of a layer, and whether that is what it does."""

    def __init__(self, args: QuantizationArgs) -> None:
        self._args = args
        self._far = self._scales = self._changed = self._whole = 0.0

    def add(self, wanted: torch.Tensor, found: torch.Tensor, scale: torch.Tensor) -> None:
        """Some rows of the layer: as they should be, as they are, and with which scales."""
        error = (found - wanted).abs()
        if self._args.strategy != QuantizationStrategy.GROUP:
            self._far = max(self._far, _largest_ratio(error, _explained(wanted, self._args)))
            return
        largest = wanted.unflatten(-1, (-1, self._args.group_size)).abs().amax(-1)
        steps = _steps(self._args.num_bits)
        off = (scale * steps - largest).abs().where(largest > 0, 0)  # of zeros, any scale is right
        self._scales = max(self._scales, _largest_ratio(off, largest))
        self._changed += float(error.square().sum())
        self._whole += float(wanted.square().sum())

    def used(self) -> float:
        """How much of what is allowed; more than 1 is too much."""
        return max(self._far, self._scales / SCALES_MOST, self._norm() / CALIBRATED_MOST)

    def fault(self) -> str:
        """Empty: none."""
        if self._far > 1:
            return f"is up to {self._far:,.1f} times as far from the model's as rounding explains"
        if self._scales > SCALES_MOST:
            return f"has scales that are up to {self._scales:.0%} off those of the model's weights"
        if self._norm() > CALIBRATED_MOST:
            return f"differs from the model's by {self._norm():.0%} of its norm, which calibration does not explain"
        return ""

    def _norm(self) -> float:
        return float((self._changed / self._whole) ** 0.5) if self._whole else float(self._changed > 0)


def _explained(wanted: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """How far rounding to the nearest value may move each weight; all weights of a row have one scale, by which the
    largest of them becomes the largest value of the format."""
    largest, size = wanted.abs().amax(-1, keepdim=True), wanted.abs()
    if args.type == QuantizationType.FLOAT:  # three bits behind the leading one, as far down as 2^-6, then 2^-9 apart
        return size * (2**-4 + 2 * _BF16) + largest / torch.finfo(torch.float8_e4m3fn).max * 2**-10
    return largest / _steps(args.num_bits) / 2 * (1 + 2 * _BF16) + size * 2 * _BF16


def _steps(bits: int) -> float:
    """Steps of a symmetric integer format from zero to its largest value, as the library counts them."""
    return float((2**bits - 1) / 2)


def _largest_ratio(found: torch.Tensor, allowed: torch.Tensor) -> float:
    return float((found / allowed.clamp(min=torch.finfo(torch.float32).tiny)).amax())
