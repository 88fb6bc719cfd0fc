"""load: from a bundle directory to a model that answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from planish.errors import BundleError, RequestError
from planish.runtime.engine import MAX_THREADS, Engine, engine_library, open_session, place, session_options_for
from planish.runtime.integrity import Verified, check_unchanged, read_verified, verify_files
from planish.runtime.manifest import Manifest
from planish.runtime.model import Model
from planish.runtime.text import TextEncoder, load_tokenizer, special_tokens, uses_types
from planish.runtime.validate import Limits

__all__ = ["load"]

DIALECT = "ort"


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    *,
    threads: int | None = None,
    workers: int = 1,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    session_options: Any = None,
) -> Model:
    """Verifies a bundle and opens it.

    ``device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. ``auto`` is the GPU for bundles made for one, where this host
    has it, else the CPU. ``threads``: of one forward pass (ONNX Runtime's default is all cores). ``workers``: how many
    batches of one call run at a time, over one copy of the weights and with one thread each unless ``threads`` says
    more; for many texts that is faster than many threads on one batch, for a single text slower. Both go from 1 to
    1024. ``providers`` (a list of names, or of pairs of name and options) and ``provider_options`` go to ONNX Runtime
    unchanged and overrule ``device``; ``session_options`` is a SessionOptions, or a mapping of its attributes and
    config entries.

    Raises BundleError when anything in the bundle is not what its manifest says, HostError when this host cannot run
    it, RequestError for arguments that mean nothing.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MAX_THREADS:
        raise RequestError(f"workers from 1 to {MAX_THREADS}", repr(workers), "leave it out for one batch at a time")
    if workers > 1 and threads is None:
        threads = 1
    library = engine_library()
    verified = verify_files(bundle)
    manifest = verified.manifest
    dialect = manifest.dialects.get(DIALECT)
    if dialect is None:
        known = ", ".join(sorted(manifest.dialects)) or "none"
        raise BundleError(f"the dialect {DIALECT!r} in the bundle", known, "export it with `planish export`")
    placement = place(library.get_available_providers(), device, manifest.profile, providers, provider_options)
    options = session_options_for(library, dialect, session_options, threads)
    session = open_session(library, verified.root / dialect.path, dialect, options, placement)
    check_unchanged(verified)
    engine = Engine(session, dialect, _limits(verified, manifest))
    return Model(manifest, engine, _text(verified), placement.providers[0], workers)


def _text(verified: Verified) -> TextEncoder | None:
    data = read_verified(verified, "tokenizer.json")
    if data is None:
        return None
    config = read_verified(verified, "tokenizer_config.json")
    special = special_tokens(config, read_verified(verified, "special_tokens_map.json"))
    return TextEncoder(load_tokenizer(data), special, uses_types(config))


def _limits(verified: Verified, manifest: Manifest) -> Limits:
    data = read_verified(verified, "config.json")
    try:
        config = json.loads(data) if data is not None else {}
    except (ValueError, RecursionError) as error:
        raise BundleError("JSON in config.json", str(error), "export the bundle again") from error
    types = config.get("type_vocab_size") if isinstance(config, dict) else None
    generation = manifest.generation
    return Limits(
        vocab_size=manifest.vocab_size,
        max_length=manifest.max_length if generation is None else generation.max_length,
        type_vocab_size=types if isinstance(types, int) and types > 0 else None,
        generation=generation is not None,
    )
