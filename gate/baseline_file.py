"""Baseline files: what a bundle said on every sample, its size, memory and times, and the device they hold for.

The format stands in docs/formats.md, section 7. A file carries its own digest over its values (not over their
spelling: version control may change line ends), so that an edited or torn file is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from planish import __version__
from planish.errors import BundleError, InputError
from planish.gate.clock import KeptClock, Timing
from planish.gate.data import Dataset, Sample, no_constant, unique_keys
from planish.gate.fingerprint import Fingerprint
from planish.gate.outputs import ASKS, Failure, Output, Outputs
from planish.gate.packed import pack, unpack_floats, unpack_integers
from planish.gate.spans import Span
from planish.runtime.decode import decode, encode
from planish.runtime.manifest import canonical

__all__ = [
    "BaselineFile",
    "RecordedBundle",
    "RecordedData",
    "RecordedLatency",
    "RecordedSample",
    "RecordedTimes",
    "RecordedWindows",
    "data_of",
    "parse_baseline",
    "read_baseline",
    "readable",
    "sample_of",
    "spelled",
    "times_of",
]

SCHEMA = 1
MOST_BYTES = 1 << 30
TASKS = (*ASKS, "text-generation")
TIMED = re.compile(r"[1-9]\d{0,6}x[1-9]\d{0,6} (inference|prefill|decode)")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
AGAIN = "record it again: planish baseline BUNDLE -o DIRECTORY"


@dataclass(frozen=True)
class RecordedBundle:
    """The bundle behind a file: its directory's name, its manifest's digest, bytes served, peak resident memory."""

    name: str
    digest: str
    bytes: int
    peak_memory_bytes: int | None
    precision: Mapping[str, str]


@dataclass(frozen=True)
class RecordedData:
    """What it was asked: the file's name, and the digest of all samples, true answers included."""

    name: str
    digest: str
    samples: int
    labelled: bool


@dataclass(frozen=True)
class RecordedTimes:
    """One phase of one shape: seconds of a unit of work, medians of each sitting and of all of them, on both clocks."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    median_cpu: float
    median_wall: float


@dataclass(frozen=True)
class RecordedLatency:
    """Times by ``1x32 inference`` etc.; ``judged``: the clock that the gate would judge by."""

    judged: KeptClock
    times: Mapping[str, RecordedTimes]


@dataclass(frozen=True)
class RecordedWindows:
    """Perplexity: tokens of a window, and the digest of the windows' ids."""

    context: int
    digest: str


@dataclass(frozen=True)
class RecordedSample:
    """What the bundle said on one sample, or on one window of text; a task fills what it has.

    Attributes:
        line: of the sample in the data, or the window's number; from 1.
        failed: the first line of its error, where it failed.
        tokens, values: packed arrays (`planish.gate.packed`); of a window, ``tokens`` are its likeliest next ones.
        loss: summed over a window's predicted tokens, in nats.
    """

    line: int
    failed: str | None = None
    labels: tuple[int, ...] = ()
    spans: tuple[tuple[Any, ...], ...] = ()
    answer: str = ""
    answer_span: tuple[int, ...] = (0, 0)
    tokens: str = "int32:"
    values: str = "float32:"
    loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is as it would be anyway."""
        told = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return {name: encode(value) for name, value, usual in told if value != usual}

    @cached_property
    def output(self) -> Output | None:
        """As `planish.gate.outputs` has it; None where the bundle failed."""
        if self.failed is not None:
            return None
        spans = tuple(Span(*span) for span in self.spans)
        start, end = self.answer_span
        return Output(self.labels, spans, self.answer, (start, end), self.top, unpack_floats(self.values))

    @cached_property
    def top(self) -> NDArray[np.int64]:
        return unpack_integers(self.tokens)


def sample_of(line: int, output: Output | None, failure: Failure | None) -> RecordedSample:
    """What is kept of one answer."""
    if output is None:
        return RecordedSample(line, failed=readable(failure.message) if failure else "")
    return RecordedSample(
        line,
        labels=output.labels,
        spans=tuple(tuple(span) for span in output.spans),
        answer=output.answer,
        answer_span=output.answer_span,
        tokens=pack(output.tokens),
        values=pack(output.values),
    )


@dataclass(frozen=True)
class BaselineFile:
    """A whole file. ``vocab_size``, ``labels`` and ``problem_type`` are the manifest's; ``windows`` are there for
    text-generation on data without references, and the samples are then windows.
    """

    schema: Literal[1]
    planish: str
    bundle: RecordedBundle
    task: str
    labels: tuple[str, ...] | None
    problem_type: str | None
    vocab_size: int
    fingerprint: Fingerprint
    data: RecordedData
    latency: RecordedLatency | None
    windows: RecordedWindows | None
    samples: tuple[RecordedSample, ...]

    @property
    def outputs(self) -> Outputs:
        """The answers, and the failures as the baseline's."""
        failed = [Failure("baseline", one.line, one.failed) for one in self.samples if one.failed is not None]
        return Outputs(tuple(one.output for one in self.samples), tuple(failed))

    def to_json(self) -> dict[str, Any]:
        """The file's object, without its digest."""
        told = {field.name: encode(getattr(self, field.name)) for field in fields(self) if field.name != "samples"}
        return {**told, "samples": [one.to_json() for one in self.samples]}


def data_of(samples: Dataset) -> RecordedData:
    """The digest is over what the tasks read, in order, and not over columns: nobody is asked about those."""
    read = [field for field in fields(Sample) if field.name != "columns"]
    told = [
        {field.name: value for field in read if (value := getattr(sample, field.name)) != field.default}
        for sample in samples.samples
    ]
    text = json.dumps(told, sort_keys=True).encode("ascii")  # escaped: texts given by a program may be no Unicode
    digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
    return RecordedData(readable(Path(samples.name).name), digest, len(told), samples.labelled)


def readable(text: str) -> str:
    """A file's name, or an error's words, with ``?`` for what is no Unicode and no JSON file could hold.

    >>> readable("caf\\udce9")
    'caf?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def times_of(times: Mapping[str, Sequence[Timing]], judged: KeptClock) -> RecordedLatency:
    """Timings of each sitting, by name; to the nanosecond."""
    found = {}
    for name, timings in times.items():
        cpu, wall = (tuple(round(getattr(one, clock), 9) for one in timings) for clock in get_args(KeptClock))
        found[name] = RecordedTimes(cpu, wall, float(np.median(cpu)), float(np.median(wall)))
    return RecordedLatency(judged, found)


def spelled(file: BaselineFile) -> str:
    """The file's text: a line for each key, and one for each sample, so that version control shows what changed."""
    raw = file.to_json()
    head = {"digest": digest_of(raw), **{key: value for key, value in raw.items() if key != "samples"}}
    lines = [f"{json.dumps(key)}: {one_line(value)}" for key, value in head.items()]
    samples = ",\n ".join(one_line(sample) for sample in raw["samples"])
    return "{" + ",\n".join([*lines, f'"samples": [\n {samples}\n]']) + "}\n"


def one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def digest_of(raw: Mapping[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(canonical(dict(raw))).hexdigest()}"


def read_baseline(path: str | Path) -> BaselineFile:
    """The file at ``path``, checked.

    Raises:
        InputError: it cannot be read, or is no baseline file of this schema.
    """
    path = Path(path)
    try:
        if not path.is_file():
            got = "a directory" if path.is_dir() else "something else" if path.exists() else "nothing"
            raise InputError(f"a baseline file at {path}", got, "check the path")
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"a readable file {path}", error.strerror or str(error), "check the path") from None
    return parse_baseline(data, path.name)


def parse_baseline(data: bytes, where: str = "baseline.json") -> BaselineFile:
    """A baseline from the bytes of its file; ``where`` is what messages call it.

    Raises:
        InputError: it is torn, edited, of another schema, or none.
    """
    if len(data) > MOST_BYTES:
        raise InputError(f"a baseline file of at most {MOST_BYTES} bytes: {where}", "more", "record it on less data")
    try:
        raw = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys, parse_constant=no_constant)
        if not isinstance(raw, dict) or "schema" not in raw:
            raise ValueError("something without a schema")
        if raw["schema"] != SCHEMA or isinstance(raw["schema"], bool):
            fix = f"{AGAIN}, with planish {__version__}"
            raise InputError(f"a baseline file of schema {SCHEMA}: {where}", f"schema {raw['schema']!r:.40}", fix)
        told = raw.pop("digest", None)
        if told != digest_of(raw):
            raise InputError(f"a baseline file as it was written: {where}", "values its digest does not match", AGAIN)
        file = decode(BaselineFile, raw, where)
        check_meaning(file)
    except BundleError as error:  # the decoder's, which reads manifests as well
        raise InputError(error.expected, error.got, AGAIN) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"a baseline file: {where}", str(error)[:200] or type(error).__name__, AGAIN) from None
    return file


def check_meaning(file: BaselineFile) -> None:
    """What types cannot say. Raises ValueError with what was found."""
    bundle, data, windows = file.bundle, file.data, file.windows
    refuse_if(file.task not in TASKS, f"the task {file.task!r}")
    for digest in (bundle.digest, data.digest, *([windows.digest] if windows else [])):
        refuse_if(not DIGEST.fullmatch(digest), f"the digest {digest!r}")
    sizes = (bundle.bytes, bundle.peak_memory_bytes or 0, file.vocab_size)
    refuse_if(not 0 <= min(sizes) <= max(sizes) < 1 << 63, f"sizes {', '.join(map(str, sizes))}")
    scored = file.task == "text-generation" and not data.labelled
    refuse_if((windows is not None) != scored, f"windows where {file.task} has none, or none where it has")
    refuse_if(windows is not None and windows.context < 2, "windows of fewer than 2 tokens")
    refuse_if(not file.samples, "no sample")
    refuse_if(windows is None and len(file.samples) != data.samples, f"{len(file.samples)} of {data.samples} samples")
    for sample in file.samples:
        check_sample(sample, file)
    for name, times in (file.latency.times if file.latency else {}).items():
        check_times(name, times)


def check_sample(sample: RecordedSample, file: BaselineFile) -> None:
    """Raises ValueError."""
    where = f"line {sample.line}"
    refuse_if(sample.line < 1, where)
    if sample.failed is not None:
        return
    most = len(file.labels) if file.labels is not None else math.inf
    refuse_if(any(not 0 <= label < most for label in sample.labels), f"a label of none, {where}")
    refuse_if(len(sample.answer_span) != 2, f"a span without two ends, {where}")
    for span in sample.spans:
        good = len(span) == 3 and type(span[0]) is type(span[1]) is int and isinstance(span[2], str)
        refuse_if(not good, f"a span that is not [start, end, label], {where}")
    output = sample.output
    assert output is not None
    refuse_if((file.windows is not None) != (sample.loss is not None), f"a loss where none belongs, or none, {where}")
    refuse_if(file.windows is not None and not output.tokens.size, f"a window without tokens, {where}")
    needs = {"text-classification": output.values, "feature-extraction": output.values}.get(file.task)
    refuse_if(needs is not None and not needs.size, f"no values, {where}")


def check_times(name: str, times: RecordedTimes) -> None:
    """Raises ValueError."""
    refuse_if(not TIMED.fullmatch(name), f"times of {name!r}")
    refuse_if(not times.cpu or len(times.cpu) != len(times.wall), f"sittings of {name} without both clocks")
    refuse_if(min(*times.cpu, *times.wall) < 0, f"a time below 0 for {name}")
    medians = (float(np.median(times.cpu)), float(np.median(times.wall)))
    refuse_if(medians != (times.median_cpu, times.median_wall), f"medians of {name} that are not those of its sittings")


def refuse_if(wrong: bool, got: str) -> None:
    if wrong:
        raise ValueError(got)
