"""What the teacher says on the training examples, computed once: in memory for a run, on disk for one that is killed.

An example is known by its tokens, so a cache serves any batching and any order. It is filled in one fixed order: what a
text's batch is padded to changes the last bits of its logits, and a run that continues must read the same bits. A shard
is a piece of its own; safetensors maps it, so a cache larger than memory is read as needed. Of a decoder are kept the
k likeliest tokens and what is left for the rest, as 16-bit log probabilities: 6 bytes a token and k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planish.compress.distill_objective import Batch
from planish.compress.resume import Pieces

__all__ = ["TeacherCache"]

_TOKENS_PER_SHARD = 1 << 16
_STORED = {"log_p": torch.float16, "classes": torch.int32}
_READ = {"log_p": torch.float32, "classes": torch.int64}
_ONE_AN_EXAMPLE = ("pooled", "logits")
"""Names that are ``[batch, n]``, not ``[batch, tokens, n]``, if they have two axes."""


@dataclass
class TeacherCache:
    """``shards``: name -> values of all its examples one after the other, one row an example or a token."""

    shards: list[dict[str, Tensor]] = field(default_factory=list)
    _where: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    _row: dict[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        batches: Sequence[Batch],
        compute: Callable[[Batch], Mapping[str, Tensor]],
        pieces: Pieces,
        tag: str,
        tick: Callable[[int, int], None],
    ) -> TeacherCache:
        """Run ``compute`` (see ``Objective.target``) on ``batches``, shard by shard; those finished before are read."""
        cache, done = cls(), 0
        for index, part in enumerate(_shards(batches)):
            saved = pieces.load_state(f"teacher-{index:04d}", tag)
            if saved is None:
                pieces.save_state(f"teacher-{index:04d}", tag, _compute(part, compute, tick, done, len(batches)), {})
                saved = pieces.load_state(f"teacher-{index:04d}", tag)
                assert saved is not None
            cache._add(saved[0])
            done += len(part)
            tick(done, len(batches))
        return cache

    def _add(self, shard: dict[str, Tensor]) -> None:
        keys, counts = shard.pop("keys").tolist(), shard.pop("counts").tolist()
        start = 0
        for row, (key, count) in enumerate(zip(keys, counts, strict=True)):
            self._where.setdefault(key, (len(self.shards), start, start + count))
            self._row.setdefault(key, (len(self.shards), row))
            start += count
        self.shards.append(shard)

    def fetch(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's target for ``batch``, padded as it is; on the CPU."""
        mask = batch["attention_mask"].bool()
        keys = _keys(batch)
        found: dict[str, Tensor] = {}
        for name, sample in self.shards[0].items():
            if name.startswith("example:"):
                rows = [self.shards[self._row[key][0]][name][self._row[key][1]] for key in keys]
                found[name.removeprefix("example:")] = torch.stack(rows)
                continue
            flat = [self.shards[shard][name][start:stop] for shard, start, stop in (self._where[key] for key in keys)]
            kind = _READ.get(name, sample.dtype)
            whole = torch.zeros(*mask.shape, *sample.shape[1:], dtype=kind)
            whole[mask] = torch.cat(flat).to(kind)
            found[name] = whole
        return found


def _shards(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    part: list[Batch] = []
    tokens = 0
    for batch in batches:
        part.append(batch)
        tokens += batch["input_ids"].numel()
        if tokens >= _TOKENS_PER_SHARD:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def _compute(
    part: list[Batch],
    compute: Callable[[Batch], Mapping[str, Tensor]],
    tick: Callable[[int, int], None],
    done: int,
    total: int,
) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}
    keys: list[int] = []
    counts: list[Tensor] = []
    for number, batch in enumerate(part):
        mask = batch["attention_mask"].bool()
        for name, value in compute(batch).items():
            value = value.detach().cpu()
            value = value.to(_STORED.get(name, value.dtype))
            if name in _ONE_AN_EXAMPLE and value.ndim == 2:
                rows.setdefault(f"example:{name}", []).append(value)
            else:
                rows.setdefault(name, []).append(value[mask])
        keys += _keys(batch)
        counts.append(mask.sum(1))
        tick(done + number + 1, total)
    found = {name: torch.cat(values) for name, values in rows.items()}
    return {**found, "keys": torch.tensor(keys, dtype=torch.int64), "counts": torch.cat(counts)}


def _keys(batch: Batch) -> list[int]:
    """A number for the tokens of each example, padding aside."""
    mask = batch["attention_mask"].bool()
    kinds = batch.get("token_type_ids")
    found = []
    for row, keep in enumerate(mask):
        content = batch["input_ids"][row][keep].numpy().tobytes()
        if kinds is not None:
            content += kinds[row][keep].to(torch.int8).numpy().tobytes()
        found.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True))
    return found
