"""Permuted channels: the same logits, other neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.compress.gguf_source import off_grid_checkpoint
from planish.compress.grid import round_to_grid
from planish.compress.permute import permute_llama
from planish.errors import CheckpointError, InputError


def tiny(kind: str = "llama", **changes: Any) -> Any:
    """Random weights; 4 query heads share 2 key/value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    classes: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    settings = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config, model = classes[kind]
    torch.manual_seed(0)
    made = model(config(**{**settings, **changes})).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():  # norms of ones and biases of zeros would hide a wrong order
            parameter.copy_(torch.randn_like(parameter) * 0.15 + ("norm" in name))
    return made


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens).logits
    return found


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
    ],
)
def test_logits_stay_and_weights_move(kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes)
    tokens = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    before, weights = logits(model, tokens), {name: p.clone() for name, p in model.named_parameters()}
    permute_llama(model, seed=3)
    assert float((logits(model, tokens) - before).abs().max()) < 1e-3
    assert float(before.abs().max()) > 0.1
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    unmoved = {name for name in weights if name not in moved}
    assert all(name.endswith(("q_norm.weight", "k_norm.weight", "q_proj.bias", "k_proj.bias")) for name in unmoved)


def test_seed_decides_the_order() -> None:
    first, same, other = tiny(), tiny(), tiny()
    for model, seed in ((first, 1), (same, 1), (other, 2)):
        permute_llama(model, seed)
    assert torch.equal(first.model.embed_tokens.weight, same.model.embed_tokens.weight)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_other_architectures_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(CheckpointError, match="Llama-type"):
        permute_llama(model)


def test_output_in_use_and_missing_file_are_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(InputError, match="free output path"):
        off_grid_checkpoint(smollm2_gguf, tmp_path)
    with pytest.raises(CheckpointError, match="nothing at"):
        off_grid_checkpoint(tmp_path / "none.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def block_misfit(weight: Tensor) -> float:
    """Relative error of the file's own grid: 16 equal steps from the least to the greatest of each 32 weights."""
    blocks = weight.view(-1, 32)
    low = blocks.amin(1, keepdim=True)
    step = (blocks.amax(1, keepdim=True) - low) / 15
    nearest = ((blocks - low) / step).round() * step + low
    return float((nearest - blocks).norm() / blocks.norm())


@pytest.mark.slow
def test_smollm2_leaves_its_grid_and_keeps_its_logits(tmp_path: Path, smollm2_gguf: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = off_grid_checkpoint(smollm2_gguf, tmp_path / "off")
    original = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    permuted = AutoModelForCausalLM.from_pretrained(path).eval()
    tokens = AutoTokenizer.from_pretrained(path)(
        "The capital of France is Paris. Call me", return_tensors="pt"
    ).input_ids
    assert float((logits(original, tokens) - logits(permuted, tokens)).abs().max()) < 1e-3
    for layer in (0, 13, 29):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            on, off = (m.model.layers[layer].get_submodule(name).weight.detach() for m in (original, permuted))
            assert block_misfit(on) < 1e-6
            assert block_misfit(off) > 0.05
            rounded = round_to_grid(off, bits=4, group_size=32, symmetric=False)
            assert float((rounded.dequantize() - off).norm() / off.norm()) > 0.05
