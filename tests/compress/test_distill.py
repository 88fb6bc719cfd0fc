"""The pass distill as a whole: a distilled student beats the same student, of every task and family."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking

from planish.compress import distill_setup
from planish.compress.distill_loop import Plan, rate
from planish.compress.observed import pair_layers
from planish.compress.passes import build, run
from planish.compress.quality import Reference, evaluate
from planish.compress.recipe import Data
from planish.compress.slicing import cut_blocks, cut_heads, cut_neurons, cut_vocabulary, cut_width
from planish.compress.teacher import open_teacher
from planish.errors import CheckpointError, DataError, RecipeError

from .conftest import Maker
from .distilling import Workshop, text_file, train_teacher, write_rows

QUICK: dict[str, Any] = {"steps": 50, "batch_size": 16, "learning_rate": 5e-3}
GENTLE = {**QUICK, "learning_rate": 5e-4, "dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("rows")
    train, validation = write_rows(folder / "train.jsonl", 320, 1), write_rows(folder / "validation.jsonl", 160, 2)
    return Data(train=str(train), validation=str(validation), max_length=32)


@pytest.fixture(scope="module")
def parent(small_checkpoint: Maker, data: Data) -> Path:
    """A classifier that knows its task."""
    return train_teacher(small_checkpoint("bert", "BertForSequenceClassification", num_labels=2), data)


@pytest.fixture
def workshop(parent: Path, data: Data, tmp_path: Path) -> Workshop:
    return Workshop(parent, data, tmp_path / "out")


@pytest.fixture
def keep_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge by the clock: a random parent's answers need not be better than its student's."""
    better = count()
    monkeypatch.setattr(distill_setup, "headline", lambda *_: ("later", float(next(better)), True))


def cut_down(workshop: Workshop) -> float:
    """Most of the model goes; returns what accuracy is left."""
    for block in range(2):
        cut_heads(workshop.bench, block, [0])
        cut_neurons(workshop.bench, block, range(0, 96, 4))
    cut_width(workshop.bench, range(24))
    return evaluate(workshop.bench.model, workshop.examples())["accuracy"]


@pytest.mark.parametrize(
    "weights",
    [{"logits": 1.0}, {"logits": 1.0, "labels": 1.0}, {"hidden": 1.0}, {"relations": 1.0}],
    ids=["logits", "labels", "hidden", "relations"],
)
def test_distilled_beats_undistilled(workshop: Workshop, weights: dict[str, float]) -> None:
    before = cut_down(workshop)
    facts = workshop.run({**QUICK, "weights": weights})
    after = evaluate(workshop.bench.model, workshop.examples())["accuracy"]
    assert after > before + 0.3 * (1 - before), (before, after, facts)  # of the mistakes, 30 % at least are gone
    assert facts["losses"][-1]["loss"] < facts["losses"][0]["loss"]
    assert not workshop.bench.model.training
    assert not any(p.requires_grad or p.grad is not None for p in workshop.bench.model.parameters())


def test_altered_texts_bring_the_student_nearer_than_the_same_few_again(
    parent: Path, data: Data, tmp_path: Path, keep_the_last: None
) -> None:
    """Of 32 texts a student learns their answers; of ever new ones made from them, how its teacher answers."""
    few = Data(train=str(write_rows(tmp_path / "few.jsonl", 32, 3)), validation=data.validation, max_length=32)
    apart = {}
    for name, augment in (("same", None), ("altered", {"splice": 0.7, "replace": 0.3})):
        workshop = Workshop(parent, few, tmp_path / name)
        teacher = Reference.of(workshop.source.load_model(), workshop.examples())
        cut_down(workshop)
        workshop.run({**QUICK, "steps": 100, "augment": augment})
        apart[name] = teacher.compare(workshop.bench.model, workshop.examples())["kl"]
    assert apart["altered"] < 0.8 * apart["same"], apart


@pytest.mark.parametrize("width", [None, 48])
def test_hidden_states_come_nearer(width: int | None, workshop: Workshop) -> None:
    """The parent's own states are at distance 0; a narrower student starts from the best linear map to them."""
    if width is not None:
        cut_width(workshop.bench, range(width))
    facts = workshop.run({**GENTLE, "steps": 20, "weights": {"logits": 0.0, "hidden": 1.0}})
    first, last = facts["losses"][0]["hidden"], facts["losses"][-1]["hidden"]
    if width is None:
        assert first < 1e-9
    else:
        assert last < first < 0.5, facts["losses"]


TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # model class, what the config needs, settings beside the usual
    "several labels": (
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"weights": {"labels": 0.5}},
    ),
    "tags": ("BertForTokenClassification", {"num_labels": 3}, {"weights": {"hidden": 0.5}, "augment": {}}),
    "answers": ("BertForQuestionAnswering", {}, {"weights": {"relations": 0.5}}),
    "masked": ("BertForMaskedLM", {}, {"weights": {"labels": 0.5}}),
    "vectors": ("BertModel", {}, {"augment": {}}),
    "narrow vectors": ("BertModel", {"cut": 48}, {"weights": {"hidden": 1.0}}),
}
ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "several labels": lambda text: {"text": text, "label": [0, 2] if "whale" in text else [1]},
    "tags": lambda text: {
        "tokens": text.split(),
        "tags": ["B-X" if w in ("whale", "ship") else "O" for w in text.split()],
    },
    "answers": lambda text: {"question": "who?", "context": text, "answers": [text.split()[1]]},
}


def mean_of_last(facts: dict[str, Any], part: str = "loss") -> float:
    """The mean over the last quarter: batches differ."""
    last = facts["losses"][-len(facts["losses"]) // 4 :]
    return sum(float(point[part]) for point in last) / len(last)


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, small_checkpoint: Maker, data: Data, tmp_path: Path) -> None:
    """The first loss is the student's distance from its parent; training brings it down."""
    architecture, config, settings = TASKS[task]
    config = dict(config)
    cut = config.pop("cut", None)
    if task == "tags":
        config["id2label"] = {0: "O", 1: "B-X", 2: "I-X"}
        config["label2id"] = {"O": 0, "B-X": 1, "I-X": 2}
    texts = [json.loads(line)["text"] for line in Path(str(data.train)).read_text(encoding="utf-8").splitlines()[:96]]
    rows = [ROWS.get(task, lambda text: {"text": text})(text) for text in texts]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    parent = small_checkpoint("bert", architecture, **config)
    workshop = Workshop(parent, Data(train=str(path), max_length=32, holdout=0.25), tmp_path / "out")
    for block in range(2):
        cut_heads(workshop.bench, block, [0])
        cut_neurons(workshop.bench, block, range(4))
    if cut is not None:
        cut_width(workshop.bench, range(cut))
    facts = workshop.run({**GENTLE, "steps": 20, **settings})
    assert set(facts["losses"][0]) == {"step", "loss", "logits", *settings.get("weights", {})}
    assert mean_of_last(facts) < facts["losses"][0]["loss"], facts["losses"]
    assert len(facts["evaluations"]) >= 2


@pytest.mark.parametrize("kind", ["distilbert", "mpnet", "gpt2", "qwen3", "opt", "gpt_neox"])
def test_other_families(kind: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    """Hidden states and relations are found in every family; text without labels is enough."""
    data = Data(train=str(text_file(tmp_path / "text.txt", 6_000)), max_length=32, sequence_length=32)
    workshop = Workshop(small_checkpoint(kind), data, tmp_path / "out")
    for block in range(2):
        cut_neurons(workshop.bench, block, range(4))
    facts = workshop.run({**GENTLE, "steps": 12, "weights": {"hidden": 1.0, "relations": 1.0}, "batch_size": 8})
    assert set(facts["losses"][0]) == {"step", "loss", "logits", "hidden", "relations"}
    for part in ("loss", "hidden"):
        assert mean_of_last(facts, part) < facts["losses"][0][part], (part, facts["losses"])


def test_a_decoder_of_fewer_layers_learns_from_the_likeliest_tokens(
    small_checkpoint: Maker, tmp_path: Path, keep_the_last: None
) -> None:
    """From a cache of the likeliest 256 of 512, the rest as one: it comes nearer to the whole teacher, too."""
    data = Data(train=str(text_file(tmp_path / "text.txt", 20_000)), sequence_length=32)
    parent = small_checkpoint("llama")
    found = {}
    for top_k in (None, 256):
        workshop = Workshop(parent, data, tmp_path / f"out-{top_k}")
        cut_blocks(workshop.bench, [0])
        reference = Reference.of(teacher_of(workshop), workshop.examples())
        before = reference.compare(workshop.bench.model)["kl"]
        facts = workshop.run({**QUICK, "batch_size": 8, "learning_rate": 2e-3, "steps": 24, "top_k": top_k})
        found[top_k] = reference.compare(workshop.bench.model)["kl"]
        assert facts["losses"][-1]["loss"] < facts["losses"][0]["loss"]
        assert found[top_k] < 0.8 * before, (before, found)
    pieces = {path.name for path in (tmp_path / ".out-256.partial").iterdir()}
    assert "pass-0-teacher-0000.safetensors" in pieces


def teacher_of(workshop: Workshop) -> Any:
    return workshop.source.load_model()


@torch.no_grad()
def test_a_trimmed_vocabulary_is_trimmed_for_the_teacher_too(parent: Path, data: Data, tmp_path: Path) -> None:
    workshop = Workshop(parent, data, tmp_path / "out")
    keep = [*range(100), *range(200, 512)]
    cut_vocabulary(workshop.bench, keep)
    teacher: Any = open_teacher(None, workshop.bench, workshop.context())
    ids = torch.tensor([[2, 120, 300, 3]])
    whole = teacher_of(workshop)
    assert teacher.get_input_embeddings().weight.shape[0] == len(keep)
    assert torch.equal(teacher(ids).logits, whole(torch.tensor([[keep[int(i)] for i in ids[0]]])).logits)


def test_early_stop_keeps_the_best(workshop: Workshop) -> None:
    cut_down(workshop)
    settings = {
        **QUICK,
        "learning_rate": 3e-2,
        "schedule": "constant",
        "evaluate_every": 2,
        "patience": 3,
        "steps": 400,
    }
    facts = workshop.run(settings)
    assert facts["stopped"] == f"no better accuracy in 3 evaluations, at step {facts['steps']}"
    assert facts["steps"] < 400
    best = max(one["accuracy"] for one in facts["evaluations"])
    assert evaluate(workshop.bench.model, workshop.examples())["accuracy"] == pytest.approx(best, abs=1e-6)


def test_the_best_may_be_the_nearest_to_the_teacher(workshop: Workshop) -> None:
    cut_down(workshop)
    facts = workshop.run({**QUICK, "steps": 20, "evaluate_every": 5, "judge": "teacher"})
    apart = {point["step"]: point["kl"] for point in facts["evaluations"]}
    assert list(apart) == [0, 5, 10, 15, 20]
    assert facts["best_step"] == min(apart, key=apart.__getitem__)
    assert apart[facts["best_step"]] < 0.8 * apart[0]


def test_frozen_parameters_stay(workshop: Workshop, keep_the_last: None) -> None:
    before = {name: p.clone() for name, p in workshop.bench.model.named_parameters()}
    workshop.run({**QUICK, "steps": 3, "freeze": ["*embeddings*", "classifier.bias"], "weights": {"labels": 1.0}})
    for name, parameter in workshop.bench.model.named_parameters():
        frozen = "embeddings" in name or name == "classifier.bias"
        assert torch.equal(parameter, before[name]) == frozen, name


def test_dropout_and_random_numbers_are_given_back(workshop: Workshop) -> None:
    dropped = [module.p for module in workshop.bench.model.modules() if isinstance(module, torch.nn.Dropout)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    workshop.run({**QUICK, "steps": 2, "dropout": 0.5})
    assert torch.equal(torch.rand(3), expected)
    after = [module.p for module in workshop.bench.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropped == after
    assert 0.5 not in after


def test_accumulated_batches_are_one_large_one(parent: Path, tmp_path: Path) -> None:
    """Three batches of 16 make the step one of 48 makes (which texts are padded together aside)."""
    data = Data(train=str(write_rows(tmp_path / "rows.jsonl", 64, 5)), max_length=32, holdout=0.25)
    ends = []
    for accumulate in (1, 3):
        workshop = Workshop(parent, data, tmp_path / f"out-{accumulate}")
        cut_neurons(workshop.bench, 0, range(8))
        settings = {**GENTLE, "steps": 1, "accumulate": accumulate, "batch_size": 48 // accumulate, "warmup": 0.0}
        facts = workshop.run({**settings, "weights": {"labels": 1.0}})
        ends.append((facts["losses"][0]["loss"], workshop.bench.model.classifier.weight.clone()))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-5)
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=1e-4, atol=1e-6)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "temprature": ({"temprature": 1.0}, RecipeError, "did you mean 'temperature'"),
    "all off": ({"weights": {"logits": 0.0}}, RecipeError, "none negative, one positive"),
    "unknown weight": ({"weights": {"logit": 1.0}}, RecipeError, "weights.logit"),
    "layer map": ({"layer_map": [0, 9], "weights": {"hidden": 1.0}}, RecipeError, "blocks 0..1 for each of"),
    "freeze": ({"freeze": ["nothing*"]}, RecipeError, r"pattern 'nothing\*' in freeze"),
    "freeze all": ({"freeze": ["*"]}, RecipeError, "something left to train"),
    "include": ({"include": ["*"]}, RecipeError, "name what is to stay in freeze"),
    "top_k": ({"top_k": 4}, RecipeError, "top_k for decoders only"),
    "augment and labels": ({"augment": {}, "weights": {"labels": 1.0}}, RecipeError, "weights.labels 0 with augment"),
    "augment by nothing": ({"augment": {"splice": 0.0, "replace": 0.0}}, RecipeError, "splice or replace above 0"),
    "unknown alteration": ({"augment": {"mix": 0.5}}, RecipeError, "augment.mix"),
    "tracker": ({"tracker": "trackoi"}, RecipeError, "did you mean 'trackio'"),
    "tracker missing": ({"tracker": "dvclive"}, RecipeError, "pip install dvclive"),
    "teacher": ({"teacher": "no/where/at-all"}, CheckpointError, "no/where/at-all"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name: str, workshop: Workshop) -> None:
    settings, error, message = BAD[name]
    with pytest.raises(error, match=message):
        workshop.run({"steps": 1, **settings})


def test_teachers_that_do_not_fit(workshop: Workshop, small_checkpoint: Maker, tmp_path: Path) -> None:
    other = small_checkpoint("bert", "BertForSequenceClassification", num_labels=2, vocab_size=600)
    with pytest.raises(CheckpointError, match="teacher and student vocabularies differ"):
        workshop.run({"steps": 1, "teacher": str(other)})
    other = small_checkpoint("bert", "BertForSequenceClassification", num_labels=3)
    with pytest.raises(CheckpointError, match="teacher and student labels to be the same"):
        workshop.run({"steps": 1, "teacher": str(other)})
    with pytest.raises(CheckpointError, match=r"a teacher for text-classification.* for fill-mask"):
        workshop.run({"steps": 1, "teacher": str(small_checkpoint("bert", "BertForMaskedLM"))})


def test_a_question_is_not_altered(small_checkpoint: Maker, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"question": "who?", "context": f"the {word}", "answers": [word]} for word in ("whale", "ship", "sea")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    parent = small_checkpoint("bert", "BertForQuestionAnswering")
    workshop = Workshop(parent, Data(train=str(path), holdout=0.4, max_length=32), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"augment for .*, got a model for question-answering"):
        workshop.run({"steps": 1, "augment": {}})


def test_another_teacher(workshop: Workshop, small_checkpoint: Maker) -> None:
    """A wider and deeper one, of another family."""
    sizes = {"dim": 96, "n_heads": 4, "hidden_dim": 128, "n_layers": 3}
    teacher = small_checkpoint("distilbert", "DistilBertForSequenceClassification", num_labels=2, **sizes)
    facts = workshop.run({**QUICK, "teacher": str(teacher), "weights": {"hidden": 1.0, "relations": 1.0}, "steps": 12})
    assert facts["teacher"] == str(teacher)
    assert facts["losses"][-1]["relations"] < facts["losses"][0]["relations"]


def test_labels_are_needed_where_they_count(small_checkpoint: Maker, tmp_path: Path) -> None:
    data = Data(train=str(text_file(tmp_path / "text.txt", 3_000)), max_length=32)
    workshop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), data, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"since weights\.labels is not 0, got none"):
        workshop.run({"steps": 1, "weights": {"labels": 1.0}})


def test_one_class_is_refused(small_checkpoint: Maker, tmp_path: Path) -> None:
    data = Data(train=str(write_rows(tmp_path / "rows.jsonl", 20, 1, label=lambda _: 1)), max_length=32)
    workshop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), data, tmp_path / "out")
    with pytest.raises(DataError):
        workshop.run({"steps": 1})


def test_quantized_layers_are_not_trained(workshop: Workshop) -> None:
    run(build("int8-embedding", {}, "test"), workshop.bench, workshop.context())
    with pytest.raises(RecipeError, match="distill before the passes that quantize"):
        workshop.run({"steps": 1})


def test_a_tracker_gets_the_figures(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []

    class Memory(tracking.GeneralTracker):  # type: ignore[misc]
        name, requires_logging_directory = "memory", False

        def __init__(self, run_name: str, **_: Any) -> None:
            super().__init__()
            logged.append({"run": run_name})

        @property
        def tracker(self) -> Any:
            return logged

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            logged.append(values)

        def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
            logged.append({**values, "step": step})

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "memory", Memory)
    workshop.run({**QUICK, "steps": 4, "tracker": "memory"})
    assert logged[0] == {"run": "planish"}
    assert logged[1]["weights.logits"] == 1.0
    assert [entry["step"] for entry in logged[2:] if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in logged[2:] if "accuracy" in entry] == [0, 4]


def test_pairs_of_layers() -> None:
    assert pair_layers("uniform", 2, 6) == [(0, 0), (1, 3), (2, 6)]
    assert pair_layers("uniform", 3, 3) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert pair_layers(None, 2, 6) == [(2, 6)]
    assert pair_layers([1, 4], 2, 6) == [(0, 0), (1, 2), (2, 5)]


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_learning_rates(schedule: Any, middle: float) -> None:
    plan = Plan(100, 10, 1, 1.0, 0.2, schedule, 0.0, 1.0, None, None)
    rates = [rate(plan, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19] == rates[20] == 1.0
    assert rates[60] == pytest.approx(middle)
    assert min(rates) > 0
    assert all(a >= b for a, b in pairwise(rates[20:]))
