"""What generation and scores need of a decoder, whatever runs it: a run is one batch with its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from planish.errors import BundleError
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.manifest import Manifest
from planish.runtime.sample import FloatArray, IntArray

if TYPE_CHECKING:
    from planish.runtime.engine import Engine
    from planish.runtime.plan_engine import PlanEngine

__all__ = ["Decoder", "OrtDecoder", "Run", "SplitDecoder", "decoder_of"]


class Run(Protocol):
    """One batch on its way: logits come as arrays that the next call may overwrite. Not for several threads."""

    lengths: IntArray
    """Real tokens of each row so far."""

    @property
    def rows(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Positions the cache has room for at present; it grows by itself."""

    def prefill(self, prompts: Sequence[IntArray]) -> FloatArray:
        """Logits ``[rows, vocab]`` after the last token of each prompt."""

    def step(self, tokens: Sequence[int]) -> FloatArray:
        """Append one token to each row; logits ``[rows, vocab]`` of what comes next."""

    def extend(self, ids: IntArray) -> FloatArray:
        """Append ``ids`` to the only row; logits ``[len(ids), vocab]`` of every position."""

    def drop(self, row: int) -> None:
        """Forget ``row``; the last row takes its place."""

    def close(self) -> None:
        """Free the cache; twice is fine."""


class Decoder(Protocol):
    """Starts runs; threads may share it."""

    @property
    def max_rows(self) -> int | None:
        """The most rows a run may have, None where only memory bounds it."""

    def start(self, rows: int, *, longest: int, limit: int) -> Run:
        """A run for ``rows`` prompts of up to ``longest`` tokens, of which none takes more than ``limit`` positions.

        Raises RequestError when the engine cannot take that many, HostError when there is no memory for it.
        """


@dataclass(frozen=True)
class OrtDecoder:
    """A session of the ``ort`` dialect: past and present are one buffer."""

    session: Any
    info: DecoderInfo
    vocab_size: int
    max_rows: int | None = None

    def start(self, rows: int, *, longest: int, limit: int) -> Run:
        from planish.runtime.cache import DecoderRun

        return DecoderRun(self.session, self.info, self.vocab_size, rows, longest=longest, limit=limit)


@dataclass(frozen=True)
class SplitDecoder:
    """A graph of the ``qdq`` dialect, in ONNX Runtime or as an engine: past and present are two buffers."""

    steps: Any  # planish.runtime.split_run.Steps
    info: DecoderInfo

    @property
    def max_rows(self) -> int | None:
        rows: int | None = self.steps.max_rows
        return rows

    def start(self, rows: int, *, longest: int, limit: int) -> Run:
        from planish.runtime.split_run import SplitRun

        return SplitRun(self.steps, self.info, rows, longest=longest, limit=limit)


def decoder_of(engine: Engine | PlanEngine, manifest: Manifest) -> Decoder:
    """The decoder of an open generation bundle. Raises BundleError when its manifest says nothing about generation."""
    info = manifest.generation
    if info is None:
        raise BundleError("the key 'generation' in the manifest", "null", "export the bundle again")
    if "logits_index" not in engine.input_names:
        return OrtDecoder(engine.session, info, manifest.vocab_size)
    from planish.runtime.engine import Engine

    if isinstance(engine, Engine):
        from planish.runtime.ort_steps import OrtSteps

        return SplitDecoder(OrtSteps(engine.session), info)
    from planish.runtime.plan_steps import PlanSteps

    return SplitDecoder(PlanSteps(engine), info)
