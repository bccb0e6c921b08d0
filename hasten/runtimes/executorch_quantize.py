"""Linear maps with integer weights and activations that XNNPACK recognises while a model is lowered.

Takes a transformers model, replaces its linear maps for as long as it is traced. Weights are symmetric,
q = clip(round(w / s), -m, m) with m = 2^(k-1) - 1 and s = max|w| / m of each output row (int8) or of each group of
consecutive inputs (int4): the grid that quantization-aware training puts weights on. torchao's own ranges, -8 to 7 with
s = max|w| / 7.5, would move such weights again. Steps of groups have the 8 significant bits of bf16, in which XNNPACK
stores them. Activations are asymmetric int8 with a range found at run time for every token.

Source: the two grids are those of Jacob et al. 2018; the operators are torchao's affine ones, which XNNPACK's
partitioner matches.

Legend: K inputs, N outputs, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.surgery import replace_module
from hasten.passes.grid import grouped
from hasten.records import Rejected

# They cost next to nothing and see hidden states with outliers (docs/decisions/0003-heads-stay-fp32.md).
_HEADS = ("pooler", "classifier", "qa_outputs", "score")
_TEXT_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many linear maps multiply in which numbers."""

    int4: int = 0
    int8: int = 0
    fp32: int = 0


class RoundedLinear(nn.Module):
    """codes int8 [N, K] with steps [N, G], inputs [..., K] -> [..., N]."""

    codes: Tensor
    steps: Tensor
    zeros: Tensor

    def __init__(self, linear: nn.Linear, *, bits: int, group: int | None) -> None:
        super().__init__()
        codes, steps = coded(linear.weight.detach(), bits=bits, group=group)
        self.size, self.low, self.high = group or linear.in_features, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros_like(steps, dtype=torch.int8))

    @property
    def weight(self) -> Tensor:
        """[N, K] in fp32: what it multiplies with."""
        from torchao.quantization.quant_primitives import dequantize_affine

        block = (1, self.size)
        weight: Tensor = dequantize_affine(
            self.codes, block, self.steps, self.zeros, torch.int8, self.low, self.high, output_dtype=torch.float32
        )
        return weight

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(_rounded_per_token(states), self.weight, self.bias)


@contextmanager
def quantized(hf: Any, *, bits: int | None, group: int | None, keep: Sequence[str]) -> Iterator[Counts]:
    """Within, every linear map of ``hf`` but heads and ``keep`` is a :class:`RoundedLinear`; ``bits`` ``None``: none.

    A matrix whose inputs are no whole number of groups has 8 bits, and so has the text head. Raises Rejected when a
    module of ``keep`` is not there, or when nothing is left to round.
    """
    # A map that stands in several places is replaced in all of them, by one.
    linears = {n: m for n, m in hf.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
    made: dict[int, RoundedLinear] = {}
    chosen = {} if bits is None else _chosen(hf, linears, keep)
    try:
        for name, linear in chosen.items():
            if id(linear) not in made:
                own = _bits(name, linear, bits=bits or 8, group=group)
                made[id(linear)] = RoundedLinear(linear, bits=own, group=group if own == 4 else None)
            replace_module(hf, name, made[id(linear)])
        fours = sum(m.high == 7 for m in made.values())
        distinct = len({id(linear) for linear in linears.values()})
        yield Counts(int4=fours, int8=len(made) - fours, fp32=distinct - len(made))
    finally:
        for name, linear in chosen.items():
            replace_module(hf, name, linear)


def coded(weight: Tensor, *, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """``weight`` [N, K] as codes int8 [N, K] and steps fp32 [N, G]; a group of zeros has the step 1."""
    most = 2 ** (bits - 1) - 1
    parts = grouped(weight.float(), group)
    steps = parts.abs().amax(dim=-1) / most
    if group is not None:
        steps = steps.to(torch.bfloat16).float()
    # XNNPACK refuses steps that are zero or subnormal.
    steps = torch.where(steps >= torch.finfo(torch.float32).smallest_normal, steps, 1.0)
    codes = (parts / steps[..., None]).round().clamp(-most, most)
    return codes.flatten(start_dim=1).to(torch.int8), steps


def _chosen(hf: Any, linears: dict[str, nn.Linear], keep: Sequence[str]) -> dict[str, nn.Linear]:
    present = {name for name, _ in hf.named_modules(remove_duplicate=False)}
    missing = [name for name in keep if name not in present]
    if missing:
        raise Rejected("export", f"the model has no module {', '.join(missing[:3])}, which must stay fp32")
    kept = {id(m) for name in keep for m in hf.get_submodule(name).modules()}
    found = {n: m for n, m in linears.items() if id(m) not in kept and not any(head in n for head in _HEADS)}
    if not found:
        raise Rejected("export", "the model has no linear map that could be rounded")
    return found


def _bits(name: str, linear: nn.Linear, *, bits: int, group: int | None) -> int:
    whole = group is None or linear.in_features % group == 0
    return bits if whole and name.rpartition(".")[2] != _TEXT_HEAD else 8


def _rounded_per_token(states: Tensor) -> Tensor:
    """``states`` [..., K] on the int8 grid of each token's range."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    block, ends = (*[1] * (states.ndim - 1), states.shape[-1]), (-128, 127)
    step, zero = choose_qparams_affine(
        states, MappingType.ASYMMETRIC, block, torch.int8, *ends, zero_point_dtype=torch.int8
    )
    codes = quantize_affine(states, block, step, zero, torch.int8, *ends)
    found: Tensor = dequantize_affine(codes, block, step, zero, torch.int8, *ends, output_dtype=states.dtype)
    return found
