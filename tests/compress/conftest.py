"""Small random checkpoints of every architecture, and one tokenizer for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

torch.set_num_threads(1)  # the models are tiny; threads would only wait for each other

Maker = Callable[..., Path]

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}),
    "distilbert": ("DistilBertForSequenceClassification", {"dim": 64, "n_heads": 4, "hidden_dim": 96, "n_layers": 2}),
    "roberta": ("RobertaForMaskedLM", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}),
    "xlm-roberta": ("XLMRobertaModel", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}),
    "mpnet": ("MPNetModel", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}),
    "electra": (
        "ElectraForTokenClassification",
        {"hidden_size": 64, "embedding_size": 32, "num_attention_heads": 4, "intermediate_size": 96},
    ),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 16}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", {"rotary_pct": 0.25}),
}


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """512 tokens, once trained on the built-in text; training breaks ties by chance, a file does not."""
    tokens = (Path(__file__).parent / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    raw = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, mask_token="[MASK]", **names)


@pytest.fixture(scope="session")
def small_model() -> Callable[[str], Any]:
    """Make a random model by ``model_type``; the same weights every time."""

    def make(kind: str, architecture: str | None = None, **overrides: Any) -> Any:
        default, settings = SMALL[kind]
        common: dict[str, Any] = {"vocab_size": 512, "pad_token_id": 0, "max_position_embeddings": 128}
        if kind not in ("distilbert", "gpt2"):
            common |= {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
        if kind == "gpt2":
            del common["max_position_embeddings"]
        config = transformers.AutoConfig.for_model(kind, **{**common, **settings, **overrides})
        torch.manual_seed(0)
        model = getattr(transformers, architecture or default)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # random init leaves biases at 0 and logits nearly so
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return make


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., Any]) -> Maker:
    """Save a small model with its tokenizer; returns the directory."""
    tokenizer = _tokenizer()

    def make(kind: str, architecture: str | None = None, **overrides: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind) / kind
        small_model(kind, architecture, **overrides).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe with the given passes; calibration is a few short windows."""

    def make(*passes: dict[str, Any], name: str = "test", **data: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        content = {"schema": 1, "name": name, "data": {"samples": 6, "sequence_length": 32, **data}, "passes": passes}
        path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return path

    return make
