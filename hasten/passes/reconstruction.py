"""What a pruned layer should give, and the linear least squares that bring it there.

Takes the dense layers and the pruned ones, carries the calibration's rows through both layer by layer, and gives, for
the linear map that ends a sublayer, its inputs' second moments and their products with the wanted outputs. Everything
is solved from these two matrices; no activations of more than one layer are held.

The wanted output of a pruned sublayer is the dense residual sum less the pruned residual (r_dense - x), as in Kwon et
al. 2022 and K-prune (Park et al. 2024): errors of earlier sublayers are mended here too. Where the norms stand behind
the sums, a sum is what its norm takes; where they stand in front, the attention's sum is what the FFN's norm takes, and
the FFN's is the layer's output.

Legend: T real tokens, H hidden size, I inputs of the map, U units (U = I / width).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.adapter import Adapter, Stack
from hasten.models.settling import say
from hasten.passes.calibration import Batch, real
from hasten.passes.family import called_alike, check_in_turn
from hasten.passes.hooks import hooked
from hasten.passes.units import real_tokens
from hasten.records import Rejected


@dataclass(slots=True)
class Moments:
    """Sums over tokens of a linear map's inputs X [T, I] and wanted outputs Y [T, H] (bias taken off), in float64."""

    inputs: Tensor  # X^T X [I, I]
    products: Tensor  # X^T Y [I, H]
    wanted: float  # ||Y||^2
    tokens: int = 0

    @classmethod
    def empty(cls, linear: nn.Linear) -> Moments:
        i, h = linear.in_features, linear.out_features
        return cls(torch.zeros(i, i, dtype=torch.float64), torch.zeros(i, h, dtype=torch.float64), 0.0)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.inputs += x.T @ x
        self.products += x.T @ y
        self.wanted += float(y.double().square().sum())
        self.tokens += len(x)

    def error(self, weight: Tensor) -> float:
        """Mean squared norm of Y - X W^T per token; weight [H, I]."""
        w = weight.double()
        total = self.wanted - 2 * (self.products * w.T).sum() + ((w @ self.inputs) * w).sum()
        return float(total) / self.tokens


class Walk:
    """Rows on their way through a stack of layers: the hidden states in front of the next one.

    A layer is called as the model calls it: with its own mask and positions where layers see different tokens (Gemma),
    with the biases of the first one where all add them (T5), and in a decoder beside an encoder with what the encoder
    made of the rows by then. None of these depend on the states. ``written``: are the states of tokens that are
    written, and not of those that are read?
    """

    def __init__(
        self, model: Any, layers: nn.ModuleList, batches: Sequence[Batch], *, written: bool = False
    ) -> None:  # fmt: skip
        check_in_turn(model, what="a pass over layers")
        self.batches, self.written = batches, written
        self.states: list[Tensor] = []
        self._place = 0
        # [layer][batch]; where all are called alike, the first one's calls serve all.
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        watched = list(layers)[:1] if called_alike(model) else list(layers)
        handles = (own.register_forward_pre_hook(self._catcher(i, watched), with_kwargs=True)
                   for i, own in enumerate(watched))  # fmt: skip
        with hooked(handles), torch.no_grad(), _without_cache(model.hf):
            for batch in batches:
                with suppress(_Caught):
                    model(**batch)

    def _catcher(self, place: int, watched: Sequence[nn.Module]) -> Any:
        self._calls.append([])

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls[place].append((args[1:], kwargs))
            if place == 0:
                self.states.append(args[0])
            if place == len(watched) - 1:
                raise _Caught

        return hook

    @torch.no_grad()
    def through(self, layer: nn.Module, number: int) -> Tensor:
        """The output for batch ``number`` of ``layer``, which stands in the place that the walk has come to."""
        rest, kwargs = self._calls[min(self._place, len(self._calls) - 1)][number]
        output = layer(self.states[number], *rest, **kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def advance(self, layer: nn.Module) -> None:
        """Carry all rows through ``layer``."""
        self.arrive([self.through(layer, number) for number in range(len(self.batches))])

    def arrive(self, states: list[Tensor]) -> None:
        """Go on from what a layer gave."""
        self.states, self._place = states, self._place + 1

    def real(self, number: int) -> Tensor:
        """bool [B, L]: which states of batch ``number`` are of tokens, and not of padding."""
        return real(self.batches[number], self.states[number], written=self.written)


def in_turn(
    model: Any, stacks: Sequence[Stack], batches: Sequence[Batch]
) -> Iterator[tuple[int, nn.Module, Walk]]:  # fmt: skip
    """Every layer of these stacks, with its number among all and the walk that has come to it.

    Whoever iterates changes the layer and has the walk advance through it before asking for the next one: so what a
    decoder looks at is what the changed encoder gives.
    """
    number = 0
    for place, stack in enumerate(stacks):
        walk = Walk(model, stack.layers, batches, written=place > 0)
        for layer in stack.layers:
            yield number, layer, walk
            number += 1


class _Caught(Exception):
    """Stops a forward pass once what was wanted has been seen."""


@contextmanager
def _without_cache(hf: Any) -> Iterator[None]:
    """Within, a decoder keeps no keys and values: a layer that is called again would see its own from before."""
    both = {id(config): config for config in (hf.config, hf.config.get_text_config())}.values()
    before = [(config, config.use_cache) for config in both if getattr(config, "use_cache", None) is not None]
    say((config for config, _ in before), use_cache=False)
    try:
        yield
    finally:
        for config, used in before:
            config.use_cache = used


@dataclass(slots=True)
class _Seen:
    """What hooks on a map and on the norm behind its sum saw in one forward pass."""

    inputs: Tensor | None = None
    output: Tensor | None = None
    total: Tensor | None = None
    hooks: list[Any] = field(default_factory=list)

    def watch_map(self, linear: nn.Linear) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs, self.output = inputs[0], output

        self.hooks.append(linear.register_forward_hook(hook))

    def watch_norm(self, norm: nn.Module | None) -> None:
        """The norm that takes the sum; without one the sum is what the layer gives."""
        if norm is None:
            return

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.total = inputs[0]
            raise _Caught

        self.hooks.append(norm.register_forward_pre_hook(hook))

    def run(self, walk: Walk, layer: nn.Module, number: int) -> None:
        try:
            self.total = walk.through(layer, number)
        except _Caught:
            return


@dataclass(frozen=True, slots=True)
class Sublayer:
    """A layer, the linear map that ends one of its sublayers, the width of its units, and the norm that takes the
    residual sum, ``None`` where the sum is the layer's output."""

    layer: nn.Module
    map: nn.Linear
    norm: nn.Module | None
    width: int


def sublayers(adapter: Adapter, layer: nn.Module) -> tuple[Sublayer, Sublayer]:
    """The attention and the FFN of one layer, whose scales are ones (:func:`fold_scales`)."""
    if adapter.sandwiched:
        raise Rejected("family", f"in a {adapter.family} a norm stands between what a sublayer's map gives and the sum")
    parts, norms = adapter.attention(layer), adapter.norms(layer)
    behind = (norms[1], None) if adapter.norm_first else (norms[0], norms[1])
    return (
        Sublayer(layer, parts.output, behind[0], parts.group_dim),
        Sublayer(layer, adapter.ffn(layer).down, behind[1], 1),
    )


@torch.no_grad()
def fold_scales(adapter: Adapter, layers: nn.ModuleList) -> None:
    """Make the factors that stand behind sublayers (DINOv2) part of the maps that end these, and ones themselves: then
    what a map gives is what is added. The layers compute what they did."""
    for layer in [layer for layer in layers if adapter.scales(layer)]:
        for part, scale in zip(sublayers(adapter, layer), adapter.scales(layer), strict=False):
            part.map.weight.mul_(scale[:, None])
            bias: Tensor | None = part.map.bias
            if bias is not None:
                bias.mul_(scale)
            scale.fill_(1.0)


def moments(dense: Sublayer, pruned: Sublayer, dense_walk: Walk, walk: Walk) -> Moments:
    """Moments of the pruned sublayer's map against what the dense sublayer gives, over real tokens.

    Hooks that mask the map's inputs stay in force: X are the inputs as they reach the map.
    """
    found = Moments.empty(pruned.map)
    goal, own = _Seen(), _Seen()
    goal.watch_norm(dense.norm)
    own.watch_map(pruned.map)
    own.watch_norm(pruned.norm)
    with hooked([*goal.hooks, *own.hooks]):
        for number, batch in enumerate(walk.batches):
            goal.run(dense_walk, dense.layer, number)
            own.run(walk, pruned.layer, number)
            assert goal.total is not None
            assert own.total is not None
            assert own.inputs is not None
            assert own.output is not None
            y = goal.total - (own.total - own.output)
            y = y if pruned.map.bias is None else y - pruned.map.bias.detach()
            found.add(real_tokens(own.inputs, batch), real_tokens(y, batch))
    return found


def tuned_masks(found: Moments, weight: Tensor, *, width: int, damp: float) -> Tensor:
    """Mask values [U] that minimise ||Y - sum_u m_u X_u W_u^T||^2 + damp^2 ||m - 1||^2, weight [H, I].

    The columns of the least-squares problem are the units' flattened contributions; their inner products are blocks
    of (X^T X) * (W^T W), so the [T H, U] matrix is never built. Same problem as LSMR with ``damp`` on m - 1.
    """
    w = weight.double()
    units = w.shape[1] // width
    gram = (found.inputs * (w.T @ w)).view(units, width, units, width).sum(dim=(1, 3))
    right = (found.products * w.T).sum(dim=1).view(units, width).sum(dim=1)
    left = gram + damp**2 * torch.eye(units, dtype=torch.float64)
    change: Tensor = torch.linalg.solve(left, right - gram.sum(dim=1))
    values: Tensor = (1.0 + change).to(weight.dtype)
    return values


def solved_weight(found: Moments, weight: Tensor, *, damp: float) -> Tensor:
    """The weight [H, I] that minimises ||Y - X W^T||^2 + damp tr(X^T X) / I ||W - weight||^2."""
    w = weight.double()
    size = w.shape[1]
    ridge = damp * found.inputs.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    left = found.inputs + ridge * torch.eye(size, dtype=torch.float64)
    change = torch.linalg.solve(left, found.products - found.inputs @ w.T)
    solved: Tensor = (w + change.T).to(weight.dtype)
    return solved


def fold(linear: nn.Linear, values: Tensor, *, width: int) -> None:
    """Multiply the columns of each unit by its value, so that the mask is part of the weight."""
    with torch.no_grad():
        linear.weight *= values.repeat_interleave(width)
