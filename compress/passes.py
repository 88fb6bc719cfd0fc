"""The pass contract: a frozen dataclass of settings and one method; and the registry of passes.

A pass gets a :class:`Bench` (the model being compressed and what has been quantized so far) and a :class:`Context`
(data, progress, a folder to resume from) and returns a bench. ``in_place`` says whether it is the same one; :func:`run`
checks it.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from planish.compress.validation import explain
from planish.errors import PlanishError, RecipeError

if TYPE_CHECKING:
    from planish.compress.bench import Bench, Context
    from planish.compress.walk import Layer

__all__ = ["PASSES", "Pass", "build", "pass_names", "run"]

PASSES = {
    "distill": "planish.compress.distill:Distill",
    "drop-layers": "planish.compress.drop_layers:DropLayers",
    "fp8-linear": "planish.compress.fp8_linear:Fp8Linear",
    "int8-linear": "planish.compress.int8_linear:Int8Linear",
    "int8-embedding": "planish.compress.int8_embedding:Int8Embedding",
    "prune": "planish.compress.prune:Prune",
    "prune-width": "planish.compress.prune_width:PruneWidth",
    "sparsify": "planish.compress.sparsify:Sparsify",
    "trim-vocabulary": "planish.compress.trim_vocabulary:TrimVocabulary",
    "weight-only": "planish.compress.weight_only:WeightOnly",
}
"""Name in a recipe -> module and class, imported on demand."""


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """Settings every pass takes. ``include`` / ``exclude`` are glob patterns on module names.

    Without ``include`` a pass takes the layers it is made for (see its ``roles``); with it, exactly the layers that
    match. ``exclude`` removes from either.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: ClassVar[str]
    roles: ClassVar[frozenset[str]]
    kinds: ClassVar[frozenset[str]]
    in_place: ClassVar[bool]
    judged: ClassVar[bool] = False
    """Whether quality is worth measuring before and after: the pass cuts or trains, it does not only quantize."""

    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)

    @abstractmethod
    def apply(self, bench: Bench, context: Context) -> Bench:
        """Quantize (or prune, or distill) ``bench`` and return it."""

    def settings(self) -> dict[str, Any]:
        """All settings as plain JSON values."""
        return asdict(self)

    def select(self, bench: Bench) -> list[Layer]:
        """The layers this pass works on, in the order of the model.

        Raises:
            RecipeError: a pattern matches no layer, or nothing is left to do.
        """
        candidates = [layer for layer in bench.layers if layer.kind in self.kinds]
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(layer.name, pattern) for layer in bench.layers):
                names = ", ".join(layer.name for layer in candidates[:3])
                raise RecipeError(
                    f"pattern {pattern!r} of pass {self.name} to match a layer", "no match", f"e.g. {names}"
                )
        chosen = [layer for layer in candidates if self._wants(layer)]
        if not chosen:
            raise RecipeError(f"pass {self.name} to have a layer to work on", "none", "loosen include / exclude")
        for layer in chosen:
            if layer.name in bench.stored:
                other = "quantized by an earlier pass"
                raise RecipeError(f"{layer.name} to be quantized once", other, f"exclude it from pass {self.name}")
        return chosen

    def _excluded(self, layer: Layer) -> bool:
        return any(fnmatchcase(layer.name, pattern) for pattern in self.exclude)

    def _wants(self, layer: Layer) -> bool:
        if self._excluded(layer):
            return False
        if self.include:
            return any(fnmatchcase(layer.name, pattern) for pattern in self.include)
        return layer.role in self.roles


def pass_names() -> list[str]:
    """Names of all passes, sorted."""
    return sorted(PASSES)


def build(name: str, settings: dict[str, Any], where: str) -> Pass:
    """Make the pass ``name`` from recipe settings; ``where`` names the place in messages.

    Raises:
        RecipeError: an unknown key or an impossible value.
    """
    module, _, attribute = PASSES[name].partition(":")
    cls: type[Pass] = getattr(importlib.import_module(module), attribute)
    try:
        return TypeAdapter(cls).validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        known = [item.name for item in fields(cls)]
        raise RecipeError(*explain(error, where, {(): known})) from None


def run(step: Pass, bench: Bench, context: Context) -> Bench:
    """Apply one pass and hold it to its word on working in place.

    Raises:
        PlanishError: the pass lies about ``in_place`` (a bug of the pass).
    """
    before = bench.versions()
    result = step.apply(bench, context)
    if step.in_place and result is not bench:
        raise PlanishError(f"pass {step.name} to work in place", "another bench", "report this bug")
    if not step.in_place and (result is bench or bench.versions() != before):
        raise PlanishError(f"pass {step.name} to leave its input alone", "a changed input", "report this bug")
    return result
