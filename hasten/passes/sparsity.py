"""Weights set to zero one by one: which, how many there are, and what the inputs say about them.

Takes scores of single weights (higher stays), gives masks; applies masks to matrices; gives the second moments of the
matrices' inputs. Shapes stay as they are: dense kernels compute the zeros too, so none of this claims any latency.
Where the zeros pay is on disk (:mod:`hasten.models.sparse_store`).

Legend: O outputs, I inputs of a matrix, T real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hasten.passes.calibration import Batch, Calibration, Progress
from hasten.passes.family import stacks_with_rows
from hasten.passes.hooks import hooked
from hasten.passes.matrices import Matrix, by_source, encoder_matrices, written_inputs
from hasten.passes.reconstruction import Walk, in_turn
from hasten.passes.routing import unpadded
from hasten.passes.units import batches_of, real_tokens
from hasten.records import InputError, Rejected

Scope = Literal["global", "matrix", "row"]
_MOST_GROUP = 64


def pattern_of(text: str) -> tuple[int, int]:
    """``"2:4"`` -> (2, 4): of every 4 consecutive inputs of a row 2 stay. Raises InputError."""
    kept, colon, group = text.partition(":")
    if colon and kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group) <= _MOST_GROUP:
        return int(kept), int(group)
    raise InputError(
        f"pattern={text!r}", expected=f"N:M with 0 < N < M <= {_MOST_GROUP}, such as '2:4': N of M weights stay",
        remedy="correct the recipe",
    )  # fmt: skip


def check_sparsity(*, sparsity: float, pattern: str | None, scope: Scope | None = None, rows: int = 1) -> None:
    """What every pass here asks of its settings. Raises InputError; a setting that would be ignored is an error."""
    if not 0 < sparsity < 1 or rows < 1:
        raise InputError(
            f"sparsity={sparsity}, rows={rows}", expected="a share of zeros between 0 and 1, and at least one row",
            remedy="correct the recipe",
        )  # fmt: skip
    if pattern is None:
        return
    kept, group = pattern_of(pattern)
    if abs(sparsity - (1 - kept / group)) > 1e-9:
        raise InputError(
            f"sparsity={sparsity} with pattern={pattern}", expected=f"{1 - kept / group:g}, which the pattern makes",
            remedy="give both alike, or leave the pattern out",
        )  # fmt: skip
    if scope not in (None, "global"):
        raise InputError(
            f"scope={scope!r} with pattern={pattern}", expected="no scope: a pattern compares weights of one group",
            remedy="leave one of the two out",
        )  # fmt: skip


def amount(*, sparsity: float, pattern: str | None) -> str:
    """For labels: ``"2:4"`` or ``"50%"``."""
    return pattern or f"{100 * sparsity:.3g}%"


# --------------------------------------------------------------------------- masks


def masks_of(
    scores: Sequence[Tensor], *, sparsity: float, pattern: str | None = None, scope: Scope = "global"
) -> list[Tensor]:
    """Masks [O, I] (true: stays) of matrices with these scores [O, I].

    The share ``sparsity`` of all weights goes, of each matrix, or of each output row: exactly as many as it rounds to.
    With a pattern every group of a row keeps its best.
    """
    if not all(bool(torch.isfinite(score).all()) for score in scores):
        raise Rejected("sparsity", "some weights have a score that is not a number; the model's outputs overflow")
    if pattern is not None:
        return [pattern_mask(score, pattern) for score in scores]
    if scope == "row":
        return [_per_row(score, sparsity) for score in scores]
    if scope == "matrix":
        return [~lowest(score, round(sparsity * score.numel())) for score in scores]
    flat = torch.cat([score.flatten() for score in scores])
    kept = ~lowest(flat, round(sparsity * flat.numel()))
    pieces = torch.split(kept, [score.numel() for score in scores])
    return [piece.view_as(score) for piece, score in zip(pieces, scores, strict=True)]


def lowest(scores: Tensor, count: int) -> Tensor:
    """True for exactly the ``count`` lowest of all scores; of equal ones the first go."""
    flat = scores.flatten()
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    bound = flat.kthvalue(count).values
    found = flat < bound
    ties = (flat == bound).nonzero().flatten()
    found[ties[: count - int(found.sum())]] = True
    return found.view_as(scores)


def pattern_mask(scores: Tensor, pattern: str) -> Tensor:
    """The N highest of every M consecutive inputs, scores [O, I]; I is a multiple of M."""
    kept, group = pattern_of(pattern)
    grouped = scores.reshape(scores.shape[0], -1, group)
    best = grouped.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True).view_as(scores)


def _per_row(scores: Tensor, sparsity: float) -> Tensor:
    gone = scores.argsort(dim=1, stable=True)[:, : round(sparsity * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, gone, False)


def check_pattern(matrices: Sequence[Matrix], pattern: str | None, *, kind: str) -> None:
    """Raise Rejected when a matrix's inputs cannot be cut into the pattern's groups."""
    if pattern is None:
        return
    for matrix in matrices:
        if matrix.linear.in_features % pattern_of(pattern)[1]:
            raise Rejected(
                kind, f"{matrix.linear.in_features} inputs of {matrix.name} are no multiple of "
                f"{pattern_of(pattern)[1]}, so the pattern {pattern} does not fit",
            )  # fmt: skip


@torch.no_grad()
def apply_masks(matrices: Sequence[Matrix], masks: Sequence[Tensor]) -> None:
    """Set what is not in the masks to zero (positive zero: its bits are all zero too)."""
    for matrix, mask in zip(matrices, masks, strict=True):
        matrix.linear.weight.masked_fill_(~mask, 0.0)


def zero_share(matrices: Sequence[Matrix]) -> float:
    """The real share of zeros among all weights of these matrices."""
    zeros = sum(int((matrix.linear.weight == 0).sum()) for matrix in matrices)
    return zeros / sum(matrix.linear.weight.numel() for matrix in matrices)


def tell_zeros(matrices: Sequence[Matrix], calibration: Calibration, *, kind: str) -> None:
    """Say how many zeros there really are now."""
    calibration.listen(Progress(f"{kind}: {100 * zero_share(matrices):.1f}% of the layers' weights are zero", 1, 1))


# --------------------------------------------------------------------------- inputs

Inputs = list[tuple[list[Matrix], Tensor]]


def layer_by_layer(model: Any, calibration: Calibration, *, rows: int, full: bool, kind: str) -> Iterator[Inputs]:
    """For each layer its matrices, those with the same inputs together, with the inputs' second moment.

    Whoever iterates changes the layer's weights before asking for the next one: its inputs are then what the changed
    layers below give. ``full``: the moment is X^T X / T [I, I], else only its diagonal [I]; float64.
    """
    stacks = stacks_with_rows(model, calibration, what=kind)
    matrices, count = encoder_matrices(model, what=kind), sum(len(stack.layers) for stack in stacks)
    written = written_inputs(matrices)
    for number, layer, walk in in_turn(model, stacks, batches_of(calibration, rows=rows)):
        calibration.listen(Progress(f"{kind}: layer by layer", number, count))
        groups = by_source([matrix for matrix in matrices if matrix.layer == number])
        heads = [group[0].linear for group in groups]
        yield list(zip(groups, second_moments(walk, layer, heads, full=full, written=written), strict=True))
        walk.advance(layer)


def second_moments(
    walk: Walk, layer: nn.Module, linears: Sequence[nn.Linear], *, full: bool = True,
    written: Collection[int] = frozenset(),
) -> list[Tensor]:  # fmt: skip
    """X^T X / T [I, I] (or its diagonal [I]) of what each of a layer's maps takes, over real tokens, in float64;
    ``written`` are the ids of those maps that take written tokens.

    Zeros for an expert that no token went to: T counts all tokens of the layer, and where its states are written and a
    map takes what was read, those.
    """
    shapes = [(linear.in_features,) * (2 if full else 1) for linear in linears]
    sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    taken, tokens = [0] * len(linears), 0
    current: list[Batch] = [{}]

    def watch(place: int, own: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = real_tokens(inputs[0].detach(), current[0], written=own)
            sums[place].add_(x.T @ x if full else x.double().square().sum(dim=0))
            taken[place] += len(x)

        return hook

    owns = [id(linear) in written for linear in linears]
    watched = enumerate(zip(linears, owns, strict=True))
    with (
        hooked(linear.register_forward_pre_hook(watch(place, own)) for place, (linear, own) in watched),
        unpadded(layer, current),
    ):
        for number, batch in enumerate(walk.batches):
            current[0] = batch
            walk.through(layer, number)
            tokens += int(walk.real(number).sum())
    counts = [tokens if own == walk.written else max(1, count) for own, count in zip(owns, taken, strict=True)]
    return [total / count for total, count in zip(sums, counts, strict=True)]
