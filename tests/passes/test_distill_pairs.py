"""Encoder-decoders learn whole answers: the loss against plain sums over all logits, and what a student then writes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pair_cases import nudged, pair_model, pairs_for, row_of
from torch import Tensor

import hasten.passes.distributions as room
from hasten.passes.calibration import Calibration, padded
from hasten.passes.distillation import DistillConfig, _Student, distill
from hasten.passes.distributions import Distributions, last_states
from hasten.passes.teachers import teachers_for
from hasten.tasks.examples import ANSWER
from hasten.tasks.generation_wrappers import PairWrapper, Seq2SeqGenerationWrapper

FAMILIES = ("t5", "bart")


def by_hand(student: Any, teachers: Sequence[Any], rows: Sequence[Any], temperature: float) -> Tensor:
    """Row by row without padding, all logits at once, from the last of the first ids on and not behind the end."""
    total, count = torch.zeros(()), 0
    for row in rows:
        given = {name: torch.from_numpy(array) for name, array in row.items() if name != ANSWER[1]}
        own, *theirs = (
            model.hf(**given, use_cache=False).logits[0, len(model.start) - 1 : -1] / temperature
            for model in (student, *teachers)
        )
        goal, found = torch.stack(theirs).mean(0).softmax(-1), own.softmax(-1)
        total = total + (goal * (goal.log() - found.log())).sum()
        count += len(own)
    return temperature**2 * total / count


@pytest.mark.parametrize("family", [*FAMILIES, "marian", "whisper"])
def test_the_loss_is_the_divergence_at_every_token_of_an_answer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = pair_model(family)
    student, rows = nudged(copy.deepcopy(teacher), size=0.05), pairs_for(teacher, count=5).rows
    batch, teachers = padded(rows), [teacher, nudged(copy.deepcopy(teacher), size=0.02, seed=2)]

    def gradient(loss: Tensor) -> Tensor:
        student.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    wanted = by_hand(student, teachers, rows, 2.0)
    plain = gradient(wanted)
    for most in (10**9, 3 * 4 * student.vocabulary):
        monkeypatch.setattr(room, "MOST_BYTES", most)
        found = Distributions(student, teachers, temperature=2.0)
        with torch.no_grad():
            goal = last_states(teachers, batch)
        loss = found.loss(student.states(batch), goal, batch)
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-3)
        assert torch.allclose(gradient(loss), plain, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_has_nothing_to_learn(family: str) -> None:
    original = pair_model(family)
    given = pairs_for(original, original=original)
    student = _Student(copy.deepcopy(original), teachers_for((), given), DistillConfig(), given)
    assert float(student.loss([0, 3, 5]).detach()) < 1e-4
    nudged(student.model, size=0.05)
    assert float(student.loss([0, 3, 5]).detach()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers_likelihood(family: str) -> None:
    model = pair_model(family)
    given = pairs_for(model)
    student = _Student(model, [], DistillConfig(logits=0.0, hidden=0.0, labels=1.0), given)
    index = [1, 4, 6]
    batch = padded([given.rows[i] for i in index])
    with torch.no_grad():
        wanted = -float(model.rows(model(**batch), batch).sum()) / len(index)
    assert float(student.loss(index).detach()) == pytest.approx(wanted, rel=1e-4)


# --------------------------------------------------------------------------- what it writes then

_READ, _WRITTEN = 4, 5  # tokens of a source, and of the answer to it with its end


@torch.inference_mode()
def written(model: Any, sources: Tensor) -> Tensor:
    """What it writes greedily to each of ``sources`` [B, 4]: [B, 5]."""
    ids = torch.tensor([model.start]).expand(len(sources), -1)
    for _ in range(_WRITTEN):
        logits = model.hf(input_ids=sources, decoder_input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[:, len(model.start) :]


def in_cipher(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Sources of ten symbols, and the same in ten others with an end."""
    sources = np.random.default_rng(seed).integers(6, 16, (count, _READ))
    others = np.random.default_rng(0).permutation(np.arange(6, 16))[sources - 6]
    return torch.from_numpy(sources), torch.from_numpy(np.concatenate([others, np.full((count, 1), 5)], axis=1))


def rows_of(sources: Tensor, answers: Tensor, *, start: tuple[int, ...]) -> list[dict[str, Any]]:
    both = zip(sources.numpy(), answers.numpy(), strict=True)
    return [row_of(source, answer, start=start) for source, answer in both]


def skilled(family: str) -> PairWrapper:
    """A teacher that has learnt the cipher, from labels alone."""
    model = pair_model(family)
    rows = rows_of(*in_cipher(800, seed=1), start=model.start)
    targets = [np.concatenate([[-100], row[ANSWER[0]][0, 1:]]) for row in rows]
    config = DistillConfig(epochs=20, batch=32, lr=4e-3, labels=1.0, logits=0.0, hidden=0.0, embeddings=True)
    distill(model, config, Calibration(rows, targets=targets, seed=3))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_writes_what_its_teacher_does(family: str) -> None:
    """To sources that it never saw, and more so than one that learns how answers begin."""
    teacher, (unseen, right) = skilled(family), in_cipher(200, seed=2)
    student = nudged(copy.deepcopy(teacher), size=0.1)
    wanted = written(teacher, unseen)
    assert float((wanted == right).float().mean()) > 0.6
    sources, _ = in_cipher(320, seed=4)
    rows = rows_of(sources, written(teacher, sources), start=teacher.start)
    beginnings = [{name: array for name, array in row.items() if name not in ANSWER} for row in rows]
    config = DistillConfig(epochs=8, batch=16, lr=2e-3)

    def alike(model: Any) -> float:
        return float((written(model, unseen) == wanted).float().mean())

    pupil, beginner = copy.deepcopy(student), Seq2SeqGenerationWrapper(copy.deepcopy(student.hf)).eval()
    distill(pupil, config, Calibration(rows, original=teacher, seed=3))
    distill(beginner, config, Calibration(beginnings, original=Seq2SeqGenerationWrapper(teacher.hf).eval(), seed=3))
    before, whole, first = alike(student), alike(pupil), alike(beginner)
    print(f"{family}: before {before:.3f}, by whole answers {whole:.3f}, by first tokens {first:.3f}")
    assert whole > first + 0.1
    assert whole > before + 0.1
