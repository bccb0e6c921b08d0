"""What every pass is tested with: at least one config that changes a model of four layers, 4 heads, 64 neurons."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.passes.awq import AwqConfig
from hasten.passes.distillation import DistillConfig
from hasten.passes.entropy import EntropyConfig
from hasten.passes.fisher import FisherConfig
from hasten.passes.gobo import GoboConfig
from hasten.passes.gptq import GptqConfig
from hasten.passes.gradient import GradientConfig
from hasten.passes.group_quant import ZeroQuantConfig
from hasten.passes.grouping import GqaConfig
from hasten.passes.half import HalfConfig
from hasten.passes.hqq import HqqConfig
from hasten.passes.kprune import KPruneConfig
from hasten.passes.layers import LayersConfig
from hasten.passes.llm_int8 import LlmInt8Config
from hasten.passes.lora import LoraConfig
from hasten.passes.low_rank import LowRankConfig
from hasten.passes.magnitude import MagnitudeUnitsConfig
from hasten.passes.magnitude_weights import MagnitudeConfig
from hasten.passes.narrowing import NarrowConfig
from hasten.passes.prefix import PrefixConfig
from hasten.passes.progressive import ProgressiveConfig
from hasten.passes.qat import QatConfig
from hasten.passes.qlora import QLoraConfig
from hasten.passes.random_units import RandomUnitsConfig
from hasten.passes.rtn import RtnConfig
from hasten.passes.sensitivity import PrecisionConfig
from hasten.passes.slicing import SliceConfig
from hasten.passes.smooth_quant import SmoothQuantConfig
from hasten.passes.sparsegpt import SparseGptConfig
from hasten.passes.taylor import TaylorConfig
from hasten.passes.wanda import WandaConfig
from hasten.records import Config

SETTINGS: Mapping[str, tuple[Config, ...]] = {
    "layers": (LayersConfig(count=2), LayersConfig(count=2, by="influence"), LayersConfig(count=1, by="loss")),
    "fisher": (
        FisherConfig(keep=0.5, round_to=8),
        FisherConfig(keep=0.6, round_to=8, rearrange=False, tune=False, batch=4),
        FisherConfig(keep=0.5, round_to=8, unit_costs=(0.4, 0.01)),
    ),
    "kprune": (KPruneConfig(keep=0.5, round_to=8), KPruneConfig(keep=0.4, round_to=8, representation=0.0)),
    "gradient": (GradientConfig(keep=0.5, round_to=8),),
    "entropy": (EntropyConfig(keep=0.5, round_to=8),),
    "magnitude_units": (MagnitudeUnitsConfig(keep=0.5, round_to=8),),
    "random_units": (
        RandomUnitsConfig(keep=0.5, round_to=8),
        RandomUnitsConfig(keep=0.5, round_to=8, draw=1),
        RandomUnitsConfig(keep=0.5, which="heads"),
        RandomUnitsConfig(keep=0.5, round_to=8, which="neurons"),
    ),
    "narrow": (NarrowConfig(round_to=8),),
    "slice": (SliceConfig(keep=0.5), SliceConfig(keep=0.75, rows=4)),
    "gqa": (GqaConfig(), GqaConfig(groups=1)),
    "low_rank": (LowRankConfig(keep=0.5), LowRankConfig(keep=0.6, which="all"), LowRankConfig(which="attention")),
    "progressive": (ProgressiveConfig(assistants=(3,), epochs=2, batch=8),),
    "lora": (LoraConfig(rank=2, epochs=1, batch=8), LoraConfig(rank=2, epochs=1, batch=8, labels=0.5)),
    "qlora": (QLoraConfig(rank=2, epochs=1, batch=8),),
    "prefix": (PrefixConfig(tokens=3, epochs=1, batch=8),),
    "qat": (QatConfig(epochs=1, batch=8), QatConfig(bits=4, group=32, activations="token", epochs=1, batch=8)),
    "distill": (DistillConfig(epochs=2, batch=8), DistillConfig(epochs=1, batch=8, relations=1.0, labels=0.5)),
    "magnitude": (
        MagnitudeConfig(),
        MagnitudeConfig(sparsity=0.7, scope="row"),
        MagnitudeConfig(sparsity=0.5, pattern="2:4"),
    ),
    "taylor": (TaylorConfig(sparsity=0.6, batch=4), TaylorConfig(sparsity=0.5, pattern="4:8")),
    "wanda": (WandaConfig(), WandaConfig(sparsity=0.5, pattern="2:4")),
    "sparsegpt": (SparseGptConfig(), SparseGptConfig(sparsity=0.75, pattern="1:4", block=16)),
    "smooth_quant": (SmoothQuantConfig(),),
    "zeroquant": (ZeroQuantConfig(steps=3), ZeroQuantConfig(bits=4, group=32, steps=4, lr=1e-3)),
    "half": (HalfConfig(), HalfConfig(dtype="fp16", embeddings=False)),
    "gobo": (GoboConfig(), GoboConfig(bits=4, embeddings=True)),
    "rtn": (
        RtnConfig(),
        RtnConfig(bits=2, group=32, symmetric=False, clip=True, embeddings=True),
        RtnConfig(group=None),
    ),
    "hqq": (HqqConfig(), HqqConfig(bits=2, group=32, embeddings=True), HqqConfig(bits=8, group=None, rounds=3)),
    "awq": (AwqConfig(), AwqConfig(bits=3, group=32, symmetric=False), AwqConfig(bits=8, group=None, clip=False)),
    "gptq": (
        GptqConfig(),
        GptqConfig(bits=3, group=32, act_order=True),
        GptqConfig(bits=2, group=None, symmetric=False),
    ),
    "llm_int8": (LlmInt8Config(), LlmInt8Config(threshold=1.5)),
    "mixed_precision": (
        PrecisionConfig(bound=0.1),
        PrecisionConfig(bound=0.1, save_ms=2.5, savings_ms=(0.5, 0.2, 0.3)),
    ),
}
