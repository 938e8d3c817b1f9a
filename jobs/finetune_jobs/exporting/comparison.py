"""Whether exported files hold the tuned model.

Each tensor of the files is read back, its rounding undone as readers undo it, and compared with the tensor that it was
made of: unrounded ones must be the same in every bit, the others as near as ``rounding`` says. Questions do not show
everything: a model that has lost one of its layers may answer nearly as many of them.
"""

import json
import math
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils import is_match
from safetensors import safe_open
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.rounding import Change

_INDEX: Final = "model.safetensors.index.json"
_ONLY: Final = "model.safetensors"
_BLOCK: Final = 2**20
"""Weights that are compared at a time: their copies stay in a processor's cache."""
_NAMED: Final = 3
"""Faults that a message names."""
_SHAPE: Final = "weight_shape"
"""Where weights are packed: how many they are."""
_INPUT: Final = "input_scale"
"""Where activations have a scale that calibration has found: that scale."""


@dataclass(frozen=True)
class Compared:
    """What a comparison has found to be right."""

    tensors: int
    """Tensors of the tuned model that were compared."""
    rounded: int
    """How many of them are rounded; the others are the same in every bit."""
    most: float
    """How much the worst of the rounded ones uses of what its format allows; 0: none is rounded."""

    def facts(self) -> dict[str, str]:
        """For the manifest."""
        rounded = {"roundingUsed": f"{self.most:.2f}"} if self.rounded else {}
        return {"comparedTensors": str(self.tensors), **rounded}


def require_same(out: Path, tuned: Any) -> Compared:
    """Compare the files in ``out`` with the tuned model in 16 bits, a block of a tensor at a time.

    Raises StageError (ExportMismatch), which names tensors that are not in the files, not in the model or not the same.
    """
    rounding, tensors = _Rounding.read(out, tuned), _tensors(tuned)
    with ExitStack() as opened:
        files = _Files.open(out, opened)
        faults = [*files.misplaced(), *_unequal_names(out, tuned, files, tensors, rounding)]
        findings = [
            _compare(name, tensor, files, rounding)
            for name, tensor in tensors.items()
            if rounding.parts(name, tensor) <= files.names()
        ]
    faults += [each.fault for each in findings if each.fault]
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise StageError(
            Reason.EXPORT_MISMATCH,
            f"The exported files do not hold the tuned model: {'; '.join(faults[:_NAMED])}{more}.",
        )
    return Compared(
        len(findings),
        sum(each.rounded for each in findings),
        max((each.used for each in findings), default=0.0),
    )


@dataclass(frozen=True)
class _Files:
    """The tensors of a checkpoint, which are read from the disk as they are asked for."""

    where: Mapping[str, tuple[str, Any]]
    """By a tensor's name: the file that holds it, and the same file open."""
    listed: Mapping[str, str]
    """By a tensor's name: the file in which readers look for it."""

    @classmethod
    def open(cls, out: Path, opened: ExitStack) -> "_Files":
        where = {}
        for path in sorted(out.glob("*.safetensors")):
            file = opened.enter_context(safe_open(path, "pt"))
            where.update(dict.fromkeys(file.keys(), (path.name, file)))
        index = out / _INDEX
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
        return cls(where, listed or dict.fromkeys(where, _ONLY))

    def names(self) -> Set[str]:
        return self.where.keys()

    def misplaced(self) -> Iterator[str]:
        """Tensors that readers do not find where they look for them."""
        for name in sorted(self.listed.keys() | self.where.keys()):
            there, sought = self.where.get(name, ("no file", None))[0], self.listed.get(name, "no file")
            if there != sought:
                yield f"{name} is in {there}, and readers look for it in {sought}"

    def shape(self, name: str) -> list[int]:
        return list(self.where[name][1].get_slice(name).get_shape())

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Some rows of a tensor; all of it, if it has none."""
        part = self.where[name][1].get_slice(name)
        return part[begin:end] if part.get_shape() else self.where[name][1].get_tensor(name)


def _tensors(tuned: Any) -> Mapping[str, torch.Tensor]:
    """Those that the files should hold, by the names of the original checkpoint, which transformers writes and which
    may not be those of the model's modules. Tensors that are one have several names."""
    dropped = tuned._keys_to_ignore_on_save or ()
    state = {name: each for name, each in tuned.state_dict().items() if name not in dropped}
    named: Mapping[str, torch.Tensor] = revert_weight_conversion(tuned, state)
    return named


@dataclass(frozen=True)
class _Rounding:
    """How the linear layers of a checkpoint are rounded."""

    scheme: Any = None
    """The library's QuantizationScheme; None: they are not rounded."""
    compressor: Any = None
    """The library's, which knows the form of the files."""
    layers: Set[Any] = frozenset()
    """Places of the weights that readers expect to be rounded."""

    @classmethod
    def read(cls, out: Path, tuned: Any) -> "_Rounding":
        """From config.json, as readers do; all formats of ``exporting.quantize`` have one scheme for all layers. Raises
        StageError (ExportMismatch) for a form in which nothing is rounded."""
        said = json.loads((out / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        if not said:
            return cls()
        config = QuantizationConfig.model_validate(
            {name: value for name, value in said.items() if name in QuantizationConfig.model_fields}
        )
        (scheme,) = config.config_groups.values()
        compressor = BaseCompressor.get_value_from_registry(config.format)
        if "weight_scale" not in compressor.compression_param_names(scheme):  # "dense": it knows no layer of the model
            raise StageError(
                Reason.EXPORT_MISMATCH,
                f"The exported files are in form {config.format!r}, whose weights have no scales: no layer of this "
                "model can be quantized.",
            )
        layers = frozenset(
            _place(module.weight)
            for name, module in tuned.named_modules()
            if isinstance(module, torch.nn.Linear) and is_match(name, module, scheme.targets, config.ignore or ())
        )
        return cls(scheme, compressor, layers)

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether readers expect this tensor to be rounded."""
        return _place(tensor) in self.layers

    def parts(self, name: str, tensor: torch.Tensor) -> set[str]:
        """Names of the tensors that one of the model becomes in the files."""
        if not self.covers(tensor):
            return {name}
        layer, activations = name.removesuffix(".weight"), self.scheme.input_activations
        parts = {*self.compressor.compression_param_names(self.scheme)}
        if activations is not None and activations.dynamic is False:
            parts.add(_INPUT)
        return {f"{layer}.{each}" for each in parts}

    def shapes(self, tensor: torch.Tensor) -> Mapping[str, list[int]]:
        """Of what stands for a rounded tensor."""
        (rows, columns), args = tensor.shape, self.scheme.weights
        return {
            "weight": [rows, columns],
            "weight_packed": [rows, math.ceil(columns * args.num_bits / 32)],
            "weight_scale": [rows, columns // (args.group_size or columns)],
            _SHAPE: [2],
            _INPUT: [1],
        }


def _place(tensor: torch.Tensor) -> Any:
    """The same for tensors that are one."""
    return tensor.data_ptr(), tuple(tensor.shape)


def _unequal_names(
    out: Path, tuned: Any, files: _Files, tensors: Mapping[str, torch.Tensor], rounding: _Rounding
) -> Iterator[str]:
    """Tensors that are in the files or in the model only. Where config.json ties the output layer to the embeddings,
    readers need but one of the two, and may look at no other."""
    embeddings = _place(tuned.get_input_embeddings().weight)
    tied = bool(AutoConfig.from_pretrained(out).get_text_config().tie_word_embeddings)
    if tied and _place(tuned.get_output_embeddings().weight) != embeddings:
        yield "config.json has tie_word_embeddings true, but the model's output layer is not its embeddings"
    parts = {name: rounding.parts(name, each) for name, each in tensors.items()}
    written = {_place(each) for name, each in tensors.items() if parts[name] <= files.names()}
    if not tied:
        written -= {embeddings}
    needed = set[str]().union(*(parts[name] for name, each in tensors.items() if _place(each) not in written))
    for name in sorted(needed - files.names()):
        yield f"{name} is missing"
    for name in sorted(files.names() - set[str]().union(*parts.values())):
        yield f"{name} is none of the model's"


@dataclass(frozen=True)
class _Finding:
    """Of one tensor."""

    fault: str = ""
    """Empty: it is right."""
    rounded: bool = False
    used: float = 0.0
    """How much it uses of what its format allows."""


def _compare(name: str, tensor: torch.Tensor, files: _Files, rounding: _Rounding) -> _Finding:
    if rounding.covers(tensor):
        return _rounded(name, tensor, files, rounding)
    return _Finding(_unequal(name, tensor, files))


def _unequal(name: str, tensor: torch.Tensor, files: _Files) -> str:
    """What is wrong with a tensor that should be the same in every bit."""
    if (shape := files.shape(name)) != list(tensor.shape):
        return f"{name} has shape {shape}, the model's {list(tensor.shape)}"
    other = 0
    for begin, end in _blocks(tensor):
        found = files.read(name, begin, end)
        if found.dtype is not tensor.dtype:
            return f"{name} has type {found.dtype}, the model's {tensor.dtype}"
        if not bool(torch.isfinite(found).all()):
            return f"{name} has values that are no finite numbers"
        other += int((found != _rows(tensor, begin, end)).sum())
    return f"{name} differs from the model's in {other:,} of {tensor.numel():,} values" if other else ""


def _rounded(name: str, tensor: torch.Tensor, files: _Files, rounding: _Rounding) -> _Finding:
    """Undo a tensor's rounding, and measure how far it is then from what it was rounded from."""
    parts = {each.rpartition(".")[2]: each for each in rounding.parts(name, tensor)}
    if fault := _misshapen(tensor, files, rounding, parts):
        return _Finding(fault)
    change = Change(rounding.scheme.weights)
    for begin, end in _blocks(tensor):
        local = {part: files.read(full, begin, end) for part, full in parts.items() if part not in (_SHAPE, _INPUT)}
        local["weight_scale"] = local["weight_scale"].float()  # exact: readers round the products
        found = rounding.compressor.decompress(local | {_SHAPE: (end - begin, tensor.shape[1])}, rounding.scheme)
        if not bool(torch.isfinite(found["weight"]).all()):
            return _Finding(f"{name} has values that are no finite numbers")
        change.add(_rows(tensor, begin, end).float(), found["weight"], local["weight_scale"])
    fault = change.fault()
    return _Finding(fault and f"{name} {fault}", rounded=True, used=change.used())


def _misshapen(tensor: torch.Tensor, files: _Files, rounding: _Rounding, parts: Mapping[str, str]) -> str:
    """What is wrong with the shapes of what stands for a rounded tensor."""
    wanted = rounding.shapes(tensor)
    for part, name in parts.items():
        if (shape := files.shape(name)) != wanted[part]:
            return f"{name} has shape {shape}, the model's {wanted[part]}"
    if _SHAPE in parts and (said := files.read(parts[_SHAPE]).tolist()) != wanted["weight"]:
        return f"{parts[_SHAPE]} is {said}, the model's weights have shape {wanted['weight']}"
    if _INPUT in parts and not 0 < (scale := float(files.read(parts[_INPUT]))) < math.inf:
        return f"{parts[_INPUT]} is {scale}, which scales nothing"
    return ""


def _blocks(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Rows from and to, of a few weights at a time."""
    rows = len(tensor) if tensor.ndim else 1
    each = max(1, _BLOCK * rows // max(1, tensor.numel()))
    return ((begin, min(begin + each, rows)) for begin in range(0, rows, each))


def _rows(tensor: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    return (tensor[begin:end] if tensor.ndim else tensor).detach().cpu()
