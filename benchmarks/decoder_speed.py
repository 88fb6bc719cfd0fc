"""Tokens per second of an emitted decoder against the same checkpoint traced by torch.onnx in float32, side by side.

    python benchmarks/decoder_speed.py CHECKPOINT --parent FLOAT_CHECKPOINT [--prompt 512] [--steps 24] [--rounds 7]

CHECKPOINT (quantized) is emitted by planish; the parent is traced with a key/value cache. Both run in this process on
ONNX Runtime, turn and turn about: ours with IOBinding and one shared cache buffer, the traced graph with IOBinding from
present to past, which is the best it can do. Printed are medians of ratios within rounds, on the wall clock and on
process CPU time (the one to trust on a busy machine), and the peak memory of a fresh process that only generates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Times = dict[str, list[float]]


class Emitted:
    """Our graph: past and present are one buffer."""

    def __init__(self, path: Path, threads: int, disabled: list[str]) -> None:
        self.session = open_session(path, threads, disabled)
        self.binding = self.session.io_binding()
        self.past = [value for value in self.session.get_inputs() if value.name.startswith("past")]

    def start(self, capacity: int) -> None:
        for value in self.past:
            buffer = np.zeros((1, value.shape[1], capacity, value.shape[3]), np.float32)
            bound = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            self.binding.bind_ortvalue_input(value.name, bound)
            self.binding.bind_ortvalue_output(value.name.replace("past_key_values", "present"), bound)

    def run(self, ids: np.ndarray, total: int) -> int:
        self.binding.bind_cpu_input("input_ids", ids)
        self.binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        self.binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(self.binding)
        return int(self.binding.get_outputs()[-1].numpy()[0, -1].argmax())


class Traced:
    """A graph that returns a longer cache each time."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = open_session(path, threads, [])
        self.past = [value for value in self.session.get_inputs() if value.name.startswith("past")]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def start(self, capacity: int) -> None:
        empty = [np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in self.past]
        self.cache = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in empty]

    def run(self, ids: np.ndarray, total: int) -> int:
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        for value, cached in zip(self.past, self.cache, strict=True):
            binding.bind_ortvalue_input(value.name, cached)
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        logits, *self.cache = binding.get_outputs()
        return int(logits.numpy()[0, -1].argmax())


def open_session(path: Path, threads: int, disabled: list[str]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=disabled or None)


def generate(engine: Any, prompt: np.ndarray, steps: int) -> tuple[dict[str, float], list[int]]:
    """Seconds of the prefill, and of a step, on both clocks; and the tokens."""
    engine.start(prompt.shape[1] + steps)
    clocks = [now()]
    tokens = [engine.run(prompt, prompt.shape[1])]
    clocks.append(now())
    for step in range(1, steps):
        tokens.append(engine.run(np.array([tokens[-1:]]), prompt.shape[1] + step))
    clocks.append(now())
    (wall, cpu), (wall_1, cpu_1), (wall_2, cpu_2) = clocks
    count = steps - 1
    decode = {"decode wall": (wall_2 - wall_1) / count, "decode cpu": (cpu_2 - cpu_1) / count}
    return {"prefill wall": wall_1 - wall, "prefill cpu": cpu_1 - cpu, **decode}, tokens


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def emit(checkpoint: Path, folder: Path) -> tuple[Path, list[str]]:
    from planish.export.decoder import build_decoder

    built = build_decoder(checkpoint, folder)
    return folder / built.files[0], list(built.disabled_optimizers)


def trace(checkpoint: Path, folder: Path) -> Path:
    """Float32 with a cache, through torch.onnx; batch 1."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    layers = model.config.num_hidden_layers

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, past: list[Any]) -> Any:
            cache = DynamicCache()
            for layer in range(layers):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            answer = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache)
            present = [part for layer in answer.past_key_values.layers for part in (layer.keys, layer.values)]
            return answer.logits, present

    heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    past = [torch.zeros(1, heads, 7, width) for _ in range(2 * layers)]
    free = torch.export.Dim.AUTO
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    torch.onnx.export(
        WithCache(),
        (torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 10, dtype=torch.int64), past),
        str(folder / "traced.onnx"),
        dynamo=True,
        opset_version=21,
        external_data=True,
        dynamic_shapes=(
            {1: free},
            {1: free},
            [{2: free}] * len(past),
        ),
        input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
    )
    return folder / "traced.onnx"


def child(arguments: argparse.Namespace) -> None:
    engine = make(arguments.only, arguments.path, arguments.threads, arguments.disabled)
    generate(engine, random_prompt(arguments), arguments.steps)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")))


def make(kind: str, path: Path, threads: int, disabled: list[str]) -> Any:
    return Emitted(path, threads, disabled) if kind == "emitted" else Traced(path, threads)


def random_prompt(arguments: argparse.Namespace) -> np.ndarray:
    return np.random.default_rng(0).integers(10, 300, (1, arguments.prompt))


def peak_mb(kind: str, path: Path, disabled: list[str], arguments: argparse.Namespace) -> float:
    settings = {"--prompt": arguments.prompt, "--steps": arguments.steps, "--threads": arguments.threads}
    words = [str(word) for pair in settings.items() for word in pair]
    command = [sys.executable, __file__, "-", "--only", kind, "--path", str(path), *words, "--disabled", *disabled]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    arguments = parse()
    if arguments.only:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, disabled = emit(arguments.checkpoint, folder / "emitted")
        theirs = arguments.traced or trace(arguments.parent, folder)
        print(json.dumps(environment(arguments)), flush=True)
        engines = {"emitted": make("emitted", ours, arguments.threads, disabled)}
        engines["traced"] = make("traced", theirs, arguments.threads, [])
        times = compete(engines, arguments)
        for key in times["emitted"]:
            a, b = (np.array(times[kind][key]) for kind in ("emitted", "traced"))
            print(
                f"{key:13s} ours {np.median(a) * 1e3:9.2f} ms  traced {np.median(b) * 1e3:9.2f} ms  "
                f"ratio {np.median(b / a):5.2f} (rounds {np.min(b / a):.2f} to {np.max(b / a):.2f})",
                flush=True,
            )
        del engines
        print(
            f"peak memory   ours {peak_mb('emitted', ours, disabled, arguments):9.1f} MB  "
            f"traced {peak_mb('traced', theirs, [], arguments):9.1f} MB"
        )


def compete(engines: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Times]:
    prompt = random_prompt(arguments)
    times: dict[str, Times] = {kind: {} for kind in engines}
    for turn in range(arguments.rounds + 1):
        order = list(engines)[:: 1 if turn % 2 else -1]
        for kind in order:
            seconds, _ = generate(engines[kind], prompt, arguments.steps)
            if turn:  # the first round warms up
                for key, value in seconds.items():
                    times[kind].setdefault(key, []).append(value)
    return times


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": arguments.threads,
        "prompt": arguments.prompt,
        "steps": arguments.steps,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--parent", type=Path, help="the float checkpoint to trace")
    parser.add_argument("--traced", type=Path, help="a graph traced before, instead of --parent")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("emitted", "traced"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--disabled", nargs="*", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
