"""What a session would take in the place of each token of an answer that is forced upon it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import SEQ2SEQ, language_model

from hasten.measure.writing import FORCED, NOTHING, ranked_first, written
from hasten.runtimes.generation import DecodingSession, Generation
from hasten.runtimes.generation_facts import facts_of
from hasten.runtimes.torch_generation import forced_logits, generation_session
from hasten.tasks.generation_wrappers import GenerationWrapper, Seq2SeqGenerationWrapper

IDS = np.random.default_rng(0).integers(6, 60, (3, 5))
MASK = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])


def opened(family: str) -> tuple[DecodingSession, dict[str, np.ndarray], object]:
    beside = family in SEQ2SEQ
    wrapper = (Seq2SeqGenerationWrapper if beside else GenerationWrapper)(language_model(family)).eval()
    arrays = {"input_ids": IDS, "attention_mask": MASK[:, ::-1].copy() if beside else MASK}
    return generation_session(wrapper.hf, facts_of(wrapper, arrays), precision="fp32"), arrays, wrapper


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_it_is_the_likeliest_at_every_position(family: str) -> None:
    session, arrays, wrapper = opened(family)
    ids = np.random.default_rng(1).integers(6, 60, (3, 6))
    found = session.ranked_first(arrays, ids, Generation(new_tokens=6))
    wanted = forced_logits(wrapper, arrays, ids[:, :-1]).argmax(axis=-1)
    assert found.tolist() == wanted.tolist()
    first = tuple(int(i) for i in found[:, 0])
    other = session.ranked_first(arrays, ids, Generation(new_tokens=6, never_first=first, never=(int(found[0, 1]),)))
    assert not set(first) & set(other[:, 0].tolist())
    assert int(found[0, 1]) not in other
    assert (other[:, 2:] == found[:, 2:])[found[:, 2:] != found[0, 1]].all()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_answer_of_its_own_comes_again_whole(family: str) -> None:
    session, arrays, _ = opened(family)
    free = written(session, arrays, Generation(new_tokens=7, ignore_ends=True))[0]
    made = [Generation(new_tokens=7, ends=(end,)) for end in sorted(set(free.flatten().tolist()))]
    answers = [(written(session, arrays, generation)[0], generation) for generation in made]
    ids, generation = next(found for found in answers if 0 < (found[0] == NOTHING).sum() < found[0].size / 2)
    (found,) = ranked_first(session, batches=[{**arrays, FORCED: ids}], generation=generation)
    assert found.tolist() == ids.tolist()
    longer = np.concatenate([ids, np.full((3, 2), NOTHING)], axis=1)
    (again,) = ranked_first(session, batches=[{**arrays, FORCED: longer}], generation=generation)
    assert again.tolist() == ids.tolist()


def test_only_one_step_s_logits_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    session, arrays, _ = opened("llama")
    alive: list[int] = []
    taken = Generation.allowed

    def counted(self: Generation, logits: np.ndarray, number: int) -> np.ndarray:
        alive.append(logits.ndim)
        return taken(self, logits, number)

    monkeypatch.setattr(Generation, "allowed", counted)
    session.ranked_first(arrays, IDS, Generation(new_tokens=5))
    assert alive == [2] * 5
    assert torch.is_inference_mode_enabled() is False
