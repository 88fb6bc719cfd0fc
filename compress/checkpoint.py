"""Open a trained checkpoint: a local directory, a hub id, or a ``.gguf`` file.

Everything is checked before torch sees a byte: which files there are, that they are whole, that the architecture is
one we know. Safetensors or GGUF only; a pickle can run code when it is opened. Loading gives float32, in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from planish.compress.architectures import check_architecture, drop_poolers, infer_task, model_class
from planish.compress.digest import checkpoint_digest
from planish.compress.quiet import quiet
from planish.compress.safetensors_file import read_header
from planish.compress.source import config_json, find_source, weight_files, weight_map
from planish.errors import CheckpointError, PlanishError
from planish.families import FAMILIES
from planish.sliced import KEY, is_sliced, read_shapes, sliced

__all__ = ["Checkpoint", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been checked and not yet loaded.

    ``path`` is a directory or a GGUF file; ``raw_config`` is config.json as it stands, or as derived from the GGUF.
    """

    name: str
    path: Path
    weights: tuple[Path, ...]
    raw_config: dict[str, Any]
    architecture: str
    trust_remote_code: bool = False

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()

    @property
    def folder(self) -> Path:
        return self.path.parent if self.is_gguf else self.path

    @property
    def task(self) -> str:
        """The task, as docs/formats.md section 4 spells it."""
        return infer_task(self.architecture)

    @cached_property
    def digest(self) -> str:
        """``sha256:`` of the weight files and config.json; reads them once."""
        config = [] if self.is_gguf else [self.path / "config.json"]
        return checkpoint_digest([*self.weights, *config])

    def load_model(self) -> nn.Module:
        """The model, float32, eval mode, eager or sdpa attention as the library likes.

        Raises:
            CheckpointError: weights are missing, misshapen or not finite.
        """
        cls = model_class(self.architecture)
        if is_sliced(self.raw_config):
            read_shapes(self.raw_config[KEY], _layers(self.raw_config))
            cls = sliced(cls)
        arguments: dict[str, Any] = {}
        if self.is_gguf:
            config = AutoConfig.for_model(self.raw_config["model_type"]).from_dict(self.raw_config)
            arguments = {"gguf_file": self.path.name, "config": config}
        try:
            with quiet(gguf=self.is_gguf):
                model, report = cls.from_pretrained(
                    self.folder,
                    dtype=torch.float32,
                    output_loading_info=True,
                    local_files_only=True,
                    trust_remote_code=self.trust_remote_code,
                    **arguments,
                )
        except (PlanishError, MemoryError):
            raise
        except Exception as error:  # a damaged config.json fails anywhere in transformers
            raise CheckpointError(
                f"weights of a {self.architecture} in {self.name}", _line(error), "check it"
            ) from error
        missing = drop_poolers(model, report["missing_keys"])
        if missing:
            got = f"no {missing[0]} ({len(missing)} missing)"
            raise CheckpointError(f"all weights in {self.name}", got, "check config.json")
        if getattr(model.config, "num_hidden_layers", 1) < 1:
            raise CheckpointError(f"a layer in {self.name}", "num_hidden_layers 0 in config.json", "check config.json")
        _check_finite(model, self.name)
        return model.eval().requires_grad_(False)  # type: ignore[no-any-return]

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer (transformers).

        Raises:
            CheckpointError: it has none that loads.
        """
        from transformers import AutoTokenizer

        arguments: dict[str, Any] = {"gguf_file": self.path.name} if self.is_gguf else {}
        expected = f"a tokenizer in {self.name}"
        try:
            with quiet(gguf=self.is_gguf):
                tokenizer = AutoTokenizer.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=self.trust_remote_code, **arguments
                )
        except Exception as error:
            raise CheckpointError(expected, _line(error), _ADD_TOKENIZER) from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where there are no files
            raise CheckpointError(expected, "none", _ADD_TOKENIZER)
        return tokenizer


_ADD_TOKENIZER = "add tokenizer.json and tokenizer_config.json, or take a recipe that reads no text (int8-dynamic)"


def open_checkpoint(model: str | Path, trust_remote_code: bool = False) -> Checkpoint:
    """Find and check a checkpoint; loads no weights.

    Raises:
        CheckpointError: missing, truncated, pickled, of an unknown architecture, or in need of remote code.
    """
    path = find_source(str(model))
    config = config_json(path)
    _check_kinds(config, str(model))
    architecture = check_architecture(config, str(model), trust_remote_code)
    weights = weight_files(path)
    if not path.is_file():
        _check_weights(path, weights)
    return Checkpoint(_display_name(str(model)), path, weights, config, architecture, trust_remote_code)


def _check_kinds(config: dict[str, Any], name: str) -> None:
    for key, kind in (("architectures", list), ("quantization_config", dict)):
        value = config.get(key)
        if value is not None and not isinstance(value, kind):
            expected = f"a {kind.__name__} as {key} in config.json of {name}"
            raise CheckpointError(expected, repr(value)[:80], "download or copy it again")


def _check_weights(folder: Path, weights: Sequence[Path]) -> None:
    headers = {file.name: read_header(file) for file in weights}
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    for name, file in weight_map(index).items():
        if name not in headers.get(file, {}):
            raise CheckpointError(f"tensor {name} in {folder / file}", "a file without it", "download it again")


def _display_name(model: str) -> str:
    """The name written into receipts: a hub id as it is; of a path the last part, as receipts are published."""
    return Path(model).resolve().name if Path(model).exists() else model


def _check_finite(model: nn.Module, name: str) -> None:
    for key, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"finite weights in {name}", f"NaN or infinity in {key}", "retrain or re-download it")


def _layers(config: dict[str, Any]) -> int:
    return int(config.get(FAMILIES[config["model_type"]].layers_key, 0))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
