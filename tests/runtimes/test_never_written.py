"""Tokens that are kept from answers, in the one loop that all runtimes share."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.bundle.answers import Answers
from hasten.records import InputError
from hasten.runtimes.generation import Generation, generated
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.runtime import Array, Arrays


class Liking:
    """Likes token 4 best, then 3, 2, 1, at every step."""

    def __init__(self) -> None:
        self.logits = np.arange(5, dtype=np.float32)[None].repeat(2, axis=0)

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del arrays, start
        return self.logits

    def step(self, ids: Array) -> Array:
        del ids
        return self.logits

    def reset(self) -> None: ...


def written(generation: Generation) -> list[int]:
    decoder = Liking()
    found = [int(ids[0]) for ids in generated(decoder, {}, generation)]
    assert np.array_equal(decoder.logits[0], np.arange(5)), "a runtime's own numbers stay as they are"
    return found


def test_banned_tokens_are_not_written() -> None:
    assert written(Generation(new_tokens=3)) == [4, 4, 4]
    assert written(Generation(new_tokens=3, never=(4, 77))) == [3, 3, 3]
    assert written(Generation(new_tokens=3, never_first=(4,))) == [3, 4, 4]
    assert written(Generation(new_tokens=2, never=(3,), never_first=(4,))) == [2, 4]
    drawn = written(Generation(new_tokens=40, never=(4,), temperature=2.0, seed=1))
    assert 4 not in drawn
    assert len(set(drawn)) > 1


def test_a_bundle_s_answers_carry_the_bans() -> None:
    answers = Answers(most=9, timed=3, ends=(1,), start=(2,), never=(4,), never_first=(3,))
    for made in (answers.scored, answers.measured):
        assert (made.never, made.never_first, made.start, made.ends) == ((4,), (3,), (2,), (1,))
    assert (answers.scored.new_tokens, answers.measured.new_tokens) == (9, 3)
    assert (answers.scored.ignore_ends, answers.measured.ignore_ends) == (False, True)


def test_bans_are_token_ids() -> None:
    with pytest.raises(InputError, match="never_first"):
        Generation(new_tokens=1, never_first=(-1,))


def test_a_text_that_an_encoder_has_no_positions_for_is_refused() -> None:
    facts = GenerationFacts(encoder=True, input_names=("input_ids",), start=(1,), reads=4)
    facts.check({"input_ids": np.ones((1, 4), dtype=np.int64)}, new_tokens=3, start=(1,))
    with pytest.raises(InputError, match="a text of 5 tokens"):
        facts.check({"input_ids": np.ones((1, 5), dtype=np.int64)}, new_tokens=3, start=(1,))
