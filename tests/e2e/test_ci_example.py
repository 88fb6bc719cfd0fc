"""docs/ci-example.yml is run as GitHub would run it: its steps in order, on a repository with two commits.

GitHub's side is what its documentation says: a step's variables and files, `bash -e`, expressions in `env`,
`always()`, a cache by key; `gh`, which would speak to GitHub, is a script that keeps what it was given; and pip stops
before it changes this environment. Everything else is real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lxml import etree

from tests.tiny import text, tiny_encoder

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "ci-example.yml"
SCHEMA = ROOT / "tests" / "gate" / "junit.xsd"
RECIPE = "schema: 1\nname: ours\npasses:\n  - {pass: int8-linear, activations: token, range: mse}\n"
EMBEDDING = "  - {pass: int8-embedding, group_size: null}\n"
GH = """#!/bin/sh
printf '%s\\n' "$@" > "$RUNNER_TEMP/gh-arguments"
cp "$5" "$RUNNER_TEMP/gh-body"
"""

Spoil = Callable[[Path], None]


def job() -> dict[str, Any]:
    (found,) = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["jobs"].values()
    return dict(found)


def git(repository: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(repository: Path, message: str) -> str:
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", message)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to install from: pip writes beside what it installs."""
    copy = tmp_path_factory.mktemp("sources") / "planish"
    skipped = shutil.ignore_patterns(".*", "build", "tests", "benchmarks", "docs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=skipped)
    return copy


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What GitHub keeps for a repository: folders by key."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a trained classifier of long and short texts, a recipe and labelled data."""
    repository = tmp_path_factory.mktemp("origin")
    tiny_encoder("bert", "text-classification", repository / "model")
    (repository / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    lines = [line for line in text().splitlines() if len(line) > 80][:130]
    samples = [(line[:length], label) for line in lines for length, label in ((40, "short"), (240, "long"))]
    rows = [json.dumps({"text": words, "label": label}) for words, label in samples]
    (repository / "test.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    git(repository, "init", "-q", "-b", "main")
    commit(repository, "a model")
    return repository


def turn_round(repository: Path) -> None:
    """The classifier says short for long."""
    from safetensors.torch import load_file, save_file

    path = repository / "model" / "model.safetensors"
    tensors = load_file(path)
    names = [name for name in tensors if name.startswith("classifier.")]
    assert len(names) == 2
    save_file({**tensors, **{name: -tensors[name] for name in names}}, path, {"format": "pt"})


def quantize_the_embedding(repository: Path) -> None:
    (repository / "recipe.yaml").write_text(RECIPE + EMBEDDING, encoding="utf-8")


def filled(values: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    """``env`` with GitHub's expressions replaced; one that is not in ``known`` is a KeyError."""
    return {
        name: re.sub(r"\$\{\{ (.*?) \}\}", lambda match: known[match[1]], str(value)) for name, value in values.items()
    }


def run_steps(workspace: Path, environment: dict[str, str], known: dict[str, str]) -> dict[str, int | None]:
    """Exit status of every step by name, None for one that was passed over, as GitHub does after a failure."""
    found: dict[str, int | None] = {}
    failed = False
    for step in job()["steps"]:
        if "run" not in step or (failed and "always()" not in step.get("if", "")):
            found[step.get("name", step.get("uses"))] = None
            continue
        assert "${{" not in step["run"], "an expression in a script is a way in for whoever names a branch"
        own = {**environment, **filled(step.get("env", {}), known)}
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=workspace, env=own, capture_output=True, text=True, check=False
        )
        found[step["name"]] = done.returncode
        failed |= done.returncode != 0
        print(step["name"], done.returncode, done.stdout[-2000:], done.stderr[-3000:], sep="\n")
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("change", "exit_code", "verdict"),
    [
        pytest.param(quantize_the_embedding, 0, "pass", id="a change that is as good"),
        pytest.param(turn_round, 1, "regress", id="a change that breaks the model"),
    ],
)
def test_the_workflow_gates_a_pull_request(
    change: Spoil, exit_code: int, verdict: str, origin: Path, sources: Path, cache: Path, tmp_path: Path
) -> None:
    workspace, temporary, stubs = tmp_path / "work", tmp_path / "temp", tmp_path / "bin"
    for folder in (temporary, stubs):
        folder.mkdir()
    (stubs / "gh").write_text(GH, encoding="utf-8")
    (stubs / "gh").chmod(0o755)
    git(tmp_path, "clone", "-q", str(origin), str(workspace))
    base = git(workspace, "rev-parse", "HEAD")
    change(workspace)
    head = commit(workspace, "a change")
    known = {
        "github.event.pull_request.base.sha": base,
        "github.event.pull_request.head.sha": head,
        "github.event.pull_request.number": "7",
        "github.token": "secret",
    }
    summary = temporary / "summary.md"
    environment = {
        **os.environ,
        **filled(job()["env"], known),
        "PATH": os.pathsep.join([str(stubs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "GITHUB_STEP_SUMMARY": str(summary),
        "RUNNER_TEMP": str(temporary),
        # what only this test has: sources in place of an index, an install that stops before it changes anything
        # here, and no timed verdict in a suite that may run on a busy machine
        "PLANISH": f"planish[all] @ {sources.as_uri()}",
        **dict.fromkeys(("PIP_DRY_RUN", "PIP_NO_DEPS", "PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"), "1"),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's own spelling: 0 means without isolation
        "GATE_OPTIONS": "--max-loss 0.5 --no-latency",
    }
    known |= {f"env.{name}": environment[name] for name in job()["env"]} | {"runner.temp": str(temporary)}
    kept = filled(next(step for step in job()["steps"] if "cache" in step.get("uses", ""))["with"], known)
    there, bundle = cache / kept["key"].replace("/", " "), Path(kept["path"])
    if there.is_dir():
        shutil.copytree(there, bundle)
    found = run_steps(workspace, environment, known)
    if not there.is_dir():
        shutil.copytree(bundle, there)
    assert {name: code for name, code in found.items() if code is not None} == {
        "Install": 0,
        "Build both bundles": 0,
        "Gate": exit_code,
        "Comment on the pull request": 0,
    }
    reports = workspace / "report"
    assert {path.name for path in reports.iterdir()} == {"gate.html", "gate.xml", "gate.md"}
    markdown = (reports / "gate.md").read_text(encoding="utf-8")
    assert markdown.startswith(f"# planish gate: {verdict}\n\n`head.bundle` against `base.bundle`")
    assert summary.read_text(encoding="utf-8") == markdown + "\n"
    assert (temporary / "gh-body").read_text(encoding="utf-8") == markdown
    assert (temporary / "gh-arguments").read_text(encoding="utf-8").split()[:3] == ["pr", "comment", "7"]
    etree.XMLSchema(etree.parse(str(SCHEMA))).assertValid(etree.parse(str(reports / "gate.xml")))
    upload = next(step for step in job()["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert (workspace / upload["with"]["path"]).is_dir()


def test_the_example_asks_for_no_more_rights_than_it_needs() -> None:
    workflow = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert workflow[True] == "pull_request", "YAML 1.1 reads the key `on` as true"
