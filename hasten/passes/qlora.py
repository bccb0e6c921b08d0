"""QLoRA: LoRA over matrices that are held in 4 bits, so that training fits where the model alone would not.

Takes a wrapper, gives it back in fp32 with the weights that it was trained with: the 4-bit values plus the additions.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs" (NF4, blocks of 64, scales quantized
again); matrices and their kernels are those of ``bitsandbytes``, the additions those of ``peft``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hasten.models.surgery import replace_module
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import distill, epochs_text
from hasten.passes.lora import LoraConfig, additions
from hasten.passes.matrices import encoder_matrices
from hasten.records import MissingDependency, Rejected

# Scales belong to so many consecutive weights. A block that goes over the end of a row comes back wrong from
# bitsandbytes' CPU kernel (0.50), so its size has to divide the row's.
_BLOCKS = (64, 32)


@dataclass(frozen=True, slots=True)
class QLoraConfig(LoraConfig):
    """As :class:`hasten.passes.lora.LoraConfig`; the matrices are NF4 while it learns."""

    kind: ClassVar[str] = "qlora"

    @property
    def label(self) -> str:
        return f"QLoRA rank {self.rank}, {epochs_text(self.epochs)}"


def train_qlora(model: Any, config: QLoraConfig, calibration: Calibration) -> Any:
    """The wrapper in fp32, its matrices what 4 bits and the additions make of them.

    The matrices take an eighth of their memory while it learns; each product unpacks them first, so a step is slower
    than LoRA's. Raises as :func:`hasten.passes.lora.train_lora`, and MissingDependency without bitsandbytes.
    """
    names = [m.name for m in encoder_matrices(model, what="QLoRA")]
    in_four_bits(model, names)
    with additions(
        model, names, rank=config.rank, alpha=config.alpha, seed=calibration.seed, plain=unpacked
    ):  # fmt: skip
        distill(model, config.lesson(), calibration)
    return model


def in_four_bits(model: Any, names: Sequence[str]) -> None:
    """Put NF4 matrices in place of those of these names."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise MissingDependency("bitsandbytes", extra="peft") from error
    for name in names:
        whole = model.hf.get_submodule(name)
        block = next((b for b in _BLOCKS if whole.in_features % b == 0), None)
        if block is None:
            raise Rejected("qlora", f"{name} has {whole.in_features} inputs, no multiple of {_BLOCKS[-1]}")
        packed = bnb.nn.Linear4bit(
            whole.in_features, whole.out_features, bias=whole.bias is not None, quant_type="nf4",
            compute_dtype=torch.float32,
        )  # fmt: skip
        packed.weight = bnb.nn.Params4bit(whole.weight.detach(), requires_grad=False, quant_type="nf4", blocksize=block)
        packed.bias = whole.bias
        replace_module(model.hf, name, packed.to("cpu"))  # moving it is what packs it


def unpacked(packed: Any) -> nn.Linear:
    """The fp32 matrix that an NF4 one stands for."""
    import bitsandbytes as bnb

    weight = bnb.functional.dequantize_4bit(packed.weight.data, packed.weight.quant_state).float()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=packed.bias is not None)
    linear.weight = nn.Parameter(weight)
    if packed.bias is not None:
        linear.bias = nn.Parameter(packed.bias.detach())
    return linear
