"""Experiment trackers, as accelerate knows them: only those that are installed can be asked for."""

from __future__ import annotations

from planish.errors import RecipeError, nearest

__all__ = ["check_tracker"]

_PACKAGES = {
    "aim": "aim",
    "clearml": "clearml",
    "comet_ml": "comet-ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Name of the tracker -> what pip installs."""


def check_tracker(name: str) -> None:
    """Refuse a tracker that accelerate does not know or that is not installed.

    Raises:
        RecipeError: naming the trackers there are, or the package to install.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        expected = "a tracker that accelerate knows in pass distill"
        raise RecipeError(expected, repr(name), nearest(name, LOGGER_TYPE_TO_CLASS))
    if name in _PACKAGES and name not in [str(found) for found in get_available_trackers()]:
        raise RecipeError(f"tracker {name} to be installed", "no such package", f"pip install {_PACKAGES[name]}")
