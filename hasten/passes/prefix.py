"""Prefix tuning: the model itself stays as it is and learns a few keys and values that every token attends to.

Takes a wrapper, gives it back with a prefix in each attention. It gets slower by what the prefix adds to every
attention; what it is good for is to learn much with very few new weights.

Source: Li and Liang 2021, "Prefix-Tuning"; for encoders Liu et al. 2022, "P-Tuning v2". The prefixes come from
``peft``'s encoder.

Legend: P tokens of the prefix, A heads, D width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.models.adapter import AttentionParts
from hasten.models.prefix import NAME, attach_prefixes, inject_prefixes
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import AdditionConfig, distill, epochs_text
from hasten.passes.family import adapter_of
from hasten.passes.lora import train_the_head
from hasten.passes.settings import as_declared
from hasten.records import InputError, MissingDependency, Rejected


@dataclass(frozen=True, slots=True)
class PrefixConfig(AdditionConfig):
    """``tokens`` in front, and how they learn."""

    kind: ClassVar[str] = "prefix"
    tokens: int = 8
    lr: float = 5e-3

    def __post_init__(self) -> None:
        as_declared(self)
        if not 1 <= self.tokens <= 512:
            raise InputError(f"tokens={self.tokens}", expected="1 to 512", remedy="correct the recipe")
        self.lesson()

    @property
    def label(self) -> str:
        return f"prefix of {self.tokens}, {epochs_text(self.epochs)}"


def tune_prefix(model: Any, config: PrefixConfig, calibration: Calibration) -> Any:
    """The wrapper with trained prefixes. Raises Rejected as ``distill`` does and for a family whose attention takes no
    earlier keys, MissingDependency without peft."""
    adapter = adapter_of(model, what="prefix tuning")
    layers = adapter.layers(model.hf)
    modules = [_self_attention(layer, family=adapter.family) for layer in layers]
    shapes = [adapter.attention(layer) for layer in layers]
    with _learning(model, modules, shapes, config.tokens, seed=calibration.seed):
        distill(model, config.lesson(), calibration)
    return model


def _self_attention(layer: Any, *, family: str) -> nn.Module:
    found = getattr(getattr(layer, "attention", None), "self", None)
    if not isinstance(found, nn.Module) or "past_key_values" not in inspect.signature(found.forward).parameters:
        raise Rejected("prefix", f"prefix tuning needs an attention that takes earlier keys; that of {family} does not")
    if hasattr(found, NAME):
        raise Rejected("prefix", "this model has a prefix already")
    return found


@contextmanager
def _learning(
    model: Any, modules: Sequence[nn.Module], shapes: Sequence[AttentionParts], tokens: int, *, seed: int
) -> Iterator[None]:  # fmt: skip
    """Within, the prefixes come from peft's encoder, which learns; after it, they are parameters of the modules."""
    torch.manual_seed(seed)
    model.prefix_encoder = _encoder(sum(s.heads * s.head_dim for s in shapes), tokens)
    model.hf.requires_grad_(False)
    train_the_head(model)

    def fresh(*_: Any) -> None:
        for module, prefix in zip(modules, _prefixes(model.prefix_encoder, shapes), strict=True):
            module.__dict__[NAME] = prefix  # a value of this step and no parameter yet

    hooks = [model.register_forward_pre_hook(fresh), *inject_prefixes(model.hf, modules)]
    try:
        yield
    finally:
        learnt = _prefixes(model.prefix_encoder, shapes)
        for hook in hooks:
            hook.remove()
        for module in modules:
            module.__dict__.pop(NAME, None)
        del model.prefix_encoder
        attach_prefixes(model.hf, modules, learnt)
        model.requires_grad_(True)


def _encoder(width: int, tokens: int) -> nn.Module:
    """A table of ``tokens`` rows with the keys and values of all layers, ``width`` wide each."""
    try:
        from peft import PrefixEncoder, PrefixTuningConfig
    except ImportError as error:
        raise MissingDependency("peft", extra="peft") from error
    made: nn.Module = PrefixEncoder(
        PrefixTuningConfig(num_virtual_tokens=tokens, token_dim=width, num_layers=1, encoder_hidden_size=width)
    )
    return made


def _prefixes(encoder: Any, shapes: Sequence[AttentionParts]) -> list[Tensor]:
    """[2, A, P, D] for every layer; layers may have different numbers of heads."""
    tokens = encoder.embedding.num_embeddings
    keys, values = encoder(torch.arange(tokens)).chunk(2, dim=1)
    widths = [s.heads * s.head_dim for s in shapes]
    pairs = zip(keys.split(widths, dim=1), values.split(widths, dim=1), shapes, strict=True)
    return [torch.stack([_by_head(k, s), _by_head(v, s)]) for k, v, s in pairs]


def _by_head(flat: Tensor, shape: AttentionParts) -> Tensor:
    """[P, A D] -> [A, P, D]."""
    return flat.view(len(flat), shape.heads, shape.head_dim).transpose(0, 1)
