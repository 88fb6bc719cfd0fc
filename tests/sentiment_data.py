"""Sentences with ratings by people (Hutto & Gilbert 2014, MIT licence), from the source archive of vaderSentiment.

Protocol: movie sentences with a mean rating of at least 0.5 in size, label = above 0, `random.Random(1234).shuffle`,
split 80/10/10. What else the archive has serves as texts without labels.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ARCHIVE", "Rows", "movie_split", "unlabelled_texts"]

Rows = list[tuple[str, int]]

ARCHIVE = Path(__file__).resolve().parents[1] / ".cache" / "data" / "vaderSentiment-3.3.2.tar.gz"
"""Where `make data` puts it."""
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
NEUTRAL = 0.5
OTHERS = ("amazonReviewSnippets", "tweets")


def rated(part: str, archive: Path) -> Iterator[tuple[float, str]]:
    """Mean rating (-4 to 4) and text of each line of a part, e.g. ``tweets``."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(INNER)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as tar:
            wanted = f"/{part}_GroundTruth.txt"
            member = tar.extractfile(next(n for n in tar.getnames() if n.endswith(wanted) and "/._" not in n))
            assert member is not None
            lines = member.read().decode("utf-8", errors="replace").splitlines()
    for line in lines:
        _, mean, text = line.split("\t", 2)
        yield float(mean), text.strip()


def movie_split(archive: Path = ARCHIVE) -> dict[str, Rows]:
    """``{"train": 8057, "validation": 1007, "test": 1008}`` pairs of text and label (1 = positive)."""
    rows = [(text, int(mean > 0)) for mean, text in rated("movieReviewSnippets", archive) if abs(mean) >= NEUTRAL]
    random.Random(1234).shuffle(rows)
    first, second = int(len(rows) * 0.8), int(len(rows) * 0.9)
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


def unlabelled_texts(split: dict[str, Rows], archive: Path = ARCHIVE) -> list[str]:
    """8,264 further texts: neutral movie sentences, Amazon reviews, tweets.

    None has the words of a sentence of ``split`` (validation and test are to stay unseen) or of another text here.
    """
    seen = {"", *(words(text) for rows in split.values() for text, _ in rows)}
    neutral = [text for mean, text in rated("movieReviewSnippets", archive) if abs(mean) < NEUTRAL]
    found = []
    for text in [*neutral, *(text for part in OTHERS for _, text in rated(part, archive))]:
        if words(text) not in seen:
            seen.add(words(text))
            found.append(text)
    return found


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
