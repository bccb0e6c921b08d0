"""DINOv2: ViT's pre-norm layers with a learnt scale behind each sublayer and, in the largest model, a gated FFN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import Adapter, AttentionParts, FeedForward
from hasten.models.settling import configs_of
from hasten.models.vit import attention_parts, patches


@dataclass(frozen=True, slots=True)
class Dinov2(Adapter):
    """Adapter for ``model.dinov2.encoder.layer[i]`` with norm1, attention, layer_scale1, norm2, mlp, layer_scale2."""

    family: str = "dinov2"

    @property
    def norm_first(self) -> bool:
        return True

    def layers(self, model: nn.Module) -> nn.ModuleList:
        found: nn.ModuleList = self._body(model).encoder.layer
        return found

    def attention(self, layer: Any) -> AttentionParts:
        return attention_parts(layer.attention)

    def ffn(self, layer: Any) -> FeedForward:
        own = layer.mlp
        if hasattr(own, "gate_proj"):
            return FeedForward(up=own.up_proj, down=own.down_proj, gate=own.gate_proj)
        return FeedForward(up=own.fc1, down=own.fc2)

    def norms(self, layer: Any) -> tuple[nn.LayerNorm, ...]:
        return (layer.norm1, layer.norm2)

    def scales(self, layer: Any) -> tuple[nn.Parameter, ...]:
        return (layer.layer_scale1.lambda1, layer.layer_scale2.lambda1)

    def embeddings(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._body(model).embeddings
        return found

    def tokens(self, model: Any, row: Mapping[str, Any]) -> int:
        return patches(model.config.patch_size, row["pixel_values"].shape) + 1

    def settle(self, model: Any) -> None:
        """The layers have names too, for use as a backbone: one for each, and one for what comes before them."""
        Adapter.settle(self, model)
        for config in configs_of(model):
            config.stage_names = config.stage_names[: len(self.layers(model)) + 1]
            config.set_output_features_output_indices(out_features=None, out_indices=None)

    def _body(self, model: Any) -> Any:
        return getattr(model, "dinov2", model)


DINOV2 = Dinov2()
