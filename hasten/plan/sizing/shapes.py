"""Model shapes: what a Transformer is made of, as far as size and time depend on it.

Takes the catalogue beside this file, a ``config.json``, or a bare number of parameters; gives :class:`ModelShape`.

Legend: L layers, H hidden size, F width of the FFN, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from hasten.plan.sizing.figures import Figure
from hasten.plan.sizing.tables import find_entry, read_catalogue, require
from hasten.records import InputError

FILE = Path(__file__).with_name("models.toml")
ShapeKind = Literal["decoder", "encoder", "encoder-decoder"]


LARGEST = 1_000_000_000  # a count beyond it is a slip


@dataclass(frozen=True, slots=True)
class ModelQuality(Figure):
    """A published score from 0 to 100; ``setting`` says how it was had."""

    setting: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.value <= 100, "a score must be from 0 to 100")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """``parameters`` is what the publisher says, or 0 to count them. ``full_every``: of interleaved windows, every n-th
    layer sees all; ``window`` 0 means that all do. ``experts_used`` of ``experts`` compute for each token."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    title: str
    kind: ShapeKind
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    parameters: float = 0.0
    kv_heads: int = 0
    head_dim: int = 0
    gated: bool = False
    tied: bool = True
    max_context: int = 0
    window: int = 0
    full_every: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_ffn: int = 0
    encoder_layers: int = 0
    tokens_trained: float | None = None
    hub: str = ""
    licence: str = ""
    source: str = ""
    quality: Mapping[str, ModelQuality] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        counts = (self.layers, self.hidden, self.heads, self.ffn, self.vocab)
        require(min(counts) >= 1, "layers, hidden, heads, ffn and vocab must be one or more")
        rest = (
            self.kv_heads, self.head_dim, self.max_context, self.window, self.full_every, self.experts,
            self.experts_used, self.expert_ffn, self.encoder_layers,
        )  # fmt: skip
        require(min(rest) >= 0 and max(*counts, *rest) <= LARGEST, f"counts must be from 0 to {LARGEST:,}")
        require(0 <= self.parameters <= 1e15, "parameters must be from 0 to 1e15")
        require(self.experts_used <= self.experts, "experts_used may not be more than experts")
        require(self.key_heads <= self.heads, "kv_heads may not be more than heads")
        require(self.width >= 1, "hidden is too small for so many heads")
        require(self.tokens_trained is None or 0 < self.tokens_trained <= 1e18, "tokens_trained: above 0, to 1e18")

    # ------------------------------------------------------------------ counts

    @property
    def key_heads(self) -> int:
        """Heads that keys and values have: fewer than queries under GQA, one under MQA."""
        return self.kv_heads or self.heads

    @property
    def width(self) -> int:
        """Of one head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def attention_weights(self) -> int:
        """Of one layer: queries, keys, values and the map after them."""
        return self.hidden * self.width * (2 * self.heads + 2 * self.key_heads)

    @property
    def ffn_weights(self) -> int:
        """Of one FFN, or of one expert."""
        return (3 if self.gated else 2) * self.hidden * ((self.expert_ffn or self.ffn) if self.experts else self.ffn)

    @property
    def stacks(self) -> tuple[tuple[int, int], ...]:
        """(layers, attentions in each): an encoder-decoder's decoder attends twice."""
        if self.kind != "encoder-decoder":
            return ((self.layers, 1),)
        return ((self.encoder_layers or self.layers, 1), (self.layers, 2))

    @property
    def layer_weights(self) -> float:
        """In all layers, all experts."""
        ffns = max(1, self.experts)
        return float(sum(n * (a * self.attention_weights + ffns * self.ffn_weights) for n, a in self.stacks))

    @property
    def active_weights(self) -> float:
        """In all layers, of the experts that one token uses."""
        ffns = max(1, self.experts_used) if self.experts else 1
        return float(sum(n * (a * self.attention_weights + ffns * self.ffn_weights) for n, a in self.stacks))

    @property
    def embedding_weights(self) -> float:
        """Tables of tokens: the output head has one of its own unless they are tied."""
        head = 0 if self.tied or self.kind == "encoder" else 1
        return float(self.vocab * self.hidden * (1 + head))

    @property
    def total(self) -> float:
        """Parameters: the publisher's count, or ours."""
        return self.parameters or self.layer_weights + self.embedding_weights

    @property
    def head_weights(self) -> float:
        """The product that gives a token's logits; encoders have none of that size."""
        return 0.0 if self.kind == "encoder" else float(self.vocab * self.hidden)

    def visible(self, context: float) -> float:
        """Tokens that a layer's attention reads at ``context``, mean over the layers."""
        if not self.window or context <= self.window:
            return context
        full = 1.0 / self.full_every if self.full_every else 0.0
        return full * context + (1.0 - full) * self.window

    def cached_values(self, context: float) -> float:
        """Keys and values of one sequence, in numbers: 2 L n_kv d S, windows counted."""
        return 2.0 * self.layers * self.key_heads * self.width * self.visible(context)

    def experts_touched(self, tokens: float) -> float:
        """Share of the experts' weights that so many tokens read together, each choosing at random."""
        if not self.experts:
            return 1.0
        return float(1.0 - (1.0 - self.experts_used / self.experts) ** max(1.0, tokens))


def read_models(own: str | Path | None = None) -> dict[str, ModelShape]:
    """hasten's models, and the user's over them. Raises InputError that names file, model and key."""
    return read_catalogue(ModelShape, FILE, own)


def find_model(name: str, catalogue: Mapping[str, ModelShape]) -> ModelShape:
    """By name or hub id. Raises InputError with the nearest names."""
    keys = {m.name.lower(): m for m in catalogue.values()}
    names = {**{key: m for m in catalogue.values() for key in (m.hub.lower(), m.title.lower()) if key}, **keys}
    return find_entry(
        name, names, what="model", remedy="give its folder with config.json, an entry in --models-file, or --params 7B"
    )


def of_parameters(count: float) -> ModelShape:
    """A decoder of about so many parameters, in today's usual proportions: H / L = 128, heads of 128 numbers, a quarter
    of them for keys and values, a gated FFN 3.5 H wide, 128k tokens (32k and tied below a billion parameters).

    Raises InputError below ten million and above 10 trillion.
    """
    if not 1e7 <= count <= 1e13:
        raise InputError(f"{count:g} parameters", expected="from 10M to 10T", remedy="give the number as in 7B or 350M")
    return min((_usual(count, heads=4 * n) for n in range(1, 512)), key=lambda shape: _unusual(shape, count))


def _usual(count: float, *, heads: int) -> ModelShape:
    """As many layers as make the count, for this width."""
    small = count < 1e9
    width, vocab = (64, 32_000) if small else (128, 128_000)
    hidden = heads * width
    ffn = round(3.5 * hidden / 64) * 64
    layer = hidden * width * (2 * heads + 2 * heads // 4) + 3 * hidden * ffn
    layers = max(1, round((count - vocab * hidden * (1 if small else 2)) / layer))
    shape = ModelShape(
        name="", title="", kind="decoder", layers=layers, hidden=hidden, heads=heads, kv_heads=heads // 4,
        head_dim=width, ffn=ffn, gated=True, vocab=vocab, tied=small, max_context=131_072, source="usual proportions",
    )  # fmt: skip
    name = f"decoder-{readable(count)}"
    return replace(shape, name=name, title=f"a decoder of {readable(shape.total)} parameters")


def _unusual(shape: ModelShape, count: float) -> float:
    """How far its proportions are from H / L = 128 (64 below a billion), and its size from what was asked."""
    aim = 64.0 if shape.tied else 128.0
    return abs(math.log(shape.hidden / shape.layers / aim)) + 10.0 * abs(math.log(shape.total / count))


def readable(count: float) -> str:
    """7.1B, 350M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
