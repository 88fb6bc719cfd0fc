"""The shape of a node's output from those of its inputs (ONNX operator reference, opset 21 to 24)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from planish.export.shape_call import Call, Shape

__all__ = ["shape_of"]


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
    """GatherND: an index over the axes behind the batch's chooses one part of the data."""
    shape, at = call.shape(0), call.shape(1)
    if shape is None or not at or at[-1] is None:
        return None
    return (*at[:-1], *shape[call.attr("batch_dims", 0) + at[-1] :])


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
    """The shape of one part; of sizes that are not given the last may be smaller."""
    shape, sizes = call.shape(0), call.ints(1, "split")
    if shape is None:
        return None
    axis = call.attr("axis", 0) % len(shape)
    size, parts = shape[axis], len(call.node.outputs)
    part = sizes[call.output] if sizes else None
    if not sizes and size is not None:
        most = -(-size // parts)
        part = most if call.output < parts - 1 else size - most * (parts - 1)
    return (*shape[:axis], part, *shape[axis + 1 :])


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


def shape_of(call: Call) -> Shape | None:
    """The shape of the output that is asked for; None if the operator is unknown, or its inputs are."""
    op = call.node.op_type
    if call.output and op not in MANY:
        return None
    return SHAPES.get(op, same if call.node.domain == "" and op in SAME else unknown)(call)
