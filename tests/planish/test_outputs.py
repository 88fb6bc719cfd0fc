"""Results appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from planish.errors import HostError
from planish.outputs import staging


def test_staging_renames_at_the_end(tmp_path: Path) -> None:
    with staging(tmp_path / "bundle") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
        assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_stops_it_nothing_is_left(error: type[BaseException], tmp_path: Path) -> None:
    def stopped() -> None:
        with staging(tmp_path / "bundle") as folder:
            (folder / "deep").mkdir()
            raise error

    with pytest.raises(error):
        stopped()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_the_host_s_fault(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="free some space"), staging(tmp_path / "bundle"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
