"""Decoders as flat programs: GPT-2, Llama and what is built like it, Gemma 2 and 3, whole or cut.

Takes a task's wrapper. Of one that writes text it gives a program over a cache, which ends in the logits of the next
token and, beside them, in the likeliest one; of one that foretells given texts the program of whole texts, which ends
in each next token's probability. Layers are found through the family's adapter, so they may be unequal, few, or without
heads. What the engine cannot say is Rejected with the reason.

Legend: H hidden size, A heads of a layer, K key heads, D width of a head, T tokens, S sequences, V tokens of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hasten.models import adapter_for
from hasten.models.adapter import Adapter, AttentionParts, FeedForward
from hasten.models.prefix import has_prefixes
from hasten.models.surgery import is_rms
from hasten.native.program import (
    Add,
    Attention,
    CachedAttention,
    Foretell,
    HeadNorm,
    Linear,
    Norm,
    NormKind,
    Pool,
    Program,
    Rotary,
    Top,
)
from hasten.records import Rejected
from hasten.runtimes.native_draft import Draft, activation_of, check_matrices
from hasten.runtimes.native_encoders import Lowered, begun
from hasten.runtimes.native_weights import Precision

# Angles that change once a text grows long: no table of frequencies says them.
_CHANGING = ("dynamic", "longrope")
_MOST_PLACES = 1 << 24  # of the engine; how many a model has positions for is the session's to know


@dataclass(frozen=True, slots=True)
class Family:
    """Names of modules below the body, what its norms are, and where a layer's window is said: by its attention, by
    the config for all, or nowhere. ``bounded``: are attention scores softly bounded?"""

    norm: NormKind = "rms"
    words: str = "embed_tokens"
    last: str = "norm"
    attention: str = "self_attn"
    window: Literal["attention", "config", ""] = ""
    bounded: bool = False


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family("layer", words="wte", last="ln_f", attention="attn"),
    "llama": Family(),
    "mistral": Family(window="config"),
    "qwen2": Family(window="attention"),
    "qwen3": Family(window="attention"),
    "phi3": Family(window="config"),
    "gemma2": Family("rms_plus_one", window="attention", bounded=True),
    "gemma3_text": Family("rms_plus_one", window="attention"),
}


@dataclass(frozen=True, slots=True)
class Written:
    """The program of a decoder that writes: its output are logits [S, V]; ``best`` is the buffer of a `Top` [S, 2].
    ``layers``: key heads and their width of each layer's cache."""

    program: Program
    best: int
    layers: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def lowered_writer(
    wrapper: Any, *, precision: Precision, group: int, embeddings: bool, head: Precision, fitted: bool = False
) -> Written:
    """The program of a wrapper that writes text. Raises Rejected."""
    if wrapper.encoder:
        raise Rejected("export", "the native engine runs decoders alone, and this model has an encoder beside its own")
    draft = begun(wrapper.hf, precision=precision, group=group, fitted=fitted)
    decoder = _Decoder(draft, wrapper.hf, cached=True)
    states = decoder.states(embeddings=embeddings, head=head)
    logits, best = decoder.logits(states, head=head)
    return Written(draft.program(logits), best, tuple(decoder.caches), draft.notes)


def lowered_reader(
    wrapper: Any, *, precision: Precision, group: int, embeddings: bool, head: Precision, fitted: bool = False
) -> Lowered:
    """The program of a :class:`hasten.tasks.wrappers.NextTokenWrapper`: [T, 2]. Raises Rejected."""
    draft = begun(wrapper.hf, precision=precision, group=group, fitted=fitted)
    decoder = _Decoder(draft, wrapper.hf, cached=False)
    states = decoder.states(embeddings=embeddings, head=head)
    return Lowered(draft.program(decoder.foretold(states, head=head)), per_token=True, notes=draft.notes)


class _Decoder:
    """A decoder on its way into a draft: states [T, H] run through its layers in one buffer."""

    def __init__(self, draft: Draft, model: Any, *, cached: bool) -> None:
        self.caches: list[tuple[int, int]] = []
        self._draft, self._model, self._cached = draft, model, cached
        self._config, name = model.config, str(model.config.model_type)
        self._adapter, self._family = _known(name, model)
        body: Any = getattr(self._adapter, "body", lambda m: m.transformer)(model)
        self._body = body
        self._table: nn.Embedding = getattr(body, self._family.words)
        self._out = model.get_output_embeddings()
        check_matrices([self._out])
        self._hidden = self._table.weight.shape[1]
        self._activation = activation_of(self._config)
        self._states, self._said = draft.buffer("states", self._hidden), draft.buffer("said", self._hidden)
        self._normed = draft.buffer("normed", self._hidden)
        self._pending = False  # is what the last sublayer said still to be added to the states?

    # ----------------------------------------------------------------- layers

    def states(self, *, embeddings: bool, head: Precision) -> int:
        """The buffer of the states behind the last layer, before the last norm."""
        if embeddings and self._tied:
            raise Rejected("export", "the table of words is the head's matrix here: `head` says its form")
        places = getattr(self._body, "wpe", None)
        self._draft.embed(
            self._states,
            self._words(head) if self._tied else self._draft.table(self._table, int8=embeddings),
            positions=None if places is None else self._draft.table(places),
            scale=float(getattr(self._table, "embed_scale", 1.0)),
        )
        for layer in self._adapter.layers(self._model):
            self._layer(layer)
        if self._pending:
            self._draft.add(Add(self._states, self._said, self._states))
        return self._states

    def _layer(self, layer: Any) -> None:
        norms = self._adapter.norms(layer)
        sandwiched = self._adapter.sandwiched
        before = norms[::2] if sandwiched else norms
        after: tuple[nn.Module | None, ...] = norms[1::2] if sandwiched else (None, None)
        attention, ffn = self._adapter.attention(layer), self._adapter.ffn(layer)
        check_matrices([*attention.inputs, attention.output, *ffn.inputs, ffn.down])
        self._read(before[0])
        context = self._attended(getattr(layer, self._family.attention), attention)
        self._write(attention.output, context, after[0])
        self._read(before[1])
        self._write(ffn.down, self._fed(ffn), after[1])

    def _read(self, norm: nn.Module) -> None:
        """The normed states, with what was said last."""
        if self._pending:
            self._norm(norm, input=self._said, output=self._normed, residual=self._states, total=self._states)
        else:
            self._norm(norm, input=self._states, output=self._normed)
        self._pending = False

    def _write(self, matrix: Any, input: int, norm: nn.Module | None) -> None:
        """The product goes to the states; through a norm first, if there is one."""
        if norm is None:
            self._draft.matrix(matrix, input=input, output=self._states, residual=self._states)
            return
        self._draft.matrix(matrix, input=input, output=self._said)
        self._norm(norm, input=self._said, output=self._said)
        self._pending = True

    def _norm(
        self, module: Any, *, input: int, output: int, residual: int | None = None, total: int | None = None
    ) -> None:
        kind = self._family.norm
        if not (isinstance(module, nn.LayerNorm) if kind == "layer" else is_rms(module)):
            raise Rejected("export", f"the native engine expects another norm here than {type(module).__name__}")
        weight, bias = self._draft.floats(module.weight), self._draft.floats(getattr(module, "bias", None))
        self._draft.add(Norm(input, output, weight, bias, _eps(module), kind, residual, total))

    def _attended(self, own: Any, parts: AttentionParts) -> int:
        """The buffer [T, A D] of what the heads read; empty where there are none."""
        draft, heads, width, keys = self._draft, parts.heads, parts.head_dim, parts.groups
        context = draft.buffer("context", heads * width)
        if not heads:
            return context
        mixed = draft.buffer("mixed", (heads + 2 * keys) * width)
        draft.matrices(list(parts.inputs), input=self._normed, output=mixed)
        for norm, first, count in ((_norm_of(own, "q_norm"), 0, heads), (_norm_of(own, "k_norm"), heads, keys)):
            if norm is not None:
                weight = draft.floats(norm.weight)
                assert weight is not None
                draft.add(HeadNorm(mixed, first, count, width, weight, _eps(norm), self._family.norm))
        if hasattr(self._body, "rotary_emb"):
            frequencies, factor = self._frequencies(own, width)
            draft.add(Rotary(mixed, heads, keys, width, frequencies, _MOST_PLACES, factor))
        scale, window = float(own.scaling), self._window(own)
        cap = float(own.attn_logit_softcapping or 0.0) if self._family.bounded else 0.0
        bf16 = draft.multiplies_bf16
        if self._cached:
            draft.add(CachedAttention(mixed, context, len(self.caches), heads, keys, width, scale, window, cap, bf16))
            self.caches.append((keys, width))
        else:
            draft.add(Attention(mixed, context, heads, keys, width, scale, True, window, cap, bf16))
        return context

    def _window(self, own: Any) -> int:
        where = {"attention": own, "config": self._config, "": None}[self._family.window]
        return int(getattr(where, "sliding_window", None) or 0)

    def _frequencies(self, own: Any, width: int) -> tuple[int, float]:
        """The tensor of a layer's frequencies, and what their cosines are multiplied by: the model's own."""
        rotary = self._body.rotary_emb
        kinds, prefix = rotary.rope_type, ""
        if isinstance(kinds, Mapping):
            prefix = f"{own.layer_type}_"
            kinds = kinds[own.layer_type]
        if kinds in _CHANGING:
            raise Rejected("export", f"rotary positions of type {kinds} change with the length, a program's do not")
        found = getattr(rotary, f"{prefix}inv_freq")
        if 2 * found.numel() > width:
            raise Rejected("export", f"{found.numel()} rotary frequencies do not fit heads of {width}")
        number = self._draft.floats(found)
        assert number is not None
        return number, float(getattr(rotary, f"{prefix}attention_scaling"))

    def _fed(self, ffn: FeedForward) -> int:
        """The buffer of the neurons."""
        inner = self._draft.buffer("inner", ffn.neurons)
        if ffn.gate is None:
            self._draft.matrix(ffn.up, input=self._normed, output=inner, activation=self._activation)
        else:
            self._draft.gated(list(ffn.inputs), input=self._normed, output=inner, activation=self._activation)
        return inner

    # ----------------------------------------------------------------- the vocabulary

    def logits(self, states: int, *, head: Precision) -> tuple[int, int]:
        """The buffers of the next token's logits [S, V] and of the largest of them [S, 2]."""
        draft, weight, bias, cap = self._draft, self._words(head), self._draft.floats(self._out.bias), self._bound()
        last = draft.buffer("last", self._hidden, "sequence")
        draft.add(Pool(states, last, "last"))
        self._norm(getattr(self._body, self._family.last), input=last, output=last)
        logits = draft.buffer("logits", self._out.out_features, "sequence")
        best = draft.buffer("best", 2, "sequence")
        draft.add(Linear(last, logits, weight, bias, cap=cap))
        draft.add(Top(last, best, weight, bias))  # of the logits before they are bounded, in the same order
        return logits, best

    def foretold(self, states: int, *, head: Precision) -> int:
        """The buffer [T, 2] of the next tokens' probabilities."""
        self._norm(getattr(self._body, self._family.last), input=states, output=self._normed)
        output = self._draft.buffer("output", 2)
        weight, bias = self._words(head), self._draft.floats(self._out.bias)
        self._draft.add(Foretell(self._normed, output, weight, bias, self._bound()))
        return output

    @property
    def _tied(self) -> bool:
        return self._out.weight is self._table.weight

    def _words(self, head: Precision) -> int:
        """The matrix of the head, which is the table of words too where they are one."""
        return self._draft.vocabulary(self._out, precision=head)

    def _bound(self) -> float:
        return float(getattr(self._config, "final_logit_softcapping", None) or 0.0)


def _known(name: str, model: Any) -> tuple[Adapter, Family]:
    adapter, family = adapter_for(name), FAMILIES.get(name)
    if adapter is None or family is None:
        more = ": a mixture of experts" if "moe" in name or name == "mixtral" else ""
        raise Rejected(
            "export", f"the native engine runs the decoders {', '.join(FAMILIES)}, and this is a {name} model{more}"
        )
    if has_prefixes(model):
        raise Rejected("export", "learnt prefixes stand in front of the keys, and the native engine has no place there")
    if getattr(model.config, "use_bidirectional_attention", False):
        raise Rejected("export", "this model sees tokens behind its own, and the native engine's decoders do not")
    return adapter, family


def _eps(norm: Any) -> float:
    """Llama's norms call it otherwise than Gemma's and torch's."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def _norm_of(own: Any, name: str) -> Any:
    """A norm of single heads, where the family has one. Raises Rejected for one of another kind."""
    found = getattr(own, name, None)
    if found is not None and not is_rms(found):
        raise Rejected("export", f"the native engine expects another norm of heads than {type(found).__name__}")
    return found
