"""Small system files: what is missing, empty or odd is None, never an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.system_files import nvpmodel_mode, read_text

NAMES = "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=15W >\n"


def test_text_and_its_absence(tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert read_text(model) is None
    model.write_bytes(b"NVIDIA Jetson\0Orin\0\n")
    assert read_text(model) == "NVIDIA Jetson Orin"
    model.write_bytes(b"\0\n")
    assert read_text(model) is None
    assert read_text(tmp_path) is None  # a directory


def board(root: Path, status: str, names: str = NAMES) -> Path:
    for name, text in (("var/lib/nvpmodel/status", status), ("etc/nvpmodel.conf", names)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_the_power_mode_by_its_number(tmp_path: Path) -> None:
    assert nvpmodel_mode(tmp_path) is None
    assert nvpmodel_mode(board(tmp_path, "pmode:0001 fmode:fanNull")) == "15W"
    assert nvpmodel_mode(board(tmp_path, "pmode:0")) == "MAXN"
    assert nvpmodel_mode(board(tmp_path, "pmode:7")) is None  # a number without a name
    assert nvpmodel_mode(board(tmp_path, "pmode:1", "")) is None


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_text_or_nothing(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("system") / "file"
    file.write_bytes(raw)
    text = read_text(file)
    assert text is None or (text == text.strip() and text and "\0" not in text)
