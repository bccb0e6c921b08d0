"""Keys and values that several queries share: means of heads, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from unit_cases import again, decoder, said, texts_for, tiny

from hasten.models import adapter_for
from hasten.models.adapter import AttentionParts
from hasten.models.reshape import differs_from_config
from hasten.models.surgery import LowRankLinear, replace_module
from hasten.passes import run_pass
from hasten.passes.calibration import Calibration, Progress
from hasten.passes.distillation import DistillConfig
from hasten.passes.grouping import GqaConfig, share_keys
from hasten.passes.random_units import RandomUnitsConfig
from hasten.records import InputError, Rejected

# With norms within heads, fused, behind norms on both sides, in mixtures.
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "mixtral", "qwen2_moe", "qwen3_moe",
)  # fmt: skip


def attentions(model: Any) -> list[AttentionParts]:
    adapter = adapter_for(model.hf.config.model_type)
    assert adapter is not None
    return [adapter.attention(layer) for layer in adapter.layers(model.hf)]


def key_rows(parts: AttentionParts) -> list[tuple[nn.Linear, int]]:
    """Matrices with keys or values, and the row at which these begin."""
    if not parts.fused:
        return [(parts.key, 0), (parts.value, 0)]
    queries = parts.heads * parts.head_dim
    return [(parts.key, queries), (parts.value, queries + parts.groups * parts.head_dim)]


def alike(model: Any, *, groups: int) -> Any:
    """The model with equal keys and values among neighbours, so that sharing them changes nothing."""
    with torch.no_grad():
        for parts in attentions(model):
            size = parts.groups // groups * parts.head_dim
            for linear, start in key_rows(parts):
                for row in range(start, start + parts.groups * parts.head_dim):
                    first = start + (row - start) // size * size + (row - start) % parts.head_dim
                    linear.weight[row] = linear.weight[first]
                    if linear.bias is not None:
                        linear.bias[row] = linear.bias[first]
    return model


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_keys_can_be_shared(family: str, groups: int, tmp_path: Path) -> None:
    """From four key/value heads to two, and to one: the right queries keep the right keys."""
    model, given = alike(decoder(family, num_key_value_heads=4), groups=groups), texts_for()
    whole = said(model, given)
    made = share_keys(model, GqaConfig(groups=groups), given)
    assert [parts.groups for parts in attentions(made)] == [groups] * 3
    assert made.hf.config.num_key_value_heads == groups
    assert torch.allclose(said(made, given), whole, atol=1e-5)
    if family not in ("mixtral", "qwen2_moe", "qwen3_moe"):  # these are stored expert by expert
        assert not differs_from_config(made.hf), "a plain checkpoint of its family"
    assert torch.allclose(said(again(made, tmp_path), given), whole, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_heads_of_a_group_are_averaged(family: str) -> None:
    model = decoder(family, num_key_value_heads=4)
    before = [(parts, [m.weight.detach().clone() for m in parts.inputs]) for parts in attentions(model)]
    old = [[linear.weight.detach()[start : start + 32] for linear, start in key_rows(parts)] for parts, _ in before]
    queries = [parts.query.weight.detach()[:32].clone() for parts, _ in before]
    share_keys(model, GqaConfig(keep=0.5), texts_for())
    for parts, (keys, values), query in zip(attentions(model), old, queries, strict=True):
        assert torch.equal(parts.query.weight[:32], query)
        for (linear, start), whole in zip(key_rows(parts), (keys, values), strict=True):
            wanted = (whole.view(2, 2, 8, 32)[:, 0] + whole.view(2, 2, 8, 32)[:, 1]) / 2
            assert torch.allclose(linear.weight[start : start + 16], wanted.flatten(0, 1), atol=1e-6)


def test_what_a_token_leaves_behind_is_told() -> None:
    given, notes = texts_for(), list[Progress]()
    share_keys(decoder(num_key_value_heads=4), GqaConfig(groups=1), Calibration(given.rows, listen=notes.append))
    assert notes[-1].note
    assert notes[-1].what == "keys and values of a token: 192 bytes in fp32, 768 before"


def test_the_cache_is_smaller_and_writes_the_same_text() -> None:
    model = share_keys(decoder(num_key_value_heads=4), GqaConfig(groups=2), texts_for())
    ids = torch.tensor([[4, 20, 30, 40]])
    with torch.inference_mode():
        cached = model.hf(input_ids=ids, use_cache=True)
        keys = cached.past_key_values.layers[0].keys
        assert keys.shape == (1, 2, 4, 8)
        more = model.hf(input_ids=torch.tensor([[50]]), past_key_values=cached.past_key_values).logits[0, -1]
        whole = model.hf(input_ids=torch.cat([ids, torch.tensor([[50]])], dim=1)).logits[0, -1]
    assert torch.allclose(more, whole, atol=1e-5)


def test_distillation_brings_it_back() -> None:
    given, original = texts_for(count=32), decoder(num_key_value_heads=4)
    made = share_keys(decoder(num_key_value_heads=4), GqaConfig(groups=1), given)
    before = float((said(made, given) - said(original, given)).square().mean())
    lesson = Calibration(given.rows, targets=given.targets, original=original)
    taught = run_pass(made, DistillConfig(epochs=8, batch=8, lr=3e-3), lesson)
    assert float((said(taught, given) - said(original, given)).square().mean()) < 0.8 * before


@pytest.mark.parametrize(("keep", "groups"), [(0.9, 4), (0.5, 4), (0.4, 2), (0.1, 1)])
def test_a_share_is_rounded_down_to_what_divides(keep: float, groups: int) -> None:
    model = decoder(hidden_size=64, num_attention_heads=8, num_key_value_heads=8)
    made = share_keys(model, GqaConfig(keep=keep), texts_for())
    assert attentions(made)[0].groups == groups


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Rejected, match="4 key/value heads of layer 0 cannot be shared out among 3"):
        share_keys(decoder(num_key_value_heads=4), GqaConfig(groups=3), texts_for())
    with pytest.raises(Rejected, match="layer 0 has 2 key/value heads, and 2 of them leave nothing"):
        share_keys(decoder(), GqaConfig(groups=2), texts_for())
    with pytest.raises(Rejected, match="cannot be shared out among 8"):
        share_keys(decoder(), GqaConfig(groups=8), texts_for())
    model = decoder()
    replace_module(model.hf, "model.layers.1.self_attn.k_proj", LowRankLinear(32, 16, rank=4))
    with pytest.raises(Rejected, match="keys of layer 1 are factorised"):
        share_keys(model, GqaConfig(), texts_for())


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_other_families_are_refused_by_name(family: str) -> None:
    with pytest.raises(Rejected, match=f"cannot handle the family {family}, .* it can handle llama, .*gemma2"):
        run_pass(decoder(family), GqaConfig(), texts_for())
    with pytest.raises(Rejected, match="cannot handle the family bert,"):
        run_pass(tiny(), GqaConfig(), texts_for())


def test_after_heads_are_gone(tmp_path: Path) -> None:
    model, given = decoder(num_key_value_heads=4), texts_for()
    cut = run_pass(model, RandomUnitsConfig(keep=0.5, which="heads"), given)
    made = share_keys(cut, GqaConfig(groups=1), given)
    assert [(parts.heads, parts.groups) for parts in attentions(made)] == [(2, 1)] * 3
    assert torch.allclose(said(again(made, tmp_path), given), said(made, given), atol=1e-5)


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.0}, {"groups": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GqaConfig(**bad)
