"""Tiny checkpoints of many families, trained for seconds on the shipped text, so that their answers mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["tiny_decoder", "tiny_encoder", "word_tokenizer"]

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 1024
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "max_position_embeddings": 256, "intermediate_size": 256}),
    "qwen3": (
        "Qwen3Config",
        {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "intermediate_size": 256},
    ),
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "max_position_embeddings": 256, "intermediate_size": 256}),
    "opt": ("OPTConfig", {"ffn_dim": 256, "word_embed_proj_dim": 128, "max_position_embeddings": 256}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 256, "max_position_embeddings": 256}),
}
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def text() -> str:
    return (ROOT / "recipes" / "text-calibrate.txt").read_text(encoding="utf-8")


def word_tokenizer(vocabulary: int) -> Any:
    """Whole words, the most frequent of the shipped text, with BERT's special tokens around."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(text().splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def byte_level_tokenizer(kind: str) -> Any:
    """A byte-level BPE of 1,024 tokens, trained on the shipped text; RoBERTa's has its special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind == "roberta" else ["<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text().splitlines(), trainer)
    if kind == "roberta":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=128,
            **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
            **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
            **{f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")},
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def tiny_decoder(family: str, output: Path, *, steps: int = 60) -> Path:
    """A two-layer, 128-wide decoder of ``family``, trained ``steps`` steps of 8 x 128 tokens."""
    import transformers

    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer("gpt")
    name, options = DECODERS[family]
    shape = {} if family == "gpt2" else SHAPE
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, name)(vocab_size=len(tokenizer), **shape, **options, **ends)
    model = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.tensor(tokenizer(text())["input_ids"])
    train(model, steps, lambda: windows(ids, 8, 128))
    return save(model, tokenizer, output)


def windows(ids: torch.Tensor, rows: int, length: int) -> dict[str, torch.Tensor]:
    starts = torch.randint(0, len(ids) - length, (rows,)).tolist()
    batch = torch.stack([ids[start : start + length] for start in starts])
    return {"input_ids": batch, "labels": batch}


def train(model: Any, steps: int, draw: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        model(**draw()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def save(model: Any, tokenizer: Any, output: Path) -> Path:
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {**SHAPE, "intermediate_size": 256}),
    "distilbert": ("DistilBertConfig", {"dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256}),
    "roberta": (
        "RobertaConfig",
        {**SHAPE, "intermediate_size": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    ),
    "mpnet": ("MPNetConfig", {**SHAPE, "intermediate_size": 256}),
    "electra": ("ElectraConfig", {**SHAPE, "intermediate_size": 256, "embedding_size": 64}),
}
HEADS = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
}


def tiny_encoder(family: str, task: str, output: Path, *, steps: int = 40) -> Path:
    """A two-layer, 128-wide encoder of ``family`` with the head of ``task``; classifiers learn long from short."""
    import transformers

    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer("roberta")
    name, options = ENCODERS[family]
    config = getattr(transformers, name)(
        vocab_size=len(tokenizer), max_position_embeddings=130, **{"pad_token_id": 1, **options}
    )
    if "classification" in task:
        config.id2label = {0: "short", 1: "long"}
        config.label2id = {"short": 0, "long": 1}
    model = getattr(transformers, HEADS[task]).from_config(config)
    if task == "text-classification":
        lines = [line for line in text().splitlines() if len(line) > 40]
        train(model, steps, lambda: labelled(tokenizer, lines))
    return save(model.eval(), tokenizer, output)


def labelled(tokenizer: Any, lines: list[str]) -> dict[str, torch.Tensor]:
    chosen = [lines[i][:60] if i % 2 else lines[i][:240] for i in torch.randint(0, len(lines), (16,)).tolist()]
    inputs = tokenizer(chosen, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "labels": torch.tensor([int(len(text) > 60) for text in chosen]),
    }
