"""load: from a bundle directory to a model that answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planish.errors import BundleError, RequestError, nearest
from planish.runtime.engine import MAX_THREADS, Engine, engine_library, open_session, session_options_for
from planish.runtime.integrity import Verified, check_unchanged, read_verified, verify_files
from planish.runtime.manifest import Dialect, Manifest
from planish.runtime.model import Model
from planish.runtime.placement import Device, parse_device, place_on
from planish.runtime.text import TextEncoder, load_tokenizer, special_tokens, uses_types
from planish.runtime.validate import Limits

if TYPE_CHECKING:
    from planish.runtime.choice import Choice, Reasons
    from planish.runtime.plan_engine import PlanEngine

__all__ = ["load", "open_engine"]

DIALECTS = ("ort", "qdq")
"""In order of preference for ONNX Runtime: ``ort`` has its own operators, ``qdq`` only shows what engines compute."""


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    *,
    dialect: str | None = None,
    threads: int | None = None,
    workers: int = 1,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    session_options: Any = None,
    cuda_graphs: int = 8,
    runtime_cache: str | os.PathLike[str] | None = None,
) -> Model:
    """Verifies a bundle and opens it.

    ``device``: ``auto``, ``cpu``, ``cuda``, ``tensorrt`` or the word of an installed plugin of ONNX Runtime
    (``openvino``, say), all but the first two with a number (``cuda:1``). ``auto`` is an engine of the bundle that was
    built for this GPU and TensorRT, if there is one; else ONNX Runtime on the GPU for bundles made for one, where this
    host has it; else the CPU. ``model.passed_over`` says why engines were not taken. An engine that has not passed the
    golden set on this GPU does so now.

    ``dialect``: which graph ONNX Runtime opens, ``ort`` unless the bundle has none; with it, ``auto`` takes no engine.
    ``threads``: of one forward pass (ONNX Runtime's default is all cores). ``workers``: how many batches of one call
    run at a time, over one copy of the weights and with one thread each unless ``threads`` says more; for many texts
    that is faster than many threads on one batch, for a single text slower. Both go from 1 to 1024. ``providers`` (a
    list of names, or of pairs of name and options) and ``provider_options`` go to ONNX Runtime unchanged and overrule
    ``device``; ``session_options`` is a SessionOptions, or a mapping of its attributes and config entries. Where x86
    lacks VNNI, graphs with 8-bit activations are opened so that no integer sum saturates (``runtime/dot_products.py``),
    unless these options say otherwise or allow fewer graph optimizations than the extended ones.

    Engines heed no ``threads`` and no ``session_options``. Of engines alone: ``cuda_graphs``, for how many input shapes
    an execution is kept to be repeated by one launch (0 is none); ``runtime_cache``, a folder of your own in which
    TensorRT-RTX keeps the kernels it compiles.

    Raises BundleError when anything in the bundle is not what its manifest says, HostError when this host cannot run
    it, ParityError when an engine does not give the golden answers, RequestError for arguments that mean nothing.
    """
    _check_counts(workers, cuda_graphs)
    wanted = parse_device(device)
    session_wanted = providers is not None or provider_options is not None
    if wanted.word == "tensorrt" and session_wanted:
        raise RequestError("device='tensorrt' or providers", "both", "leave them out, or pass device='cuda'")
    verified = verify_files(bundle)
    manifest = verified.manifest
    passed_over: tuple[str, ...] = ()
    auto = wanted.word == "auto" and not session_wanted and dialect is None and bool(manifest.engines)
    if wanted.word == "tensorrt" or auto:
        choice, reasons = _choose(verified, wanted, dialect)
        passed_over = tuple(f"{name}: {error}" for name, error in reasons)
        if choice is not None:
            text = _text(verified)
            plan_engine = _proved_engine(verified, choice, cuda_graphs, runtime_cache)
            kept = (choice.info.dialect, choice.engine_id, passed_over)
            return Model(manifest, plan_engine, text, f"tensorrt:{wanted.number or 0}", workers, *kept)
    if workers > 1 and threads is None:
        threads = 1
    library = engine_library()
    name, spelled = _dialect(manifest, dialect)
    placement = place_on(library, wanted, manifest.profile, providers, provider_options)
    options = session_options_for(library, name, spelled, session_options, threads)
    session = open_session(library, verified.root / spelled.path, spelled, options, placement)
    check_unchanged(verified)
    engine = Engine(session, spelled, limits_of(verified, name))
    return Model(manifest, engine, _text(verified), placement.providers[0], workers, name, None, passed_over)


def _check_counts(workers: int, cuda_graphs: int) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MAX_THREADS:
        raise RequestError(f"workers from 1 to {MAX_THREADS}", repr(workers), "leave it out for one batch at a time")
    if isinstance(cuda_graphs, bool) or not isinstance(cuda_graphs, int) or not 0 <= cuda_graphs <= MAX_THREADS:
        raise RequestError(f"cuda_graphs from 0 to {MAX_THREADS}", repr(cuda_graphs), "leave it out for the default")


def _text(verified: Verified) -> TextEncoder | None:
    data = read_verified(verified, "tokenizer.json")
    if data is None:
        return None
    config = read_verified(verified, "tokenizer_config.json")
    special = special_tokens(config, read_verified(verified, "special_tokens_map.json"))
    return TextEncoder(load_tokenizer(data), special, uses_types(config))


def limits_of(verified: Verified, dialect: str) -> Limits:
    """What inputs of a bundle have to fit in."""
    data = read_verified(verified, "config.json")
    try:
        config = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError) as error:
        raise BundleError("JSON in config.json", str(error), "export the bundle again") from error
    manifest = verified.manifest
    types = config.get("type_vocab_size") if isinstance(config, dict) else None
    generation = manifest.generation
    return Limits(
        vocab_size=manifest.vocab_size,
        max_length=manifest.max_length if generation is None else generation.max_length,
        type_vocab_size=types if isinstance(types, int) and types > 0 else None,
        generation=generation is not None,
        padding_anywhere=any(info.name == "logits_index" for info in manifest.dialects[dialect].inputs),
    )


def _dialect(manifest: Manifest, wanted: str | None) -> tuple[str, Dialect]:
    """The dialect ONNX Runtime opens. Raises RequestError for a word that is none, BundleError for one not there."""
    if wanted is not None and wanted not in DIALECTS:
        raise RequestError(f"a dialect: {' or '.join(DIALECTS)}", repr(wanted), nearest(str(wanted), DIALECTS))
    for name in (wanted,) if wanted is not None else DIALECTS:
        if name in manifest.dialects:
            return name, manifest.dialects[name]
    known = ", ".join(sorted(manifest.dialects)) or "none"
    raise BundleError(f"the dialect {wanted or DIALECTS[0]!r} in the bundle", known, "export it with `planish export`")


def _choose(verified: Verified, device: Device, dialect: str | None) -> tuple[Choice | None, Reasons]:
    """The engine for a device. Raises when one was asked for by name and none can run."""
    from planish.runtime.choice import choose_engine, no_engine

    choice, reasons = choose_engine(verified, device.number or 0)
    if choice is None and device.word == "tensorrt":
        raise no_engine(reasons)
    if choice is not None and dialect not in (None, choice.info.dialect):
        fix = f"leave dialect out, or pass device='cpu' for {dialect}"
        raise RequestError(f"dialect {choice.info.dialect!r}, which the engine was made from", repr(dialect), fix)
    return choice, reasons


def _proved_engine(
    verified: Verified, choice: Choice, cuda_graphs: int, runtime_cache: str | os.PathLike[str] | None
) -> PlanEngine:
    """An open engine that gives the golden answers on this GPU, now or when it was proved."""
    from planish.runtime.choice import is_proved
    from planish.runtime.prove import check_golden

    engine = open_engine(verified, choice, cuda_graphs=cuda_graphs, runtime_cache=runtime_cache)
    try:
        if not is_proved(verified.manifest.engines[choice.engine_id], choice.cuda):
            check_golden(verified, engine, choice.engine_id)
    except BaseException:
        engine.close()
        raise
    return engine


def open_engine(
    verified: Verified,
    choice: Choice,
    *,
    cuda_graphs: int = 8,
    runtime_cache: str | os.PathLike[str] | None = None,
) -> PlanEngine:
    """The chosen engine of a bundle whose bytes were verified, opened on its device."""
    from planish.runtime.kernel_cache import KernelCache
    from planish.runtime.plan_engine import PlanEngine

    manifest = verified.manifest
    entry = manifest.engines[choice.engine_id]
    kernels = None
    if runtime_cache is not None:
        kernels = KernelCache(runtime_cache, manifest.files[entry.path].sha256, choice.cuda.facts)
    data = read_verified(verified, entry.path)
    assert data is not None  # one of the manifest's files
    dialect = manifest.dialects[entry.dialect]
    limits = limits_of(verified, entry.dialect)
    return PlanEngine(
        choice.module, choice.cuda, data, choice.info, dialect, limits, cuda_graphs=cuda_graphs, kernels=kernels
    )
