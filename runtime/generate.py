"""Text generation with an exported decoder: one prompt or many, whole or as a stream.

Each call has its own cache, bindings and random streams, so calls from several threads do not meet; a row that is
finished leaves the batch at once, and a call that is abandoned (an exception, Ctrl-C, a closed stream) leaves nothing
behind.
"""

from __future__ import annotations

from collections.abc import Generator as PyGenerator
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, overload

from planish.runtime.decoders import Decoder, Run
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.prompts import (
    Options,
    Prompts,
    Request,
    check_count,
    check_lengths,
    check_seeds,
    check_stops,
    read_prompts,
)
from planish.runtime.sample import FloatArray, IntArray, Sampler, Sampling, log_sum_exp
from planish.runtime.score import Score, score
from planish.runtime.stream import Detokenizer, Piece, StopMatcher
from planish.runtime.text import TextEncoder

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing's own from Python 3.11 on

__all__ = ["Generation", "Generator", "Stream"]

Pieces = PyGenerator[Piece, None, None]


@dataclass(frozen=True)
class Generation:
    """What a prompt was answered with.

    ``text`` continues the prompt (a leading space included) up to, not including, the stop string. ``token_ids`` are
    the generated ids without the end-of-sequence id. ``logprobs``, if asked for, are the log-probabilities of
    ``token_ids`` under the model itself, before penalty, temperature and filters.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length", "eos"]
    prompt_tokens: int
    logprobs: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return self.text


class Generator:
    """Generates with a decoder, whatever engine runs it (docs/formats.md, sections 5 and 5b). Thread-safe.

    ``batch_size`` bounds how many prompts share a forward pass, and so may the engine; more prompts run in groups.
    """

    def __init__(
        self, decoder: Decoder, encoder: TextEncoder, info: DecoderInfo, vocab_size: int, *, batch_size: int = 8
    ) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._info = info
        self._vocab_size = vocab_size
        self._batch_size = min(check_count("batch_size", batch_size), decoder.max_rows or batch_size)
        added = encoder.tokenizer.get_added_tokens_decoder()
        self._special = frozenset(int(i) for i, token in added.items() if token.special)
        self._eos = frozenset(info.eos_token_ids)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] to the type checker
        self, prompts: str | Sequence[int], *, stream: Literal[False] = ..., **options: Unpack[Options]
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        stream: Literal[False] = ...,
        **options: Unpack[Options],
    ) -> list[Generation]: ...
    @overload
    def generate(self, prompts: Prompts, *, stream: Literal[True], **options: Unpack[Options]) -> Stream: ...
    @overload
    def generate(
        self, prompts: Prompts, *, stream: bool = ..., **options: Unpack[Options]
    ) -> Generation | list[Generation] | Stream: ...
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        logprobs: bool = False,
        stream: bool = False,
    ) -> Generation | list[Generation] | Stream:
        """Continue ``prompts``: a text or its token ids gives a :class:`Generation`, a list of them a list, in order.

        ``temperature=0`` is greedy. Sampling follows the Hugging Face processors and their order;
        ``repetition_penalty`` goes from 0.01 to 100, and 1 is none. ``seed`` makes it repeatable, whatever else is in
        the batch (one seed for all prompts, or one each). ``stop`` ends a text before the first of these strings.
        ``stream=True`` gives a :class:`Stream` of :class:`Piece` instead. Raises
        :class:`planish.errors.RequestError` before anything runs.
        """
        ids, single = read_prompts(prompts, self._encoder, self._vocab_size)
        count = check_count("max_new_tokens", max_new_tokens)
        check_lengths(ids, count, self._info.max_length)
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        seeds, stops = check_seeds(seed, len(ids)), check_stops(stop)
        result = Stream(self, Request(ids, single, count, sampling, seeds, stops, bool(logprobs), bool(stream)))
        return result if stream else result.finish()

    def score(self, texts: str | Sequence[str], context: int = 512) -> Score:
        """Negative log-likelihood of ``texts``, token by token, and their perplexity; see :func:`score`."""
        return score(self._decoder, self._encoder, self._info, self._vocab_size, texts, context)

    def _answer(self, request: Request, results: list[Generation | None]) -> Pieces:
        """Run all groups; fills ``results`` and yields the pieces as they come."""
        for start in range(0, len(request.prompts), self._batch_size):
            group = range(start, min(start + self._batch_size, len(request.prompts)))
            rows = [self._row(request, index) for index in group]
            yield from self._decode(rows, request.max_new_tokens, results)

    def _decode_ids(self, ids: list[int]) -> str:
        # Special tokens are taken out by id before this, so that one in the prompt's end cannot shift the text.
        return str(self._encoder.tokenizer.decode(ids, skip_special_tokens=False))

    def _row(self, request: Request, index: int) -> _Row:
        prompt = request.prompts[index]
        sampler = Sampler(request.sampling, request.seeds[index], prompt, self._vocab_size)
        text = Detokenizer(self._decode_ids, self._special, prompt[-16:].tolist())
        return _Row(index, request, sampler, text, self._eos, self._vocab_size)

    def _decode(self, rows: list[_Row], count: int, results: list[Generation | None]) -> Pieces:
        longest = max(row.prompt.size for row in rows)
        run = self._decoder.start(len(rows), longest=longest, limit=longest + count)
        try:
            yield from self._follow(run, rows, results)
        finally:
            run.close()

    @staticmethod
    def _follow(run: Run, rows: list[_Row], results: list[Generation | None]) -> Pieces:
        """Steps until every row is finished; a finished one leaves the run at once."""
        logits = run.prefill([row.prompt for row in rows])
        while True:
            for row, scores in zip(rows, logits, strict=True):
                piece = row.advance(scores)
                if piece is not None:
                    yield piece
            for at in reversed(range(len(rows))):
                if rows[at].finish_reason is not None:
                    results[rows[at].index] = rows[at].result()
                    rows[at] = rows[-1]
                    rows.pop()
                    if rows:
                        run.drop(at)
            if not rows:
                return
            logits = run.step([row.tokens[-1] for row in rows])


class _Row:
    """One prompt on its way: its sampler, its text so far, and when it ends."""

    def __init__(
        self,
        index: int,
        request: Request,
        sampler: Sampler,
        detokenizer: Detokenizer,
        eos: frozenset[int],
        vocab_size: int,
    ) -> None:
        self.index = index
        self.prompt: IntArray = request.prompts[index]
        self.tokens: list[int] = []
        self.finish_reason: Literal["stop", "length", "eos"] | None = None
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = StopMatcher(request.stops)
        self._eos = eos
        self._vocab_size = vocab_size
        self._limit = request.max_new_tokens
        self._logprobs: list[float] | None = [] if request.logprobs else None
        # Nobody looks at the text before the end unless it is streamed or searched for stop strings.
        self._live = request.streaming or bool(request.stops)
        self._text: list[str] = []

    def advance(self, logits: FloatArray) -> Piece | None:
        """Take the next token from ``logits`` ``[vocab or more]``; a piece if there is text to show or the row ends."""
        token = self._choose(logits[: self._vocab_size])
        if token in self._eos:
            return self._end("eos", "")
        self.tokens.append(token)
        text, stopped = self._stops.push(self._detokenizer.push(token)) if self._live else ("", False)
        if stopped:
            self.finish_reason = "stop"
            return self._show(text)
        if len(self.tokens) == self._limit:
            return self._end("length", text)
        return self._show(text) if text else None

    def _choose(self, logits: FloatArray) -> int:
        if self._logprobs is None:
            return self._sampler(logits)
        raw = logits.copy()  # the sampler penalizes in place
        token = self._sampler(logits)
        if token not in self._eos:
            self._logprobs.append(float(raw[token]) - log_sum_exp(raw))
        return token

    def _end(self, reason: Literal["length", "eos"], text: str) -> Piece:
        rest = self._detokenizer.flush() if self._live else self._detokenizer.extend(self.tokens)
        more, stopped = self._stops.push(rest)
        self.finish_reason = "stop" if stopped else reason
        return self._show(text + more + ("" if stopped else self._stops.flush()))

    def _show(self, text: str) -> Piece:
        self._text.append(text)
        return Piece(self.index, text, self.finish_reason)

    def result(self) -> Generation:
        assert self.finish_reason is not None
        logprobs = None if self._logprobs is None else tuple(self._logprobs)
        return Generation("".join(self._text), tuple(self.tokens), self.finish_reason, self.prompt.size, logprobs)


class Stream:
    """The pieces of an answer, one by one; also a context manager.

    Nothing runs between pieces. Closing it early (``close()``, leaving a ``with`` block, or dropping it) frees the
    cache and leaves the model usable. After the last piece, ``result`` holds what ``generate`` would have returned.
    """

    def __init__(self, generator: Generator, request: Request) -> None:
        self._single = request.single
        self._results: list[Generation | None] = [None] * len(request.prompts)
        self._pieces = generator._answer(request, self._results)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop here; further iteration ends at once."""
        self._pieces.close()

    @property
    def result(self) -> Generation | list[Generation] | None:
        """The finished answer or answers; None while a row is still open (or was cut off by ``close``)."""
        done = [result for result in self._results if result is not None]
        if len(done) < len(self._results):
            return None
        return done[0] if self._single else done

    def finish(self) -> Generation | list[Generation]:
        """Run to the end and return the result."""
        for _ in self:
            pass
        result = self.result
        assert result is not None
        return result
