"""Training and validation examples: read, checked, split, encoded, and put into batches.

Encoders read JSONL or one text a line (:mod:`planish.gate.data`); decoders read windows of tokens, cut from all texts
one after the other. Without training data the examples come from the calibration text: passages of it for encoders,
windows for decoders. Everything is the same for the same seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from planish.compress.augment import Augment
from planish.compress.encode_examples import IGNORED, Encoder, Example
from planish.compress.example_checks import check_parts
from planish.compress.example_sources import load, passages, token_examples
from planish.compress.recipe import Data
from planish.errors import CheckpointError, DataError

__all__ = ["Batch", "Examples", "Part", "read_examples"]

Batch = dict[str, Tensor]
"""Named as the model's arguments: ``input_ids``, ``attention_mask`` (``[b, t]``), and labels where there are any."""

Part = Literal["train", "validation"]

_POOL = 16  # batches sorted by length together
_MASKED = 0.15  # share of tokens to fill in (Devlin et al. 2019)
SELF_LABELLED = ("fill-mask", "text-generation")
"""Tasks whose labels are the text itself."""


@dataclass(frozen=True)
class Vocabulary:
    """What batches need of the tokenizer: ids for padding and masking, all others, and a digest of the table."""

    padding: int
    mask: int | None
    ordinary: tuple[int, ...]
    special: frozenset[int]
    digest: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, model: Any) -> Vocabulary:
        table: dict[str, int] = tokenizer.get_vocab()
        entries = sorted(table.items(), key=lambda item: item[1])
        digest = hashlib.sha256("".join(f"{name}\0{number}\n" for name, number in entries).encode("utf-8", "replace"))
        named = {number: name for name, number in entries}
        special = set(tokenizer.all_special_ids)
        padding = tokenizer.pad_token_id
        if padding is None:
            padding = getattr(model.config, "pad_token_id", None)
        return cls(
            padding=int(padding or 0),
            mask=tokenizer.mask_token_id,
            ordinary=tuple(number for number in named if number not in special),
            special=frozenset(special),
            digest="sha256:" + digest.hexdigest(),
            names=tuple(named.get(number, "") for number in range(max(named, default=-1) + 1)),
        )


class Examples:
    """The examples of a task, in two parts.

    Attributes:
        labelled: batches of the training part carry labels, so that ``model(**batch).loss`` is the task's loss. Always
            so for fill-mask and text-generation, whose labels are the text itself.
        judged: the validation part has labels.
        labels: the model's label names.
        several: a text may have several labels.
        vocabulary: digest of the tokenizer's table; ids of two with the same digest mean the same.
        digest: of everything encoded.
    """

    def __init__(
        self,
        encoder: Encoder,
        vocabulary: Vocabulary,
        parts: dict[str, list[Example]],
        seed: int,
        *,
        labelled: bool,
        judged: bool,
    ) -> None:
        self.task = encoder.task
        self.labels, self.several = tuple(encoder.labels), encoder.several
        self.labelled = labelled or self.task in SELF_LABELLED
        self.judged = judged or self.task in SELF_LABELLED
        self.vocabulary = vocabulary.digest
        self.digest = _digest(self.task, parts)
        self._vocabulary, self._parts, self._seed = vocabulary, parts, seed

    def count(self, part: Part) -> int:
        """How many examples ``part`` has."""
        return len(self._parts[part])

    def texts(self, part: Part) -> list[str]:
        """The text of each example; of a window of tokens the text it was cut from."""
        return [example.text for example in self._parts[part]]

    def rows(self, part: Part) -> Sequence[Example]:
        """The examples themselves."""
        return self._parts[part]

    def token_name(self, number: int) -> str:
        """How the tokenizer writes a token; "" for an id it has not."""
        return self._vocabulary.names[number] if number < len(self._vocabulary.names) else ""

    def batches(self, part: Part, size: int, *, seed: int | None = None, epoch: int = 0) -> list[Batch]:
        """Batches of ``size`` examples, the last may be smaller, padded to their longest.

        With a ``seed`` shuffled, texts of like length together, the same for the same seed and epoch; without in the
        order of the file. ``epoch`` also draws the masks of fill-mask; those of validation are always the same.
        """
        count = len(self._parts[part])
        if seed is None:
            return [self.batch(part, range(i, min(i + size, count)), epoch) for i in range(0, count, size)]
        lengths = [len(example.ids) for example in self._parts[part]]
        return [self.batch(part, group, epoch) for group in _grouped(lengths, size, seed, epoch)]

    def altered_batches(self, size: int, augment: Augment, *, seed: int, epoch: int = 0) -> list[Batch]:
        """As :meth:`batches` of the training part, of texts altered anew in each epoch; without labels."""
        rows = augment.altered(self._parts["train"], self._vocabulary.special, seed, epoch)
        groups = _grouped([len(row.ids) for row in rows], size, seed, epoch)
        return [self._padded([rows[number] for number in group]) for group in groups]

    def batch(self, part: Part, chosen: Sequence[int], epoch: int = 0) -> Batch:
        """The examples by these numbers as one batch."""
        rows = [self._parts[part][number] for number in chosen]
        ids, targets = [row.ids for row in rows], [row.label for row in rows]
        if self.task == "fill-mask":
            masked = [self._masked(part, number, epoch) for number in chosen]
            ids, targets = [pair[0] for pair in masked], [pair[1] for pair in masked]
        elif self.task == "text-generation":
            targets = list(ids)
        known = [target for target in targets if target is not None]
        batch = self._padded([replace(row, ids=own) for row, own in zip(rows, ids, strict=True)])
        return batch | (self._targets(known) if known else {})

    def _padded(self, rows: Sequence[Example]) -> Batch:
        """What the model reads, without labels."""
        ids = [row.ids for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._vocabulary.padding),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }
        types = [row.types for row in rows if row.types is not None]
        return batch | ({"token_type_ids": pad_sequence(types, batch_first=True)} if types else {})

    def _targets(self, labels: list[Tensor]) -> Batch:
        if self.task == "question-answering":
            both = torch.stack(labels)
            return {"start_positions": both[:, 0].contiguous(), "end_positions": both[:, 1].contiguous()}
        if self.task == "text-classification":
            return {"labels": torch.stack(labels)}
        return {"labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)}

    def _masked(self, part: Part, number: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Ids with some tokens masked, and labels with the others left out; both int64 ``[t]``.

        In training 80 % of the chosen become the mask, 10 % another token and 10 % stay (Devlin et al. 2019); in
        validation all become the mask, so that models with different vocabularies read the same.
        """
        example = self._parts[part][number]
        assert example.open is not None
        assert self._vocabulary.mask is not None
        free = example.open.nonzero().flatten().tolist()
        draw = random.Random(f"{self._seed}/{epoch if part == 'train' else 0}/{part}/{number}")
        chosen = sorted(draw.sample(free, max(1, round(_MASKED * len(free))))) if free else []
        ids, labels = example.ids.clone(), torch.full_like(example.ids, IGNORED)
        for at in chosen:
            labels[at] = example.ids[at]
            kind = draw.random() if part == "train" else 0.0
            if kind < 0.8:
                ids[at] = self._vocabulary.mask
            elif kind < 0.9:
                ids[at] = draw.choice(self._vocabulary.ordinary)
        return ids, labels


def read_examples(
    data: Data, folder: Path, tokenizer: Any, model: Any, task: str, raw_config: dict[str, Any]
) -> Examples:
    """Read, check, split and encode the examples a recipe names.

    Args:
        folder: what relative paths in ``data`` are relative to.
        tokenizer: transformers' fast tokenizer.
        model: read for its limits and arguments; not run.
        raw_config: config.json, for the names of labels.

    Raises:
        DataError: naming file and line, of what is wrong with the data.
        CheckpointError: the tokenizer is not a fast one, or has no mask to train fill-mask with.
    """
    encoder = Encoder(tokenizer, model, task, raw_config, data.max_length)
    vocabulary = Vocabulary.of(tokenizer, model)
    if task == "fill-mask" and vocabulary.mask is None:
        raise CheckpointError("a tokenizer with a mask token, to fill in", "none", "set mask_token in its config")
    _check_paths(data, folder)
    if task == "text-generation":
        parts, labelled, judged = token_examples(data, folder, encoder, model), True, True
    else:
        parts, labelled, judged = _encoded(data, folder, encoder)
    check_parts(parts, data, encoder)
    return Examples(encoder, vocabulary, parts, data.seed, labelled=labelled, judged=judged)


def _encoded(data: Data, folder: Path, encoder: Encoder) -> tuple[dict[str, list[Example]], bool, bool]:
    """Both parts of an encoder's examples, and whether each is labelled."""
    train = passages(data, folder, encoder) if data.train is None else load(data.train, folder, encoder)
    if data.validation is None:
        found = encoder.encode(train, training=True)
        keys = [row.sample.context or row.sample.text for row in found if row.sample is not None]
        held = set(held_out(keys, data.holdout, data.seed))
        parts = {
            "train": [row for number, row in enumerate(found) if number not in held],
            "validation": [row for number, row in enumerate(found) if number in held],
        }
        return parts, train.labelled, train.labelled
    validation = load(data.validation, folder, encoder)
    if train.labelled and not validation.labelled:
        got, fix = "one without, while the training data has them", "label it, or leave it out to hold out a share"
        raise DataError(f"labels in {validation.name}", got, fix)
    parts = {"train": encoder.encode(train, training=True), "validation": encoder.encode(validation, training=False)}
    return parts, train.labelled, validation.labelled


def held_out(keys: Sequence[str], share: float, seed: int) -> list[int]:
    """Numbers of about ``share`` of the examples, at least one, drawn with the seed.

    Examples with one key (the same text, questions on the same context) stay together: a model judged on a text it was
    trained on is judged too well.
    """
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted, chosen = max(1, round(share * len(keys))), list[int]()
    for group in order:
        if len(chosen) + len(group) <= wanted:
            chosen += group
    return sorted(chosen) if chosen or not order else min(order, key=len)


def _check_paths(data: Data, folder: Path) -> None:
    if data.train is not None and data.validation is not None:
        one, other = (folder / data.train).resolve(), (folder / data.validation).resolve()
        if one == other:
            fix = "name another file as data.validation, or leave it out to hold out a share of data.train"
            raise DataError("validation data the model is not trained on", f"{one} as both", fix)


def _grouped(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Numbers of the examples of each batch, shuffled, those of like length together."""
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    order, pool = torch.randperm(len(lengths), generator=generator).tolist(), size * _POOL
    pools = [sorted(order[i : i + pool], key=lengths.__getitem__) for i in range(0, len(order), pool)]
    groups = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return [groups[number] for number in torch.randperm(len(groups), generator=generator).tolist()]


def _mixed(seed: int, epoch: int) -> int:
    """One seed of two, in 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def _digest(task: str, parts: dict[str, list[Example]]) -> str:
    digest = hashlib.sha256(task.encode())
    for part, rows in sorted(parts.items()):
        digest.update(f"\0{part} {len(rows)}".encode())
        for row in rows:
            for tensor in (row.ids, row.types, row.label):
                digest.update(b"\0" if tensor is None else f"\0{tuple(tensor.shape)}".encode())
                digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
