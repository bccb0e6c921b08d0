"""Which heads and neurons stay under a budget: the mask search.

Takes one score and one cost a unit, gives masks of ones and zeros. Knows nothing of how scores come about: they are
the passes', and costs are MACs or measured milliseconds.

Source: Kwon et al. 2022, algorithm 1: for every number of heads n_h, n_f = floor((C - n_h F_h) / F_f) neurons fit the
budget C; the best of each by score stay; the n_h with the highest total score wins. C is the same for every n_h.
Two things are added. Neurons are taken in blocks of ``round_to``, best block first, because matrix kernels get faster
in steps: the widths are multiples and the budget holds, with no rounding after the search. And every layer keeps at
least one head and one block.

Legend: A heads, N neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.passes.calibration import Calibration
from hasten.passes.units import Costs, PerUnit, Units
from hasten.records import Rejected

# Costs are sums of floats: a budget that is met exactly must not fail by the last digit.
_SLACK = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class _Block:
    """Units of one layer that stay or go together; ``score`` is their sum, ``size`` their number."""

    layer: int
    index: tuple[int, ...]
    score: float
    forced: bool

    @property
    def size(self) -> int:
        return len(self.index)


def search(
    scores: PerUnit, costs: Costs, *, budget: float, round_to: int, kind: str, heads: int | None = None
) -> PerUnit:
    """Masks (0 or 1) of the units to keep within ``budget``, in the unit of ``costs``.

    ``heads`` fixes the number of heads that stay, for scores that cannot compare a head with a neuron; otherwise every
    number is tried. A layer with an empty score has nothing to decide. Raises Rejected when the least that every layer
    must keep does not fit.
    """
    if not all(torch.isfinite(score).all() for score in scores.both()):
        raise Rejected(kind, "some units have a score that is not a number; the model's outputs overflow")
    head_blocks = _blocks(scores.heads, size=1)
    neuron_blocks = _blocks(scores.neurons, size=round_to)
    fewest = sum(block.forced for block in head_blocks)
    least = fewest * costs.head + sum(b.size for b in neuron_blocks if b.forced) * costs.neuron
    if least > budget * _SLACK:
        raise Rejected(
            kind, f"the budget is {budget:.4g}, and one head with {round_to} neurons a layer already cost {least:.4g}; "
            "keep more, or round to a smaller multiple",
        )  # fmt: skip
    best: tuple[float, int, int] | None = None
    _, total_heads = _sums(head_blocks)
    sizes, gains = _sums(neuron_blocks)
    counts = range(fewest, len(head_blocks) + 1) if heads is None else [min(max(heads, fewest), len(head_blocks))]
    for count in counts:
        room = (budget - count * costs.head) / costs.neuron
        fitting = int((sizes <= room * _SLACK).sum()) - 1
        if fitting < sum(b.forced for b in neuron_blocks):
            continue
        total = float(total_heads[count] + gains[fitting])
        if best is None or total > best[0]:
            best = (total, count, fitting)
    if best is None:
        raise Rejected(kind, f"{heads} heads leave no room for {round_to} neurons a layer; keep more")
    return PerUnit(_masks(scores.heads, head_blocks[: best[1]]), _masks(scores.neurons, neuron_blocks[: best[2]]))


def cut_evenly(
    units: Units, scores: PerUnit, calibration: Calibration, *, keep: float, round_to: int, kind: str
) -> None:
    """Keep the share ``keep`` of the MACs when scores cannot compare heads with neurons: the same share of both.

    Each of two stacks keeps it by itself, and so do the heads of the attention between them: nothing here knows how
    many tokens a decoder will write.
    """
    costs, masks = units.costs(calibration), units.ones()
    for heads, neurons in units.parts:
        own = PerUnit(masks.heads[heads], masks.neurons[neurons])
        found = search(
            PerUnit(scores.heads[heads], scores.neurons[neurons]), costs, round_to=round_to, kind=kind,
            budget=costs.of(own) * (keep if own.neurons else 1.0),  # heads alone: their number says it
            heads=round(keep * sum(len(mask) for mask in own.heads)),
        )  # fmt: skip
        masks.heads[heads], masks.neurons[neurons] = found.heads, found.neurons
    units.keep(masks)


def best_of_layer(scores: Tensor, keep: float, *, multiple: int = 1) -> Tensor:
    """1.0 for the best share ``keep`` of a layer's units, in whole multiples and at least one of them, else 0.0."""
    count = min(len(scores), max(1, round(keep * len(scores) / multiple)) * multiple)
    return torch.zeros_like(scores).index_fill(0, scores.topk(count).indices, 1.0)


def _blocks(scores: Sequence[Tensor], *, size: int) -> list[_Block]:
    """Blocks of all layers in the order in which they are taken: first of each layer, then best score a unit."""
    blocks = []
    for layer, score in enumerate(scores):
        order = torch.argsort(score, descending=True, stable=True).tolist()
        for start in range(0, len(order), size):
            index = tuple(order[start : start + size])
            blocks.append(_Block(layer, index, float(score[list(index)].double().sum()), forced=start == 0))
    # Within a layer scores fall, and sorting is stable, so a layer's blocks stay in order.
    return sorted(blocks, key=lambda block: (not block.forced, -block.score / block.size))


def _sums(blocks: Sequence[_Block]) -> tuple[Tensor, Tensor]:
    """Sizes and scores of the first 0, 1, 2... blocks together."""
    sizes = torch.tensor([0, *(block.size for block in blocks)], dtype=torch.float64).cumsum(0)
    return sizes, torch.tensor([0.0, *(block.score for block in blocks)], dtype=torch.float64).cumsum(0)


def _masks(scores: Sequence[Tensor], blocks: Sequence[_Block]) -> list[Tensor]:
    masks = [torch.zeros(len(score)) for score in scores]
    for block in blocks:
        masks[block.layer][list(block.index)] = 1.0
    return masks
