"""A bundle appears whole or not at all."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planish.errors import InputError
from planish.export.golden import encoder_inputs, write_golden
from planish.outputs import check_output
from tests.export.small_decoders import random_decoder
from tests.export.small_encoders import small_encoder


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_export_onto_a_disk_that_takes_no_more(kind: str, tmp_path: Path) -> None:
    """Files may grow to 10 kB only, in a process of its own: export ends with a HostError and cleans up."""
    if kind == "encoder":
        model = small_encoder("bert", "feature-extraction", tmp_path / "model")
    else:
        model = random_decoder("llama", tmp_path / "model")
    program = f"""
import resource, signal, sys
from planish.errors import HostError
from planish.export import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    export({str(model)!r}, {str(tmp_path / "bundle")!r})
except HostError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr[-2000:]
    assert "free some space" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000


@pytest.mark.parametrize("kind", ["file", "full directory", "link"])
def test_an_output_that_is_taken_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    if kind == "file":
        path.touch()
    elif kind == "full directory":
        path.mkdir()
        (path / "x").touch()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="free output path"):
        check_output(path)


def test_an_empty_directory_and_a_missing_one_are_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check_output(tmp_path / "empty") == tmp_path / "empty"
    assert check_output(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(InputError, match="mkdir -p"):
        check_output(tmp_path / "no" / "such")


def test_golden_bytes_repeat_and_need_no_pickle(tmp_path: Path) -> None:
    inputs = encoder_inputs(["input_ids", "attention_mask"], [4, 2], vocab_size=50, pad_token_id=1)
    outputs = {"logits": np.ones((2, 3), np.float32)}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_golden(tmp_path / name, inputs, outputs)
    for name in ("inputs.npz", "outputs.npz"):
        assert (tmp_path / "a/golden" / name).read_bytes() == (tmp_path / "b/golden" / name).read_bytes()
    with np.load(tmp_path / "a/golden/inputs.npz", allow_pickle=False) as found:
        assert sorted(found) == ["attention_mask", "input_ids"]


def test_encoder_inputs_are_ragged_and_padded() -> None:
    names = ["input_ids", "attention_mask", "token_type_ids"]
    batch = encoder_inputs(names, [5, 1, 3], vocab_size=7, pad_token_id=3)
    assert {array.shape for array in batch.values()} == {(3, 5)}
    assert batch["attention_mask"].sum(axis=1).tolist() == [5, 1, 3]
    real = batch["attention_mask"] == 1
    assert (batch["input_ids"][~real] == 3).all()
    assert (batch["input_ids"][real] != 3).all()
    assert batch["token_type_ids"].sum(axis=1).tolist() == [2, 0, 1]
