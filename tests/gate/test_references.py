"""Prompts with references: scores against sacrebleu and rouge-score, every bad line, whole gates on toy decoders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from planish.errors import DataError, HostError, InputError
from planish.gate import Limits, gate
from planish.gate.benchmark import bench
from planish.gate.data import Dataset, Sample, load_data, plain_texts
from planish.gate.outputs import MOST_NEW_TOKENS, Output, Outputs, collect, setting_for
from planish.gate.paired import paired_loss
from planish.gate.references import LIBRARIES, bleu_of, chrf_of, reference_scores
from planish.gate.report import GateReport
from planish.gate.sample_lines import sample_lines
from tests.blocked import run_without
from tests.gate.conftest import GENERATION, TASK_FIELDS, WORDS, decoder_graph, save_bundle, tokenizer_files

TASK = "text-generation"
ROOT = Path(__file__).resolve().parents[2]
words = st.lists(st.sampled_from(["whale", "sea", "the", "ship.", "é", "鯨", "a"]), max_size=8).map(" ".join)
real = st.lists(st.sampled_from(["whale", "sea", "the", "ship."]), min_size=1, max_size=8).map(" ".join)
rows = st.lists(st.tuples(words, st.lists(real, min_size=1, max_size=3)), min_size=1, max_size=8)


def asked(references: list[list[str]]) -> Dataset:
    samples = [Sample(n, f"p {n}", references=tuple(own)) for n, own in enumerate(references, 1)]
    return Dataset("prompts", tuple(samples), labelled=True)


def told(texts: list[Any]) -> Outputs:
    return Outputs(tuple(None if text is None else Output(answer=text) for text in texts), ())


@settings(max_examples=40, deadline=None)
@given(rows)
def test_values_are_sacrebleus_corpus_scores(drawn: list[tuple[str, list[str]]]) -> None:
    texts, references = [text for text, _ in drawn], [own for _, own in drawn]
    most = max(map(len, references))
    streams = [[own[n] if n < len(own) else None for own in references] for n in range(most)]
    chrf, bleu = reference_scores(asked(references), told(texts))
    assert (chrf.name, bleu.name) == ("chrF", "BLEU")
    assert 100 * chrf.value == pytest.approx(CHRF().corpus_score(texts, streams).score, abs=1e-9)
    assert 100 * bleu.value == pytest.approx(BLEU().corpus_score(texts, streams).score, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=6))
def test_formulas_take_many_sums_at_once_and_are_sacrebleus_on_each(counts: list[list[int]]) -> None:
    """Any counts that can be: matches at most what was written, no longer n-grams than shorter ones."""
    table = np.sort(np.array(counts), axis=1)[:, ::-1]  # written n-grams, falling with n
    matched = table * (np.arange(4) < 3) // 2
    bleus = np.concatenate([table[:, :1], table[:, :1] + 1, matched, table], axis=1).astype(float)
    chrfs = np.tile(np.stack([table[:, :2], table[:, 1:3], table[:, 1:3] // 2], axis=2).reshape(len(table), -1), 3)
    for made, metric, ours in ((bleus, BLEU(), bleu_of), (chrfs.astype(float), CHRF(), chrf_of)):
        expected = [metric._compute_score_from_stats(row.astype(int).tolist()).score for row in made]
        assert 100 * ours(made) == pytest.approx(expected, abs=1e-6)


def test_a_resample_is_scored_as_sacrebleu_scores_its_texts_and_the_loss_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    references = [[" ".join(rng.choice(WORDS, 6))] for _ in range(30)]
    new, old = (
        [" ".join(np.where(rng.random(6) < share, own[0].split(), rng.choice(WORDS, 6))) for own in references]
        for share in (0.5, 0.8)
    )
    sides = [reference_scores(asked(references), told(side)) for side in (new, old)]
    for _ in range(5):
        picked = rng.integers(0, 30, 30)
        streams = [[references[n][0] for n in picked]]
        for texts, (chrf, bleu) in zip((new, old), sides, strict=True):
            for metric, ours in ((CHRF(), chrf), (BLEU(), bleu)):
                value = float(ours.aggregate(ours.rows[picked].sum(axis=0)))
                assert 100 * value == pytest.approx(metric.corpus_score([texts[n] for n in picked], streams).score)
    loss = paired_loss(sides[0][0], sides[1][0])
    whole = [CHRF().corpus_score(side, [[own[0] for own in references]]).score for side in (new, old)]
    assert loss.estimate == pytest.approx(whole[1] - whole[0])
    assert 0 < loss.low < loss.estimate < loss.high


def test_rouge_is_the_longest_common_subsequence_with_the_best_reference() -> None:
    """Oracle: the subsequence by brute recursion."""
    references = [["the whale swims in the sea", "a sea"], ["good"], ["the ship"], ["the ship"]]
    texts = ["The whale in a sea!", "bad", "ship the", None]
    rouge, chrf, bleu = reference_scores(asked(references), told(texts), "ROUGE-L")
    assert [rouge.name, chrf.name, bleu.name] == ["ROUGE-L", "chrF", "BLEU"]
    expected = []
    for text, own in zip(texts, references, strict=True):
        said = re.sub("[^a-z ]", "", (text or "").lower()).split()
        pairs = [(longest(said, one.split()), len(said) + len(one.split())) for one in own]
        expected.append(max(2 * common / total for common, total in pairs))
    assert rouge.rows[:, 0].tolist() == pytest.approx(expected)


def longest(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest(one[1:], other[1:])
    return max(longest(one[1:], other), longest(one, other[1:]))


def test_a_failed_sample_is_an_empty_text() -> None:
    data = asked([["the sea"], ["a whale"]])
    for failed, empty in zip(
        reference_scores(data, told(["the sea", None])), reference_scores(data, told(["the sea", ""])), strict=True
    ):
        assert np.array_equal(failed.rows, empty.rows)
        assert failed.value < 1


MISSING = """
from planish.errors import HostError
from planish.gate.references import scorers
try:
    scorers({metric!r})
except HostError as error:
    print(error)
"""


@pytest.mark.parametrize("metric", LIBRARIES)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(metric: str) -> None:
    module, extra = LIBRARIES[metric]
    done = run_without([module], MISSING.format(metric=metric))
    assert done.returncode == 0, done.stderr
    expected = f"expected the library for {metric}, got no module {module!r} here; pip install 'planish[{extra}]'"
    assert done.stdout.strip() == expected
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(rf"^{extra} = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert listed
    assert f'"{module.replace("_", "-")}>=' in listed[1]


def test_the_libraries_bring_nothing_heavy() -> None:
    """Blocked, so that what they would use if it is there (nltk: scipy, scikit-learn) does not matter."""
    heavy = ["torch", "transformers", "pydantic", "onnx", "huggingface_hub", "scipy", "sklearn", "pandas"]
    code = "from planish.gate.references import scorers; print(*scorers('ROUGE-L'))"
    done = run_without(heavy, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ROUGE-L", "chrF", "BLEU"]


MakeDecoder = Callable[..., Path]
Prompts = Callable[[Path], Path]


@pytest.fixture
def make_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeDecoder:
    """Toy decoders whose prompts end in a word of theirs, not in [SEP]: what follows differs from prompt to prompt.

    (Seed 1 is the table's own: noise of it scales the logits, and greedy answers stay.)
    """

    def bare(directory: Path) -> None:
        tokenizer_files(directory)
        path = directory / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "post_processor": None}), encoding="utf-8")

    def make(name: str, *, seed: int = 0, noise: float = 0.0, **fields: Any) -> Path:
        model = decoder_graph(seed, noise)
        return save_bundle(tmp_path / name, model, **{"task": TASK, **TASK_FIELDS[TASK], **fields})

    monkeypatch.setattr("tests.gate.conftest.tokenizer_files", bare)
    return make


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    """Writes 60 prompts whose references are what a bundle says, every third with one word changed."""
    from planish import runtime

    def write(bundle: Path) -> Path:
        rng, lines = np.random.default_rng(0), []
        with runtime.load(bundle) as model:
            for number in range(60):
                prompt = " ".join(rng.choice(WORDS, size=1 + number % 9))
                said = model.generate(prompt, max_new_tokens=12).text.split() or ["a"]
                if number % 3 == 0:
                    said[-1] = "whale"
                line: dict[str, Any] = {"prompt": prompt, "reference": " ".join(said), "topic": f"t{number % 2}"}
                if number % 5 == 0:
                    line["reference"] = [line["reference"], "the ship"]
                lines.append(json.dumps(line))
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def names_of(report: GateReport) -> dict[str, str]:
    return {check.name: str(check.verdict) if check.required else "reported" for check in report.checks}


def test_references_decide_on_what_is_written(make_decoder: MakeDecoder, prompts: Prompts) -> None:
    new, old = make_decoder("new", seed=2, noise=0.001), make_decoder("old")
    report = gate(new, old, data=prompts(old), latency=False, limits=Limits(max_loss_points=3))
    assert report.verdict == "pass", report.to_markdown()
    assert names_of(report) == {
        "failed samples": "pass",
        "chrF loss": "pass",
        "worst slice loss": "pass",
        "same continuation": "reported",
        "size": "reported",
    }
    assert [metric.name for metric in report.metrics] == ["chrF", "BLEU"]
    assert 0.5 < report.metrics[0].baseline < 1
    assert any(one.name == "topic t1" for one in report.slices)
    first = json.loads(sample_lines(report).splitlines()[0])
    assert first["truth"][1] == "the ship"
    assert first["candidate"]["text"] == first["baseline"]["text"]


def test_a_decoder_that_writes_something_else_regresses(make_decoder: MakeDecoder, prompts: Prompts) -> None:
    new, old = make_decoder("new", seed=2, noise=3.0), make_decoder("old")
    report = gate(new, old, data=prompts(old), latency=False, limits=Limits(reference_metric="BLEU"))
    assert report.verdict == "regress"
    assert report.reasons[0].startswith("BLEU lost")
    assert [metric.name for metric in report.metrics] == ["BLEU", "chrF"]
    assert names_of(report)["same continuation"] == "reported"
    limited = gate(new, old, data=prompts(old), latency=False, limits=Limits(max_loss_points=100, min_agreement=0.9))
    assert names_of(limited)["same continuation"] == "regress"


def test_a_decoder_without_numbers_is_named(make_decoder: MakeDecoder, prompts: Prompts) -> None:
    old = make_decoder("old")
    broken = make_decoder("new", seed=2, noise=float("nan"))
    report = gate(broken, old, data=prompts(old), latency=False)
    assert report.verdict == "regress"
    assert names_of(report)["failed samples"] == "regress"
    assert report.metrics[0].candidate == 0.0


def test_continuations_are_as_long_as_references_and_fit_the_model(make_decoder: MakeDecoder, tmp_path: Path) -> None:
    from planish import runtime

    short = make_decoder("short", generation={**GENERATION, "max_length": 12, "eos_token_ids": []}, max_length=12)
    samples = (
        Sample(1, "a sea", references=("the whale", "good bad fine awful a")),
        Sample(2, "a " * 7, references=("x",)),
    )
    data = Dataset("d", samples, labelled=True)
    with runtime.load(short) as model:
        longest_reference = len(model.tokenizer.encode(samples[0].references[1]).ids)
        assert setting_for(model, data) == longest_reference
        endless = Dataset("d", (Sample(1, "a", references=("a " * 999,)),), labelled=True)
        assert setting_for(model, endless) == MOST_NEW_TOKENS
        said = collect(model, data, "candidate")
        assert not said.failures
        for sample, item, room in zip(samples, said.items, (longest_reference, 12 - 7), strict=True):
            assert item is not None
            assert item.answer == model.generate(sample.text, max_new_tokens=room).text
        with pytest.raises(InputError, match="give prompts with references"):
            collect(model, Dataset("d", samples, labelled=False), "candidate")


def test_bench_scores_what_is_written(make_decoder: MakeDecoder, prompts: Prompts) -> None:
    old = make_decoder("old")
    report = bench([old], data=prompts(old), seconds=0.1, shapes=[(1, 4)], memory=False)
    assert [score.metric for score in report.scores] == ["chrF", "BLEU"]
    assert report.scores[0].n == 60


@pytest.mark.parametrize("metric", ["chrf", "ROUGE", 3])
def test_another_metric_is_refused(metric: Any) -> None:
    with pytest.raises(InputError, match="reference_metric chrF or BLEU or ROUGE-L"):
        Limits(reference_metric=metric)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "a"}, 'a field "reference"'),
        ({"reference": "a"}, 'a field "prompt"'),
        ({"prompt": "a", "reference": []}, "a text or texts, none empty"),
        ({"prompt": "a", "reference": ["b", " "]}, "a text or texts, none empty"),
        ({"prompt": "a", "reference": [1]}, "to be a list of texts"),
        ({"prompt": "a", "reference": ""}, "not empty"),
        ({"prompt": "a", "reference": None}, "got None"),
        ({"prompt": 1, "reference": "b"}, "got 1"),
        ({"prompt": "a", "reference": ["\ud800"]}, "to be a list of texts"),
        ({"prompt": "a", "reference": "b", "text": "c"}, "keep one form"),
        ({"text": "c", "reference": "b"}, "keep one form"),
        ({"text": "c"}, '"reference" on every line or on none'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: dict[str, Any], words: str) -> None:
    good = {"prompt": "a", "reference": ["b", "c"]}
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, (good, line, good))), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_data(path, TASK)
    assert "line 2: " in str(caught.value)
    assert words in str(caught.value)


def test_prompts_and_references_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [{"prompt": "a", "reference": "b"}, {"prompt": "a\n", "reference": ["c", "d"], "kind": 1}]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])), encoding="utf-8")
    data = load_data(path, TASK)
    assert [sample.references for sample in data.samples] == [("b",), ("c", "d"), ("b",)]
    assert (data.labelled, data.duplicates, data.samples[1].columns) == (True, 1, {"kind": 1})
    assert plain_texts(data) == ["a b", "a\nc", "a b"]


def test_a_missing_library_is_told_before_anything_is_generated(
    make_decoder: MakeDecoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    old = make_decoder("old")
    path = prompts(old)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    stages: list[str] = []
    with pytest.raises(HostError, match=r"planish\[gate\]"):
        gate(old, old, data=path, latency=False, progress=lambda stage, done, total: stages.append(stage))
    assert not stages
