"""MiniLM with every block cut to another shape: what its receipts say is gone is gone from the graph and the engine."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from planish import export, runtime
from planish.compress import compress
from planish.compress.bench import Bench
from planish.compress.checkpoint import open_checkpoint
from planish.compress.recipe import parse_recipe
from planish.compress.slicing import cut_heads, cut_neurons
from planish.compress.write import write_checkpoint
from planish.export.build_bundle import prepare
from planish.export.quiet import quiet
from planish.sliced import KEY, read_shapes
from tests.export.engine_bundles import make_profile

HEADS = (12, 7, 5, 6, 3, 4)
NEURONS = (768, 512, 1536, 320, 96, 640)
RECIPE = """schema: 1
name: quick
data: {samples: 2, sequence_length: [32, 64]}
passes:
- {pass: int8-linear, activations: static, smoothing: 0.9, weight_bits: 7,
   smoothing_exclude: ["*attention.output.dense"]}
- {pass: int8-embedding, positions: true, group_size: null}
"""


@pytest.fixture(scope="module")
def pruned(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = open_checkpoint(minilm)
    bench = Bench.of(source.load_model())
    for block, (heads, neurons) in enumerate(zip(HEADS, NEURONS, strict=True)):
        cut_heads(bench, block, range(12 - heads, 12))
        cut_neurons(bench, block, range(neurons))
    folder = tmp_path_factory.mktemp("pruned") / "minilm"
    folder.mkdir()
    write_checkpoint(bench, source, folder)
    return folder


@pytest.fixture(scope="module")
def quantized(pruned: Path) -> Path:
    made = pruned.with_name("int8")
    with quiet():
        compress(str(pruned), parse_recipe(RECIPE), made)
    return made


@pytest.fixture(scope="module")
def bundle(quantized: Path) -> Path:
    return export.export(quantized, quantized.with_name("bundle"), profile="rtx-4090", dialects=("ort", "qdq")).path


@pytest.mark.parametrize("dialect", ["ort", "qdq"])
def test_the_graph_holds_what_the_receipt_says(bundle: Path, quantized: Path, dialect: str) -> None:
    """Integers of each linear have the block's shape, and all initializers together the receipt's bytes."""
    config = json.loads((quantized / "config.json").read_text())
    wanted = [(shape.heads * shape.head_dim, shape.ffn) for shape in read_shapes(config[KEY], 6)]
    assert wanted == [(32 * heads, neurons) for heads, neurons in zip(HEADS, NEURONS, strict=True)]
    initializers = ir.load(bundle / "onnx" / dialect / "model.onnx").graph.initializers.values()
    sizes = {str(value.name): sorted(int(n) for n in value.shape or ()) for value in initializers}
    for block, (span, neurons) in enumerate(wanted):
        found = [size for name, size in sizes.items() if f"layer.{block}." in name and len(size) == 2 and min(size) > 1]
        assert sorted(found) == sorted([sorted((384, span))] * 4 + [sorted((384, neurons))] * 2)
    total = sum(value.const_value.nbytes for value in initializers if value.const_value is not None)
    receipt = json.loads((quantized / "planish.json").read_text())["receipts"][-1]
    pooler = 4 * (384 * 384 + 384)  # in the checkpoint, read by no graph of embeddings
    assert total == pytest.approx(receipt["after"]["bytes"] - pooler, rel=0.02)


def test_an_engine_is_built_of_it(bundle: Path, tmp_path: Path) -> None:
    """Built and inspected, not run."""
    pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")
    profile = str(make_profile(tmp_path, name="own", batch=[1, 8, 8], sequence=[1, 64, 64]))
    made = export.build(bundle, profile=profile)
    assert made.info.diagnostic is not None
    assert made.info.diagnostic["default"]["fused_attentions"] == 6
    blocks = sum(384 * (4 * 32 * heads + 2 * neurons) for heads, neurons in zip(HEADS, NEURONS, strict=True))
    weights = prepare(bundle, profile=profile).estimate.weights_bytes
    assert weights == pytest.approx(blocks + 384 * (30522 + 512), rel=0.05)
    assert made.info.build["weights_bytes"] == pytest.approx(weights, rel=0.1)
    assert made.engine_id in runtime.verify(bundle).engines
