"""Fill the directory of a bundle; the manifest comes last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.errors import BundleError, CheckpointError
from planish.export.genai import write_genai_config
from planish.export.golden import Arrays, write_golden
from planish.export.graph import Built
from planish.export.quiet import quiet
from planish.runtime import Manifest, write_manifest
from planish.runtime.text import load_tokenizer, special_tokens

__all__ = ["check_tokenizer", "write_bundle"]

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
"""Copied as the checkpoint has them."""

TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""Where the runtime looks for special tokens."""


def check_tokenizer(checkpoint: Path) -> None:
    """Raise ``CheckpointError`` if the runtime could not read the tokenizer's files, which bundles hold as they are."""
    files = {name: checkpoint / name for name in ("tokenizer.json", *TOKEN_FILES)}
    found = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    try:
        special_tokens(*(found.get(name) for name in TOKEN_FILES))
        if "tokenizer.json" in found:
            load_tokenizer(found["tokenizer.json"])
    except BundleError as error:
        raise CheckpointError(
            f"{error.expected} in {checkpoint}",
            error.got,
            "copy the tokenizer's files from the original checkpoint again",
        ) from error


def write_bundle(
    folder: Path,
    checkpoint: Path,
    graphs: Sequence[Built],
    fields: Mapping[str, Any],
    golden: tuple[Arrays, Arrays],
    config: Mapping[str, Any],
) -> Manifest:
    """Fills ``folder``: the ``graphs`` are moved there, side files are copied, and the manifest comes last."""
    for built in graphs:
        target = folder / "onnx" / built.dialect
        target.mkdir(parents=True)
        for name in built.files:
            os.replace(built.folder / name, target / name)
    for scratch in {built.folder.parent for built in graphs}:
        shutil.rmtree(scratch)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    _write_text(folder / "config.json", json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    _copy_side_files(checkpoint, folder)
    write_golden(folder, *golden)
    ort = next((built for built in graphs if built.dialect == "ort"), None)
    if ort is not None and ort.generation is not None:
        write_genai_config(folder, ort, plain)
    _write_text(folder / "README.md", _readme(fields, graphs))
    dialects = {built.dialect: _dialect(built) for built in graphs}
    return write_manifest(folder, {**fields, "dialects": dialects, "generation": graphs[-1].generation})


def _dialect(built: Built) -> dict[str, Any]:
    return {
        "path": f"onnx/{built.dialect}/{built.files[0]}",
        "opset": built.opset,
        "inputs": [spec.to_json() for spec in built.inputs],
        "outputs": [spec.to_json() for spec in built.outputs],
        "precision": built.precision,
        "session": built.session,
        "disabled_optimizers": list(built.disabled_optimizers),
        "audit": built.audit,
    }


def _copy_side_files(checkpoint: Path, folder: Path) -> None:
    for name in SIDE_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        _convert_tokenizer(checkpoint, folder)


def _convert_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Old checkpoints have a vocabulary without ``tokenizer.json``; transformers makes one.

    A checkpoint without any tokenizer still gives a bundle that takes ids.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=True, local_files_only=True)
            backend = getattr(tokenizer, "backend_tokenizer", None)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError):
        return
    if backend is not None:
        _write_text(folder / "tokenizer.json", backend.to_str(pretty=True))


def _readme(fields: Mapping[str, Any], graphs: Sequence[Built]) -> str:
    words = "; ".join(
        f"{built.dialect}: " + ", ".join(f"{key} {value}" for key, value in sorted(built.precision.items()))
        for built in graphs
    )
    engine = "    planish build .           a TensorRT engine for this device; ONNX Runtime serves until it is there\n"
    if all(built.dialect != "qdq" for built in graphs):
        engine = ""
    return f"""# {fields["source"]["name"]}, planished

A {fields["architecture"]} for {fields["task"]}, exported for {fields["profile"]} ({words}).

    planish verify .          every file against manifest.json
    planish run . "a text"    answers
    planish bench .           latency on this machine
{engine}
In Python: `planish.runtime.load(".")` (needs onnxruntime, tokenizers and numpy only). `manifest.json` says where the
model came from, what was done to it and how far the graph may be from the checkpoint; `golden/` holds inputs and the
checkpoint's answers. Do not edit a file: the runtime refuses a bundle that is not as it was written.
"""


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
