"""One ONNX Runtime session: opened as the manifest says, on the device asked for, never by trial and error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from planish.errors import BundleError, HostError, RequestError, nearest
from planish.runtime.manifest import Dialect, TensorInfo
from planish.runtime.validate import Limits, check_inputs

__all__ = ["MAX_THREADS", "Engine", "Placement", "engine_library", "open_session", "place", "session_options_for"]

OLDEST = (1, 23)
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
DEVICES = ("auto", "cpu", "cuda")
MAX_THREADS = 1024
"""Of one session; a host with more cores is none of ours, and ONNX Runtime starts millions if told so."""
ERRORS_ONLY = 3
"""ONNX Runtime's log level; its warnings (device discovery, unused initializers) are no use to a caller."""


@dataclass(frozen=True)
class Placement:
    """Where a session runs: execution providers in order, and the options of each."""

    providers: tuple[str, ...]
    options: tuple[Mapping[str, Any], ...]


class Engine:
    """A session that checks what goes in. Safe to share between threads."""

    def __init__(self, session: Any, dialect: Dialect, limits: Limits) -> None:
        self.session = session
        self.dialect = dialect
        self.limits = limits
        self.input_names = tuple(info.name for info in dialect.inputs)
        self.output_names = tuple(info.name for info in dialect.outputs)
        self._optional = tuple(_tensor_info(node) for node in session.get_overridable_initializers())
        _check_ports("inputs", dialect.inputs, session.get_inputs())
        _check_ports("outputs", dialect.outputs, session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises RequestError for inputs that do not fit, HostError when the engine gives up."""
        check_inputs(inputs, self.dialect.inputs, self._optional, self.limits)
        try:
            values = self.session.run(list(self.output_names), dict(inputs))
        except Exception as error:
            raise HostError("the engine to run these inputs", _first_line(error), "try a smaller batch") from error
        return dict(zip(self.output_names, values, strict=True))


def engine_library() -> ModuleType:
    """The onnxruntime module. Raises HostError when it is missing or older than 1.23."""
    try:
        import onnxruntime
    except ImportError as error:
        raise HostError("onnxruntime", str(error), "pip install 'onnxruntime>=1.23'") from error
    found = re.match(r"(\d+)\.(\d+)", onnxruntime.__version__)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        fix = "pip install -U 'onnxruntime>=1.23'"
        raise HostError("onnxruntime 1.23 or newer", onnxruntime.__version__, fix)
    module: ModuleType = onnxruntime
    return module


def place(
    available: Sequence[str],
    device: str,
    profile: str | None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
) -> Placement:
    """Execution providers for a device, or those asked for, unchanged.

    ``auto`` is CUDA when the bundle was made for a GPU and this host has it, else the CPU. ``providers`` (names, or
    pairs of name and options, as ONNX Runtime takes them) overrule ``device``. Raises RequestError for words that mean
    nothing and HostError for providers this host has not.
    """
    if providers is None:
        chosen: list[tuple[str, Mapping[str, Any]]] = _providers_of(device, available, profile)
    else:
        if device != "auto":
            raise RequestError("device or providers", f"both ({device!r} too)", "leave one out")
        chosen = _named_providers(providers)
    if not chosen:
        raise RequestError("at least one provider", "none", f"available here: {', '.join(available)}")
    for name, _ in chosen:
        if name not in available:
            raise HostError(
                f"the provider {name}", f"only {', '.join(available)}", "install the onnxruntime that has it"
            )
    return Placement(tuple(name for name, _ in chosen), _merge_options(chosen, provider_options))


def _named_providers(providers: Any) -> list[tuple[str, Mapping[str, Any]]]:
    fix = f'pass providers=["{CPU}"], or [("{CPU}", {{}})] with options'
    if isinstance(providers, (str, bytes)) or not isinstance(providers, Sequence):
        raise RequestError("a list of providers", repr(providers)[:80], fix)
    chosen: list[tuple[str, Mapping[str, Any]]] = []
    for item in providers:
        name, options = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise RequestError("a provider's name, or a pair of name and options", repr(item)[:80], fix)
        chosen.append((name, dict(options)))
    return chosen


def _providers_of(device: str, available: Sequence[str], profile: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", str(device))
    if match is None or (match[2] is not None and match[1] != "cuda"):
        raise RequestError("device auto, cpu, cuda or cuda:N", repr(device), nearest(str(device), DEVICES))
    made_for_gpu = profile is not None and not profile.startswith("cpu-")
    if match[1] == "cpu" or (match[1] == "auto" and not (made_for_gpu and CUDA in available)):
        return [(CPU, {})]
    return [(CUDA, {} if match[2] is None else {"device_id": match[2]}), (CPU, {})]


def _merge_options(
    chosen: Sequence[tuple[str, Mapping[str, Any]]],
    extra: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> tuple[Mapping[str, Any], ...]:
    own = [options for _, options in chosen]
    given = [extra] if isinstance(extra, Mapping) else () if extra is None else extra
    if not isinstance(given, Sequence) or not all(isinstance(each, Mapping) for each in given):
        fix = 'pass provider_options=[{"name": "value"}]'
        raise RequestError("options as a mapping, or a list of them", repr(extra)[:80], fix)
    more: list[Mapping[str, Any]] = list(given)
    if len(more) > len(own):
        raise RequestError(f"options for {len(own)} providers", f"{len(more)}", "one dict a provider, in their order")
    more += [{}] * (len(own) - len(more))
    return tuple({**mine, **theirs} for mine, theirs in zip(own, more, strict=True))


def session_options_for(library: ModuleType, dialect: Dialect, given: Any, threads: int | None) -> Any:
    """SessionOptions with the manifest's entries, then the caller's.

    ``given`` is a SessionOptions (the manifest's entries are added to it), a mapping of its attributes and config
    entries (names with a dot), or None. Raises RequestError for names ONNX Runtime does not know, and for more than
    1024 threads, wherever they are asked for.
    """
    options = given if isinstance(given, library.SessionOptions) else library.SessionOptions()
    if options is not given:
        options.log_severity_level = ERRORS_ONLY
    extra: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    if given is not None and options is not given and not isinstance(given, Mapping):
        raise RequestError("SessionOptions or a mapping", type(given).__name__, "pass onnxruntime.SessionOptions()")
    for key, value in {**dialect.session, **extra}.items():
        if not isinstance(key, str):
            raise RequestError("session options by their names", repr(key), 'pass {"enable_profiling": True}, say')
        if "." in key:
            options.add_session_config_entry(key, str(value))
        else:
            _set_attribute(options, key, value)
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise RequestError(f"threads from 1 to {MAX_THREADS}", repr(threads), "leave it out for all cores")
        options.intra_op_num_threads = threads
    for name in ("intra_op_num_threads", "inter_op_num_threads"):
        if getattr(options, name) > MAX_THREADS:
            got = repr(getattr(options, name))
            raise RequestError(f"{name} of at most {MAX_THREADS}", got, "leave it out for all cores")
    return options


def _set_attribute(options: Any, key: str, value: Any) -> None:
    known = [name for name in dir(options) if not name.startswith("_") and not callable(getattr(options, name))]
    if key not in known:
        raise RequestError("session options of ONNX Runtime", repr(key), nearest(key, known))
    try:
        setattr(options, key, value)
    except TypeError as error:
        raise RequestError(f"a value for {key}", repr(value), _first_line(error)) from error


def open_session(library: ModuleType, path: Path, dialect: Dialect, options: Any, placement: Placement) -> Any:
    """An InferenceSession on exactly the providers of ``placement``.

    From the path: reading the bytes first costs 120 MB more at the peak for a 90 MB model. Raises HostError when this
    host's engine cannot run the graph, BundleError when the file is no model.
    """
    settings: dict[str, Any] = {"providers": list(placement.providers)}
    settings["provider_options"] = [{key: str(value) for key, value in each.items()} for each in placement.options]
    if dialect.disabled_optimizers:
        settings["disabled_optimizers"] = list(dialect.disabled_optimizers)
    try:
        session = library.InferenceSession(str(path), options, **settings)
    except Exception as error:
        if type(error).__name__ in ("InvalidProtobuf", "NoSuchFile"):
            raise BundleError(f"an ONNX model in {path.name}", _first_line(error), "export the bundle again") from error
        wanted = f"an onnxruntime that can open {dialect.path} (opset {dialect.opset})"
        got = f"onnxruntime {library.__version__}: {_first_line(error)}"
        raise HostError(wanted, got, "upgrade onnxruntime, or export for this device") from error
    if session.get_providers()[0] != placement.providers[0]:
        # ONNX Runtime logs that a provider could not start, and goes on with the rest.
        got = f"only {', '.join(session.get_providers())}"
        raise HostError(f"the provider {placement.providers[0]} to start", got, "check the driver and library versions")
    return session


_DTYPES = {"float": "float32", "double": "float64"}


def _tensor_info(node: Any) -> TensorInfo:
    match = re.fullmatch(r"tensor\((\w+)\)", node.type)
    dtype = match[1] if match else node.type
    shape = tuple(size if isinstance(size, (int, str)) else "?" for size in node.shape)
    return TensorInfo(node.name, _DTYPES.get(dtype, dtype), shape)


def _check_ports(what: str, expected: Sequence[TensorInfo], nodes: Sequence[Any]) -> None:
    found = {info.name: info.dtype for info in map(_tensor_info, nodes)}
    wanted = {info.name: info.dtype for info in expected}
    if found != wanted:
        raise BundleError(f"the {what} of the manifest, {wanted}", f"{found}", "export the bundle again")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
