"""Writes a shared library without code (ELF, 64 bit, little endian), and without a compiler.

TensorRT's Python bindings are linked against libraries that no package index carries. A library of the right name with
the few functions they refer to is enough to import them and look at every class, attribute and enumeration; calling
one of the functions would end the process.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MACHINES", "write_empty_library"]

MACHINES = {"x86_64": 62, "aarch64": 183}
"""``e_machine`` of the ELF header, by ``platform.machine()``."""
PAGE, START = 0x1000, 64 + 2 * 56  # contents begin after the file header and two program headers
DT_NULL, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 0, 4, 5, 6, 10, 11, 14
PT_LOAD, PT_DYNAMIC, READ_WRITE = 1, 2, 6
GLOBAL_FUNCTION = 0x12


def write_empty_library(path: Path, machine: str, functions: Sequence[str] = ()) -> Path:
    """A library with the SONAME of its file that defines ``functions``; sources: elf(5), System V ABI chapter 5."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (path.name, *functions))
    strings += b"\0" * (-len(strings) % 8)
    symbols = bytes(24)  # every table starts with one undefined symbol
    for name in functions:
        offset = strings.index(b"\0" + name.encode() + b"\0") + 1
        symbols += struct.pack("<IBBHQQ", offset, GLOBAL_FUNCTION, 0, 1, START, 0)
    table = hash_table(len(functions) + 1)
    at_symbols = START + len(strings)
    at_table = at_symbols + len(symbols)
    at_dynamic = at_table + len(table)
    entries = [
        (DT_SONAME, 1),
        (DT_HASH, at_table),
        (DT_STRTAB, START),
        (DT_SYMTAB, at_symbols),
        (DT_STRSZ, len(strings)),
        (DT_SYMENT, 24),
        (DT_NULL, 0),
    ]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    size = at_dynamic + len(dynamic)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, MACHINES[machine], 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", PT_LOAD, READ_WRITE, 0, 0, 0, size, size, PAGE)
    found = struct.pack("<IIQQQQQQ", PT_DYNAMIC, READ_WRITE, at_dynamic, at_dynamic, 0, len(dynamic), len(dynamic), 8)
    path.write_bytes(header + load + found + strings + symbols + table + dynamic)
    return path


def hash_table(symbols: int) -> bytes:
    """A table of one bucket, whose chain runs through all symbols but the first."""
    chain = [0, *(number + 1 for number in range(1, symbols))]
    if symbols > 1:
        chain[-1] = 0
    words = [1, symbols, 1 if symbols > 1 else 0, *chain]
    words += [0] * (len(words) % 2)
    return struct.pack(f"<{len(words)}I", *words)
