"""The one door of this half: a checkpoint in, a verified bundle out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from planish import profiles
from planish.errors import CheckpointError, InputError, nearest
from planish.export.describe import describe, infer_task
from planish.export.encoder import OUTPUTS
from planish.export.golden import GOLDEN_LENGTHS, Arrays, encoder_inputs, run_torch, text_inputs
from planish.export.graph import Built, Dialect, Progress
from planish.export.parity import check_encoder, check_encoder_qdq, tolerance
from planish.export.quiet import quiet
from planish.export.reader import CheckpointReader
from planish.export.reference import check_config, load_reference
from planish.export.write_bundle import check_tokenizer, write_bundle
from planish.outputs import check_output, staging
from planish.profiles.schema import DIALECTS
from planish.runtime import Manifest

__all__ = ["ExportResult", "export"]

_OPSETS = (21, 22, 23)
"""Blocked QuantizeLinear starts at 21; ONNX Runtime 1.23, the oldest we serve, ends at 23."""

ENCODERS = ("bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
"""``model_type`` of encoders we trace; a test exports a small model of each."""


@dataclass(frozen=True)
class ExportResult:
    """A bundle that was written, and its manifest."""

    path: Path
    manifest: Manifest


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    profile: str = "cpu-x86-avx512-vnni",
    task: str | None = None,
    opset: int = 21,
    atol: float | None = None,
    dialects: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a float or quantized ``checkpoint`` for the device ``profile`` into the bundle ``output``.

    ``task`` is inferred from the architecture unless given; ``atol`` is the largest difference from the checkpoint in
    torch that is accepted (a looser one than the default is written in the manifest); ``dialects`` are the profile's
    unless given. On any error nothing is left at ``output``.

    Raises:
        InputError: the output exists, or an argument is unknown (``ProfileError``, ``CheckpointError``).
        ParityError: the graph does not compute what the checkpoint computes.
        HostError: the disk is full.
    """
    source, target = Path(checkpoint), check_output(output)
    _check_opset(opset)
    tolerance(atol)
    device = profiles.load(profile)
    reader = CheckpointReader(source)
    chosen = infer_task(reader.config, task)
    fields = {**describe(source, reader, chosen), "profile": device.name, "gates": []}
    check_tokenizer(source)
    _check_finite(reader)
    with staging(target) as folder:
        make = _decoder if chosen == "text-generation" else _encoder
        job = _Job(source, reader, folder / ".scratch", fields, _dialects(device, dialects), opset, atol, progress)
        built, parity, golden = make(job)
        manifest = write_bundle(folder, source, built, {**fields, "parity": parity}, golden, reader.config)
    return ExportResult(target, manifest)


@dataclass(frozen=True)
class _Job:
    """What to export, and how."""

    source: Path
    reader: CheckpointReader
    scratch: Path
    fields: dict[str, Any]
    dialects: tuple[Dialect, ...]
    opset: int
    atol: float | None
    progress: Progress | None


Made = tuple[list[Built], dict[str, dict[str, Any]], tuple[Arrays, Arrays]]


def _encoder(job: _Job) -> Made:
    from planish.export.encoder import build_encoder, input_names, trace_encoder

    task, fields = job.fields["task"], job.fields
    if fields["model_type"] not in ENCODERS:
        raise CheckpointError(
            f"an encoder of type {', '.join(ENCODERS)} for {task}", repr(fields["model_type"]), "choose another --task"
        )
    traced = trace_encoder(job.source, task=task, opset=job.opset, progress=job.progress)
    model = load_reference(job.source, task)
    vocab, longest, pad = fields["vocab_size"], fields["max_length"], fields["pad_token_id"]
    names = input_names(model)
    golden_lengths = [min(length, longest) for length in GOLDEN_LENGTHS]
    inputs = encoder_inputs(names, golden_lengths, vocab_size=vocab, pad_token_id=pad)
    with quiet():
        golden = inputs, run_torch(model, inputs, OUTPUTS[task])
    graphs: list[Built] = []
    parity: dict[str, dict[str, Any]] = {}
    for dialect in job.dialects:
        texts = _range_texts(job, names) if dialect == "qdq" else ()
        built = build_encoder(traced, job.scratch / dialect, dialect=dialect, texts=texts, progress=job.progress)
        check = partial(check_encoder_qdq, golden=golden) if dialect == "qdq" else check_encoder
        parity[dialect] = check(
            built,
            model,
            vocab_size=vocab,
            max_length=longest,
            pad_token_id=pad,
            atol=job.atol,
            progress=job.progress,
        )
        graphs.append(built)
    return graphs, parity, golden


def _range_texts(job: _Job, names: tuple[str, ...]) -> list[Arrays]:
    fields = job.fields
    tokenizer = job.source / "tokenizer.json"
    return text_inputs(names, tokenizer, vocab_size=fields["vocab_size"], max_length=fields["max_length"])


def _decoder(job: _Job) -> Made:
    from planish.export.decoder import FAMILIES, build_decoder
    from planish.export.decoder_parity import check_decoder, decoder_golden
    from planish.export.qdq_parity import check_decoder_qdq

    if job.fields["model_type"] in FAMILIES:
        check_config(job.source, "text-generation")
    vocab = job.fields["vocab_size"]
    # All graphs before the model is loaded: the two would be in memory at once.
    graphs = [
        build_decoder(job.source, job.scratch / dialect, dialect=dialect, opset=job.opset, progress=job.progress)
        for dialect in job.dialects
    ]
    model = load_reference(job.source, "text-generation")
    golden = decoder_golden(model, vocab_size=vocab)
    parity: dict[str, dict[str, Any]] = {}
    for built in graphs:
        check = partial(check_decoder_qdq, golden=golden) if built.dialect == "qdq" else check_decoder
        parity[built.dialect] = check(built, model, vocab_size=vocab, atol=job.atol, progress=job.progress)
    return graphs, parity, golden


def _dialects(device: profiles.Profile, asked: Sequence[str] | None) -> tuple[Dialect, ...]:
    chosen = tuple(device.dialects if asked is None else asked)
    for name in chosen:
        if name not in DIALECTS:
            raise InputError("a dialect planish exports", repr(name), nearest(name, DIALECTS))
    return cast("tuple[Dialect, ...]", chosen)


def _check_finite(reader: CheckpointReader) -> None:
    """Raise ``CheckpointError`` for parameters that are no numbers: what is exported would answer NaN."""
    for name in reader.names:
        if name.endswith((".weight", ".bias", "_scale")):
            array = reader.tensor(name)
            if array.dtype.kind not in "iub" and not bool(np.all(np.isfinite(array))):
                got, fix = f"NaN or infinity in {name}", "retrain or re-download it"
                raise CheckpointError(f"finite weights in {reader.directory.name}", got, fix)


def _check_opset(opset: int) -> None:
    if opset not in _OPSETS:
        known = ", ".join(map(str, _OPSETS))
        raise InputError(f"opset {known}", str(opset), "leave --opset out for 21")
