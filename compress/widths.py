"""One check shared by the passes: groups must divide a layer's inputs."""

from __future__ import annotations

from planish.compress.walk import Layer
from planish.errors import RecipeError

__all__ = ["check_group"]


def check_group(layer: Layer, group_size: int | None, step: str) -> None:
    """Refuse a group size that does not divide the inputs of ``layer``.

    Raises:
        RecipeError: it does not; names the layer and the sizes that would.
    """
    inputs = layer.weight.shape[1]
    if group_size is None or inputs % group_size == 0:
        return
    fitting = [str(size) for size in (16, 32, 64, 128) if inputs % size == 0]
    fix = f"use one of {', '.join(fitting)}" if fitting else f"exclude {layer.name}"
    raise RecipeError(f"pass {step}: a group_size dividing the {inputs} inputs of {layer.name}", str(group_size), fix)
