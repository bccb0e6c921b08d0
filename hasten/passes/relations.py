"""Attention relations of a model's last layer: how tokens attend, free of width and number of heads.

Takes a student and a teacher, gives the loss between their relations softmax(Q Q^T), (K K^T), (V V^T), each split into
the same number of relation heads. Source: MiniLMv2 (Wang et al. 2021), equations 5 to 8.

Legend: B rows, L tokens, R relation heads, D width of one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.adapter import Adapter
from hasten.passes.calibration import real
from hasten.passes.family import adapter_of
from hasten.passes.hooks import hooked
from hasten.passes.teachers import adapter_of_teacher, seen_by
from hasten.records import Rejected


class Relations:
    """Looks at the outputs of the last layer's Q, K and V projections through hooks."""

    def __init__(self, student: Any, teacher: Any) -> None:
        self.student, self.teacher = student, teacher
        self.own = _projections(student, adapter_of(student, what="distillation of relations"))
        self.theirs = _projections(teacher, adapter_of_teacher(teacher, what="attention relations"))
        self.heads = math.gcd(self.own[0].out_features, self.theirs[0].out_features)
        # As many relation heads as divide both widths, but none thinner than 16.
        while self.heads > 1 and min(self.own[0].out_features, self.theirs[0].out_features) // self.heads < 16:
            self.heads //= 2

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean KL(teacher || student) over heads, real tokens and the three relations."""
        with torch.inference_mode():
            wanted = [self._relation(x, batch) for x in _seen(self.teacher, self.theirs, batch)]
        found = [self._relation(x, batch) for x in _seen(self.student, self.own, batch)]
        mask = real(batch, found[0][:, 0])
        losses = []
        for own, goal in zip(found, wanted, strict=True):
            kl = nn.functional.kl_div(own, goal.clone(), log_target=True, reduction="none").nan_to_num(0.0)
            losses.append(kl.sum(-1).mean(1)[mask].mean())
        return torch.stack(losses).mean()

    def _relation(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """log softmax(x x^T / sqrt D) [B, R, L, L]; padded keys get no share."""
        rows, length, width = x.shape
        parts = x.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
        scores = parts @ parts.transpose(-1, -2) / math.sqrt(width // self.heads)
        hidden = ~real(batch, x)[:, None, None, :]
        return scores.masked_fill(hidden, -1e9).log_softmax(dim=-1).masked_fill(hidden, 0.0)


def _projections(model: Any, adapter: Adapter) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    parts = adapter.attention(adapter.layers(model.hf)[-1])
    if parts.fused or parts.groups != parts.heads:
        raise Rejected(
            "distill", f"relations need queries, keys and values of one size in matrices of their own, and this "
            f"{adapter.family} has them fused or fewer keys than queries",
        )  # fmt: skip
    return parts.query, parts.key, parts.value


def _seen(model: Any, projections: tuple[nn.Linear, ...], batch: dict[str, Tensor]) -> list[Tensor]:
    caught: list[Tensor] = []
    with hooked(p.register_forward_hook(lambda _m, _i, out: caught.append(out)) for p in projections):
        model(**seen_by(model, batch))
    return caught
