"""Small bundles to build engines in: a graph of `engine_graphs` in both places, so that they also serve."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from planish.runtime import Manifest, write_manifest
from tests.export import engine_graphs

__all__ = ["MAX_LENGTH", "make_bundle", "make_profile"]

MAX_LENGTH = 48
DTYPES = {1: "float32", 7: "int64", 10: "float16"}
PROFILE = """
schema: 1
name: {name}
description: "A card, for tests"
arch: x86-64
gpu:
  name: "A card"
  sm: "{sm}"
memory:
  bytes: {memory}
  kind: device
engines:
  - name: {engine}
    precisions: [int8, int8-weight, fp16, fp32]
    build: anywhere
dialects: [qdq, ort]
shapes:
  batch: {batch}
  sequence: {sequence}
  past: {past}
sources:
  gpu: "none: a test"
  memory: "none: a test"
  engines: "none: a test"
"""
SHAPES = {"batch": [1, 2, 4], "sequence": [1, 8, 16], "past": [0, 8, 24]}


def make_profile(folder: Path, **changes: Any) -> Path:
    """A profile for SM 8.9 with small shapes; ``changes`` replace its values."""
    values = {"name": "small", "sm": "8.9", "memory": 8_000_000_000, "engine": "tensorrt-rtx", **SHAPES, **changes}
    path = folder / f"{values['name']}.yaml"
    path.write_text(PROFILE.format(**values), encoding="utf-8")
    return path


def tensors(values: Any) -> list[dict[str, Any]]:
    """The manifest's words for a graph's inputs or outputs."""
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
        found.append({"name": value.name, "dtype": DTYPES[kind.elem_type], "shape": shape})
    return found


def golden(bundle: Path, graph: Path) -> None:
    """What the graph answers to one small batch."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    sizes = {"batch": 2, "sequence": 5, "past": 0, "total": 5, "kept": 1}
    inputs = {}
    for tensor in session.get_inputs():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        kind = np.float16 if "float16" in tensor.type else np.int64
        inputs[tensor.name] = np.ones(shape, kind)
    (bundle / "golden").mkdir()
    np.savez(bundle / "golden" / "inputs.npz", **inputs)
    answers = session.run(None, inputs)
    outputs = {tensor.name: answer for tensor, answer in zip(session.get_outputs(), answers, strict=True)}
    np.savez(bundle / "golden" / "outputs.npz", **outputs)


def make_bundle(folder: Path, kind: str = "encoder", *, external: bool = False, **options: Any) -> Path:
    """A bundle of an ``encoder`` or ``decoder``; ``external``: with its weights in ``model.onnx.data``."""
    folder.mkdir(parents=True)
    graph = getattr(engine_graphs, kind)(folder / "onnx" / "qdq" / "model.onnx", **options)
    if external:
        onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    shutil.copytree(graph.parent, folder / "onnx" / "ort")
    golden(folder, graph)
    write_small_manifest(folder, kind)
    return folder


def write_small_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of such a bundle."""
    model = onnx.load(folder / "onnx" / "qdq" / "model.onnx", load_external_data=False).graph
    inputs, outputs = tensors(model.input), tensors(model.output)
    dialect = {"opset": 21, "inputs": inputs, "outputs": outputs}
    layers = len(outputs) // 2
    generation = {
        "num_layers": layers,
        "num_kv_heads": engine_graphs.HEADS,
        "head_dim": engine_graphs.HEAD_DIM,
        "max_length": MAX_LENGTH,
        "cache_dtype": "float16",
        "bos_token_id": None,
        "eos_token_ids": [],
        "pad_token_id": None,
    }
    fields = {
        "task": "feature-extraction" if kind == "encoder" else "text-generation",
        "architecture": "Small",
        "model_type": "bert" if kind == "encoder" else "llama",
        "vocab_size": engine_graphs.VOCABULARY,
        "max_length": MAX_LENGTH,
        "profile": "rtx-4090",
        "pooling": {"mode": "mean", "normalize": True} if kind == "encoder" else None,
        "dialects": {name: {"path": f"onnx/{name}/model.onnx", **dialect} for name in ("ort", "qdq")},
        "generation": generation if kind == "decoder" else None,
    }
    return write_manifest(folder, fields)
