"""A BERT worth judging: MiniLM fine-tuned on the movie sentences (Hutto & Gilbert 2014), kept in `.cache` once made.

The data and their split: `tests.sentiment_data`. Length 64, 2 epochs, batch 32.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.sentiment_data import Rows

__all__ = ["train_sentiment"]


def train_sentiment(
    minilm: Path, rows: Rows, output: Path, *, epochs: int = 2, batch: int = 32, rate: float = 1e-4, seed: int = 0
) -> Path:
    """Fine-tune on ``rows`` (text, 0 or 1) and save a checkpoint with labels negative/positive to ``output``.

    ``seed`` is of the head's first weights, dropout and the order of the rows.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    if (output / "config.json").is_file():
        return output
    torch.manual_seed(seed)
    labels = {0: "negative", 1: "positive"}
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm, num_labels=2, id2label=labels, label2id={name: number for number, name in labels.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(rows) // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for epoch in range(epochs):
        for texts, targets in batches(rows, batch, seed=seed * epochs + epoch):
            inputs = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
            model(**inputs, labels=targets).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.eval().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(output)
    return output


def batches(rows: Rows, size: int, *, seed: int) -> Iterator[tuple[list[str], Any]]:
    """Shuffled batches of texts of like length (less padding), in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    pools = [
        sorted(order[i : i + size * 16], key=lambda row: len(rows[row][0])) for i in range(0, len(order), size * 16)
    ]
    groups = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    for number in torch.randperm(len(groups), generator=generator).tolist():
        chosen = groups[number]
        yield [rows[row][0] for row in chosen], torch.tensor([rows[row][1] for row in chosen])
