"""The techniques that change a model: one file each, ``(model, config, calibration) -> model``.

``model`` is a task wrapper (token arrays in, one tensor out; ``model.hf`` is the transformers model), ``calibration``
a :class:`hasten.passes.calibration.Calibration`. A pass may change the wrapper in place and gives it back.

To add one: a file beside this one with a frozen config, whose ``__post_init__`` begins with
:func:`hasten.passes.settings.as_declared`, and a function; a line in :data:`PASSES`; a page in ``docs/techniques``.
Every pass can be called by its function's name: ``hasten.passes.drop_layers(model, config, calibration)``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from hasten.records import Config, InputError, MissingDependency

if TYPE_CHECKING:
    from hasten.passes.calibration import Calibration

# Recipes keep this order: what is left of the model, what it relearns, in which numbers.
Step = Literal["structure", "recovery", "numbers"]
STEPS: tuple[Step, ...] = ("structure", "recovery", "numbers")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a pass is: its module, config class and function, and its place in the canonical order.

    ``slot`` is what only one pass of a recipe can have: ``"weights"``, the values that the matrices end up with.
    ``stored`` says that it only changes what torch stores: no exporter makes anything of it. ``alone``: a recovery that
    helps a model that was not cut, too. ``again``: a second time it goes on where it ended. ``needs`` are libraries of
    the extra ``peft``.
    """

    step: Step
    module: str
    config: str
    function: str
    slot: str | None = None
    stored: bool = False
    alone: bool = False
    again: bool = False
    needs: tuple[str, ...] = ()

    @property
    def teaches(self) -> bool:
        """Does it train the shape as it will be, whatever numbers it is rounded to after it?"""
        return self.step == "recovery" and self.slot is None


_W = "weights"

# a config's ``kind`` -> its pass
PASSES: Mapping[str, Entry] = {
    "layers": Entry("structure", "hasten.passes.layers", "LayersConfig", "drop_layers"),
    "fisher": Entry("structure", "hasten.passes.fisher", "FisherConfig", "prune_fisher"),
    "kprune": Entry("structure", "hasten.passes.kprune", "KPruneConfig", "prune_kprune"),
    "gradient": Entry("structure", "hasten.passes.gradient", "GradientConfig", "prune_gradient"),
    "entropy": Entry("structure", "hasten.passes.entropy", "EntropyConfig", "prune_entropy"),
    "magnitude_units": Entry("structure", "hasten.passes.magnitude", "MagnitudeUnitsConfig", "prune_magnitude_units"),
    "random_units": Entry("structure", "hasten.passes.random_units", "RandomUnitsConfig", "prune_random_units"),
    "narrow": Entry("structure", "hasten.passes.narrowing", "NarrowConfig", "narrow"),
    "slice": Entry("structure", "hasten.passes.slicing", "SliceConfig", "slice_states"),
    "gqa": Entry("structure", "hasten.passes.grouping", "GqaConfig", "share_keys"),
    "low_rank": Entry("structure", "hasten.passes.low_rank", "LowRankConfig", "factorise"),
    "distill": Entry("recovery", "hasten.passes.distillation", "DistillConfig", "distill", again=True),
    "progressive": Entry("recovery", "hasten.passes.progressive", "ProgressiveConfig", "distill_progressively"),
    "lora": Entry(
        "recovery", "hasten.passes.lora", "LoraConfig", "train_lora", alone=True, again=True, needs=("peft",)
    ),
    "qlora": Entry(
        "recovery",
        "hasten.passes.qlora",
        "QLoraConfig",
        "train_qlora",
        alone=True,
        again=True,
        needs=("peft", "bitsandbytes"),
    ),
    "prefix": Entry("recovery", "hasten.passes.prefix", "PrefixConfig", "tune_prefix", alone=True, needs=("peft",)),
    "qat": Entry("recovery", "hasten.passes.qat", "QatConfig", "train_quantized", _W),
    "magnitude": Entry(
        "numbers", "hasten.passes.magnitude_weights", "MagnitudeConfig", "prune_magnitude", "weights", stored=True
    ),
    "taylor": Entry("numbers", "hasten.passes.taylor", "TaylorConfig", "prune_taylor", _W, stored=True),
    "wanda": Entry("numbers", "hasten.passes.wanda", "WandaConfig", "prune_wanda", _W, stored=True),
    "sparsegpt": Entry("numbers", "hasten.passes.sparsegpt", "SparseGptConfig", "prune_sparsegpt", _W, stored=True),
    "smooth_quant": Entry("numbers", "hasten.passes.smooth_quant", "SmoothQuantConfig", "smooth"),
    "zeroquant": Entry("numbers", "hasten.passes.group_quant", "ZeroQuantConfig", "quantize_groupwise", _W),
    "half": Entry("numbers", "hasten.passes.half", "HalfConfig", "round_to_half", _W, stored=True),
    "gobo": Entry("numbers", "hasten.passes.gobo", "GoboConfig", "quantize_gobo", _W, stored=True),
    "rtn": Entry("numbers", "hasten.passes.rtn", "RtnConfig", "quantize_rtn", _W, stored=True),
    "hqq": Entry("numbers", "hasten.passes.hqq", "HqqConfig", "quantize_hqq", _W, stored=True),
    "awq": Entry("numbers", "hasten.passes.awq", "AwqConfig", "quantize_awq", _W, stored=True),
    "gptq": Entry("numbers", "hasten.passes.gptq", "GptqConfig", "quantize_gptq", _W, stored=True),
    "llm_int8": Entry("numbers", "hasten.passes.llm_int8", "LlmInt8Config", "quantize_llm_int8", _W, stored=True),
    "mixed_precision": Entry("numbers", "hasten.passes.sensitivity", "PrecisionConfig", "choose_precision"),
}


def configs(kinds: Collection[str] | None = None) -> dict[str, type]:
    """Kind -> config dataclass of these passes, by default of all; the modules of the others are not imported."""
    chosen = PASSES if kinds is None else {kind: PASSES[kind] for kind in kinds if kind in PASSES}
    return {kind: getattr(import_module(entry.module), entry.config) for kind, entry in chosen.items()}


def check_installed(kinds: Collection[str]) -> None:
    """Raise MissingDependency when one of these passes needs a library that is not here."""
    for kind in kinds:
        for library in PASSES[kind].needs:
            if find_spec(library) is None:
                raise MissingDependency(library, extra="peft")


def run_pass(model: Any, config: Config, calibration: Calibration) -> Any:
    """Apply one pass to the task's wrapper and return it. Raises Rejected when the pass cannot do it."""
    entry = PASSES[config.kind]
    return getattr(import_module(entry.module), entry.function)(model, config, calibration).eval()


def check_order(passes: Sequence[Config]) -> None:
    """Raise InputError when a recipe does not go from structure over recovery to numbers, or undoes its own work."""
    steps = [STEPS.index(PASSES[p.kind].step) for p in passes]
    if steps != sorted(steps):
        raise InputError(
            f"passes in the order {', '.join(p.kind for p in passes)}",
            expected="structure before recovery before numbers",
            remedy="reorder them: what is removed later would undo what was learnt or rounded before",
        )
    deciding = [p.kind for p in passes if PASSES[p.kind].slot]
    if len(deciding) > 1 or ("qat" in deciding and any(p.kind == "smooth_quant" for p in passes)):
        raise InputError(
            f"{', '.join(p.kind for p in passes)} in one recipe",
            expected="one pass that decides on the values of the weights",
            remedy="try them in recipes of their own: each would undo the other's zeros or grid",
        )


def __getattr__(name: str) -> Any:
    for entry in PASSES.values():
        if name in (entry.function, entry.config):
            return getattr(import_module(entry.module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
