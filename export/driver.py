"""The one door of this half: a checkpoint in, a verified bundle out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish import profiles
from planish.errors import CheckpointError, InputError
from planish.export.describe import describe, infer_task
from planish.export.golden import GOLDEN_LENGTHS, Arrays, encoder_inputs, run_torch
from planish.export.graph import Built, Progress
from planish.export.parity import check_encoder, tolerance
from planish.export.quiet import quiet
from planish.export.reader import CheckpointReader
from planish.export.reference import check_config, load_reference
from planish.export.write_bundle import check_tokenizer, write_bundle
from planish.outputs import check_output, staging
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
    progress: Progress | None = None,
) -> ExportResult:
    """Export a float or quantized ``checkpoint`` for the device ``profile`` into the bundle ``output``.

    ``task`` is inferred from the architecture unless given; ``atol`` is the largest difference from the checkpoint in
    torch that is accepted (a looser one than the default is written in the manifest). On any error nothing is left at
    ``output``.

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
    with staging(target) as folder:
        scratch = folder / ".scratch"
        make = _decoder if chosen == "text-generation" else _encoder
        built, parity, golden = make(source, scratch, fields, opset, atol, progress)
        manifest = write_bundle(folder, source, built, {**fields, "parity": {"ort": parity}}, golden, reader.config)
    return ExportResult(target, manifest)


Made = tuple[Built, dict[str, Any], tuple[Arrays, Arrays]]


def _encoder(
    source: Path, scratch: Path, fields: dict[str, Any], opset: int, atol: float | None, progress: Progress | None
) -> Made:
    from planish.export.encoder import build_encoder

    task = fields["task"]
    if fields["model_type"] not in ENCODERS:
        raise CheckpointError(
            f"an encoder of type {', '.join(ENCODERS)} for {task}", repr(fields["model_type"]), "choose another --task"
        )
    built = build_encoder(source, scratch, task=task, opset=opset, progress=progress)
    model = load_reference(source, task)
    limits = {"vocab_size": fields["vocab_size"], "pad_token_id": fields["pad_token_id"]}
    parity = check_encoder(built, model, max_length=fields["max_length"], atol=atol, progress=progress, **limits)
    lengths = [min(length, fields["max_length"]) for length in GOLDEN_LENGTHS]
    inputs = encoder_inputs([spec.name for spec in built.inputs], lengths, **limits)
    with quiet():
        outputs = run_torch(model, inputs, [spec.name for spec in built.outputs])
    return built, parity, (inputs, outputs)


def _decoder(
    source: Path, scratch: Path, fields: dict[str, Any], opset: int, atol: float | None, progress: Progress | None
) -> Made:
    from planish.export.decoder import FAMILIES, build_decoder
    from planish.export.decoder_parity import check_decoder, decoder_golden

    if fields["model_type"] in FAMILIES:
        check_config(source, "text-generation")
    built = build_decoder(source, scratch, opset=opset, progress=progress)
    model = load_reference(source, "text-generation")
    parity = check_decoder(built, model, vocab_size=fields["vocab_size"], atol=atol, progress=progress)
    return built, parity, decoder_golden(model, vocab_size=fields["vocab_size"])


def _check_opset(opset: int) -> None:
    if opset not in _OPSETS:
        known = ", ".join(map(str, _OPSETS))
        raise InputError(f"opset {known}", str(opset), "leave --opset out for 21")
