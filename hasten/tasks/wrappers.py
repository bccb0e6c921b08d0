"""The modules that give every task one output tensor, and what that tensor means to a training. Needs torch.

Legend: B examples, L tokens, H hidden size, C outputs, R rows of K numbers that belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

IGNORED = -100  # a target that says nothing; torch's own number for it
# Decoders whose logits are their head's product alone, and where the config says so softly capped.
SPLIT_HEADS = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "mixtral", "qwen2_moe",
    "qwen3_moe",
)  # fmt: skip
MOST_LOGITS_BYTES = 1_000_000_000


class Wrapper(nn.Module):
    """``hf`` is the transformers model. ``says``: are the outputs' rows the logits of a softmax, or vectors?
    ``per_token``: outputs are [B, L, C]. ``also``: arrays that it takes beside those of the model's source."""

    task: str
    says: Literal["logits", "vectors"] = "logits"
    per_token = False
    also: tuple[str, ...] = ()

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf

    def rows(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[R, K]: every softmax or vector of ``outputs`` by itself, what was computed for padding left out."""
        del batch
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over the examples; ``targets`` are the task's own, padded with -100."""
        return nn.functional.cross_entropy(outputs, targets, reduction="sum")


class LogitsWrapper(Wrapper):
    """token arrays [B, L] -> logits [B, C] of a ``...ForSequenceClassification``."""

    task = "text-classification"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        inputs = given(input_ids, attention_mask, token_type_ids)
        if isinstance(getattr(self.hf, "score", None), nn.Module):
            return self._at_last_token(inputs)
        logits: Tensor = self.hf(**inputs).logits
        return logits

    def _at_last_token(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """A decoder judges at a row's last token that is no padding. transformers looks for it by the padding's id,
        and takes one row at a time where the config names none; here the mask tells, whatever id padding has."""
        states: Tensor = self.hf.base_model(**inputs).last_hidden_state
        real, padding = inputs["attention_mask"].bool(), self.hf.config.pad_token_id
        if padding is not None:  # at the end of a text it is passed over, as it was in training
            real = real & (inputs["input_ids"] != padding)
        places = torch.arange(1, real.shape[1] + 1, device=real.device)
        last = (real * places).amax(dim=1).sub(1).clamp(min=0)
        logits: Tensor = self.hf.score(states[torch.arange(len(last), device=last.device), last])
        return logits


class PooledWrapper(Wrapper):
    """token arrays [B, L] -> embeddings [B, H]: mean over real tokens or the first token, as trained."""

    task = "feature-extraction"
    says = "vectors"

    def __init__(self, hf: Any, *, pooling: str, normalize: bool) -> None:
        super().__init__(hf)
        self.pooling, self.normalize = pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        states: Tensor = self.hf(**given(input_ids, attention_mask, token_type_ids)).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


class ScoreWrapper(LogitsWrapper):
    """token arrays [B, L] -> one number an example [B, 1] of a ``...ForSequenceClassification`` with one output."""

    task = "text-regression"
    says = "vectors"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs[:, 0] - targets).square().sum()


class TokensWrapper(Wrapper):
    """token arrays [B, L] -> logits of every token [B, L, C] of a ``...ForTokenClassification``."""

    task = "token-classification"
    per_token = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        logits: Tensor = self.hf(**given(input_ids, attention_mask, token_type_ids)).logits
        return logits

    def rows(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return outputs[batch["attention_mask"].bool()]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``targets`` [B, L]: the class of each token; shorter than the outputs where these hold longer rows too."""
        outputs = outputs[:, : targets.shape[1]]
        return nn.functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
        )


class SpanWrapper(Wrapper):
    """token arrays [B, L] -> logits of each token as start and as end [B, L, 2] of a ``...ForQuestionAnswering``."""

    task = "question-answering"
    per_token = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        found = self.hf(**given(input_ids, attention_mask, token_type_ids))
        return torch.stack([found.start_logits, found.end_logits], dim=-1)

    def rows(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        hidden = ~batch["attention_mask"].bool().unsqueeze(-1)
        return outputs.masked_fill(hidden, -1e4).transpose(1, 2).flatten(0, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``targets`` [B, 2]: the first and the last token of the answer, both 0 where it is not in this window."""
        ends = zip(outputs.unbind(dim=-1), targets.unbind(dim=-1), strict=True)
        parts = [nn.functional.cross_entropy(logits, wanted, reduction="sum") for logits, wanted in ends]
        return 0.5 * torch.stack(parts).sum()


class NextTokenWrapper(Wrapper):
    """token arrays [B, L] -> [B, L, 2] of a ``...ForCausalLM``: the log-probability of the token that follows, and the
    id of the likeliest one. A vocabulary's logits never leave the graph; at the last position both mean nothing."""

    task = "language-modeling"
    says = "vectors"
    per_token = True
    told = ("input_ids", "attention_mask")  # the tokens that it foretells, and which of them are no padding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if not (torch.compiler.is_compiling() or tracing):
            per_row = 4 * input_ids.shape[1] * self.hf.config.get_text_config().vocab_size
            if len(input_ids) * per_row > MOST_LOGITS_BYTES:
                return self._piecemeal(input_ids, attention_mask, at_once=max(1, MOST_LOGITS_BYTES // per_row))
        logits = self.hf(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return _said(logits, following(input_ids))

    def following(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The token behind each position [B, L]; behind a row's last one it means nothing."""
        return following(batch[self.told[0]])

    def foretelling(self, batch: Mapping[str, Tensor]) -> Tensor:
        """bool [B, L]: the positions whose distributions are worth learning."""
        return batch[self.told[1]].bool()

    @property
    def vocabulary(self) -> int:
        """How many tokens it foretells."""
        return int(self.hf.config.get_text_config().vocab_size)

    @property
    def width(self) -> int:
        """Numbers of a position in :meth:`states`."""
        return int(self.hf.config.hidden_size) if self._split else self.vocabulary

    def states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What :meth:`logits` are made of [B, L, H]: the last states, or where a family's head is more than a product
        the logits themselves [B, L, V]."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not self._split:
            return torch.as_tensor(self.hf(**given, use_cache=False).logits)
        return torch.as_tensor(self.hf.base_model(**given, use_cache=False).last_hidden_state)

    def logits(self, states: Tensor) -> Tensor:
        """Of ``states`` [..., H] the logits [..., V]."""
        if not self._split:
            return states
        logits: Tensor = self.hf.get_output_embeddings()(states)
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def said_of(self, states: Tensor, behind: Tensor) -> Tensor:
        """[B, L, 2] as :meth:`forward` gives it, of ``states`` [B, L, H] and the tokens ``behind`` them [B, L]; the
        logits of a few positions at a time."""
        most = max(1, MOST_LOGITS_BYTES // (16 * self.vocabulary))
        pieces = zip(torch.split(states.flatten(0, 1), most), torch.split(behind.flatten(), most), strict=True)
        return torch.cat([_said(self.logits(some), ids) for some, ids in pieces]).view(*behind.shape, 2)

    @property
    def _split(self) -> bool:
        return self.hf.config.model_type in SPLIT_HEADS

    def _piecemeal(self, input_ids: Tensor, attention_mask: Tensor, *, at_once: int) -> Tensor:
        """The same without all logits at once: the head on a few positions at a time, or where a family's head has
        more to it, ``at_once`` rows."""
        if not self._split:
            rows = zip(torch.split(input_ids, at_once), torch.split(attention_mask, at_once), strict=True)
            parts = [
                _said(self.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits, following(ids))
                for ids, mask in rows
            ]
            return torch.cat(parts)
        states = self.states({"input_ids": input_ids, "attention_mask": attention_mask})
        return self.said_of(states, following(input_ids))

    def rows(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[R, 1]: the log-probabilities of all tokens but each row's first."""
        follows = batch["attention_mask"][:, 1:].bool()
        return outputs[:, :-1, :1][follows]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``targets`` [B, L] mark the tokens that count (anything but -100)."""
        counted = targets[:, 1:] != IGNORED
        return -outputs[:, : targets.shape[1] - 1, 0][counted].sum()


class ImageWrapper(Wrapper):
    """pixel_values [B, 3, height, width] -> logits [B, C] of a ``...ForImageClassification``."""

    task = "image-classification"

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.hf(pixel_values=pixel_values).logits
        return logits


def following(input_ids: Tensor) -> Tensor:
    """The token after each; after the last one the first."""
    return torch.cat([input_ids[:, 1:], input_ids[:, :1]], dim=1)


def _said(logits: Tensor, following: Tensor) -> Tensor:
    """[B, L, 2] of logits [B, L, V]: the log-probability of ``following``, and the likeliest id."""
    said = logits.gather(-1, following.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
    # In 16 bits an id above 256 would lose digits, and a sum of many tokens its last ones.
    return torch.stack([said.float(), logits.argmax(dim=-1).float()], dim=-1)


def given(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> dict[str, Tensor]:
    """Token types only where the model takes them."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return inputs if token_type_ids is None else {**inputs, "token_type_ids": token_type_ids}
