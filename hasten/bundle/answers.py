"""How long the answers of a model that writes text are, and where they begin and end: what a bundle has to remember.

Takes numbers, gives :class:`hasten.runtimes.generation.Generation`. Knows no text.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.runtimes.generation import Generation

SCORED_TOGETHER = 8  # answers take long: what is only scored is written at least so many at a time


@dataclass(frozen=True, slots=True)
class Answers:
    """``most`` tokens an answer may have, ``timed`` ones that every timed request writes, whatever it says.

    ``ends`` are the tokens after which an answer is over, ``start`` an encoder-decoder's first ids.
    """

    most: int
    timed: int
    ends: tuple[int, ...] = ()
    start: tuple[int, ...] = ()

    @property
    def scored(self) -> Generation:
        """Greedy, until an end."""
        return Generation(new_tokens=self.most, ends=self.ends, start=self.start)

    @property
    def measured(self) -> Generation:
        """Of one length, so that times of two models can be compared."""
        return Generation(new_tokens=self.timed, ends=self.ends, ignore_ends=True, start=self.start)


def scored(answers: Answers | None) -> Generation | None:
    """What is written to be scored, where text is written at all."""
    return None if answers is None else answers.scored


def measured(answers: Answers | None) -> Generation | None:
    """What is written to be timed, where text is written at all."""
    return None if answers is None else answers.measured
