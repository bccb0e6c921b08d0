"""Other coordinates for the hidden states of a decoder: everything that writes or reads them is rewritten.

Takes a model whose norms stand in front of what reads the states, and two maps; changes the model in place. With a map
of full rank its outputs stay what they were; with fewer columns the states have fewer coordinates. What remains is a
plain model of its family: no matrix is added. Knows nothing of how the maps are found.

States h are written as h W and read behind a norm as n(h W) R^T. R takes a norm's learnt factors and shifts with it, so
that norms compute nothing but the scale, which any rotation leaves alone.

Legend: H hidden size, K new hidden size (K <= H), O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.adapter import Adapter
from hasten.models.settling import configs_of, say
from hasten.models.surgery import is_rms, say_width
from hasten.records import Rejected


@dataclass(frozen=True, slots=True)
class Stream:
    """Who writes the hidden states (tables [rows, H] and matrices [H, I]), and the norms with those who read them."""

    tables: tuple[nn.Embedding, ...]
    writers: tuple[nn.Linear, ...]
    norms: tuple[tuple[nn.Module, tuple[nn.Linear, ...]], ...]

    @property
    def centred(self) -> bool:
        """Do the norms take the mean off (LayerNorm)?"""
        return isinstance(self.norms[0][0], nn.LayerNorm)


def stream_of(model: Any, adapter: Adapter, *, kind: str) -> Stream:
    """The stream of a decoder whose every reader stands behind a norm. Raises Rejected, naming ``kind``, for a model
    that is built otherwise, gives out its states themselves, or has factors in the place of a matrix."""
    hidden = int(model.config.get_text_config().hidden_size)
    layers, block = adapter.layers(model), adapter.embeddings(model)
    tables = tuple(module for module in block.modules() if isinstance(module, nn.Embedding))
    writers: list[nn.Module] = []
    norms: list[tuple[nn.Module, tuple[nn.Module, ...]]] = []
    for layer in layers:
        attention, ffn = adapter.attention(layer), adapter.ffn(layer)
        writers += [attention.output, ffn.down]
        norms += zip(adapter.norms(layer), (attention.inputs, ffn.inputs), strict=True)
    inner = {id(module) for part in (layers, block) for module in part.modules()}
    outside = [module for module in model.modules() if id(module) not in inner]
    last = [m for m in outside if is_norm(m)]
    heads = tuple(m for m in outside if isinstance(m, nn.Linear) and m.in_features == hidden)
    if len(last) != 1 or not heads:
        raise Rejected(
            kind, f"nothing reads the states of this {adapter.family} behind its last norm: it gives out the states "
            "themselves, which would have another size",
        )  # fmt: skip
    norms.append((last[0], heads))
    for matrix in (*writers, *(reader for _, readers in norms for reader in readers)):
        if not isinstance(matrix, nn.Linear):
            raise Rejected(kind, f"a {type(matrix).__name__} stands for a matrix; do this before the low-rank pass")
    if not all(is_norm(norm) for norm, _ in norms) or len({isinstance(n, nn.LayerNorm) for n, _ in norms}) > 1:
        raise Rejected(kind, f"the norms of this {adapter.family} are of several kinds")
    return Stream(tables, tuple(writers), tuple(norms))  # type: ignore[arg-type]


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or is_rms(module)


@torch.no_grad()
def rotate(model: Any, adapter: Adapter, stream: Stream, basis: Tensor, *, head_dim: int) -> None:
    """Write the states in the coordinates of ``basis``, orthonormal directions in columns.

    For norms by the root of the mean square ``basis`` is [H, K]. A LayerNorm wants states whose mean is zero before and
    after: there ``basis`` is [H, K - 1], orthogonal to the mean, and is laid out over K coordinates that sum to zero.
    """
    _untie(model, stream)
    hidden = len(basis)
    write = basis @ mean_free(basis.shape[1] + 1).to(basis) if stream.centred else basis
    width = write.shape[1]
    for table in stream.tables:
        _set(table, "weight", table.weight.double() @ write)
        table.embedding_dim = width
    for writer in stream.writers:
        _set(writer, "weight", write.T @ writer.weight.double())
        if writer.bias is not None:
            _set(writer, "bias", writer.bias.double() @ write)
        writer.out_features = width
    for norm, readers in stream.norms:
        read = _read_map(norm, write)
        for reader in readers:
            _set(reader, "weight", reader.weight.double() @ read)
            reader.in_features = width
        _plain(norm, width, scale=(hidden / width) ** 0.5)
    say_width(configs_of(model), width, head_dim=head_dim)
    adapter.settle(model)


def mean_free(size: int) -> Tensor:
    """[K - 1, K]: orthonormal rows that sum to zero (Helmert's), float64."""
    rows = torch.tril(torch.ones(size - 1, size, dtype=torch.float64))
    number = torch.arange(1, size, dtype=torch.float64)
    rows[torch.arange(size - 1), torch.arange(1, size)] = -number
    return rows / (number * (number + 1)).sqrt()[:, None]


def _read_map(norm: Any, write: Tensor) -> Tensor:
    """R [H, K]: a reader's weight [O, H] becomes its weight times R.

    A LayerNorm's shift is carried by the direction that the mean-free states never take: its new shift points there.
    """
    factors: Tensor = norm.weight.double()
    shift: Tensor | None = getattr(norm, "bias", None)
    read = factors[:, None] * write
    return read if shift is None else read + shift.double()[:, None] / write.shape[1] ** 0.5


def _plain(norm: Any, width: int, *, scale: float) -> None:
    """Only the scale is left of what was learnt: the mean is over fewer coordinates now, and the others are zero."""
    _set(norm, "weight", torch.full((width,), scale, dtype=torch.float64))
    if getattr(norm, "bias", None) is not None:
        _set(norm, "bias", torch.full((width,), width**-0.5, dtype=torch.float64))
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (width,)


def _set(module: Any, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value.to(module.weight.dtype).contiguous()))


def _untie(model: Any, stream: Stream) -> None:
    """A head that was the word table gets a matrix of its own: the last norm's factors are in one, not in the other."""
    tables = {id(table.weight) for table in stream.tables}
    for reader in stream.norms[-1][1]:
        if id(reader.weight) in tables:
            reader.weight = nn.Parameter(reader.weight.detach().clone())
    say(configs_of(model), tie_word_embeddings=False)
    model.all_tied_weights_keys = {}
