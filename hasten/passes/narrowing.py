"""A narrower student: fewer coordinates in the hidden states, and as many heads and neurons fewer.

Takes a wrapper and the share of the width to keep, gives a wrapper of the same family with a smaller hidden size, a
plain checkpoint of its kind. The coordinates that stay are those that vary most after the norms; the mean of what goes
is added to the biases of the matrices that read it. It hardly works without distillation afterwards.

Sources: width by activations after the norms, Muralidharan et al. 2024, "Compact Language Models via Pruning and
Knowledge Distillation" (they rank by mean size, which would keep coordinates that never change); biases that stand in
for what was removed, An et al. 2024, "FLAP".

Legend: H hidden size, O outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.models.surgery import keep_width, side_by_side
from hasten.passes.calibration import Calibration
from hasten.passes.gradient import sensitivities
from hasten.passes.hooks import hooked
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import best_of_layer
from hasten.passes.units import PerUnit, Units, check_settings, share
from hasten.records import Rejected


@dataclass(frozen=True, slots=True)
class NarrowConfig:
    """Keep the share ``keep`` of the hidden size (rounded to whole heads), FFN widths in multiples of ``round_to``."""

    kind: ClassVar[str] = "narrow"
    keep: float = 0.5
    round_to: int = 32
    rows: int = 512

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=self.rows)

    @property
    def label(self) -> str:
        return f"{share(self.keep)} of the width"


def narrow(model: Any, config: NarrowConfig, calibration: Calibration) -> Any:
    """The narrower wrapper; about four forward passes a row.

    Raises Rejected for a family without an adapter, factorised layers, for embeddings (their size is what the user
    has stored), and when the model has as many classes as coordinates.
    """
    if model.task == "feature-extraction":
        raise Rejected(config.kind, "narrowing would change the size of the vectors; use layers, kprune or fisher")
    units = Units(model, kind=config.kind, what="narrowing")
    if units.adapter.rigid is not None:
        raise Rejected(config.kind, units.adapter.rigid)
    hidden, head_dim = int(model.hf.config.hidden_size), units.attention[0].head_dim
    width = max(1, round(config.keep * hidden / head_dim)) * head_dim
    if width == getattr(model.hf.config, "embedding_size", hidden) != hidden:
        width += head_dim  # ELECTRA has no projection behind embeddings of the same size
    if width >= hidden:
        raise Rejected(config.kind, f"{share(config.keep)} of {hidden} in heads of {head_dim} leaves nothing to remove")
    if model.hf.config.num_labels == hidden:
        raise Rejected(config.kind, f"{hidden} classes and {hidden} coordinates cannot be told apart")
    scores = sensitivities(units, calibration, rows=config.rows)
    stream = _Stream(model, units, calibration, rows=config.rows)
    kept = sorted(stream.variance.topk(width).indices.tolist())
    stream.fold_into_biases(kept)
    left = width / hidden
    heads = [best_of_layer(score, left) for score in scores.heads]
    units.keep(PerUnit(heads, [best_of_layer(score, left, multiple=config.round_to) for score in scores.neurons]))
    keep_width(model.hf, units.adapter, kept, head_dim=head_dim)
    _say_widths(model.hf.config, {ffn.neurons for ffn in units.ffn})
    return model


def _say_widths(config: Any, widths: set[int]) -> None:
    """One FFN width for all layers belongs into the config; several can be read from the weights alone, and so can
    that of a family whose config says it by a ratio (DINOv2)."""
    name = next((name for name in ("intermediate_size", "hidden_dim") if hasattr(config, name)), None)
    if name is not None and len(widths) == 1:
        setattr(config, name, widths.pop())


class _Moments:
    """Count, sum and sum of squares of vectors [H], which never have to be held all at once."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, states: Tensor) -> None:
        """States [..., H]."""
        rows = states.flatten(0, -2).double()
        self.count += len(rows)
        self.total = self.total + rows.sum(dim=0)
        self.squares = self.squares + rows.square().sum(dim=0)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0.0)


class _Stream:
    """What the hidden states are like: the variance of every coordinate, and the mean inputs of their readers."""

    def __init__(self, model: Any, units: Units, calibration: Calibration, *, rows: int) -> None:
        self.readers = _readers(model, units)
        norms = [norm for layer in units.layers for norm in units.adapter.norms(layer)]
        self._seen = {id(m): _Moments() for m in (*norms, *self.readers)}
        with self._watched(norms), torch.inference_mode():
            for batch in calibration.head(rows):  # one row at a time: padding is not what the model sees
                model(**batch)
        spread = [self._seen[id(norm)].variance for norm in norms]
        # Every norm has its own scale: what counts is a coordinate's share.
        self.variance = torch.stack([v / v.sum().clamp(min=1e-30) for v in spread]).sum(dim=0)

    def fold_into_biases(self, kept: Sequence[int]) -> None:
        """b + W m with m the mean [H] of the coordinates that go, zero elsewhere."""
        for reader in self.readers:
            stays = side_by_side(torch.as_tensor(kept), reader.in_features, hidden=len(self.variance))
            gone = self._seen[id(reader)].mean.index_fill(0, stays, 0.0).float()
            if reader.bias is not None:
                reader.bias = nn.Parameter(reader.bias.detach() + reader.weight.detach() @ gone)

    @contextmanager
    def _watched(self, norms: Sequence[nn.Module]) -> Iterator[None]:
        """Look at the norms' outputs and the readers' inputs."""

        def after(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._seen[id(module)].add(output)

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._seen[id(module)].add(inputs[0])

        with (
            hooked(norm.register_forward_hook(after) for norm in norms),
            hooked(reader.register_forward_pre_hook(before) for reader in self.readers),
        ):
            yield


def _readers(model: Any, units: Units) -> list[nn.Linear]:
    """The matrices whose inputs are hidden states: Q, K, V and FFN up (and gate) of every layer, and those of the
    head."""
    hidden = int(model.hf.config.hidden_size)
    found = [linear for parts in units.attention for linear in parts.inputs]
    found += [linear for parts in units.ffn for linear in parts.inputs]
    inner = {id(m) for block in (units.layers, units.adapter.embeddings(model.hf)) for m in block.modules()}
    outside = [m for m in model.hf.modules() if isinstance(m, nn.Linear) and id(m) not in inner]
    if model.hf.main_input_name == "pixel_values":  # an image head reads states in all its matrices, one or two abreast
        return found + [m for m in outside if m.in_features in (hidden, 2 * hidden)]
    # The first matrix of a text head reads the states; the others read what it made of them.
    return found + [m for m in outside if m.in_features == hidden][:1]
