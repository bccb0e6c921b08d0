"""The matrices of an encoder's layers, as the passes over sparsity and numbers see them.

Takes a wrapper, gives every linear map of its layers: query, key, value, output, up and down, and both factors where a
matrix was factorised. Embeddings, norms, pooler and head are not among them. Knows nothing of what is done to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hasten.models.surgery import LowRankLinear
from hasten.passes.family import adapter_of
from hasten.records import Rejected

Part = Literal["attention", "up", "down"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One linear map: its dotted name in ``model.hf``, the number of its layer and the part of the layer it is in.

    Matrices of a layer with the same ``source`` take the same inputs (query, key and value do).
    """

    name: str
    linear: nn.Linear
    layer: int
    part: Part
    source: str


def encoder_matrices(model: Any, *, what: str) -> list[Matrix]:
    """All of them, first layer first, in the order in which a layer uses them.

    Raises Rejected for a family without an adapter, and for a layer with a module that is no matrix.
    """
    adapter = adapter_of(model, what=what)
    names = {id(module): name for name, module in model.hf.named_modules()}
    found = []
    for number, layer in enumerate(adapter.layers(model.hf)):
        attention, ffn = adapter.attention(layer), adapter.ffn(layer)
        roles: tuple[tuple[str, Part, nn.Module], ...] = (
            ("hidden", "attention", attention.query), ("hidden", "attention", attention.key),
            ("hidden", "attention", attention.value), ("context", "attention", attention.output),
            ("mixed", "up", ffn.up), ("inner", "down", ffn.down),
        )  # fmt: skip
        for source, part, module in roles:
            name = names[id(module)]
            for suffix, linear in _linears(module, what=what, name=name):
                # A second factor's inputs are its own first factor's outputs, and nobody else's.
                own = f"{name}.first" if suffix == ".second" else source
                found.append(Matrix(f"{name}{suffix}", linear, number, part, own))
    return found


def _linears(module: nn.Module, *, what: str, name: str) -> list[tuple[str, nn.Linear]]:
    if isinstance(module, nn.Linear):
        return [("", module)]
    if isinstance(module, LowRankLinear):
        return [(".first", module.first), (".second", module.second)]
    raise Rejected("family", f"{what} cannot handle {name}, which is a {type(module).__name__} and no matrix")


def by_source(matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """Matrices of one layer in groups that take the same inputs."""
    groups: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.source, []).append(matrix)
    return list(groups.values())
