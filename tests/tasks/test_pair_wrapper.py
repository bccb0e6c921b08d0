"""What passes see of an encoder-decoder: every token of an answer that is forced on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BANDS, FRAMES, language_model, whisper
from torch import Tensor

import hasten.tasks.generation_wrappers as room
import hasten.tasks.wrappers as wrappers
from hasten.tasks.examples import ANSWER, stacked
from hasten.tasks.generation_wrappers import PairWrapper

FAMILIES = ("t5", "flan-t5", "bart", "marian", "whisper")


def model_of(family: str, *, start: tuple[int, ...] = ()) -> PairWrapper:
    hf = whisper() if family == "whisper" else language_model(family)
    if family == "bart":
        hf.final_logits_bias.normal_()
    return PairWrapper(hf, start=start).eval()


def rows_of(family: str, *, start: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    rng, rows = np.random.default_rng(0), []
    for reads, writes in ((3, 9), (11, 2), (6, 6)):
        ids = np.array([*start, *rng.integers(6, 60, size=writes), 5])
        source = rng.integers(6, 60, size=reads)
        sound = {"input_features": rng.normal(size=(BANDS, FRAMES)).astype(np.float32)}
        given = sound if family == "whisper" else {"input_ids": source, "attention_mask": np.ones_like(source)}
        rows.append({**given, ANSWER[0]: ids, ANSWER[1]: np.ones_like(ids)})
    return rows


def batch_of(rows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(stacked([row[name] for row in rows])) for name in rows[0]}


def by_hand(model: Any, row: dict[str, np.ndarray]) -> Tensor:
    """[T - 1] of one row without padding: the log-probability of every token but the first."""
    batch = {name: array for name, array in batch_of([row]).items() if name != ANSWER[1]}
    logits = model.hf(**batch, use_cache=False).logits[0].log_softmax(dim=-1)
    ids = batch[ANSWER[0]][0]
    return logits[:-1].gather(-1, ids[1:, None])[:, 0]  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [(1,), (4, 9, 11)])
def test_every_token_of_an_answer_is_foretold(family: str, start: tuple[int, ...]) -> None:
    model, rows = model_of(family, start=start), rows_of(family, start=start)
    batch = batch_of(rows)
    outputs = model(**batch)
    assert outputs.shape == (3, batch[ANSWER[0]].shape[1], 2)
    wanted = [by_hand(model, row)[len(start) - 1 :] for row in rows]
    assert torch.allclose(model.rows(outputs, batch)[:, 0], torch.cat(wanted), atol=1e-4)
    targets = torch.full(batch[ANSWER[0]].shape, -100)
    for number, row in enumerate(rows):
        targets[number, len(start) : len(row[ANSWER[0]])] = torch.from_numpy(row[ANSWER[0]][len(start) :])
    assert float(model.loss(outputs, targets)) == pytest.approx(-float(torch.cat(wanted).sum()), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_model_s_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family, start=(1,))
    batch = batch_of(rows_of(family, start=(1,)))
    states = model.states(batch)
    assert states.shape[-1] == model.width == 32
    logits, whole = model.logits(states), model(**batch)
    assert logits.shape[-1] == model.vocabulary == 66
    monkeypatch.setattr(wrappers, "MOST_LOGITS_BYTES", 16 * 66 * 4)
    assert torch.allclose(model(**batch), whole, atol=1e-5), "a few positions at a time"
    monkeypatch.setattr(room, "SPLIT_PAIRS", ())
    assert model.width == 66
    real = batch[ANSWER[1]].bool()
    assert torch.allclose(model.logits(model.states(batch))[real], logits[real], atol=1e-4)


def test_the_start_is_the_checkpoint_s_own() -> None:
    model = PairWrapper(language_model("t5"))
    assert model.start == (1,)
    batch = batch_of(rows_of("t5", start=(1,)))
    assert model.foretelling(batch).sum(dim=1).tolist() == [10, 3, 7], "answers and their ends"
    assert model.following(batch)[0, :10].tolist() == batch[ANSWER[0]][0, 1:11].tolist()
