"""Read a checkpoint without torch, one tensor at a time.

A checkpoint is a Hugging Face directory: ``config.json`` and ``model.safetensors`` (or shards with an index). If
``config.json`` has a ``quantization_config`` in the compressed-tensors layout (docs/formats.md, section 1), linears and
embeddings come back as the integers, scales and zero points that are stored; nothing is rounded, nothing dequantized.

Source of the layout: compressed-tensors, ``compressors/pack_quantized`` and ``compressors/naive_quantized``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # also registers bfloat16 with numpy, which safetensors looks up by name
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from planish.errors import CheckpointError
from planish.export.layers import Activations, FloatLinear, QuantizedLinear

__all__ = ["CheckpointReader", "FloatLinear", "QuantizedLinear", "read_json", "unpack_int32"]

Array = NDArray[Any]

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
_LINEAR_CLASSES = ("Linear", "Conv1D")
_EMBEDDING_CLASSES = ("Embedding",)


@dataclass(frozen=True)
class _Scheme:
    """One group of ``quantization_config``, as far as weights go."""

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    symmetric: bool
    activations: Activations
    smoothed: bool


class CheckpointReader:
    """The tensors and settings of one checkpoint directory.

    ``config`` is the parsed ``config.json``. Files are opened for each read and closed after it, so that a reader holds
    no tensor and no mapped page.

    Raises ``CheckpointError`` if a file is missing, truncated, or laid out in a way not known here.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.config: dict[str, Any] = read_json(
            self.directory / "config.json", "a checkpoint directory with config.json"
        )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for path in _weight_files(self.directory):
            self._index(path)
        quantization = self.config.get("quantization_config")
        self.quantized = quantization is not None
        self._schemes, self._ignore = _schemes(quantization) if quantization else ((), ())

    def _index(self, path: Path) -> None:
        try:
            with safe_open(str(path), framework="np") as file:
                for name in file.keys():  # noqa: SIM118  the handle is not iterable itself
                    self._files[name] = path
                    self._shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "a whole safetensors file", f"{path}: {_one_line(error)}", "copy or download the checkpoint again"
            ) from error

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        self._require(name)
        return self._shapes[name]

    def tensor(self, name: str) -> Array:
        """One tensor in the dtype it is stored in (bfloat16 as ``ml_dtypes.bfloat16``), read from disk now."""
        path = self._require(name)
        try:
            with safe_open(str(path), framework="np") as file:
                if file.get_slice(name).get_dtype() == "F8_E4M3":  # a type numpy has no name for
                    return _float8(path, name)
                tensor: Array = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"tensor {name} in {path}", _one_line(error), "copy or download the checkpoint again"
            ) from error
        return tensor

    def float32(self, name: str) -> Array:
        """One tensor as float32; float16 and bfloat16 are widened exactly."""
        tensor = self.tensor(name)
        if tensor.dtype == np.float32:
            return tensor
        return tensor.astype(np.float32)

    def linear(self, module: str, *, transposed: bool = False) -> FloatLinear | QuantizedLinear:
        """The linear layer ``module``, ``[out, in]``.

        ``transposed`` is for GPT-2's Conv1D, whose float weight lies as ``[in, out]``: a transposed view comes back.
        Quantized weights always lie as ``[out, in]``.
        """
        bias_name = f"{module}.bias"
        bias = self.float32(bias_name) if bias_name in self else None
        return self._weight(module, _LINEAR_CLASSES, bias, transposed=transposed)

    def embedding(self, module: str) -> FloatLinear | QuantizedLinear:
        """The embedding table ``module``, ``[rows, width]``."""
        return self._weight(module, _EMBEDDING_CLASSES, None, transposed=False)

    def is_quantized(self, module: str) -> bool:
        """Whether ``module`` is stored as integers."""
        return f"{module}.weight_packed" in self or f"{module}.weight_scale" in self

    def _weight(
        self, module: str, classes: tuple[str, ...], bias: Array | None, *, transposed: bool
    ) -> FloatLinear | QuantizedLinear:
        scheme = self._scheme(module, classes)
        if not self.is_quantized(module):
            if scheme is not None and self._shapes.get(f"{module}.weight") is not None:
                raise CheckpointError(
                    f"{module} as integers with scales, as quantization_config says",
                    "a float weight",
                    "compress the model again, or list the module under quantization_config.ignore",
                )
            weight = self.float32(f"{module}.weight")
            return FloatLinear(weight.T if transposed else weight, bias)
        if scheme is None:
            raise CheckpointError(
                f"a group of quantization_config that targets {module}",
                f"integers of {module} and no such group",
                "compress the model again",
            )
        return self._integers(module, scheme, bias)

    def _integers(self, module: str, scheme: _Scheme, bias: Array | None) -> QuantizedLinear:
        packed = f"{module}.weight_packed" in self
        if packed:
            rows, width = (int(n) for n in self.tensor(f"{module}.weight_shape"))
            values = unpack_int32(self.tensor(f"{module}.weight_packed"), scheme.bits, width)
        else:
            values = self.tensor(f"{module}.weight")
            rows, width = values.shape
        scale = self.float32(f"{module}.weight_scale").reshape(-1, self.shape(f"{module}.weight_scale")[-1])
        if scale.shape[0] == 1 and rows > 1:  # one scale for the whole tensor
            scale = np.repeat(scale, rows, axis=0)
        zero_point = None
        if f"{module}.weight_zero_point" in self and not scheme.symmetric:
            stored = self.tensor(f"{module}.weight_zero_point")
            zero_point = unpack_int32(stored.T, scheme.bits, rows).T if packed else stored.reshape(scale.shape)
        groups = width // scheme.group_size if scheme.group_size else 1
        zero_shape = zero_point.shape if zero_point is not None else scale.shape
        if values.shape != (rows, width) or scale.shape != (rows, groups) or zero_shape != scale.shape:
            raise CheckpointError(
                f"{module} as [{rows}, {width}] integers with [{rows}, {groups}] scales",
                f"integers {list(values.shape)}, scales {list(scale.shape)}, zero points {list(zero_shape)}",
                "compress the model again",
            )
        zero_point = None if zero_point is None else np.ascontiguousarray(zero_point.astype(np.int8))
        return QuantizedLinear(
            values if values.dtype == ml_dtypes.float8_e4m3fn else values.astype(np.int8, copy=False),
            scale,
            zero_point,
            scheme.bits,
            scheme.group_size,
            scheme.activations,
            bias,
            self._input_scale(module) if scheme.activations == "static" else None,
            self._pre_quant_scale(module, width) if scheme.smoothed else None,
        )

    def _input_scale(self, module: str) -> float:
        scale = self.float32(f"{module}.input_scale").reshape(-1)
        if scale.size != 1 or not 0 < scale[0] < np.inf:
            raise CheckpointError(f"one positive {module}.input_scale", str(scale)[:80], "compress the model again")
        return float(scale[0])

    def _pre_quant_scale(self, module: str, width: int) -> Array:
        factor = self.float32(f"{module}.pre_quant_scale")
        if factor.shape != (width,) or not bool(np.all((factor > 0) & (factor < np.inf))):
            raise CheckpointError(
                f"{width} positive numbers as {module}.pre_quant_scale", str(factor)[:80], "compress the model again"
            )
        return factor

    def _scheme(self, module: str, classes: tuple[str, ...]) -> _Scheme | None:
        """The group that applies: exact name before regex before class, as compressed-tensors decides."""
        if any(_matches(module, classes, pattern) for pattern in self._ignore):
            return None
        named = [(target, scheme) for scheme in self._schemes for target in scheme.targets]
        for rank in (lambda t: t == module, lambda t: _matches(module, (), t), lambda t: t in classes):
            for target, scheme in named:
                if rank(target):
                    return scheme
        return None

    def _require(self, name: str) -> Path:
        if name not in self._files:
            raise CheckpointError(
                f"tensor {name} in {self.directory}",
                f"{len(self._files)} tensors without it",
                "check that the checkpoint is whole and of the architecture its config.json names",
            )
        return self._files[name]


def unpack_int32(packed: Array, bits: int, width: int) -> Array:
    """Signed integers int8 ``[rows, width]`` out of int32 words ``[rows, words]``, the first value in the lowest bits.

    Stored values carry an offset of ``2**(bits-1)``. ``bits`` is 1, 2, 4 or 8. Raises ``CheckpointError`` if the words
    are too few.

    >>> unpack_int32(np.array([[0x9870]], np.int32), 4, 4)
    array([[-8, -1,  0,  1]], dtype=int8)
    """
    if bits not in (1, 2, 4, 8) or packed.dtype != np.int32 or packed.shape[1] * 32 < width * bits:
        raise CheckpointError(
            f"int32 words holding {width} values of 1, 2, 4 or 8 bits",
            f"{packed.dtype} {list(packed.shape)} of {bits} bits",
            "compress the model again",
        )
    octets = np.ascontiguousarray(packed).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        values = octets
    else:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values = ((octets[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(octets), -1)
    signed: Array = (values[:, :width] - np.uint8(1 << (bits - 1))).view(np.int8)
    return signed


def _weight_files(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            f"model.safetensors or model.safetensors.index.json in {directory}",
            "neither",
            "give a checkpoint saved with save_pretrained(..., safe_serialization=True)",
        )
    shards = read_json(index, "a shard index").get("weight_map")
    if not shards or not isinstance(shards, dict):
        raise CheckpointError(f"a weight_map in {index}", repr(shards)[:80], "copy the checkpoint again")
    paths = sorted({directory / str(name) for name in shards.values()})
    for path in paths:
        if path.parent != directory or not path.is_file():
            raise CheckpointError(f"shard {path.name} in {directory}", "no such file", "copy the checkpoint again")
    return paths


def _float8(path: Path, name: str) -> Array:
    """An E4M3 tensor out of a file whose header safetensors has checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + length + start)
        array: Array = np.frombuffer(file.read(stop - start), ml_dtypes.float8_e4m3fn).reshape(entry["shape"])
    return array


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """A JSON object; raises ``CheckpointError`` if ``path`` holds none, ``expected`` says what was wanted."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(expected, f"{path}: {error.strerror}", "give the directory of a checkpoint") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError("valid JSON", f"{path}: {_one_line(error)}", "copy the checkpoint again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError("a JSON object", f"{path}: {type(parsed).__name__}", "copy the checkpoint again")
    return parsed


def _schemes(config: Any) -> tuple[tuple[_Scheme, ...], tuple[str, ...]]:
    method = config.get("quant_method") if isinstance(config, dict) else config
    if method != "compressed-tensors":
        raise CheckpointError(
            "quantization_config.quant_method compressed-tensors",
            repr(method)[:80],
            "compress the original checkpoint with `planish compress`",
        )
    try:
        groups = (config.get("config_groups") or {}).items()
        return tuple(_scheme(n, g, str(config.get("format"))) for n, g in groups), tuple(config.get("ignore") or ())
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "groups with targets and weights in quantization_config.config_groups",
            f"{type(error).__name__}: {_one_line(error)}",
            "compress the original checkpoint with `planish compress`",
        ) from error


def _scheme(name: str, group: dict[str, Any], top_format: str) -> _Scheme:
    weights = group.get("weights") or {}
    form = group.get("format") or top_format
    strategy = weights.get("strategy")
    inputs, smoothed = group.get("input_activations"), bool(group.get("pre_quant_scale"))
    problem = (
        form not in _FORMATS
        or weights.get("type", "int") not in (("float",) if form == "float-quantized" else ("int",))
        or strategy not in ("channel", "group", "tensor")
        or (inputs is not None and not _known_inputs(inputs, form))
        or (smoothed and (inputs is None or inputs.get("dynamic", False)))
    )
    if problem:
        raise CheckpointError(
            f"group {name}: {' | '.join(_FORMATS)}, int weights by channel or group, or float8 by tensor, 8-bit inputs",
            f"format {form}, weights {weights.get('type')} by {strategy}, inputs {inputs}",
            "compress the original checkpoint with `planish compress`",
        )
    activations: Activations = None
    if inputs is not None:
        activations = "token" if inputs["strategy"] == "token" else "tensor" if inputs.get("dynamic") else "static"
    group_size = int(weights["group_size"]) if strategy == "group" else None
    symmetric = bool(weights.get("symmetric", True))
    return _Scheme(tuple(group["targets"]), int(weights["num_bits"]), group_size, symmetric, activations, smoothed)


def _known_inputs(inputs: dict[str, Any], form: str) -> bool:
    """Dynamic by token or tensor, or static with one scale a layer."""
    dynamic, strategy = inputs.get("dynamic", False), inputs.get("strategy")
    known = strategy in ("token", "tensor") if dynamic is True else strategy == "tensor" and dynamic is False
    kinds = ("float",) if form == "float-quantized" else ("int",)
    eight = inputs.get("num_bits") == 8 and inputs.get("symmetric", True) and inputs.get("type", "int") in kinds
    return known and eight and (form != "float-quantized" or dynamic is False)


def _matches(module: str, classes: tuple[str, ...], pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return pattern == module or pattern in classes


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
