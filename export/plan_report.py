"""What a TensorRT-RTX plan will execute, read from the text inside it: fused attentions, INT8 and weight-only GEMMs.

The text is undocumented. It is read for the version it was looked at and tested with, and for no other: it serves as a
diagnostic, and nothing depends on it. A plan holds one program for each optimization profile, and one for each group of
operations that is fused when the engine is loaded (``runtime-fusion``); a program lists its tensors with their types,
then its calls.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["VERSION", "Call", "Program", "programs", "read_report", "report"]

VERSION = "1.7.1"
"""Of TensorRT-RTX: the text of others may look otherwise."""
PROGRAM = re.compile(
    rb"header \{\n  version = \d+\n(?P<header>.*?)\n\}\ndescriptors \{\n(?P<tensors>.*?)\n\}\nmain \{", re.DOTALL
)
TENSOR = re.compile(rb'^  (?:sub_)?tensor=\{.*? name="([^"]+)".* type=(\w+) \}', re.MULTILINE)
CALL = re.compile(rb'^  (\w+)=\{ name="?([^" ]+)"?(.*?)(?=^  \w+=\{ name=|^ label |^\}|\Z)', re.MULTILINE | re.DOTALL)
INPUTS = re.compile(rb' input=\{((?:"[^"]*" )*)\}')
ATTENTION = re.compile(r"_mha_|fmha|^_mha")
LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
INTEGERS = ("int8", "int4", "fp8_e4m3")


@dataclass(frozen=True)
class Call:
    """One call (such as ``fully_connected``), the types of its inputs, and the ONNX nodes it stands for."""

    kind: str
    name: str
    types: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """Calls in order. ``fused``: built when the engine is loaded, from the calls listed."""

    fused: bool
    types: dict[str, str] = field(repr=False)
    calls: tuple[Call, ...]


def programs(plan: bytes | mmap.mmap) -> Iterator[Program]:
    """The programs in a plan, in order; none where the text is not as it was in the version looked at."""
    for found in PROGRAM.finditer(plan):
        end = plan.find(b"\n}", found.end())
        body = plan[found.end() : end if end >= 0 else len(plan)]
        types = {name.decode("latin1"): kind.decode() for name, kind in TENSOR.findall(found["tensors"])}
        yield Program(b"runtime-fusion" in found["header"], types, tuple(calls(body, types)))


def calls(body: bytes, types: dict[str, str]) -> Iterator[Call]:
    """The calls of one program."""
    for kind, name, rest in CALL.findall(body):
        inputs = INPUTS.search(rest)
        names = re.findall(r'"([^"]*)"', inputs[1].decode("latin1")) if inputs else []
        layers = tuple(layer.decode("latin1") for layer in LAYER.findall(rest))
        yield Call(kind.decode(), name.decode("latin1"), tuple(types.get(one, "?") for one in names), layers)


def report(
    plan: bytes | mmap.mmap, module: str, version: str, profiles: Sequence[str], products: Collection[str]
) -> dict[str, Any] | None:
    """Counts for each of the optimization ``profiles``; None for any other module or version.

    ``products`` are the names of the graph's MatMul nodes. ``gemms`` counts products by the types they multiply, such
    as ``int8 x int8``, or ``half x int8`` for weight-only ones; ``merged_qkv`` counts those that compute three at once.
    """
    if module != "tensorrt_rtx" or not version.startswith(f"{VERSION}."):
        return None
    groups: list[list[Program]] = []
    for program in programs(plan):
        if not program.fused:
            groups.append([program])
        elif groups:
            groups[-1].append(program)
    if len(groups) != len(profiles):
        return None
    return {name: count(group, products) for name, group in zip(profiles, groups, strict=True)}


def read_report(
    path: Path, module: str, version: str, profiles: Sequence[str], products: Collection[str]
) -> dict[str, Any] | None:
    """The :func:`report` of a plan on the disk, which is not read into memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        return report(plan, module, version, profiles, products)


def count(group: list[Program], products: Collection[str]) -> dict[str, Any]:
    """What one optimization profile executes."""
    kinds: Counter[str] = Counter()
    merged = 0
    for program in group:
        for call in program.calls:
            if call.kind == "fully_connected":
                kinds[gemm_kind(program, call)] += 1
                merged += len(set(call.layers) & set(products)) == 3
    attentions = sum(
        call.kind in ("function", "runtime_fusion") and bool(ATTENTION.search(call.name))
        for program in group
        for call in program.calls
    )
    return {"fused_attentions": attentions, "gemms": dict(sorted(kinds.items())), "merged_qkv": merged}


def gemm_kind(program: Program, call: Call) -> str:
    """The types a matrix product multiplies: ``int8 x int8``, ``half x int4`` (weight-only), ``half x half``.

    A weight-only product is one whose program first turns what is stored into floats.
    """
    left, right = (*call.types, "?", "?")[:2]
    if left not in INTEGERS and right not in INTEGERS and program.fused:
        stored = {kind for one in program.calls if one.kind != call.kind for kind in one.types}
        right = next((kind for kind in INTEGERS if kind in stored), right)
    return f"{left} x {right}"
