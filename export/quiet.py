"""Keep libraries from talking: this half reports through ``progress`` and raises, it never prints."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch.onnx, transformers and compressed-tensors for the time of a ``with`` block."""
    from transformers.utils import logging as talk

    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    previous = logging.root.manager.disable
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
