"""A loaded bundle: one method a task, and ``run`` for raw tensors."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, RequestError
from planish.runtime.answer import Answer, Window, best_answers
from planish.runtime.batching import Forward
from planish.runtime.classify import Classification, classification, label_names, softmax
from planish.runtime.embed import pool, pooling_for
from planish.runtime.engine import Engine
from planish.runtime.fill import Filled, fill_masks, mask_positions
from planish.runtime.manifest import Manifest
from planish.runtime.pieces import Piece, truncated, whole, windows
from planish.runtime.tag import Entity, Token, entities
from planish.runtime.text import TextEncoder

if TYPE_CHECKING:
    from planish.runtime.decoders import Decoder
    from planish.runtime.plan_engine import PlanEngine

__all__ = ["METHODS", "Model"]

METHODS = {
    "feature-extraction": "embed",
    "text-classification": "classify",
    "token-classification": "tag",
    "question-answering": "answer",
    "fill-mask": "fill",
    "text-generation": "generate",
}

Texts = str | Sequence[str]


class Model:
    """What :func:`planish.runtime.load` returns. Threads may share it; closing it (or leaving ``with``) ends it.

    Every task method takes one text or a sequence of them and returns a list with a result for each, in order. Texts
    are sorted by length and run in batches of ``batch_size``. All raise RequestError for a task the bundle does not
    offer and for input the model cannot take.

    Texts longer than ``manifest.max_length`` tokens: ``tag`` and ``answer`` read them whole, in windows, and
    ``generate`` refuses them. ``embed``, ``classify`` and ``fill`` read as much as fits; with ``truncate=False`` they
    raise a RequestError that names the text and its tokens instead, and ``count_tokens`` tells beforehand.

    ``device`` is the execution provider of ONNX Runtime that comes first, or ``tensorrt:0`` for the engine
    ``engine_id``; ``dialect`` is the spelling of the graph; ``passed_over`` says why other engines do not run here.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine | PlanEngine,
        text: TextEncoder | None,
        device: str,
        workers: int = 1,
        dialect: str = "ort",
        engine_id: str | None = None,
        passed_over: tuple[str, ...] = (),
    ) -> None:
        self.manifest = manifest
        self.device = device
        self.dialect = dialect
        self.engine_id = engine_id
        self.passed_over = passed_over
        self._workers = workers
        self._engine: Engine | PlanEngine | None = engine
        self._text = text
        self._generator: Any = None
        self._lock = threading.Lock()

    def embed(
        self,
        texts: Texts,
        *,
        batch_size: int = 32,
        truncate: bool = True,
        pooling: str | None = None,
        normalize: bool | None = None,
    ) -> NDArray[np.float32]:
        """Sentence vectors, float32 [texts, hidden], pooled as the checkpoint asks unless told otherwise.

        Texts longer than ``manifest.max_length`` tokens lose their end (:meth:`count_tokens` tells which they are);
        with ``truncate=False`` they are refused.
        """
        forward, text = self._ready("embed")
        chosen = pooling_for(self.manifest, pooling, normalize)
        pieces = self._pieces(text, _texts(texts), truncate)
        width = forward.engine.dialect.outputs[0].shape[-1]
        result = np.zeros((len(pieces), width if isinstance(width, int) else 0), dtype=np.float32)
        for row in forward(pieces, batch_size):
            vector = pool(row.outputs["last_hidden_state"], chosen)
            if result.shape[1] != len(vector):
                result = np.zeros((len(pieces), len(vector)), dtype=np.float32)
            result[row.index] = vector
        return result

    def classify(
        self,
        texts: Texts | Sequence[tuple[str, str]],
        *,
        top_k: int | None = None,
        batch_size: int = 32,
        truncate: bool = True,
    ) -> list[Classification]:
        """Labels and scores of each text, or pair of texts, best first; all labels unless ``top_k`` says how many.

        Texts too long for the model lose their end, the longer of a pair first, and their results say ``truncated``;
        with ``truncate=False`` they are refused.
        """
        forward, text = self._ready("classify")
        pieces = self._pieces(text, _texts(texts), truncate)
        results: dict[int, Classification] = {}
        for row in forward(pieces, batch_size):
            cut = pieces[row.index].cut
            results[row.index] = classification(row.outputs["logits"], self.manifest, top_k, cut)
        return [results[index] for index in range(len(pieces))]

    def tag(
        self,
        texts: Texts,
        *,
        aggregation: str = "simple",
        stride: int = 64,
        batch_size: int = 32,
    ) -> list[list[Entity]]:
        """Entities of each text, with character spans; ``aggregation`` is explained at :func:`.tag.entities`.

        Long texts are read in windows that share ``stride`` tokens; a token's label comes from the window in which it
        stands farthest from an edge.
        """
        forward, text = self._ready("tag")
        _count("stride", stride, 0)
        listed = _texts(texts)
        encodings = text.encode(listed)
        cut = [windows(encoding, self.manifest.max_length, stride, 0) for encoding in encodings]
        owners = [(number, piece) for number, pieces in enumerate(cut) for piece in pieces]
        best: list[dict[int, tuple[int, NDArray[np.float64]]]] = [{} for _ in listed]
        for row in forward([piece for _, piece in owners], batch_size):
            number, piece = owners[row.index]
            _keep_central(best[number], piece, softmax(row.outputs["logits"]))
        results = []
        for source, encoding, scores in zip(listed, encodings, best, strict=True):
            spans, words = encoding.offsets, encoding.word_ids
            tokens = [Token(scores[index][1], *spans[index], words[index]) for index in sorted(scores)]
            names = label_names(self.manifest, len(tokens[0].scores)) if tokens else ()
            results.append(entities(source, tokens, names, aggregation))
        return results

    def answer(
        self,
        questions: Texts,
        contexts: Texts,
        *,
        top_k: int = 1,
        max_answer_length: int = 15,
        no_answer: bool = False,
        max_length: int = 384,
        stride: int = 128,
        batch_size: int = 32,
    ) -> list[Answer]:
        """The span of each context that answers its question, with score and character offsets.

        Contexts longer than ``max_length`` tokens (question included) are read in windows that share ``stride``
        tokens. ``max_answer_length`` counts tokens. With ``no_answer`` the empty answer may win. One question with
        several contexts, or several questions on one context, are paired up.
        """
        forward, text = self._ready("answer")
        for name, value, least in (("top_k", top_k, 1), ("max_answer_length", max_answer_length, 1)):
            _count(name, value, least)
        _count("stride", stride, 0)
        _count("max_length", max_length, 1)
        pairs = _pairs(_texts(questions), _texts(contexts))
        limit = min(max_length, self.manifest.max_length)
        cut = [windows(encoding, limit, stride, 1) for encoding in text.encode(pairs)]
        owners = [(number, piece) for number, pieces in enumerate(cut) for piece in pieces]
        rows: dict[int, Window] = {}
        for row in forward([piece for _, piece in owners], batch_size):
            logits = row.outputs["start_logits"], row.outputs["end_logits"]
            rows[row.index] = Window(owners[row.index][1], *logits)
        grouped: list[list[Window]] = [[] for _ in pairs]
        for index, (number, _) in enumerate(owners):
            grouped[number].append(rows[index])
        return [
            best_answers(context, found, max_answer_length, top_k, no_answer)
            for (_, context), found in zip(pairs, grouped, strict=True)
        ]

    def fill(self, texts: Texts, *, top_k: int = 5, batch_size: int = 8, truncate: bool = True) -> list[list[Filled]]:
        """The ``top_k`` likeliest tokens for each mask of each text, masks in order, best first.

        The model answers with a whole vocabulary for every token, so batches are small. Texts too long for the model
        lose their end, unless a mask is in it: such a text is refused, and with ``truncate=False`` every one too long.
        """
        forward, text = self._ready("fill")
        mask_id, mask_token = text.token_id("mask_token"), text.special.get("mask_token", "")
        if mask_id is None:
            raise BundleError("a mask token in the tokenizer", "none", "export a masked language model")
        listed = _texts(texts)
        pieces = self._pieces(text, listed, truncate)
        positions = [mask_positions(piece, mask_id, mask_token) for piece in pieces]
        results: dict[int, list[Filled]] = {}
        for row in forward(pieces, batch_size):
            index = row.index
            logits = row.outputs["logits"]
            results[index] = fill_masks(listed[index], pieces[index], logits, positions[index], text.tokenizer, top_k)
        return [results[index] for index in range(len(pieces))]

    def generate(self, prompts: Any, **options: Any) -> Any:
        """Continues prompts: options and results are those of :meth:`planish.runtime.generate.Generator.generate`.

        Raises RequestError for an option it does not have.
        """
        from planish.runtime.prompts import check_options  # bundles of other tasks do not need it

        generator = self.generator
        check_options(options)
        return generator.generate(prompts, **options)

    def score(self, texts: Texts, context: int = 512) -> Any:
        """Perplexity of texts under a decoder: see :meth:`planish.runtime.generate.Generator.score`."""
        return self.generator.score(texts, context)

    @property
    def generator(self) -> Any:
        """The generator of a text-generation bundle, made when first asked for."""
        _, text = self._ready("generate")
        decoder, info = self.decoder, self.manifest.generation
        assert info is not None  # the decoder would have refused
        with self._lock:
            if self._generator is None:
                from planish.runtime.generate import Generator

                self._generator = Generator(decoder, text, info, self.manifest.vocab_size)
            return self._generator

    @property
    def decoder(self) -> Decoder:
        """Prefill, steps and scores of a text-generation bundle, below texts: see :mod:`planish.runtime.decoders`."""
        from planish.runtime.decoders import decoder_of

        return decoder_of(self._open(), self.manifest)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Raw tensors in, raw tensors out, by name; any task. Names, dtypes, ids, masks and lengths are checked."""
        return self._open().run(inputs)

    def count_tokens(self, texts: Texts | Sequence[tuple[str, str]]) -> list[int]:
        """How many tokens each text has, special tokens included; more than ``manifest.max_length`` is too long."""
        return [len(encoding) for encoding in self._encoder().encode(_texts(texts))]

    @property
    def session(self) -> Any:
        """The onnxruntime.InferenceSession, for what this class does not offer. Raises RequestError for an engine."""
        return self._open().session

    @property
    def tokenizer(self) -> Any:
        """The tokenizers.Tokenizer, without padding and truncation. Do not change it: threads share it."""
        return self._encoder().tokenizer

    def close(self) -> None:
        """Frees the engine; the model cannot be used after. Closing twice is fine."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._generator = None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Engine | PlanEngine:
        if self._engine is None:
            raise RequestError("an open model", "a closed one", "load the bundle again")
        return self._engine

    def _encoder(self) -> TextEncoder:
        if self._text is None:
            raise BundleError("a tokenizer.json in the bundle", "none", "call run() with token ids, or export again")
        return self._text

    def _ready(self, method: str) -> tuple[Forward, TextEncoder]:
        offered = METHODS[self.manifest.task]
        if method != offered:
            fix = f"call {offered}() or run()"
            raise RequestError(f"a bundle that offers {method}()", f"one made for {self.manifest.task}", fix)
        text = self._encoder()
        return Forward(self._open(), self.manifest.pad_token_id or 0, text.typed, self._workers), text

    def _pieces(self, text: TextEncoder, texts: Sequence[Any], truncate: bool) -> list[Piece]:
        limit = self.manifest.max_length
        encodings = text.encode(texts)
        if truncate:
            return [truncated(encoding, limit) for encoding in encodings]
        for index, encoding in enumerate(encodings):
            if len(encoding) > limit:
                got = f"{len(encoding)} in text {index}"
                raise RequestError(f"at most {limit} tokens", got, "shorten it, or pass truncate=True")
        return [whole(encoding) for encoding in encodings]


def _texts(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray, memoryview)):
        raise RequestError("a text or a sequence of texts", type(texts).__name__, "pass str or list[str]")
    return list(texts)


def _pairs(questions: list[str], contexts: list[str]) -> list[tuple[str, str]]:
    if len(questions) == 1:
        questions = questions * len(contexts)
    if len(contexts) == 1:
        contexts = contexts * len(questions)
    if len(questions) != len(contexts):
        got = f"{len(questions)} and {len(contexts)}"
        raise RequestError("as many questions as contexts", got, "or one of either")
    return list(zip(questions, contexts, strict=True))


def _count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestError(f"{name} of at least {least}", repr(value), "leave it out for the default")


def _keep_central(best: dict[int, tuple[int, NDArray[np.float64]]], piece: Piece, scores: NDArray[np.float64]) -> None:
    """Keeps for every token of the text the scores from the window in which it is farthest from an edge."""
    for position, (index, sequence) in enumerate(zip(piece.kept, piece.sequence_ids, strict=True)):
        distance = min(position, len(piece) - 1 - position)
        if sequence == 0 and (index not in best or distance > best[index][0]):
            best[index] = (distance, scores[position])
