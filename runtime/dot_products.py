"""Does this processor add products of 8-bit numbers without losing any, and what to tell ONNX Runtime if not.

ONNX Runtime multiplies unsigned activations by signed weights. With VNNI four products are added in 32 bits. Without
it, on x86, VPMADDUBSW adds two of them in 16 bits and *saturates*: 2 * 255 * 127 is far above 32767, and what is cut
off is lost (Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2, PMADDUBSW). What helps, by dialect:

``ort``: the session entry ``session.x64quantprecision`` turns such weights into unsigned ones when the graph is loaded,
whose kernels widen to 16 bits before they multiply: exact, and a little slower. It is one of ONNX Runtime's extended
graph optimizations and does nothing below that level (onnxruntime_session_options_config_keys.h).

``qdq``: that entry breaks graphs in which two nodes read one weight, or a quantized weight is not fused into a product
(ONNX Runtime 1.31: "Attempt to replace the existing tensor", "x_zero_point must be null or 1D"). So quantizers are not
fused at all there (``session.disable_quant_qdq``), and products are of floats that hold the integers' values.

Weights in -64..63 need none of this, for 2 * 255 * 64 fits: such graphs say so in their manifest.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from planish.profiles.host import read_cpu

__all__ = ["EXACT", "NARROW", "adds_exactly", "exact_options"]

EXACT: Mapping[str, tuple[str, str]] = {
    "ort": ("session.x64quantprecision", "1"),
    "qdq": ("session.disable_quant_qdq", "1"),
}
"""Dialect -> the session entry with which ONNX Runtime computes its integer layers exactly on every x86 processor."""

NARROW = ("linear_range", "-64..63")
"""Key and word of ``precision`` in the manifest where no linear with 8-bit inputs has a weight beyond that range."""

INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni"})
"""As Linux names them in ``/proc/cpuinfo``; each adds in 32 bits, and processors with AMX have the first, too."""
ARM = ("aarch64", "arm64")


@lru_cache
def adds_exactly(root: Path = Path("/")) -> bool:
    """Whether products of u8 and s8 are added without saturation here; False where that cannot be seen.

    ``root`` is where ``proc/cpuinfo`` is looked for. Arm's instructions add exactly, with and without dot products.
    """
    seen = read_cpu(root)
    if seen is None:  # no Linux, or no /proc
        return platform.machine().lower() in ARM
    return seen.arch in ARM or not INSTRUCTIONS.isdisjoint(seen.features)


def exact_options(dialect: str, precision: Mapping[str, str]) -> dict[str, str]:
    """Session entries a graph needs on this host to be computed exactly; ``precision`` is the manifest's.

    None for graphs without 8-bit integer inputs, for weights that cannot saturate, and on processors that do not.

    >>> exact_options("ort", {"linear": "int4", "activations": "fp32"})
    {}
    """
    key, narrow = NARROW
    if "int8" not in precision.get("activations", "") or precision.get(key) == narrow or adds_exactly():
        return {}
    return dict([EXACT[dialect]])
