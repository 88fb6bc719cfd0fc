"""The optimization profiles of an engine: which shapes it takes, from the device profile, the graph and the model.

Axes go by the names docs/formats.md, sections 5 and 5b, gives them. An encoder has one optimization profile. A decoder
has two: ``prefill``, which reads a prompt or a piece of one, and ``decode``, which adds one token.
"""

from __future__ import annotations

from collections.abc import Mapping

from planish.errors import BundleError, ProfileError
from planish.profiles import Profile
from planish.runtime import Manifest, Range, ShapeProfile
from planish.runtime.manifest import TensorInfo

__all__ = ["AXES", "optimization_profiles"]

Sizes = tuple[int, int, int]
"""The least, the usual and the greatest size of an axis."""
AXES = ("batch", "sequence", "past", "total", "kept")
ONE: Sizes = (1, 1, 1)
LOGITS_BYTES = 128_000_000
"""Memory for logits; those of 512 positions of 32 texts would take most of what an engine takes."""


def optimization_profiles(profile: Profile, manifest: Manifest, inputs: tuple[TensorInfo, ...]) -> list[ShapeProfile]:
    """The optimization profiles for ``inputs``, limited to what the model can take.

    Raises:
        ProfileError: the profile asks for more than the model takes, or says nothing of a decoder's past.
        BundleError: an input has an axis we do not know.
    """
    shapes, generation = profile.shapes, manifest.generation
    if generation is None:
        axes = {"batch": shapes.batch, "sequence": limited("sequence", shapes.sequence, manifest.max_length, profile)}
        return [ShapeProfile("default", ranges(inputs, axes))]
    if shapes.past is None:
        raise ProfileError(
            f"shapes.past in profile {profile.name}, for a decoder's cache", "none", "add `past: [0, 256, 1024]`"
        )
    sequence = limited("sequence", shapes.sequence, generation.max_length, profile)
    past = limited("past", shapes.past, generation.max_length - 1, profile)
    kept = (1, 1, min(sequence[2], most_logits(shapes.batch[2], manifest.vocab_size)))
    prefill = {"sequence": sequence, "past": (0, 0, past[2]), "kept": kept}
    decode = {"sequence": ONE, "past": (0, past[1], past[2]), "kept": ONE}
    return [
        ShapeProfile(name, ranges(inputs, {"batch": shapes.batch, "total": added(axes), **axes}))
        for name, axes in (("prefill", prefill), ("decode", decode))
    ]


def most_logits(rows: int, vocab_size: int) -> int:
    """Positions a row that a pass may return the logits of: generating needs one, scoring goes by as many at a time.

    >>> most_logits(32, 49_152), most_logits(1, 50_257), most_logits(64, 500_000)
    (13, 424, 1)
    """
    return max(1, LOGITS_BYTES // (rows * vocab_size * (2 + 4)))  # float16, and float32 as they leave


def added(axes: Mapping[str, Sizes]) -> Sizes:
    """``total``: the past and the new tokens together."""
    (a, b, c), (x, y, z) = axes["sequence"], axes["past"]
    return a + x, b + y, c + z


def limited(axis: str, sizes: Sizes, limit: int, profile: Profile) -> Sizes:
    """Sizes cut to what the model takes; raises ``ProfileError`` if not even the least fits.

    >>> limited("sequence", (1, 128, 512), 256, None)
    (1, 128, 256)
    """
    least, usual, most = sizes
    if least > limit:
        raise ProfileError(
            f"shapes.{axis} from at most {limit}, since the model takes no more",
            f"{least} in profile {profile.name}",
            f"lower the first of shapes.{axis}",
        )
    return least, min(usual, limit), min(most, limit)


def ranges(inputs: tuple[TensorInfo, ...], axes: Mapping[str, Sizes]) -> dict[str, Range]:
    """A range for each input that has an axis of varying size."""
    found = {}
    for tensor in inputs:
        unknown = [axis for axis in tensor.shape if isinstance(axis, str) and axis not in axes]
        if unknown:
            known = ", ".join(axis for axis in AXES if axis in axes)
            raise BundleError(
                f"axes named {known} in the graph's inputs", f"{unknown[0]!r} in {tensor.name}", "export it again"
            )
        if any(isinstance(axis, str) for axis in tensor.shape):
            low, usual, high = (
                tuple(axes[axis][which] if isinstance(axis, str) else axis for axis in tensor.shape)
                for which in range(3)
            )
            found[tensor.name] = Range(low, usual, high)
    return found
