"""The modules around models that write text: arrays in, the logits of the next token out. Needs torch.

How they go on from there, with keys and values kept, is each runtime's own matter (:mod:`hasten.runtimes.generation`).

Legend: B rows, L tokens, F frames of sound, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from hasten.models.writing import start_of
from hasten.tasks.wrappers import Wrapper


class GenerationWrapper(Wrapper):
    """token arrays [B, L], padded on the left -> the logits of the next token [B, V] of a ``...ForCausalLM``."""

    task = "text-generation"
    generative = True
    encoder = False
    start: tuple[int, ...] = ()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        given = taken_by(self.hf, position_ids=positions(attention_mask), logits_to_keep=1)
        logits: Tensor = self.hf(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given).logits
        return logits[:, -1]


class Seq2SeqGenerationWrapper(Wrapper):
    """token arrays [B, L], padded on the right, or input_features [B, bands, F] -> the logits of the token after
    ``start`` [B, V] of a ``...ForConditionalGeneration``. ``start``: ids that every row begins with (default: those
    of the checkpoint). Its task is the one that made it."""

    task = "summarization"
    generative = True
    encoder = True

    def __init__(self, hf: Any, *, start: tuple[int, ...] = ()) -> None:
        super().__init__(hf)
        self.start: tuple[int, ...] = start or start_of(hf)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> Tensor:
        name, source = ("input_ids", input_ids) if input_features is None else ("input_features", input_features)
        assert source is not None, "either input_ids or input_features"
        start = torch.tensor([self.start], device=source.device).expand(source.shape[0], -1)
        given = {name: source} if attention_mask is None else {name: source, "attention_mask": attention_mask}
        logits: Tensor = self.hf(**given, decoder_input_ids=start, use_cache=False).logits
        return logits[:, -1]


def positions(attention_mask: Tensor) -> Tensor:
    """Each token's place in its row [B, L], counted from the first that is no padding; padding itself is at 0."""
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


def taken_by(hf: Any, **given: Any) -> dict[str, Any]:
    """What of ``given`` the model's forward has parameters for."""
    known = inspect.signature(hf.forward).parameters
    return {name: value for name, value in given.items() if name in known}
