"""Two marker operators, so that a traced graph still says what is a linear layer and what is attention.

Traced plainly, a linear layer becomes a MatMul with an anonymous, transposed and folded weight, and attention a dozen
nodes that differ from model to model. Within :func:`tracing` each is one node of domain ``planish`` whose weight keeps
its name, and a dialect then spells it its own way (``lower_ort.py``):

- ``planish::Linear(x [..., in], weight [out, in], bias [out] or absent) -> [..., out]``
- ``planish::Attention(query, key, value [batch, heads, sequence, width], bias [batch, 1, 1, sequence]; scale) ->
  [batch, sequence, heads, width]``, softmax of ``scale * query key^T + bias``, times value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

__all__ = ["DOMAIN", "tracing"]

DOMAIN = "planish"


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    batch, heads, length, width = query.shape
    marked = torch.onnx.ops.symbolic(
        f"{DOMAIN}::Attention",
        (query, key, value, attention_mask),
        {"scale": float(width**-0.5 if scaling is None else scaling)},
        dtype=query.dtype,
        shape=(batch, length, heads, width),
        version=1,
    )
    return marked, None


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    inputs = (x, weight) if module.bias is None else (x, weight, module.bias)
    shape = (*x.shape[:-1], weight.shape[0])
    marked: torch.Tensor = torch.onnx.ops.symbolic(f"{DOMAIN}::Linear", inputs, dtype=x.dtype, shape=shape, version=1)
    return marked


@contextmanager
def tracing(model: Any) -> Iterator[None]:
    """Within, ``torch.onnx.export`` of ``model`` writes the markers.

    Models that do not ask the attention interface of transformers (MPNet adds a relative position bias) keep their
    attention as plain nodes. Linears stay float: the checkpoint's integers are put in after the trace.
    """
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    before = model.config._attn_implementation
    AttentionInterface.register(DOMAIN, _attention)
    for module in linears:
        setattr(module, "forward", _linear.__get__(module))  # noqa: B010  type checkers forbid the assignment
    if model._supports_attention_backend:
        model.config._attn_implementation = DOMAIN
    try:
        yield
    finally:
        model.config._attn_implementation = before
        for module in linears:
            del module.forward
