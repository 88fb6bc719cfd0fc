"""What is run when latency is measured: the same tensors for every model of a session.

Encoders get one batch of a shape, full length, of random token ids: kernels do not look at the values. Decoders get a
prompt and a fixed number of forced steps, through the runtime's own cache: prefill and decode are separate phases, and
no end-of-text token cuts one side short. In a server's words prefill is the time to first token, from token ids to the
first logits (tokenizing and choosing not counted), and decode the inter-token latency, one step of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.errors import InputError
from planish.gate.clock import Clock, Timing, look, since
from planish.gate.latency import Probe, block, block_length
from planish.runtime.decoders import Run

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["BENCH_SHAPES", "GATE_SHAPES", "PHASES", "Shape", "encoder_run", "probes", "shapes_for", "spelled"]

Ints = NDArray[np.int64]

GATE_SHAPES = {"encoder": ((1, 32), (1, 128)), "decoder": ((1, 64),)}
BENCH_SHAPES = {"encoder": ((1, 32), (1, 128), (8, 128)), "decoder": ((1, 128),)}
PHASES = {"prefill": "time to first token", "decode": "inter-token latency"}
NEW_TOKENS = 16
SETTLE_TOKENS = 8


@dataclass(frozen=True)
class Shape:
    """A batch of ``batch`` rows of ``length`` tokens (for decoders: of the prompt).

    >>> str(Shape(8, 128))
    '8x128'
    """

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


def spelled(name: str) -> str:
    """A name that ends in a phase, with what a server calls that phase.

    >>> spelled("1x64 prefill"), spelled("1x32 inference")
    ('1x64 prefill (time to first token)', '1x32 inference')
    """
    words = PHASES.get(name.split(" ")[-1])
    return f"{name} ({words})" if words else name


def shapes_for(
    models: Sequence[Model],
    wanted: Sequence[tuple[int, int]] | None,
    defaults: Mapping[str, Sequence[tuple[int, int]]],
) -> list[Shape]:
    """The shapes to measure: those asked for, or defaults cut to what every model takes.

    Raises:
        InputError: a shape asked for is longer than a model's limit.
    """
    decoder = models[0].manifest.generation is not None
    room = min(longest_input(model) for model in models)
    if wanted is None:
        cut = [Shape(batch, min(length, room)) for batch, length in defaults["decoder" if decoder else "encoder"]]
        return list(dict.fromkeys(cut))
    for batch, length in wanted:
        if batch < 1 or not 1 <= length <= room:
            raise InputError(f"a shape of at least 1x1 and at most {room} tokens", f"{batch}x{length}", "change it")
    return [Shape(batch, length) for batch, length in wanted]


def longest_input(model: Model) -> int:
    generation = model.manifest.generation
    return model.manifest.max_length if generation is None else max(1, generation.max_length - NEW_TOKENS)


def probes(
    models: Sequence[Model], shape: Shape, clock: Clock, seed: int, *, inferences: int | None = None
) -> list[Probe]:
    """One probe a model, all with the same inputs and the same number of inferences in a block (chosen by time)."""
    rng = np.random.default_rng(seed)
    vocab = min(model.manifest.vocab_size for model in models)
    ids = rng.integers(0, vocab, size=(shape.batch, shape.length), dtype=np.int64)
    if models[0].manifest.generation is not None:
        forced = rng.integers(0, vocab, size=(NEW_TOKENS, shape.batch), dtype=np.int64)
        return [decoder_probe(model, ids, forced) for model in models]
    runs = [encoder_run(model, ids) for model in models]
    chosen = inferences or max(block_length(run, clock) for run in runs)
    settles = [encoder_run(model, ids[:1, :SETTLE_TOKENS]) for model in models]
    return [block(run, chosen, settle) for run, settle in zip(runs, settles, strict=True)]


def encoder_run(model: Model, ids: Ints) -> Callable[[], object]:
    """One inference of ``ids`` ``[batch, length]``, checks of the runtime included."""
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    dialect = model.manifest.dialects[model.dialect]
    inputs = {info.name: values[info.name] for info in dialect.inputs if info.name in values}
    return lambda: model.run(inputs)


def decoder_probe(model: Model, ids: Ints, forced: Ints) -> Probe:
    """Prefill ``ids``, then ``forced`` steps: seconds to the first logits, and seconds a step."""
    rows = list(ids)
    limit = ids.shape[1] + len(forced)

    def start() -> Run:
        return model.decoder.start(len(rows), longest=ids.shape[1], limit=limit)

    def probe(clock: Clock) -> Mapping[str, Timing]:
        settle = start()
        settle.prefill([row[:SETTLE_TOKENS] for row in rows])  # untimed: the other side's cache lines leave
        settle.close()
        begun = look(clock)
        run = start()
        run.prefill(rows)
        first, ready = since(clock, begun), look(clock)
        for tokens in forced:
            run.step(tokens.tolist())
        decode = since(clock, ready, len(forced))
        run.close()
        return {"prefill": first, "decode": decode}

    return probe
