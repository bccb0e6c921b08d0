"""Mixtral and the Qwen mixtures of experts: Llama's layers with many gated feed-forward blocks, of which a few run.

A router (``mlp.gate``) chooses the experts of each token; Qwen 2 adds a block that always runs, behind a gate of its
own. Routers stay in high precision. transformers keeps all experts of a layer in two parameters of three dimensions:
:meth:`MoeLike.prepare` makes each expert a module with matrices of its own, and the other answers need that. Experts
may then have different widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models.adapter import FeedForward
from hasten.models.experts import Experts, separate_experts
from hasten.models.llama import LlamaLike, gated
from hasten.models.settling import configs_of, say
from hasten.records import Rejected


@dataclass(frozen=True, slots=True)
class MoeLike(LlamaLike):
    """Adapter for ``model.model.layers[i].mlp.{gate,experts}``; some layers may have a plain ``mlp``."""

    @property
    def rigid(self) -> str | None:
        return "the router of a mixture of experts was trained for this width"

    def ffn(self, layer: Any) -> FeedForward:
        blocks = self.ffns(layer)
        if len(blocks) != 1:
            raise Rejected("family", f"a layer of this {self.family} has {len(blocks)} experts, and this needs one FFN")
        return blocks[0]

    def ffns(self, layer: Any) -> tuple[FeedForward, ...]:
        """The experts in their order, then the one that always runs."""
        mlp = layer.mlp
        if not is_sparse(mlp):
            return (gated(mlp),)
        assert isinstance(mlp.experts, Experts), "prepare the model first"
        always = (mlp.shared_expert,) if hasattr(mlp, "shared_expert") else ()
        return tuple(gated(expert) for expert in (*mlp.experts, *always))

    def routers(self, layer: Any) -> tuple[nn.Module, ...]:
        found = [getattr(layer.mlp, name, None) for name in ("gate", "shared_expert_gate")]
        return tuple(module for module in found if module is not None) if is_sparse(layer.mlp) else ()

    def prepare(self, model: nn.Module) -> None:
        separate_experts(model)

    def settle(self, model: nn.Module) -> None:
        LlamaLike.settle(self, model)
        plain = [number for number, layer in enumerate(self.layers(model)) if not is_sparse(layer.get_submodule("mlp"))]
        say(configs_of(model), mlp_only_layers=plain, decoder_sparse_step=1)


def is_sparse(mlp: nn.Module) -> bool:
    """Is it a mixture, and no plain block?"""
    return hasattr(mlp, "experts")


MIXTRAL = MoeLike(family="mixtral")
QWEN2_MOE = MoeLike(family="qwen2_moe")
QWEN3_MOE = MoeLike(family="qwen3_moe")
