"""Passes of a ``qdq`` decoder as a TensorRT engine, its cache in device memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from planish.errors import RequestError
from planish.runtime.engine_info import Range
from planish.runtime.plan_engine import PlanEngine

__all__ = ["PlanSteps"]


class PlanSteps:
    """One engine. A pass takes as many positions as the optimization profile that takes most of them."""

    def __init__(self, engine: PlanEngine) -> None:
        self.memory = engine.cache_memory()
        self._engine = engine
        plan = engine.open()
        self._profiles = plan.profiles
        self.max_rows: int | None = engine.max_rows
        self.cache_dtype = plan.ports["past_key_values.0.key"].dtype.name

    def take(self, rows: int, past: int, wanted: int, *, every: bool) -> int:
        """How many positions the next pass takes. Raises RequestError naming the engine's limit."""
        found = max((self._fit(ranges, rows, past, wanted, every) for ranges in self._profiles), default=0)
        if found < 1:
            raise self._refusal(rows, past)
        return found

    def __call__(
        self,
        inputs: Mapping[str, NDArray[Any]],
        shape: tuple[int, ...],
        past: Mapping[str, int],
        present: Mapping[str, int],
    ) -> NDArray[Any]:
        held = {**past, **present}
        return self._engine.run_on(inputs, held, dict.fromkeys(past, shape))["logits"]

    def _fit(self, ranges: Mapping[str, Range], rows: int, past: int, wanted: int, every: bool) -> int:
        """The most positions of one profile, 0 if none."""
        total = ranges["attention_mask"].max[1] - past
        most = min(wanted, ranges["input_ids"].max[1], ranges["position_ids"].max[1], total)
        if every:
            most = min(most, ranges["logits_index"].max[1])
        shapes = _shapes(rows, past, most, most if every else 1)
        key = ranges["past_key_values.0.key"]
        past_fits = key.holds((rows, key.min[1], past, key.min[3]))
        fits = past_fits and all(ranges[name].holds(shape) for name, shape in shapes.items())
        return max(most, 0) if fits else 0

    def _refusal(self, rows: int, past: int) -> RequestError:
        limit = max(ranges["attention_mask"].max[1] for ranges in self._profiles)
        fix = f"or build for more: planish build BUNDLE --profile {self._engine.info.profile}"
        if rows > (self.max_rows or rows):
            return RequestError(f"at most {self.max_rows} rows, the engine's limit", f"{rows}", f"pass fewer, {fix}")
        if past + 1 > limit:
            got = f"{past + 1}"
            return RequestError(
                f"prompt and new tokens of at most {limit}, the engine's limit", got, f"shorten them, {fix}"
            )
        return self._engine.open().outside(
            {**_shapes(rows, past, 1, 1), "past_key_values.0.key": self._past(rows, past)}
        )

    def _past(self, rows: int, past: int) -> tuple[int, ...]:
        key = self._profiles[0]["past_key_values.0.key"]
        return (rows, key.min[1], past, key.min[3])


def _shapes(rows: int, past: int, new: int, kept: int) -> dict[str, tuple[int, ...]]:
    return {
        "input_ids": (rows, new),
        "position_ids": (rows, new),
        "attention_mask": (rows, past + new),
        "logits_index": (rows, kept),
    }
