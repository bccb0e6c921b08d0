"""The matrices of a model's layers, as the passes over sparsity and numbers see them.

Takes a wrapper, gives every linear map of its layers: query, key, value, output, up (and gate) and down, of all
attentions, feed-forward blocks and experts, and both factors where a matrix was factorised. A fused matrix is one.
Embeddings, norms, routers, pooler and head are not among them. Knows nothing of what is done to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hasten.models.adapter import MEMORY, Adapter
from hasten.models.surgery import LowRankLinear
from hasten.passes.family import adapter_of
from hasten.records import Rejected

Part = Literal["attention", "up", "down"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One linear map: its dotted name in ``model.hf``, the number of its layer and the part of the layer it is in.

    Matrices of a layer with the same ``source`` take the same inputs (query, key and value do). ``written``: these are
    of the tokens that a decoder beside an encoder writes, and not of those that are read.
    """

    name: str
    linear: nn.Linear
    layer: int
    part: Part
    source: str
    written: bool = False


def encoder_matrices(model: Any, *, what: str) -> list[Matrix]:
    """All of them, first layer first, in the order in which a layer uses them; a decoder's layers follow its encoder's.

    Raises Rejected for a family without an adapter, and for a layer with a module that is no matrix.
    """
    adapter = adapter_of(model, what=what)
    names = {id(module): name for name, module in model.hf.named_modules()}
    found = []
    layers = [(place > 0, layer) for place, stack in enumerate(adapter.stacks(model.hf)) for layer in stack.layers]
    for number, (beside, layer) in enumerate(layers):
        for source, part, module in _roles(adapter, layer):
            name, written = names[id(module)], beside and source != MEMORY
            for suffix, linear in _linears(module, what=what, name=name):
                # A second factor's inputs are its own first factor's outputs, and nobody else's.
                own = f"{name}.first" if suffix == ".second" else source
                found.append(Matrix(f"{name}{suffix}", linear, number, part, own, written))
    return found


def written_inputs(matrices: Sequence[Matrix]) -> frozenset[int]:
    """The ``id`` of every map among them whose inputs are of written tokens."""
    return frozenset(id(matrix.linear) for matrix in matrices if matrix.written)


def _roles(adapter: Adapter, layer: nn.Module) -> Iterator[tuple[str, Part, nn.Module]]:
    """Source, part and matrix. Experts of one layer take different tokens, and blocks in a row different states."""
    for parts in adapter.attentions(layer):
        for source, matrix in zip(parts.reads, parts.inputs, strict=False):  # a fused matrix reads as queries do
            yield source, "attention", matrix
        yield "cross context" if parts.cross else "context", "attention", parts.output
    for number, ffn in enumerate(adapter.ffns(layer)):
        own = f" {number}" if number else ""
        for matrix in ffn.inputs:
            yield f"mixed{own}", "up", matrix
        yield f"inner{own}", "down", ffn.down


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
