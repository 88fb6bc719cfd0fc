"""Bundles with a `qdq` graph, a golden pair, and engines of the fake TensorRT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.runtime import (
    BuiltOn,
    EngineInfo,
    Manifest,
    Range,
    ShapeProfile,
    add_engine,
    engine_id,
    load,
    read_manifest,
    write_engine_info,
    write_manifest,
)
from planish.runtime.text import TextEncoder
from tests.runtime import fake_tensorrt, tiny_decoder, tiny_qdq_decoder

__all__ = ["ENCODER_PROFILES", "add_fake_engine", "decoder_bundle", "encoder_bundle"]

VERSION = {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1.116"}
LIMIT = 0.01
ENCODER_PROFILES = [dict.fromkeys(("input_ids", "attention_mask"), ((1, 1), (2, 16), (4, 32)))]
Profiles = Sequence[Mapping[str, Any]]


def encoder_bundle(source: Path, target: Path) -> Path:
    """A copy of an encoder's bundle whose graph is there as `qdq`, too, with golden answers of ONNX Runtime."""
    shutil.copytree(source, target)
    shutil.copytree(target / "onnx" / "ort", target / "onnx" / "qdq")
    ids = np.array([[2, 7, 8, 9, 3], [2, 9, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    with load(source) as model:
        _golden(target, inputs, model.run(inputs))
    fields = _fields(target)
    fields["dialects"]["qdq"] = {**fields["dialects"]["ort"], "path": "onnx/qdq/model.onnx"}
    return _write(target, fields)


def decoder_bundle(root: Path, model: Any, encoder: TextEncoder, vocab: int, **generation: Any) -> Path:
    """The tiny Llama in both dialects; golden answers are those of torch."""
    import onnx
    import torch

    (root / "onnx" / "ort").mkdir(parents=True)
    onnx.save(tiny_decoder.make_graph(model), root / "onnx" / "ort" / "model.onnx")
    tiny_qdq_decoder.write_graph(model, root / "onnx" / "qdq" / "model.onnx")
    (root / "tokenizer.json").write_text(encoder.tokenizer.to_str(), encoding="utf-8")
    (root / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    ids = np.random.default_rng(5).integers(0, vocab, (2, 12))
    lengths = (12, 5)
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int64)
    with torch.no_grad():
        rows = [
            model(torch.from_numpy(row[None, :n])).logits[0, -1:].numpy() for row, n in zip(ids, lengths, strict=True)
        ]
    _golden(root, {"input_ids": ids * mask, "attention_mask": mask}, {"logits": np.stack(rows)})
    qdq = tiny_qdq_decoder.dialect(vocab)
    past = [{**t, "dtype": "float32"} for t in qdq["inputs"] if t["name"].startswith("past")]
    present = [{**t, "dtype": "float32"} for t in qdq["outputs"] if t["name"].startswith("present")]
    ids_and_mask = [t for t in qdq["inputs"] if t["name"] in ("input_ids", "attention_mask")]
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", "positions", vocab]}
    ort = {"path": "onnx/ort/model.onnx", "opset": 21, "inputs": [*ids_and_mask, *past], "outputs": [logits, *present]}
    fields = {
        "task": "text-generation",
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "vocab_size": vocab,
        "max_length": tiny_decoder.MAX_LENGTH,
        "dialects": {"ort": ort, "qdq": qdq},
        "generation": {**tiny_decoder.manifest_info(), **generation},
        "profile": "rtx-4090",
    }
    return _write(root, fields)


def add_fake_engine(
    bundle: Path,
    profiles: Profiles = ENCODER_PROFILES,
    *,
    module: str = "tensorrt",
    targets: tuple[str, ...] = ("8.9",),
    plan: bytes | None = None,
    scratch: int = 4096,
    **changes: Any,
) -> str:
    """Builds an engine into a bundle, as the builder does, and returns its id; ``changes`` go to ``engine.json``."""
    manifest = read_manifest(bundle)
    spelled = manifest.dialects["qdq"]
    version = changes.pop("version", VERSION[module])
    info = EngineInfo(
        schema=1,
        planish="0.1.0",
        module=module,  # type: ignore[arg-type]
        version=version,
        targets=targets,
        device=changes.pop("device", BuiltOn("Fake 4090", targets[0], "13.0")),
        profile=changes.pop("profile", "rtx-4090"),
        dialect="qdq",
        onnx_sha256=changes.pop("onnx_sha256", None) or _digests(manifest),
        inputs=changes.pop("inputs", spelled.inputs),
        outputs=spelled.outputs,
        profiles=changes.pop("told", None)
        or tuple(
            ShapeProfile(str(index), {name: Range(*shapes) for name, shapes in each.items()})
            for index, each in enumerate(profiles)
        ),
        build={"seconds": 1.0},
    )
    assert not changes
    name = engine_id(module, version, targets, info.profile)
    folder = bundle / "engines" / name
    folder.mkdir(parents=True)
    made = fake_tensorrt.make_plan(bundle / spelled.path, profiles, sm=targets, version=version, scratch=scratch)
    (folder / "model.plan").write_bytes(made if plan is None else plan)
    write_engine_info(folder / "engine.json", info)
    add_engine(bundle, name)
    return name


def _digests(manifest: Manifest) -> dict[str, str]:
    """Of every file of the graph."""
    folder = "onnx/qdq/"
    return {name[len(folder) :]: entry.sha256 for name, entry in manifest.files.items() if name.startswith(folder)}


def _golden(root: Path, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
    (root / "golden").mkdir()
    np.savez(root / "golden" / "inputs.npz", allow_pickle=False, **inputs)
    np.savez(root / "golden" / "outputs.npz", allow_pickle=False, **outputs)


def _fields(bundle: Path) -> dict[str, Any]:
    fields = read_manifest(bundle).to_json()
    (bundle / "manifest.json").unlink()
    return {key: value for key, value in fields.items() if key not in ("digest", "files")}


def _write(root: Path, fields: dict[str, Any]) -> Path:
    parity = {"atol": 0.01, "default_atol": 0.01, "loosened": False, "max_abs_error": 0.0}
    fields["parity"] = {"qdq": {**parity, "golden_drift": 0.0, "golden_limit": LIMIT}}
    write_manifest(root, fields)
    return root
