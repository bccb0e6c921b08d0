"""Mixtures of experts: each expert gets matrices of its own, and routers stay what they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import adapter, close, layer, logits, mask_heads, mask_neurons, reopened, skipped, spoken
from tiny_models import language_config, language_model, shaken

from hasten.models.experts import Experts, separate_experts
from hasten.models.moe import is_sparse
from hasten.models.precision import keep_fp32, kept_fp32
from hasten.models.reshape import MARK, open_model
from hasten.models.surgery import keep_heads, keep_layers, keep_neurons, keep_width
from hasten.records import Rejected

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
DENSE = {"mixtral": None, "qwen2_moe": 1, "qwen3_moe": 0}


def stacked(family: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return shaken(AutoModelForCausalLM.from_config(language_config(family)).eval())


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_separate_experts_say_the_same(family: str, implementation: str) -> None:
    before = stacked(family)
    before.set_experts_implementation(implementation)
    after = copy.deepcopy(before)
    separate_experts(after)
    assert torch.allclose(logits(after), logits(before), atol=1e-5)
    assert spoken(after, cached=True) == spoken(before, cached=True)
    assert not any(weight.ndim > 2 for weight in after.parameters())
    assert sum(w.numel() for w in after.parameters()) == sum(w.numel() for w in before.parameters())
    kept = [m for m in after.modules() if isinstance(m, Experts)]
    separate_experts(after)
    assert [m for m in after.modules() if isinstance(m, Experts)] == kept


@pytest.mark.parametrize("family", FAMILIES)
def test_parts(family: str) -> None:
    model = language_model(family)
    own = adapter(model)
    attention = own.attention(layer(model, 0))
    assert (attention.heads, attention.groups, attention.head_dim) == (4, 2, 8)
    for number, each in enumerate(own.layers(model)):
        widths = [ffn.neurons for ffn in own.ffns(each)]
        if number == DENSE[family]:
            assert widths == [48]
            assert own.ffn(each).neurons == 48
            assert own.routers(each) == ()
            continue
        shared = [40] if family == "qwen2_moe" else []
        assert widths == [48 if family == "mixtral" else 24] * 4 + shared
        assert all(len(ffn.inputs) == 2 for ffn in own.ffns(each))
        assert len(own.routers(each)) == 1 + len(shared)
        with pytest.raises(Rejected, match="experts"):
            own.ffn(each)


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_different_widths(family: str, tmp_path: Path) -> None:
    masked = language_model(family)
    cut, whole = copy.deepcopy(masked), copy.deepcopy(masked)
    own = adapter(cut)
    for number, ffn in enumerate(own.ffns(layer(masked, 2))):
        mask_neurons(ffn, range(6 + 3 * number))
        keep_neurons(own.ffns(layer(cut, 2))[number], range(6 + 3 * number))
    mask_heads(own.attention(layer(masked, 1)), [1])
    keep_heads(own.attention(layer(cut, 1)), [1])
    assert close(cut, masked)
    assert not close(cut, whole)
    again = reopened(cut, tmp_path)
    assert close(again, cut)
    assert spoken(again, cached=True) == spoken(cut, cached=False)


@pytest.mark.parametrize("keep", [[0, 2], [1, 2]])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_layers_stay_sparse_or_dense(family: str, keep: list[int], tmp_path: Path) -> None:
    whole = language_model(family)
    cut = copy.deepcopy(whole)
    keep_layers(cut, adapter(cut), keep)
    with skipped([layer(whole, number) for number in range(3) if number not in keep]):
        assert close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)
    again = reopened(cut, tmp_path)
    assert close(again, cut)
    sparse = [is_sparse(each.mlp) for each in adapter(again).layers(again)]
    assert sparse == [number != DENSE[family] for number in keep]


@pytest.mark.parametrize("family", FAMILIES)
def test_their_own_folders_open_prepared(family: str, tmp_path: Path) -> None:
    model = stacked(family)
    model.save_pretrained(tmp_path)
    found = open_model(type(model), tmp_path, attention="sdpa", dtype=torch.float32)
    assert not hasattr(found.config, MARK)
    assert any(isinstance(m, Experts) for m in found.modules())
    assert close(found, model)


def test_routers_stay_in_fp32() -> None:
    model = language_model("qwen2_moe")
    gates = ("mlp.gate", "mlp.shared_expert_gate")
    routers = {f"model.layers.{number}.{gate}" for number in (0, 2) for gate in gates}
    assert set(kept_fp32(model)) == routers
    keep_fp32(model, ["lm_head"])
    assert set(kept_fp32(model)) == {*routers, "lm_head"}
    assert kept_fp32(language_model("llama")) == ()


def test_what_needs_one_block_or_another_width_is_refused() -> None:
    model = language_model("mixtral")
    with pytest.raises(Rejected, match="router"):
        keep_width(model, adapter(model), range(24), head_dim=8)
