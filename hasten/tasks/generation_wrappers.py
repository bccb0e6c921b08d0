"""The modules around models that write text: arrays in, the logits of the next token out. Needs torch.

How they go on from there, with keys and values kept, is each runtime's own matter (:mod:`hasten.runtimes.generation`).
:class:`PairWrapper` is what passes see of an encoder-decoder: whole answers, whose tokens are forced.

Legend: B rows, L tokens, F frames of sound, T tokens of an answer, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.models.writing import start_of
from hasten.tasks.examples import ANSWER
from hasten.tasks.wrappers import NextTokenWrapper, Wrapper

_SOURCE = ("input_ids", "attention_mask", "input_features")
# Encoder-decoders whose logits are their head's product with the decoder's last states, and a bias where there is one.
SPLIT_PAIRS = ("t5", "bart", "marian", "whisper")


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


class PairWrapper(NextTokenWrapper):
    """A source (token arrays [B, L], or input_features [B, bands, F]) and the answer to it (``ANSWER`` [B, T], padded
    on the right) -> [B, T, 2]: of every token of the answer what :class:`NextTokenWrapper` says of a text's.

    The answer begins with ``start``, which nobody foretells, and holds its end. Its task is the one that made it.
    """

    task = "summarization"
    told = ANSWER
    also = ANSWER
    encoder = True

    def __init__(self, hf: Any, *, start: tuple[int, ...] = ()) -> None:
        super().__init__(hf)
        self.start: tuple[int, ...] = start or start_of(hf)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> Tensor:
        assert decoder_input_ids is not None, "an answer"
        del decoder_attention_mask  # behind what is real: nothing sees it
        arrays = zip((*_SOURCE, ANSWER[0]), (input_ids, attention_mask, input_features, decoder_input_ids), strict=True)
        batch = {name: array for name, array in arrays if array is not None}
        return self.said_of(self.states(batch), self.following(batch))

    @property
    def vocabulary(self) -> int:
        """How many tokens it foretells; Marian may read others."""
        return len(self.hf.get_output_embeddings().weight)

    def foretelling(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Those behind which a token of the answer, or its end, stands."""
        real = batch[self.told[1]].bool()
        found = torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], dim=1)
        found[:, : len(self.start) - 1] = False
        return found

    def states(self, batch: Mapping[str, Tensor]) -> Tensor:
        given = {name: batch[name] for name in _SOURCE if name in batch}
        if not self._split:
            return torch.as_tensor(self.hf(**given, decoder_input_ids=batch[ANSWER[0]], use_cache=False).logits)
        read = self.hf.get_encoder()(**given).last_hidden_state
        masked = {"encoder_attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
        found: Tensor = self.hf.get_decoder()(
            input_ids=batch[ANSWER[0]], encoder_hidden_states=read, use_cache=False, **masked
        ).last_hidden_state
        return found * self.hf.model_dim**-0.5 if getattr(self.hf.config, "scale_decoder_outputs", False) else found

    def logits(self, states: Tensor) -> Tensor:
        if not self._split:
            return states
        logits: Tensor = self.hf.get_output_embeddings()(states)
        bias: Tensor | None = getattr(self.hf, "final_logits_bias", None)
        return logits if bias is None else logits + bias[0]

    def rows(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[R, 1]: the log-probabilities of all answers' tokens."""
        return outputs[..., :1][self.foretelling(batch)]

    @property
    def _split(self) -> bool:
        return self.hf.config.model_type in SPLIT_PAIRS


def positions(attention_mask: Tensor) -> Tensor:
    """Each token's place in its row [B, L], counted from the first that is no padding; padding itself is at 0."""
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


def taken_by(hf: Any, **given: Any) -> dict[str, Any]:
    """What of ``given`` the model's forward has parameters for."""
    known = inspect.signature(hf.forward).parameters
    return {name: value for name, value in given.items() if name in known}
