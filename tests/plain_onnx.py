"""What anybody gets without planish: torch.onnx.export of a transformers encoder, eager attention, nothing fused."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel

from planish.export.quiet import quiet

__all__ = ["plain_export"]


class Hidden(nn.Module):
    """The last hidden state alone."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids, attention_mask, token_type_ids).last_hidden_state
        return found


def plain_export(checkpoint: Path, target: Path) -> Path:
    """Write the float32 graph of a BERT ``checkpoint`` to ``target``, for any batch and up to 512 tokens."""
    ids = torch.full((2, 7), 5, dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            Hidden(checkpoint).eval(),
            kwargs=example,
            dynamo=True,
            opset_version=21,
            dynamic_shapes=dict.fromkeys(example, axes),
            input_names=list(example),
            output_names=["last_hidden_state"],
            verbose=False,
        )
        assert program is not None
        program.save(target)
    return target
