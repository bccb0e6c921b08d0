"""LoRA, QLoRA and prefixes: what is frozen stays, what was learnt is in the weights, and it does learn."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from unit_cases import outputs, rows_for, tiny

from hasten.passes.lora import LoraConfig, train_lora
from hasten.passes.matrices import encoder_matrices
from hasten.passes.narrowing import NarrowConfig, narrow
from hasten.passes.prefix import PrefixConfig, tune_prefix
from hasten.passes.qlora import QLoraConfig, in_four_bits, train_qlora, unpacked
from hasten.passes.random_units import RandomUnitsConfig, prune_random_units
from hasten.passes.smooth_quant import SmoothQuantConfig, smooth
from hasten.passes.units import Units
from hasten.records import InputError, Rejected

narrow_module = import_module("hasten.passes.narrowing")
TRAINED = [
    (train_lora, LoraConfig(rank=8, epochs=20, batch=8, lr=1e-2, hidden=0.0)),
    (train_qlora, QLoraConfig(rank=8, epochs=20, batch=8, lr=1e-2, hidden=0.0)),
    (tune_prefix, PrefixConfig(tokens=8, epochs=20, batch=8, lr=3e-3, hidden=0.0)),
]


def lesson() -> tuple[Any, Any]:
    """A student with another seed than its teacher, and rows."""
    teacher, student = tiny(seed=0, spread=20.0), tiny(seed=1, spread=20.0)
    for model in (teacher, student):
        model.hf.classifier.weight.data *= 20.0
    return student, replace(rows_for(teacher, count=48), original=teacher)


def distance(model: Any, given: Any) -> float:
    return float((outputs(model, given) - outputs(given.original, given)).square().mean())


@pytest.mark.parametrize(("train", "config"), TRAINED, ids=lambda x: getattr(x, "kind", ""))
def test_it_learns(train: Any, config: Any) -> None:
    student, given = lesson()
    before = distance(student, given)
    made = train(student, config, given)
    assert distance(made, given) < 0.7 * before
    assert all(p.requires_grad for p in made.parameters())
    assert all(type(m.linear) is torch.nn.Linear for m in encoder_matrices(made, what="a test"))


def test_lora_changes_matrices_by_no_more_than_its_rank() -> None:
    student, given = lesson()
    before = copy.deepcopy(student)
    made = train_lora(student, LoraConfig(rank=2, epochs=1, batch=8, lr=1e-2), given)
    for old, new in zip(encoder_matrices(before, what=""), encoder_matrices(made, what=""), strict=True):
        change = new.linear.weight - old.linear.weight
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    assert torch.equal(made.hf.get_input_embeddings().weight, before.hf.get_input_embeddings().weight)


def test_four_bits_are_near_and_come_back() -> None:
    model = tiny()
    whole = copy.deepcopy(model)
    names = [m.name for m in encoder_matrices(model, what="a test")]
    in_four_bits(model, names)
    for name in names:
        weight = whole.hf.get_submodule(name).weight
        found = unpacked(model.hf.get_submodule(name))
        assert found.weight.shape == weight.shape
        error = (found.weight - weight).detach().abs().max()
        assert 0 < float(error) < 0.2 * float(weight.detach().abs().max())
        assert len(torch.unique(found.weight)) <= 16 * weight.numel() // 32


def test_prefixes_leave_the_layers_alone_and_pad_safely() -> None:
    student, given = lesson()
    before = copy.deepcopy(student)
    made = tune_prefix(student, PrefixConfig(tokens=3, epochs=1, batch=8), given)
    for old, new in zip(encoder_matrices(before, what=""), encoder_matrices(made, what=""), strict=True):
        assert torch.equal(old.linear.weight, new.linear.weight)
    alone = torch.cat([made(**batch) for batch in given.head(8)])
    together = next(iter(given.batches(batch=8)))[0]
    torch.testing.assert_close(made(**together), alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone, torch.cat([before(**batch) for batch in given.head(8)]), atol=1e-3)


def test_prefixes_say_what_they_cannot_do() -> None:
    model = tiny("distilbert")
    with pytest.raises(Rejected, match="distilbert"):
        tune_prefix(model, PrefixConfig(), replace(rows_for(model), original=model))
    student, given = lesson()
    made = tune_prefix(student, PrefixConfig(tokens=2, epochs=1, batch=8), given)
    with pytest.raises(Rejected, match="already"):
        tune_prefix(made, PrefixConfig(tokens=2), given)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"alpha": 0.0}, {"rank": 10**6}])
def test_additions_that_cannot_be_made(bad: dict[str, Any]) -> None:
    for kind in (LoraConfig, QLoraConfig):
        with pytest.raises(InputError, match="rank"):
            kind(**bad)
    with pytest.raises(InputError, match="tokens"):
        PrefixConfig(tokens=0)


def test_narrow_is_a_plain_checkpoint_of_its_kind() -> None:
    model = tiny()
    hidden, heads = model.hf.config.hidden_size, model.hf.config.num_attention_heads
    made = narrow(model, NarrowConfig(keep=0.5, round_to=8), rows_for(model))
    assert made.hf.config.hidden_size == hidden // 2
    assert made.hf.config.num_attention_heads == heads // 2
    fresh = type(made.hf)(made.hf.config).state_dict()
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in made.hf.state_dict().items()}
    units = Units(made, kind="test", what="a test")
    assert {p.heads for p in units.attention} == {heads // 2}


def test_narrow_keeps_what_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates that never change after the norms go first."""
    model = tiny(seed=3)
    dead = [1, 5, 9, 20]
    with torch.no_grad():
        for module in model.hf.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight[dead] = 0.0
                module.bias[dead] = 2.0
    hidden = model.hf.config.hidden_size
    kept: list[int] = []
    real = narrow_module.keep_width

    def watched(hf: Any, adapter: Any, keep: Any, *, head_dim: int) -> None:
        kept.extend(keep)
        real(hf, adapter, keep, head_dim=head_dim)

    monkeypatch.setattr(narrow_module, "keep_width", watched)
    narrow(model, NarrowConfig(keep=0.75, round_to=8), rows_for(model))
    assert len(kept) == round(0.75 * hidden)
    assert not set(dead) & set(kept)


def test_narrow_says_what_it_cannot_do() -> None:
    model = tiny()
    with pytest.raises(Rejected, match="nothing to remove"):
        narrow(model, NarrowConfig(keep=0.99), rows_for(model))
    model.task = "feature-extraction"
    with pytest.raises(Rejected, match="size of the vectors"):
        narrow(model, NarrowConfig(), rows_for(tiny()))


def test_a_prefix_bars_what_would_change_its_function() -> None:
    student, given = lesson()
    made = tune_prefix(student, PrefixConfig(tokens=2, epochs=1, batch=8), given)
    with pytest.raises(Rejected, match="prefix"):
        smooth(made, SmoothQuantConfig(), given)
    with pytest.raises(Rejected, match="prefix"):
        prune_random_units(made, RandomUnitsConfig(keep=0.5, round_to=8), given)


def test_fine_tuning_on_labels_asks_no_teacher() -> None:
    student, given = lesson()
    alone = replace(given, original=None)
    config = LoraConfig(rank=4, epochs=10, batch=8, lr=1e-2, logits=0.0, hidden=0.0, labels=1.0)
    right = float((outputs(student, given).argmax(dim=1).numpy() == given.targets).mean())
    made = train_lora(student, config, alone)
    assert float((outputs(made, given).argmax(dim=1).numpy() == given.targets).mean()) > right
    with pytest.raises(Rejected, match="nothing to learn from"):
        train_lora(made, config, replace(alone, targets=None))
