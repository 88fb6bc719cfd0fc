"""The checks a YAML mapping passes to become a ``Profile``: keys, types, engines that fit, a source a figure."""

from __future__ import annotations

from dataclasses import fields

from planish.errors import ProfileError, nearest

from .fields import Section
from .schema import (
    ARCHES,
    BUILDS,
    DIALECTS,
    ENGINES,
    KINDS,
    PRECISIONS,
    RECIPES,
    TENSORRT_PRECISIONS,
    Budgets,
    Cpu,
    Engine,
    Gpu,
    Memory,
    PowerMode,
    Profile,
    Release,
    Shapes,
)

__all__ = ["parse"]


def keys(part: type) -> list[str]:
    """The YAML keys of a dataclass."""
    return [item.name for item in fields(part)]


def parse(value: object, origin: str = "the profile") -> Profile:
    """The profile a YAML mapping describes; ``origin`` names it in messages. Raises ``ProfileError``."""
    top = Section(value, "", ["schema", *keys(Profile)], origin)
    if top.integer("schema") != 1:
        raise top.wrong("schema", "schema 1", "write `schema: 1`, or update planish")
    profile = Profile(
        name=top.text("name"),
        description=top.text("description"),
        arch=top.choice("arch", ARCHES),
        engines=tuple(parse_engine(part) for part in top.sections("engines", keys(Engine))),
        dialects=top.texts("dialects", DIALECTS),
        shapes=parse_shapes(top.section("shapes", keys(Shapes))),
        threads=top.optional_integer("threads"),
        cpu=parse_cpu(top.section("cpu", keys(Cpu))) if top.has("cpu") else Cpu(),
        gpu=parse_gpu(top.section("gpu", keys(Gpu))) if top.has("gpu") else None,
        memory=parse_memory(top.section("memory", keys(Memory))) if top.has("memory") else None,
        boards=top.texts("boards"),
        budgets=parse_budgets(top.section("budgets", keys(Budgets))) if top.has("budgets") else Budgets(),
        power_modes=tuple(parse_mode(part) for part in top.sections("power_modes", keys(PowerMode))),
        software=tuple(parse_release(part) for part in top.sections("software", keys(Release))),
        notes=top.texts("notes"),
        sources=parse_sources(top),
    )
    check_engines(profile, top)
    check_sources(profile, top)
    return profile


def parse_cpu(part: Section) -> Cpu:
    return Cpu(part.texts("features"), part.optional_integer("cores"))


def parse_gpu(part: Section) -> Gpu:
    sm = part.text("sm")
    major, _, minor = sm.partition(".")
    if not (sm.isascii() and major.isdigit() and minor.isdigit() and len(sm) <= 5):
        raise part.wrong("sm", "a compute capability", 'write it as `sm: "8.7"`')
    rates = {key: part.optional_number(key) for key in keys(Gpu) if key.startswith("dense_")}
    return Gpu(part.text("name"), sm, part.texts("reported_as"), **rates)


def parse_memory(part: Section) -> Memory:
    return Memory(part.integer("bytes"), part.choice("kind", KINDS), part.optional_integer("bandwidth"))


def parse_engine(part: Section) -> Engine:
    build = part.choice("build", BUILDS) if part.has("build") else "nothing"
    return Engine(
        part.choice("name", ENGINES),
        part.texts("precisions", PRECISIONS),
        build,
        part.optional_number("build_memory"),
        part.texts("recipes", RECIPES),
        part.texts("install"),
    )


def parse_shapes(part: Section) -> Shapes:
    batch, sequence = part.span("batch", 1), part.span("sequence", 1)
    if batch is None or sequence is None:
        raise part.wrong("batch" if batch is None else "sequence", "three numbers", "write `batch: [1, 8, 32]`")
    return Shapes(batch, sequence, part.span("past", 0))


def parse_budgets(part: Section) -> Budgets:
    return Budgets(
        part.optional_number("latency_ms"), part.optional_integer("size_bytes"), part.optional_integer("memory_bytes")
    )


def parse_mode(part: Section) -> PowerMode:
    return PowerMode(part.text("name"), part.optional_number("watts"))


def parse_release(part: Section) -> Release:
    versions = {key: part.optional_text(key) for key in keys(Release) if key != "apt"}
    return Release(**versions, apt=part.texts("apt"))


def parse_sources(top: Section) -> dict[str, str]:
    """The mapping from figures to documents, with texts on both sides."""
    if not top.has("sources"):
        return {}
    known = (
        [key for key in top.values["sources"] if isinstance(key, str)]
        if isinstance(top.values["sources"], dict)
        else []
    )
    part = top.section("sources", known)
    return {key: part.text(key) for key in known}


def check_engines(profile: Profile, top: Section) -> None:
    """An engine needs its dialect, its GPU, and a GPU new enough for its precisions."""
    names = [engine.name for engine in profile.engines]
    if not names or len(set(names)) != len(names):
        raise top.wrong("engines", "at least one engine, each once", nearest("", ENGINES))
    for engine in profile.engines:
        where = f" of `{engine.name}` in {top.origin}"
        if not engine.precisions:
            raise ProfileError(f"at least one precision{where}", "none", nearest("", PRECISIONS))
        if ENGINES[engine.name] not in profile.dialects:
            raise ProfileError(
                f"the dialect{where}", f"dialects {list(profile.dialects)}", f"add {ENGINES[engine.name]}"
            )
        for recipe in engine.recipes:
            if RECIPES[recipe] not in engine.precisions:
                raise ProfileError(
                    f"{RECIPES[recipe]} among the precisions, as recipe {recipe} needs{where}",
                    ", ".join(engine.precisions),
                    f"remove {recipe} from its recipes",
                )
        if engine.name == "onnxruntime-cpu":
            continue
        if profile.gpu is None:
            raise ProfileError(f"the GPU{where}", "no `gpu` section", "add `gpu:`, or remove the engine")
        lowest = TENSORRT_PRECISIONS if engine.name.startswith("tensorrt") else PRECISIONS
        for precision in engine.precisions:
            if lowest[precision] > float(profile.gpu.sm):  # one decimal is all NVIDIA uses, so this sorts
                need = f"compute capability {lowest[precision]} or above for {precision}"
                raise ProfileError(f"{need}{where}", profile.gpu.sm, f"remove {precision}")


def check_sources(profile: Profile, top: Section) -> None:
    """Each figure has a source, its own or its section's, and no source is for nothing."""
    figures = list(profile.figures())
    for figure in figures:
        if not any(covers(source, figure) for source in profile.sources):
            fix = f"write `sources: {{{figure}: the document it is from}}`, or leave the figure out"
            raise ProfileError(f"a source for `{figure}` in {top.origin}", "none", fix)
    for source in profile.sources:
        if not any(covers(source, figure) for figure in figures):
            raise ProfileError(
                f"sources of figures in {top.origin}", f"`{source}`, which is not there", nearest(source, figures)
            )


def covers(source: str, figure: str) -> bool:
    """Whether a source's path is a figure's path or a section around it."""
    return figure == source or figure.startswith(f"{source}.")
