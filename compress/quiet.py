"""Keep libraries from talking: halves of planish report through ``progress`` and raise, they never print."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, compressed-tensors and tqdm on stderr for the time of a ``with`` block."""
    from transformers.utils import logging as talk

    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    previous = logging.root.manager.disable
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
