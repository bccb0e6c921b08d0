"""What a teacher says about rows: outputs, and hidden states at chosen depths, kept for all epochs when they fit.

Takes teacher wrappers and rows, gives padded target tensors for any batch of row numbers. Several teachers' outputs
are averaged (logits for classes, vectors for embeddings); hidden states come from the first. Of language models the
last states are kept in the place of outputs, all teachers' side by side: a vocabulary's logits would fit nowhere.

Legend: B rows, L tokens, H hidden size, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.load import input_names
from hasten.passes.calibration import Batch, Row, padded, real
from hasten.passes.distributions import last_states
from hasten.passes.hooks import hooked
from hasten.passes.teachers import adapter_of_teacher, seen_by
from hasten.tasks.wrappers import NextTokenWrapper

_MOST_BYTES = 1_500_000_000
_MOST_FP16 = 6e4


@contextmanager
def watched(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Within, the list fills with the states after every layer that runs [B, L, H], before any norm behind them all."""
    caught: list[Tensor] = []
    with hooked(layer.register_forward_hook(lambda _m, _i, out: caught.append(_tensor(out))) for layer in layers):
        yield caught


@dataclass(slots=True)
class Targets:
    """``depths`` are of the teacher's hidden states (0: embeddings, n: after layer n)."""

    teachers: Sequence[Any]
    rows: Sequence[Row]
    depths: tuple[int, ...]
    _outputs: dict[int, Tensor] = field(default_factory=dict)
    _states: dict[int, Tensor] = field(default_factory=dict)

    def of(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the rows ``index``: outputs [B, C] or [B, L, C] (of language models last states), and hidden states
        [depths, B, L, H] in fp32, zero where padded."""
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
        outputs = self._said(batch)
        states = self._hidden(batch)
        answers = {}
        read = real(batch, states[0] if len(states) else next(iter(batch.values()))).sum(dim=1)
        # Of an encoder-decoder the outputs are of what it writes, and the states of what it reads.
        told = getattr(self.teachers[0], "told", None)
        said = read if told is None else batch[told[1]].sum(dim=1)
        for number, (i, length, most) in enumerate(zip(index, read.tolist(), said.tolist(), strict=True)):
            own = outputs[number, :most] if self.teachers[0].per_token else outputs[number]
            answers[i] = (own.clone(), _compact(states[:, number, :length]))
        if self._fits(answers):
            self._outputs |= {i: answer[0] for i, answer in answers.items()}
            self._states |= {i: answer[1] for i, answer in answers.items()}
        return answers

    def _said(self, batch: Batch) -> Tensor:
        speakers = [teacher for teacher in self.teachers if isinstance(teacher, NextTokenWrapper)]
        if speakers:
            return last_states(speakers, batch)
        return torch.stack([teacher(**seen_by(teacher, batch)) for teacher in self.teachers]).mean(dim=0)

    def _hidden(self, batch: Batch) -> Tensor:
        if not self.depths:
            first = next(iter(batch.values()))
            return torch.zeros(0, len(first), first.shape[1], 1)
        first = self.teachers[0]
        # Not the model's own list of them: its last one may have gone through the final norm.
        # Of an encoder-decoder the encoder's layers are looked at, which need no decoder.
        body = first.hf.get_encoder() if getattr(first.hf.config, "is_encoder_decoder", False) else first.hf.base_model
        with watched(adapter_of_teacher(first, what="hidden states").layers(first.hf)) as caught:
            source = {name: batch[name] for name in input_names(first.hf) if name in batch}
            found = body(**source, output_hidden_states=0 in self.depths)
        return torch.stack([caught[d - 1] if d else found.hidden_states[0] for d in self.depths])

    def _fits(self, answers: dict[int, tuple[Tensor, Tensor]]) -> bool:
        """Would all rows, at this size, fit the memory that is set aside?"""
        kept = [tensor for answer in answers.values() for tensor in answer]
        one = sum(tensor.numel() * tensor.element_size() for tensor in kept) / max(1, len(answers))
        return one * len(self.rows) <= _MOST_BYTES


def _compact(states: Tensor) -> Tensor:
    """In 16 bits where they fit: some decoders have states that do not."""
    return states.to(torch.float16) if not states.numel() or float(states.abs().max()) < _MOST_FP16 else states.clone()


def _tensor(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
