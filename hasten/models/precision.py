"""Which matrices of a model must stay in fp32: a pass writes it into the config, every quantizing exporter reads it.

Routers of experts are always among them: a small error there does not blur a token's states, it sends the token to
another expert.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from hasten.models import adapter_for

KEEP = "hasten_keep_fp32"


def keep_fp32(model: Any, names: Iterable[str]) -> None:
    """Remember the dotted names of these modules of ``model``."""
    setattr(model.config, KEEP, sorted(names))


def kept_fp32(model: Any) -> tuple[str, ...]:
    """The names; of a model that no pass looked at, the routers alone."""
    return tuple(sorted({*getattr(model.config, KEEP, ()), *routers(model)}))


def routers(model: Any) -> tuple[str, ...]:
    """The dotted names of the modules that choose experts; none for a family without them."""
    adapter = adapter_for(model.config.model_type)
    if adapter is None:
        return ()
    found = {id(r) for stack in adapter.stacks(model) for layer in stack.layers for r in adapter.routers(layer)}
    return tuple(name for name, module in model.named_modules() if id(module) in found)


def belongs_to(node: str, names: Collection[str]) -> bool:
    """Does the operator ``node`` of an exported graph compute one of these modules?

    Exporters name operators by the path of their module: ``/hf/bert/encoder/layer.0/output/dense/MatMul`` (ONNX),
    ``__module.hf.bert.encoder.layer.0.output.dense/aten::linear/MatMul`` (OpenVINO).
    """
    path = f".{node.replace('/', '.')}."
    return any(f".hf.{name}." in path for name in names)
