"""Heads and neurons pruned sublayer by sublayer, each mended before the next is looked at.

Takes a wrapper and the share of the encoder's MACs to keep, gives the wrapper with fewer heads and neurons and other
output weights. No training; stronger than one-shot pruning at high compression, and slower.

Source: K-prune, Park et al. 2024 (ICLR), "Accurate Retraining-free Pruning for Pretrained Encoder-based Language
Models". Bottom-up, for each sublayer: weigh all units that are still undecided, search their masks under what is left
of the budget, cut this sublayer alone, and solve its output weights against the dense model's residual sum.

A unit's score is its knowledge: what its loss does to the outputs, the second-order term of KL(dense || pruned) at
temperature T (squared error for embeddings), plus ``representation`` times the energy ||X_u W_u^T||^2 that its
sublayer loses. Both are divided by their sums over the undecided units, so the weight has no unit; the paper instead
tunes a factor for each model. The KL's curvature in the logits is diag(p) - p p^T, drawn as random directions with that
covariance (no labels are needed).

Legend: B rows, L tokens, C outputs, A heads, D width of a head, N neurons.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.passes.calibration import Calibration, Progress
from hasten.passes.hooks import catching, hooked
from hasten.passes.reconstruction import Walk, fold_scales, moments, solved_weight, sublayers
from hasten.passes.settings import as_declared
from hasten.passes.unit_budget import search
from hasten.passes.units import Costs, Loss, PerUnit, Units, batches_of, check_settings, real_tokens, share
from hasten.records import InputError


@dataclass(frozen=True, slots=True)
class KPruneConfig:
    """Keep the share ``keep`` of the encoder layers' MACs. ``representation`` weighs what sublayers lose against what
    the outputs lose; ``damp`` holds the solved weights to the old ones, relative to the inputs' mean square."""

    kind: ClassVar[str] = "kprune"
    keep: float = 0.6
    representation: float = 1.0
    temperature: float = 2.0
    damp: float = 1e-2
    round_to: int = 32
    rows: int = 512

    def __post_init__(self) -> None:
        as_declared(self)
        check_settings(keep=self.keep, round_to=self.round_to, rows=self.rows)
        if self.representation < 0 or self.temperature <= 0 or self.damp <= 0:
            raise InputError(
                f"representation={self.representation}, temperature={self.temperature}, damp={self.damp}",
                expected="a representation weight of zero or more, temperature and damping above zero",
                remedy="correct the recipe",
            )

    @property
    def label(self) -> str:
        return f"k-prune {share(self.keep)} MACs"


def prune_kprune(model: Any, config: KPruneConfig, calibration: Calibration) -> Any:
    """The wrapper pruned bottom-up; costs about three forward passes a row for each of its 2 n sublayers.

    Raises Rejected for a family without an adapter, factorised layers, or too small a budget.
    """
    units = Units(model, kind=config.kind, what="K-prune")
    costs = units.costs(calibration)
    left = config.keep * costs.of(units.ones())
    batches = batches_of(calibration, rows=config.rows)
    fold_scales(units.adapter, units.layers)
    dense = copy.deepcopy(units.layers)
    whole, pruned = (Walk(model, units.layers, batches) for _ in range(2))
    total = 2 * len(units.layers)
    for step in range(total):
        scores = undecided(knowledge(units, config, calibration, step=step), step)
        masks = search(scores, costs, budget=left, round_to=config.round_to, kind=config.kind)
        left -= _cut(units, masks, step, costs)
        layer, which = divmod(step, 2)
        goal, own = (sublayers(units.adapter, layers[layer])[which] for layers in (dense, units.layers))
        found = moments(goal, own, whole, pruned)
        with torch.no_grad():
            own.map.weight.copy_(solved_weight(found, own.map.weight, damp=config.damp))
        if which == 1:
            whole.advance(dense[layer])
            pruned.advance(units.layers[layer])
        calibration.listen(Progress("pruning sublayer by sublayer", step + 1, total))
    return model


def undecided(scores: PerUnit, step: int) -> PerUnit:
    """Scores with nothing left for the sublayers before ``step`` (attention 0, FFN 0, attention 1, ...)."""
    empty = torch.zeros(0)
    heads = [score if 2 * layer >= step else empty for layer, score in enumerate(scores.heads)]
    return PerUnit(heads, [s if 2 * layer + 1 >= step else empty for layer, s in enumerate(scores.neurons)])


def _cut(units: Units, masks: PerUnit, step: int, costs: Costs) -> float:
    """Cut the sublayer ``step`` alone; returns the cost of what it keeps."""
    layer, which = divmod(step, 2)
    kept = units.ones()
    if which == 0:
        kept.heads[layer] = masks.heads[layer]
        units.keep(kept)
        return float(masks.heads[layer].sum()) * costs.head
    kept.neurons[layer] = masks.neurons[layer]
    units.keep(kept)
    return float(masks.neurons[layer].sum()) * costs.neuron


def knowledge(units: Units, config: KPruneConfig, calibration: Calibration, *, step: int = 0) -> PerUnit:
    """Each unit's share of the undecided units' predictive knowledge, plus ``representation`` times its share of their
    energy; sublayers before ``step`` have none."""
    first = step // 2
    energies = units.ones().map(torch.zeros_like)
    fisher = units.ones().map(torch.zeros_like)
    caught: dict[tuple[int, int], Tensor] = {}
    loss = output_knowledge(units.model.says, temperature=config.temperature, seed=calibration.seed)
    with hooked(
        part.register_forward_hook(catching(caught, (layer, which)))
        for which, parts in enumerate(([a.output for a in units.attention], [f.down for f in units.ffn]))
        for layer, part in enumerate(parts)
    ):
        gradients = units.gradients(calibration, rows=config.rows, loss=loss, first=first)
        for batch, gradient in zip(batches_of(calibration, rows=config.rows), gradients, strict=True):
            for total, found in zip(fisher.both(), gradient.both(), strict=True):
                total += found.square().sum(dim=0)
            for layer, (attention, ffn) in enumerate(zip(units.attention, units.ffn, strict=True)):
                if layer < first:
                    continue
                x, z = (real_tokens(caught[layer, which], batch) for which in (0, 1))
                energies.heads[layer] += unit_energy(x, attention.output.weight.detach(), width=attention.group_dim)
                energies.neurons[layer] += unit_energy(z, ffn.down.weight.detach(), width=1)
    if step % 2:  # the heads of this layer are decided
        fisher.heads[first].zero_()
        energies.heads[first].zero_()
    parts = zip(_shares(fisher.both()), _shares(energies.both()), strict=True)
    scores = [f + config.representation * e for f, e in parts]
    return units.apart(scores)


def unit_energy(x: Tensor, weight: Tensor, *, width: int) -> Tensor:
    """||X_u W_u^T||_F^2 of every unit [U]; x [T, U * width], weight [H, U * width]."""
    if width == 1:
        return x.square().sum(dim=0) * weight.square().sum(dim=0)
    inputs, columns = x.view(len(x), -1, width), weight.view(len(weight), -1, width)
    x_gram = torch.einsum("tui,tuj->uij", inputs, inputs)
    return (x_gram * torch.einsum("hui,huj->uij", columns, columns)).sum(dim=(1, 2))


def output_knowledge(says: str, *, temperature: float, seed: int) -> Loss:
    """A sum whose gradient's squares are, in expectation, the curvature of what rows of outputs [R, K] know.

    Logits: E[v v^T] = diag(p) - p p^T, the Hessian of the KL, for v = sqrt(p) u - p (sqrt(p) u) with u normal.
    Vectors: v = u, the squared error.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(outputs: Tensor) -> Tensor:
        direction = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        if says == "vectors":
            return (outputs * direction).sum()
        p = nn.functional.softmax(outputs.detach() / temperature, dim=-1)
        direction = p.sqrt() * direction
        return (outputs / temperature * (direction - p * direction.sum(dim=-1, keepdim=True))).sum()

    return loss


def _shares(values: list[Tensor]) -> list[Tensor]:
    whole = sum(float(value.double().sum()) for value in values)
    return [value / max(whole, 1e-30) for value in values]
