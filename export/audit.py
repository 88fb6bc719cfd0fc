"""The precision audit: where a graph's multiply-adds are done, what stands in their way, and whether INT8 can pay.

Counted at the opt shapes of a profile: an encoder once, a decoder as prefill (empty cache) and as decode (one token).
Only matrix products are counted (MatMul, Gemm, attention); products whose shapes cannot be told are named, not guessed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from planish.export.audit_islands import fp32_regions, idle_pairs, is_float_cast, residual_adds
from planish.export.audit_work import Rates, Work, rates_of, work_of
from planish.export.graph_products import Products
from planish.export.lint_graph import LintGraph, name_of
from planish.export.lint_rule import Subject
from planish.profiles.schema import Profile, Shapes

__all__ = ["Audit", "Phase", "audit", "sizes_at"]

DEFAULT = Shapes(batch=(1, 8, 32), sequence=(1, 128, 512), past=(0, 256, 1024))
KINDS = (
    "int8",
    "fp8",
    "fp4",
    "int4",
    "int4-weight",
    "int8-weight",
    "fp8-weight",
    "fp16",
    "bf16",
    "fp32",
    "fp64",
    "unknown",
)
BATCHED = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids", "logits_index"})
WORTH = 1.1  # a smaller gain drowns in what is not counted


@dataclass(frozen=True)
class Phase:
    """One set of shapes: multiply-adds by precision, and estimated gains over float16 (1.9: 1.9 times faster)."""

    name: str
    at: str
    macs: dict[str, int]
    unknown: tuple[str, ...]
    gain: float | None
    possible: float | None

    @property
    def total(self) -> int:
        return sum(self.macs.values())

    @property
    def shares(self) -> dict[str, float]:
        """Each precision's part of the multiply-adds."""
        return {kind: count / self.total for kind, count in self.macs.items()} if self.total else {}

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "multiply_adds": self.total,
            "shares": {kind: round(share, 4) for kind, share in self.shares.items()},
            "unknown": list(self.unknown),
            "estimated_gain": None if self.gain is None else round(self.gain, 2),
            "estimated_gain_all_int8": None if self.possible is None else round(self.possible, 2),
        }

    def line(self) -> str:
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in self.shares.items()) or "none that could be counted"
        unknown = f"; {len(self.unknown)} products not counted ({self.unknown[0]}, ...)" if self.unknown else ""
        return f"multiply-adds, {self.name} at {self.at}: {self.total / 1e9:.3g} G: {shares}{unknown}"


@dataclass(frozen=True)
class Audit:
    """What the audit of one graph found."""

    phases: tuple[Phase, ...]
    attentions: int
    fusible: int
    casts: int
    idle_pairs: tuple[str, ...]
    fp32_regions: tuple[tuple[str, ...], ...]
    residuals: int
    unquantized_residuals: int
    int8: str

    def to_json(self) -> dict[str, Any]:
        return {
            "phases": {phase.name: phase.to_json() for phase in self.phases},
            "attentions": {"total": self.attentions, "fusible": self.fusible},
            "float_casts": self.casts,
            "islands": {"idle_pairs": list(self.idle_pairs), "fp32_regions": [list(one) for one in self.fp32_regions]},
            "residuals": {"total": self.residuals, "unquantized": self.unquantized_residuals},
            "int8": self.int8,
        }

    def lines(self) -> list[str]:
        shapes = Counter(" ".join(sorted(set(one))) for one in self.fp32_regions)
        regions = "; ".join(f"{count} of {ops}" for ops, count in shapes.most_common(3))
        return [
            *(phase.line() for phase in self.phases),
            f"attention: {self.fusible} of {self.attentions} can be fused",
            f"casts between floats: {self.casts}",
            f"islands: {len(self.idle_pairs)} quantize-dequantize pairs that feed no 8-bit product; "
            f"{len(self.fp32_regions)} float32 regions" + (f" ({regions})" if regions else ""),
            f"residuals: {self.unquantized_residuals} of {self.residuals} unquantized",
            self.int8,
        ]


def sizes_at(
    facts: LintGraph, profile: Profile | None, max_length: int | None
) -> list[dict[str, tuple[int | None, ...]]]:
    """Input shapes of each phase: [the encoder's], or [prefill, decode]."""
    return [bound(facts, *sizes) for _, sizes in phases_of(facts, profile, max_length)]


def phases_of(
    facts: LintGraph, profile: Profile | None, max_length: int | None
) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and (batch, new tokens, tokens in the cache) of each phase."""
    shapes = profile.shapes if profile is not None else DEFAULT
    longest = max_length or shapes.sequence[1]
    batch, tokens = shapes.batch[1], min(shapes.sequence[1], longest)
    past = shapes.past[1] if shapes.past is not None else (DEFAULT.past or (0, 0, 0))[1]
    if not any((value.name or "").startswith("past_key_values") for value in facts.model.graph.inputs):
        return [("encoder", (batch, tokens, 0))]
    return [("prefill", (batch, tokens, 0)), ("decode", (batch, 1, past))]


def bound(facts: LintGraph, batch: int, tokens: int, past: int) -> dict[str, tuple[int | None, ...]]:
    """A concrete shape for every input; an axis nobody names stays unknown."""
    named = {"batch": batch, "sequence": tokens, "past": past, "total": past + tokens, "kept": 1}
    return {
        value.name or "": tuple(axis_size(value, at, axis, named) for at, axis in enumerate(value.shape or ()))
        for value in facts.model.graph.inputs
    }


def axis_size(value: ir.Value, at: int, axis: Any, named: dict[str, int]) -> int | None:
    """The size of one axis: written, named in docs/formats.md, or told by the input's name and the axis' place."""
    if isinstance(axis, int):
        return axis
    if str(axis) in named:
        return named[str(axis)]
    name = value.name or ""
    if at == 0 and (name in BATCHED or name.startswith("past_key_values")):
        return named["batch"]
    if at == 1 and name in BATCHED:
        return named[{"attention_mask": "total", "logits_index": "kept"}.get(name, "sequence")]
    return named["past"] if at == 2 and name.startswith("past_key_values") else None


def audit(path: Path, subject: Subject, max_length: int | None = None) -> Audit:
    """Audit the graph of ``subject`` at the opt shapes of its profile."""
    rates = rates_of(subject.profile)
    phases = []
    for name, sizes in phases_of(subject.facts, subject.profile, max_length):
        facts = LintGraph(subject.facts.model, path, bound(subject.facts, *sizes))
        phases.append(phase_of(name, sizes, Products(facts), rates))
    products, facts = subject.products, subject.facts
    residuals = list(residual_adds(facts))
    return Audit(
        tuple(phases),
        len(products.attentions),
        sum(one.fusible for one in products.attentions),
        sum(is_float_cast(facts, node) for node in facts.named("Cast")),
        tuple(name_of(node) for node in idle_pairs(subject)),
        tuple(tuple(node.op_type for node in region) for region in fp32_regions(facts)),
        len(residuals),
        sum(not quantized for quantized in residuals),
        sentence(phases, subject.profile, rates),
    )


def phase_of(name: str, sizes: tuple[int, int, int], products: Products, rates: Rates | None) -> Phase:
    works, unknown = work_of(products)
    macs = {kind: sum(one.macs for one in works if one.kind == kind) for kind in KINDS}
    batch, tokens, past = sizes
    at = f"batch {batch}, {tokens} tokens" + (f", {past} in the cache" if name != "encoder" else "")
    return Phase(name, at, {kind: count for kind, count in macs.items() if count}, tuple(unknown), *gains(works, rates))


def gains(works: list[Work], rates: Rates | None) -> tuple[float | None, float | None]:
    """How much faster than all in float16 the products can be: as they are, and with every weight's product in INT8."""
    if rates is None or not works:
        return None, None
    half = sum(rates.seconds(one, "fp16") for one in works)
    now = sum(rates.seconds(one, one.kind) for one in works)
    best = sum(rates.seconds(one, "int8" if one.constant else one.kind) for one in works)
    return half / now, half / best


def sentence(phases: list[Phase], profile: Profile | None, rates: Rates | None) -> str:
    """Whether INT8 can pay, in one sentence."""
    if profile is None:
        return "INT8: whether it can pay depends on the device; give a profile"
    if rates is None:
        return f"INT8: {profile.name} does not say its GPU's INT8 throughput and bandwidth, so nothing can be said"
    said = "; ".join(verdict(phase) for phase in phases)
    assumed = f" ({rates.assumed})" if rates.assumed else ""
    return f"INT8 on {profile.name}: {said}{assumed}; its products alone, by throughput and bandwidth, not measured"


def verdict(phase: Phase) -> str:
    """One phase's part of the sentence."""
    if phase.gain is None or phase.possible is None:
        return f"{phase.name}: nothing could be counted"
    share = phase.shares.get("int8", 0.0)
    if share == 0:
        can = "could pay" if phase.possible >= WORTH else "cannot pay"
        now = f" (as it is: {phase.gain:.2f})" if phase.gain >= WORTH else ""
        return f"{phase.name}: no product is INT8; it {can}, about {phase.possible:.2f} times float16{now}"
    can = "can pay" if phase.gain >= WORTH else "cannot pay"
    return f"{phase.name}: it {can}, {share:.0%} of the multiply-adds, about {phase.gain:.2f} times float16"
