"""Gemma 2 and 3: Llama's matrices with a norm in front of each sublayer and another behind it, before the sum.

Gemma 3 normalizes queries and keys within a head, which stays as it is whatever heads are taken out. Layers see all
earlier tokens or a window of them, which every config says layer by layer. Of a Gemma 3 with images only the language
model is answered for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import settle_attentions
from hasten.models.llama import LlamaLike
from hasten.models.settling import layer_kinds, number_layers, say


@dataclass(frozen=True, slots=True)
class GemmaLike(LlamaLike):
    """Adapter for ``model.model.layers``, or ``model.model.language_model.layers`` beside an image encoder."""

    @property
    def sandwiched(self) -> bool:
        return True

    @property
    def rigid(self) -> str | None:
        return "Gemma multiplies its embeddings by the root of its width, which another width would change"

    def norms(self, layer: Any) -> tuple[nn.Module, ...]:
        return (
            layer.input_layernorm, layer.post_attention_layernorm,
            layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm,
        )  # fmt: skip

    def settle(self, model: Any) -> None:
        """Only the language model's configs: an image encoder has a number of layers of its own."""
        body = self.body(model)
        configs = {id(config): config for config in (body.config, model.config.get_text_config())}
        say(configs.values(), num_hidden_layers=len(body.layers), layer_types=layer_kinds(body.layers))
        number_layers(body.layers)
        settle_attentions(self, body.layers)

    def body(self, model: Any) -> Any:
        found = getattr(model, "model", model)
        return getattr(found, "language_model", found)


GEMMA2 = GemmaLike(family="gemma2")
GEMMA3_TEXT = GemmaLike(family="gemma3_text")
GEMMA3 = GemmaLike(family="gemma3")
