"""Whole next-token distributions: what a decoder learns of others at every position of a text, or of an answer.

Takes last states and the heads that make logits of them, gives T^2 KL(teacher || student) at temperature T (Hinton et
al. 2015), a mean over real tokens: what padding says counts for nothing. Several teachers' logits are averaged. Logits
are made for a few positions at a time, and made again when the gradient is asked for (Chen et al. 2016, "Training deep
nets with sublinear memory cost"): a vocabulary of 262,144 costs time, and no more memory than one of 1,000.

Legend: B rows, L tokens, H hidden size (of all teachers side by side, where there are several), V vocabulary,
N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from hasten.passes.calibration import Batch
from hasten.passes.teachers import seen_by
from hasten.records import Rejected
from hasten.tasks.wrappers import NextTokenWrapper

# Of one tensor of logits; a handful of them are alive at once.
MOST_BYTES = 64_000_000


def last_states(teachers: Sequence[NextTokenWrapper], batch: Batch) -> Tensor:
    """What all of them say of a batch before their heads do, side by side [B, L, H]."""
    return torch.cat([teacher.states(seen_by(teacher, batch)) for teacher in teachers], dim=-1)


class Distributions:
    """A student's head, and those of its teachers. Raises Rejected for vocabularies of different sizes."""

    def __init__(self, student: NextTokenWrapper, teachers: Sequence[NextTokenWrapper], *, temperature: float) -> None:
        self.student, self.teachers, self.temperature = student, teachers, temperature
        self.vocabulary = student.vocabulary
        for teacher in teachers:
            if teacher.vocabulary != self.vocabulary:
                raise Rejected(
                    "distill", f"a teacher foretells {teacher.vocabulary:,} tokens and the student "
                    f"{self.vocabulary:,}: their distributions are of different things; with logits=0 hidden states "
                    "alone are learnt from",
                )  # fmt: skip

    def loss(self, states: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """T^2 KL of the student's last ``states`` [B, L, H] from the teachers' [B, L, H]."""
        mask = self.student.foretelling(batch)
        return self._summed(self._divergence, states[mask], wanted[mask]) / mask.sum().clamp(min=1)

    def said(self, states: Tensor, batch: Batch) -> Tensor:
        """The student's log-probability of the token after each [B, L, 1]; behind a row's last token it means
        nothing."""
        following = self.student.following(batch)
        parts = self._each(self._likelihood, states.flatten(0, 1), following.flatten())
        return torch.cat(parts).view(*following.shape, 1)

    def _summed(self, of_some: Callable[[Tensor, Tensor], Tensor], *given: Tensor) -> Tensor:
        return torch.stack(self._each(of_some, *given)).sum()

    def _each(self, of_some: Callable[[Tensor, Tensor], Tensor], *given: Tensor) -> list[Tensor]:
        """What ``of_some`` gives for as many positions at a time as memory is set aside for."""
        at_once = max(1, MOST_BYTES // (4 * self.vocabulary))
        pieces = zip(*(torch.split(tensor, at_once) for tensor in given), strict=True)
        # Heads draw nothing by chance: there is no state of it to be put back.
        return [checkpoint(of_some, *some, use_reentrant=False, preserve_rng_state=False) for some in pieces]

    def _divergence(self, states: Tensor, wanted: Tensor) -> Tensor:
        """Summed over N positions."""
        own = (self.student.logits(states) / self.temperature).log_softmax(dim=-1)
        with torch.no_grad():
            theirs = (self._wanted_logits(wanted) / self.temperature).log_softmax(dim=-1)
        return self.temperature**2 * kl_div(own, theirs, log_target=True, reduction="sum")

    def _wanted_logits(self, wanted: Tensor) -> Tensor:
        """The teachers' mean [N, V]."""
        parts = torch.split(wanted, [teacher.width for teacher in self.teachers], dim=-1)
        made = [teacher.logits(part) for teacher, part in zip(self.teachers, parts, strict=True)]
        return made[0] if len(made) == 1 else torch.stack(made).mean(dim=0)

    def _likelihood(self, states: Tensor, following: Tensor) -> Tensor:
        """[N]"""
        logits = self.student.logits(states)
        return logits.gather(-1, following[:, None])[:, 0] - logits.logsumexp(dim=-1)
