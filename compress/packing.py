"""Pack 4- and 8-bit integers into int32 words and back, in the order compressed-tensors (and vLLM) read them.

Element ``i`` of a row lies in word ``i * bits // 32``, lowest bits first, stored unsigned: the signed integer plus
``2**(bits - 1)``. A last word that is not full is filled with zero bits.
"""

from __future__ import annotations

import torch

__all__ = ["pack", "unpack"]


def pack(values: torch.Tensor, bits: int, dim: int = 1) -> torch.Tensor:
    """int8 ``[rows, columns]`` -> int32, ``dim`` shrunk to ``ceil(n * bits / 32)``."""
    if dim == 0:
        return pack(values.t(), bits).t().contiguous()
    per_word = 32 // bits
    unsigned = values.to(torch.int32) + (1 << (bits - 1))
    padded = torch.nn.functional.pad(unsigned, (0, -values.shape[1] % per_word))
    words = torch.zeros(values.shape[0], padded.shape[1] // per_word, dtype=torch.int32)
    for lane in range(per_word):
        words |= padded[:, lane::per_word] << (lane * bits)
    return words


def unpack(words: torch.Tensor, bits: int, count: int, dim: int = 1) -> torch.Tensor:
    """int32 words -> int8, ``dim`` grown to ``count``; the reverse of :func:`pack`."""
    if dim == 0:
        return unpack(words.t(), bits, count).t().contiguous()
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    unsigned = (words[:, :, None] >> shifts) & ((1 << bits) - 1)
    return (unsigned.flatten(1)[:, :count] - (1 << (bits - 1))).to(torch.int8)
