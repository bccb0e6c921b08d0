"""ViT and DeiT: pre-norm layers over the patches of an image, with one or two tokens of their own in front.

``layers[i]`` holds attention.{q,k,v,o}_proj and mlp.{fc1,fc2}, with a LayerNorm in front of each; one more norm follows
the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward


@dataclass(frozen=True, slots=True)
class VitLike(Adapter):
    """Adapter for ``model.<body>.layers`` (or the model's own); ``specials``: tokens beside the patches."""

    family: str
    body: str
    specials: int

    @property
    def norm_first(self) -> bool:
        return True

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).layers
        return found

    def attention(self, layer: Any) -> AttentionParts:
        return attention_parts(layer.attention)

    def ffn(self, layer: Any) -> FeedForward:
        return FeedForward(up=layer.mlp.fc1, down=layer.mlp.fc2)

    def norms(self, layer: Any) -> tuple[nn.LayerNorm, ...]:
        return (layer.layernorm_before, layer.layernorm_after)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).embeddings
        return found

    def tokens(self, model: Any, row: Mapping[str, Any]) -> int:
        return patches(model.config.patch_size, row["pixel_values"].shape) + self.specials

    def _body(self, model: Any) -> Any:
        return getattr(model, self.body, model)


def attention_parts(own: Any) -> AttentionParts:
    """Of an attention module with q_proj, k_proj, v_proj and o_proj."""
    return AttentionParts(
        query=own.q_proj, key=own.k_proj, value=own.v_proj, output=own.o_proj,
        heads=own.q_proj.out_features // own.head_dim, head_dim=own.head_dim,
    )  # fmt: skip


def patches(size: Any, shape: tuple[int, ...]) -> int:
    """How many patches of ``size`` (an edge, or height and width) fit an image of ``shape`` [..., H, W]."""
    height, width = (size, size) if isinstance(size, int) else size
    return (shape[-2] // height) * (shape[-1] // width)


VIT = VitLike(family="vit", body="vit", specials=1)
DEIT = VitLike(family="deit", body="deit", specials=2)
