"""Models whose blocks are not all of one shape: the one class that loads what pruning wrote.

transformers has one number of heads and one feed-forward width for all blocks. Where pruning left every block alike and
config.json can say so, a checkpoint is a plain one. Where it did not, config.json has a key of ours::

    "planish_shapes": {"head_dim": 32, "heads": [12, 9, ...], "kv_heads": [12, 9, ...], "ffn": [1024, 768, ...]}

and the checkpoint loads with the class :func:`sliced` makes of transformers' own: the same modules under the same
names, built in these shapes. Plain ``from_pretrained`` refuses such a checkpoint, since its tensors do not fit::

    from planish.sliced import from_pretrained
    model = from_pretrained("pruned-checkpoint")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError
from planish.families import Parts, block_list, block_parts, family_of, inputs_of

__all__ = ["KEY", "Shape", "concrete", "express", "from_pretrained", "is_sliced", "read_shapes", "shapes_of", "sliced"]

KEY = "planish_shapes"
_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
_WIDTHS = ("attention_head_size", "head_dim", "head_size")
_SPANS = ("all_head_size", "split_size")


@dataclass(frozen=True)
class Shape:
    """Sizes of one block."""

    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


def shapes_of(model: Any) -> list[Shape]:
    """The shape of each block, by its weights."""
    return [Shape(part.heads, part.kv_heads, part.head_dim, part.ffn) for part in block_parts(model)]


def is_sliced(config: dict[str, Any]) -> bool:
    """Whether a config.json describes blocks of different shapes."""
    return config.get(KEY) is not None


def read_shapes(found: Any, layers: int) -> list[Shape]:
    """The shapes that ``planish_shapes`` of a config says.

    Raises:
        CheckpointError: it is not one list of ``layers`` positive integers for each of heads, kv_heads and ffn.
    """
    fix = "write the checkpoint again with planish compress"
    try:
        head_dim = found["head_dim"]
        lists = [found[name] for name in ("heads", "kv_heads", "ffn")]
        shapes = [Shape(heads, kv, head_dim, ffn) for heads, kv, ffn in zip(*lists, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        expected = f"head_dim, heads, kv_heads and ffn in {KEY} of config.json"
        raise CheckpointError(expected, f"{type(error).__name__}: {error}"[:120], fix) from None
    numbers = [number for one in shapes for number in (one.heads, one.kv_heads, one.head_dim, one.ffn)]
    if not all(type(number) is int and 0 < number < 2**31 for number in numbers) or len(shapes) != layers:
        got = f"{len(shapes)} blocks of {sorted(set(map(repr, numbers)))[:4]}"
        raise CheckpointError(f"{layers} blocks of positive integers in {KEY} of config.json", got, fix)
    if any(one.heads % one.kv_heads for one in shapes):
        raise CheckpointError(f"heads that share key/value heads evenly in {KEY}", str(lists[:2])[:120], fix)
    return shapes


@cache
def sliced(cls: type) -> Any:
    """``cls`` (a model class of transformers), built in the shapes ``config.planish_shapes`` says."""

    class Sliced(cls):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            shapes = read_shapes(getattr(config, KEY, None), config.num_hidden_layers)
            with _divisible(config):
                super().__init__(config, *args, **kwargs)
            for block, shape in zip(block_parts(self), shapes, strict=True):
                _rebuild(block, shape)

    Sliced.__name__ = Sliced.__qualname__ = cls.__name__
    return Sliced


def concrete(loader: Any, config: Any) -> Any:
    """The class an ``Auto...`` class of transformers takes for ``config``; a sliced one where it says shapes.

    Raises:
        CheckpointError: transformers has none.
    """
    mapping = loader._model_mapping
    if type(config) not in mapping:
        raise CheckpointError(f"a {loader.__name__} for {config.model_type}", "none", "choose another --task")
    found = mapping[type(config)]
    cls = found[0] if isinstance(found, tuple) else found
    return sliced(cls) if getattr(config, KEY, None) is not None else cls


def from_pretrained(checkpoint: str | Path, **options: Any) -> Any:
    """The model of a float checkpoint that ``planish compress`` wrote, blocks of any shape, in eval mode.

    ``options`` are those of transformers' ``from_pretrained``. Quantized checkpoints load with
    ``planish.compress.load``.

    Raises:
        CheckpointError: config.json names no class of transformers, or shapes that cannot be.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    names = config.architectures or [""]
    cls = getattr(transformers, names[0], None)
    if cls is None:
        raise CheckpointError("a model class of transformers in config.json", repr(names[0]), "check 'architectures'")
    kind = sliced(cls) if getattr(config, KEY, None) is not None else cls
    return kind.from_pretrained(checkpoint, config=config, **options).eval()


def express(model: Any) -> dict[str, Any]:
    """Entries of config.json that describe the shapes of ``model``; ``planish_shapes`` is None where others suffice."""
    shapes, family, config = shapes_of(model), family_of(model.config), model.config
    first = shapes[0]
    changes: dict[str, Any] = {family.layers_key: len(shapes), KEY: None}
    alike = all(shape == first for shape in shapes)
    width = _width(model)
    changes[family.width_key] = width
    plain_heads = family.head_dim or first.heads * first.head_dim == width
    if alike and plain_heads:
        changes |= {family.heads_key: first.heads, family.ffn_key: first.ffn}
        if hasattr(config, "num_key_value_heads"):
            changes["num_key_value_heads"] = first.kv_heads
        if family.head_dim:
            changes["head_dim"] = first.head_dim
        return changes
    changes[KEY] = {
        "head_dim": first.head_dim,
        "heads": [shape.heads for shape in shapes],
        "kv_heads": [shape.kv_heads for shape in shapes],
        "ffn": [shape.ffn for shape in shapes],
    }
    if not family.head_dim and first.head_dim * config.num_attention_heads != width and "head_dim" not in changes:
        changes["head_dim"] = first.head_dim  # rotary tables ask the config for it
    return changes


def _width(model: Any) -> int:
    """Channels of the residual stream, as the first block reads them."""
    part = block_parts(model)[0]
    return inputs_of(part.q if part.q is not None else part.qkv)


@contextlib.contextmanager
def _divisible(config: Any) -> Iterator[None]:
    """While open, one head: transformers wants a width that its heads divide, and every block is rebuilt anyway."""
    heads = config.num_attention_heads
    needed = config.hidden_size % heads != 0
    if needed:
        config.num_attention_heads = 1
    try:
        yield
    finally:
        if needed:
            config.num_attention_heads = heads


def _rebuild(block: Parts, shape: Shape) -> None:
    """Give a block's layers their shapes, empty, and tell its attention."""
    width, span, kv_span = inputs_of(block.up), shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if block.qkv is not None:
        _resize(block.qkv, 3 * span, width)
    for layer, rows in ((block.q, span), (block.k, kv_span), (block.v, kv_span)):
        if layer is not None:
            _resize(layer, rows, width)
    _resize(block.o, width, span)
    for layer in (block.up, block.gate):
        if layer is not None:
            _resize(layer, shape.ffn, width)
    _resize(block.down, width, shape.ffn)
    tell_heads(block.attention, shape)


def tell_heads(attention: Any, shape: Shape) -> None:
    """Set the head counts and widths an attention module keeps, under whatever names it has."""
    before = next((getattr(attention, name) for name in _WIDTHS if hasattr(attention, name)), shape.head_dim)
    values = dict.fromkeys(_COUNTS, shape.heads) | dict.fromkeys(_WIDTHS, shape.head_dim)
    values |= dict.fromkeys(_SPANS, shape.heads * shape.head_dim)
    values |= {"num_key_value_heads": shape.kv_heads, "num_key_value_groups": shape.heads // shape.kv_heads}
    for name, value in values.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
    if before != shape.head_dim and hasattr(attention, "scaling"):
        attention.scaling *= (before / shape.head_dim) ** 0.5


def _resize(layer: Any, rows: int, columns: int) -> None:
    """An empty weight ``[rows, columns]`` (Conv1D: transposed) and bias ``[rows]`` on the layer's device."""
    import torch

    shape = (columns, rows) if hasattr(layer, "nf") else (rows, columns)
    layer.weight = torch.nn.Parameter(layer.weight.new_empty(shape), requires_grad=layer.weight.requires_grad)
    if getattr(layer, "bias", None) is not None:
        layer.bias = torch.nn.Parameter(layer.bias.new_empty(rows), requires_grad=layer.bias.requires_grad)
    say_sizes(layer, rows, columns)


def say_sizes(layer: Any, rows: int, columns: int) -> None:
    """Set the sizes a Linear or Conv1D keeps beside its weight."""
    if hasattr(layer, "nf"):
        layer.nf, layer.nx = rows, columns
    else:
        layer.out_features, layer.in_features = rows, columns


def renumber(model: Any) -> None:
    """Tell each attention module which block it is in; caches are kept by that number."""
    for index, block in enumerate(block_list(model)):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010  type checkers forbid the assignment
