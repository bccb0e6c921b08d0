"""A flat program in the making: modules of torch become its tensors and operators, one after the other.

Takes ``nn.Linear``, ``LowRankLinear``, ``nn.LayerNorm`` and tables, gives a :class:`hasten.native.program.Program`.
Which matrices may be rounded is what it is told. Knows no families.

Legend: N outputs, K inputs of a matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hasten.models.adapter import activation_name
from hasten.models.surgery import LowRankLinear
from hasten.native.program import Activation, Buffer, Embed, Linear, Norm, Op, Program, Rows
from hasten.native.tensors import Bf16, Floats, Int4, Int5, Int8, Tensor
from hasten.records import Rejected
from hasten.runtimes.native_weights import (
    INTEGERS,
    Precision,
    on_grid,
    plain,
    rounded,
    side_by_side,
    stored_table,
    values,
)

_FORMS = {Floats: "fp32", Bf16: "bf16", Int8: "int8", Int5: "int5", Int4: "int4"}
# What transformers calls it -> what the engine does.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_erf", "gelu_python": "gelu_erf", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip


def activation_of(config: Any) -> Activation:
    """The feed-forward blocks'. Raises Rejected for a function that the engine does not have."""
    name = activation_name(config)
    if name not in _ACTIVATIONS:
        raise Rejected(
            "export", f"the native engine has no activation {name!r}; it has {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


def check_matrices(modules: Sequence[Any]) -> None:
    """Raise Rejected for a module that is neither a matrix nor two factors."""
    strange = next((module for module in modules if type(module) not in (nn.Linear, LowRankLinear)), None)
    if strange is not None:
        raise Rejected("export", f"the native engine multiplies with matrices, and here is a {type(strange).__name__}")


class Draft:
    """``kept``: modules whose matrices stay in fp32, whatever the precision. ``fitted``: steps are searched for."""

    def __init__(
        self, *, precision: Precision, group: int, fitted: bool = False, kept: Collection[nn.Module] = ()
    ) -> None:
        self.precision, self.group, self._fitted = precision, group, fitted
        self._kept = set(kept)
        self._buffers: list[Buffer] = []
        self._tensors: list[Tensor] = []
        self._ops: list[Op] = []
        self._named: dict[tuple[str, int, Rows], int] = {}
        # Shared layers are there once. Keys hold what they name, so that no other object gets its identity.
        self._made: dict[tuple[Any, ...], int] = {}
        self._forms: Counter[str] = Counter()
        self._exact = 0
        self._head = ""

    def program(self, output: int) -> Program:
        return Program(tuple(self._buffers), tuple(self._tensors), tuple(self._ops), output)

    @property
    def multiplies_bf16(self) -> bool:
        """May attention? Where weights are rounded, fp32 products there would take half of a long text's time."""
        return self.precision != "fp32"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layers' matrices became."""
        forms = ", ".join(f"{count} in {form}" for form, count in sorted(self._forms.items()))
        found = [f"matrices of the layers: {forms or 'none'}"]
        if self._exact:
            found.append(f"{self._exact} of them keep the integers that they came with")
        return (*found, self._head) if self._head else tuple(found)

    def buffer(self, name: str, width: int, rows: Rows = "token") -> int:
        """The one of this name and shape: layers of equal sizes write the same memory."""
        key = (name, width, rows)
        if key not in self._named:
            self._named[key] = len(self._buffers)
            self._buffers.append(Buffer(width, rows))
        return self._named[key]

    def add(self, op: Op) -> None:
        self._ops.append(op)

    def floats(self, weight: Any) -> int | None:
        """A vector or matrix in fp32, if it is there."""
        if weight is None:
            return None
        return self._place(("fp32", weight), lambda: Floats(plain(weight).numpy()))

    def table(self, table: nn.Embedding, *, int8: bool = False) -> int:
        return self._place(("table", table), lambda: stored_table(table.weight, int8=int8))

    def numbers(self, values: Any) -> int:
        """What no module holds as it is needed."""
        self._tensors.append(Floats(plain(values).numpy()))
        return len(self._tensors) - 1

    def embed(self, output: int, words: int, **optional: Any) -> None:
        self.add(Embed(output, words, **optional))

    def head(self, module: Any, *, input: int, output: int, activation: Activation = "none") -> None:
        """A matrix of the head: in fp32 always."""
        check_matrices([module])
        linear = self._whole(module)
        weight = self.floats(linear.weight)
        assert weight is not None
        self.add(Linear(input, output, weight, self.floats(linear.bias), activation))

    def matrix(
        self, module: Any, *, input: int, output: int, activation: Activation = "none", residual: int | None = None
    ) -> None:
        """A matrix of a layer, or its two factors."""
        if isinstance(module, LowRankLinear):
            between = self.buffer("factor", module.rank)
            self._product([module.first], input=input, output=between)
            input, module = between, module.second
        self._product([module], input=input, output=output, activation=activation, residual=residual)

    def matrices(self, modules: Sequence[Any], *, input: int, output: int) -> None:
        """Matrices of the same inputs in one product, side by side. Factors are multiplied out: side by side they
        would cost as much."""
        self._product([self._whole(module) for module in modules], input=input, output=output)

    def gated(self, modules: Sequence[Any], *, input: int, output: int, activation: Activation) -> None:
        """The matrices of gate and up, or the one that is both, gate first."""
        self._product([self._whole(module) for module in modules], input=input, output=output, activation=activation,
                      gated=True)  # fmt: skip

    def vocabulary(self, module: nn.Linear, *, precision: Precision) -> int:
        """The matrix of a head that foretells tokens; the same number for the table of words, where it is the same."""
        own: Precision = "fp32" if module in self._kept else precision

        def made() -> Tensor:
            found = on_grid(plain(module.weight)) if own in INTEGERS else None
            stored = found or rounded(module.weight, precision=own, group=self.group, fitted=self._fitted)
            self._head = f"the head over {module.out_features} tokens: {_FORMS[type(stored)]}"
            return stored

        return self._place(("vocabulary", module.weight), made)

    def norm(self, module: Any, *, input: int, output: int, residual: int | None = None) -> None:
        if type(module) is not nn.LayerNorm:
            raise Rejected("export", f"the native engine has no norm like {type(module).__name__} here, but LayerNorm")
        weight, bias = self.floats(module.weight), self.floats(module.bias)
        self.add(Norm(input, output, weight, bias, float(module.eps), residual=residual))

    def _product(
        self,
        linears: Sequence[nn.Linear],
        *,
        input: int,
        output: int,
        activation: Activation = "none",
        residual: int | None = None,
        gated: bool = False,
    ) -> None:
        weight = self._place(("product", *linears), lambda: self._joined(linears))
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = self._place(("bias", *linears), lambda: Floats(_biases(linears)))
        self.add(Linear(input, output, weight, bias, activation, residual, gated))

    def _joined(self, linears: Sequence[nn.Linear]) -> Tensor:
        """One matrix: on the grids of its parts where one form holds them all, else all of it rounded; where some of
        it is kept, it is kept."""
        if set(linears) & self._kept:
            found: Tensor | None = Floats(np.concatenate([plain(linear.weight).numpy() for linear in linears]))
        else:
            found = self._on_grids(linears)
        if found is None:
            parts = [self._rounded(linear) for linear in linears]
            found = side_by_side(parts) or Floats(np.concatenate([values(part) for part in parts]))  # some are empty
        self._forms[_FORMS[type(found)]] += len(linears)
        return found

    def _on_grids(self, linears: Sequence[nn.Linear]) -> Tensor | None:
        """What holds exactly what is on a grid, beside matrices of the same form that are not."""
        if self.precision not in INTEGERS:
            return None
        grids = [on_grid(plain(linear.weight)) for linear in linears]
        if not any(grid is not None for grid in grids):
            return None
        parts = [grid or self._rounded(linear) for grid, linear in zip(grids, linears, strict=True)]
        found = parts[0] if len(parts) == 1 else side_by_side(parts)
        self._exact += sum(grid is not None for grid in grids) if found is not None else 0
        return found

    def _rounded(self, linear: nn.Linear) -> Tensor:
        return rounded(linear.weight, precision=self.precision, group=self.group, fitted=self._fitted)

    def _whole(self, module: Any) -> nn.Linear:
        """The matrix that two factors make, or the matrix itself."""
        if not isinstance(module, LowRankLinear):
            return module  # type: ignore[no-any-return]
        made = nn.Linear(module.in_features, module.out_features, bias=module.second.bias is not None)
        with torch.no_grad():
            made.weight.copy_(module.second.weight @ module.first.weight)
            if module.second.bias is not None:
                made.bias.copy_(module.second.bias)
        if {module.first, module.second} & self._kept:
            self._kept.add(made)
        return made

    def _place(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> int:
        if key not in self._made:
            self._made[key] = len(self._tensors)
            self._tensors.append(make())
        return self._made[key]


def _biases(linears: Sequence[nn.Linear]) -> Any:
    found = [torch.zeros(one.out_features) if one.bias is None else plain(one.bias) for one in linears]
    return torch.cat(found).numpy()
