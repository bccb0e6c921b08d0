"""What a teacher says about rows: outputs, and hidden states at chosen depths, kept for all epochs when they fit.

Takes teacher wrappers and rows, gives padded target tensors for any batch of row numbers. Several teachers' outputs
are averaged (logits for classes, vectors for embeddings); hidden states come from the first.

Legend: B rows, L tokens, H hidden size, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hasten.passes.calibration import Row, padded, real
from hasten.passes.teachers import seen_by

_BATCH = 64
_MOST_BYTES = 1_500_000_000


@dataclass(slots=True)
class Targets:
    """``depths`` are indices into the teacher's hidden states (0: embeddings, n: after layer n)."""

    teachers: Sequence[Any]
    rows: Sequence[Row]
    depths: tuple[int, ...]
    _outputs: dict[int, Tensor] = field(default_factory=dict)
    _states: dict[int, Tensor] = field(default_factory=dict)

    def of(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the rows ``index``: outputs [B, C] or [B, L, C], and hidden states [depths, B, L, H] in fp32, zero where
        padded."""
        unknown = [i for i in index if i not in self._outputs]
        fresh = self._ask(unknown) if unknown else {}
        found = [fresh[i] if i in fresh else (self._outputs[i], self._states[i]) for i in index]
        longest = max(states.shape[1] for _, states in found)
        states = torch.zeros(len(self.depths), len(index), longest, found[0][1].shape[2])
        for number, (_, one) in enumerate(found):
            states[:, number, : one.shape[1]] = one
        return nn.utils.rnn.pad_sequence([outputs for outputs, _ in found], batch_first=True), states

    @torch.inference_mode()
    def _ask(self, index: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        batch = padded([self.rows[i] for i in index])
        outputs = torch.stack([teacher(**seen_by(teacher, batch)) for teacher in self.teachers]).mean(dim=0)
        states = self._hidden(batch)
        answers = {}
        lengths = real(batch, states[0] if len(states) else next(iter(batch.values()))).sum(dim=1).tolist()
        for number, (i, length) in enumerate(zip(index, lengths, strict=True)):
            own = outputs[number, :length] if self.teachers[0].per_token else outputs[number]
            answers[i] = (own.clone(), states[:, number, :length].to(torch.float16))
        if self._fits(answers):
            self._outputs |= {i: answer[0] for i, answer in answers.items()}
            self._states |= {i: answer[1] for i, answer in answers.items()}
        return answers

    def _hidden(self, batch: dict[str, Tensor]) -> Tensor:
        if not self.depths:
            first = next(iter(batch.values()))
            return torch.zeros(0, len(first), first.shape[1], 1)
        first = self.teachers[0]
        states = first.hf.base_model(**seen_by(first, batch), output_hidden_states=True).hidden_states
        return torch.stack([states[d] for d in self.depths])

    def _fits(self, answers: dict[int, tuple[Tensor, Tensor]]) -> bool:
        """Would all rows, at this size, fit the memory that is set aside?"""
        one = sum(s.numel() * s.element_size() for _, s in answers.values()) / max(1, len(answers))
        return one * len(self.rows) <= _MOST_BYTES
