"""Scored pairs: Spearman's correlation against scipy, its interval against known truth, neighbours, whole gates."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from planish.errors import DataError, InputError
from planish.gate import Limits, gate
from planish.gate.benchmark import bench
from planish.gate.data import Dataset, Sample, load_data, plain_texts
from planish.gate.embeddings import each_text
from planish.gate.html_report import html_report
from planish.gate.junit import junit
from planish.gate.neighbours import neighbour_overlap
from planish.gate.outputs import Output, Outputs
from planish.gate.report import GateReport
from planish.gate.sample_lines import sample_lines
from planish.gate.similarity import GROUPS, Ranking, judge_similarity, ranking_of, ranks, without_groups
from tests.gate.conftest import TASK_FIELDS, WORDS, MakeBundle, encoder_graph, save_bundle

TASK = "feature-extraction"
numbers = st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(numbers, numbers, st.integers(0, 3)), min_size=1, max_size=12))
def test_correlations_of_resamples_are_scipys(rows: list[tuple[float, float, int]]) -> None:
    """A pair that stands ``count`` times is that many samples; three resamples at once, many ties."""
    said, true, counts = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.stack([counts, np.ones_like(counts), counts + 1]).astype(float)
    ours = Ranking((said, -said), true).correlations(weights)
    for row, (first, second) in zip(weights.astype(int), ours, strict=True):
        one, other = np.repeat(said, row), np.repeat(true, row)
        if len(set(other)) < 2:
            assert math.isnan(first)
            continue
        expected = 0.0 if len(set(one)) < 2 else spearmanr(one, other).statistic
        assert first == pytest.approx(expected, abs=1e-12)
        assert second == pytest.approx(-expected, abs=1e-12)


def test_ranks_share_ties() -> None:
    values = np.array([0.5, 0.1, 0.5, 0.9])
    assert ranks(values, np.ones((1, 4))).tolist() == [[2.5, 1.0, 2.5, 4.0]]
    # One pair twice, one not at all: 0.1, 0.1, 0.5, 0.9.
    assert ranks(values, np.array([[0.0, 2.0, 1.0, 1.0]]))[0, 1:].tolist() == [1.5, 3.0, 4.0]


def test_the_jackknife_leaves_out_each_pair_or_each_of_so_many_groups() -> None:
    few = np.concatenate(without_groups(5, 2))
    assert np.array_equal(few, 1 - np.eye(5))
    many = np.concatenate(without_groups(2 * GROUPS + 7, 300))
    assert many.shape == (GROUPS, 2 * GROUPS + 7)
    assert np.array_equal(np.sum(many == 0, axis=0), np.ones(2 * GROUPS + 7)), "each pair is left out once"
    assert set(np.sum(many == 0, axis=1)) <= {2.0, 3.0}


def drawn(rng: np.random.Generator, n: int) -> Ranking:
    """Normal scores, the candidate's cosines correlated 0.80 with them, the baseline's 0.82, the two 0.97."""
    root = np.linalg.cholesky([[1, 0.97, 0.80], [0.97, 1, 0.82], [0.80, 0.82, 1]])
    candidate, baseline, scores = root @ rng.normal(size=(3, n))
    return Ranking((candidate, baseline), scores)


def spearman_of_normal(pearson: float) -> float:
    return 6 / math.pi * math.asin(pearson / 2)


def test_the_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 trials of a 95 % interval: 0.9 is 3 standard errors below; what always held would be too wide."""
    monkeypatch.setattr("planish.gate.similarity.RESAMPLES", 500)
    rng, inside, alone = np.random.default_rng(1), 0, 0
    own = spearman_of_normal(0.80)
    truth = 100 * (spearman_of_normal(0.82) - own)
    for trial in range(200):
        sample = drawn(rng, 40)
        found = sample.resampled(trial)
        loss, side = sample.loss(found), sample.interval(found)
        assert loss.method.startswith("bootstrap BCa")
        inside += loss.low <= truth <= loss.high
        alone += side.low <= own <= side.high
    assert 0.9 <= inside / 200 < 1
    assert 0.9 <= alone / 200 < 1


def test_losses_of_resamples_are_scipys() -> None:
    """Oracle: the same resamples written out as samples, and each ranked by scipy."""
    sample = drawn(np.random.default_rng(3), 80)
    rng, losses = np.random.default_rng(0), []
    for row in rng.multinomial(80, np.full(80, 1 / 80), size=2_000)[:200]:
        new, old, true = (np.repeat(values, row) for values in (*sample.sides, sample.scores))
        losses.append(spearmanr(old, true).statistic - spearmanr(new, true).statistic)
    found = sample.resampled(0)
    assert found.drawn[:200, 1] - found.drawn[:200, 0] == pytest.approx(np.array(losses), abs=1e-12)


def outputs(rows: Any) -> Outputs:
    return Outputs(tuple(None if row is None else Output(values=np.asarray(row, dtype=float)) for row in rows), ())


def scored(*scores: float) -> Dataset:
    samples = [Sample(n, f"a {n}", pair=f"b {n}", score=score) for n, score in enumerate(scores, 1)]
    return Dataset("pairs", tuple(samples), labelled=True)


def test_failed_pairs_are_left_out_on_both_sides_and_zero_vectors_rank_nothing() -> None:
    data = scored(1, 2, 3, 4)
    new = outputs([None, [1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 1, 0]])
    old = outputs([[1, 0, 1, 0], [3, 0, 4, 4], None, [1, 0, 0.6, 0.8]])
    both = ranking_of(data, new, old)
    assert both.scores.tolist() == [2, 4]
    assert [side.tolist() for side in both.sides] == [[0, 0], [0.7071068, 0.6]]


def test_equal_order_takes_the_bounds_of_as_many_hits() -> None:
    rng = np.random.default_rng(0)
    cosines, scores = rng.uniform(0.1, 0.9, 400), rng.normal(size=400)
    same = Ranking((cosines**3, cosines), scores)
    loss = same.loss(same.resampled())
    assert (loss.estimate, loss.method) == (0, "Tango score")
    assert 0.5 < loss.high < 1.5


@pytest.mark.parametrize(("scores", "words"), [([3.0], "on 1 pairs"), ([2.0] * 30, "on 30 pairs")])
def test_nothing_to_rank_is_inconclusive(scores: list[float], words: str) -> None:
    said = outputs(np.random.default_rng(0).normal(size=(len(scores), 8)))
    pair, check = judge_similarity(scored(*scores), said, said, Limits(), 0)
    assert check.verdict == "inconclusive"
    assert words in check.reason
    assert json.loads(json.dumps(pair.to_json(), allow_nan=False))["candidate"] is None
    nobody = outputs([None] * len(scores))
    assert judge_similarity(scored(*scores), nobody, said, Limits(), 0)[1].verdict == "inconclusive"


def test_a_collapsed_candidate_regresses() -> None:
    """One vector for every text has no ranking: its correlation is 0, not unknown."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(200, 8))
    truth = [float(row[:4] @ row[4:] / np.linalg.norm(row[:4]) / np.linalg.norm(row[4:])) for row in old]
    pair, check = judge_similarity(scored(*truth), outputs([[1, 2, 3, 4] * 2] * 200), outputs(old), Limits(), 0)
    assert (pair.candidate, pair.baseline) == (0.0, pytest.approx(1.0))
    assert (check.verdict, check.value) == ("regress", pytest.approx(100.0))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_overlap_is_that_of_scikit_learns_neighbours(k: int) -> None:
    rng = np.random.default_rng(k)
    old = rng.normal(size=(60, 5))
    new = old + 0.3 * rng.normal(size=old.shape)
    near = []
    for vectors in (new, old):
        found = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute").fit(vectors)
        near.append([set(row[1:]) for row in found.kneighbors(vectors, return_distance=False)])
    expected = np.mean([len(one & other) / k for one, other in zip(*near, strict=True)])
    overlap = neighbour_overlap(outputs(new), outputs(old), k)
    assert overlap is not None
    assert overlap.value == pytest.approx(expected)
    assert 0 < overlap.value < 1


def test_overlap_of_turned_cut_and_failing_embeddings() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(size=(40, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    wider = np.concatenate([old @ turn * 3, np.zeros((40, 2))], axis=1)
    perfect = neighbour_overlap(outputs(wider), outputs(old))
    assert perfect is not None
    assert perfect.value == pytest.approx(1.0), "neither a rotation nor the width matters"
    broken = neighbour_overlap(outputs([None, *old[1:]]), outputs(old))
    assert broken is not None
    assert broken.rows[0, 0] == 0.0
    assert neighbour_overlap(outputs(old[:20]), outputs(old[:20])) is None


def test_equally_near_texts_are_no_difference() -> None:
    """30 texts of three directions: which of the ten alike are 'nearest' is chance, and not counted."""
    alike = np.repeat(np.eye(3), 10, axis=0)
    jittered = alike + 1e-9 * np.random.default_rng(0).normal(size=alike.shape)
    overlap = neighbour_overlap(outputs(jittered), outputs(alike), 5)
    assert overlap is not None
    assert overlap.value == 1.0


def test_every_text_of_pairs_counts_once() -> None:
    data = Dataset("d", (Sample(1, "x", pair="y", score=1), Sample(2, "y", pair="z", score=2)), labelled=True)
    found = each_text(data, outputs([[1, 2], [2, 3]]))
    assert [None if one is None else one.values.tolist() for one in found.items] == [[1], [2], [3]]
    partly = each_text(data, outputs([None, [2, 3]]))
    assert [None if one is None else one.values.tolist() for one in partly.items] == [None, [2], [3]]
    assert plain_texts(data) == ["x", "y", "y", "z"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """200 pairs of four words; the score is how many they share, so that a bag of words ranks them."""
    rng = np.random.default_rng(2)
    lines = []
    for number in range(200):
        words = rng.permutation(WORDS)
        shared = number % 5
        first, second = words[:4], [*words[:shared], *words[4 : 8 - shared]]
        names = ("sentence1", "sentence2") if number % 2 else ("text", "text_pair")
        texts = (" ".join(first), " ".join(rng.permutation(second)))
        lines.append({**dict(zip(names, texts, strict=True)), "score": shared / 2, "genre": "even"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def names_of(report: GateReport) -> dict[str, str]:
    return {check.name: str(check.verdict) if check.required else "reported" for check in report.checks}


def test_scored_pairs_decide_and_closeness_is_reported(make_bundle: MakeBundle, pairs: Path) -> None:
    new, old = make_bundle("new", TASK, seed=1, noise=0.001), make_bundle("old", TASK)
    report = gate(new, old, data=pairs, latency=False, limits=Limits(min_cosine_mean=1.0))
    assert report.verdict == "pass", report.to_markdown()
    assert names_of(report) == {
        "failed samples": "pass",
        "Spearman correlation loss": "pass",
        "cosine mean": "reported",
        "cosine min": "reported",
        "overlap@10": "reported",
        "size": "reported",
    }
    (metric,) = report.metrics
    assert metric.n == 200
    assert metric.candidate_interval is not None
    assert metric.candidate_interval.low < metric.candidate < metric.candidate_interval.high
    first = json.loads(sample_lines(report).splitlines()[3])
    assert set(first) == {"sample", "candidate", "baseline", "truth"}
    assert first["candidate"]["cosine"] == pytest.approx(first["baseline"]["cosine"], abs=0.05)
    assert first["truth"] == 1.5
    assert not report.slices


def test_the_correlation_of_a_gate_is_scipys(make_bundle: MakeBundle, pairs: Path) -> None:
    """Oracle: the bundle's own embed(), and scipy."""
    from planish import runtime

    bundle = make_bundle("new", TASK, seed=1, noise=0.3)
    samples = load_data(pairs, TASK).samples
    with runtime.load(bundle) as model:
        first, second = (model.embed([getattr(s, side) for s in samples], normalize=True) for side in ("text", "pair"))
    cosines = np.round(np.sum(first.astype(float) * second, axis=1), 6)  # what is equal is to tie here, too
    expected = spearmanr(cosines, [sample.score for sample in samples]).statistic
    report = gate(bundle, make_bundle("old", TASK), data=pairs, latency=False)
    assert report.metrics[0].candidate == pytest.approx(expected, abs=1e-4)
    (score,) = bench([bundle], data=pairs, seconds=0.1, memory=False).scores
    assert (score.metric, score.n) == ("Spearman correlation", 200)
    assert score.interval.estimate == report.metrics[0].candidate


def test_a_lost_ranking_is_a_regress(make_bundle: MakeBundle, pairs: Path) -> None:
    """Pooled by the first token, every text is the same; noise in the words' vectors would still rank bags of them."""
    blind = make_bundle("new", TASK, pooling={"mode": "cls", "normalize": True})
    report = gate(blind, make_bundle("old", TASK), data=pairs, latency=False)
    assert report.verdict == "regress"
    assert report.metrics[0].candidate == 0.0
    assert report.reasons[0].startswith("Spearman correlation lost")


def test_a_limit_makes_neighbours_decide(make_bundle: MakeBundle, pairs: Path) -> None:
    new, old = make_bundle("new", TASK, seed=1, noise=0.3), make_bundle("old", TASK)
    limits = Limits(max_loss_points=100, min_overlap=0.999)
    report = gate(new, old, data=pairs, latency=False, limits=limits)
    assert report.verdict == "regress"
    assert names_of(report)["overlap@10"] == "regress"
    few = [" ".join(pair) for pair in pairwise(WORDS)] * 2
    assert "overlap@10" not in names_of(gate(new, old, texts=few, latency=False)), "eleven different texts are too few"
    asked = gate(old, old, texts=few, latency=False, limits=limits)
    assert asked.verdict == "inconclusive"
    assert "overlap@10 takes 21 different texts, and there are 11" in asked.reasons[-1]


def test_embeddings_of_another_width_are_refused(make_bundle: MakeBundle, pairs: Path, tmp_path: Path) -> None:
    model = encoder_graph(TASK, 0, 0.0)
    words = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.concatenate([words, words], axis=1), "words"))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 2 * words.shape[1]
    wide, old = save_bundle(tmp_path / "wide", model, task=TASK, **TASK_FIELDS[TASK]), make_bundle("old", TASK)
    for source in ({"data": pairs}, {"texts": ["a good film", "the sea"]}):
        with pytest.raises(InputError, match="same shape"):
            gate(wide, old, latency=False, **source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"sentence1": "a", "sentence2": "b"}, 'a field "score"'),
        ({"sentence1": "a", "score": 1}, 'a field "sentence2"'),
        ({"text": "a", "sentence2": "b", "score": 1}, "keep one pair of names"),
        ({"text": "a", "text_pair": " ", "score": 1}, "not empty"),
        ({"text": "a", "text_pair": "b", "score": "4.2"}, '"score" to be a finite number'),
        ({"text": "a", "text_pair": "b", "score": True}, "got True"),
        ({"text": "a", "text_pair": "b", "score": None}, "got None"),
        ('{"text": "a", "text_pair": "b", "score": 1e999}', "got inf"),
        ('{"text": "a", "text_pair": "b", "score": NaN}', "NaN"),
        ({"text": "a", "text_pair": "b", "score": 10**400}, '"score" to be a finite number'),
        ({"text": "a"}, '"score" on every line or on none'),
        ({"text": "a", "score": 1}, '"score" on every line or on none'),
    ],
)
def test_a_bad_pair_is_named(tmp_path: Path, line: Any, words: str) -> None:
    good = {"sentence1": "a", "sentence2": "b", "score": 0}
    path = tmp_path / "d.jsonl"
    told = [one if isinstance(one, str) else json.dumps(one) for one in (good, line, good)]
    path.write_text("\n".join(told), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_data(path, TASK)
    assert "line 2: " in str(caught.value)
    assert words in str(caught.value)


def test_scores_that_are_all_equal_are_refused_and_one_pair_is_too_few(tmp_path: Path, make_bundle: MakeBundle) -> None:
    path = tmp_path / "d.jsonl"
    line = json.dumps({"sentence1": "a film", "sentence2": "the sea", "score": 2.5})
    path.write_text("\n".join([line] * 3), encoding="utf-8")
    with pytest.raises(DataError, match=r"scores that differ in .*, got 2\.5 on all 3 lines"):
        load_data(path, TASK)
    path.write_text(line, encoding="utf-8")
    report = gate(make_bundle("new", TASK), make_bundle("old", TASK), data=path, latency=False)
    assert report.verdict == "inconclusive"
    assert "on 1 pairs" in report.reasons[0]
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["metrics"][0]["candidate"] is None
    for written in (html_report(report), junit(report), report.to_markdown(), sample_lines(report)):
        assert "Spearman correlation" in written or '"truth": 2.5' in written


def test_duplicates_are_pairs_and_a_lone_text_keeps_its_score_as_a_column(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [{"text": "a", "text_pair": other, "score": n} for n, other in enumerate("bcb")]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert load_data(path, TASK).duplicates == 1
    path.write_text('{"text": "a", "score": 3}', encoding="utf-8")
    assert not load_data(path, TASK).labelled
