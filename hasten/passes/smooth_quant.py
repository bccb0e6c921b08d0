"""SmoothQuant where a model allows it: activations that are hard to round pass their range on to weights.

Takes a wrapper, gives the wrapper with the same function in fp32 and with inputs of some of its matrices scaled channel
by channel, so that int8 loses less of them.

Source: Xiao et al. 2023, "SmoothQuant": input channel j of a matrix is divided by s_j = max|X_j|^a / max|W_j|^(1-a) and
column j of the matrix multiplied by it. The division costs nothing when whatever made the channel can do it.

Which foldings are exact, and hence done here:

* value -> output projection: attention mixes tokens and not channels, so row j of the value map (and of its bias) is
  divided by s_j. Rows have int8 scales of their own, so rounding the value map gets no harder.
* up -> down for ReLU, which commutes with positive factors, and in a gated FFN, where up is one side of a product.
* norm -> query, key, value and norm -> up (and gate) where norms stand in front of sublayers: nobody else reads them.
  In front of an attention to an encoder's states only the queries read the norm.
* first -> second factor of a factorised matrix.

Not done, because they would change the function: the norms of a post-norm layer (their output is also the residual, and
the next norm takes the sum of all channels), up -> down for GELU without a gate, the norm in front of a mixture of
experts, which routers read as well, and the encoder's last norm, which every layer of the decoder reads.

Legend: I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.models.adapter import Adapter, AttentionParts, activation_name
from hasten.models.prefix import has_prefixes
from hasten.models.surgery import LowRankLinear, is_rms
from hasten.passes.calibration import Batch, Calibration
from hasten.passes.family import adapter_of
from hasten.passes.hooks import hooked
from hasten.passes.matrices import encoder_matrices, written_inputs
from hasten.passes.routing import unpadded
from hasten.passes.settings import as_declared
from hasten.passes.units import batches_of, real_tokens
from hasten.records import InputError, Rejected

_SMALLEST = 1e-5


@dataclass(frozen=True, slots=True)
class SmoothQuantConfig:
    """``alpha`` is the share of the difficulty that goes into the weights; ``rows`` rows say how large inputs get."""

    kind: ClassVar[str] = "smooth_quant"
    alpha: float = 0.5
    rows: int = 256

    def __post_init__(self) -> None:
        as_declared(self)
        if not 0 <= self.alpha <= 1 or self.rows < 1:
            raise InputError(
                f"alpha={self.alpha}, rows={self.rows}", expected="alpha from 0 to 1 and at least one row",
                remedy="correct the recipe",
            )  # fmt: skip

    @property
    def label(self) -> str:
        return f"SmoothQuant {self.alpha:g}"


@dataclass(frozen=True, slots=True)
class Fold:
    """A map or norm, and those that take what it makes; what lies between commutes with factors of channels."""

    maker: nn.Module
    takers: tuple[nn.Linear, ...]

    @property
    def weight(self) -> Tensor:
        """All rows [O, I] that take the channels."""
        return torch.cat([taker.weight.detach() for taker in self.takers])


def smooth(model: Any, config: SmoothQuantConfig, calibration: Calibration) -> Any:
    """The wrapper, computing what it did, with smoother inputs of the maps that :func:`folds` names: one forward pass a
    row. Raises Rejected for a family without an adapter, or inputs that are not numbers."""
    pairs = folds(model)
    largest = input_maxima(model, [pair.takers[0] for pair in pairs], batches_of(calibration, rows=config.rows))
    for pair, inputs in zip(pairs, largest, strict=True):
        if not bool(torch.isfinite(inputs).all()):
            raise Rejected(config.kind, "inputs of some matrices are not numbers on the calibration rows")
        fold(pair, smoothing_scales(inputs, pair.weight, alpha=config.alpha))
    return model


def folds(model: Any) -> list[Fold]:
    """The exact foldings that this model has."""
    adapter = adapter_of(model, what="SmoothQuant")
    if has_prefixes(model.hf):
        raise Rejected("smooth_quant", "values of a prefix do not come from the matrix that would be divided")
    found: list[Fold] = []
    relu = activation_name(model.hf.config) == "relu"
    for layer in (layer for stack in adapter.stacks(model.hf) for layer in stack.layers):
        attentions, ffns = adapter.attentions(layer), adapter.ffns(layer)
        found += _norm_folds(adapter, layer, attentions)
        inner = [linear for ffn in ffns for linear in (*ffn.inputs, ffn.down)]
        parts = (*(linear for own in attentions for linear in (*own.inputs, own.output)), *inner)
        found += [Fold(part.first, (part.second,)) for part in parts if isinstance(part, LowRankLinear)]
        for own in attentions:
            if not own.fused and own.groups == own.heads:  # a channel of the value is one of the output
                found.append(Fold(_last(own.value), (_first(own.output),)))
        gated = [ffn for ffn in ffns if (relu or ffn.gate is not None) and not ffn.fused]
        found += [Fold(_last(ffn.up), (_first(ffn.down),)) for ffn in gated]
    return found


def _norm_folds(adapter: Adapter, layer: nn.Module, attentions: Sequence[AttentionParts]) -> list[Fold]:
    """Norms in front of sublayers, and what reads them; the FFN's alone where no router does."""
    norms, ffns = adapter.norms(layer), adapter.ffns(layer)
    plain = all(isinstance(norm, nn.LayerNorm) or is_rms(norm) for norm in norms)
    if not adapter.norm_first or len(norms) != len(attentions) + 1 or not plain:
        return []
    readers = [(own.query,) if own.cross else own.inputs for own in attentions]
    if len(ffns) == 1 and not adapter.routers(layer):
        readers.append(ffns[0].inputs)
    return [Fold(norm, tuple(map(_first, own))) for norm, own in zip(norms, readers, strict=False)]


def smoothing_scales(inputs: Tensor, weight: Tensor, *, alpha: float) -> Tensor:
    """s [I] from max|X_j| [I] and the weight [O, I]; 1 where a channel or a column is zero."""
    columns = weight.abs().amax(dim=0)
    scales = inputs.clamp(min=_SMALLEST) ** alpha / columns.clamp(min=_SMALLEST) ** (1 - alpha)
    return torch.where((inputs > 0) & (columns > 0), scales, 1.0)


@torch.no_grad()
def fold(pair: Fold, scales: Tensor) -> None:
    """Divide the maker's outputs by ``scales`` and multiply the takers' columns by them."""
    weight: Tensor = pair.maker.weight  # type: ignore[assignment]
    weight.div_(scales[:, None] if weight.ndim == 2 else scales)
    bias: Tensor | None = getattr(pair.maker, "bias", None)
    if bias is not None:
        bias.div_(scales)
    for taker in pair.takers:
        taker.weight.mul_(scales)


@torch.no_grad()
def input_maxima(model: Any, linears: Sequence[nn.Linear], batches: Sequence[Batch]) -> list[Tensor]:
    """max|X_j| [I] of each map's inputs over real tokens; zeros for an expert that no token went to."""
    found = [torch.zeros(linear.in_features) for linear in linears]
    written = written_inputs(encoder_matrices(model, what="a look at inputs"))
    current: list[Batch] = [{}]

    def watch(largest: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = real_tokens(inputs[0], current[0], written=id(module) in written)
            if len(tokens):  # a batch may hold empty texts alone
                torch.maximum(largest, tokens.abs().amax(dim=0), out=largest)

        return hook

    pairs = zip(linears, found, strict=True)
    with hooked(linear.register_forward_pre_hook(watch(own)) for linear, own in pairs), unpadded(model, current):
        for batch in batches:
            current[0] = batch
            model(**batch)
    return found


def _last(module: nn.Module) -> nn.Linear:
    return module.second if isinstance(module, LowRankLinear) else _linear(module)


def _first(module: nn.Module) -> nn.Linear:
    return module.first if isinstance(module, LowRankLinear) else _linear(module)


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise Rejected("smooth_quant", f"a {type(module).__name__} in the place of a matrix cannot be smoothed")
    return module
