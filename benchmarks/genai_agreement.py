"""Does onnxruntime-genai generate from a bundle what a plain ONNX Runtime session does? Greedy, token by token.

    python benchmarks/genai_agreement.py BUNDLE [--tokens 48] [--prompt TEXT ...]

Needs onnxruntime-genai beside the base install. Also checks that its tokenizer cuts the prompts like the bundle's
tokenizer.json. Exits 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = (
    "The capital of France is",
    "Call me Ishmael. Some years ago",
    "def fibonacci(n):",
    "Ein Satz auf Deutsch, mit Umlauten: äöü, und einem Emoji 🐳",
)


def plain(bundle: Path, prompt: list[int], tokens: int, ends: list[int]) -> list[int]:
    """Greedy tokens of the manifest's own session."""
    from planish import runtime

    session = runtime.load(bundle).session
    past = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in session.get_inputs()[2:]}
    found, fresh = list(prompt), np.array([prompt])
    while len(found) < len(prompt) + tokens and (len(found) == len(prompt) or found[-1] not in ends):
        mask = np.ones((1, len(found)), np.int64)
        logits, *present = session.run(None, {"input_ids": fresh, "attention_mask": mask, **past})
        past = dict(zip(past, present, strict=True))
        found.append(int(logits[0, -1].argmax()))
        fresh = np.array([found[-1:]])
    return found[:-1] if found[-1] in ends else found  # onnxruntime-genai leaves the end token out


def theirs(model: Any, prompt: list[int], tokens: int) -> list[int]:
    import onnxruntime_genai as genai

    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + tokens, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", nargs="+", default=PROMPTS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("onnxruntime_genai") is None:
        sys.exit("expected onnxruntime-genai, got no such package; pip install onnxruntime-genai")
    import onnxruntime
    import onnxruntime_genai as genai
    from tokenizers import Tokenizer

    print(
        json.dumps({"onnxruntime": onnxruntime.__version__, "genai": genai.__version__, "machine": platform.machine()})
    )
    model = genai.Model(str(arguments.bundle))
    cutter, reference = genai.Tokenizer(model), Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    generation = json.loads((arguments.bundle / "manifest.json").read_text())["generation"]
    agreed = True
    for prompt in arguments.prompt:
        ids = [int(token) for token in cutter.encode(prompt)]
        cut = ids == reference.encode(prompt).ids
        ours = plain(arguments.bundle, ids, arguments.tokens, generation["eos_token_ids"])
        other = theirs(model, ids, arguments.tokens)
        agreed &= cut and ours == other
        print(
            f"{prompt!r}: tokenizer {'agrees' if cut else 'DIFFERS'}, "
            f"{len(ours) - len(ids)} tokens {'agree' if ours == other else 'DIFFER'}"
        )
    sys.exit(0 if agreed else 1)


if __name__ == "__main__":
    main()
