"""One ONNX Runtime session: opened as the manifest says, on the device asked for, never by trial and error."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from planish.errors import BundleError, HostError, RequestError, nearest
from planish.runtime.dot_products import exact_options
from planish.runtime.manifest import Dialect, TensorInfo
from planish.runtime.placement import Placement
from planish.runtime.validate import Limits, check_inputs

__all__ = ["MAX_THREADS", "Engine", "engine_library", "open_session", "session_options_for"]

OLDEST = (1, 23)
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
MAX_THREADS = 1024
"""Of one session; a host with more cores is none of ours, and ONNX Runtime starts millions if told so."""
ERRORS_ONLY = 3
"""ONNX Runtime's log level; its warnings (device discovery, unused initializers) are no use to a caller."""


class Engine:
    """A session that checks what goes in. Safe to share between threads."""

    def __init__(self, session: Any, dialect: Dialect, limits: Limits) -> None:
        self.session = session
        self.dialect = dialect
        self.limits = limits
        self.input_names = tuple(info.name for info in dialect.inputs)
        self.output_names = tuple(info.name for info in dialect.outputs)
        self._optional = tuple(_tensor_info(node) for node in session.get_overridable_initializers())
        self.max_rows: int | None = None
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

    def padded(self, length: int) -> int:
        """To how many tokens a batch of this length is padded: no more than it needs."""
        return length

    def close(self) -> None:
        """Nothing to do: the session frees itself when nobody uses it any more."""


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


def session_options_for(library: ModuleType, name: str, dialect: Dialect, given: Any, threads: int | None) -> Any:
    """SessionOptions with what this processor needs to add exactly, the manifest's entries, then the caller's.

    ``name`` is the dialect's. ``given`` is a SessionOptions (entries are added to it; what it has of the first kind
    stays), a mapping of its attributes and config entries (names with a dot), or None. Raises RequestError for names
    ONNX Runtime does not know, and for more than 1024 threads, wherever they are asked for.
    """
    options = given if isinstance(given, library.SessionOptions) else library.SessionOptions()
    if options is not given:
        options.log_severity_level = ERRORS_ONLY
    extra: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    if given is not None and options is not given and not isinstance(given, Mapping):
        raise RequestError("SessionOptions or a mapping", type(given).__name__, "pass onnxruntime.SessionOptions()")
    exact = exact_options(name, dialect.precision)
    if options is given:
        exact = {key: value for key, value in exact.items() if not _has_entry(options, key)}
    for key, value in {**exact, **dialect.session, **extra}.items():
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


def _has_entry(options: Any, key: str) -> bool:
    try:
        options.get_session_config_entry(key)
    except RuntimeError:  # how ONNX Runtime says no
        return False
    return True


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
    said = _preload(library, placement.providers[0])
    provider_options = [{key: str(value) for key, value in each.items()} for each in placement.options]
    settings: dict[str, Any] = {}
    if placement.ep_devices:
        options.add_provider_for_devices(list(placement.ep_devices), provider_options[0])
    else:
        settings |= {"providers": list(placement.providers), "provider_options": provider_options}
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
        got = f"only {', '.join(session.get_providers())}{said}"
        raise HostError(f"the provider {placement.providers[0]} to start", got, "check the driver and library versions")
    return session


def _preload(library: ModuleType, provider: str) -> str:
    """Lets ONNX Runtime find CUDA in NVIDIA's packages, and returns what it prints about that, in one line."""
    if provider not in GPU_PROVIDERS or not hasattr(library, "preload_dlls"):
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        library.preload_dlls()
    lines = printed.getvalue().strip().splitlines()
    return f" ({lines[0][:200]})" if lines else ""


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
