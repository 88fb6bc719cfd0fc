"""The commands from a checkpoint to a served engine, for the device of a profile, one list for each of its releases.

Names to put your own in: ``MODEL``, a checkpoint directory; ``USER@DEVICE``, the device's address; ``TEXT``. What is in
the commands besides is the profile's: module, packages, versions, recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePath
from shlex import quote
from typing import Any

from .schema import Engine, Profile, Release

__all__ = ["PLACES", "Journey", "Step", "journeys"]

PLACES = ("host", "device")
"""Where a step is done: on the host that compresses, x86-64 or Arm, or on the device."""
BUNDLE, PARENT = "model.bundle", "parent.bundle"
ENCODERS = ("int8", "fp8")
"""Recipes with 8-bit activations: export refuses decoders of them."""
SERVE = f"import planish.runtime as r; m = r.load('{BUNDLE}'); print(m.device, m.engine_id, m.passed_over)"
ON_CPU = "int8"
SYSTEM = "the environment has to see the system's tensorrt, which pip does not install"
SAME_VERSION = "the module has to be the version the engine was built with"
FROM_SOURCE = (
    "without a release, `pip wheel --no-deps -w . SOURCE` first, and --find-links . wherever pip installs planish"
)


@dataclass(frozen=True)
class Step:
    """Commands that belong together; ``where`` is one of ``PLACES``, ``note`` says what to know before typing them."""

    title: str
    where: str
    commands: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Journey:
    """From the checkpoint to answers, with the software of one release; ``release`` is empty where none is named."""

    release: str
    steps: tuple[Step, ...]

    @property
    def commands(self) -> tuple[str, ...]:
        """All commands in order."""
        return tuple(command for step in self.steps for command in step.commands)

    def to_json(self) -> dict[str, Any]:
        """Lists and dicts only."""
        steps = [{**asdict(step), "commands": list(step.commands)} for step in self.steps]
        return {"release": self.release, "steps": steps}


def journeys(profile: Profile, file: str | None = None) -> tuple[Journey, ...]:
    """One journey for each release the profile names, else one.

    ``file`` is the path of a profile of your own: commands name it instead, and it travels with the bundle.
    """
    releases = profile.software or (None,)
    return tuple(Journey(name_of(release), tuple(steps(profile, release, file))) for release in releases)


def name_of(release: Release | None) -> str:
    """A release in words.

    >>> name_of(Release(jetpack="6.2", cuda="12.6", tensorrt="10.3", python="3.10"))
    'JetPack 6.2: TensorRT 10.3, CUDA 12.6, Python 3.10'
    """
    if release is None:
        return ""
    parts = {"TensorRT": release.tensorrt, "CUDA": release.cuda, "Python": release.python}
    told = ", ".join(f"{name} {version}" for name, version in parts.items() if version)
    return f"JetPack {release.jetpack}: {told}" if release.jetpack else told


def steps(profile: Profile, release: Release | None, file: str | None) -> Iterator[Step]:
    """The steps for one release."""
    named = f"--profile {quote(file or profile.name)}"
    engine = engine_of(profile)
    yield prepare(engine)
    yield make(engine, named)
    travels = " ".join([BUNDLE, PARENT, *([quote(file)] if file else [])])
    yield Step("copy", "host", (f"rsync -a {travels} USER@DEVICE:",))
    yield install(engine, release)
    yield Step("check what arrived", "device", ("planish doctor", f"planish verify {BUNDLE}"))
    if engine is not None and engine.build == "device":
        yield build(f" --profile {quote(PurePath(file).name)}" if file else "")
    yield judge(profile, engine)
    yield serve(engine)


def engine_of(profile: Profile) -> Engine | None:
    """The TensorRT engine a profile prefers, None if it has none."""
    return next((engine for engine in profile.engines if engine.build != "nothing"), None)


def ahead(engine: Engine | None) -> bool:
    """Whether the engine is built on the host."""
    return engine is not None and engine.build == "anywhere"


def prepare(engine: Engine | None) -> Step:
    """planish with torch, and the module of an engine that is built here."""
    packages = ["'planish[all]'", *(map(quote, engine.install) if engine and ahead(engine) else ())]
    note = f"no GPU is needed here; {FROM_SOURCE}" if engine else FROM_SOURCE
    return Step("install on the host", "host", (f"pip install {' '.join(packages)}",), note)


def make(engine: Engine | None, named: str) -> Step:
    """Compress, export and gate the model, and export its parent as the baseline."""
    recipes = engine.recipes if engine is not None else (ON_CPU,)
    commands = [
        f"planish ship MODEL --recipe {recipes[0] if recipes else ON_CPU} {named} -o {BUNDLE}",
        f"planish export MODEL {named} -o {PARENT}",
    ]
    if engine is not None:
        commands.append(f"planish inspect {BUNDLE} --lint {named}")
    if ahead(engine):
        commands.append(f"planish build {PARENT} {named}")
    return Step("make the bundle and its baseline", "host", tuple(commands), recipe_note(recipes, engine))


def recipe_note(recipes: tuple[str, ...], engine: Engine | None) -> str:
    """Which recipe is for which model."""
    if engine is None:
        return "int8 is for encoders; a decoder takes int4"
    encoders = [name for name in recipes if name in ENCODERS]
    decoders = [name for name in recipes if name not in ENCODERS]
    told = f"encoders: {' or '.join(encoders)}; decoders: {' or '.join(decoders) or 'export MODEL itself (float16)'}"
    return f"{told}; ship builds the engine, too" if ahead(engine) else told


def install(engine: Engine | None, release: Release | None) -> Step:
    """Packages of the system, an environment that sees them, and planish without torch."""
    apt = release.apt if release is not None else ()
    commands = [f"sudo apt install {' '.join(map(quote, apt))}"] if apt else []
    commands.append("python3 -m venv --system-site-packages env" if apt else "python3 -m venv env")
    commands.append(". env/bin/activate")
    planish = "'planish[build]'" if engine is not None and engine.build == "device" else "planish"
    wheel = release.onnxruntime if release is not None else None
    swapped = wheel is not None and not wheel.startswith("onnxruntime==")
    extra = [quote(wheel)] if wheel and not swapped else []
    commands.append(" ".join(["pip install", planish, *map(quote, engine.install if engine else ()), *extra]))
    if wheel is not None and swapped:  # both distributions hold the module onnxruntime: one has to go first
        commands += ["pip uninstall -y onnxruntime", f"pip install {quote(wheel)}"]
    note = SYSTEM if apt else SAME_VERSION if ahead(engine) else ""
    return Step("install on the device", "device", tuple(commands), note)


def build(named: str) -> Step:
    """Build the engines of both bundles, the estimate first; bundles name shipped profiles themselves."""
    commands = tuple(f"planish build {what}{named}" for what in (f"{BUNDLE} --dry-run", BUNDLE, PARENT))
    note = "the bundle serves through ONNX Runtime meanwhile; the golden set decides whether the engine is switched on"
    return Step("build the engines", "device", commands, note)


def judge(profile: Profile, engine: Engine | None) -> Step:
    """Gate and bench the bundle against its parent, both on the same kind of engine."""
    where = " --device tensorrt" if engine is not None else ""
    clocks = ("sudo nvpmodel -q", "sudo jetson_clocks") if profile.boards and profile.power_modes else ()
    commands = (
        *clocks,
        f"planish gate {BUNDLE} --baseline {PARENT}{where}",
        f"planish bench {BUNDLE} {PARENT}{where} --shape 1x{profile.shapes.sequence[1]}",
    )
    note = "--data test.jsonl judges on your own labelled data"
    return Step("gate and measure", "device", commands, f"{note}; fixed clocks first" if clocks else note)


def serve(engine: Engine | None) -> Step:
    """Answer once, and say what answers."""
    note = "in your own program, by the Python door; there is no HTTP server yet"
    if engine is not None:
        note += ". Without --device the engine is taken where it fits, else ONNX Runtime"
    return Step("serve", "device", (f'planish run {BUNDLE} "TEXT"', f'python -c "{SERVE}"'), note)
