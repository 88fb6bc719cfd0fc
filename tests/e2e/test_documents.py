"""Every command and every Python block shown in README.md and docs/ runs as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "LOG.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def environment() -> dict[str, str]:
    """The environment a reader has: the virtual environment's commands first."""
    bin_dir = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def marks(page: Path) -> list[pytest.MarkDecorator]:
    """Pages that take minutes are for `make slow`; test_gpt_journey and test_shrink_journey run the same commands."""
    return [pytest.mark.slow] if page.name in ("decoders.md", "shrinking.md") else []


def is_install(block: str) -> bool:
    return all(line.startswith(("make ", "pip install", "#")) for line in block.splitlines() if line.strip())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name, marks=marks(page)) for page in PAGES])
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "sh"):
        if is_install(block):
            check_install_lines(block)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    for block in blocks(page, "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stderr[-4000:]}"


def check_install_lines(block: str) -> None:
    """A make target exists; an extra named in a pip line is declared. (They are what made this environment.)"""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in block.splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        for extra in re.findall(r"\[([\w,]+)\]", line):
            assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extra.split(","))


def test_tree_in_the_readme_is_true() -> None:
    (tree,) = blocks(ROOT / "README.md", "")
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert named == folders


def test_relative_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_in_the_readme_and_its_help_works() -> None:
    from planish.cli import COMMANDS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", readme), f"README does not name {command}"
        done = subprocess.run(
            [sys.executable, "-m", "planish", command, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Usage:" in done.stdout
