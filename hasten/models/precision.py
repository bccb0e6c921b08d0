"""Which matrices of a model must stay in fp32: a pass writes it into the config, every quantizing exporter reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

KEEP = "hasten_keep_fp32"


def keep_fp32(model: Any, names: Iterable[str]) -> None:
    """Remember the dotted names of these modules of ``model``."""
    setattr(model.config, KEEP, sorted(names))


def kept_fp32(model: Any) -> tuple[str, ...]:
    """The names, none for a model that no pass looked at."""
    return tuple(getattr(model.config, KEEP, ()))


def belongs_to(node: str, names: Collection[str]) -> bool:
    """Does the operator ``node`` of an exported graph compute one of these modules?

    Exporters name operators by the path of their module: ``/hf/bert/encoder/layer.0/output/dense/MatMul`` (ONNX),
    ``__module.hf.bert.encoder.layer.0.output.dense/aten::linear/MatMul`` (OpenVINO).
    """
    path = f".{node.replace('/', '.')}."
    return any(f".hf.{name}." in path for name in names)
