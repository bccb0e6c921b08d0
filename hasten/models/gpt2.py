"""GPT-2: pre-norm decoder layers with queries, keys and values in one matrix.

``h[i]`` holds ln_1, attn.{c_attn,c_proj}, ln_2 and mlp.{c_fc,c_proj}. Its matrices are ``Conv1D`` until
:meth:`Gpt2.prepare` has replaced them; the other answers need a prepared model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward
from hasten.models.conv1d import plain_linears
from hasten.records import Rejected


@dataclass(frozen=True, slots=True)
class Gpt2(Adapter):
    """Adapter for ``model.transformer`` (or the model itself)."""

    family: str = "gpt2"

    @property
    def norm_first(self) -> bool:
        return True

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).h
        return found

    def attention(self, layer: Any) -> AttentionParts:
        own = layer.attn
        fused = own.c_attn
        return AttentionParts(
            query=fused, key=fused, value=fused, output=own.c_proj,
            heads=own.c_proj.in_features // own.head_dim, head_dim=own.head_dim, settle=partial(_settle, own),
        )  # fmt: skip

    def cross_attention(self, layer: Any) -> AttentionParts | None:
        if hasattr(layer, "crossattention"):
            raise Rejected("family", "a GPT-2 with an attention to an encoder keeps keys and values in one matrix")
        return None

    def ffn(self, layer: Any) -> FeedForward:
        return FeedForward(up=layer.mlp.c_fc, down=layer.mlp.c_proj)

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        return (layer.ln_1, layer.ln_2)

    def embeddings(self, model: nn.Module) -> nn.Module:
        body = self._body(model)
        return nn.ModuleList([body.wte, body.wpe])

    def prepare(self, model: nn.Module) -> None:
        plain_linears(model)

    def settle(self, model: nn.Module) -> None:
        for number, layer in enumerate(self.layers(model)):
            _keep_scores(layer.attn, number)
        Adapter.settle(self, model)

    def _body(self, model: Any) -> Any:
        return getattr(model, "transformer", model)


def _settle(own: Any) -> None:
    """The attention splits its one matrix's outputs by a width that it keeps."""
    own.split_size = own.c_attn.out_features // 3


@torch.no_grad()
def _keep_scores(own: Any, number: int) -> None:
    """Some GPT-2s divide the scores by the layer's number: a layer that moves multiplies its queries instead."""
    ratio = (number + 1) / (own.layer_idx + 1)
    if not own.scale_attn_by_inverse_layer_idx or ratio == 1:
        return
    if not isinstance(own.c_attn, nn.Linear):
        raise Rejected(
            "layers", "this GPT-2 scales scores by layer, and its matrices are factorised: drop layers first"
        )
    queries = own.c_attn.out_features // 3
    own.c_attn.weight[:queries] *= ratio
    own.c_attn.bias[:queries] *= ratio
    own.scaling /= ratio


GPT2 = Gpt2()
