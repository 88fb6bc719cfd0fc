"""Perplexity of decoders' checkpoints on the built-in text to judge on, which no recipe calibrates or trains on.

    python benchmarks/perplexity.py CHECKPOINT... [--windows 24] [--length 512]

In torch, float32, each checkpoint with its own tokenizer. After a vocabulary was trimmed, figures compare a character,
not a token, so bits a character are printed beside.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from planish import recipes
from planish.compress.checkpoint import open_checkpoint
from planish.compress.loader import load
from planish.gate.clock import environment


@torch.no_grad()
def perplexity(checkpoint: Path, windows: int, length: int) -> dict[str, float]:
    """Over ``windows`` windows of ``length`` tokens, one after the other; the first token of each is not predicted."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    ids = tokenizer(recipes.text("judge"), add_special_tokens=False)["input_ids"][: windows * length]
    quantized = "quantization_config" in json.loads((checkpoint / "config.json").read_text())
    model = load(checkpoint) if quantized else open_checkpoint(checkpoint).load_model()
    total, count, characters = 0.0, 0, 0
    for window in torch.split(torch.tensor(ids), length):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        total += float(cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
        characters += len(tokenizer.decode(window[1:]))
    return {"perplexity": math.exp(total / count), "bits_per_character": total / math.log(2) / characters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--length", type=int, default=512)
    given = parser.parse_args()
    for checkpoint in given.checkpoints:
        found = perplexity(checkpoint, given.windows, given.length)
        print(f"{checkpoint.name}: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}", flush=True)
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()
