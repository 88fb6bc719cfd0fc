"""Types and shapes of a graph's values when its inputs have given sizes.

A small forward pass over the operators that transformers are made of. It keeps integers as long as they are few, so it
follows shapes that are computed (``Shape -> Gather -> Concat -> Reshape``). What it does not know stays unknown; the
audit counts that and says so. Rules of shapes: the ONNX operator reference, opset 21 to 24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Known", "propagate"]

SMALL = 4096  # integers kept at most: shapes, ranges and slices, never weights
Shape = tuple[int | None, ...]
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
TRUTH = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"})
COUNTS = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})


@dataclass(frozen=True)
class Known:
    """What is known of a value: element type, shape (None: not even the rank), and content of few integers."""

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    value: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Call:
    """A node with what is known of its inputs."""

    node: ir.Node
    inputs: Sequence[Known]

    def attr(self, name: str, default: Any = None) -> Any:
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def shape(self, index: int) -> Shape | None:
        return self.inputs[index].shape if index < len(self.inputs) else None

    def ints(self, index: int, name: str | None = None) -> list[int] | None:
        """Integers given as an input or, in older opsets, as the attribute ``name``."""
        if name is not None and name in self.node.attributes:
            return [int(item) for item in np.atleast_1d(self.attr(name))]
        value = self.inputs[index].value if index < len(self.inputs) else None
        return None if value is None else [int(item) for item in value.reshape(-1)]


def propagate(graph: ir.Graph, sizes: Mapping[str, Shape]) -> dict[ir.Value, Known]:
    """What is known of every value of ``graph`` when its inputs have the shapes ``sizes``."""
    known: dict[ir.Value, Known] = {}
    for value in graph.inputs:
        known[value] = Known(value.dtype, sizes.get(value.name or "", declared(value)))
    for value in graph.initializers.values():
        known[value] = constant(value.const_value, value.dtype)
    for node in graph:
        call = Call(node, [known.get(value, Known()) if value is not None else Known() for value in node.inputs])
        for index, output in enumerate(node.outputs):
            found = output_of(call, index)
            shape = found.shape if found.shape is not None else declared(output)
            known[output] = Known(found.dtype or output.dtype, shape, found.value)
    return known


def declared(value: ir.Value) -> Shape | None:
    """The shape written beside a value, its symbols unknown."""
    return None if value.shape is None else tuple(axis if isinstance(axis, int) else None for axis in value.shape)


def constant(tensor: ir.TensorProtocol | None, dtype: ir.DataType | None = None) -> Known:
    """A tensor that is there: integers are read if they are few."""
    if tensor is None:
        return Known(dtype)
    shape = tuple(int(axis) for axis in tensor.shape)
    wanted = tensor.dtype in (INT64, ir.DataType.INT32, BOOL) and tensor.size <= SMALL
    return Known(tensor.dtype, shape, tensor.numpy() if wanted else None)


def output_of(call: Call, index: int) -> Known:
    """What is known of one output of a node."""
    op = call.node.op_type
    if op == "Constant":
        return constant_of(call)
    try:
        value = computed(call) if index == 0 else None
        if value is not None:
            return Known(dtype_of(call, index), value.shape, value)
        rule = SHAPES.get(op, same if call.node.domain == "" and op in SAME else unknown)
        return Known(dtype_of(call, index), rule(call) if op in MANY or index == 0 else None)
    except (IndexError, TypeError, ValueError, ZeroDivisionError):  # a malformed node: the parser says what is wrong
        return Known(dtype_of(call, index))


def constant_of(call: Call) -> Known:
    if "value" in call.node.attributes:
        return constant(call.attr("value"))
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64)):
        if name in call.node.attributes:
            found = np.array(call.attr(name), dtype)
            return Known(INT64, found.shape, found)
    floats = call.attr("value_floats", call.attr("value_float"))
    return Known(ir.DataType.FLOAT, np.shape(floats) if floats is not None else None)


def dtype_of(call: Call, index: int) -> ir.DataType | None:
    """The element type of an output."""
    op, first = call.node.op_type, call.inputs[0].dtype if call.inputs else None
    if op in TRUTH:
        return BOOL
    if op in COUNTS or (op == "TopK" and index == 1):
        return INT64
    if op == "Cast":
        return ir.DataType(call.attr("to"))
    if op in ("CastLike", "Where") and len(call.inputs) > 1:
        return call.inputs[1].dtype
    if op == "ConstantOfShape":
        return call.attr("value").dtype if "value" in call.node.attributes else ir.DataType.FLOAT
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return quantizer_dtype(call)
    if op == "DynamicQuantizeLinear":
        return ir.DataType.FLOAT if index == 1 else ir.DataType.UINT8
    if op in ("MatMulInteger", "ConvInteger"):
        return ir.DataType.INT32
    return first


def quantizer_dtype(call: Call) -> ir.DataType | None:
    """ONNX: a QuantizeLinear takes its zero point's type, else ``output_dtype``, else uint8."""
    given = call.attr("output_dtype", 0)
    if call.node.op_type == "DequantizeLinear":
        return ir.DataType(given) if given else call.inputs[1].dtype
    zero = call.inputs[2].dtype if len(call.inputs) > 2 else None
    return zero or (ir.DataType(given) if given else ir.DataType.UINT8)


# --- integers that are computed -------------------------------------------------------------------------------------


def computed(call: Call) -> npt.NDArray[Any] | None:
    """The integers a node makes of known ones."""
    op = call.node.op_type
    if op == "Shape":
        shape = call.shape(0)
        if shape is None:
            return None
        part = shape[call.attr("start", 0) : call.attr("end", len(shape))]
        return None if any(axis is None for axis in part) else np.array(part, np.int64)
    if op not in VALUES or not call.inputs:
        return None
    values = [one.value for one, given in zip(call.inputs, call.node.inputs, strict=True) if given is not None]
    if any(value is None for value in values):
        return None
    made = np.asarray(VALUES[op](call, *values))
    return made if made.size <= SMALL and made.dtype.kind in "iub" else None


def sliced(call: Call, data: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    index: list[slice] = [slice(None)] * data.ndim
    for at, axis in enumerate(range(len(starts)) if axes is None else axes):
        index[int(axis)] = slice(int(starts[at]), int(ends[at]), 1 if steps is None else int(steps[at]))
    return data[tuple(index)]


def unsqueezed(call: Call, data: Any, axes: Any = None) -> Any:
    return np.expand_dims(data, tuple(call.ints(1, "axes") or ()))


def squeezed(call: Call, data: Any, axes: Any = None) -> Any:
    chosen = call.ints(1, "axes")
    return np.squeeze(data, None if chosen is None else tuple(chosen))


def cast_integers(call: Call, data: Any) -> Any:
    return data.astype(ir.DataType(call.attr("to")).numpy())


def divided(call: Call, left: Any, right: Any) -> Any:
    return np.trunc(left / right).astype(np.int64)


VALUES: dict[str, Callable[..., Any]] = {
    "Add": lambda call, a, b: a + b,
    "And": lambda call, a, b: a & b,
    "Cast": cast_integers,
    "Concat": lambda call, *parts: np.concatenate(parts, call.attr("axis")),
    "Div": divided,
    "Equal": lambda call, a, b: a == b,
    "Gather": lambda call, a, at: np.take(a, at, axis=call.attr("axis", 0)),
    "Greater": lambda call, a, b: a > b,
    "Identity": lambda call, a: a,
    "Less": lambda call, a, b: a < b,
    "Max": lambda call, *parts: reduce(np.maximum, parts),
    "Min": lambda call, *parts: reduce(np.minimum, parts),
    "Mod": lambda call, a, b: np.mod(a, b),
    "Mul": lambda call, a, b: a * b,
    "Neg": lambda call, a: -a,
    "Not": lambda call, a: ~a,
    "Range": lambda call, start, stop, step: np.arange(int(start), int(stop), int(step)),
    "ReduceProd": lambda call, a, *axes: np.prod(a, keepdims=bool(call.attr("keepdims", 1))),
    "Reshape": lambda call, a, to: a.reshape(to),
    "Slice": sliced,
    "Squeeze": squeezed,
    "Sub": lambda call, a, b: a - b,
    "Unsqueeze": unsqueezed,
    "Where": lambda call, at, a, b: np.where(at, a, b),
}

# --- shapes ---------------------------------------------------------------------------------------------------------


def unknown(call: Call) -> Shape | None:
    return None


def same(call: Call) -> Shape | None:
    return call.shape(0)


def broadcast(call: Call) -> Shape | None:
    return broadcast_shapes([call.shape(index) for index in range(len(call.inputs)) if call.node.inputs[index]])


def broadcast_shapes(shapes: Sequence[Shape | None]) -> Shape | None:
    """Numpy's rule, an unknown axis staying unknown unless the other decides it."""
    given = [shape for shape in shapes if shape is not None]
    if len(given) < len(shapes) or not given:
        return None
    rank = max(map(len, given))
    padded = [(1,) * (rank - len(shape)) + shape for shape in given]
    return tuple(wider(axes) for axes in zip(*padded, strict=True))


def wider(axes: Sequence[int | None]) -> int | None:
    sizes = {axis for axis in axes if axis != 1}
    real = sizes - {None}
    if not sizes:
        return 1
    return real.pop() if len(real) == 1 else None


def product_shape(call: Call) -> Shape | None:
    left, right = call.shape(0), call.shape(1)
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    stack = broadcast_shapes([left[:-2], right[:-2]])
    return None if stack is None else (*stack, left[-2], right[-1])


def gemm_shape(call: Call) -> Shape | None:
    left, right = call.shape(0), call.shape(1)
    if left is None or right is None:
        return None
    return (left[1 if call.attr("transA", 0) else 0], right[0 if call.attr("transB", 0) else 1])


def transposed(call: Call) -> Shape | None:
    shape = call.shape(0)
    order = call.attr("perm")
    return None if shape is None else tuple(shape[axis] for axis in (order or range(len(shape) - 1, -1, -1)))


def reshaped(call: Call) -> Shape | None:
    shape, wanted = call.shape(0), call.ints(1)
    if wanted is None:
        rank = call.shape(1)
        return (None,) * rank[0] if rank and rank[0] is not None else None
    made: list[int | None] = [
        (shape[at] if shape is not None else None) if size == 0 and not call.attr("allowzero", 0) else size
        for at, size in enumerate(wanted)
    ]
    if -1 in made:
        rest = [size for size in made if size != -1]
        whole = shape is not None and None not in shape and None not in rest
        made[made.index(-1)] = volume(shape) // max(volume(rest), 1) if whole else None
    return tuple(made)


def volume(shape: Any) -> int:
    """The product of sizes."""
    return int(np.prod([int(axis) for axis in shape], dtype=np.int64))


def gathered(call: Call) -> Shape | None:
    shape, at = call.shape(0), call.shape(1)
    if shape is None or at is None:
        return None
    axis = call.attr("axis", 0) % len(shape)
    return (*shape[:axis], *at, *shape[axis + 1 :])


def gathered_points(call: Call) -> Shape | None:
    """GatherND without batch axes."""
    shape, at = call.shape(0), call.shape(1)
    if shape is None or not at or at[-1] is None or call.attr("batch_dims", 0):
        return None
    return (*at[:-1], *shape[at[-1] :])


def joined(call: Call) -> Shape | None:
    shapes = [call.shape(index) for index in range(len(call.inputs))]
    if any(shape is None for shape in shapes):
        return None
    known: list[Shape] = [shape for shape in shapes if shape is not None]
    axis = call.attr("axis") % len(known[0])
    along = [shape[axis] for shape in known]
    total = None if None in along else sum(size for size in along if size is not None)
    return (*known[0][:axis], total, *known[0][axis + 1 :])


def with_axes(call: Call) -> Shape | None:
    shape, axes = call.shape(0), call.ints(1, "axes")
    if shape is None or axes is None:
        return None
    made: list[int | None] = list(shape)
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        made.insert(axis, 1)
    return tuple(made)


def without_axes(call: Call) -> Shape | None:
    shape, axes = call.shape(0), call.ints(1, "axes")
    if shape is None:
        return None
    gone = {axis % len(shape) for axis in axes} if axes else {at for at, size in enumerate(shape) if size == 1}
    return tuple(size for at, size in enumerate(shape) if at not in gone)


def reduced(call: Call) -> Shape | None:
    shape, axes = call.shape(0), call.ints(1, "axes")
    if shape is None:
        return None
    over = {axis % len(shape) for axis in axes} if axes else set(range(len(shape)))
    kept = bool(call.attr("keepdims", 1))
    return tuple(1 if at in over else size for at, size in enumerate(shape) if kept or at not in over)


def cut(call: Call) -> Shape | None:
    shape = call.shape(0)
    starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
    axes, steps = call.ints(3, "axes"), call.ints(4)
    if shape is None:
        return None
    if starts is None or ends is None or (axes is None and len(call.inputs) > 3 and call.node.inputs[3] is not None):
        return (None,) * len(shape)
    made: list[int | None] = list(shape)
    for at, axis in enumerate(range(len(starts)) if axes is None else axes):
        size = made[axis]
        step = 1 if steps is None else steps[at]
        made[axis] = None if size is None else len(range(size)[slice(starts[at], ends[at], step)])
    return tuple(made)


def expanded(call: Call) -> Shape | None:
    wanted = call.ints(1)
    return None if wanted is None else broadcast_shapes([call.shape(0), tuple(wanted)])


def filled(call: Call) -> Shape | None:
    wanted = call.ints(0)
    return None if wanted is None else tuple(wanted)


def split(call: Call) -> Shape | None:
    """The shape of every part; parts of unequal size leave the axis unknown."""
    shape, sizes = call.shape(0), call.ints(1, "split")
    if shape is None:
        return None
    axis = call.attr("axis", 0) % len(shape)
    size, parts = shape[axis], len(call.node.outputs)
    each = sizes[0] if sizes and len(set(sizes)) == 1 else None
    if not sizes and size is not None and size % parts == 0:
        each = size // parts
    return (*shape[:axis], each, *shape[axis + 1 :])


def attended(call: Call) -> Shape | None:
    query, value = call.shape(0), call.shape(2)
    if query is None or value is None:
        return None
    if len(query) == 4:
        return (*query[:3], value[-1])
    heads, kv_heads, width = call.attr("q_num_heads"), call.attr("kv_num_heads"), value[-1]
    return (*query[:2], None if width is None or not heads or not kv_heads else width // kv_heads * heads)


def packed_product(call: Call) -> Shape | None:
    """com.microsoft's MatMulNBits, ``[.., K] -> [.., N]``."""
    shape = call.shape(0)
    return None if shape is None else (*shape[:-1], call.attr("N"))


ONE_SHAPE = """
    Abs Cast CastLike Ceil Clip Cos CumSum DequantizeLinear Dropout DynamicQuantizeLinear Erf Exp Floor Gelu Identity
    IsInf IsNaN LayerNormalization Log LogSoftmax Neg Not QuantizeLinear Reciprocal Relu RMSNormalization
    RotaryEmbedding Round Sigmoid Sign Sin Softmax Softplus Sqrt Swish Tanh TensorScatter Trilu
"""
SEVERAL_SHAPES = """
    Add And BitwiseAnd Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow PRelu Sub Sum Where Xor
"""
MANY = frozenset({"Split"})
SAME = frozenset(ONE_SHAPE.split())
BROADCAST = SEVERAL_SHAPES.split()
SHAPES: dict[str, Callable[[Call], Shape | None]] = {
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"), reduced),
    "Attention": attended,
    "BiasGelu": same,
    "Concat": joined,
    "ConstantOfShape": filled,
    "DynamicQuantizeMatMul": product_shape,
    "Expand": expanded,
    "FastGelu": same,
    "Gather": gathered,
    "GatherElements": lambda call: call.shape(1),
    "GatherND": gathered_points,
    "Gemm": gemm_shape,
    "MatMul": product_shape,
    "MatMulInteger": product_shape,
    "MatMulIntegerToFloat": product_shape,
    "MatMulNBits": packed_product,
    "QuickGelu": same,
    "Reshape": reshaped,
    "SkipLayerNormalization": same,
    "Slice": cut,
    "Split": split,
    "Squeeze": without_axes,
    "Transpose": transposed,
    "Unsqueeze": with_axes,
}
