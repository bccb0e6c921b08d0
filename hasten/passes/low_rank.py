"""Thin factors in place of matrices, chosen by what the matrices do to the user's data.

Takes a wrapper and the share of the matrices' MACs to keep, gives the wrapper with W ~ B A, R (I + O) weights in place
of I O, wherever that saves any.

Source: truncated SVD weighted by the activations (DRONE, Chen et al. 2021; ASVD, Yuan et al. 2023; SVD-LLM, Wang et
al. 2024). With S S^T the inputs' second moment, the best rank R for the outputs keeps the first left singular vectors U
of W S: B = U, A = U^T W, which needs no inverse of S. The mean costs no rank: with the covariance for the moment
and (W - B A) E[x] added to the bias, the map is exact at the mean input.

Legend: T tokens, O outputs, I inputs of a linear layer, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hasten.models.adapter import MEMORY, Adapter
from hasten.models.surgery import LowRankLinear, replace_module
from hasten.passes.calibration import Batch, Calibration
from hasten.passes.family import adapter_of, stacks_with_rows
from hasten.passes.hooks import catching, hooked
from hasten.passes.reconstruction import Walk, in_turn
from hasten.passes.routing import unpadded
from hasten.passes.settings import as_declared
from hasten.passes.units import batches_of, check_settings, real_tokens, share
from hasten.records import Rejected

# Directions that the calibration rows never take still belong to the matrix: they come last, not in random order.
_JITTER = 1e-6


@dataclass(frozen=True, slots=True)
class LowRankConfig:
    """Keep the share ``keep`` of the MACs of each matrix of ``which``; ranks are multiples of ``round_to``."""

    kind: ClassVar[str] = "low_rank"
    keep: float = 0.5
    which: Literal["ffn", "attention", "all"] = "ffn"
    round_to: int = 8
    rows: int = 512

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=self.rows)

    @property
    def label(self) -> str:
        return f"low rank {self.which} {share(self.keep)} MACs"


def factorise(model: Any, config: LowRankConfig, calibration: Calibration) -> Any:
    """The wrapper with factorised matrices, layer by layer on the inputs that the factorised layers below give.

    Costs two forward passes a row and one decomposition a matrix. Raises Rejected for a family without an adapter,
    matrices that are factorised already, or when no matrix would get cheaper.
    """
    adapter = adapter_of(model, what="low-rank factorisation")
    stacks = stacks_with_rows(model, calibration, what="low-rank factorisation")
    layers = [layer for stack in stacks for layer in stack.layers]
    parts = [part for layer in layers for group in _groups(adapter, layer, config.which) for part in group.linears]
    if not all(isinstance(part, nn.Linear) for part in parts):
        raise Rejected(config.kind, f"the {config.which} matrices of this {adapter.family} are factorised already")
    if not any(rank_of(part, config) for part in parts):
        largest = max(parts, key=lambda part: part.in_features * part.out_features)
        raise Rejected(
            config.kind, f"no rank in multiples of {config.round_to} makes a matrix of "
            f"{largest.out_features} x {largest.in_features} cheaper at keep={config.keep}",
        )  # fmt: skip
    del parts  # each is let go of when its factors stand in its place
    for _, layer, walk in in_turn(model, stacks, batches_of(calibration, rows=config.rows)):
        groups = _groups(adapter, layer, config.which)
        foreign = [group.foreign for group in groups]
        seen = input_moments(walk, layer, [group.linears[0] for group in groups], foreign=foreign)
        for group, (mean, covariance) in zip(groups, seen, strict=True):
            for linear in group.linears:
                rank = rank_of(linear, config)
                if rank is not None:
                    name = next(name for name, module in layer.named_modules() if module is linear)
                    replace_module(layer, name, thin(linear, mean, covariance, rank=rank))
        adapter.settle(model.hf)
        walk.advance(layer)
    return model


@dataclass(frozen=True, slots=True)
class _Group:
    """Linear layers with the same input; ``foreign``: it is of another stack's tokens than the layer's own."""

    linears: tuple[nn.Linear, ...]
    foreign: bool = False


def _groups(adapter: Adapter, layer: nn.Module, which: str) -> list[_Group]:
    """The linear layers that ``which`` names; each expert's are by themselves."""
    groups = []
    if which in ("attention", "all"):
        for attention in adapter.attentions(layer):
            by_read: dict[str, list[nn.Linear]] = {}
            for read, linear in zip(attention.reads, attention.inputs, strict=False):
                by_read.setdefault(read, []).append(linear)
            groups += [_Group(tuple(linears), foreign=read == MEMORY) for read, linears in by_read.items()]
            groups.append(_Group((attention.output,)))
    if which in ("ffn", "all"):
        groups += [_Group(own) for ffn in adapter.ffns(layer) for own in (ffn.inputs, (ffn.down,))]
    return groups


def rank_of(linear: nn.Linear, config: LowRankConfig) -> int | None:
    """The largest multiple of ``round_to`` (at least one) whose factors cost ``keep`` of I O; ``None`` if that saves
    nothing."""
    i, o = linear.in_features, linear.out_features
    rank = max(int(config.keep * i * o / (i + o)) // config.round_to, 1) * config.round_to
    return rank if rank * (i + o) < i * o else None


def input_moments(
    walk: Walk, layer: nn.Module, linears: Sequence[nn.Linear], *, foreign: Sequence[bool] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Mean [I] and covariance [I, I] of each linear layer's inputs over real tokens, in float64; ``foreign`` ones are
    of another stack's tokens. An expert that no token went to gets those of inputs that are all alike."""
    caught: dict[int, Tensor] = {}
    sums = [torch.zeros(linear.in_features, dtype=torch.float64) for linear in linears]
    squares = [torch.zeros(len(total), len(total), dtype=torch.float64) for total in sums]
    tokens, elsewhere, current = [0] * len(linears), foreign or [False] * len(linears), list[Batch]([{}])
    hooks = (linear.register_forward_pre_hook(catching(caught, i)) for i, linear in enumerate(linears))
    with hooked(hooks), unpadded(layer, current):
        for number, batch in enumerate(walk.batches):
            caught.clear()
            current[0] = batch
            walk.through(layer, number)
            for index, inputs in caught.items():
                x = real_tokens(inputs, batch, written=walk.written and not elsewhere[index])
                sums[index] += x.sum(dim=0)
                squares[index] += x.T @ x
                tokens[index] += len(x)
    return [_moments_of(*own) for own in zip(sums, squares, tokens, strict=True)]


def _moments_of(total: Tensor, square: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    if not tokens:
        return total, torch.eye(len(total), dtype=total.dtype)
    mean = total / tokens
    return mean, square / tokens - torch.outer(mean, mean)


def thin(linear: nn.Linear, mean: Tensor, covariance: Tensor, *, rank: int) -> LowRankLinear:
    """The two factors of ``linear`` that give its outputs best for inputs of this mean and covariance."""
    bias: Tensor | None = linear.bias
    if bias is None:  # nothing can carry the mean: it has to be in the moment
        covariance = covariance + torch.outer(mean, mean)
    first, second = factors(linear.weight.detach().double(), covariance, rank=rank)
    made = LowRankLinear(linear.in_features, linear.out_features, rank=rank, bias=bias is not None)
    with torch.no_grad():
        made.first.weight.copy_(first)
        made.second.weight.copy_(second)
        if bias is not None:
            made.second.bias.copy_(bias + linear.weight.double() @ mean - second @ (first @ mean))
    return made


def factors(weight: Tensor, moment: Tensor, *, rank: int) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R] that minimise tr((W - B A) moment (W - B A)^T), weight [O, I], float64."""
    outputs, inputs = weight.shape
    floor = _JITTER * moment.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    moment = moment + floor * torch.eye(inputs, dtype=moment.dtype)
    if outputs <= inputs:  # the left singular vectors of W S are the eigenvectors of W S S^T W^T
        vectors = torch.linalg.eigh(weight @ moment @ weight.T).eigenvectors.flip(1)
    else:
        values, directions = torch.linalg.eigh(moment)
        vectors = torch.linalg.svd(weight @ (directions * values.clamp(min=0).sqrt()), full_matrices=False)[0]
    basis = vectors[:, :rank]
    return basis.T @ weight, basis
