"""Keep libraries from talking: halves of planish report through ``progress`` and raise, they never print."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet(*, gguf: bool = False) -> Iterator[None]:
    """Silence transformers and the hub for the time of a ``with`` block.

    ``gguf``: hold back stderr as well, for transformers' GGUF reader draws a bar that no switch turns off.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as talk

    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    hub_bars, previous = not are_progress_bars_disabled(), logging.root.manager.disable
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()) if gguf else contextlib.nullcontext():
            yield
    finally:
        logging.disable(previous)
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
