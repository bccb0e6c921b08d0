"""Whole next-token distributions: the loss against plain sums over all logits, and what a student learns from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from unit_cases import decoder, texts_for, tiny

import hasten.passes.distributions as room
import hasten.tasks.wrappers as wrappers
from hasten.passes.calibration import Calibration, padded
from hasten.passes.distillation import DistillConfig, _Student, distill
from hasten.passes.distributions import Distributions, last_states
from hasten.passes.layers import LayersConfig, drop_layers
from hasten.passes.targets import Targets
from hasten.passes.teachers import teachers_for
from hasten.records import Rejected

FAMILIES = ("llama", "gpt2", "gemma2")


def speaker(family: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A decoder that is surer of some tokens than of others."""
    model = decoder(family, seed=seed, **changes)
    with torch.no_grad():
        head = model.hf.get_output_embeddings().weight
        head.mul_(6.0 / float(head.std()) / head.shape[1] ** 0.5)
    return model


def batch_of(count: int = 5, *, seed: int = 0) -> dict[str, Tensor]:
    return padded(texts_for(count=count, seed=seed).rows)


def by_hand(student: Any, teachers: Sequence[Any], batch: dict[str, Tensor], temperature: float) -> Tensor:
    """Row by row without padding, all logits at once."""
    total, count = torch.zeros(()), 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        given = {"input_ids": ids[mask][None], "use_cache": False}
        own = (student.hf(**given).logits[0] / temperature).softmax(-1)
        theirs = torch.stack([t.hf(**given).logits[0] for t in teachers]).mean(0).div(temperature).softmax(-1)
        total = total + (theirs * (theirs.log() - own.log())).sum()
        count += int(mask.sum())
    return temperature**2 * total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_divergence_at_every_real_token(family: str) -> None:
    student, teacher, batch = speaker(family, seed=1), speaker(family), batch_of()
    found = Distributions(student, [teacher], temperature=2.0)
    with torch.no_grad():
        wanted = by_hand(student, [teacher], batch, 2.0)
        loss = found.loss(student.states(batch), last_states([teacher], batch), batch)
    assert float(wanted) > 0.1
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)
    other = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)}
    with torch.no_grad():
        again = found.loss(student.states(other), last_states([teacher], other), other)
    assert float(again) == pytest.approx(float(loss), rel=1e-4)


def test_a_few_positions_at_a_time_give_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, batch = speaker(seed=1), speaker(), batch_of()
    seen: list[int] = []
    logits = wrappers.NextTokenWrapper.logits

    def counted(self: Any, states: Tensor) -> Tensor:
        seen.append(states[..., 0].numel())
        return logits(self, states)

    def gradients(bytes_at_once: int) -> list[Tensor]:
        monkeypatch.setattr(room, "MOST_BYTES", bytes_at_once)
        student.zero_grad()
        loss = Distributions(student, [teacher], temperature=2.0).loss(
            student.states(batch), last_states([teacher], batch).detach(), batch
        )
        loss.backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    monkeypatch.setattr(wrappers.NextTokenWrapper, "logits", counted)
    whole = gradients(10**9)
    assert max(seen) == int(batch["attention_mask"].sum())
    seen.clear()
    pieces = gradients(3 * 4 * student.vocabulary)
    assert max(seen) == 3, "no more logits at once than asked for, going back too"
    assert len(whole) == len(pieces) > 10
    for a, b in zip(whole, pieces, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)
    student.zero_grad()
    by_hand(student, [teacher], batch, 2.0).backward()
    plain = [p.grad for p in student.parameters() if p.grad is not None]
    for a, b in zip(whole, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-2)


@torch.no_grad()
def test_several_teachers_are_averaged_in_logits() -> None:
    student, batch = speaker(seed=1), batch_of()
    teachers = [speaker(), speaker(seed=2, hidden_size=48, num_attention_heads=6, head_dim=8)]
    found = Distributions(student, teachers, temperature=1.5)
    loss = found.loss(student.states(batch), last_states(teachers, batch), batch)
    assert float(loss) == pytest.approx(float(by_hand(student, teachers, batch, 1.5)), rel=1e-4)


@torch.no_grad()
def test_families_with_more_in_their_heads_give_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, batch = speaker(seed=1), speaker(), batch_of()
    wanted = by_hand(student, [teacher], batch, 2.0)
    monkeypatch.setattr(wrappers, "SPLIT_HEADS", ())
    states = student.states(batch)
    assert states.shape[-1] == student.width == student.vocabulary == 66
    loss = Distributions(student, [teacher], temperature=2.0).loss(states, last_states([teacher], batch), batch)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)


def test_vocabularies_of_other_sizes_are_no_teachers() -> None:
    student, other = speaker(), speaker(vocab_size=70)
    with pytest.raises(Rejected, match="70 tokens and the student 66"):
        Distributions(student, [other], temperature=2.0)


@pytest.mark.parametrize("family", [*FAMILIES, "bert", "albert"])
def test_a_copy_has_nothing_to_learn(family: str) -> None:
    """Neither from outputs nor from states: of a decoder those before its last norm are compared with such."""
    import transformers as t

    if family == "albert":
        torch.manual_seed(0)
        config = t.AlbertConfig(
            vocab_size=66, hidden_size=32, embedding_size=16, num_attention_heads=4, num_hidden_layers=3,
            intermediate_size=48,
        )  # fmt: skip
        original: Any = wrappers.LogitsWrapper(t.AlbertForSequenceClassification(config)).eval()
    else:
        original = tiny(family) if family == "bert" else speaker(family)
    given = Calibration(texts_for().rows, original=original)
    student = _Student(copy.deepcopy(original), teachers_for((), given), DistillConfig(), given)
    assert float(student.loss([0, 3, 5]).detach()) < 1e-4
    with torch.no_grad():
        for weight in student.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    assert float(student.loss([0, 3, 5]).detach()) > 1e-3


def test_labels_are_the_wrapper_s_own_loss() -> None:
    model, given = speaker(), texts_for()
    student = _Student(model, [], DistillConfig(logits=0.0, hidden=0.0, labels=1.0), given)
    index = [1, 4, 6]
    batch = padded([given.rows[i] for i in index])
    with torch.no_grad():
        wanted = model.loss(model(**batch), given.targets_of(index)) / len(index)
    assert float(student.loss(index).detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_states_that_16_bits_cannot_hold_are_kept_whole() -> None:
    model = speaker()
    with torch.no_grad():
        model.hf.model.embed_tokens.weight.mul_(1e6)
    _, states = Targets([model], texts_for().rows, (3,)).of([0, 1])
    assert torch.isfinite(states).all()
    assert float(states.abs().max()) > 65504


@torch.inference_mode()
def divergence(student: Any, teacher: Any, given: Calibration) -> float:
    """Mean KL a token at temperature 1."""
    return float(by_hand(student, [teacher], padded(given.rows), 1.0))


def test_a_pruned_decoder_comes_nearer_on_text_it_has_not_seen() -> None:
    teacher, unseen = speaker(), texts_for(count=48, seed=9)
    given = Calibration(texts_for(count=192, targets=False).rows, original=teacher)
    pruned = drop_layers(copy.deepcopy(teacher), LayersConfig(count=2), given)
    before = divergence(pruned, teacher, unseen)
    found = {}
    for name, weights in (("whole", {}), ("hidden", {"logits": 0.0}), ("outputs", {"hidden": 0.0})):
        config = DistillConfig(epochs=6, batch=16, lr=2e-3, **weights)
        found[name] = divergence(distill(copy.deepcopy(pruned), config, given), teacher, unseen)
    assert before > 0.1
    assert found["whole"] < 0.7 * before, found
    assert found["whole"] < found["hidden"], found
    assert found["outputs"] < 0.7 * before, found
    assert np.isfinite(list(found.values())).all()
