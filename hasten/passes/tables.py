"""The weights that a pass without data may round: the layers' matrices and, where it is told so, the embedding tables.

Takes a wrapper, gives its weights [O, I]. Knows nothing of what is done to them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hasten.passes.family import adapter_of
from hasten.passes.matrices import encoder_matrices


def plain_weights(model: Any, *, embeddings: bool, what: str) -> list[Tensor]:
    """Those of every linear map of the layers, then of every embedding table. Raises Rejected for a family without an
    adapter."""
    weights: list[Tensor] = [matrix.linear.weight for matrix in encoder_matrices(model, what=what)]
    if embeddings:
        block = adapter_of(model, what=what).embeddings(model.hf)
        weights += [table.weight for table in block.modules() if isinstance(table, nn.Embedding)]
    return weights
